"""New towers from old ones without looking at any image: a start that is better than chance, and the fallback where there are no images.

A 1x1 kernel is the sum of the 3x3 kernel's taps, which is exact where the features do not change from cell to cell. A depthwise kernel
followed by a 1x1 one takes, for each input channel, the first singular vector of its kernels. A narrower tower keeps the channels whose
weights are largest. Layers that the old tower has no counterpart of pass their input on; of more old layers than new ones, those after the
first are left out.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lw_retinanet.lightening.batch_norm import as_affine, set_offset
from lw_retinanet.lightening.towers import BranchPair, Tower, convolutions, ends_in_relu, has_norm


@torch.no_grad()
def transfer_weights(pair: BranchPair) -> None:
    """Fill a student's own layers from the teacher's weights; layers that are shared or have a norm other than batch norm stay."""
    units = list(pair.student.units)
    layers = _counterparts(pair.teacher, len(units))
    # Of more layers than the old tower has, the first ones only pass on.
    num_extra = len(units) - len(layers)
    kernel, _ = layers[0]
    # (old channels, new channels): how the features of the old layer come out of those of the new one.
    decode = torch.eye(kernel.shape[1])
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
        _fill(unit, _on_new(kernel[kept], decode), offset[kept])
        decode = F.one_hot(kept, len(kernel)).T.float()
        if width > len(kept):
            decode = F.pad(decode, (0, width - len(kept)))
    for name, predict in pair.student.predictions.items():
        old = pair.teacher.predictions[name]
        if predict is not old:
            kernel, offset = _as_one(old)
            _fill(predict, _on_new(kernel, decode), offset)


def _counterparts(tower: Tower, count: int) -> list[tuple[Tensor, Tensor]]:
    """The old units that so many new ones can imitate, each as one convolution. The first one knows the pyramid, so it is among them."""
    units = list(tower.units)
    if count < len(units):
        units = [units[0], *units[len(units) - count + 1 :]]
    return [_as_one(unit) for unit in units]


def _as_one(module: nn.Module) -> tuple[Tensor, Tensor]:
    """An old unit or prediction as one convolution: (outputs, inputs, k, k) weights, offsets."""
    convs = convolutions(module)
    kernel, offset = as_affine(module, convs[-1])
    if len(convs) == 2:  # depthwise, then 1x1
        depthwise, inner = as_affine(module, convs[0])
        kernel, offset = kernel * depthwise.transpose(0, 1), offset + kernel[:, :, 0, 0] @ inner
    elif convs[-1].groups > 1:
        kernel = torch.diag_embed(kernel[:, 0].permute(1, 2, 0)).permute(2, 3, 0, 1)
    for norm in module.modules():
        if isinstance(norm, nn.GroupNorm) and norm.affine:
            # Its statistics depend on the image; inputs of unit variance give each group this size.
            size = kernel.flatten(1).norm(dim=1).unflatten(0, (norm.num_groups, -1)).square().mean(dim=1).sqrt()
            factor = norm.weight.float().cpu() / size.repeat_interleave(len(kernel) // norm.num_groups).clamp(min=1e-12)
            kernel, offset = kernel * factor[:, None, None, None], offset * factor + norm.bias.float().cpu()
    return kernel, offset


def _on_new(kernel: Tensor, decode: Tensor) -> Tensor:
    """An old layer's kernel on the channels of the new tower. Behind a layer that was not filled the two are unrelated."""
    if decode.shape[0] != kernel.shape[1]:
        decode = torch.eye(kernel.shape[1], decode.shape[1])
    return torch.einsum("ocyx,cs->osyx", kernel, decode)


def _pass_on(unit: nn.Module, decode: Tensor, kernel: Tensor) -> Tensor:
    """Fill a layer so that its input can be read off its output; returns how."""
    width = convolutions(unit)[-1].out_channels
    if not ends_in_relu(unit):
        _fill(unit, torch.eye(width, decode.shape[1])[:, :, None, None], torch.zeros(width))
        return decode[:, :width]
    # ReLU keeps one sign, so every direction is passed on twice: as it is and reversed.
    mapped = _on_new(kernel, decode)
    directions = torch.linalg.svd(mapped.transpose(1, 3).flatten(0, 2), full_matrices=False).Vh[: width // 2]
    rows = torch.cat([directions, -directions])
    rows = F.pad(rows, (0, 0, 0, width - len(rows)))
    _fill(unit, rows[:, :, None, None], torch.zeros(width))
    back = torch.cat([directions.T, -directions.T], dim=1)
    return decode @ F.pad(back, (0, width - back.shape[1]))


def _fill(module: nn.Module, kernel: Tensor, offset: Tensor) -> None:
    """Write a (outputs, inputs, k, k) kernel into a unit or prediction, as near as its form allows. Rows that are left over are zero."""
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
