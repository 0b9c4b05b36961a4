"""The units that towers are made of, and the paper's D-blocks as tuples of them (Fig. 4)."""

from collections.abc import Callable

from torch import nn

NORM_GROUPS = 32


def conv3x3(in_channels: int, out_channels: int) -> nn.Module:
    """The original unit: 3x3 convolution, ReLU."""
    return nn.Sequential(nn.Conv2d(in_channels, out_channels, 3, padding=1), nn.ReLU(inplace=True))


def conv3x3_group_norm(in_channels: int, out_channels: int) -> nn.Module:
    """3x3 convolution without bias, group norm, ReLU: the tower of torchvision's RetinaNet v2.

    Raises:
        ValueError: for a width that 32 groups do not divide.
    """
    if out_channels % NORM_GROUPS:
        raise ValueError(f"a tower with group norm has a multiple of {NORM_GROUPS} channels, got {out_channels}; choose another width")
    conv = nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=False)
    return nn.Sequential(conv, nn.GroupNorm(NORM_GROUPS, out_channels), nn.ReLU(inplace=True))


def conv1x1(in_channels: int, out_channels: int) -> nn.Module:
    """1x1 convolution, ReLU: sees one cell."""
    return nn.Sequential(nn.Conv2d(in_channels, out_channels, 1), nn.ReLU(inplace=True))


def separable3x3(in_channels: int, out_channels: int) -> nn.Module:
    """Depthwise 3x3, 1x1, ReLU (MobileNet's order). The paper leaves open what stands between the two; here nothing does."""
    return nn.Sequential(*_separable(in_channels, out_channels), nn.ReLU(inplace=True))


def conv1x1_batch_norm(in_channels: int, out_channels: int) -> nn.Module:
    """1x1 convolution without bias, batch norm, ReLU; folded (:func:`~lw_retinanet.models.fold.folded`) it is :func:`conv1x1`.

    Statistics are taken over the pictures of one forward pass of one process: ``batch_size``, not times ``accumulate`` or the number of
    GPUs. On P3 that is no small sample even for a single picture (10,000 cells at 800 x 800); on P6 and P7 it is.
    """
    conv = nn.Conv2d(in_channels, out_channels, 1, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(out_channels), nn.ReLU(inplace=True))


def separable3x3_batch_norm(in_channels: int, out_channels: int) -> nn.Module:
    """Depthwise 3x3, batch norm, 1x1, batch norm, ReLU, both convolutions without bias; statistics as in :func:`conv1x1_batch_norm`.

    MobileNet has a ReLU behind the first norm too. Here the norms are all that differs from :func:`separable3x3`, so a comparison of the
    two measures them alone, and both cost the same once folded.
    """
    depthwise, pointwise = _separable(in_channels, out_channels, bias=False)
    return nn.Sequential(depthwise, nn.BatchNorm2d(in_channels), pointwise, nn.BatchNorm2d(out_channels), nn.ReLU(inplace=True))


def depthwise5x5(in_channels: int, out_channels: int) -> nn.Module:
    """One 5x5 depthwise convolution, linear: gives a 1x1 tower its field of view for 25 MACs a channel.

    Raises:
        ValueError: if the widths differ.
    """
    if in_channels != out_channels:
        raise ValueError(f"a depthwise unit keeps its width, got {in_channels} -> {out_channels}; put it after a 1x1 unit")
    return nn.Conv2d(in_channels, out_channels, 5, padding=2, groups=in_channels)


def _separable(in_channels: int, out_channels: int, *, bias: bool = True) -> tuple[nn.Module, nn.Module]:
    depthwise = nn.Conv2d(in_channels, in_channels, 3, padding=1, groups=in_channels, bias=False)
    return depthwise, nn.Conv2d(in_channels, out_channels, 1, bias=bias)


def predict3x3(in_channels: int, out_channels: int) -> nn.Module:
    return nn.Conv2d(in_channels, out_channels, 3, padding=1)


def predict1x1(in_channels: int, out_channels: int) -> nn.Module:
    return nn.Conv2d(in_channels, out_channels, 1)


def predict_separable3x3(in_channels: int, out_channels: int) -> nn.Module:
    return nn.Sequential(*_separable(in_channels, out_channels))


Unit = Callable[[int, int], nn.Module]

UNITS: dict[str, Unit] = {
    "3x3": conv3x3,
    "3x3-gn": conv3x3_group_norm,
    "1x1": conv1x1,
    "dw3x3+1x1": separable3x3,
    "dw5x5": depthwise5x5,
    "1x1-bn": conv1x1_batch_norm,
    "dw3x3+1x1-bn": separable3x3_batch_norm,
}
PREDICTIONS: dict[str, Unit] = {"3x3": predict3x3, "1x1": predict1x1, "dw3x3+1x1": predict_separable3x3}
