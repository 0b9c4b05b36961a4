"""Make a trained detector cheaper: in Python, or from model file to model file with a report of what each stage cost."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from torch import nn

from lw_retinanet.counting.latency import measure_latency
from lw_retinanet.counting.profile import profile, with_head
from lw_retinanet.data.data_use import write_data_use
from lw_retinanet.data.dataset import Dataset
from lw_retinanet.data.records import Records
from lw_retinanet.detection.detector import Detector
from lw_retinanet.errors import DataError, InputError, OutputError
from lw_retinanet.evaluation.coco_metrics import Metrics, evaluate
from lw_retinanet.evaluation.detections import DetectionTable, write_results
from lw_retinanet.evaluation.paired import MIN_IMAGES, Comparison, compare
from lw_retinanet.exporting.load import AnyModel, open_detector
from lw_retinanet.files import existing, output_folder, require_room
from lw_retinanet.heads import HeadPlan, plan_of
from lw_retinanet.interop.torchvision_lighten import lighten_torchvision
from lw_retinanet.lightening.budget import propose
from lw_retinanet.lightening.calibration_images import MAX_FILES, calibration_files, find_calibration_images
from lw_retinanet.lightening.filling import DEFAULT_PRESET, LighteningSettings, checked_steps
from lw_retinanet.lightening.fitting import FitSettings
from lw_retinanet.lightening.report import LighteningReport, make_report
from lw_retinanet.lightening.report_page import write_report
from lw_retinanet.lightening.stage_detections import detect_stages
from lw_retinanet.lightening.stages import Lightened, lighten_detector
from lw_retinanet.lightening.surgery import joined_plan
from lw_retinanet.models.retinanet import RetinaNet
from lw_retinanet.progress import Progress
from lw_retinanet.weights.create import CreatedModel
from lw_retinanet.weights.model_file import find_model_file, save_model

if TYPE_CHECKING:
    from lw_retinanet.lightening.calibration_images import Images

LATENCY_ROUNDS = 10


@dataclass(frozen=True, kw_only=True)
class LighteningRun:
    """What the job left behind.

    Args:
        model_file: The light model.
        report_folder: The folder with ``report.html``, ``report.json``, figures and the detections of every stage.
        report: The numbers of the report.
    """

    model_file: Path
    report_folder: Path
    report: LighteningReport


def lighten_model(
    model: AnyModel,
    to: str | HeadPlan = DEFAULT_PRESET,
    *,
    images: "Images | None" = None,
    fit_steps: int | None = None,
    keep_pyramid: bool = False,
    light_pyramid: bool = False,
    seed: int = 0,
    progress: Progress | None = None,
) -> Detector | nn.Module:
    """Lighten a detector of this package or of torchvision in memory. Parameters and errors are those of :func:`lw_retinanet.lighten`."""
    if isinstance(model, RetinaNet) and not isinstance(model, CreatedModel):
        raise InputError("a bare network has no classes to answer with; give its model file or the Detector that lw_retinanet.load returns")
    if isinstance(model, nn.Module) and not isinstance(model, CreatedModel):
        pyramid = {"keep_pyramid": keep_pyramid, "light_pyramid": light_pyramid}
        return lighten_torchvision(model, to, images=images, fit_steps=fit_steps, seed=seed, progress=progress, **pyramid)
    if light_pyramid:
        raise InputError("light_pyramid is for torchvision's R-CNNs; the finest map of this model is made anew at no cost; leave it out")
    detector = open_detector(model)
    plan = to if isinstance(to, HeadPlan) else plan_of(to)
    steps = checked_steps(fit_steps, has_images=images is not None)
    found = [] if images is None else find_calibration_images(images, seed=seed)
    files = [image for image in found if isinstance(image, Path)]
    if len(files) < len(found):
        raise InputError("for this model images must be files, a folder or a data set; save the images first")
    settings = LighteningSettings(fit=FitSettings(steps=steps, seed=seed), own_output=not keep_pyramid, seed=seed)
    name = to if isinstance(to, str) else "custom"
    return lighten_detector(detector, plan, name=name, files=files, settings=settings, progress=progress).detector


def lighten_file(
    model: Path,
    out: Path,
    *,
    to: str | None = None,
    budget: float | None = None,
    data: Path | None = None,
    images: int = MAX_FILES,
    fit_steps: int = FitSettings.steps,
    rate: float = FitSettings.rate,
    keep_pyramid: bool = False,
    latency: bool = True,
    seed: int = 0,
    device: str = "auto",
    progress: Progress | None = None,
) -> LighteningRun:
    """Lighten a model file, and measure every stage: MACs, AP with paired intervals, latency.

    Args:
        model: A trained model file or a run folder.
        out: The new model file. The report goes beside it, into ``NAME-report``.
        to: Name of the preset. Without one it is ``lw-narrow`` or, with a budget, a plan that reaches the budget.
        budget: GMACs that the light model may need at the model's image size.
        data: Calibration images: a folder, or a data set, whose ``val`` split then gives the AP. Labels of calibration images are not read.
        images: The largest number of calibration images; from more, that many are drawn at random.
        fit_steps: Number of steps of the fit, if there are calibration images.
        rate: Learning rate of the fit.
        keep_pyramid, progress: As for :func:`lw_retinanet.lighten`.
        latency: Measure milliseconds of the full and the light head.
        seed: Seed for the choice of images and cells and for the order of the fit.
        device: ``auto``, ``cpu``, ``cuda``, ...

    Raises:
        InputError: if the model cannot be lightened so, the budget is met already or cannot be met, or the data cannot be used.
        DiskFullError: if there is no room for the model, before the work begins.
        OutputError: if the model file or the report cannot be written.
    """
    folder = _report_folder(model, out)
    if data is not None:
        existing(data, "data set")
    detector = open_detector(model, device=device)
    name, plan = named_plan(detector, to, budget)
    files = calibration_files(data, count=images, seed=seed) if data is not None else []
    held_out = _held_out(data, detector) if data is not None else None
    settings = LighteningSettings(fit=FitSettings(steps=fit_steps, rate=rate, seed=seed), own_output=not keep_pyramid, seed=seed)
    require_room(out, sum(tensor.nbytes for tensor in detector.model.state_dict().values()))
    lightened = lighten_detector(detector, plan, name=name, files=files, settings=settings, progress=progress)
    tables = detect_stages(lightened, held_out, progress=progress) if held_out is not None else {}
    metrics, comparisons = _measure_accuracy(tables, held_out) if held_out is not None else ({}, {})
    report = make_report(
        lightened,
        source=model.name,
        metrics=metrics,
        comparisons=comparisons,
        latency_ms=_measure_latency(lightened) if latency else {},
        evaluated_on=held_out.num_images if held_out is not None else 0,
    )
    notes = {**lightened.record.notes, "lightened": {"from": detector.name, **report.as_dict()}}
    save_model(out, lightened.detector.model, lightened.record.model_copy(update={"notes": notes}))
    # The report comes after the model: it would be nothing without it.
    write_report(report, folder)
    if held_out is not None:
        for stage, table in tables.items():
            write_results(table, held_out, folder / f"detections-{stage.replace(' ', '-')}.json")
        write_data_use(folder, scored={"val": held_out})
    return LighteningRun(model_file=out, report_folder=folder, report=report)


def _report_folder(model: Path, out: Path) -> Path:
    """The folder for the report. Raises an error before the work begins if the model file or the report cannot be written."""
    if out.suffix != ".safetensors":
        raise OutputError(f"{out}: a model file ends in .safetensors; choose another name")
    if out.is_dir() or (out.exists() and model.exists() and out.samefile(find_model_file(model))):
        raise OutputError(
            f"{out} is {'a folder' if out.is_dir() else 'the model to lighten itself'}; choose another name for the new model"
        )
    return output_folder(out.with_name(f"{out.stem}-report"))


def named_plan(detector: Detector, to: str | None, budget: float | None) -> tuple[str, HeadPlan]:
    """The plan with its name: that of the preset, which must be within the budget, or one that is found for the budget."""
    side, model = detector.conventions.input.size, detector.model
    if budget is not None and to is None:
        proposal = propose(model, (side, side), round(budget * 1e9))
        if proposal.is_met_already:
            raise InputError(f"the model needs {proposal.macs / 1e9:.2f} GMACs at {side} x {side}, within the budget already; ask for less")
        return f"{budget:g} GMACs", proposal.plan
    name = DEFAULT_PRESET if to is None else to
    plan = plan_of(name)
    if budget is not None:
        macs = profile(with_head(model, joined_plan(model.head, plan)), name=name, size_hw=(side, side)).macs
        if macs > budget * 1e9:
            raise InputError(
                f"{name} needs {macs / 1e9:.2f} GMACs at {side} x {side}, more than the {budget:g} of the budget; "
                "name no preset, and a plan is found"
            )
    return name, plan


def _held_out(data: Path, detector: Detector) -> Records | None:
    """The ``val`` split to measure AP on, checked before the work begins; None if there is none."""
    try:
        dataset = Dataset.open(data)
    except DataError:  # A folder of images, without annotations.
        return None
    return dataset.ready(dataset.held_out, classes=detector.categories) if dataset.held_out else None


def _measure_accuracy(tables: Mapping[str, DetectionTable], records: Records) -> tuple[Mapping[str, Metrics], Mapping[str, Comparison]]:
    """Metrics of every stage and its comparison with the full head, which is the first, by name of the stage."""
    full, *light = tables
    metrics = {name: evaluate(records, table) for name, table in tables.items()}
    comparisons = {name: compare(records, tables[full], tables[name]) for name in light if records.num_images >= MIN_IMAGES}
    return metrics, comparisons


def _measure_latency(lightened: Lightened) -> Mapping[str, Mapping[str, Mapping[str, float]]]:
    side = lightened.detector.conventions.input.size
    models = {"full": lightened.stages[0].model, "light": lightened.detector.model}
    return measure_latency(models, size_hw=(side, side), device=lightened.detector.device, rounds=LATENCY_ROUNDS)
