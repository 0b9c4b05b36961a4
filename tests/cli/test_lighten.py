"""``lw-retinanet lighten``."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import SafetensorError

import lw_retinanet as lw
from lw_retinanet.conventions import Conventions, InputRule
from lw_retinanet.data.dataset import Dataset
from lw_retinanet.heads import PRESETS
from lw_retinanet.models.build import build
from lw_retinanet.weights.model_file import load_model, make_record, save_model

QUICK = ("--fit-steps", "6", "--no-latency")


@pytest.fixture(scope="module")
def full(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A full head whose scores spread, so that there is something to imitate and to find."""
    categories = Dataset.open(data).read("val").categories
    torch.manual_seed(0)
    conventions = Conventions(input=InputRule(size=64))
    plan = PRESETS["retinanet"]
    shape: dict[str, Any] = {"backbone": "mobilenet_v2", "width": 32, "norm": "group"}  # the norm that keeps random features alive
    model = build(plan, num_classes=len(categories), init="fan_in", conventions=conventions, **shape)
    with torch.no_grad():
        predict = model.head.cls.shared_predict
        assert isinstance(predict, torch.nn.Conv2d)
        predict.weight.mul_(5)
        assert predict.bias is not None
        predict.bias.fill_(-1.0)
    record = make_record(model, preset="retinanet", plan=plan, categories=categories, notes={"data": "shapes"}, **shape)
    path = tmp_path_factory.mktemp("full") / "full.safetensors"
    save_model(path, model.eval(), record)
    return path


def test_every_stage_is_measured_and_both_heads_stay(cli: Any, full: Path, data: Path, tmp_path: Path) -> None:
    out = tmp_path / "light.safetensors"
    outcome = cli("lighten", full, "--to", "lw-v3", "--data", data, "--out", out, *QUICK, "--json")
    assert outcome.code == 0, outcome
    report = outcome.json
    assert [stage["name"] for stage in report["stages"]] == ["full head", "surgery", "closed form", "fit"]
    assert report["calibration"] == {"images": 8, "views": 16}
    assert report["evaluated_on"] == 4
    before, *after = report["stages"]
    assert all(stage["macs"] < before["macs"] for stage in after)
    assert set(report["closed_form_errors"]) == {"P3 cls", "P3 bbox"}
    assert report["curve"]["P3"]["step"][-1] == 6
    folder = tmp_path / "light-report"
    assert json.loads((folder / "report.json").read_text()) == report
    page = (folder / "report.html").read_text()
    assert "closed form" in page
    assert page.count("<svg") == 2
    assert "//" not in page.replace("http://www.w3.org", "")  # it loads nothing
    assert all(np.asarray(Image.open(folder / name)).std() > 5 for name in ("stages.png", "fit.png"))

    light = lw.load(out, device="cpu")
    assert light.switchable
    assert light.record is not None
    assert light.record.preset == "lw-v3"
    assert light.record.notes["data"] == "shapes"  # how the old weights came about is not forgotten
    assert light.record.notes["lightened"]["from"].startswith("full.safetensors")
    # The old head is still there, to the bit.
    images = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        old, new = lw.load(full, device="cpu").model(images), light.model(images, full_head=True)
        assert torch.equal(old.logits, new.logits)
        assert torch.equal(old.deltas, new.deltas)
        assert not torch.equal(light.model(images).logits, old.logits)
    # The detections beside the report are those of the two heads.
    folder = data / "images"
    boxes = [result.boxes for result in light.predict(folder, head="full")]
    assert all(np.array_equal(a, b.boxes) for a, b in zip(boxes, lw.load(full, device="cpu").predict(folder), strict=True))
    scored = cli("evaluate", out, data, "--head", "full", "--json").json
    assert scored["AP"] == pytest.approx(before["AP"], abs=1e-9)
    scored = cli("evaluate", out, data, "--json").json
    assert scored["AP"] == pytest.approx(after[-1]["AP"], abs=1e-9)


def test_one_branch_keeps_the_pyramid(cli: Any, full: Path, data: Path, tmp_path: Path) -> None:
    out = tmp_path / "light.safetensors"
    assert cli("lighten", full, "--to", "bbox-v3", "--data", data / "images", "--out", out, *QUICK).code == 0
    record = load_model(out).record
    assert record.switchable
    assert not record.full_output
    old, new = load_model(full).model.state_dict(), load_model(out).model.state_dict()
    assert all(torch.equal(value, new[name]) for name, value in old.items())


def test_without_images_the_old_weights_must_do(cli: Any, full: Path, tmp_path: Path) -> None:
    outcome = cli("lighten", full, "--to", "lw-v3", "--out", tmp_path / "light.safetensors", "--no-latency")
    assert outcome.code == 0, outcome
    assert "costs much AP" in outcome.out
    assert "fit" not in outcome.out.split("\n\n")[0]


def test_a_budget_finds_its_plan(cli: Any, full: Path, data: Path, tmp_path: Path) -> None:
    macs = cli("profile", full, "--json").json["macs"]
    out = tmp_path / "light.safetensors"
    outcome = cli("lighten", full, "--budget", 0.9 * macs / 1e9, "--out", out, "--no-latency", "--json")
    assert outcome.code == 0, outcome
    assert outcome.json["stages"][-1]["macs"] <= 0.9 * macs
    assert cli("profile", out, "--json").json["macs"] == outcome.json["stages"][-1]["macs"]
    assert cli("lighten", full, "--to", "lw-v3", "--budget", 0.95 * macs / 1e9, "--out", out, "--no-latency").code == 0
    assert load_model(out).record.preset == "lw-v3"


def test_a_lightened_model_is_trained_on_with_its_old_head_as_teacher(cli: Any, full: Path, data: Path, tmp_path: Path) -> None:
    out, run = tmp_path / "light.safetensors", tmp_path / "run"
    assert cli("lighten", full, "--to", "lw-v3", "--data", data, "--out", out, *QUICK).code == 0
    short = ("--set", "train.steps=2", "--set", "train.batch_size=2", "--set", "data.workers=0", "--set", "train.precision=fp32")
    assert cli("train", data, "--model", out, *short, "--set", f"train.teacher={out}", "--out", run).code == 0
    entries = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    assert all(entry["distillation"] > 0 for entry in entries)
    assert not load_model(run).record.switchable
    gone = ("--set", "train.teacher=gone.safetensors", "--out", tmp_path / "no")
    line = cli.refuses("train", data, "--model", "retinanet", *short, *gone, unchanged=tmp_path)
    assert "gone.safetensors does not exist" in line


def test_towers_with_batch_norm_are_fitted_and_trained_on(cli: Any, full: Path, data: Path, tmp_path: Path) -> None:
    out = tmp_path / "light.safetensors"
    report = cli("lighten", full, "--to", "both-v1-bn", "--data", data, "--out", out, *QUICK, "--json").json
    # Channels that carry the estimate make up for what the block cannot see.
    assert all(error < 1 for error in report["closed_form_errors"].values())
    record = load_model(out).record
    assert (record.preset, record.plan.cls["P3"].units) == ("both-v1-bn", ("dw3x3+1x1-bn",) * 4)
    statistics = {name: value for name, value in load_model(out).model.head.state_dict().items() if "running_var" in name}
    assert len(statistics) == 2 * 4 * 2
    assert not any(torch.equal(value, torch.ones_like(value)) for value in statistics.values())
    run = tmp_path / "run"
    short = ("--set", "train.steps=2", "--set", "train.batch_size=2", "--set", "data.workers=0", "--set", "train.precision=fp32")
    assert cli("train", data, "--model", out, *short, "--out", run).code == 0
    trained = load_model(run).model.head.state_dict()
    assert not any(torch.equal(trained[name], value) for name, value in statistics.items())


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["gone.safetensors", "--out", "a.safetensors"], ["gone.safetensors does not exist"]),
        (["FULL", "--out", "a.pth"], ["a model file ends in .safetensors"]),
        (["FULL", "--out", "FULL"], ["the model to lighten itself"]),
        (["FULL", "--to", "lw-v4", "--out", "a.safetensors"], ["unknown preset 'lw-v4'; did you mean lw-v"]),
        (["FULL", "--to", "retinanet", "--out", "a.safetensors"], ["nothing would change"]),
        (["FULL", "--to", "lw-v3", "--budget", "0.001", "--out", "a.safetensors"], ["lw-v3 needs", "more than the 0.001"]),
        (["FULL", "--budget", "0.000001", "--out", "a.safetensors"], ["no plan"]),
        (["FULL", "--budget", "1000", "--out", "a.safetensors"], ["within the budget already"]),
        (["FULL", "--data", "gone", "--out", "a.safetensors"], ["data set gone does not exist"]),
        (["FULL", "--data", "broken", "--out", "a.safetensors"], ["broken/b.png", "broken PNG"]),
        (["FULL", "--data", "empty", "--out", "a.safetensors"], ["empty"]),
    ],
)
def test_what_cannot_be_lightened(
    cli: Any, full: Path, arguments: list[str], parts: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "b.png").write_bytes(b"\x89PNG\r\n\x1a\nno image")
    (tmp_path / "full.safetensors").write_bytes(full.read_bytes())
    given = [argument.replace("FULL", "full.safetensors") for argument in arguments]
    line = cli.refuses("lighten", *given, unchanged=tmp_path)
    assert all(part in line for part in parts), line


def test_on_a_full_disk_nothing_is_left(cli: Any, full: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=10**6))
    outcome = cli("lighten", full, "--to", "lw-v3", "--out", tmp_path / "light.safetensors", *QUICK)
    assert outcome.code == 1
    assert "light.safetensors: it needs" in outcome.err
    monkeypatch.undo()

    def filled(tensors: object, path: Path, **_: object) -> None:
        path.write_bytes(b"half")
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr("lw_retinanet.weights.tensor_file.save_file", filled)
    outcome = cli("lighten", full, "--to", "lw-v3", "--out", tmp_path / "light.safetensors", *QUICK)
    assert outcome.code == 1
    assert outcome.err.splitlines()[-1].startswith(
        f"error: {tmp_path}/light.safetensors: cannot be written (No space left on device): it needs "
    )
    assert not list(tmp_path.iterdir())  # no report without its model
