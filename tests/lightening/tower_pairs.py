"""Small networks that answer like trained ones, and feature maps like a pyramid's, for the tests of lightening."""

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lw_retinanet.heads import BranchName, HeadPlan
from lw_retinanet.lightening.towers import BranchPair, LevelPair, Tower
from lw_retinanet.models.blocks import PREDICTIONS, UNITS
from lw_retinanet.models.build import build
from lw_retinanet.models.retinanet import RetinaNet

WIDTH, CLASSES, ANCHORS = 16, 2, 9


def trained_like(plan: HeadPlan | None = None, *, width: int = WIDTH, seed: int = 0) -> RetinaNet:
    """A network whose scores and boxes differ from place to place, as no freshly drawn one's do."""
    torch.manual_seed(seed)
    model = build(plan or HeadPlan(), num_classes=CLASSES, backbone="resnet18", width=width, init="fan_in")
    lively(*(layer for branch in (model.head.cls, model.head.bbox) for layer in branch.modules()))
    return model.eval()


@torch.no_grad()
def lively(*modules: nn.Module) -> None:
    """Offsets in all units, and predictions with an effect."""
    for module in modules:
        if isinstance(module, nn.Conv2d):
            if module.bias is not None and not module.bias.any():
                module.bias.normal_(std=0.1)
            if module.weight.std() < 0.015:  # a prediction, drawn with 0.01
                module.weight.mul_(8.0)


def smooth_maps(count: int, *, width: int = WIDTH, size_hw: tuple[int, int] = (16, 16), seed: int = 1) -> list[Tensor]:
    """Maps in which neighbours resemble each other."""
    generator = torch.Generator().manual_seed(seed)
    coarse = [torch.randn(1, width, 5, 5, generator=generator) for _ in range(count)]
    fine = [0.2 * torch.randn(1, width, *size_hw, generator=generator) for _ in range(count)]
    return [F.interpolate(low, size_hw, mode="bicubic", align_corners=True) + high for low, high in zip(coarse, fine, strict=True)]


def make_tower(
    units: Sequence[str], outputs: Mapping[str, int], *, predict: str, width: int | None = None, in_channels: int = WIDTH, seed: int = 0
) -> Tower:
    """A tower of its own, drawn so that its outputs vary."""
    torch.manual_seed(seed)
    inside = width or in_channels
    layers = [UNITS[unit](in_channels if i == 0 else inside, inside) for i, unit in enumerate(units)]
    predictions = {name: PREDICTIONS[predict](inside, count) for name, count in outputs.items()}
    with torch.no_grad():
        for layer in layers:
            for conv in (module for module in layer.modules() if isinstance(module, nn.Conv2d)):
                fan_in = conv.in_channels // conv.groups * conv.kernel_size[0] ** 2
                conv.weight.normal_(std=((1.0 if conv.groups > 1 else 2.0) / fan_in) ** 0.5)
                if conv.bias is not None:
                    conv.bias.normal_(std=0.1)
    return Tower(units=layers, predictions=predictions)


def branch_pair(teacher: Tower, student: Tower, branch: BranchName = "cls") -> BranchPair:
    return BranchPair(branch=branch, level="P3", teacher=teacher, student=student)


def level_pair(cls: tuple[Tower, Tower], bbox: tuple[Tower, Tower], *, num_anchors: int = ANCHORS) -> LevelPair:
    """Both branches new, (teacher, student) each, on the level's map as it is."""
    pairs = [branch_pair(*cls, "cls"), branch_pair(*bbox, "bbox")]
    return LevelPair(level="P3", old={"cls": cls[0], "bbox": bbox[0]}, pairs=pairs, num_anchors=num_anchors)


@torch.no_grad()
def miss(pair: BranchPair, maps: Sequence[Tensor], *, seen: Sequence[Tensor] | None = None) -> float:
    """Share of the variance of the teacher's outputs that the student misses; ``seen`` is what the student reads, if not the same maps."""
    old = [torch.cat(list(pair.teacher(item).values()), dim=1).flatten(2) for item in maps]
    new = [torch.cat(list(pair.student(item).values()), dim=1).flatten(2) for item in seen or maps]
    wanted, found = torch.cat(old, dim=2), torch.cat(new, dim=2)
    return float(((wanted - found) ** 2).sum() / ((wanted - wanted.mean(dim=2, keepdim=True)) ** 2).sum())
