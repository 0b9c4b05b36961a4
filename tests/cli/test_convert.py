"""`convert`: one line and exit code 2 for everything that is wrong, and never half a file."""

import json
import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.weights import foreign_states


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("foreign") / "odtk.pth"
    torch.save({"state_dict": foreign_states.odtk().tensors, "classes": 3}, path)
    return path


def test_a_converted_model_predicts(cli: Any, weights: Path, data: Path, tmp_path: Path) -> None:
    out = tmp_path / "models" / "m.safetensors"
    small = ("--set", "input.size=64", "--set", "output.max_detections=5")
    outcome = cli("convert", weights, "--out", out, "--classes", "red,green,blue", *small)
    assert outcome.code == 0, outcome
    for part in (
        "odtk (ResNet18FPN), resnet18, 3 classes (red, green, blue)",
        "left out, the classifier of",
        "its own library was not asked",
    ):
        assert part in outcome.out
    assert "assumed" in outcome.out
    rows = {words[0]: " ".join(words[1:]) for line in outcome.out.splitlines() if (words := line.split())}
    assert rows["input.size"] == "64 from --set"
    assert rows["output.max_detections"] == "5 from --set"
    assert rows["input.max_size"] == "1333 assumed: odtk's own"
    assert [path.name for path in out.parent.iterdir()] == ["m.safetensors"]
    found = cli("predict", out, data / "images", "--json", "--score", "0")
    assert found.code == 0, found
    names = {item["name"] for image in found.json["images"] for item in image["detections"]}
    assert names
    assert names <= {"red", "green", "blue"}


def test_json_is_one_object_with_every_tensor(cli: Any, weights: Path, tmp_path: Path) -> None:
    outcome = cli("convert", weights, "--from", "odtk", "--out", tmp_path / "m.safetensors", "--json")
    assert outcome.code == 0, outcome
    found = outcome.json
    names = torch.load(weights, weights_only=True)["state_dict"].keys()
    assert set(found["used"].values()) | found["unused"].keys() == names
    assert found["framework"] == "odtk"
    assert [c["name"] for c in found["classes"]] == ["class_0", "class_1", "class_2"]
    assert {item["setting"] for item in found["assumed"]} >= {"classes", "input.size", "anchors.aspect_ratios"}


def test_torchvisions_model_is_compared_on_given_pictures(cli: Any, data: Path, tmp_path: Path) -> None:
    state = foreign_states.torchvision(rows=4)
    torch.save(state.tensors, tmp_path / "tv.pth")
    sizes = ("--set", "input.size=64", "--set", "input.max_size=96", "--classes", data / "train.json")
    picture = next(iter(sorted((data / "images").iterdir())))
    outcome = cli("convert", tmp_path / "tv.pth", "--out", tmp_path / "m.safetensors", *sizes, "--check", picture, "--json")
    assert outcome.code == 0, outcome
    parity = outcome.json["parity"]
    assert parity["status"] == "checked"
    assert "1 given" in parity["pictures"]
    assert parity["differences"]["logits"] < 1e-4
    assert parity["differences"]["anchors"] == 0
    assert [c["id"] for c in outcome.json["classes"]] == [1, 4, 8, 9]
    lines = cli("convert", tmp_path / "tv.pth", "--out", tmp_path / "m.safetensors", *sizes).out
    assert "largest differences from torchvision itself, 2 drawn images at 64 pixels" in lines


class Intruder:
    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.trace}",)


def test_what_cannot_be_converted_is_one_line_and_leaves_nothing(cli: Any, weights: Path, tmp_path: Path) -> None:
    out = tmp_path / "m.safetensors"
    out.write_text("an earlier file")
    (tmp_path / "evil.pkl").write_bytes(pickle.dumps({"model": Intruder(tmp_path / "trace")}))
    (tmp_path / "text.pth").write_text("not found")
    torch.save({"a": torch.zeros(1)}, tmp_path / "other.pth")
    for arguments, message in (
        ((tmp_path / "none.pth",), "does not exist"),
        ((tmp_path / "evil.pkl",), "nothing was run"),
        ((tmp_path / "text.pth",), "is no weights file"),
        ((tmp_path / "other.pth",), "is no RetinaNet of"),
        ((weights, "--from", "caffe2"), "it looks like odtk"),
        ((weights, "--from", "caffe3"), "did you mean caffe2"),
        ((weights, "--classes", "a,b"), "gives 2 classes, but the file has 3"),
        ((weights, "--set", "input.sise=3"), "did you mean input.size"),
        ((weights, "--set", "input.size"), "expected name=value"),
        ((weights, "--check", tmp_path / "no.jpg"), "no.jpg"),
        (("torchvision:resnet50",), "no RetinaNet called 'resnet50'"),
    ):
        assert message in cli.refuses("convert", *arguments, "--out", out, unchanged=tmp_path), message
    assert "ends in .safetensors" in cli.refuses("convert", weights, "--out", tmp_path / "m.pth", unchanged=tmp_path)
    assert "cannot be written" in cli.refuses("convert", weights, "--out", out / "m.safetensors", unchanged=tmp_path)
    assert not (tmp_path / "trace").exists()


def test_a_model_file_is_not_written_over_itself(cli: Any, weights: Path, tmp_path: Path) -> None:
    out = tmp_path / "m.safetensors"
    assert cli("convert", weights, "--out", out).code == 0
    assert "is the file to convert itself" in cli.refuses("convert", out, "--out", out, "--classes", "a,b", unchanged=tmp_path)
    changed = cli("convert", out, "--out", tmp_path / "n.safetensors", "--classes", "class_1,cat", "--json")
    assert changed.code == 0, changed
    assert json.loads(changed.out)["framework"] == "lw_retinanet"
    assert [c["name"] for c in changed.json["classes"]] == ["class_1", "cat"]
