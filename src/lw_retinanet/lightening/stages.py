"""The way from a trained detector to a light one in stages: surgery, closed form, fit. The model after each stage is kept."""

import copy
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from lw_retinanet.detection.detector import Detector
from lw_retinanet.errors import WeightsError
from lw_retinanet.heads import HeadPlan
from lw_retinanet.lightening.calibration_images import calibration_inputs
from lw_retinanet.lightening.filling import LighteningSettings, fill_levels
from lw_retinanet.lightening.fitting import FitCurve
from lw_retinanet.lightening.surgery import is_switchable, level_input, lighten_copy
from lw_retinanet.lightening.towers import LevelPair
from lw_retinanet.models.retinanet import RetinaNet
from lw_retinanet.progress import Progress
from lw_retinanet.weights.model_file import ModelRecord

FULL, SURGERY, CLOSED_FORM, FIT = "full head", "surgery", "closed form", "fit"


@dataclass(frozen=True, kw_only=True, eq=False)
class Stage:
    """The model after one stage.

    Args:
        name: ``full head``, ``surgery``, ``closed form`` or ``fit``.
        model: The model after this stage.
        seconds: Duration of the stage. Computing the features of the images counts for the closed form.
    """

    name: str
    model: RetinaNet
    seconds: float


@dataclass(frozen=True, kw_only=True, eq=False)
class Lightened:
    """A light detector, and how it came about.

    Args:
        detector: The light detector.
        record: The record for its model file.
        stages: All stages, beginning with the full head.
        errors: By level and branch, the share of the old outputs' variance that the closed form misses.
        curve: Losses of the fit, by level.
        num_images: Number of calibration images.
        num_maps: Number of feature maps that were used, mirrored images counted.
    """

    detector: Detector
    record: ModelRecord
    stages: Sequence[Stage]
    errors: dict[str, float]
    curve: dict[str, FitCurve]
    num_images: int
    num_maps: int


def lighten_detector(
    detector: Detector,
    plan: HeadPlan,
    *,
    name: str,
    files: Sequence[Path] = (),
    settings: LighteningSettings | None = None,
    progress: Progress | None = None,
) -> Lightened:
    """Give a trained detector the plan's own towers, and fill them so that they answer as the old head does.

    Args:
        detector: A trained detector with its record; it is not changed.
        plan: Own towers by level.
        name: Name of the plan; it becomes the light model's preset.
        files: Calibration images. Without any, the towers are filled from the old weights alone.
        settings: How the towers are filled; None takes the defaults.
        progress: Passes on images, feature maps and steps, for instance to show a bar.

    Raises:
        InputError: if the plan changes nothing.
        WeightsError: if the detector has no record.
        ImageError: for an image that cannot be read.
    """
    settings = settings or LighteningSettings()
    started = time.monotonic()
    light, levels = lighten_copy(detector.model, plan, own_output=settings.own_output)
    record = _light_record(detector, light, plan, name)
    stages = [Stage(name=FULL, model=detector.model, seconds=0.0)]
    stages.append(Stage(name=SURGERY, model=copy.deepcopy(light), seconds=time.monotonic() - started))

    def inputs(level: LevelPair, mirrored: bool) -> Iterator[Tensor]:
        for images in calibration_inputs(files, light.conventions.input, mirrored=mirrored):
            yield level_input(light, images.to(detector.device), level.level)

    solved: list[RetinaNet] = []
    filled = fill_levels(
        levels,
        inputs,
        len(files),
        settings,
        device=detector.device,
        after_closed_form=lambda: solved.append(copy.deepcopy(light)),
        progress=progress,
    )
    curves = {level.level: level.curve for level in filled if level.curve is not None}
    stages += [Stage(name=CLOSED_FORM, model=model, seconds=sum(level.seconds for level in filled)) for model in solved]
    if curves:
        stages.append(Stage(name=FIT, model=light, seconds=sum(curve.seconds for curve in curves.values())))
    made = Detector.of_model(light, detector.categories, device=detector.device, precision=detector.precision, name=name, record=record)
    return Lightened(
        detector=made,
        record=record,
        stages=stages,
        errors={f"{level.level} {branch}": error for level in filled for branch, error in level.errors.items()},
        curve=curves,
        num_images=len(files),
        num_maps=sum(level.num_maps for level in filled),
    )


def _light_record(detector: Detector, light: RetinaNet, plan: HeadPlan, name: str) -> ModelRecord:
    if detector.record is None:
        raise WeightsError("the detector does not know its own record; open it with lw_retinanet.load")
    outputs = tuple(light.fpn.full_convolutions())
    return detector.record.model_copy(
        update={
            "preset": name,
            "plan": light.head.plan,
            "switchable": is_switchable(detector.model, plan),
            "full_output": outputs if {*outputs} - {"P3"} else bool(outputs),
            "notes": detector.record.lasting_notes,
        }
    )
