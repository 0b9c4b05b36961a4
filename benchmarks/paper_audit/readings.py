"""What the paper leaves open, read in every way that we could think of, and counted."""

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from pydantic import TypeAdapter
from torch import nn

from lw_retinanet.conventions import Conventions
from lw_retinanet.counting.macs import Cost, count_blocks
from lw_retinanet.heads import HeadPlan, TowerPlan, block_tower, plan_of
from lw_retinanet.models.build import build, meta_copy
from lw_retinanet.models.head import Head
from lw_retinanet.models.retinanet import RetinaNet

Stride = Literal["1x1", "3x3"]  # the convolution of a bottleneck that strides
CAFFE: Stride = "1x1"
PYTORCH: Stride = "3x3"
LIGHT_PREDICTION = {"v1": "dw3x3+1x1", "v2": "1x1", "v3": "1x1"}
_PLANS = TypeAdapter(HeadPlan)
_BLOCKS = {"lw-v1": ("v2", "cls"), "lw-v2": ("v3", "cls"), "lw-v3": ("v3", "cls bbox")}
_BLOCKS |= {f"bbox-{block}": (block, "bbox") for block in ("v1", "v2", "v3")}


def make(plan: HeadPlan, *, stride_in: Stride = CAFFE, p6_source: Literal["C5", "P5"] = "C5", num_classes: int = 80) -> RetinaNet:
    """RetinaNet with ResNet-50 and this head, without weights."""
    trunk = _trunk(stride_in, p6_source)
    with torch.device("meta"):
        head = Head(in_channels=256, num_classes=num_classes, num_anchors=9, plan=plan)
    return RetinaNet(backbone=trunk.backbone, fpn=trunk.fpn, head=head, conventions=trunk.conventions)


@functools.cache
def _trunk(stride_in: Stride, p6_source: Literal["C5", "P5"]) -> RetinaNet:
    with torch.device("meta"):
        return build(HeadPlan(), num_classes=1, conventions=Conventions(stride_in=stride_in, p6_source=p6_source))


@functools.cache
def _macs(plan: bytes, stride_in: Stride, p6_source: Literal["C5", "P5"], num_classes: int, size_hw: tuple[int, int]) -> int:
    network = make(_PLANS.validate_json(plan), stride_in=stride_in, p6_source=p6_source, num_classes=num_classes)
    return total(count_blocks(network, size_hw))


def total(blocks: Mapping[str, Cost]) -> int:
    return sum(cost.macs for cost in blocks.values())


def block_plan(block: str, branches: str, predict: str) -> HeadPlan:
    """A D-block in ``cls``, ``bbox`` or ``cls bbox`` of D3, with this prediction."""
    tower = block_tower(block, predict=predict)
    return HeadPlan(cls={"P3": tower} if "cls" in branches else {}, bbox={"P3": tower} if "bbox" in branches else {})


@dataclass(frozen=True, kw_only=True)
class Reading:
    """One way to read everything.

    Args:
        name: for the tables.
        prediction: of the light towers: as our presets have it (light in v1 and v3, 3x3 in v2), ``full`` 3x3 or ``light`` in all.
        is_released: LW-v3 as in the authors' code.
        sizes_hw: of the input by the paper's scale; None for squares.
    """

    name: str
    stride_in: Stride = CAFFE
    p6_source: Literal["C5", "P5"] = "C5"
    num_classes: int = 80
    prediction: Literal["preset", "full", "light"] = "preset"
    is_released: bool = False
    sizes_hw: Mapping[int, tuple[int, int]] | None = None

    def macs(self, name: str, scale: int = 800) -> int:
        """Of the whole network by its preset's name."""
        size_hw = self.sizes_hw[scale] if self.sizes_hw else (scale, scale)
        return _macs(_PLANS.dump_json(self._plan(name)), self.stride_in, self.p6_source, self.num_classes, size_hw)

    def _plan(self, name: str) -> HeadPlan:
        if self.is_released and name == "lw-v3":
            return plan_of("lw-v3-released")
        if name == "retinanet" or self.prediction == "preset":
            return plan_of(name)
        block, branches = _BLOCKS[name]
        return block_plan(block, branches, "3x3" if self.prediction == "full" else LIGHT_PREDICTION[block])


STANDARD = Reading(name="stride in the 1x1 (Caffe), our presets")
RELEASED = Reading(name="the same, LW-v3 as released", is_released=True)
FULL_PREDICTION = Reading(name="the same, every prediction 3x3", prediction="full")
PYTORCH_STRIDE = Reading(name="stride in the 3x3 (PyTorch), our presets", stride_in=PYTORCH)
READINGS = (
    STANDARD,
    RELEASED,
    FULL_PREDICTION,
    Reading(name="the same, every prediction light", prediction="light"),
    Reading(name="the same, P6 from P5", p6_source="P5"),
    Reading(name="the same, 81 classes", num_classes=81),
    PYTORCH_STRIDE,
    Reading(name="the same, every prediction 3x3", stride_in=PYTORCH, prediction="full"),
    Reading(name="the same, every prediction light", stride_in=PYTORCH, prediction="light"),
    Reading(name="the same, 81 classes", stride_in=PYTORCH, num_classes=81),
)
# Short side 800, 700 or 600, padded to multiples of 32.
PHOTOGRAPHS = Reading(
    name="photographs of 4:3: 800 x 1088, 704 x 960, 608 x 800",
    sizes_hw={800: (800, 1088), 700: (704, 960), 600: (608, 800)},
)


@dataclass(frozen=True, kw_only=True)
class Baseline:
    """The full network in one way of counting.

    Args:
        name: for the table.
        macs: in all.
        d3_macs: of them in D3.
    """

    name: str
    macs: float
    d3_macs: float

    @property
    def d3_share(self) -> float:
        """In per cent."""
        return 100 * self.d3_macs / self.macs


def baselines() -> list[Baseline]:
    """Everything that could have made the 156 G and 48 % of the full network."""
    blocks = count_blocks(make(HeadPlan()), (800, 800))
    plain = _counted("convolutions, stride in the 1x1, 80 classes, P6 from C5")
    most = _counted("", stride_in=PYTORCH, num_classes=81)
    small, classifier = small_operations(), 2048 * 1000
    cells = {name: cost.parts["bbox_predict"].macs // (36 * 256 * 9) for name, cost in blocks.items() if cost.parts}
    a_cell = 79 * 36 * 256 * 9  # 80 boxes an anchor instead of one
    five = HeadPlan(shared=TowerPlan(units=("3x3",) * 5, predict="3x3"))
    return [
        plain,
        _counted("stride in the 3x3", stride_in=PYTORCH),
        _counted("P6 from P5", p6_source="P5"),
        _counted("81 classes, the background one of them as under a softmax", num_classes=81),
        Baseline(name="biases, norms, ReLUs and sums too: five operations an output", macs=plain.macs + small, d3_macs=plain.d3_macs),
        Baseline(name="the classifier's 2048 x 1000 too", macs=plain.macs + classifier, d3_macs=plain.d3_macs),
        Baseline(
            name="all that adds: stride in the 3x3, 81 classes, small operations, classifier",
            macs=most.macs + small + classifier,
            d3_macs=most.d3_macs,
        ),
        Baseline(
            name="a box for each class",
            macs=plain.macs + a_cell * sum(cells.values()),
            d3_macs=plain.d3_macs + a_cell * cells["D3"],
        ),
        _counted("five convolutions a tower", plan=five),
        _counted("800 x 800 padded to 832 x 832", size_hw=(832, 832)),
        _counted("800 x 800 padded to the stride of P7: 896 x 896", size_hw=(896, 896)),
        _counted("800 x 1333 padded to 800 x 1344", size_hw=(800, 1344)),
        Baseline(name="two FLOPs for a MAC", macs=2 * plain.macs, d3_macs=2 * plain.d3_macs),
        Baseline(name="in units of 2^30", macs=plain.macs * 1e9 / 2**30, d3_macs=plain.d3_macs * 1e9 / 2**30),
    ]


def _counted(
    name: str,
    *,
    size_hw: tuple[int, int] = (800, 800),
    plan: HeadPlan | None = None,
    stride_in: Stride = CAFFE,
    p6_source: Literal["C5", "P5"] = "C5",
    num_classes: int = 80,
) -> Baseline:
    network = make(plan or HeadPlan(), stride_in=stride_in, p6_source=p6_source, num_classes=num_classes)
    blocks = count_blocks(network, size_hw)
    return Baseline(name=name, macs=total(blocks), d3_macs=blocks["D3"].macs)


def small_operations() -> int:
    """Five for every number that a convolution puts out at 800 x 800: a bias or the two of a norm, a ReLU, a sum, one to spare."""
    network, counts = meta_copy(make(HeadPlan())), list[int]()

    def count(_: nn.Module, __: object, output: torch.Tensor) -> None:
        counts.append(5 * output.numel())

    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(count)
    with torch.no_grad():
        network(torch.empty(1, 3, 800, 800, device="meta"))
    return sum(counts)
