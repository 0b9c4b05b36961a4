"""The whole main job in two minutes: a detector trained on embedded data, lightened, scored and counted, on one page."""

import logging
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lw_retinanet.config import Config, parse_config
from lw_retinanet.counting.cost_chart import save_cost_chart
from lw_retinanet.counting.profile import Profile, profile
from lw_retinanet.data.sample import make_sample
from lw_retinanet.errors import RunFolderError
from lw_retinanet.evaluation.coco_metrics import Metrics
from lw_retinanet.files import output_folder, write_text
from lw_retinanet.jobs.data import preview_data
from lw_retinanet.jobs.evaluate import run_evaluation
from lw_retinanet.jobs.lighten import lighten_file
from lw_retinanet.jobs.train import run_training
from lw_retinanet.progress import Progress
from lw_retinanet.weights.model_file import load_model

IMAGE_SIZE = 128
FULL, LIGHT = "retinanet", "lw-v3"
CALIBRATION_IMAGES, FIT_STEPS = 600, 700
# One anchor a cell with ATSS learns fastest here: nine anchors, of 32 to 51 pixels on P3, are too large for half of the shapes.
SETTINGS: dict[str, dict[str, Any]] = {
    "model": {"backbone": "resnet18", "head_width": 64, "norm": "batch", "anchors": "one"},
    "data": {"image_size": IMAGE_SIZE, "augment": "flip", "workers": 0},
    "train": {"epochs": 4, "batch_size": 8, "rate": 1e-3, "ema": 0.98, "warmup_steps": 50},
}
log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class QuickstartModel:
    """One of the two models, measured.

    Args:
        preset: The name of its head.
        metrics: The metrics on the validation images.
        cost: The arithmetic at the size that it was trained at.
        seconds: The time of training or lightening, and evaluation.
    """

    preset: str
    metrics: Metrics
    cost: Profile
    seconds: float


@dataclass(frozen=True, kw_only=True)
class Quickstart:
    """What the quickstart made.

    Args:
        page: The path of ``results.md``.
        models: The full model and the light one.
    """

    page: Path
    models: tuple[QuickstartModel, ...]


def quickstart_config(seed: int) -> Config:
    """The settings of the training."""
    values = {**SETTINGS, "model": {**SETTINGS["model"], "preset": FULL}, "train": {**SETTINGS["train"], "seed": seed}}
    return parse_config(values, where="quickstart")


def run_quickstart(out: Path, *, seed: int = 0, progress: Progress | None = None) -> Quickstart:
    """Train a model on embedded data, lighten it without labels, and measure both.

    Args:
        out: A new or empty folder. It gets ``data/``, a run folder for each model, figures and ``results.md``.
        seed: Seed for data, weights and order.
        progress: Wraps what takes long, for instance to show a bar.

    Raises:
        RunFolderError: if the folder is not empty.
        OutputError: if it cannot be written to.
    """
    output_folder(out)
    if out.exists() and any(out.iterdir()):
        raise RunFolderError(f"{out} is not empty; choose another output folder")
    started = time.monotonic()
    data = make_sample(out / "data", size=IMAGE_SIZE, seed=seed)
    preview_data(data, out / "pictures" / "data", split="train", count=16, seed=seed)
    models = (_train(data, out / FULL, seed, progress), _lighten(out / FULL, data, out / LIGHT, seed, progress))
    save_cost_chart([model.cost for model in models], out / "pictures" / "cost.png")
    page = out / "results.md"
    write_text(page, _page(*models, seconds=time.monotonic() - started))
    return Quickstart(page=page, models=models)


def _train(data: Path, folder: Path, seed: int, progress: Progress | None) -> QuickstartModel:
    started = time.monotonic()
    run = run_training(quickstart_config(seed), data, folder, progress=progress)
    assert run.metrics is not None
    return _measured(FULL, run.folder, run.metrics, started)


def _lighten(full: Path, data: Path, folder: Path, seed: int, progress: Progress | None) -> QuickstartModel:
    started = time.monotonic()
    file = folder / "model.safetensors"
    how: dict[str, Any] = {"images": CALIBRATION_IMAGES, "fit_steps": FIT_STEPS, "latency": False}
    lighten_file(full, file, to=LIGHT, data=data, seed=seed, progress=progress, **how)
    return _measured(LIGHT, file, run_evaluation(file, data, out=folder, progress=progress), started)


def _measured(preset: str, model: Path, metrics: Metrics, started: float) -> QuickstartModel:
    cost = profile(load_model(model).model, name=preset, size_hw=(IMAGE_SIZE, IMAGE_SIZE))
    seconds = time.monotonic() - started
    log.info("%s: AP50 %.3f after %.0f s", preset, metrics.AP50, seconds)
    return QuickstartModel(preset=preset, metrics=metrics, cost=cost, seconds=seconds)


def _page(full: QuickstartModel, light: QuickstartModel, *, seconds: float) -> str:
    lines = [
        "# Quickstart: full head against light head",
        "",
        f"`{full.preset}` was trained from nothing just now: ResNet-18, {IMAGE_SIZE} pixels, one anchor a cell with ATSS.",
        f"`{light.preset}` is the same detector after lightening without labels: D3, its head on the finest level, is light.",
        "The images are made by this program.",
        "",
        "| model | AP | AP50 | AP small | AP medium | AP large | MACs | of them D3 | parameters | seconds |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in (full, light):
        m, cost = row.metrics, row.cost
        d3 = cost.blocks["D3"]
        lines.append(
            f"| {row.preset} | {m.AP:.3f} | {m.AP50:.3f} | {m.APs:.3f} | {m.APm:.3f} | {m.APl:.3f} | {cost.macs / 1e6:.1f} M "
            f"| {cost.share(d3):.1%} | {cost.params / 1e6:.2f} M | {row.seconds:.0f} |"
        )
    lines += [
        "",
        f"The light head takes {full.cost.macs / light.cost.macs:.2f} times fewer multiply-accumulates in all, and "
        f"{full.cost.blocks['D3'].macs / light.cost.blocks['D3'].macs:.1f} times fewer in D3. AP changed by "
        f"{light.metrics.AP - full.metrics.AP:+.3f}. "
        "AP is -1 where there is nothing to find.",
        "",
        "![where the arithmetic goes](pictures/cost.png)",
        "",
    ]
    history = {full.preset: ("training curves", "pictures/curves.png"), light.preset: ("AP after each stage", "model-report/stages.png")}
    for row in (full, light):
        words, figure = history[row.preset]
        lines += [
            f"## {row.preset}",
            "",
            f"![detections of {row.preset}]({row.preset}/pictures/detections.jpg)",
            "",
            f"![{words} of {row.preset}]({row.preset}/{figure})",
            "",
            f"![precision and recall of {row.preset}]({row.preset}/pictures/precision_recall.png)",
            "",
        ]
    lines += [
        "## Data",
        "",
        "![training images with their boxes](pictures/data/contact_sheet.jpg)",
        "",
        f"Everything took {seconds:.0f} s. Next: `lw-retinanet lighten YOUR_MODEL`, or `lw-retinanet train YOUR_DATA` with the setting "
        "`model.backbone_weights=imagenet`.",
        "",
    ]
    return "\n".join(lines)
