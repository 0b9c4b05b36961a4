"""How the time of one call splits into stages: a clock that watches modules begin and end, without changing them."""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from itertools import cycle
from typing import Any

from torch import nn
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torchvision.models.detection import RetinaNet as TorchvisionRetinaNet

from lw_retinanet.conventions import LEVELS
from lw_retinanet.models.retinanet import RetinaNet

# In the order of a table. "network" is the rest of the network beside its parts, or all of it if its parts cannot be seen.
STAGES = ("decode", "preprocess", "network", "backbone", "FPN", *(f"D{level[1:]}" for level in LEVELS), "anchors", "post-processing")
Label = str | Callable[[tuple[Any, ...]], str]
"""The stage that a module belongs to, or a function that finds it from the inputs of a call."""


class StageClock:
    """Adds every moment to the innermost stage that is open.

    Args:
        wait: Waits until the device has finished its work; called whenever a stage begins or ends.
        clock: The time in seconds.
    """

    def __init__(self, wait: Callable[[], None] = lambda: None, clock: Callable[[], float] = time.perf_counter) -> None:
        self.milliseconds: dict[str, float] = {}
        self._wait, self._clock = wait, clock
        self._open: list[str] = []
        self._last = 0.0

    def begin(self, stage: str) -> None:
        """Open a stage inside the one that is open."""
        self._book()
        self._open.append(stage)

    def end(self) -> None:
        """Close the innermost stage."""
        self._book()
        self._open.pop()

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Add the time inside the ``with`` block to ``name``, except the time of stages inside it."""
        self.begin(name)
        try:
            yield
        finally:
            self.end()

    @contextmanager
    def watching(self, *, model: nn.Module | None = None) -> Iterator[None]:
        """Open and close stages when the parts of a RetinaNet begin and end.

        Args:
            model: A detector of torchvision. None watches every RetinaNet of this package, since a detector runs a private copy.
        """
        labels: dict[nn.Module, Label] = {} if model is None else _torchvision_labels(model)

        def before(module: nn.Module, inputs: tuple[Any, ...]) -> None:
            if isinstance(module, RetinaNet):
                labels.update(_labels(module))
            if module in labels:
                label = labels[module]
                self.begin(label if isinstance(label, str) else label(inputs))

        def after(module: nn.Module, *_: object) -> None:
            if module in labels:
                self.end()

        # These hooks are on all modules, since a hook on one part would prevent that it is folded and fused.
        handles = [register_module_forward_pre_hook(before), register_module_forward_hook(after)]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _book(self) -> None:
        self._wait()
        now = self._clock()
        if self._open:
            stage = self._open[-1]
            self.milliseconds[stage] = self.milliseconds.get(stage, 0.0) + (now - self._last) * 1e3
        self._last = now


def in_order(stages: Mapping[str, float]) -> dict[str, float]:
    """The stages in the order of ``STAGES``."""
    return {name: stages[name] for name in STAGES if name in stages}


def _head_level(inputs: tuple[Any, ...]) -> str:
    return f"D{inputs[1][1:]}"  # a branch gets features and the name of the level


def _labels(model: RetinaNet) -> dict[nn.Module, Label]:
    head = model.head
    return {model: "network", model.backbone: "backbone", model.fpn: "FPN", head.cls: _head_level, head.bbox: _head_level}


def _torchvision_labels(model: nn.Module) -> dict[nn.Module, Label]:
    """torchvision's RetinaNet runs each layer of its head on one level after the other. Other detectors are one stage, ``network``."""
    if not isinstance(model, TorchvisionRetinaNet):
        return {model: "network"}
    whole: Any = model
    labels: dict[nn.Module, Label] = {
        model: "post-processing",  # the rest of the call without its parts
        whole.transform: "preprocess",
        whole.backbone: "FPN",
        whole.backbone.body: "backbone",
        whole.head: "network",
        whole.anchor_generator: "anchors",
    }
    for branch, last in ((whole.head.classification_head, "cls_logits"), (whole.head.regression_head, "bbox_reg")):
        labels[branch.conv] = _level_by_turn()
        labels[getattr(branch, last)] = _level_by_turn()
    return labels


def _level_by_turn() -> Label:
    levels = cycle(LEVELS)
    return lambda _: f"D{next(levels)[1:]}"
