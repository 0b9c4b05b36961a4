"""Fill new towers from the weights of the old ones, without images: better than random weights, and all there is without images.

A 1x1 kernel becomes the sum of the 3x3 kernel's taps, which is exact where the features do not change from cell to cell. A depthwise
kernel before a 1x1 one becomes, for each input channel, the first singular vector of its kernels. A narrower tower keeps the channels with
the largest weights. If the new tower has more layers than the old one, its first layers pass their input on. If it has fewer, the old
layers behind the first one are left out.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lw_retinanet.lightening.batch_norm import as_affine, set_offset
from lw_retinanet.lightening.towers import BranchPair, Tower, convolutions, ends_in_relu, has_norm, num_common


@torch.no_grad()
def transfer_weights(*pairs: BranchPair) -> None:
    """Fill the students' new layers from the teachers' weights, except units with a norm that is not a batch norm.

    Args:
        pairs: A branch of a level, or both branches; both if their students have units in common.
    """
    common = num_common(pairs)
    decode = None
    if common:
        # Units that both branches read pass on what either of them needs.
        kernel = torch.cat([_counterparts(pair.teacher, 1)[0][0] for pair in pairs])
        decode = torch.eye(kernel.shape[1])
        for unit in pairs[0].student.units[:common]:
            decode = torch.eye(convolutions(unit)[-1].out_channels) if has_norm(unit) else _pass_on(unit, decode, kernel)
    for pair in pairs:
        _fill_student(pair, common, decode)


def _fill_student(pair: BranchPair, first: int, decode: Tensor | None) -> None:
    """Fill the units from number ``first`` on, whose input gives that of the tower by ``decode``, and the predictions."""
    units = list(pair.student.units)[first:]
    layers = _counterparts(pair.teacher, len(units))
    num_extra = len(units) - len(layers)
    kernel, _ = layers[0]
    # (old channels, new channels): computes the features of the old layer from those of the new one.
    decode = torch.eye(kernel.shape[1]) if decode is None else decode
    for place, unit in enumerate(units):
        width = convolutions(unit)[-1].out_channels
        if pair.is_shared(unit) or has_norm(unit):
            decode = torch.eye(width)
            continue
        if place < num_extra:
            decode = _pass_on(unit, decode, kernel)
            continue
        kernel, offset = layers[place - num_extra]
        strength = kernel.flatten(1).norm(dim=1)
        if place + 1 < len(units):
            strength = strength * layers[place + 1 - num_extra][0].transpose(0, 1).flatten(1).norm(dim=1)
        kept = strength.topk(min(width, len(kernel))).indices.sort().values
        fill_kernel(unit, _on_new(kernel[kept], decode), offset[kept])
        decode = F.one_hot(kept, len(kernel)).T.float()
        if width > len(kept):
            decode = F.pad(decode, (0, width - len(kept)))
    for name, predict in pair.student.predictions.items():
        old = pair.teacher.predictions[name]
        if predict is not old:
            kernel, offset = _as_one(old)
            fill_kernel(predict, _on_new(kernel, decode), offset)


def _counterparts(tower: Tower, count: int) -> list[tuple[Tensor, Tensor]]:
    """The old units that ``count`` new ones can imitate, each as one convolution. The first one, which reads the pyramid, is among them."""
    units = list(tower.units)
    if count < len(units):
        units = [units[0], *units[len(units) - count + 1 :]]
    return [_as_one(unit) for unit in units]


def _as_one(module: nn.Module) -> tuple[Tensor, Tensor]:
    """An old unit or prediction as one convolution: its (outputs, inputs, k, k) weights and its offsets."""
    convs = convolutions(module)
    kernel, offset = as_affine(module, convs[-1])
    if len(convs) == 2:  # depthwise, then 1x1
        depthwise, inner = as_affine(module, convs[0])
        kernel, offset = kernel * depthwise.transpose(0, 1), offset + kernel[:, :, 0, 0] @ inner
    elif convs[-1].groups > 1:
        kernel = torch.diag_embed(kernel[:, 0].permute(1, 2, 0)).permute(2, 3, 0, 1)
    for norm in module.modules():
        if isinstance(norm, nn.GroupNorm) and norm.affine:
            # The statistics of a group norm depend on the image. For inputs of unit variance, each group has this size.
            size = kernel.flatten(1).norm(dim=1).unflatten(0, (norm.num_groups, -1)).square().mean(dim=1).sqrt()
            factor = norm.weight.float().cpu() / size.repeat_interleave(len(kernel) // norm.num_groups).clamp(min=1e-12)
            kernel, offset = kernel * factor[:, None, None, None], offset * factor + norm.bias.float().cpu()
    return kernel, offset


def _on_new(kernel: Tensor, decode: Tensor) -> Tensor:
    """An old layer's kernel, applied to the channels of the new tower. Behind a unit that was not filled the channels are unrelated."""
    if decode.shape[0] != kernel.shape[1]:
        decode = torch.eye(kernel.shape[1], decode.shape[1])
    return torch.einsum("ocyx,cs->osyx", kernel, decode)


def _pass_on(unit: nn.Module, decode: Tensor, kernel: Tensor) -> Tensor:
    """Fill a layer so that its output determines its input; returns the new ``decode``."""
    width = convolutions(unit)[-1].out_channels
    if not ends_in_relu(unit):
        fill_kernel(unit, torch.eye(width, decode.shape[1])[:, :, None, None], torch.zeros(width))
        return decode[:, :width]
    # ReLU keeps one sign, so every direction is passed on twice, with both signs.
    mapped = _on_new(kernel, decode)
    directions = torch.linalg.svd(mapped.transpose(1, 3).flatten(0, 2), full_matrices=False).Vh[: width // 2]
    rows = torch.cat([directions, -directions])
    rows = F.pad(rows, (0, 0, 0, width - len(rows)))
    fill_kernel(unit, rows[:, :, None, None], torch.zeros(width))
    back = torch.cat([directions.T, -directions.T], dim=1)
    return decode @ F.pad(back, (0, width - back.shape[1]))


@torch.no_grad()
def fill_kernel(module: nn.Module, kernel: Tensor, offset: Tensor) -> None:
    """Write a (outputs, inputs, k, k) kernel into a unit or prediction, as closely as its form allows. Outputs left over are zero."""
    convs = convolutions(module)
    last = convs[-1]
    kernel = F.pad(kernel, (0, 0, 0, 0, 0, 0, 0, last.out_channels - len(kernel)))
    offset = F.pad(offset, (0, last.out_channels - len(offset)))
    if len(convs) == 2:
        side = kernel.shape[2]
        flat = kernel.flatten(2).permute(1, 0, 2)  # (inputs, outputs, taps)
        u, s, vh = torch.linalg.svd(flat, full_matrices=False)
        convs[0].weight.copy_(_centred(vh[:, 0].unflatten(1, (side, side))[:, None], convs[0].kernel_size[0]))
        set_offset(module, convs[0], torch.zeros(convs[0].out_channels))
        kernel = (u[:, :, 0] * s[:, :1]).T[:, :, None, None]
    elif last.groups > 1:
        kernel = _centred(kernel.diagonal()[None].permute(3, 0, 1, 2), last.kernel_size[0])
    elif last.kernel_size[0] < kernel.shape[2]:
        kernel = kernel.sum(dim=(2, 3), keepdim=True)
    else:
        kernel = _centred(kernel, last.kernel_size[0])
    last.weight.copy_(kernel)
    set_offset(module, last, offset)


def _centred(kernel: Tensor, side: int) -> Tensor:
    return F.pad(kernel, [(side - kernel.shape[2]) // 2] * 4)
