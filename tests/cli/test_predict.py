import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from lw_retinanet.data.sample import make_sample


def test_json_has_the_form_of_the_contract(cli: Any, lively: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    outcome = cli("predict", lively, data / "images" / "val_0001.jpg", "--score", "0.1", "--json")
    assert outcome.code == 0
    assert outcome.err == ""
    assert list(outcome.json) == ["images"]
    (image,) = outcome.json["images"]
    assert list(image) == ["file", "width", "height", "detections"]
    assert (image["file"], image["width"], image["height"]) == (str(data / "images" / "val_0001.jpg"), 64, 64)
    assert image["detections"]
    for found in image["detections"]:
        assert list(found) == ["box", "score", "label", "name", "category_id"]
        x1, y1, x2, y2 = found["box"]
        assert 0 <= x1 <= x2 <= 64
        assert 0 <= y1 <= y2 <= 64
        assert 0.1 < found["score"] <= 1
    assert not list(tmp_path.iterdir())  # JSON alone writes no files


def test_images_are_drawn_and_listed(cli: Any, lively: Path, data: Path, tmp_path: Path) -> None:
    outcome = cli("predict", lively, data / "images", "--out", tmp_path / "new" / "out")
    assert outcome.code == 0
    files = {path.name for path in (tmp_path / "new" / "out").iterdir()}
    assert files == {path.name for path in (data / "images").iterdir()} | {"predictions.json", "results.json"}
    with Image.open(tmp_path / "new" / "out" / "val_0001.jpg") as drawn:
        assert drawn.size == (64, 64)
    predictions = json.loads((tmp_path / "new" / "out" / "predictions.json").read_text())
    results = json.loads((tmp_path / "new" / "out" / "results.json").read_text())
    assert len(predictions["images"]) == 12
    assert len(results) == sum(len(image["detections"]) for image in predictions["images"])
    assert outcome.out == f"{len(results)} objects in 12 images; see {tmp_path / 'new' / 'out'}\n"


def test_without_out_and_json_there_is_a_folder_predictions(
    cli: Any, lively: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for _ in range(2):  # a second time replaces the first
        assert cli("predict", lively, str(data / "images" / "train_000[12].jpg")).code == 0
        names = sorted(path.name for path in (tmp_path / "predictions").iterdir())
        assert names == ["predictions.json", "results.json", "train_0001.jpg", "train_0002.jpg"]


def test_images_of_one_name_from_two_folders(cli: Any, lively: Path, data: Path, tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.jpg").write_bytes((data / "images" / "val_0001.jpg").read_bytes())
    assert cli("predict", lively, tmp_path / "one", tmp_path / "two", "--out", tmp_path / "out").code == 0
    assert {path.name for path in (tmp_path / "out").glob("*.jpg")} == {"a.jpg", "a-2.jpg"}


def test_the_score_decides_how_much_is_shown(cli: Any, lively: Path, data: Path) -> None:
    def scores(least: float) -> list[float]:
        image = cli("predict", lively, data / "images" / "val_0001.jpg", "--score", least, "--json").json["images"][0]
        return [found["score"] for found in image["detections"]]

    everything = scores(0)
    limit = everything[len(everything) // 2]
    assert scores(limit) == [score for score in everything if score > limit]
    assert scores(0.999) == []


def test_a_lightened_model_answers_with_either_head(cli: Any, full_and_light: tuple[Path, Path], data: Path) -> None:
    full, light = full_and_light
    picture = data / "images" / "val_0001.jpg"
    expected = cli("predict", full, picture, "--score", "0.1", "--json").json
    assert expected["images"][0]["detections"]
    assert cli("predict", light, picture, "--score", "0.1", "--head", "full", "--json").json == expected
    assert cli("predict", full, picture, "--score", "0.1", "--head", "full", "--json").json == expected
    assert cli("predict", light, picture, "--score", "0.1", "--json").json != expected


@pytest.mark.parametrize("as_json", [True, False])
def test_an_unreadable_image_in_the_middle(cli: Any, lively: Path, data: Path, as_json: bool, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for name in ("a.jpg", "b.jpg", "c.jpg"):
        (tmp_path / "in" / name).write_bytes((data / "images" / "val_0001.jpg").read_bytes())
    (tmp_path / "in" / "b.jpg").write_bytes(b"no picture at all")
    outcome = cli("predict", lively, tmp_path / "in", "--out", tmp_path / "out", *(["--json"] if as_json else []))
    assert outcome.code == 1
    assert outcome.err.startswith(f"error: {tmp_path / 'in' / 'b.jpg'}: is not an image of a known form")
    assert outcome.err.count("\n") == 1
    listed = json.loads((tmp_path / "out" / "predictions.json").read_text())
    assert [Path(image["file"]).name for image in listed["images"]] == ["a.jpg", "c.jpg"]
    assert {path.name for path in (tmp_path / "out").glob("*.jpg")} == {"a.jpg", "c.jpg"}
    if as_json:
        assert outcome.json == listed
    else:
        assert " in 2 images; see " in outcome.out


def test_originals_are_never_drawn_over(
    cli: Any, lively: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, folder_state: Callable[[Path], object]
) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.jpg").write_bytes((data / "images" / "val_0001.jpg").read_bytes())
    monkeypatch.chdir(tmp_path)
    line = cli.refuses("predict", lively, "photos/a.jpg", "--out", tmp_path / "photos", unchanged=tmp_path)
    assert "choose another folder" in line
    before = folder_state(tmp_path / "photos")
    assert cli("predict", lively, ".").code == 0
    # The second time the results of the first are among the images.
    cli.refuses("predict", lively, ".", unchanged=tmp_path)
    assert folder_state(tmp_path / "photos") == before


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["{model}", "gone.jpg"], ["gone.jpg: no such file or folder"]),
        (["{model}", "*.jpg"], ["*.jpg: no file matches this pattern"]),
        (["{model}", "empty"], ["empty: no images in this folder"]),
        (["{model}", "{picture}", "gone.jpg"], ["gone.jpg"]),
        (["{model}", "https://example.com/a.jpg"], ["web addresses are not read"]),
        (["gone.safetensors", "{picture}"], ["gone.safetensors does not exist", "run folder"]),
        (["empty", "{picture}"], ["empty holds no model.safetensors"]),
        (["broken.safetensors", "{picture}"], ["cannot read model file broken.safetensors"]),
        (["{picture}", "{picture}"], ["cannot read model file"]),
        (["{model}", "{picture}", "--out", "broken.safetensors"], ["broken.safetensors is a file"]),
        (["{model}", "{picture}", "--out", "broken.safetensors/deep/out"], ["broken.safetensors is a file"]),
        (["{model}", "{picture}", "--precision", "half"], ["half"]),
        (["{model}", "{picture}", "--device", "cuda:77"], ["cuda:77"]),
        (["{model}", "{picture}", "--head", "full"], ["model.safetensors", "holds one head only", "`lw-retinanet lighten`"]),
        (["{model}", "{picture}", "--head", "ful"], ["head 'ful'", "did you mean full?"]),
    ],
)
def test_bad_input(
    cli: Any, lively: Path, data: Path, arguments: list[str], parts: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken.safetensors").write_bytes(b"\x99" * 40)
    picture = data / "images" / "val_0001.jpg"
    line = cli.refuses("predict", *(text.format(model=lively, picture=picture) for text in arguments), unchanged=tmp_path)
    assert all(part in line for part in parts), line


def test_a_large_image_is_refused_and_its_remedy_helps(cli: Any, lively: Path, data: Path, tmp_path: Path) -> None:
    image = data / "images" / "val_0001.jpg"
    refused = cli("predict", lively, image, "--max-pixels", "4095", "--json")
    assert refused.code == 1
    assert refused.err == f"error: {image}: 64 x 64 is more than the limit of 4,095 pixels; shrink the image or raise max_pixels\n"
    assert cli("predict", lively, image, "--max-pixels", "4096", "--json").code == 0
    refused = cli("evaluate", lively, data, "--max-pixels", "4095")
    assert refused.code == 2
    assert "64 x 64 is more than the limit of 4,095 pixels; shrink the image or raise max_pixels" in refused.err
    assert cli("evaluate", lively, data, "--max-pixels", "4096").code == 0
    refused = cli("train", data, "--out", tmp_path / "run", "--set", "data.max_pixels=4095", "--dry-run")
    assert refused.code == 2
    assert "raise max_pixels" in refused.err


def test_bad_files_in_a_folder_are_a_line_each_and_harm_no_neighbour(cli: Any, lively: Path, data: Path, tmp_path: Path) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    whole = (data / "images" / "val_0001.jpg").read_bytes()
    (folder / "a.jpg").write_bytes(whole)
    (folder / "z.jpg").write_bytes(whole)
    (folder / "cut.jpg").write_bytes(whole[: 2 * len(whole) // 3] + b"\xff\xd9")
    (folder / "escape\x1b[31mred\nline.jpg").write_bytes(b"rubbish")
    (folder / "loop.jpg").symlink_to("loop.jpg")
    (folder / "device.jpg").symlink_to("/dev/zero")
    outcome = cli("predict", lively, folder, "--json")
    assert outcome.code == 1
    assert [Path(image["file"]).name for image in outcome.json["images"]] == ["a.jpg", "z.jpg"]
    lines = outcome.err.splitlines()
    assert len(lines) == 4
    assert all(line.startswith(f"error: {folder}/") and line.isprintable() for line in lines)


def test_a_video_by_its_name(cli: Any, lively: Path, make_video: Callable[..., Path], tmp_path: Path) -> None:
    clip = make_video(tmp_path / "clip.mp4", frames=6)
    outcome = cli("predict", lively, clip, "--out", tmp_path / "found.webm", "--every", "2")
    assert outcome.code == 0, outcome
    lines = [json.loads(line) for line in (tmp_path / "found.jsonl").read_text().splitlines()]
    assert [line["frame"] for line in lines] == [0, 2, 4]
    objects = sum(len(line["detections"]) for line in lines)
    assert outcome.out.startswith(f"{objects} objects in 3 of 6 frames, ")
    assert outcome.out.endswith(f" frames a second; see {tmp_path / 'found.webm'} and {tmp_path / 'found.jsonl'}\n")
    as_json = cli("predict", lively, clip, "--every", "2", "--json").json
    assert list(as_json) == ["images", "frames", "missing", "per_second"]
    assert as_json["images"] == lines
    assert cli("predict", lively, clip, "--out", tmp_path / "folder", "--every", "5").code == 0
    assert {path.name for path in (tmp_path / "folder").iterdir()} == {"clip.webm", "clip.jsonl"}


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["clip.mp4", "picture.jpg"], "2 sources: a video is predicted on alone"),
        (["clip.mp4", "--out", "clip.mp4"], "clip.mp4 is the video that is read"),
        (["clip.mp4", "--out", "found.gif"], "found.gif: a video's name must end in one of .webm"),
        (["clip.mp4", "--max-pixels", "3071"], "raise max_pixels"),
        (["gone.mp4"], "gone.mp4: the video cannot be read (No such file or directory)"),
        (["rubbish.mp4"], "rubbish.mp4: no video can be read from it"),
        (["picture.mp4"], "picture.mp4 is an image (JPEG) with a video's name; rename it to end in .jpeg"),
        (["folder.mp4"], "folder.mp4 is a folder"),
        (["picture.jpg", "--every", "2"], "--every is for a video"),
        (["picture.jpg", "--out", "found.webm"], "picture.jpg is an image (JPEG)"),
    ],
)
def test_bad_videos(
    cli: Any,
    lively: Path,
    data: Path,
    make_video: Callable[..., Path],
    arguments: list[str],
    part: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    make_video(Path("clip.mp4"), frames=2)
    picture = (data / "images" / "val_0001.jpg").read_bytes()
    for name, content in (("picture.jpg", picture), ("picture.mp4", picture), ("rubbish.mp4", b"rubbish" * 40)):
        Path(name).write_bytes(content)
    Path("folder.mp4").mkdir()
    assert part in cli.refuses("predict", lively, *arguments, unchanged=tmp_path)


def test_results_have_the_ids_of_the_data_set_and_score_as_the_model_does(
    cli: Any, lively: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    data = make_sample(tmp_path / "data", num_train=1, num_val=20, size=64)
    table = json.loads((data / "val.json").read_text())
    for image in table["images"]:
        image["id"] += 5000
    renamed = {one["id"]: one["id"] * 11 for one in table["categories"]}
    for one in table["categories"]:
        one["id"] = renamed[one["id"]]
    for one in table["annotations"]:
        one.update(image_id=one["image_id"] + 5000, category_id=renamed[one["category_id"]])
    (data / "val.json").write_text(json.dumps(table))
    predicted = cli("predict", lively, "--data", data, "--score", "0.05", "--out", tmp_path / "found")
    assert predicted.code == 0, predicted
    results = json.loads((tmp_path / "found" / "results.json").read_text())
    assert {one["image_id"] for one in results} == {image["id"] for image in table["images"]}
    assert {one["category_id"] for one in results} <= set(renamed.values())
    model = cli("evaluate", lively, data, "--out", tmp_path / "scored", "--json").json
    truth = ("--ground-truth", data / "val.json")
    for detections in (tmp_path / "found", tmp_path / "found" / "results.json"):
        assert cli("evaluate", *truth, "--detections", detections, "--json").json == model
    compared = cli("compare", tmp_path / "scored", tmp_path / "found" / "results.json", "--data", data, "--json").json
    assert (compared["difference"], compared["low"], compared["high"]) == (0, 0, 0)
    # Of some images, and of one that the data set does not have.
    some = [data / "images" / "val_0001.jpg", data / "images" / "train_0001.jpg"]
    cli("predict", lively, *some, "--data", data, "--split", "val", "--score", "0.05", "--out", tmp_path / "some")
    assert "train_0001.jpg and perhaps others are not in the data set; results.json has their file names as ids" in caplog.text
    ids = {one["image_id"] for one in json.loads((tmp_path / "some" / "results.json").read_text())}
    assert ids == {next(image["id"] for image in table["images"] if image["file_name"] == "val_0001.jpg"), str(some[1])}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("IMAGE", "--split", "val"), "split val is that of a data set, and none is given; name data, too"),
        (("--data", "nowhere"), "data set nowhere does not exist; check the path"),
        (("--data", "DATA", "--split", "fall"), "no split 'fall'; it has train, val: name one"),
        (("--data", "OTHER"), "is among the data set"),
        (("IMAGE", "--score", "1"), "--score 1: expected a number from 0 to below 1, or best"),
        (("IMAGE", "--score", "beast"), "--score beast: expected a number from 0 to below 1, or best"),
        (("IMAGE", "--score", "best"), "has no best score, which training on data with a val split finds; give a number"),
        (("clip.mp4", "--data", "DATA"), "--data and --split are for images; leave them out for a video"),
    ],
)
def test_what_does_not_go_together_is_refused(
    arguments: tuple[str, ...], message: str, cli: Any, lively: Path, data: Path, edited_data: Any, tmp_path: Path
) -> None:
    other = edited_data(
        lambda table: (
            [one.update(name=f"other {one['id']}", id=one["id"] + 90) for one in table["categories"]]
            + [one.update(category_id=one["category_id"] + 90) for one in table["annotations"]]
        ),
        "val",
    )
    named = {"IMAGE": str(data / "images" / "val_0001.jpg"), "DATA": str(data), "OTHER": str(other / "val.json")}
    asked = [named.get(one, one) for one in arguments]
    assert message in cli.refuses("predict", lively, *asked, "--out", tmp_path / "found", unchanged=tmp_path)
