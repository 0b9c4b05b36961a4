"""The whole path from a trained detector to a light one: surgery, closed form, fit, each stage kept and measured."""

import copy
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path

import torch

from lw_retinanet.detection.detector import Detector
from lw_retinanet.devices import uses_bf16
from lw_retinanet.errors import WeightsError
from lw_retinanet.heads import HeadPlan
from lw_retinanet.lightening.calibration_images import calibration_inputs
from lw_retinanet.lightening.closed_form import solve_closed_form
from lw_retinanet.lightening.feature_cache import MAX_BYTES, CachedFeatures, collect
from lw_retinanet.lightening.fitting import FitCurve, FitSettings, fit
from lw_retinanet.lightening.surgery import is_switchable, level_input, lighten_copy
from lw_retinanet.lightening.towers import LevelPair
from lw_retinanet.models.retinanet import RetinaNet
from lw_retinanet.progress import Progress, tracked
from lw_retinanet.weights.model_file import ModelRecord

FULL, SURGERY, CLOSED_FORM, FIT = "full head", "surgery", "closed form", "fit"


@dataclass(frozen=True, kw_only=True)
class LightenSettings:
    """Args:
    fit: of the last stage; 0 steps leave it out.
    own_output: let the light D3 have its own convolution that makes P3 (it costs nothing, and the old one is kept for the full head).
    max_bytes: of cached feature maps; as many views of the images are used as fit in.
    seed: of the choice of cells and the order of the fit.
    """

    fit: FitSettings = field(default_factory=FitSettings)
    own_output: bool = True
    max_bytes: int = MAX_BYTES
    seed: int = 0


@dataclass(frozen=True, kw_only=True, eq=False)
class Stage:
    """A model on the way.

    Args:
        name: ``full head``, ``surgery``, ``closed form`` or ``fit``.
        model: as it was after this stage.
        seconds: that the stage took; the time for looking at the images belongs to the first stage that needs them.
    """

    name: str
    model: RetinaNet
    seconds: float


@dataclass(frozen=True, kw_only=True, eq=False)
class Lightened:
    """What came out.

    Args:
        detector: the light one.
        record: for its model file.
        stages: from the full head on.
        errors: by level and branch, what the closed form left unexplained (see :class:`~lw_retinanet.lightening.closed_form.ClosedForm`).
        curve: of the fit, by level.
        images: calibration images.
        views: feature maps that were learned from.
    """

    detector: Detector
    record: ModelRecord
    stages: Sequence[Stage]
    errors: dict[str, float] = field(default_factory=dict)
    curve: dict[str, FitCurve] = field(default_factory=dict)
    images: int = 0
    views: int = 0


def lighten_detector(
    detector: Detector,
    plan: HeadPlan,
    *,
    name: str,
    files: Sequence[Path] | None = None,
    settings: LightenSettings = LightenSettings(),
    progress: Progress | None = None,
) -> Lightened:
    """Give a trained detector the plan's own towers and fill them from its old head.

    Args:
        detector: trained, with its record; not changed.
        plan: own towers by level.
        name: of the plan, kept as the light model's preset.
        files: pictures like those it will see, without labels; None or none fills the towers from the old weights alone.
        settings: how.
        progress: wraps what takes long, for instance to show a bar; gets the number of items and what is being done.

    Raises:
        InputError: if the plan changes nothing.
        WeightsError: if the detector comes without its record.
        ImageError: for a picture that cannot be read.
    """
    if detector.record is None:
        raise WeightsError("the detector does not know its own record; open it with lw_retinanet.load")
    started = time.monotonic()
    light, levels = lighten_copy(detector.model, plan, own_output=settings.own_output)
    stages = [Stage(name=FULL, model=detector.model, seconds=0.0)]
    stages.append(Stage(name=SURGERY, model=copy.deepcopy(light), seconds=time.monotonic() - started))
    errors: dict[str, float] = {}
    curves: dict[str, FitCurve] = {}
    views = 0
    files = list(files or [])
    closed_form_seconds = 0.0
    for level in levels if files else []:
        started = time.monotonic()
        examples = _examples(light, level, files, settings, detector.device, progress)
        maps = [example.maps for example in examples[: len(files)]]
        found = solve_closed_form(level, maps, seed=settings.seed, progress=progress)
        errors |= {f"{level.level} {branch}": error for branch, error in found.errors.items()}
        views += len(examples)
        closed_form_seconds += time.monotonic() - started
        if level is levels[-1]:
            stages.append(Stage(name=CLOSED_FORM, model=copy.deepcopy(light), seconds=closed_form_seconds))
        if settings.fit.steps:
            curves[level.level] = fit(
                level,
                examples,
                settings.fit,
                device=detector.device,
                use_bf16=uses_bf16("auto", detector.device),
                progress=progress,
            )
    if curves:
        stages.append(Stage(name=FIT, model=light, seconds=sum(curve.seconds for curve in curves.values())))
    record = detector.record.model_copy(
        update={
            "preset": name,
            "plan": light.head.plan,
            "switchable": is_switchable(detector.model, plan),
            "full_output": light.fpn.full_output is not None,
        }
    )
    made = Detector.of_model(light, detector.categories, device=detector.device, precision=detector.precision, name=name, record=record)
    return Lightened(detector=made, record=record, stages=stages, errors=errors, curve=curves, images=len(files), views=views)


def _examples(
    light: RetinaNet, level: LevelPair, files: Sequence[Path], settings: LightenSettings, device: torch.device, progress: Progress | None
) -> list[CachedFeatures]:
    """Of all pictures as they are and, for a fit, what the old towers say; then mirrored ones, until the memory is full."""
    rule, fits = light.conventions.input, settings.fit.steps > 0
    views, total = calibration_inputs(files, rule, mirrored=False), len(files)
    if fits:
        views, total = chain(views, calibration_inputs(files, rule, mirrored=True)), 2 * total
    shown = tracked(views, total, f"look at pictures for {level.level}", progress)
    inputs = (level_input(light, images.to(device), level.level) for images in shown)
    return collect(level, inputs, total, taught=fits, use_bf16=uses_bf16("auto", device), max_bytes=settings.max_bytes)
