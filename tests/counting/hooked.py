"""The same count taken from a real forward pass: torch's own flop counter, read before and after every part.

It shares no arithmetic with :mod:`~lw_retinanet.counting.macs`, sees functional calls that module attributes do not show, and runs on the
meta device, where no numbers are computed.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from lw_retinanet.conventions import LEVELS
from lw_retinanet.counting.macs import BLOCKS, Cost, count_blocks, fpn_modules, staged_calls
from lw_retinanet.models.backbone import TimmBackbone
from lw_retinanet.models.build import meta_copy
from lw_retinanet.models.head import Branch
from lw_retinanet.models.retinanet import RetinaNet

# What convolutions and linear layers become; the products inside attention are neither.
_LAYER_OPERATIONS = ("aten.convolution", "aten._convolution", "aten.mm", "aten.addmm")
_WHOLE = ""  # in place of a part's name, for blocks that have none


def count_hooked(module: nn.Module, *inputs: Any) -> int:
    """MACs of one call ``module(*inputs)``: every convolution and matrix product that torch's counter sees, whatever the module is."""
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        module(*inputs)
    return counter.get_total_flops() // 2


def count_blocks_hooked(model: RetinaNet, size_hw: tuple[int, int]) -> dict[str, Cost]:
    """Cost of C1..C5, P3..P7 and D3..D7 as :func:`~lw_retinanet.counting.macs.count_blocks` gives it, with the MACs of one forward pass.

    Args:
        model: on any device; neither read nor changed.
        size_hw: height and width of the padded network input in pixels.

    Raises:
        ConfigError: if the size is too small for the network.
    """
    params = count_blocks(model, size_hw)
    network = meta_copy(model)
    meter = _Meter()
    _watch_backbone(meter, network, size_hw)
    for level, (_, modules) in fpn_modules(network.fpn).items():
        for module in modules:
            meter.watch(module, _always(level))
    for name, branch in (("cls", network.head.cls), ("bbox", network.head.bbox)):
        _watch_branch(meter, branch, name)
    with torch.no_grad(), meter.counter:
        network(torch.empty((1, 3, *size_hw), device="meta"))
    assert sum(meter.spent.values()) == meter.total(), "a convolution ran outside of all known parts"
    return _costs(meter.spent, params)


class _Meter:
    """A flop counter, and hooks that book what a module's call adds to it. For throw-away copies: the hooks stay."""

    def __init__(self) -> None:
        self.counter = FlopCounterMode(display=False)
        self.spent: dict[tuple[str, str], int] = {}
        self.open_calls: list[int] = []

    def total(self) -> int:
        """MACs so far."""
        flops = self.counter.get_flop_counts().get("Global", {})
        return sum(number for operation, number in flops.items() if str(operation) in _LAYER_OPERATIONS) // 2

    def watch(self, module: nn.Module, place: Callable[[], tuple[str, str]]) -> None:
        """Book every call of ``module`` under ``place()``, a block and a part, asked when the call ends."""

        def start(*_: object) -> None:
            self.open_calls.append(self.total())

        def stop(*_: object) -> None:
            key = place()
            self.spent[key] = self.spent.get(key, 0) + self.total() - self.open_calls.pop()

        module.register_forward_pre_hook(start)
        module.register_forward_hook(stop)


def _always(block: str) -> Callable[[], tuple[str, str]]:
    return lambda: (block, _WHOLE)


def _watch_backbone(meter: _Meter, network: RetinaNet, size_hw: tuple[int, int]) -> None:
    if not isinstance(network.backbone, TimmBackbone):
        for stage, modules in network.backbone.stages():
            for module in modules:
                meter.watch(module, _always(stage))
        return
    calls = [(call.module, stage) for call, stage in staged_calls(network.backbone, size_hw)[0] if call.macs]
    stages = iter([stage for _, stage in calls])
    for layer in dict.fromkeys(layer for layer, _ in calls):
        meter.watch(layer, lambda: (next(stages), _WHOLE))


def _watch_branch(meter: _Meter, branch: Branch, name: str) -> None:
    level = ""

    def enter(_: nn.Module, inputs: tuple[Tensor, str]) -> None:
        nonlocal level
        level = inputs[1]

    def place(part: str) -> Callable[[], tuple[str, str]]:
        return lambda: (f"D{level[1]}", f"{name}_{part}")

    branch.register_forward_pre_hook(enter)
    layers = [branch.layers(each) for each in LEVELS]
    # What both branches read runs in the class branch.
    own = [units[branch.num_common(each) :] for each, (units, _) in zip(LEVELS, layers, strict=True)]
    for unit in dict.fromkeys(unit for units in own for unit in units):
        meter.watch(unit, place("tower"))
    for predict in dict.fromkeys(predict for _, predict in layers):
        meter.watch(predict, place("predict"))


def _costs(spent: dict[tuple[str, str], int], params: dict[str, Cost]) -> dict[str, Cost]:
    """Measured MACs beside the parameters, which no forward pass can tell."""
    costs: dict[str, Cost] = {}
    for block in BLOCKS:
        parts = {name: Cost(macs=spent[block, name], params=part.params) for name, part in params[block].parts.items()}
        macs = sum(part.macs for part in parts.values()) if parts else spent.get((block, _WHOLE), 0)
        costs[block] = Cost(macs=macs, params=params[block].params, parts=parts)
    return costs
