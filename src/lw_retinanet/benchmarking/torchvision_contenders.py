"""torchvision's detectors as contenders: its RetinaNet with the weights of ours, and its other detectors with made-up weights."""

import copy
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import nn
from torchvision.models import get_model, get_model_weights

from lw_retinanet.benchmarking.contender import Contender, image_tensor, torchvision_run
from lw_retinanet.benchmarking.entries import Entry, give_scores, made_up_network
from lw_retinanet.benchmarking.images import BenchmarkImages
from lw_retinanet.benchmarking.parity import Parity, check_torchvision
from lw_retinanet.benchmarking.realistic import make_detector_realistic
from lw_retinanet.benchmarking.settings import BenchmarkSettings, Timed
from lw_retinanet.counting.detector_cost import DetectorCost, count_detector
from lw_retinanet.weights.foreign.torchvision_twin import torchvision_twin, why_not_torchvision

SHIPPED = "torchvision as shipped"
# One of each kind in torchvision, on the most common backbone.
PEERS = (
    "fasterrcnn_resnet50_fpn",
    "retinanet_resnet50_fpn",
    "fcos_resnet50_fpn",
    "ssd300_vgg16",
    "ssdlite320_mobilenet_v3_large",
)
_HOW: dict[str, str] = {"fp32": "channels_last", "bf16": "channels_last, autocast"}


def torchvision_retinanet(
    entries: Sequence[Entry],
    images: BenchmarkImages,
    settings: BenchmarkSettings,
    *,
    precisions: Sequence[Timed],
    size: int,
    device: torch.device,
) -> tuple[list[Contender], Parity | None, str]:
    """torchvision's RetinaNet, as shipped in fp32 and at its best in each precision.

    It gets the weights of the first entry whose weights fit into it, else made-up weights.

    Args:
        entries: The named models.
        images: Images on which the answers are compared.
        settings: How to measure.
        precisions: Precisions of torchvision's network at its best.
        size: Image size of a network with made-up weights that stands beside a preset.
        device: Device to compute on.

    Returns:
        The contenders, as shipped first; how near its answers are to those of the entry (None for made-up weights); a remark that says
        whose weights it has.

    Raises:
        ParityError: If it has the weights of an entry and gives other answers.
    """
    reasons = {entry.name: _why_not(entry) for entry in entries}
    base = next((entry for entry in entries if reasons[entry.name] is None), None)
    parity = None
    if base is not None and base.network is not None:
        twin = torchvision_twin(base.network).to(device)
        is_full = bool(base.network.head.plan.cls or base.network.head.plan.bbox)
        name = f"{base.name}{' (its full head)' if is_full else ''}"
        parity = check_torchvision(twin, base.network, images, name=name, full_head=is_full)
        remark = f"torchvision has the weights of {name}."
    else:
        twin = _made_up_twin(entries[0], images, settings, size).to(device)
        remark = (
            f"torchvision's network is another one, so there is no parity to check: it has the full head, and random weights with "
            f"realistic scores ({entries[0].name}: {reasons[entries[0].name]})."
        )
    common: dict[str, Any] = {"cost": count_detector(twin, _input_hw(twin, images)), "family": "torchvision"}
    common["title"] = "retinanet (torchvision)"
    found = [_contender(twin, f"{SHIPPED} fp32", images, precision="fp32", how="as shipped", **common)]
    best = copy.deepcopy(twin).to(memory_format=torch.channels_last)
    for precision in precisions:
        runs = {_HOW[precision]: best}
        if settings.compiled:
            runs[f"{_HOW[precision]}, compiled"] = _with_compiled_parts(best)
        for how, model in runs.items():
            found.append(_contender(model, f"torchvision {how} {precision}", images, precision=precision, how=how, **common))
    return found, parity, remark


def _made_up_twin(like: Entry, images: BenchmarkImages, settings: BenchmarkSettings, size: int) -> nn.Module:
    """torchvision's RetinaNet with made-up weights and the backbone, classes and image size of an entry."""
    num_classes = len(like.record.classes) if like.record is not None else settings.num_classes
    network = made_up_network("retinanet", size=size, num_classes=num_classes, backbone=like.backbone, width=like.width)
    if like.record is not None:
        sides = like.some.conventions.input.model_dump(include={"size", "max_size"})
        rule = network.conventions.input.model_copy(update=sides)
        network.conventions = network.conventions.model_copy(update={"input": rule})
    give_scores(network, images, candidates=settings.candidates)
    return torchvision_twin(network)


def _why_not(entry: Entry) -> str | None:
    if entry.network is None:
        return "it was exported, so its weights cannot be put into torchvision's class"
    return why_not_torchvision(entry.network, switchable=bool(entry.record and entry.record.switchable))


def peer_contenders(
    name: str, images: BenchmarkImages, settings: BenchmarkSettings, *, precisions: Sequence[Timed], size: int, device: torch.device
) -> list[Contender]:
    """One of torchvision's detectors at its best in every precision: channels_last, and autocast for bf16.

    Args:
        name: Name of torchvision's builder.
        images: The first one sets the scores.
        settings: How to measure.
        precisions: Precisions to time.
        size: Side of the input. SSD and SSDLite keep their own, 300 and 320.
        device: Device to compute on.
    """
    torch.manual_seed(0)
    sizes: dict[str, Any] = {} if name.startswith("ssd") else {"min_size": size, "max_size": size}
    num_classes = settings.num_classes + 1  # torchvision counts the background
    model: nn.Module = get_model(name, weights=None, weights_backbone=None, num_classes=num_classes, **sizes).eval()
    make_detector_realistic(model, image_tensor(images.decoded(0)), candidates=settings.candidates)
    cost = count_detector(model, _input_hw(model, images))
    model = model.to(device).to(memory_format=torch.channels_last)
    published = _published_accuracy(name)
    remarks = [] if published is None else [f"AP of {name} is what torchvision states for its COCO weights."]
    made = [
        _contender(model, f"{name} {precision}", images, precision=precision, how=_HOW[precision], cost=cost, family="peer", title=name)
        for precision in precisions
    ]
    return [replace(each, accuracy=published, remarks=(*each.remarks, *remarks)) for each in made]


def _published_accuracy(name: str) -> float | None:
    """AP of torchvision's COCO weights of this detector, from 0 to 1, if torchvision states it."""
    metrics = get_model_weights(name).DEFAULT.meta.get("_metrics", {}).get("COCO-val2017", {})
    return metrics["box_map"] / 100 if "box_map" in metrics else None


def _contender(
    model: nn.Module, name: str, images: BenchmarkImages, *, precision: Timed, how: str, cost: DetectorCost, family: str, title: str
) -> Contender:
    return Contender(
        name=name,
        model=title,
        family=family,
        runtime="torchvision",
        precision=precision,
        how=how,
        run=torchvision_run(model, bf16=precision == "bf16", channels_last="channels_last" in how),
        has_stages="compiled" not in how,
        macs=cost.macs,
        params=sum(block.params for block in cost.blocks.values()),
        input_hw=_input_hw(model, images),
        remarks=cost.remarks,
    )


def _input_hw(model: Any, images: BenchmarkImages) -> tuple[int, int]:
    """Height and width of the padded input that the first image becomes."""
    device = next(model.parameters()).device
    inputs, _ = model.transform([image_tensor(images.decoded(0)).to(device)])
    return int(inputs.tensors.shape[2]), int(inputs.tensors.shape[3])


def _with_compiled_parts(model: nn.Module) -> nn.Module:
    """A copy with compiled backbone and head. The other parts work on lists, which ``torch.compile`` cannot take."""
    copied: Any = copy.deepcopy(model)
    copied.backbone, copied.head = torch.compile(copied.backbone, dynamic=False), torch.compile(copied.head, dynamic=False)
    compiled: nn.Module = copied
    return compiled
