"""The whole main job in a few minutes: full and light head trained, scored and counted on embedded data, on one page."""

import logging
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lw_retinanet.config import Config, parse_config
from lw_retinanet.counting.cost_chart import save_cost_chart
from lw_retinanet.counting.profile import Profile, profile
from lw_retinanet.data.dataset import Dataset
from lw_retinanet.data.preview import preview
from lw_retinanet.data.sample import make_sample
from lw_retinanet.errors import RunFolderError
from lw_retinanet.evaluation.coco_metrics import Metrics
from lw_retinanet.files import write_text
from lw_retinanet.jobs.train import run_training
from lw_retinanet.progress import Progress
from lw_retinanet.weights.model_file import load_model

IMAGE_SIZE = 128
PRESETS = ("retinanet", "lw-v3")
SETTINGS: dict[str, dict[str, Any]] = {
    "model": {"backbone": "resnet18", "head_width": 64, "norm": "batch"},
    "data": {"image_size": IMAGE_SIZE, "augment": "flip", "workers": 0},
    "train": {"epochs": 5, "batch_size": 8, "rate": 1e-3, "ema": 0.98, "warmup_steps": 50},
}
log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Row:
    """One model's line in the table.

    Args:
        preset: its name.
        metrics: on the validation pictures.
        counted: its arithmetic at the size it was trained at.
        seconds: training and evaluation.
    """

    preset: str
    metrics: Metrics
    counted: Profile
    seconds: float


def quickstart_config(preset: str, seed: int) -> Config:
    """The settings of one of the two models."""
    values = {**SETTINGS, "model": {**SETTINGS["model"], "preset": preset}, "train": {**SETTINGS["train"], "seed": seed}}
    return parse_config(values, where="quickstart")


def quickstart(out: Path, *, seed: int = 0, progress: Progress | None = None) -> Path:
    """Run everything.

    Args:
        out: new or empty folder; gets ``data/``, a run folder for each model, pictures and ``results.md``.
        seed: of data, weights and order.
        progress: wraps the batches of an evaluation, to show a bar.

    Returns:
        Path of ``results.md``.

    Raises:
        RunFolderError: if the folder is not empty.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise RunFolderError(f"{out} is not empty; choose another output folder")
    started = time.monotonic()
    data = make_sample(out / "data", size=IMAGE_SIZE, seed=seed)
    preview(Dataset.open(data).read("train"), out / "pictures" / "data", count=16, seed=seed)
    rows = []
    for preset in PRESETS:
        begun = time.monotonic()
        run = run_training(quickstart_config(preset, seed), data, out / preset, progress=progress)
        assert run.metrics is not None
        model = load_model(run.folder).model
        counted = profile(model, name=preset, size_hw=(IMAGE_SIZE, IMAGE_SIZE))
        rows.append(Row(preset=preset, metrics=run.metrics, counted=counted, seconds=time.monotonic() - begun))
        log.info("%s: AP50 %.3f after %.0f s", preset, run.metrics.AP50, rows[-1].seconds)
    save_cost_chart([row.counted for row in rows], out / "pictures" / "cost.png")
    page = out / "results.md"
    write_text(page, _page(rows, seconds=time.monotonic() - started))
    return page


def _page(rows: list[Row], *, seconds: float) -> str:
    full, light = rows
    lines = [
        "# Quickstart: full head against light head",
        "",
        "Two detectors with the same backbone (ResNet-18, from nothing), data, seed and recipe. They differ in D3, the head on the finest",
        f"pyramid level. Pictures of {IMAGE_SIZE} pixels, made by this program; both trained and measured just now, on this machine.",
        "",
        "| model | AP | AP50 | AP small | AP medium | AP large | MACs | of them D3 | parameters | seconds |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in rows:
        m, counted = row.metrics, row.counted
        d3 = counted.blocks["D3"]
        lines.append(
            f"| {row.preset} | {m.AP:.3f} | {m.AP50:.3f} | {m.APs:.3f} | {m.APm:.3f} | {m.APl:.3f} | {counted.macs / 1e6:.1f} M "
            f"| {counted.share(d3):.1%} | {counted.params / 1e6:.2f} M | {row.seconds:.0f} |"
        )
    lines += [
        "",
        f"The light head takes {full.counted.macs / light.counted.macs:.2f} times fewer multiply-accumulates in all, and "
        f"{full.counted.blocks['D3'].macs / light.counted.blocks['D3'].macs:.1f} times fewer in D3. AP changed by "
        f"{light.metrics.AP - full.metrics.AP:+.3f}; one run each, so a difference of a few hundredths may be chance. "
        "AP is -1 where there is nothing to find.",
        "",
        "![where the arithmetic goes](pictures/cost.png)",
        "",
    ]
    for row in rows:
        lines += [
            f"## {row.preset}",
            "",
            f"![detections of {row.preset}]({row.preset}/pictures/detections.jpg)",
            "",
            f"![training curves of {row.preset}]({row.preset}/pictures/curves.png)",
            "",
            f"![precision and recall of {row.preset}]({row.preset}/pictures/precision_recall.png)",
            "",
        ]
    lines += [
        "## Data",
        "",
        "![training pictures with their boxes](pictures/data/contact_sheet.jpg)",
        "",
        f"Everything took {seconds:.0f} s. Next: `lw-retinanet train YOUR_DATA --set model.backbone_weights=imagenet`.",
        "",
    ]
    return "\n".join(lines)
