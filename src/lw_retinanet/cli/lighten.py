"""``lw-retinanet lighten``."""

from pathlib import Path
from typing import TYPE_CHECKING

import typer

from lw_retinanet.heads import presets_in_words

if TYPE_CHECKING:
    from lw_retinanet.data.records import Records
    from lw_retinanet.detection.detector import Detector
    from lw_retinanet.heads import HeadPlan
    from lw_retinanet.lightening.report import LighteningReport
    from lw_retinanet.lightening.stages import Lightened


def lighten_command(
    model: Path = typer.Argument(help="Trained model file or run folder (foreign weights: convert them first)."),
    to: str = typer.Option("", help=f"Preset: {presets_in_words()} [default: lw-narrow, without --budget]."),
    budget: float | None = typer.Option(None, min=0.0, help="GMACs to stay within at the model's size; without --to the plan is found."),
    data: Path | None = typer.Option(
        None, help="Pictures to fit on, labels are not used: a folder or a data set, whose val split then gives the AP."
    ),
    out: Path = typer.Option(..., help="New model file (.safetensors); the report goes beside it, into NAME-report/."),
    images: int = typer.Option(512, min=1, help="Calibration images, drawn at random if there are more."),
    fit_steps: int = typer.Option(1500, min=0, help="Steps of the fit; 0 stops after the closed form."),
    rate: float = typer.Option(3e-5, min=1e-7, max=1.0, help="Learning rate of the fit."),
    keep_pyramid: bool = typer.Option(False, help="Leave the convolution that makes P3 as it is, although only D3 reads it."),
    latency: bool = typer.Option(True, help="Measure milliseconds of the full and the light head."),
    seed: int = typer.Option(0, min=0, help="Of the choice of images, cells and order."),
    device: str = typer.Option("auto", help="auto, cpu or cuda."),
    json: bool = typer.Option(False, "--json", help="Print one JSON object."),
) -> None:
    """Make a trained detector cheaper: its finest head gets towers of its own, fitted to the old ones; all else stays, weight by weight."""
    from lw_retinanet.api import load
    from lw_retinanet.cli.console import print_json, with_bar
    from lw_retinanet.files import existing
    from lw_retinanet.lightening.calibration_images import calibration_files
    from lw_retinanet.lightening.filling import LighteningSettings
    from lw_retinanet.lightening.fitting import FitSettings
    from lw_retinanet.lightening.report import write_report
    from lw_retinanet.lightening.stages import lighten_detector
    from lw_retinanet.weights.model_file import save_model

    folder = _report_folder(model, out)
    if data:
        existing(data, "data set")
    detector = load(model, device=device)
    name, plan = _plan(detector, to, budget)
    files = calibration_files(data, count=images, seed=seed) if data else []
    held_out = _held_out(data, detector) if data else None
    settings = LighteningSettings(fit=FitSettings(steps=fit_steps, rate=rate, seed=seed), own_output=not keep_pyramid, seed=seed)

    lightened = lighten_detector(detector, plan, name=name, files=files, settings=settings, progress=with_bar)
    report = _measure(lightened, str(model), held_out, folder, latency=latency)
    write_report(report, folder)
    notes = {**lightened.record.notes, "lightened": {"from": detector.name, **report.as_dict()}}
    save_model(out, lightened.detector.model, lightened.record.model_copy(update={"notes": notes}))
    if json:
        print_json(report.as_dict())
    else:
        print("\n".join(report.lines()))
        if not data:
            print("Filled from the old weights alone, which costs much AP; with --data PICTURES the new towers are fitted, without labels.")
        print(f"model: {out} (both heads: predict --head full|light); report: {folder / 'report.html'}")


def _report_folder(model: Path, out: Path) -> Path:
    """Where the report goes, after a look at whether model and report can be written."""
    from lw_retinanet.errors import OutputError
    from lw_retinanet.files import output_folder
    from lw_retinanet.weights.model_file import find_model_file

    if out.suffix != ".safetensors":
        raise OutputError(f"--out {out}: a model file ends in .safetensors")
    folder = out.with_name(f"{out.stem}-report")
    if out.is_dir() or (out.exists() and model.exists() and out.samefile(find_model_file(model))):
        raise OutputError(f"--out {out} is {'a folder' if out.is_dir() else 'the model to lighten itself'}; choose another name")
    return output_folder(folder)


def _plan(detector: "Detector", to: str, budget: float | None) -> tuple[str, "HeadPlan"]:
    """The plan and its name: the one that was asked for, which must be within the budget if there is one, or what a budget leads to."""
    from lw_retinanet.errors import ConfigError, InputError
    from lw_retinanet.heads import plan_of
    from lw_retinanet.lightening.budget import propose

    side = detector.conventions.input.size
    if budget is not None and not to:
        proposal = propose(detector.model, (side, side), round(budget * 1e9))
        if proposal.is_met_already:
            raise InputError(f"the model needs {proposal.macs / 1e9:.2f} GMACs at {side} x {side}, within the budget already; ask for less")
        return f"{budget:g} GMACs", proposal.plan
    to = to or "lw-narrow"
    try:
        plan = plan_of(to)
    except ConfigError as error:
        raise ConfigError(f"--to: {error}") from None
    if budget is not None:
        _require_within(detector, to, plan, budget)
    return to, plan


def _require_within(detector: "Detector", name: str, plan: "HeadPlan", budget: float) -> None:
    from lw_retinanet.counting.profile import profile, with_head
    from lw_retinanet.errors import InputError
    from lw_retinanet.lightening.surgery import joined_plan

    side, model = detector.conventions.input.size, detector.model
    macs = profile(with_head(model, joined_plan(model.head, plan)), name=name, size_hw=(side, side)).macs
    if macs > budget * 1e9:
        raise InputError(
            f"{name} needs {macs / 1e9:.2f} GMACs at {side} x {side}, more than the {budget:g} of --budget; "
            "leave --to out, and a plan is found"
        )


def _held_out(data: Path, detector: "Detector") -> "Records | None":
    """The val split to measure AP on, if there is one; looked at before the work rather than after it."""
    from lw_retinanet.data.dataset import Dataset
    from lw_retinanet.errors import DataError

    try:
        dataset = Dataset.open(data)
    except DataError:  # a folder of pictures
        return None
    return dataset.ready(dataset.held_out, classes=detector.categories) if dataset.held_out else None


def _measure(lightened: "Lightened", source: str, records: "Records | None", folder: Path, *, latency: bool) -> "LighteningReport":
    from lw_retinanet.cli.console import with_bar
    from lw_retinanet.counting.latency import measure_latency
    from lw_retinanet.evaluation.coco_metrics import evaluate
    from lw_retinanet.evaluation.detections import write_results
    from lw_retinanet.evaluation.paired import MIN_IMAGES, compare
    from lw_retinanet.lightening.report import make_report
    from lw_retinanet.lightening.stage_detections import detect_stages

    metrics, comparisons = {}, {}
    if records is not None:
        tables = detect_stages(lightened, records, progress=with_bar)
        names = list(tables)
        for name, table in tables.items():
            metrics[name] = evaluate(records, table)
            if name != names[0] and records.num_images >= MIN_IMAGES:
                comparisons[name] = compare(records, tables[names[0]], table)
        for name, table in tables.items():
            write_results(table, records, folder / f"detections-{name.replace(' ', '-')}.json")
    times: dict[str, dict[str, dict[str, float]]] = {}
    if latency:
        side = lightened.detector.conventions.input.size
        models = {"full": lightened.stages[0].model, "light": lightened.detector.model}
        times = measure_latency(models, size_hw=(side, side), device=lightened.detector.device, rounds=10)
    return make_report(
        lightened,
        source=Path(source).name,
        metrics=metrics,
        comparisons=comparisons,
        latency_ms=times,
        evaluated_on=records.num_images if records is not None else 0,
    )
