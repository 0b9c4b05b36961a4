"""``lw-retinanet ship``."""

import json
import re
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import lw_retinanet as lw
from lw_retinanet.conventions import Conventions, InputRule
from lw_retinanet.data.dataset import Dataset
from lw_retinanet.errors import ExportError
from lw_retinanet.heads import PRESETS
from lw_retinanet.jobs import ship as module
from lw_retinanet.jobs.evaluate import run_evaluation
from lw_retinanet.models.build import build
from lw_retinanet.weights.model_file import make_record, save_model

QUICK = ("--to", "lw-v3", "--fit-steps", "2", "--rounds", "2")
RUNTIMES = ("openvino", "nncf", "onnx", "onnxscript", "onnxruntime")


@pytest.fixture(autouse=True)
def _without_runtimes(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if no extra were installed: calibrating and compiling take most of a minute."""
    for package in RUNTIMES:
        monkeypatch.setitem(sys.modules, package, None)


@pytest.fixture(scope="module")
def full(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A full head on a ResNet, which torchvision has too; its scores spread, so that there is something to find."""
    categories = Dataset.open(data).read("val").categories
    torch.manual_seed(0)
    shape: dict[str, Any] = {"backbone": "resnet18", "width": 32, "norm": "frozen"}
    plan = PRESETS["retinanet"]
    model = build(plan, num_classes=len(categories), init="fan_in", conventions=Conventions(input=InputRule(size=64)), **shape)
    with torch.no_grad():
        predict = model.head.cls.get_submodule("shared_predict")
        predict.get_parameter("bias").fill_(-1.0)
    path = tmp_path_factory.mktemp("full") / "full.safetensors"
    save_model(path, model.eval(), make_record(model, preset="retinanet", plan=plan, categories=categories, notes={}, **shape))
    return path


@pytest.fixture(scope="module")
def shipped(cli: Any, full: Path, data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path]:
    """A finished shipment. Not to be changed."""
    out = tmp_path_factory.mktemp("shipped") / "out"
    with pytest.MonkeyPatch.context() as patch:
        for package in RUNTIMES:
            patch.setitem(sys.modules, package, None)
        outcome = cli("ship", full, "--data", data, "--out", out, "--max-drop", "100", *QUICK, "--json")
    assert outcome.code == 0, outcome
    return outcome.json, out


def test_the_receipt_says_what_the_commands_say(cli: Any, shipped: tuple[Any, Path], full: Path, data: Path) -> None:
    receipt, out = shipped
    assert set(receipt) == {"original", "shipped", "torchvision_ms", "tried"}
    assert set(receipt["original"]) == {"AP", "macs", "ms"}
    assert set(receipt["shipped"]) == {"file", "AP", "difference", "low", "high", "macs", "ms"}
    file = Path(receipt["shipped"]["file"])
    for part, model in ((receipt["original"], full), (receipt["shipped"], file)):
        assert part["AP"] == pytest.approx(cli("evaluate", model, data, "--json").json["AP"], abs=1e-9)
        assert part["macs"] == cli("profile", model, "--json").json["macs"]
    assert receipt["shipped"]["difference"] == pytest.approx(receipt["shipped"]["AP"] - receipt["original"]["AP"])
    assert receipt["shipped"]["low"] is None  # four images are too few for an interval
    assert receipt["shipped"]["macs"] < receipt["original"]["macs"]
    rows = {
        row["name"]: row["latency_ms"]["median"] for row in json.loads((out / "benchmark" / "benchmark.json").read_text())["contenders"]
    }
    times = receipt["original"]["ms"], receipt["shipped"]["ms"], receipt["torchvision_ms"]
    assert times == (rows["original.safetensors fp32"], rows["light.safetensors fp32"], rows["torchvision as shipped fp32"])
    outcomes = {row["form"]: row["outcome"] for row in receipt["tried"]}
    assert outcomes["PyTorch fp32"] == "shipped"
    assert outcomes["OpenVINO int8"] == "not made"


def test_the_page_has_figures_commands_and_the_extra_that_would_help(shipped: tuple[Any, Path]) -> None:
    _, out = shipped
    text = (out / "results.md").read_text()
    links = re.findall(r"!\[[^]]+]\(([^)]+)\)", text)
    assert len(links) == 4
    assert all((out / link).stat().st_size > 1000 for link in links)
    assert "pip install 'lw-retinanet[openvino]'" in text
    block = text.split("```")[1]
    assert [line.split()[1] for line in block.splitlines()[1:]] == ["convert", "evaluate", "lighten", "benchmark", "evaluate"]
    assert not re.search(r"\bnan\b|None", text)


def test_an_interrupted_shipment_goes_on(
    cli: Any, shipped: tuple[Any, Path], full: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    call = ("ship", full, "--data", data, "--out", out, "--max-drop", "100", *QUICK, "--json")

    def interrupted(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(module, "benchmark", interrupted)
        assert cli(*call).code == 130
    light = (out / "light.safetensors").read_bytes()
    for done in ("run_conversion", "lighten_file"):
        monkeypatch.setattr(module, done, interrupted)
    outcome = cli(*call)
    assert outcome.code == 0, outcome
    assert (out / "light.safetensors").read_bytes() == light
    unbroken, _ = shipped
    assert outcome.json["original"]["AP"] == unbroken["original"]["AP"]
    assert outcome.json["shipped"]["AP"] == unbroken["shipped"]["AP"]
    (out / "light.safetensors").unlink()  # a finished step whose file is gone is done again
    assert cli(*call).code == 130


def test_too_much_lost_is_told_and_the_remedy_works(
    cli: Any, full: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def better(*arguments: Any, **options: Any) -> Any:
        run_evaluation(*arguments, **options)
        return SimpleNamespace(AP=0.9, AP50=0.9)

    call = ("ship", full, "--data", data, "--out", tmp_path / "out", *QUICK, "--json")
    monkeypatch.setattr(module, "run_evaluation", better)
    refused = cli(*call)
    assert refused.code == 1
    assert refused.json["shipped"] is None
    [tried] = refused.json["tried"]
    assert tried["outcome"] == "refused"
    assert "more than the 0.5 that max_drop allows" in tried["reason"]
    page = (tmp_path / "out" / "results.md").read_text()
    assert "Nothing is shipped" in page
    assert "call again with a larger max_drop" in page
    monkeypatch.setattr(module, "lighten_file", lambda *_, **__: pytest.fail("lightened again"))
    assert cli(*call, "--max-drop", "95").code == 0


def test_what_the_gate_refuses_is_told_and_the_next_form_is_taken(
    cli: Any, full: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def gate(*_: Any, precision: str, **options: Any) -> None:
        asked.append((options["format"], precision, options.get("max_drop")))
        raise ExportError(f"{precision} loses 7 points")

    monkeypatch.setattr(module, "run_export", gate)
    call = ("ship", full, "--data", data, "--out", tmp_path / "out", "--max-drop", "40", *QUICK, "--json")
    outcome = cli(*call)
    assert outcome.code == 0, outcome
    forms = {row["form"]: row for row in outcome.json["tried"]}
    assert forms["OpenVINO int8"]["reason"] == "int8 loses 7 points"
    assert forms["PyTorch fp32"]["outcome"] == "shipped"
    # The gate allows int8 what the light model has left of the limit.
    left = 40 + 100 * forms["PyTorch fp32"]["difference"]
    assert asked[0] == ("openvino", "int8", pytest.approx(left / 100, abs=1e-6))
    count = len(asked)
    assert cli(*call).code == 0
    assert len(asked) == count  # refused before is refused still


@pytest.mark.slow
def test_with_epochs_the_light_model_is_trained_on(cli: Any, full: Path, data: Path, tmp_path: Path) -> None:
    call = ("ship", full, "--data", data, "--out", tmp_path / "out", "--max-drop", "100", *QUICK, "--json", "--epochs", "1")
    outcome = cli(*call)
    assert outcome.code == 0, outcome
    run = tmp_path / "out" / "fine-tuned-1-epochs"
    assert outcome.json["shipped"]["file"] == str(run)
    assert lw.load(run).record.preset == "lw-v3"  # type: ignore[union-attr]
    assert "train.teacher=" in (tmp_path / "out" / "results.md").read_text()
    done = (run / "model.safetensors").stat().st_mtime_ns
    assert cli(*call).json == outcome.json
    assert (run / "model.safetensors").stat().st_mtime_ns == done


def test_bad_input_is_one_line_and_leaves_nothing(
    cli: Any, shipped: tuple[Any, Path], full: Path, data: Path, edited_data: Any, tmp_path: Path
) -> None:
    _, out = shipped
    place = tmp_path / "new"

    def refused(model: Path, source: Path, *more: object, unchanged: Path = place) -> str:
        folder = out if unchanged == out else place
        return str(cli.refuses("ship", model, "--data", source, "--out", folder, *QUICK, *more, unchanged=unchanged))

    renamed = edited_data(lambda table: [one.update(name=f"x{one['id']}", id=one["id"] + 70) for one in table["categories"]], split="val")
    assert "annotations" in refused(full, renamed) or "classes" in refused(full, renamed)
    (no_val := tmp_path / "no_val").mkdir()
    shutil.copytree(data / "images", no_val / "images")
    shutil.copy(data / "train.json", no_val)
    assert "has no val split to measure AP on; `lw-retinanet data split` makes one" in refused(full, no_val)
    assert "gone.safetensors does not exist" in refused(tmp_path / "gone.safetensors", data)
    assert "did you mean lw-v" in refused(full, data, "--to", "lw-v4")
    assert "to: lw-v3 then, bbox-v3 now" in refused(full, data, "--to", "bbox-v3", unchanged=out)
    other = tmp_path / "other.safetensors"
    other.write_bytes(full.read_bytes()[:-4] + b"\0\0\0\1")
    assert "model: full.safetensors then, other.safetensors now" in refused(other, data, unchanged=out)
    assert "is not empty" in cli.refuses("ship", full, "--data", data, "--out", data, *QUICK, unchanged=data)
