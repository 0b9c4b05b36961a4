"""The recipes of configs/coco, and that their headers say what the code does."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from lw_retinanet.config import Config, load_config, parse_config

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "configs" / "coco"
SCRIPT = ROOT / "benchmarks" / "coco_recipes.py"
FILES = sorted(FOLDER.glob("*.yaml"))
pytestmark = pytest.mark.skipif(not (SCRIPT.exists() and FILES), reason="configs and benchmarks are not part of this distribution")


@pytest.fixture(scope="module")
def recipes() -> ModuleType:
    spec = importlib.util.spec_from_file_location("coco_recipes", SCRIPT)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules["coco_recipes"] = module  # where dataclasses look for it
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def v100_macs(recipes: ModuleType) -> float:
    rate: float = recipes.v100_macs()
    return rate


def config(name: str) -> Config:
    path = FOLDER / f"{name}.yaml"
    return parse_config(load_config(path), where=str(path)).resolved()


def test_every_row_has_its_file(recipes: ModuleType) -> None:
    assert {file.stem for file in FILES} == set(recipes.ROWS)
    # Table 3: three sizes and three light models; Table 1: three blocks beside the same baseline; ours.
    assert len(FILES) == 6 + 3 + 1


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_the_header_says_what_the_code_does(recipes: ModuleType, v100_macs: float, file: Path) -> None:
    text = file.read_text(encoding="utf-8")
    expected = recipes.header(file.stem, v100_macs)
    assert text[: -len(recipes.settings_text(text))] == expected, "run: python benchmarks/coco_recipes.py --write"


def test_the_documents_table_says_what_the_code_does(recipes: ModuleType) -> None:
    text = recipes.DOCUMENT.read_text(encoding="utf-8")
    assert text == recipes.with_table(text), "run: python benchmarks/coco_recipes.py --write"


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_the_rows_differ_in_what_the_paper_varies_and_nothing_else(file: Path) -> None:
    base, row = (config(name).model_dump() for name in ("retinanet-800", file.stem))
    different = {f"{section}.{key}" for section in base for key in base[section] if base[section][key] != row[section][key]}
    if file.stem.startswith("retinanet"):
        assert different <= {"data.image_size", "data.max_size"}
        assert f"retinanet-{row['data']['image_size']}" == file.stem
    else:
        assert different - {"model.init"} == {"model.preset"}
        assert row["model"]["preset"] == file.stem
        assert ("model.init" in different) == (file.stem == "lw-narrow")


@pytest.mark.parametrize(
    ("name", "gpus", "expected"),
    [
        # 8 GPUs x 2 images = 16: the original's 0.01, 90k steps, falling at 60k and 80k.
        ("retinanet-800", 8, (0.01, 90_000, (60_000, 80_000))),
        # 4 x 2 = 8 images: half the rate, twice the steps.
        ("retinanet-800", 4, (0.005, 180_000, (120_000, 160_000))),
        # 149,194,714,112 / 91,768,794,112 MACs = 1.62577: 90,000 x 1.62577 = 146,319; 2/3 and 8/9 of it.
        ("lw-v3", 8, (0.01, 146_319, (97_546, 130_061))),
        # 180,000 x 1.62577 = 292,638.
        ("lw-v3", 4, (0.005, 292_638, (195_092, 260_123))),
        # Smaller pictures are no lighter model: the paper's scaling rows are as long as the baseline.
        ("retinanet-600", 8, (0.01, 90_000, (60_000, 80_000))),
    ],
)
def test_the_schedule_by_hand(recipes: ModuleType, name: str, gpus: int, expected: Any) -> None:
    plan = recipes.plan(name, gpus)
    assert (plan.rate, plan.steps, plan.rate_falls_at) == expected
    assert plan.epochs == pytest.approx(expected[1] * 2 * gpus / 118_287, rel=1e-3)  # a last incomplete step of an epoch is left out


def test_the_input_is_detectrons() -> None:
    from lw_retinanet.conventions import InputRule
    from lw_retinanet.data.preprocess import resized_size

    sizes = {}
    for name in ("retinanet-800", "retinanet-700", "retinanet-600"):
        data = config(name).data
        assert data.image_size is not None
        rule = InputRule(resize=data.resize, size=data.image_size, max_size=data.max_size)
        sizes[name] = (resized_size((480, 640), rule), resized_size((300, 900), rule))
    # 480 x 640: the shorter side decides; 300 x 900: the longer one.
    assert sizes["retinanet-800"] == ((800, 1067), (444, 1333))
    assert sizes["retinanet-700"] == ((700, 933), (389, 1166))
    assert sizes["retinanet-600"] == ((600, 800), (333, 1000))
