"""How to add a D-block: one row in heads.D_BLOCKS. CONTRIBUTING.md shows this file as the worked example."""

import json
from pathlib import Path

import pytest
import torch

import lw_retinanet as lw
from lw_retinanet.cli.main import _run
from lw_retinanet.counting.imbalance import rank
from lw_retinanet.data.records import Category
from lw_retinanet.heads import D_BLOCKS, DBlock, contender_presets, plan_of
from lw_retinanet.lightening.budget import propose
from lw_retinanet.weights.model_file import make_record, save_model

# All that a new block needs: its units, the kernel of its prediction, and an estimate of the AP that it costs in each branch of D3.
ROW = DBlock(units=("dw3x3+1x1", "1x1", "1x1"), predict="1x1", harm={"cls": 0.1, "bbox": 0.1})


@pytest.fixture(autouse=True)
def _row(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(D_BLOCKS, "mixed", ROW)


def network(preset: str) -> lw.RetinaNet:
    return lw.create(preset, num_classes=2, backbone="resnet18", head_width=32, image_size=64)


def test_it_can_be_built_in_one_branch_or_both() -> None:
    images = torch.zeros(1, 3, 64, 64)
    for preset in ("cls-mixed", "bbox-mixed", "both-mixed"):
        predictions = network(preset)(images)
        assert (predictions.logits.shape, predictions.deltas.shape) == ((1, 86 * 9, 2), (1, 86 * 9, 4))  # 64 + 16 + 4 + 1 + 1 cells
    with pytest.raises(lw.InputError, match=r"did you mean both-mixed\?.*with one of v1, .*, mixed "):
        lw.create("both-mixd")


def test_it_is_counted_and_ranked(capsys: pytest.CaptureFixture[str]) -> None:
    size = ["--backbone", "resnet18", "--classes", "80", "--size", "800", "--json"]
    assert _run(["profile", "both-mixed", *size], False) == 0
    d3 = json.loads(capsys.readouterr().out)["blocks"]["D3"]["macs"]
    # 100 x 100 cells, two towers 256 wide; predictions of 9 x 80 and of 9 x 4 channels.
    assert d3 == 100 * 100 * (2 * (256 * 9 + 3 * 256 * 256) + 256 * (720 + 36))
    with torch.device("meta"):
        ranking = rank(lw.create("retinanet", num_classes=80, backbone="resnet18"), (800, 800))
    assert sum(row.after["mixed"] for row in ranking.rows if row.level == "P3") == d3


def test_the_search_for_a_budget_proposes_it() -> None:
    model = network("retinanet")
    proposal = propose(model, (64, 64), budget_macs=int(0.97 * propose(model, (64, 64), 10**15).macs_before))
    assert {step.block for step in proposal.steps} == {"mixed"}
    assert proposal.plan.cls["P3"] == plan_of("cls-mixed").cls["P3"]


def test_a_trained_model_can_be_lightened_to_it(tmp_path: Path) -> None:
    model = network("retinanet")
    categories = (Category(id=1, name="cat"), Category(id=2, name="dog"))
    record = make_record(
        model, preset="retinanet", backbone="resnet18", width=32, norm="batch", plan=plan_of("retinanet"), categories=categories, notes={}
    )
    save_model(tmp_path / "full.safetensors", model, record)
    light = lw.lighten(tmp_path / "full.safetensors", "both-mixed")
    assert light.model.head.plan == plan_of("both-mixed")
    assert light.name == "both-mixed"


def test_a_benchmark_compares_it() -> None:
    assert "both-mixed" in contender_presets()
