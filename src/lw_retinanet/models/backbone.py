"""Backbones: torchvision's networks in stages C1..C5, and timm's networks if the extra ``timm`` is installed."""

from collections.abc import Callable
from itertools import pairwise
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torchvision import models

from lw_retinanet.backbones import BACKBONES, BACKBONES_IN_WORDS, TIMM
from lw_retinanet.errors import ConfigError, MissingExtraError
from lw_retinanet.models.frozen_norm import FrozenNorm, fold_frozen_norms, freeze_batch_norms

Norm = Literal["frozen", "batch", "group"]
RESNETS = tuple(name for name in BACKBONES if name.startswith("resnet"))
GROUPS = 32
_PROBE_HW = (224, 288)  # multiples of 32, as images are padded to, but not of 64


class Backbone(nn.Module):
    """A network as five stages of stride 2, 4, 8, 16 and 32. Its parameters have the names of the library that it comes from.

    Args:
        channels: Numbers of channels of C3, C4 and C5.
    """

    channels: tuple[int, ...]

    def stages(self) -> list[tuple[str, list[nn.Module]]]:
        """``("C1", modules), ... ("C5", modules)``: the modules that compute each stage, in order."""
        raise NotImplementedError

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Images (N, 3, H, W) -> feature maps by ``C3``, ``C4``, ``C5``."""
        outputs: dict[str, Tensor] = {}
        features = images
        for name, modules in self.stages():
            for module in modules:
                features = module(features)
            if name in ("C3", "C4", "C5"):
                outputs[name] = features
        return outputs

    def freeze(self, num_stages: int) -> None:
        """Stop training the first ``num_stages`` stages and their normalisation (1: the stem, 2: stem and C2, ... 5: all)."""
        for _, modules in self.stages()[:num_stages]:
            for module in modules:
                module.requires_grad_(False)


class ResNetBackbone(Backbone):
    """torchvision's ResNet without its classifier.

    Args:
        name: One of :data:`RESNETS`.
        norm: ``frozen`` statistics and affine parameters (for pretrained weights), or ``batch`` or ``group`` norm (for random ones).
        stride_in: The convolution that has the stride: ``3x3`` as in torchvision, or ``1x1`` as in Caffe and Detectron. Only ResNets with
            bottlenecks have this choice.
        norm_eps: Epsilon of frozen and batch normalisation.
    """

    def __init__(self, name: str, *, norm: Norm = "frozen", stride_in: Literal["3x3", "1x1"] = "3x3", norm_eps: float = 1e-5) -> None:
        super().__init__()
        network = getattr(models, name)(weights=None, norm_layer=_norm_layer(norm, norm_eps))
        self.conv1, self.bn1, self.relu, self.maxpool = network.conv1, network.bn1, network.relu, network.maxpool
        self.layer1, self.layer2, self.layer3, self.layer4 = network.layer1, network.layer2, network.layer3, network.layer4
        if stride_in == "1x1":
            if not hasattr(self.layer1[0], "conv3"):
                raise ConfigError(f"{name} has no bottlenecks, so no 1x1 convolution can have the stride; set model.stride_in=3x3")
            for stage in (self.layer2, self.layer3, self.layer4):
                stage[0].conv1.stride, stage[0].conv2.stride = (2, 2), (1, 1)
        c5 = network.fc.in_features
        self.channels = (c5 // 4, c5 // 2, c5)
        fold_frozen_norms(self)

    def stages(self) -> list[tuple[str, list[nn.Module]]]:
        """See :meth:`Backbone.stages`."""
        return [
            ("C1", [self.conv1, self.bn1, self.relu]),
            ("C2", [self.maxpool, self.layer1]),
            ("C3", [self.layer2]),
            ("C4", [self.layer3]),
            ("C5", [self.layer4]),
        ]


class MobileNetV2Backbone(Backbone):
    """torchvision's MobileNetV2 without its last convolution of 1280 channels, which only the classifier needs."""

    def __init__(self, *, norm: Norm = "frozen", norm_eps: float = 1e-5) -> None:
        super().__init__()
        network = models.mobilenet_v2(weights=None, norm_layer=_norm_layer(norm, norm_eps))
        self.features = network.features[:18]
        self.channels = (32, 96, 320)
        fold_frozen_norms(self)

    def stages(self) -> list[tuple[str, list[nn.Module]]]:
        """See :meth:`Backbone.stages`."""
        cuts = (0, 2, 4, 7, 14, 18)
        return [(f"C{i + 1}", list(self.features[start:stop])) for i, (start, stop) in enumerate(pairwise(cuts))]


class TimmBackbone(Backbone):
    """Any network of timm that has feature maps of stride 8, 16 and 32.

    Args:
        name: timm's name of the model.
        norm: ``frozen`` turns its batch norms into fixed affine maps; ``batch`` leaves them.
        pretrained: Let timm load its weights, from its cache or the internet.
    """

    def __init__(self, name: str, *, norm: Norm = "frozen", pretrained: bool = False) -> None:
        super().__init__()
        try:
            import timm
        except ImportError:
            raise MissingExtraError(f"backbone timm:{name} needs timm; install it with: pip install 'lw-retinanet[timm]'") from None
        if norm == "group":
            raise ConfigError("timm backbones keep their own normalisation; set model.norm to frozen or batch")
        if not timm.is_model(name):
            raise ConfigError(f"timm has no model {name!r}; timm.list_models() lists them")
        try:
            probe: Any = timm.create_model(name, features_only=True, pretrained=False)
            reductions = list(probe.feature_info.reduction())
            indices = tuple(len(reductions) - 1 - reductions[::-1].index(stride) for stride in (8, 16, 32))
            body: Any = timm.create_model(name, features_only=True, out_indices=indices, pretrained=pretrained)
            self.body: nn.Module = body
            self.channels = tuple(body.feature_info.channels())
            maps = self._probe()
        except (RuntimeError, ValueError, AttributeError, TypeError, AssertionError) as error:
            raise ConfigError(f"timm:{name} has no feature maps of stride 8, 16 and 32, choose another backbone ({error})") from error
        # timm's description of a network can be wrong, and anchors need maps of exactly these sizes.
        wanted = [(channels, -(-_PROBE_HW[0] // s), -(-_PROBE_HW[1] // s)) for channels, s in zip(self.channels, (8, 16, 32), strict=True)]
        if maps != wanted:
            raise ConfigError(f"timm:{name} gives maps {maps} for an image of {_PROBE_HW}, expected {wanted}; choose another backbone")
        if norm == "frozen":
            freeze_batch_norms(self.body)
            fold_frozen_norms(self)

    @torch.no_grad()
    def _probe(self) -> list[tuple[int, ...]]:
        was_training = self.body.training
        images = torch.zeros(1, 3, *_PROBE_HW, device=next(self.body.parameters()).device)
        shapes = [tuple(features.shape[1:]) for features in self.body.eval()(images)]
        self.body.train(was_training)
        return shapes

    def stages(self) -> list[tuple[str, list[nn.Module]]]:
        """Raise ConfigError: timm's networks are not divided into stages."""
        raise ConfigError("a timm backbone has no stages; use train.freeze=0 or 5")

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """See :meth:`Backbone.forward`."""
        return dict(zip(("C3", "C4", "C5"), self.body(images), strict=True))

    def freeze(self, num_stages: int) -> None:
        """Freeze everything (5) or nothing (0)."""
        if num_stages not in (0, 5):
            raise ConfigError(f"a timm backbone is frozen as a whole, got train.freeze={num_stages}; use 0 or 5")
        if num_stages:
            self.requires_grad_(False)


def make_backbone(name: str, *, norm: Norm, stride_in: Literal["3x3", "1x1"], norm_eps: float) -> Backbone:
    """Build a backbone with random weights by the name that the setting ``model.backbone`` uses.

    Raises:
        ConfigError: For an unknown name, or a ``stride_in`` that this network cannot have.
    """
    if name in RESNETS:
        return ResNetBackbone(name, norm=norm, stride_in=stride_in, norm_eps=norm_eps)
    if stride_in == "1x1":
        raise ConfigError(f"{name} has no choice of stride_in, only ResNets have; set model.stride_in=3x3")
    if name == "mobilenet_v2":
        return MobileNetV2Backbone(norm=norm, norm_eps=norm_eps)
    if name.startswith(TIMM):
        return TimmBackbone(name.removeprefix(TIMM), norm=norm)
    raise ConfigError(f"unknown backbone {name!r}; known: {BACKBONES_IN_WORDS}")


def _norm_layer(norm: Norm, eps: float) -> Callable[[int], nn.Module]:
    def layer(num_features: int) -> nn.Module:
        if norm == "frozen":
            return FrozenNorm(num_features, eps=eps)
        if norm == "batch":
            return nn.BatchNorm2d(num_features, eps=eps)
        return nn.GroupNorm(_divisor(num_features, GROUPS), num_features)

    return layer


def _divisor(channels: int, most: int) -> int:
    return next(groups for groups in range(min(most, channels), 0, -1) if channels % groups == 0)
