import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

pytest.importorskip("fsspec")
parquet = pytest.importorskip("pyarrow.parquet")
SCORE = ("--score", "0.1")
KILLED_BEFORE_THE_THIRD_PART_IS_RENAMED = """
import os, signal
from pyarrow import parquet
write_table = parquet.write_table
def write_and_die(table, where, **options):
    write_table(table, where, **options)
    if "-0000002." in str(where):
        os.kill(os.getpid(), signal.SIGKILL)
parquet.write_table = write_and_die
from lw_retinanet.cli.main import main
main()
"""


@pytest.fixture
def images(data: Path) -> list[str]:
    """The twelve images of the data set."""
    return [str(path) for path in sorted((data / "images").iterdir())]


@pytest.fixture
def make_list(tmp_path: Path) -> Callable[..., Path]:
    def make(*files: str) -> Path:
        (tmp_path / "list.txt").write_text("\n".join(files))
        return tmp_path / "list.txt"

    return make


def merged(cli: Any, folder: Path) -> list[dict[str, Any]]:
    outcome = cli("predict", "--merge", folder)
    assert outcome.code == 0, outcome
    return list(parquet.read_table(folder / "predictions.parquet").to_pylist())


def expected(cli: Any, model: Path, files: list[str]) -> list[dict[str, Any]]:
    """The rows, from what the command prints about the images alone."""
    found = cli("predict", model, *files, *SCORE, "--json").json["images"]
    return [{**one, "error": None} for one in found]


def test_every_image_has_a_row_and_a_failure_has_its_reason(
    cli: Any, lively: Path, images: list[str], make_list: Callable[..., Path], tmp_path: Path
) -> None:
    (tmp_path / "broken.jpg").write_bytes(b"no image")
    listed = make_list(*images[:3], "", "broken.jpg", images[1], "nowhere.jpg", images[3])
    outcome = cli("predict", lively, "--manifest", listed, "--out", tmp_path / "out", "--chunk", 2, *SCORE)
    assert outcome.code == 1, outcome
    assert "6 images of shard 0/1, 2 of which cannot be read" in outcome.out
    assert "2 rows of the list are not used (1 repeated, 1 empty)" in outcome.out
    rows = merged(cli, tmp_path / "out")
    assert [row["file"] for row in rows] == [*images[:3], "broken.jpg", "nowhere.jpg", images[3]]
    failures = [row for row in rows if row["error"]]
    assert [(row["file"], row["width"], row["height"], row["detections"]) for row in failures] == [
        ("broken.jpg", None, None, []),
        ("nowhere.jpg", None, None, []),
    ]
    assert "nowhere.jpg" in failures[1]["error"]
    assert [row for row in rows if not row["error"]] == expected(cli, lively, images[:4])
    assert all(row["detections"] for row in rows if not row["error"])


def test_shards_together_are_the_whole(cli: Any, lively: Path, images: list[str], make_list: Callable[..., Path], tmp_path: Path) -> None:
    command = ("predict", lively, "--manifest", make_list(*images), *SCORE, "--chunk", 3, "--json", "--out")
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert cli(*command, whole).json["images"] == 12
    rows = expected(cli, lively, images)
    assert merged(cli, whole) == rows
    assert parquet.read_schema(whole / "predictions.parquet").names == ["file", "width", "height", "error", "detections"]
    first = cli(*command, parts, "--shard", "1/2").json
    message = cli.refuses("predict", "--merge", parts, unchanged=parts)
    assert "1 of 2 shards are missing or not finished: 0/2; predict on them" in message
    assert first["images"] + cli(*command, parts, "--shard", "0/2").json["images"] == 12
    assert sorted(merged(cli, parts), key=lambda row: str(row["file"])) == rows
    outcome = cli("predict", "--merge", parts, "--coco", "--json")
    results = json.loads((parts / "results.json").read_text())
    assert outcome.json["detections"] == len(results) == sum(len(row["detections"]) for row in rows)
    one = next(found for found in results if found["image_id"] == images[0])
    (x1, y1, x2, y2), score = rows[0]["detections"][0]["box"], rows[0]["detections"][0]["score"]
    assert one == {**one, "bbox": [x1, y1, x2 - x1, y2 - y1], "score": score, "category_id": rows[0]["detections"][0]["category_id"]}


@pytest.mark.skipif(os.name != "posix", reason="SIGKILL")
def test_a_killed_shard_goes_on_where_it_was(
    cli: Any, lively: Path, images: list[str], make_list: Callable[..., Path], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    command = ["predict", lively, "--manifest", make_list(*images), "--out", out, "--chunk", 2, *SCORE]
    killed = subprocess.run(
        [sys.executable, "-c", KILLED_BEFORE_THE_THIRD_PART_IS_RENAMED, *map(str, command)], capture_output=True, check=False, timeout=250
    )
    assert killed.returncode == -signal.SIGKILL, killed
    before = {path.name: path.stat().st_ino for path in out.glob("part-*.parquet")}
    assert sorted(before) == [f"part-00000-of-00001-000000{number}.parquet" for number in (0, 1)]
    assert len(list(out.glob(".part-*.parquet"))) == 1  # what was being written
    assert "0/1" in cli.refuses("predict", "--merge", out, unchanged=out)
    assert cli(*command).code == 0
    assert {path.name: path.stat().st_ino for path in out.glob("part-*.parquet") if path.name in before} == before  # not made again
    assert not list(out.glob(".part-*.parquet"))
    assert merged(cli, out) == expected(cli, lively, images)


def test_processes_share_a_shard(cli: Any, lively: Path, images: list[str], make_list: Callable[..., Path], tmp_path: Path) -> None:
    command = ("predict", lively, "--manifest", make_list(*images, "nowhere.jpg"), "--out", tmp_path / "out", "--chunk", 3, *SCORE)
    outcome = cli(*command, "--processes", 2, "--json")
    assert outcome.code == 1, outcome
    assert (outcome.json["images"], outcome.json["failed"]) == (13, 1)
    assert merged(cli, tmp_path / "out")[:12] == expected(cli, lively, images)


def test_parts_of_another_prediction_are_refused(
    cli: Any, lively: Path, trained: Path, images: list[str], make_list: Callable[..., Path], tmp_path: Path
) -> None:
    out, listed = tmp_path / "out", make_list(*images[:2])
    assert cli("predict", lively, "--manifest", listed, "--out", out, *SCORE).code == 0
    again = ("--manifest", listed, "--out", out)
    message = cli.refuses("predict", lively, *again, "--score", "0.3", unchanged=out)
    assert "(score 0.1 there, 0.3 here); choose another folder, or the same settings" in message
    assert "(model " in cli.refuses("predict", trained, *again, *SCORE, unchanged=out)
    assert "(shards 1 there, 2 here)" in cli.refuses("predict", lively, *again, *SCORE, "--shard", "0/2", unchanged=out)
    make_list(*images[:3])
    assert "(list " in cli.refuses("predict", lively, *again, *SCORE, unchanged=out)
    make_list(*images[:2])
    with FileLock(out / ".shard-00000-of-00001.lock"):
        assert "is in use by another process" in cli.refuses("predict", lively, *again, *SCORE, unchanged=out)
    # A part that came from elsewhere, beside the right records.
    other = tmp_path / "other"
    assert cli("predict", lively, "--manifest", listed, "--out", other).code == 0
    (out / "part-00000-of-00001-0000000.parquet").write_bytes((other / "part-00000-of-00001-0000000.parquet").read_bytes())
    assert "(score 0.3 there, 0.1 here)" in cli.refuses("predict", "--merge", out, unchanged=out)


def test_a_damaged_or_missing_part_is_named_and_made_again(
    cli: Any, lively: Path, images: list[str], make_list: Callable[..., Path], tmp_path: Path
) -> None:
    command = ("predict", lively, "--manifest", make_list(*images[:4]), "--out", tmp_path / "out", "--chunk", 2, *SCORE)
    assert cli(*command).code == 0
    part = tmp_path / "out" / "part-00000-of-00001-0000001.parquet"
    for damage in (lambda: part.write_bytes(part.read_bytes()[:-9]), part.unlink):
        damage()
        message = cli.refuses("predict", "--merge", tmp_path / "out", unchanged=tmp_path / "out")
        assert "0000001.parquet is" in message
        assert "predict on shard 0/1 again" in message
        assert cli(*command).code == 0
        assert merged(cli, tmp_path / "out") == expected(cli, lively, images[:4])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("MODEL --manifest LIST --shard 2/2", "expected I/N with I from 0 to N - 1, such as 0/2"),
        ("MODEL --manifest LIST --shard 1", "expected I/N"),
        ("MODEL --manifest LIST --tile 128", "take no images, --data, --tile"),
        ("MODEL --manifest LIST --coco", "--coco goes with --merge"),
        ("MODEL --manifest nowhere.txt", "nowhere.txt does not exist"),
        ("MODEL", "name a model and images"),
        ("MODEL image.jpg --shard 0/2", "--shard, --processes and --ray go with --manifest"),
        ("MODEL image.jpg --manifest LIST", "take no images"),
        ("--manifest LIST", "name a model"),
        ("--merge EMPTY", "holds no predictions on a list"),
        ("MODEL --merge EMPTY", "reads a folder only"),
        ("nowhere.safetensors --manifest LIST", "does not exist"),
    ],
)
def test_what_cannot_be_meant_is_refused(
    arguments: str, message: str, cli: Any, lively: Path, images: list[str], make_list: Callable[..., Path], tmp_path: Path
) -> None:
    words = {"MODEL": lively, "LIST": make_list(*images[:1]), "EMPTY": tmp_path}
    said = cli.refuses("predict", *(words.get(word, word) for word in arguments.split()), "--out", tmp_path / "out", unchanged=tmp_path)
    assert message in said
