"""The whole path of lightening."""

from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.lightening.tower_pairs import CLASSES, WIDTH, trained_like

from lw_retinanet.conventions import Conventions, InputRule
from lw_retinanet.data.records import Category, Records
from lw_retinanet.detection.detector import Detector
from lw_retinanet.heads import PRESETS
from lw_retinanet.lightening import feature_cache
from lw_retinanet.lightening.filling import LighteningSettings
from lw_retinanet.lightening.fitting import FitSettings
from lw_retinanet.lightening.stages import lighten_detector
from lw_retinanet.weights.model_file import make_record

NO_FIT = LighteningSettings(fit=FitSettings(steps=0))


@pytest.fixture
def detector() -> Detector:
    model = trained_like()
    model.conventions = Conventions(input=InputRule(size=64))
    plan, classes = model.head.plan, tuple(Category(id=number, name=f"class {number}") for number in range(CLASSES))
    record = make_record(
        model, preset="retinanet", backbone="resnet18", width=WIDTH, norm="frozen", plan=plan, categories=classes, notes={}
    )
    return Detector.of_model(model, classes, record=record)


@pytest.fixture
def files(draw_records: Callable[..., Records], tmp_path: Path) -> list[Path]:
    records = draw_records(tmp_path / "images", [((64, 48), [(4 * n, 8, 20, 30, n)]) for n in range(3)])
    return [records.path(image) for image in range(records.num_images)]


def test_without_a_fit_nobody_asks_the_old_towers_for_one(detector: Detector, files: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, int] = {}

    def show(items: Iterable[Any], total: int, what: str) -> Iterable[Any]:
        seen[what] = total
        return items

    plan = PRESETS["lw-v3"]
    fitted = lighten_detector(
        detector, plan, name="lw-v3", files=files, settings=LighteningSettings(fit=FitSettings(steps=2)), progress=show
    )
    assert seen == {"look at images for P3": 6, "closed form for P3": 3, "fit P3": 2}
    assert (fitted.num_images, fitted.num_maps, [stage.name for stage in fitted.stages][-1]) == (3, 6, "fit")
    seen.clear()
    monkeypatch.setattr(feature_cache, "with_answers", None)
    found = lighten_detector(detector, plan, name="lw-v3", files=files, settings=NO_FIT, progress=show)
    assert seen == {"look at images for P3": 3, "closed form for P3": 3}
    assert (found.num_images, found.num_maps, [stage.name for stage in found.stages][-1]) == (3, 3, "closed form")
    # The closed form is the same one, fit or no fit.
    (before,), after = [stage.model for stage in fitted.stages if stage.name == "closed form"], found.detector.model
    assert all(torch.equal(value, after.state_dict()[name]) for name, value in before.state_dict().items())


def test_as_many_images_as_memory_allows(detector: Detector, files: list[Path]) -> None:
    # A map of 8 x 8 cells and 16 channels in bf16 is 2 KiB (all images are padded to 64 x 64).
    found = lighten_detector(detector, PRESETS["lw-v3"], name="lw-v3", files=files, settings=replace(NO_FIT, max_bytes=5000))
    assert (found.num_images, found.num_maps) == (3, 2)
