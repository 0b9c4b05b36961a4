"""docs/paper.md says what the counter says: its tables, its figure, and the arithmetic behind both."""

import importlib
import math
from pathlib import Path
from types import ModuleType

import pytest
import torch
from PIL import Image

from lw_retinanet.heads import HeadPlan, block_tower
from lw_retinanet.models.head import Head, Init

ROOT = Path(__file__).parents[1]


@pytest.fixture
def audit(monkeypatch: pytest.MonkeyPatch) -> dict[str, ModuleType]:
    """The modules of benchmarks/paper_audit by name."""
    monkeypatch.syspath_prepend(str(ROOT))
    names = ("page", "figure", "printed", "readings", "scaling_line", "cost_tables", "claim_tables")
    return {name: importlib.import_module(f"benchmarks.paper_audit.{name}") for name in names}


def test_page_has_the_numbers_of_the_code(audit: dict[str, ModuleType]) -> None:
    page, text = audit["page"], audit["page"].PAGE.read_text(encoding="utf-8")
    contents = page.tables()
    assert sorted(page.places(text)) == sorted(contents)
    assert text.splitlines() == page.filled(text, contents).splitlines(), "run: python -m benchmarks.paper_audit --write"
    # A marker with a typing error would be no place at all, and its table would stay as it is.
    assert text.count("<!-- table:") == text.count("<!-- /table -->") == len(contents)


def test_filling_replaces_what_was_there_and_nothing_else(audit: dict[str, ModuleType]) -> None:
    text = "a\n<!-- table: one -->\nold\nolder\n<!-- /table -->\nb\n<!-- table: two -->\n<!-- /table -->\n"
    once = audit["page"].filled(text, {"one": ["1", "2"], "two": ["3"]})
    assert once == "a\n<!-- table: one -->\n\n1\n2\n\n<!-- /table -->\nb\n<!-- table: two -->\n\n3\n\n<!-- /table -->\n"
    assert audit["page"].filled(once, {"one": ["1", "2"], "two": ["3"]}) == once
    with pytest.raises(KeyError, match="two"):
        audit["page"].filled(text, {"one": []})


def test_figure_shows_the_numbers_of_the_code(audit: dict[str, ModuleType]) -> None:
    with Image.open(audit["page"].FIGURE) as figure:
        assert figure.info["Description"] == audit["figure"].facts()


def test_measurements_have_one_place(audit: dict[str, ModuleType]) -> None:
    text = audit["page"].PAGE.read_text(encoding="utf-8")
    start, end = text.index("<!-- measurements -->"), text.index("<!-- /measurements -->")
    assert text.index("\n## What our measurements say\n") < start < end
    assert text.count("<!-- measurements -->") == text.count("<!-- /measurements -->") == 1


def test_printed_tables_agree_with_themselves(audit: dict[str, ModuleType]) -> None:
    # The loss column of Table 1 is the difference of its AP column, so neither was copied wrongly.
    printed = audit["printed"]
    for ap, loss, _, _ in printed.BBOX.values():
        assert round(35.7 - ap, 1) == loss
    for row in [*printed.SCALING.values(), *printed.LIGHT.values()]:
        ap, ap50, ap75, small, medium, large = row
        assert ap50 > ap75 > ap
        assert small < medium < large
    for name, ratio in printed.LIGHT_RATIOS.items():
        assert abs(156 / printed.LIGHT_GFLOPS[name] - float(ratio[:-1])) < 0.1  # 1.16 is printed as 1.1


def test_readings_count_what_they_say(audit: dict[str, ModuleType]) -> None:
    readings = {reading.name: reading for reading in audit["readings"].READINGS}
    standard, pytorch = audit["readings"].STANDARD, audit["readings"].PYTORCH_STRIDE
    assert standard.macs("retinanet") == 146_245_594_112
    assert pytorch.macs("retinanet") == 149_194_714_112
    # The three first blocks of C3 to C5 have their 1x1 to 128, 256 and 512 channels at a quarter of the places, and so their 3x3 alike.
    cells = {stage: (800 // stride) ** 2 for stage, stride in (("C3", 4), ("C4", 8), ("C5", 16))}
    inputs = {"C3": 256, "C4": 512, "C5": 1024}
    saved = sum(cells[stage] * inputs[stage] * (inputs[stage] // 2) * 3 // 4 for stage in cells)
    assert pytorch.macs("retinanet") - standard.macs("retinanet") == saved
    # 100 x 100 cells, 256 channels: a 3x3 prediction has eight more products a channel than a 1x1 one; 720 and 36 channels.
    full = audit["readings"].FULL_PREDICTION
    assert full.macs("lw-v3") - standard.macs("lw-v3") == 10_000 * 256 * 8 * (720 + 36)
    assert audit["readings"].RELEASED.macs("lw-v3") - standard.macs("lw-v3") == 10_000 * 256 * 8 * 36
    assert audit["readings"].RELEASED.macs("lw-v2") == standard.macs("lw-v2")
    # Nine channels more for the 81st class, in D3 to D7: 13,343 cells.
    assert readings["the same, 81 classes"].num_classes == 81
    more = audit["readings"].Reading(name="", num_classes=81).macs("retinanet") - standard.macs("retinanet")
    assert more == 13_343 * 256 * 9 * 9
    assert audit["readings"].PHOTOGRAPHS.macs("retinanet", 600) > standard.macs("retinanet", 600)


def test_full_network_was_counted_in_other_ways(audit: dict[str, ModuleType]) -> None:
    ways = {way.name: way for way in audit["readings"].baselines()}
    base = ways["convolutions, stride in the 1x1, 80 classes, P6 from C5"]
    assert (base.macs, base.d3_macs) == (146_245_594_112, 64_604_160_000)
    # A fifth 3x3 convolution, 256 to 256, in two towers on all levels.
    assert ways["five convolutions a tower"].macs - base.macs == 13_343 * 2 * 256 * 256 * 9
    assert ways["a box for each class"].d3_macs - base.d3_macs == 10_000 * 256 * 9 * 36 * 79
    # P6 is 13 x 13, from 256 instead of 2,048 channels.
    assert base.macs - ways["P6 from P5"].macs == 169 * 256 * 9 * (2048 - 256)


def test_small_operations_are_of_the_right_size(audit: dict[str, ModuleType]) -> None:
    # ResNet-50 puts out 11.1 million numbers at 224 x 224, by size 142 million at 800 x 800; the strides' place and rounding make the 10 %.
    backbone = 11.1e6 * (800 / 224) ** 2
    pyramid = 2 * 256 * (100**2 + 50**2 + 25**2) + 256 * (13**2 + 7**2)
    head = (8 * 256 + 720 + 36) * 13_343
    assert audit["readings"].small_operations() == pytest.approx(5 * (backbone + pyramid + head), rel=0.1)


def test_fit_of_a_printed_number(audit: dict[str, ModuleType]) -> None:
    fit = audit["cost_tables"].fit
    assert [fit(macs, 135) for macs in (134.4e9, 134.6e9, 135.0e9, 135.4e9, 135.9e9, 136.0e9)] == [
        "",
        "rounded",
        "rounded",
        "rounded",
        "cut off",
        "",
    ]


def test_scaling_line_by_hand(audit: dict[str, ModuleType]) -> None:
    line = audit["scaling_line"]
    points = [(10.0, 1.0), (0.0, 0.0), (20.0, 4.0)]  # y = x^2 / 100
    assert line.straight(15.0, points) == pytest.approx(2.5)
    assert line.curved(15.0, points) == pytest.approx(2.25)
    assert [line.straight(cost, points) for cost, _ in points] == [ap for _, ap in points]
    with pytest.raises(ValueError, match="outside"):
        line.straight(20.1, points)
    # LW-v3 by the paper's own costs: 34.3 + 0.8 * (89 - 88) / (119 - 88) = 34.326
    assert line.advantages(None)["lw-v3"] == pytest.approx(34.6 - 34.326, abs=1e-3)
    # LW-v1 by one counter: 35.1 + 0.6 * (135.760 - 113.041) / (146.246 - 113.041) = 35.5105
    assert line.advantages(audit["readings"].STANDARD)["lw-v1"] == pytest.approx(35.4 - 35.5105, abs=1e-3)
    # The last metric: AP on large objects. LW-v3 at 88.820: 47.4 - 1.0 * (88.820 - 83.056) / (113.041 - 83.056) = 47.2078
    assert line.advantages(audit["readings"].STANDARD, metric=5)["lw-v3"] == pytest.approx(44.6 - 47.2078, abs=1e-3)


@pytest.mark.parametrize("init", ["paper", "fan_in"])
@pytest.mark.parametrize("block", ["original", "v1", "v2", "v3", "narrow", "dw5"])
def test_signal_by_formula_is_the_signal_of_a_tower(audit: dict[str, ModuleType], block: str, init: Init) -> None:
    torch.manual_seed(0)
    plan = HeadPlan(cls={"P3": block_tower(block)})
    units, _ = Head(in_channels=256, num_classes=1, num_anchors=1, plan=plan, init=init).double().cls.layers("P3")
    features = inputs = torch.randn(1, 256, 20, 20, dtype=torch.float64)
    with torch.no_grad():
        for unit in units:
            features = unit(features)
        # Away from the border, whose cells see zeros; one draw of weights and a sample of features make the rest.
        measured = math.sqrt(float(features[..., 4:-4, 4:-4].square().mean() / inputs.square().mean()))
    assert measured == pytest.approx(audit["claim_tables"].passed_on(block, init), rel=0.25)
