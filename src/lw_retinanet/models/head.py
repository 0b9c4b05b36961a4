"""The detection head: two branches over five levels, whose layers are shared or own as the plan says."""

import math
from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor, nn

from lw_retinanet.conventions import LEVELS
from lw_retinanet.heads import OF_CLASSES, SHARED, HeadPlan, TowerPlan
from lw_retinanet.models.blocks import PREDICTIONS, UNITS
from lw_retinanet.structures import Predictions

Init = Literal["fan_in", "fan_in_light", "paper"]
PRIOR = 0.01  # foreground probability of every anchor at step 0 (focal loss paper, 4.1)


class Branch(nn.Module):
    """Class or box branch: towers and predictions of all levels.

    Args:
        in_channels: Channels of the pyramid.
        out_channels: Channels of the prediction: anchors of a cell times classes, or times 4.
        own: Own towers by level.
        shared: The tower of the levels that own nothing, and of layers marked ``shared``.
        class_branch: The branch that lends the units marked ``cls``.
    """

    def __init__(
        self,
        *,
        in_channels: int,
        out_channels: int,
        own: Mapping[str, TowerPlan],
        shared: TowerPlan,
        class_branch: "Branch | None" = None,
    ) -> None:
        super().__init__()
        self.plans = {level: own.get(level) for level in LEVELS}
        self._class_branch = (class_branch,)  # in a tuple, so that its parameters are not listed twice
        # A shared layer that no level uses would get no gradient, which is an error in distributed training.
        sharing_all = any(plan is None for plan in self.plans.values())
        plans = [plan for plan in self.plans.values() if plan is not None]
        used = {i for i in range(len(shared.units)) if sharing_all or any(i < len(p.units) and p.units[i] == SHARED for p in plans)}
        self.shared_units = _units(shared, in_channels, keep=used)
        self.num_shared_units = len(shared.units)
        width = shared.width or in_channels
        if sharing_all or any(plan.predict == SHARED for plan in plans):
            self.shared_predict: nn.Module | None = PREDICTIONS[shared.predict](width, out_channels)
        else:
            self.shared_predict = None
        self.own_units = nn.ModuleDict()
        self.own_predict = nn.ModuleDict()
        for level, plan in self.plans.items():
            if plan is None:
                continue
            self.own_units[level] = _units(plan, in_channels, keep={i for i, unit in enumerate(plan.units) if unit in UNITS})
            if plan.predict in PREDICTIONS:
                self.own_predict[level] = PREDICTIONS[plan.predict](plan.width or in_channels, out_channels)

    def layers(self, level: str, *, full: bool = False) -> tuple[list[nn.Module], nn.Module]:
        """The units of a level's tower in order, and its prediction; with ``full`` the shared ones, even if the level has its own."""
        plan = None if full else self.plans[level]
        if plan is None:
            assert self.shared_predict is not None
            return [self.shared_units[str(i)] for i in range(self.num_shared_units)], self.shared_predict
        predict = self.shared_predict if plan.predict == SHARED else self.own_predict[plan.predict if plan.predict in LEVELS else level]
        assert predict is not None
        return [self._unit(level, i) for i in range(len(plan.units))], predict

    def _unit(self, level: str, place: int) -> nn.Module:
        plan = self.plans[level]
        assert plan is not None
        name = plan.units[place]
        if name == SHARED:
            return self.shared_units[str(place)]
        if name == OF_CLASSES:
            (lender,) = self._class_branch
            assert lender is not None
            return lender._unit(level, place)
        own = self.own_units[name if name in LEVELS else level]
        assert isinstance(own, nn.ModuleDict)
        return own[str(place)]

    def num_common(self, level: str) -> int:
        """How many of a level's first units are those of the class tower."""
        plan = self.plans[level]
        return 0 if plan is None else plan.units.count(OF_CLASSES)

    def forward(self, features: Tensor, level: str, *, full: bool = False, first: int = 0, stop: int | None = None) -> Tensor:
        """Features (N, C, H, W) of one level -> predictions (N, out_channels, H, W).

        With ``first``, the features are already those of the units before it. With ``stop``, the result is the features of the units
        before that one.
        """
        units, predict = self.layers(level, full=full)
        for unit in units[first:stop]:
            features = unit(features)
        return predict(features) if stop is None else features


def _units(plan: TowerPlan, in_channels: int, keep: set[int]) -> nn.ModuleDict:
    width = plan.width or in_channels
    return nn.ModuleDict({str(i): UNITS[unit](in_channels if i == 0 else width, width) for i, unit in enumerate(plan.units) if i in keep})


class Head(nn.Module):
    """Both branches.

    Args:
        in_channels: Channels of the pyramid.
        num_classes: Number of classes.
        num_anchors: Number of anchors in each cell.
        plan: Which levels own which layers.
        init: ``fan_in`` (He) for all towers; ``fan_in_light`` for own towers, and the paper's normal(0, 0.01) for the shared ones; or
            ``paper`` for all. With 0.01 a tower of four 1x1 units reduces its input to 1.5e-4, one of four (dw + 1x1) units to 9e-11.
    """

    def __init__(self, *, in_channels: int, num_classes: int, num_anchors: int, plan: HeadPlan, init: Init = "fan_in_light") -> None:
        super().__init__()
        self.in_channels = in_channels
        self.num_classes = num_classes
        self.num_anchors = num_anchors
        self.plan = plan
        self.cls = Branch(
            in_channels=in_channels,
            out_channels=num_anchors * num_classes,
            own={str(k): v for k, v in plan.cls.items()},
            shared=plan.shared,
        )
        self.bbox = Branch(
            in_channels=in_channels,
            out_channels=num_anchors * 4,
            own={str(k): v for k, v in plan.bbox.items()},
            shared=plan.shared,
            class_branch=self.cls,
        )
        self.reset_parameters(init)

    @torch.no_grad()
    def reset_parameters(self, init: Init) -> None:
        """Draw all weights again (``init`` as in the constructor), set the class prior, and reset the norms."""
        for branch in (self.cls, self.bbox):
            for conv in _convs(branch.shared_units):
                init_conv(conv, fan_in=init == "fan_in")
            for conv in _convs(branch.own_units):
                init_conv(conv, fan_in=init != "paper")
            for predict in (branch.shared_predict, *branch.own_predict.values()):
                if predict is not None:
                    self._init_prediction(predict, init, is_class=branch is self.cls)
            for layer in branch.modules():
                if isinstance(layer, nn.GroupNorm | nn.BatchNorm2d):
                    layer.reset_parameters()

    def _init_prediction(self, predict: nn.Module, init: Init, *, is_class: bool) -> None:
        *spatial, last = _convs(predict)
        for conv in spatial:
            init_conv(conv, fan_in=init != "paper", gain=1.0)  # no ReLU follows
        init_conv(last, fan_in=False)
        if is_class:
            # p = PRIOR for every anchor at step 0: with ~10^5 background anchors the loss diverges otherwise.
            assert last.bias is not None
            nn.init.constant_(last.bias, -math.log((1 - PRIOR) / PRIOR))

    def forward(self, pyramid: Mapping[str, Tensor], *, full: bool = False) -> Predictions:
        """Features by level -> predictions of all levels, ordered by level, row, column and anchor of the cell.

        ``full`` uses the shared towers on every level, even on levels that have their own.
        """
        maps = [self.maps(pyramid[level], level, full=full) for level in LEVELS]
        logits = [_flatten(of_cls, self.num_classes) for of_cls, _ in maps]
        deltas = [_flatten(of_bbox, 4) for _, of_bbox in maps]
        return Predictions(torch.cat(logits, dim=1), torch.cat(deltas, dim=1))

    def maps(self, features: Tensor, level: str, *, full: bool = False) -> tuple[Tensor, Tensor]:
        """Features (N, C, H, W) of one level -> maps of the class and the box branch, (N, anchors * values, H, W) each."""
        common = 0 if full else self.bbox.num_common(level)
        if common:
            features = self.cls(features, level, stop=common)
        return self.cls(features, level, full=full, first=common), self.bbox(features, level, full=full, first=common)


def _flatten(maps: Tensor, values: int) -> Tensor:
    """(N, anchors * values, H, W) -> (N, H * W * anchors, values). In channels_last memory this is a view."""
    return maps.permute(0, 2, 3, 1).reshape(maps.shape[0], -1, values)


def _convs(module: nn.Module) -> list[nn.Conv2d]:
    return [m for m in module.modules() if isinstance(m, nn.Conv2d)]


def init_conv(conv: nn.Conv2d, *, fan_in: bool, gain: float | None = None) -> None:
    """Draw normal weights and set the bias to 0.

    Args:
        conv: The convolution.
        fan_in: Choose a standard deviation that keeps the size of the signal; otherwise it is 0.01.
        gain: How much the activation after the convolution shrinks the signal. None means a ReLU, or nothing for a depthwise convolution.
    """
    if fan_in:
        if gain is None:
            # Depthwise convolutions have no ReLU of their own here.
            gain = 1.0 if conv.groups > 1 else math.sqrt(2.0)
        inputs = conv.in_channels // conv.groups * math.prod(conv.kernel_size)
        nn.init.normal_(conv.weight, std=gain / math.sqrt(inputs))
    else:
        nn.init.normal_(conv.weight, std=0.01)
    if conv.bias is not None:
        nn.init.zeros_(conv.bias)
