"""The headers of configs/coco: what each row of the paper's tables will cost on COCO, worked out by the code that runs it.

``python benchmarks/coco_recipes.py`` compares the files with what this code says, ``--write`` brings them up to date. COCO itself is not
needed: every image is taken to be 480 x 640, its commonest size. ``train COCO --config FILE --dry-run`` counts the real ones.
"""

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from lw_retinanet.config import load_config, parse_config
from lw_retinanet.data.records import Category
from lw_retinanet.training.run_plan import RunPlan, plan_run
from lw_retinanet.weights.start import start_from_settings

ROOT = Path(__file__).parents[1]
FOLDER, DOCUMENT = ROOT / "configs" / "coco", ROOT / "docs" / "coco.md"
TRAIN_IMAGES, VAL_IMAGES, CLASSES = 118_287, 5_000, 80
IMAGE_HW = (480, 640)
GPUS = (8, 4)
# Sustained multiply-accumulates a second of one GPU. The first is what 10 images a second of the full model at 800 come to, Detectron2's
# published rate in fp32 (80 on 8 V100, at sides of 640 to 800); the second a third of the 339 TFLOP/s that MLPerf's best RetinaNet trains
# with on an H100. Neither was measured with this code.
V100_IMAGES = 10.0
H100_MACS = 339e12 / 2 / 3
WIDTH = 16


@dataclass(frozen=True, kw_only=True)
class Row:
    """A row of the paper's tables.

    Args:
        title: what it is and where it stands.
        ap: the paper's, with what it was measured on.
        remarks: what a reader should know.
    """

    title: str
    ap: str
    remarks: tuple[str, ...] = ()


LONGER = "The lightened model trains longer by its reduction, as the paper does; its own count of FLOPs would make that {paper}x."
SIZE = "The longer side is limited to 5/3 of the shorter one, as at 800 pixels (1333), so that the arithmetic follows the area alone."
AS_LONG = "The paper took this row from the RetinaNet paper, so it is not trained longer. To do so: --set train.base_steps=STEPS."
ROWS = {
    "retinanet-800": Row(title="RetinaNet at 800 pixels: the baseline of Tables 1 and 3", ap="35.7 (AP50 55.0, AP75 38.5)"),
    "retinanet-700": Row(title="RetinaNet at 700 pixels: Table 3, scaling", ap="35.1 (AP50 54.2, AP75 37.7)", remarks=(SIZE, AS_LONG)),
    "retinanet-600": Row(title="RetinaNet at 600 pixels: Table 3, scaling", ap="34.3 (AP50 53.2, AP75 36.9)", remarks=(SIZE, AS_LONG)),
    "lw-v1": Row(
        title="LW-RetinaNet-v1, D-block-v2 in the class branch: Table 3",
        ap="35.4 (AP50 54.4, AP75 38.2)",
        remarks=(LONGER.format(paper=1.15),),
    ),
    "lw-v2": Row(
        title="LW-RetinaNet-v2, D-block-v3 in the class branch: Table 3",
        ap="35.1 (AP50 54.3, AP75 37.7)",
        remarks=(LONGER.format(paper=1.4),),
    ),
    "lw-v3": Row(
        title="LW-RetinaNet-v3, D-block-v3 in both branches: Table 3",
        ap="34.6 (AP50 53.1, AP75 37.3)",
        remarks=(
            LONGER.format(paper=1.8),
            "The authors' released code trains 270,000 steps on 4 GPUs (1.5x), rate falling at 180,000 and 240,000:",
            "--set train.base_steps=null --set train.schedule=steps --set train.steps=270000",
        ),
    ),
    "bbox-v1": Row(
        title="D-block-v1 in the box branch: Table 1",
        ap="34.3",
        remarks=(
            "With this initialisation, the paper's, little of the signal passes the four blocks; for fan-in: --set model.init=fan_in_light",
        ),
    ),
    "bbox-v2": Row(title="D-block-v2 in the box branch: Table 1", ap="35.6"),
    "bbox-v3": Row(
        title="D-block-v3 in the box branch: Table 1", ap="35.1", remarks=("The table's 89 GFLOPs are those of both branches, not of one.",)
    ),
    "lw-narrow": Row(
        title="Our own: 1x1 to 96 channels, four 3x3, in both branches, at the cost of LW-RetinaNet-v3",
        ap="none; LW-RetinaNet-v3, of the same cost, has 34.6",
        remarks=("The recipe is that of the other rows, except that the new towers are initialised by fan-in.",),
    ),
}


def plan(name: str, processes: int) -> RunPlan:
    """The run of a file of ``configs/coco`` on so many GPUs."""
    path = FOLDER / f"{name}.yaml"
    config = parse_config(load_config(path), where=str(path)).resolved()
    # Nothing is counted by weights, so none are fetched.
    bare = config.model_copy(update={"model": config.model.model_copy(update={"backbone_weights": "none"})})
    categories = tuple(Category(id=number, name=str(number)) for number in range(CLASSES))
    with torch.device("meta"):
        model = start_from_settings(bare, categories).model
    sizes_hw = np.tile(np.array(IMAGE_HW, np.int32), (TRAIN_IMAGES, 1))
    return plan_run(config, model, sizes_hw, name=config.model.preset, processes=processes)


def header(name: str, v100_macs: float) -> str:
    """The comment above the settings of a file.

    Args:
        name: of the file, without suffix.
        v100_macs: see ``V100_IMAGES``.
    """
    row = ROWS[name]
    plans = {gpus: plan(name, gpus) for gpus in GPUS}
    first = plans[GPUS[0]]
    size = first.size_hw
    less = f", {first.macs_reduction:.3f}x less than with RetinaNet's own head" if first.macs_reduction > 1 else ""
    command = f"torchrun --standalone --nproc-per-node {GPUS[0]} -m lw_retinanet.cli.main train COCO"
    facts = [
        ("Command", command),
        ("", f"  --config configs/coco/{name}.yaml --out runs/{name}"),
        (
            "",
            f"{GPUS[1]} GPUs: the same with --nproc-per-node {GPUS[1]}; the plan alone: train ... --dry-run --processes {GPUS[1]}",
        ),
        ("Images", f"{TRAIN_IMAGES:,} to train on (train2017), {VAL_IMAGES:,} to evaluate on (val2017)"),
    ]
    for gpus, run in plans.items():
        one, two = run.rate_falls_at
        length = f"{run.steps:,} steps of {run.images_per_step} images, {run.epochs:.2f} epochs"
        facts.append((f"{gpus} GPUs", f"{length}; rate {run.rate:g}, a tenth from {one:,}, a hundredth from {two:,}"))
    facts += [
        ("Forward", f"{first.macs / 1e9:.2f} GMAC an image of {size[0]} x {size[1]}{less}"),
        (
            "Training",
            f"{first.training_macs_per_image / 1e9:.1f} GMAC an image: frozen stages once, all else 3 times (forward, two gradients)",
        ),
        ("Whole run", f"{first.total_macs / 1e18:.3f} EMAC"),
    ]
    for what, rate in (("V100, fp32", v100_macs), ("H100, bf16", H100_MACS)):
        hours = ", ".join(f"{run.total_macs / rate / gpus / 3600:.1f} on {gpus}" for gpus, run in plans.items())
        facts.append(("Hours", f"{hours} (estimate: {what}, {rate / 1e12:.1f} TMAC/s a GPU, not measured)"))
    facts.append(("AP", f"the paper's, on test-dev: {row.ap}"))
    lines = [f"{row.title}.", "", *(f"{label:<{WIDTH - 4}}{text}" for label, text in facts)]
    if row.remarks:
        lines += ["", *row.remarks]
    return "".join(f"# {line}".rstrip() + "\n" for line in lines)


def table() -> str:
    """The rows side by side, for docs/coco.md."""
    lines = [
        "| file | forward, GMAC | reduction | steps on 8 GPUs | on 4 GPUs | epochs | whole run, EMAC | paper's AP |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for name, row in ROWS.items():
        eight, four = (plan(name, gpus) for gpus in GPUS)
        cells = [
            f"`{name}.yaml`",
            f"{eight.macs / 1e9:.1f}",
            f"{eight.macs_reduction:.3f}x",
            f"{eight.steps:,}",
            f"{four.steps:,}",
            f"{eight.epochs:.2f}",
            f"{eight.total_macs / 1e18:.3f}",
            row.ap.partition(" ")[0].rstrip(";"),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "".join(f"{line}\n" for line in lines)


def with_table(text: str) -> str:
    """The document with its table brought up to date."""
    before, start, rest = text.partition("<!-- rows -->\n")
    _, end, after = rest.partition("<!-- /rows -->")
    assert start
    assert end
    return f"{before}{start}{table()}{end}{after}"


def v100_macs() -> float:
    """Multiply-accumulates a second behind ``V100_IMAGES``."""
    return V100_IMAGES * plan("retinanet-800", 1).training_macs_per_image


def settings_text(text: str) -> str:
    """A file without its header."""
    lines = text.splitlines(keepends=True)
    first = next((number for number, line in enumerate(lines) if not line.startswith("#")), len(lines))
    return "".join(lines[first:])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true", help="write the headers into the files")
    arguments = parser.parse_args()
    rate, stale = v100_macs(), []
    for name in ROWS:
        path = FOLDER / f"{name}.yaml"
        text = path.read_text(encoding="utf-8")
        wanted = header(name, rate) + settings_text(text)
        if text == wanted:
            continue
        stale.append(name)
        if arguments.write:
            path.write_text(wanted, encoding="utf-8")
    text = DOCUMENT.read_text(encoding="utf-8")
    if (wanted := with_table(text)) != text:
        stale.append(DOCUMENT.name)
        if arguments.write:
            DOCUMENT.write_text(wanted, encoding="utf-8")
    print(f"{'written' if arguments.write else 'out of date'}: {', '.join(stale) or 'none'}")
    return 0 if arguments.write or not stale else 1


if __name__ == "__main__":
    sys.exit(main())
