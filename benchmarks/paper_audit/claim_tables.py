"""Tables of the page on accuracy, schedule, initialisation and the remaining numbers of the text."""

import math
from itertools import pairwise
from typing import Literal

from torch import nn

from lw_retinanet.conventions import LEVELS
from lw_retinanet.counting.macs import STAGES, count_blocks
from lw_retinanet.heads import D_BLOCKS, HeadPlan
from lw_retinanet.models.blocks import UNITS
from lw_retinanet.training.schedule import linear_rate, paper_iterations, step_positions

from .cost_tables import giga, table
from .printed import BBOX, LIGHT, METRICS, SCALING, titled
from .readings import FULL_PREDICTION, PHOTOGRAPHS, PYTORCH_STRIDE, RELEASED, STANDARD, Reading, make, total
from .scaling_line import Curve, advantages, curved, light_points, neighbours, scaling_line, straight

TRAIN_IMAGES = 118_287  # of COCO's train2017


def ap_table() -> list[str]:
    line, rows = scaling_line(STANDARD), []
    for name, (gmacs, ap) in light_points(STANDARD).items():
        (low, fewer), (high, more) = neighbours(gmacs, line)
        there = straight(gmacs, line)
        arithmetic = f"{fewer} + {more - fewer:.1f} x ({gmacs:.2f} - {low:.2f}) / ({high:.2f} - {low:.2f}) = {there:.2f}"
        rows.append([titled(name), f"{gmacs:.2f}", arithmetic, str(ap), f"{ap - there:+.2f}"])
    return table(["row", "GMACs", "AP of a smaller image at this cost", "AP of the row", "difference"], rows)


def claim_table() -> list[str]:
    ways: list[tuple[str, Reading | None, Curve]] = [
        ("the paper's GFLOPs: 156, 119, 88; 135, 114, 89", None, straight),
        (STANDARD.name, STANDARD, straight),
        ("the same, a parabola through the scaling rows", STANDARD, curved),
        (RELEASED.name, RELEASED, straight),
        (FULL_PREDICTION.name, FULL_PREDICTION, straight),
        (PYTORCH_STRIDE.name, PYTORCH_STRIDE, straight),
        (PHOTOGRAPHS.name, PHOTOGRAPHS, straight),
    ]
    rows = [[name, *(f"{value:+.2f}" for value in advantages(reading, curve).values())] for name, reading, curve in ways]
    return table(["counted as", *map(titled, LIGHT)], rows)


def metrics_table() -> list[str]:
    rows = [[f"RetinaNet {scale}", *map(str, row)] for scale, row in SCALING.items()]
    rows += [[titled(name), *map(str, row)] for name, row in LIGHT.items()]
    columns = [advantages(STANDARD, metric=metric) for metric in range(len(METRICS))]
    rows += [[f"{titled(name)}, difference at equal MACs", *(f"{column[name]:+.2f}" for column in columns)] for name in LIGHT]
    return table(["row", *METRICS], rows)


def slope_table() -> list[str]:
    lines = {
        "smaller image": [(f"{scale}", *point) for scale, point in zip(SCALING, scaling_line(STANDARD), strict=True)],
        "lighter block": [("800", *scaling_line(STANDARD)[0]), *((titled(name), *point) for name, point in light_points(STANDARD).items())],
    }
    rows = []
    for line, points in lines.items():
        for (start, more, before), (end, less, after) in pairwise(points):
            rows.append(
                [
                    line,
                    f"{start} to {end}",
                    f"{more - less:.2f}",
                    f"{before - after:.1f}",
                    f"{10 * (before - after) / (more - less):.2f}",
                ]
            )
    return table(["line", "step", "GMACs saved", "AP lost", "AP lost for 10 GMACs"], rows)


def schedule_table() -> list[str]:
    ours = STANDARD.macs("retinanet") / STANDARD.macs("lw-v3")
    cases = [
        ("RetinaNet's own: 8 GPUs of 2 images", 16, 1.0),
        ("4 GPUs: half the rate, twice the iterations", 8, 1.0),
        (f"LW-v3 on 4 GPUs, {ours:.2f} times that (counted)", 8, ours),
        ("LW-v3 on 4 GPUs, 1.8 times that (paper's FLOPs)", 8, 1.8),
        ("the same, if the epochs were doubled as well", 8, 3.6),
    ]
    rows = []
    for name, images, factor in cases:
        iterations = paper_iterations(90_000, images_per_step=images, macs_reduction=factor)
        rows.append(_run(name, images, linear_rate(images), iterations, step_positions(iterations)))
    rows.append(_run("released configuration: LW-v3 on 4 GPUs", 8, 0.005, 270_000, (180_000, 240_000)))
    return table(["run", "rate", "iterations", "rate falls at", "epochs", "times RetinaNet's own"], rows)


def _run(name: str, images: int, rate: float, iterations: int, falls: tuple[int, int]) -> list[str]:
    seen = iterations * images
    return [name, f"{rate:g}", f"{iterations:,}", f"{falls[0]:,}, {falls[1]:,}", f"{seen / TRAIN_IMAGES:.1f}", f"{seen / 1_440_000:.2f}"]


def passed_on(block: str, init: Literal["paper", "fan_in"]) -> float:
    """Root mean square of an untrained tower's output over that of its input, on a map without borders.

    A convolution of n inputs and weights of variance v turns a mean square s into n v s; a ReLU halves what is symmetric about zero.
    The initialisations are those of :class:`lw_retinanet.models.head.Head`.
    """
    square, channels, width = 1.0, 256, D_BLOCKS[block].width or 256
    for name in D_BLOCKS[block].units:
        modules = list(UNITS[name](channels, width).modules())
        for conv in (module for module in modules if isinstance(module, nn.Conv2d)):
            inputs = conv.in_channels // conv.groups * math.prod(conv.kernel_size)
            square *= inputs * 0.01**2 if init == "paper" else 1.0 if conv.groups > 1 else 2.0
        square *= 0.5 if any(isinstance(module, nn.ReLU) for module in modules) else 1.0
        channels = width
    return math.sqrt(square)


def signal_table() -> list[str]:
    towers = {"original": "4 x 3x3", "v1": "4 x (depthwise 3x3, 1x1)", "v2": "1x1, 3x3, 1x1, 3x3", "v3": "4 x 1x1"}
    rows = [[name, tower, f"{passed_on(name, 'paper'):.1e}", f"{passed_on(name, 'fan_in'):.1f}"] for name, tower in towers.items()]
    return table(["block", "tower", "normal(0, 0.01)", "fan-in"], rows)


def other_table() -> list[str]:
    blocks = count_blocks(make(HeadPlan()), (800, 800))
    macs, pytorch, d3 = total(blocks), PYTORCH_STRIDE.macs("retinanet"), blocks["D3"].macs
    small = count_blocks(make(HeadPlan()), (224, 224))
    resnet = sum(small[stage].macs for stage in STAGES) + 2048 * 1000
    weights = sum(cost.params for cost in blocks.values())
    backbone, pyramid = (100 * sum(blocks[name].params for name in names) / weights for names in (STAGES, LEVELS))
    own = advantages(None)
    v1, v3, lost = STANDARD.macs("bbox-v1"), STANDARD.macs("bbox-v3"), BBOX["bbox-v3"][0] - BBOX["bbox-v1"][0]
    rows = [
        ["1, 3.1", "D3 takes 48 % of the FLOPs", f"{100 * d3 / macs:.1f} % (Caffe stride), {100 * d3 / pytorch:.1f} % (PyTorch)"],
        ["3.1", "half of D3 is 24 % of the network", f"{50 * d3 / macs:.1f} %, {50 * d3 / pytorch:.1f} %"],
        ["1; 2.2", "RetinaNet: 150; 156 GFLOPs", f"{giga(macs)}, {giga(pytorch)} GMACs"],
        ["abstract; 1", "1 to 2; possibly 3 orders above classification", f"{macs / resnet:.0f} x ResNet-50 at 224 ({giga(resnet)} GMACs)"],
        ["3.2.2", "the backbone holds most weights", f"yes: {backbone:.0f} %, pyramid {pyramid:.0f} %"],
        ["3.2.2", "weights grow by less than 1 %", "for D-block-v1 and -v3 in the box branch; for no row of Table 3"],
        ["abstract", "+0.1 AP at 1.15x; +0.3 at 1.8x", f"{own['lw-v1']:+.2f}; {own['lw-v3']:+.2f} from its own columns; section 6"],
        ["4.2", "v1 0.8 AP below v3, FLOPs alike", f"{lost:.1f} from Table 1; {giga(v1)}, {giga(v3)} GMACs: alike"],
        ["4.2; Table 1", "D-block-v2 saves 15; 6.4 %", f"{100 * (1 - STANDARD.macs('bbox-v2') / macs):.1f} %"],
        ["1; Table 3", "YOLOv3 (33 AP) 2.5 below RetinaNet", f"35.7 - 33.0 = {35.7 - 33.0:.1f}"],
        ["1; 2.2", "YOLOv2: 30; 63 GFLOPs, 21; 21.6 AP. YOLOv3: 140; 141", "not counted here; the sections disagree with each other"],
        ["1; 2.1", "Faster R-CNN: 850; over 800, at least 5 x RetinaNet", f"not counted here; 850 / 156 = {850 / 156:.1f}"],
        ["abstract", "light detectors: 22 to 25 AP", "taken from other papers, not checked"],
        ["", "latency", "the paper gives none"],
    ]
    return table(["section", "the paper", "here"], rows)
