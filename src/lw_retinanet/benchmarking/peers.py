"""Other detectors on the same work: torchvision's, with made-up weights, all at one size but for those that have only their own."""

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torchvision.models import get_model

from lw_retinanet.benchmarking.contender import Contender, as_picture, run_torchvision, torchvision_by_stage
from lw_retinanet.benchmarking.entries import Timed
from lw_retinanet.benchmarking.pictures import Pictures
from lw_retinanet.benchmarking.realistic import make_detector_realistic
from lw_retinanet.counting.detector_cost import DetectorCost, count_detector

# One of each kind that torchvision has on the backbone that most people take.
PEERS = (
    "fasterrcnn_resnet50_fpn",
    "retinanet_resnet50_fpn",
    "fcos_resnet50_fpn",
    "ssd300_vgg16",
    "ssdlite320_mobilenet_v3_large",
)
_OWN_SIZE = ("ssd",)  # the other ones take any size


def peer(
    name: str, pictures: Pictures, *, precisions: Sequence[Timed], size: int, num_classes: int, candidates: int, device: torch.device
) -> list[Contender]:
    """One of torchvision's detectors at its best, in every precision: channels last, and autocast for bf16.

    Args:
        name: of torchvision's builder.
        pictures: the first one sets the scores.
        precisions: to be timed.
        size: side of the input; SSD and SSDLite keep their 300 and 320.
        num_classes: without the background, which torchvision's count adds.
        candidates: pairs over the score threshold.
        device: to compute on.
    """
    torch.manual_seed(0)
    sizes: dict[str, Any] = {} if name.startswith(_OWN_SIZE) else {"min_size": size, "max_size": size}
    model: nn.Module = get_model(name, weights=None, weights_backbone=None, num_classes=num_classes + 1, **sizes).eval()
    image = as_picture(pictures.decoded(0))
    make_detector_realistic(model, image, candidates=candidates)
    cost = count_detector(model, torchvision_size(model, pictures))
    model = model.to(device).to(memory_format=torch.channels_last)
    return [
        torchvision_contender(model, f"{name} {precision}", pictures, precision=precision, how=HOW[precision], cost=cost, family="peer")
        for precision in precisions
    ]


HOW: dict[str, str] = {"fp32": "channels_last", "bf16": "channels_last, autocast"}


def torchvision_contender(
    model: nn.Module,
    name: str,
    pictures: Pictures,
    *,
    precision: Timed,
    how: str,
    cost: DetectorCost,
    family: str,
    title: str | None = None,
    is_compiled: bool = False,
    remarks: tuple[str, ...] = (),
) -> Contender:
    """One of torchvision's detectors, on its device and in its memory format, as it takes part.

    Args:
        model: in evaluation mode.
        name: of the contender.
        pictures: the first one says the size of the input.
        precision: ``bf16`` runs under autocast.
        how: in words; ``channels_last`` among them lays pictures out so.
        cost: of the model.
        family: see :class:`~lw_retinanet.benchmarking.contender.Contender`.
        title: of the model; None for ``name`` without the precision.
        is_compiled: parts of it cannot be watched.
        remarks: for the reader.
    """
    device = next(model.parameters()).device
    setting: dict[str, Any] = {"device": device, "bf16": precision == "bf16", "channels_last": "channels_last" in how}
    return Contender(
        name=name,
        model=title or name.rsplit(" ", 1)[0],
        family=family,
        runtime="torchvision",
        precision=precision,
        how=how,
        run=run_torchvision(model, **setting),
        by_stage=None if is_compiled else torchvision_by_stage(model, **setting),
        macs=cost.macs,
        params=sum(block.params for block in cost.blocks.values()),
        input_hw=torchvision_size(model, pictures),
        remarks=(*cost.remarks, *remarks),
    )


def torchvision_size(model: Any, pictures: Pictures) -> tuple[int, int]:
    """Height and width of the padded input that the first picture becomes."""
    device = next(model.parameters()).device
    images, _ = model.transform([as_picture(pictures.decoded(0)).to(device)])
    return int(images.tensors.shape[2]), int(images.tensors.shape[3])


def with_compiled_parts(model: nn.Module) -> nn.Module:
    """A copy whose backbone and head go through ``torch.compile``; what is around them works on lists, which it cannot take."""
    copied: Any = copy.deepcopy(model)
    copied.backbone, copied.head = torch.compile(copied.backbone, dynamic=False), torch.compile(copied.head, dynamic=False)
    compiled: nn.Module = copied
    return compiled
