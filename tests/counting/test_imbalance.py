"""The ranking: what a light block would leave, against models that really have it."""

import json

import pytest
import torch
from pydantic import TypeAdapter

from lw_retinanet.counting.dense_head import LevelBranch
from lw_retinanet.counting.imbalance import light_macs, light_plan, rank, ranked_blocks, tower_plan
from lw_retinanet.counting.imbalance_chart import imbalance_figure
from lw_retinanet.counting.macs import Size, count_blocks
from lw_retinanet.counting.torchvision_model import torchvision_detector
from lw_retinanet.heads import HeadPlan, block_tower
from lw_retinanet.models.build import build
from lw_retinanet.models.retinanet import RetinaNet


def _ours(plan: HeadPlan, num_classes: int) -> RetinaNet:
    with torch.device("meta"):
        return build(plan, num_classes=num_classes, backbone="resnet18")


@pytest.mark.parametrize("block", ranked_blocks())
@pytest.mark.parametrize("branch", ["cls", "bbox"])
def test_what_a_block_would_leave_is_what_it_leaves(block: str, branch: str) -> None:
    size = (160, 96)
    row = next(row for row in rank(_ours(HeadPlan(), 20), size).rows if (row.level, row.branch) == ("P4", branch))
    parts = count_blocks(_ours(TypeAdapter(HeadPlan).validate_python({branch: {"P4": block_tower(block)}}), 20), size)["D4"].parts
    assert row.after[block] == parts[f"{branch}_tower"].macs + parts[f"{branch}_predict"].macs


def test_rows_are_sorted_by_what_they_save() -> None:
    ranking = rank(_ours(HeadPlan(), 20), (256, 256))
    saved = [row.saved for row in ranking.rows]
    assert saved == sorted(saved, reverse=True)
    assert sum(row.macs for row in ranking.rows) == sum(cost.macs for name, cost in ranking.cost.blocks.items() if name[0] == "D")
    for row in ranking.rows:
        assert row.best is not None
        assert row.saved == row.macs - min(row.after.values()) == row.macs - row.after[row.best]
        assert row.saved_share == row.saved / ranking.cost.macs
    assert json.loads(json.dumps(ranking.as_list()))[0]["level"] == "P3"


def test_the_class_count_decides_what_comes_first() -> None:
    # 1 class: both towers cost the same and the box prediction more; 601: the class prediction is all.
    few, many = (rank(_ours(HeadPlan(), count), (256, 256)) for count in (1, 601))
    assert (few.rows[0].place, many.rows[0].place) == ("D3 bbox", "D3 cls")
    assert [row.place for row in many.rows[:2]] == ["D3 cls", "D4 cls"]
    assert "With 1 class the class prediction" in few.verdict[1]
    assert "With 601 classes" in many.verdict[1]
    assert many.verdict[1].endswith("a block must lighten the prediction too.")
    share = 256 * 9 * 601 * 9 * 32 * 32 / many.cost.macs
    assert f"alone is {share:.1%} of the model" in many.verdict[1]


def test_a_light_backbone_makes_a_second_level_worthwhile() -> None:
    with torch.device("meta"):
        light, usual = (build(HeadPlan(), num_classes=80, backbone=name) for name in ("mobilenet_v2", "resnet50"))
    (start, _, more), (other, _) = (rank(model, (800, 800)).verdict for model in (light, usual))
    assert start.startswith("Start at D3: its class branch takes")
    # The smallest block in all four branches: 97.9 - 64.6 + 4.65 = 37.9, of which D4 has 16.15; 37.9 - 16.15 + 1.16 = 22.9.
    assert more.startswith("Go on with D4, which takes 42.6% of what is left then: light on both levels, the model takes 22.9 ")
    assert other.startswith("Start at D3")


def test_a_light_level_is_no_longer_first() -> None:
    light = HeadPlan(cls={"P3": block_tower("separable")}, bbox={"P3": block_tower("separable")})
    ranking = rank(_ours(light, 20), (256, 256))
    assert ranking.rows[0].level == "P4"
    # The same block in its place saves nothing; all others cost more.
    row = next(row for row in ranking.rows if row.place == "D3 bbox")
    assert (row.best, row.saved) == (None, 0)


@pytest.mark.parametrize(
    ("depth", "kernel", "block", "units", "predict"),
    [
        (4, 3, "v2", ("1x1", "3x3", "1x1", "3x3"), "3x3"),
        (2, 1, "v1", ("dw3x3+1x1", "dw3x3+1x1"), "1x1"),  # a 1x1 prediction is as light as it gets
        (1, 1, "narrow", ("1x1", "3x3"), "1x1"),
        (1, 1, "dw5", ("dw5x5", "1x1"), "1x1"),
        (0, 3, "v3", (), "1x1"),
        (0, 3, "v1", (), "dw3x3+1x1"),
    ],
)
def test_blocks_as_deep_as_the_tower(depth: int, kernel: int, block: str, units: tuple[str, ...], predict: str) -> None:
    light = light_plan(_branch(depth, kernel), block)
    assert light is not None
    assert (light.units, light.predict) == (units, predict)


def _branch(depth: int, kernel: int) -> LevelBranch:
    size = Size(64, 5, 3)
    return LevelBranch(
        level="P3", branch="cls", size=size, depth=depth, outputs=(6, 2), kernel=kernel, macs=1, predict_macs=1, is_own=False
    )


@pytest.mark.parametrize(("depth", "block"), [(1, "v2"), (0, "v2"), (0, "narrow"), (0, "dw5")])
def test_blocks_that_do_not_fit(depth: int, block: str) -> None:
    assert light_plan(_branch(depth, 3), block) is None


def test_two_predictions_on_one_tower() -> None:
    branch = _branch(4, 3)
    light = light_plan(branch, "v3")
    assert light is not None
    assert light_macs(branch, light) == 15 * (4 * 64 * 64 + 64 * (6 + 2))
    assert tower_plan(branch, "v3") == block_tower("v3")
    assert tower_plan(branch, "narrow") == block_tower("narrow")


def test_where_light_blocks_do_not_help_it_is_said() -> None:
    ranking = rank(torchvision_detector("fasterrcnn_mobilenet_v3_large_320_fpn"), (320, 320))
    assert ranking.verdict[0].startswith("Light blocks are not worth it here: the most that one of them can save is 1.8%")
    assert ranking.verdict[1].startswith("The box head takes 75.0%")


def test_the_table_has_a_row_for_what_matters() -> None:
    lines = rank(torchvision_detector("ssd300_vgg16"), (300, 300)).lines()
    head = next(line for line in lines if "saves at most" in line)
    assert head.split()[2:6] == ["with", "v1", "with", "v3"]
    rows = [line.split() for line in lines if line.startswith("D")]
    assert rows[0][:4] == ["D3", "cls", "2.422", "6.9%"]
    assert any(line.startswith("(7 more") for line in lines)
    assert len(rows) + 7 == 12


def test_the_chart_shows_before_and_after() -> None:
    ranking = rank(_ours(HeadPlan(), 20), (256, 256))
    row = next(row for row in ranking.rows if row.place == "D3 cls")
    after = row.after["v3"]
    axes = imbalance_figure(ranking, name="mine", planned={"D3 cls": ("v3", after)}).axes[0]
    widths = {(round(bar.get_y() + bar.get_height() / 2), i % 2): bar.get_width() for i, bar in enumerate(axes.patches)}  # type: ignore[attr-defined]
    labels = [label.get_text() for label in axes.get_yticklabels()]
    here = labels.index("D3 cls")
    assert widths[here, 0] == pytest.approx(row.macs / 1e9)
    assert widths[here, 1] == pytest.approx(after / 1e9)
    assert all(widths[i, 0] == widths[i, 1] for i in range(len(labels)) if i != here)
    total = ranking.cost.macs
    assert f"{total / (total - row.macs + after):.2f}x fewer" in axes.get_title(loc="left")
