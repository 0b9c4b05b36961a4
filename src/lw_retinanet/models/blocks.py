"""The units and predictions that the rows of :data:`lw_retinanet.heads.D_BLOCKS` name, as functions of input and output channels."""

from collections.abc import Callable

from torch import nn

NORM_GROUPS = 32


def conv3x3(in_channels: int, out_channels: int) -> nn.Module:
    """3x3 convolution, ReLU: RetinaNet's own unit."""
    return nn.Sequential(nn.Conv2d(in_channels, out_channels, 3, padding=1), nn.ReLU(inplace=True))


def conv3x3_group_norm(in_channels: int, out_channels: int) -> nn.Module:
    """3x3 convolution without bias, group norm, ReLU: the unit of torchvision's RetinaNet v2.

    Raises:
        ValueError: If the number of output channels is not a multiple of 32.
    """
    if out_channels % NORM_GROUPS:
        raise ValueError(f"a tower with group norm has a multiple of {NORM_GROUPS} channels, got {out_channels}; choose another width")
    conv = nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=False)
    return nn.Sequential(conv, nn.GroupNorm(NORM_GROUPS, out_channels), nn.ReLU(inplace=True))


def conv1x1(in_channels: int, out_channels: int) -> nn.Module:
    """1x1 convolution, ReLU."""
    return nn.Sequential(nn.Conv2d(in_channels, out_channels, 1), nn.ReLU(inplace=True))


def separable3x3(in_channels: int, out_channels: int) -> nn.Module:
    """Depthwise 3x3, 1x1, ReLU. The paper does not say whether something is between the two convolutions; here nothing is."""
    return nn.Sequential(*_separable(in_channels, out_channels), nn.ReLU(inplace=True))


def conv1x1_batch_norm(in_channels: int, out_channels: int) -> nn.Module:
    """1x1 convolution without bias, batch norm, ReLU. Folding (:func:`~lw_retinanet.models.fold.folded`) makes :func:`conv1x1` of it.

    Statistics come from the images of one forward pass in one process, so from ``train.batch_size`` images. On P3 a single image is a
    large sample (10,000 cells at 800 x 800); on P6 and P7 it is not.
    """
    conv = nn.Conv2d(in_channels, out_channels, 1, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(out_channels), nn.ReLU(inplace=True))


def separable3x3_batch_norm(in_channels: int, out_channels: int) -> nn.Module:
    """Depthwise 3x3, batch norm, 1x1, batch norm, ReLU, both convolutions without bias. For statistics see :func:`conv1x1_batch_norm`.

    MobileNet has a ReLU after the first norm, too. Here only the norms differ from :func:`separable3x3`, so that a comparison of the two
    measures the norms alone, and both cost the same after folding.
    """
    depthwise, pointwise = _separable(in_channels, out_channels, bias=False)
    return nn.Sequential(depthwise, nn.BatchNorm2d(in_channels), pointwise, nn.BatchNorm2d(out_channels), nn.ReLU(inplace=True))


def depthwise5x5(in_channels: int, out_channels: int) -> nn.Module:
    """One 5x5 depthwise convolution without ReLU: it gives a tower of 1x1 units a wider field of view for 25 MACs a channel.

    Raises:
        ValueError: If the numbers of channels differ.
    """
    if in_channels != out_channels:
        raise ValueError(f"a depthwise unit keeps its width, got {in_channels} -> {out_channels}; put it after a 1x1 unit")
    return nn.Conv2d(in_channels, out_channels, 5, padding=2, groups=in_channels)


def _separable(in_channels: int, out_channels: int, *, bias: bool = True) -> tuple[nn.Module, nn.Module]:
    depthwise = nn.Conv2d(in_channels, in_channels, 3, padding=1, groups=in_channels, bias=False)
    return depthwise, nn.Conv2d(in_channels, out_channels, 1, bias=bias)


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
PREDICTIONS: dict[str, Unit] = {
    "3x3": lambda in_channels, out_channels: nn.Conv2d(in_channels, out_channels, 3, padding=1),
    "1x1": lambda in_channels, out_channels: nn.Conv2d(in_channels, out_channels, 1),
    "dw3x3+1x1": lambda in_channels, out_channels: nn.Sequential(*_separable(in_channels, out_channels)),
}
