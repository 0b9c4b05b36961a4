import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import lw_retinanet as lw
from lw_retinanet.data.records import Category
from lw_retinanet.detection.result import Result
from lw_retinanet.errors import DiskFullError, InputError
from lw_retinanet.files import write_text
from lw_retinanet.jobs.predict import Collection, run_prediction


def found(file: str | None) -> Result:
    return Result(
        file=file,
        image=np.zeros((20, 30, 3), np.uint8),
        boxes=np.array([[1, 2, 11, 12]], np.float32),
        scores=np.array([0.5], np.float32),
        labels=np.array([0]),
        categories=(Category(id=5, name="fish"),),
    )


def test_images_of_one_name_do_not_overwrite_each_other(tmp_path: Path) -> None:
    gathered = Collection(tmp_path)
    for file in ("one/a.jpg", "two/a.png", "A.webp", "a-2.jpg", None):
        gathered.add(found(file))
    gathered.write()
    names = {"a.jpg", "a-2.jpg", "A-3.jpg", "a-2-2.jpg", "picture.jpg"}
    assert {path.name for path in tmp_path.iterdir()} == {*names, "predictions.json", "results.json"}
    assert json.loads((tmp_path / "predictions.json").read_text()) == {"images": gathered.images}
    assert [entry["file"] for entry in gathered.images] == ["one/a.jpg", "two/a.png", "A.webp", "a-2.jpg", None]
    results = json.loads((tmp_path / "results.json").read_text())
    assert results[0] == {"image_id": "one/a.jpg", "category_id": 5, "bbox": [1.0, 2.0, 10.0, 10.0], "score": 0.5}
    assert [entry["image_id"] for entry in results] == ["one/a.jpg", "two/a.png", "A.webp", "a-2.jpg", "4"]


def test_odd_names_become_plain_ones(tmp_path: Path) -> None:
    gathered = Collection(tmp_path)
    for file in ("fish & chips?.jpg", f"{'x' * 300}.jpg"):
        gathered.add(found(file))
    assert {path.name for path in tmp_path.iterdir()} == {"fish_chips_.jpg", f"{'x' * 100}.jpg"}


def test_an_image_that_is_read_is_never_written_over(tmp_path: Path) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "a.jpg")
    with pytest.raises(InputError, match=r"a\.jpg lies in the folder .* choose another folder"):
        Collection(tmp_path, [tmp_path / "sub" / ".." / "a.jpg"])
    Collection(tmp_path / "out", [tmp_path / "a.jpg"])
    assert [path.name for path in tmp_path.iterdir()] == ["a.jpg"]


def test_the_public_function_and_the_job_refuse_to_draw_over_their_images(tmp_path: Path) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "a.jpg")
    before = (tmp_path / "a.jpg").read_bytes()
    for predict in (lw.predict, run_prediction):
        with pytest.raises(InputError, match="could be overwritten"):
            predict("no-model.safetensors", [str(tmp_path)], out=tmp_path)
    assert (tmp_path / "a.jpg").read_bytes() == before


def test_on_a_full_disk_drawn_images_give_way_to_what_was_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = Result.save

    def save(result: Result, path: Path, **options: Any) -> None:
        if len(list(tmp_path.glob("*.jpg"))) == 4:
            raise DiskFullError(f"{path}: cannot be written (No space left on device)")
        drawn(result, path, **options)

    def write(path: Path, text: str) -> None:
        if len(list(tmp_path.glob("*.jpg"))) > 2:
            raise DiskFullError(f"{path}: cannot be written (No space left on device)")
        write_text(path, text)

    monkeypatch.setattr(Result, "save", save)
    monkeypatch.setattr("lw_retinanet.jobs.predict.write_text", write)
    gathered = Collection(tmp_path)
    for number in range(4):
        gathered.add(found(f"{number}.jpg"))
    with pytest.raises(DiskFullError, match=r"4\.jpg: cannot .* hold the 5 images until then; 2 drawn images were removed"):
        gathered.add(found("4.jpg"))
    assert {path.name for path in tmp_path.iterdir()} == {"0.jpg", "1.jpg", "predictions.json", "results.json"}
    assert [image["file"] for image in json.loads((tmp_path / "predictions.json").read_text())["images"]] == [f"{n}.jpg" for n in range(5)]
    assert len(json.loads((tmp_path / "results.json").read_text())) == 5
