"""The cost chart: bars as long as the numbers, one scale, files written whole."""

from pathlib import Path

import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image

from lw_retinanet.counting.cost_chart import cost_figure, save_cost_chart
from lw_retinanet.counting.macs import BLOCKS
from lw_retinanet.counting.profile import Profile, profile
from lw_retinanet.errors import ConfigError, OutputError
from lw_retinanet.heads import PRESETS
from lw_retinanet.models.build import build


@pytest.fixture(scope="module")
def profiles() -> list[Profile]:
    result = []
    for preset in ("retinanet", "lw-v3"):
        with torch.device("meta"):
            model = build(PRESETS[preset], num_classes=20, backbone="resnet18")
        result.append(profile(model, name=preset, size_hw=(320, 320)))
    return result


def _bars(figure: Figure, panel: int) -> dict[str, float]:
    """Length of each block's stacked bar in GMACs."""
    lengths = dict.fromkeys(BLOCKS, 0.0)
    for bar in figure.axes[panel].patches:
        x, y, width, height = bar.get_bbox().bounds  # type: ignore[attr-defined]
        block = BLOCKS[round(y + height / 2)]
        assert x == pytest.approx(lengths[block]) or width == 0  # stacked without a gap
        lengths[block] += width
    return lengths


def test_bars_are_as_long_as_the_numbers(profiles: list[Profile]) -> None:
    figure = cost_figure(profiles)
    for panel, each in enumerate(profiles):
        assert _bars(figure, panel) == pytest.approx({block: cost.macs / 1e9 for block, cost in each.blocks.items()})
    assert figure.axes[0].get_xlim() == figure.axes[1].get_xlim()


def test_c1_stands_at_the_top_with_any_number_of_panels(profiles: list[Profile]) -> None:
    for number in (1, 2):
        low, high = cost_figure(profiles[:number]).axes[0].get_ylim()
        assert low > high


def test_titles_say_model_size_and_gain(profiles: list[Profile]) -> None:
    full, light = (axes.get_title(loc="left") for axes in cost_figure(profiles).axes)
    assert full.startswith("retinanet: ")
    assert "fewer" not in full
    assert f"{profiles[0].macs / profiles[1].macs:.2f}x fewer than retinanet" in light
    assert "320 x 320 pixels, 20 classes" in light


@pytest.mark.parametrize("name", ["chart.png", "deep/er/chart.svg"])
def test_the_file_is_written_whole_and_the_same_twice(name: str, profiles: list[Profile], tmp_path: Path) -> None:
    path = tmp_path / name
    save_cost_chart(profiles, path)
    first = path.read_bytes()
    save_cost_chart(profiles, path)
    assert path.read_bytes() == first
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]
    if name.endswith("png"):
        with Image.open(path) as figure:
            assert figure.width > 1000
    else:
        assert ">lw-v3: " in path.read_text()


def test_bad_requests_are_refused_before_anything_is_written(profiles: list[Profile], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"chart\.bmp: a chart's name must end in \.png, \.svg, \.pdf"):
        save_cost_chart(profiles, tmp_path / "chart.bmp")
    with pytest.raises(ConfigError, match="at least one profile"):
        save_cost_chart([], tmp_path / "chart.png")
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="cannot be written"):
        save_cost_chart(profiles, tmp_path / "file" / "chart.png")
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]
