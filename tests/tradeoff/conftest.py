"""A small data set, a small trunk, and an experiment of seconds on both; and a table of made-up results."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lw_retinanet.evaluation.paired import Estimate, Interval
from lw_retinanet.tradeoff.rows import BlockCost, ExperimentRow, Latency


@pytest.fixture(scope="session")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Made-up images of 64 pixels, just enough of them for an interval. Not to be changed."""
    from lw_retinanet.data.sample import make_sample

    return make_sample(tmp_path_factory.mktemp("sample") / "shapes", num_train=6, num_val=20, size=64)


@pytest.fixture(scope="session")
def trunk_file(shapes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A full head whose scores spread, so that there is something to find. Not to be changed."""
    import torch

    from lw_retinanet.conventions import Conventions, InputRule
    from lw_retinanet.data.dataset import Dataset
    from lw_retinanet.heads import HeadPlan
    from lw_retinanet.models.build import build
    from lw_retinanet.weights.model_file import make_record, save_model

    categories = Dataset.open(shapes).read("val").categories
    torch.manual_seed(0)
    # Group norm keeps the features of random weights alive.
    shape: dict[str, Any] = {"backbone": "mobilenet_v2", "width": 32, "norm": "group"}
    model = build(HeadPlan(), num_classes=len(categories), init="fan_in", conventions=Conventions(input=InputRule(size=64)), **shape)
    with torch.no_grad():
        model.head.cls.get_parameter("shared_predict.weight").mul_(5)
        model.head.cls.get_parameter("shared_predict.bias").fill_(-1.0)
    record = make_record(model, preset="retinanet", plan=HeadPlan(), categories=categories, notes={}, **shape)
    path = tmp_path_factory.mktemp("trunk") / "trunk.safetensors"
    save_model(path, model.eval(), record)
    return path


@pytest.fixture
def values(shapes: Path, trunk_file: Path) -> dict[str, Any]:
    """An experiment file's content: two sizes of the full head and two light heads, in the regime ``head``."""
    return {
        "name": "small",
        "data": str(shapes),
        "trunk": str(trunk_file),
        "seeds": [0, 1],
        "settings": {"train": {"steps": 3, "batch_size": 2, "rate": 1e-3, "precision": "fp32"}},
        "draws": 100,
        "lines": [
            {"name": "scaling", "variants": ["retinanet"], "scales": [96, 64]},
            {"name": "blocks", "variants": ["lw-v3", {"preset": "bbox-v1", "init": "paper"}], "scales": [96]},
        ],
    }


BLOCKS = {  # tens of millions of MACs, and parameters
    **{"C1": (8, 9_408), "C2": (45, 212_992), "C3": (62, 1_212_416), "C4": (90, 7_077_888), "C5": (50, 14_942_208)},
    **{"P3": (45, 721_408), "P4": (11, 852_480), "P5": (3, 1_114_624), "P6": (2, 4_718_848), "P7": (1, 590_080)},
    **{"D3": (640, 5_000_000), "D4": (160, 0), "D5": (40, 0), "D6": (11, 0), "D7": (3, 0)},
}


def _points(a: float, difference: float, low: float, high: float) -> Interval:
    return Interval(a=a / 100, b=(a + difference) / 100, difference=difference / 100, low=low / 100, high=high / 100)


def _make_row(*, ap: float = 17.25, d3: int | None = None, share: float = 1.0, **changes: Any) -> ExperimentRow:
    blocks = {name: BlockCost(int(macs * share * 10_000_000), params) for name, (macs, params) in BLOCKS.items()}
    if d3 is not None:
        blocks["D3"] = BlockCost(d3, 600_000)
    given: dict[str, Any] = {
        "line": "scaling",
        "role": "baseline",
        "regime": "head",
        "variant": "retinanet",
        "preset": "retinanet",
        "scale": 416,
        "size_hw": (320, 416),
        "macs": sum(cost.macs for cost in blocks.values()),
        "params": sum(cost.params for cost in blocks.values()),
        "blocks": blocks,
        "latency_ms": Latency(101.5, 99.25, 110.125),
        "seeds": (0, 1, 2),
        "aps": (ap / 100 - 0.0025, ap / 100, ap / 100 + 0.0025),
        "metrics": {
            "AP": Estimate(value=ap / 100, low=ap / 100 - 0.02, high=ap / 100 + 0.02),
            "AP50": Estimate(value=0.355, low=0.32, high=0.39),
            "AP75": Estimate(value=0.144, low=0.12, high=0.17),
            "APs": Estimate(value=0.021, low=0.005, high=0.06),
            "APm": Estimate(value=1 / 3, low=0.3, high=0.36),
        },
        "against_baseline": None,
        "against_scaling": None,
        "seconds": 61.3,
        "command": "lw-retinanet tradeoff aquarium.yaml --out results --only retinanet@416",
        "made_with": {"lw_retinanet": "1.2.3", "torch": "2.10.0", "processor": "Some CPU <2 cores>"},
    }
    return ExperimentRow(**given | changes)


@pytest.fixture(scope="session")
def make_row() -> Callable[..., ExperimentRow]:
    """A row of a result table with what is given changed; ``ap`` in points, ``d3`` its MACs, ``share`` of the MACs of all blocks."""
    return _make_row


@pytest.fixture(scope="session")
def points() -> Callable[..., Interval]:
    """Interval from the AP of A, the difference, and both ends, all in points."""
    return _points


@pytest.fixture(scope="session")
def table() -> list[ExperimentRow]:
    """A result table: four sizes, and eight light heads. Three cost nearly the same, one costs less than the smallest size."""
    rows = []
    for scale, ap, size_hw in [(416, 17.25, (320, 416)), (352, 16.0, (288, 352)), (320, 15.1, (256, 320)), (256, 12.0, (192, 256))]:
        share = size_hw[0] * size_hw[1] / (320 * 416)
        rows.append(
            _make_row(
                role="baseline" if scale == 416 else "scaling",
                scale=scale,
                size_hw=size_hw,
                ap=ap,
                share=share,
                latency_ms=Latency(100 * share, 98 * share, 108 * share),
                against_baseline=None if scale == 416 else _points(17.25, ap - 17.25, ap - 18.1, ap - 16.5),
                command=f"lw-retinanet tradeoff aquarium.yaml --out results --only retinanet@{scale}",
            )
        )
    light: list[tuple[str, str, int, float, tuple[float, float, float, float] | None]] = [
        ("bbox-v1", "bbox-v1, init paper", 4_050_000_000, 15.2, (16.3, -1.1, -1.9, -0.4)),
        ("bbox-v1", "bbox-v1", 4_050_000_000, 16.7, (16.3, 0.4, -0.1, 0.9)),
        ("bbox-v2", "bbox-v2", 5_200_000_000, 17.0, (16.9, 0.1, -0.5, 0.6)),
        ("bbox-v3", "bbox-v3", 4_040_000_000, 16.6, (16.3, 0.3, -0.2, 0.8)),
        ("lw-v3", "lw-v3", 700_000_000, 15.4, (13.9, 1.5, 0.7, 2.2)),
        ("lw-narrow", "lw-narrow", 780_000_000, 16.4, (14.0, 2.4, 1.6, 3.3)),
        ("lw-dw5", "lw-dw5", 710_000_000, 16.1, (13.9, 2.2, 1.4, 3.0)),
        ("tiny", "tiny", 1_000_000, 9.0, None),
    ]
    for preset, variant, d3, ap, compared in light:
        rows.append(
            _make_row(
                line="blocks",
                role="light",
                preset=preset,
                variant=variant,
                ap=ap,
                d3=d3,
                share=1.0 if compared else 0.2,
                latency_ms=None if preset == "bbox-v2" else Latency(40 + d3 / 1e8, 39 + d3 / 1e8, 43 + d3 / 1e8),
                against_baseline=_points(17.25, ap - 17.25, ap - 17.9, ap - 16.7),
                against_scaling=_points(*compared) if compared else None,
                command=f"lw-retinanet tradeoff aquarium.yaml --out results --only '{variant}@416'",
            )
        )
    return rows
