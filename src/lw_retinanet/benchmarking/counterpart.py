"""torchvision's RetinaNet beside ours: as shipped, and at its best."""

import copy
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch

from lw_retinanet.benchmarking.contender import Contender
from lw_retinanet.benchmarking.entries import Entry, Timed, give_scores, made_up_network
from lw_retinanet.benchmarking.parity import Parity, check_torchvision
from lw_retinanet.benchmarking.peers import HOW, torchvision_contender, torchvision_size, with_compiled_parts
from lw_retinanet.benchmarking.pictures import Pictures
from lw_retinanet.counting.detector_cost import count_detector
from lw_retinanet.weights.foreign.torchvision_twin import torchvision_twin, why_not_torchvision

SHIPPED = "torchvision as shipped"


class Counterpart(NamedTuple):
    """Args:
    contenders: the one as shipped first.
    parities: with the model whose weights it has; none where it has weights of its own.
    remark: whose weights these are.
    """

    contenders: list[Contender]
    parities: list[Parity]
    remark: str


def counterpart(
    entries: Sequence[Entry],
    pictures: Pictures,
    *,
    precisions: Sequence[Timed],
    compiled: bool,
    size: int,
    num_classes: int,
    candidates: int,
    device: torch.device,
) -> Counterpart:
    """torchvision's RetinaNet: of the weights of the first entry that it can hold, else of weights that are made up.

    Args:
        entries: what was named.
        pictures: that both answer.
        precisions: of it at its best; as shipped it computes in fp32.
        compiled: whether it takes part compiled, too.
        size: of the input, where the weights are made up for a preset.
        num_classes: there.
        candidates: pairs over the score threshold, where the weights are made up.
        device: to compute on.

    Raises:
        ParityError: if it has an entry's weights and does not answer alike.
    """
    parities: list[Parity] = []
    reasons = {entry.name: _why_not(entry) for entry in entries}
    base = next((entry for entry in entries if reasons[entry.name] is None), None)
    if base is not None and base.network is not None:
        twin = torchvision_twin(base.network).to(device)
        is_full = bool(base.network.head.plan.cls or base.network.head.plan.bbox)
        name = f"{base.name}{' (its full head)' if is_full else ''}"
        parities.append(check_torchvision(twin, base.network, pictures, name=name, full_head=is_full))
        remark = f"torchvision has the weights of {name}."
    else:
        like = entries[0]
        number = len(like.record.classes) if like.record is not None else num_classes
        network = made_up_network("retinanet", size=size, num_classes=number, backbone=like.backbone, width=like.width)
        if like.record is not None:
            sides = like.some.conventions.input.model_dump(include={"size", "max_size"})
            rule = network.conventions.input.model_copy(update=sides)
            network.conventions = network.conventions.model_copy(update={"input": rule})
        give_scores(network, pictures, candidates=candidates)
        twin = torchvision_twin(network).to(device)
        remark = (
            f"torchvision's network is another one, so there is no parity to check: it has the full head, and random weights with "
            f"realistic scores ({like.name}: {reasons[like.name]})."
        )
    cost = count_detector(twin, torchvision_size(twin, pictures))
    best = copy.deepcopy(twin).to(memory_format=torch.channels_last)
    common: dict[str, Any] = {"cost": cost, "family": "torchvision", "title": "retinanet (torchvision)"}
    found = [torchvision_contender(twin, f"{SHIPPED} fp32", pictures, precision="fp32", how="as shipped", **common)]
    for precision in precisions:
        how = HOW[precision]
        found.append(torchvision_contender(best, f"torchvision {how} {precision}", pictures, precision=precision, how=how, **common))
        if compiled:
            made, how = with_compiled_parts(best), f"{how}, compiled"
            name = f"torchvision {how} {precision}"
            found.append(torchvision_contender(made, name, pictures, precision=precision, how=how, is_compiled=True, **common))
    return Counterpart(found, parities, remark)


def _why_not(entry: Entry) -> str | None:
    if entry.network is None:
        return "it was exported, so its weights cannot be put into torchvision's class"
    return why_not_torchvision(entry.network, switchable=bool(entry.record and entry.record.switchable))
