import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

SMALL = ("--size", 64, "--rounds", 2, "--warm-up", 0, "--threads", 1, "--backbone", "resnet18", "--classes", 3)


def test_json_and_files(cli: Any, tmp_path: Path) -> None:
    result = cli("benchmark", "lw-v3", *SMALL, "--out", tmp_path / "out", "--json")
    assert result.code == 0, result
    assert set(result.json) == {"what", "machine", "settings", "pictures", "parity", "parity_words", "contenders", "remarks"}
    (row,) = result.json["contenders"]
    assert row["name"] == "lw-v3 fp32"
    assert set(row["latency_ms"]) == {"median", "low", "high", "p10", "p90"}
    assert row["latency_ms"]["low"] <= row["latency_ms"]["median"] <= row["latency_ms"]["high"]
    assert json.loads((tmp_path / "out" / "benchmark.json").read_text(encoding="utf-8")) == result.json
    assert "| lw-v3 fp32 |" in (tmp_path / "out" / "benchmark.md").read_text(encoding="utf-8")
    with Image.open(tmp_path / "out" / "benchmark.png") as picture:
        assert picture.size[0] > 1000
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["benchmark.json", "benchmark.md", "benchmark.png"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("lw-v3", "--against", "torchvison"), "did you mean torchvision?"),
        (("lw-v3", "--precision", "fp16"), "--precision fp16: expected fp32, bf16, all"),
        (("lw-v3", "--images", "nowhere"), "folder of images nowhere does not exist"),
        (("lw-v3", "--size", "8"), "size must be from 32"),
        (("lw-v3", "--threads", "100000"), "threads must be from 1 to"),
        (("lw-v3", "--backbone", "resnet19"), "resnet19"),
        (("nothing.safetensors",), "is no preset, model file, exported file or run folder"),
        ((), "name what to measure"),
        (("retinanet", "--against", "torchvision", "--backbone", "mobilenet_v2", "--size", "64"), "torchvision's RetinaNet needs a ResNet"),
    ],
)
def test_refusals(cli: Any, tmp_path: Path, arguments: tuple[str, ...], words: str) -> None:
    message = cli.refuses("benchmark", *arguments, "--out", tmp_path / "out", unchanged=tmp_path)
    assert words in message


def test_out_is_looked_at_first(cli: Any, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert "is a file" in cli.refuses("benchmark", "lw-v3", "--out", tmp_path / "file", unchanged=tmp_path)
