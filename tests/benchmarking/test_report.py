import json
from pathlib import Path
from typing import Any

import pytest
from matplotlib.text import Text
from PIL import Image

from lw_retinanet.benchmarking.chart import figure, save_chart
from lw_retinanet.benchmarking.contender import Contender
from lw_retinanet.benchmarking.parity import Parity
from lw_retinanet.benchmarking.report import report as report_of
from lw_retinanet.benchmarking.tables import _abilities, filled, latency_rows, lines, markdown, stage_rows
from lw_retinanet.benchmarking.timing import Measured

MACHINE = {
    "lw_retinanet": "9",
    "packages": {"torch": "1", "torchvision": "2"},
    "processor": "P",
    "device": "cpu",
    "threads": 2,
    "load_before": 0.1,
}


def measured(
    name: str, milliseconds: float, *, family: str = "ours", precision: str = "fp32", stages: dict[str, float] | None = None, **others: Any
) -> Measured:
    contender = Contender(
        name=name,
        model=name,
        family=family,
        runtime="pytorch",
        precision=precision,
        how="",
        run=lambda _files, _clock: [],
        has_stages=False,
        input_hw=(64, 96),
        **{"macs": 2_000_000_000, "params": 3_000_000, **others},
    )
    return Measured(contender=contender, times=[milliseconds] * 5, stages=stages or {}, staged_whole=milliseconds)


def report(*rows: Measured, shipped: str | None = None) -> dict[str, Any]:
    parity = Parity(name="a", against="b", images=4, detections=7, logits=1e-6)
    made = report_of(
        rows,
        machine=MACHINE,
        settings={"batch_size": 2, "rounds": 5},
        images="some",
        parities=[parity],
        remarks=["remark."],
        shipped=shipped,
    )
    return json.loads(json.dumps(made))


def against_torchvision() -> dict[str, Any]:
    return report(
        measured("shipped", 100, family="torchvision", macs=6_000_000_000),
        measured("channels_last", 80, family="torchvision"),
        measured("autocast", 40, family="torchvision", precision="bf16"),
        measured("base", 50),
        measured("half", 20, precision="bf16"),
        measured("int8", 10, precision="int8", accuracy=0.346),
        measured("ssd", 25, family="peer", macs=None),
        shipped="shipped",
    )


def test_ratios_are_against_torchvision_as_shipped_and_at_its_best() -> None:
    rows = {row["name"]: row for row in against_torchvision()["contenders"]}
    found = {name: [(each["role"], each["than"], each["ratio"]) for each in row["times_as_fast"]] for name, row in rows.items()}
    assert found["shipped"] == found["autocast"] == []
    # fp32 is held against fp32, what rounds against the fastest.
    assert found["base"] == [("shipped", "shipped", 2.0), ("best", "channels_last", 1.6)]
    assert found["half"] == [("shipped", "shipped", 5.0), ("best", "autocast", 2.0)]
    assert found["int8"] == [("shipped", "shipped", 10.0), ("best", "autocast", 4.0)]
    assert [each["macs_ratio"] for each in rows["base"]["times_as_fast"]] == [3.0, 1.0]
    assert [each["macs_ratio"] for each in rows["ssd"]["times_as_fast"]] == [None, None]
    assert rows["base"]["images_per_second"] == pytest.approx(40)  # two images a call of 50 ms


def test_without_torchvision_the_first_one_is_the_measure() -> None:
    first, second = report(measured("a", 30), measured("b", 10))["contenders"]
    assert first["times_as_fast"] == []
    assert [(each["role"], each["than"], each["ratio"]) for each in second["times_as_fast"]] == [("first", "a", 3.0)]


def test_models_are_held_against_the_first_one_in_the_same_runtime_and_precision() -> None:
    result = report(
        measured("shipped", 100, family="torchvision"),
        measured("base", 50),
        measured("base half", 20, precision="bf16"),
        measured("light", 30),
        measured("light half", 16, precision="bf16"),
        shipped="shipped",
    )
    found = {row["name"]: {each["role"]: (each["than"], each["ratio"]) for each in row["times_as_fast"]} for row in result["contenders"]}
    assert "alike" not in found["base"]
    assert "alike" not in found["base half"]
    assert found["light"]["alike"] == ("base", pytest.approx(50 / 30))
    assert found["light half"]["alike"] == ("base half", pytest.approx(20 / 16))


def test_stages_have_to_add_up() -> None:
    good = report(measured("a", 100, stages={"FPN": 30.0, "decode": 65.0}))
    assert good["contenders"][0]["stages"] == {
        "milliseconds": {"decode": 65.0, "FPN": 30.0},
        "sum": 95.0,
        "whole": 100.0,
        "difference": -5.0,
        "adds_up": True,
    }
    assert good["remarks"] == ["remark."]
    bad = report(measured("a", 100, stages={"decode": 80.0}))
    assert not bad["contenders"][0]["stages"]["adds_up"]
    assert "The stages of a come to 80.0 ms, the whole to 100.0 ms" in bad["remarks"][1]


def test_tables() -> None:
    result = against_torchvision()
    rows = latency_rows(result)
    assert rows[0] == ["", "input", "GMACs", "Mparams", "ms (95 %)", "vs torchvision as shipped", "vs its best", "AP"]
    assert rows[6] == ["int8", "64 x 96", "2.00", "3.0", "10.0 (10.0 to 10.0)", "10.00x (10.00 to 10.00)", "4.00x (4.00 to 4.00)", "34.6"]
    assert stage_rows(result) == []
    text = "\n".join(lines(result))
    assert "remark." in text
    assert "a answers as b does: logits and deltas within 1e-06" in text
    staged = report(measured("a", 10, stages={"decode": 4.0, "D3": 6.0}), measured("b", 10, stages={"decode": 10.0}))
    assert stage_rows(staged) == [
        ["", "decode", "D3", "sum", "whole"],
        ["a", "4.00", "6.00", "10.0", "10.0"],
        ["b", "10.0", "", "10.0", "10.0"],
    ]
    assert "by stage" in "\n".join(lines(staged))


def test_a_table_finds_its_place_in_a_document() -> None:
    table = markdown(report(measured("a", 30), measured("b", 10)))
    assert all(line.count("|") == table[0].count("|") for line in table[:4])
    assert "load before 0.1" in table[5]
    document = "before\n<!-- table: x -->\nnot run\n<!-- /table -->\nafter\n<!-- table: y -->\nnot run\n<!-- /table -->\n"
    once = filled(document, "x", ["| new |"])
    assert once == "before\n<!-- table: x -->\n| new |\n<!-- /table -->\nafter\n<!-- table: y -->\nnot run\n<!-- /table -->\n"
    assert filled(once, "x", ["| new |"]) == once
    with pytest.raises(KeyError):
        filled(document, "z", [])


@pytest.mark.parametrize("staged", [False, True])
def test_chart(tmp_path: Path, staged: bool) -> None:
    stages = {"decode": 4.0, "D3": 6.0} if staged else None
    result = report(measured("a$_$", 10, stages=stages), measured("b", 20, family="peer", macs=None, precision="int8"))
    save_chart(result, tmp_path / "chart.png")
    with Image.open(tmp_path / "chart.png") as chart:
        assert chart.size[0] == (2250 if staged else 1125)


def test_names_in_the_chart_stand_apart() -> None:
    rows = [measured(f"model number {number}", 100 + number % 3, macs=10**9 * (20 + number % 2)) for number in range(9)]
    made = figure(report(*rows))
    names = [text for text in made.axes[0].texts if text.get_text().startswith("model")]
    boxes = [Text.get_window_extent(name) for name in names]
    assert len(boxes) == 9
    assert not any(box.count_overlaps(boxes[:place]) for place, box in enumerate(boxes))


def test_models_of_known_ap_get_an_axis_of_it() -> None:
    known = measured("peer", 30, family="peer", accuracy=0.364)
    panels = figure(report(measured("ours", 10), known)).axes
    assert [axes.get_xlabel() for axes in panels] == ["GMACs per image", "AP, points"]
    assert [text.get_text() for text in panels[1].texts] == ["peer"]
    assert panels[1].lines[0].get_xdata() == pytest.approx([36.4])


def test_the_line_below_says_what_the_processor_can() -> None:
    times = {"pays": False, "fp32_ms": 1.8, "bf16_ms": 2.9}
    machine = {**MACHINE, "instructions": "AVX512", "amx": False, "caps": {"A": "B"}, "bf16_pays": {"inference": times}}
    assert _abilities(machine) == " (AVX512; no AMX; A=B; bf16 does not pay for inference: 2.9 against 1.8 ms)"
    assert _abilities({**machine, "caps": {}, "bf16_pays": {}}) == " (AVX512; no AMX; no bf16)"
