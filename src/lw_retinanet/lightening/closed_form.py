"""Fill new towers without gradients: one ridge regression for each layer, on the features that the new tower really computes.

Three ideas make it work; docs/lightening.md has what each of them gains:

* A cell counts by the score that the old head gives it. Nearly all cells are background, for which any tower is good enough.
* A tower with a smaller field of view loses information in every layer. So some channels of every layer carry the best estimate of the
  final outputs so far, shifted to where ReLU leaves it unchanged. The other channels imitate the old tower's features, and with them the
  next layer improves the estimate.
* If both branches of a level are new, only they read the convolution that makes the level's map. It becomes the 3x3 convolution that
  explains most of all that the old towers compute (reduced-rank regression). This costs no arithmetic.

In this module a column is the patch of features around one cell, and n is the number of cells that were chosen from all images.
"""

import contextlib
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lw_retinanet.counting.dense_head import DenseBranch
from lw_retinanet.errors import InputError
from lw_retinanet.lightening.batch_norm import fixed_statistics, set_offset, settle
from lw_retinanet.lightening.towers import BranchPair, LevelPair, Tower, convolutions, ends_in_relu, has_norm, num_common
from lw_retinanet.progress import Progress, tracked

RIDGE = 1e-4  # relative to the mean variance of the inputs
MAX_CELLS = 73_000  # in all images together: 0.7 GB of 3x3 patches at 256 channels
SURE_SHARE = 0.6  # share of an image's chosen cells that the old head scores best; the others are drawn at random and weigh more
CARRIED = 1 / 3  # largest share of a layer's channels that carry the estimate
_CLS_SURENESS = 100.0  # a cell weighs 1 + 100 x its best score in the class branch, so that background still counts
_BOX_FLOOR = 1e-3  # a cell weighs this much plus its best score in the box branch, because boxes matter where there are objects
_SHIFT_MARGIN = 0.05  # distance to ReLU's bend, as a share of the range of values


@dataclass(frozen=True, kw_only=True)
class ClosedForm:
    """How well the new towers fit.

    Args:
        errors: By branch, the share of the old outputs' weighted variance that the new outputs miss on the fitted cells.
        cells: Number of fitted cells.
    """

    errors: dict[DenseBranch, float]
    cells: int


@torch.no_grad()
def solve_closed_form(
    level: LevelPair,
    maps: Sequence[Tensor],
    *,
    beside: Sequence[tuple[LevelPair, Sequence[Tensor]]] = (),
    seed: int = 0,
    progress: Progress | None = None,
) -> ClosedForm:
    """Fill new towers, and the level's new output convolution if there is one.

    Args:
        level: Old and new layers. The new ones are written to, except units with a norm that is not a batch norm.
        maps: (1, C, H, W) maps that enter ``level.old_output``, or the level's maps if there is none; one for each calibration image.
        beside: Other levels that run the same new towers, with their maps. The towers then suit all these levels.
        seed: Seed for the choice of cells.
        progress: Passes on the maps, for instance to show a bar.

    Raises:
        InputError: without maps, or for a map that the level cannot take or that is not finite; nothing is written then.
    """
    parts = [(level, maps), *beside]
    for each, given in parts:
        if not given:
            raise InputError(f"the closed form of {each.level} needs feature maps, got none; give at least one calibration image")
    with contextlib.ExitStack() as stack:
        for each, _ in parts:
            stack.enter_context(fixed_statistics(each))
        looks = [_look(each, given, seed, progress, most=MAX_CELLS // len(parts)) for each, given in parts]
        for (each, given), (cells, aims) in zip(parts, looks, strict=True):
            weights = _weights(each, cells, aims)
            if each.output is not None and each.output_is_read:
                _imitate_output(each, given, cells, weights["cls"])
            elif each.output is not None:
                _fit_output(each, given, cells, aims, weights)
        cells, aims = _joined(looks)
        device = cells.importance.device
        return _fill_towers(level, [each.new_maps(item.to(device).float()) for each, given in parts for item in given], cells, aims)


def _weights(level: LevelPair, cells: "_Cells", aims: "_Aims") -> dict[DenseBranch, Tensor]:
    """(n,) How much each cell counts in each branch."""
    best = level.logits(aims.outputs).sigmoid().amax(dim=0)
    by_class = cells.importance * (1 + _CLS_SURENESS * best)
    # A proposal network's one tower is for both, and most of what it must get right is the objectness of every cell.
    return {"cls": by_class, "bbox": cells.importance * (_BOX_FLOOR + best), "rpn": by_class}


def _joined(looks: Sequence[tuple["_Cells", "_Aims"]]) -> tuple["_Cells", "_Aims"]:
    """The cells of several levels as one."""
    if len(looks) == 1:
        return looks[0]
    cells, aims = zip(*looks, strict=True)
    first = aims[0]
    layers = {name: [torch.cat(depth, dim=1) for depth in zip(*(each.layers[name] for each in aims), strict=True)] for name in first.layers}
    outputs = {name: torch.cat([each.outputs[name] for each in aims], dim=1) for name in first.outputs}
    places = [place for each in cells for place in each.places]
    return _Cells(places=places, importance=torch.cat([each.importance for each in cells])), _Aims(layers=layers, outputs=outputs)


def _fill_towers(level: LevelPair, maps: list[Tensor], cells: "_Cells", aims: "_Aims") -> ClosedForm:
    scores, weights = level.logits(aims.outputs).sigmoid(), _weights(level, cells, aims)
    # The box of an anchor counts by the score of this anchor.
    sure = cells.importance * (_BOX_FLOOR / 10 + scores.unflatten(0, (level.num_anchors, -1)).amax(dim=1))
    branch_aims = []
    for pair in level.pairs:
        outputs = aims.outputs[pair.branch]
        parts = _parts(pair.branch, len(outputs), weights["cls"], sure)
        branch_aims.append(_Aim(layers=aims.layers[pair.branch], outputs=outputs, weight=weights[pair.branch], parts=parts))
    common = num_common(level.pairs)
    if common:
        maps = _fit_common(level, common, maps, cells, branch_aims)
    errors = {pair.branch: _fit_tower(pair, common, maps, cells, aim) for pair, aim in zip(level.pairs, branch_aims, strict=True)}
    return ClosedForm(errors=errors, cells=len(cells.importance))


def _parts(branch: DenseBranch, num_outputs: int, by_class: Tensor, by_anchor: Tensor) -> list[tuple[int, Tensor]]:
    """The number of outputs that have the same weights, and these weights: first the logits, then the box of each anchor."""
    num_logits = {"cls": num_outputs, "bbox": 0, "rpn": len(by_anchor)}[branch]
    parts = [(num_logits, by_class), *(((num_outputs - num_logits) // len(by_anchor), weight) for weight in by_anchor)]
    return [(count, weight) for count, weight in parts if count]


@dataclass(frozen=True, kw_only=True, eq=False)
class _Cells:
    """The chosen cells, image by image.

    Args:
        places: For each image, (n_i,) positions in its flattened map.
        importance: (n,) number of cells of its image that each chosen cell stands for.
    """

    places: list[Tensor]
    importance: Tensor

    def columns(self, maps: Iterable[Tensor], kernel: int) -> Tensor:
        """(C * kernel^2, n) patches around the cells."""
        found = []
        for item, places in zip(maps, self.places, strict=True):
            features = item.to(places.device).float()
            flat = features.flatten(2)[0] if kernel == 1 else F.unfold(features, kernel, padding=kernel // 2)[0]
            found.append(flat[:, places])
        return torch.cat(found, dim=1)


@dataclass(frozen=True, kw_only=True, eq=False)
class _Aims:
    """What the old head computes at the cells: by branch, (channels, n) outputs of every unit before its ReLU, and of the predictions."""

    layers: dict[DenseBranch, list[Tensor]]
    outputs: dict[DenseBranch, Tensor]


@dataclass(frozen=True, kw_only=True, eq=False)
class _Aim:
    """The same for one branch, with (n,) weights of the cells for its layers, and the numbers of outputs with weights of their own."""

    layers: list[Tensor]
    outputs: Tensor
    weight: Tensor
    parts: list[tuple[int, Tensor]]

    def readout(self, columns: Tensor, kernel: int) -> Tensor:
        """The best linear map from columns to the outputs: (D + 1, outputs), of which the last row is the offset."""
        if kernel > 1:  # Each part needs a covariance of its own, which is affordable for small patches only.
            return _ridge(columns, self.outputs, self.weight)
        outputs = self.outputs.split([count for count, _ in self.parts])
        return torch.cat([_ridge(columns, part, weight) for part, (_, weight) in zip(outputs, self.parts, strict=True)], dim=1)

    def error(self, outputs: Tensor) -> float:
        """The share of the weighted variance that the given outputs miss."""
        mean = (self.outputs * self.weight).sum(dim=1, keepdim=True) / self.weight.sum()
        missed = ((outputs - self.outputs) ** 2 * self.weight).sum()
        return float(missed / ((self.outputs - mean) ** 2 * self.weight).sum().clamp(min=1e-12))


def _look(level: LevelPair, maps: Sequence[Tensor], seed: int, progress: Progress | None, *, most: int) -> tuple[_Cells, _Aims]:
    """Run the old head, choose cells, and keep what it computes there."""
    generator = torch.Generator().manual_seed(seed)
    device = next(parameter.device for tower in level.old.values() for layer in tower.layers for parameter in layer.parameters())
    per_image = max(16, most // len(maps))
    places, importance = [], []
    layers: dict[DenseBranch, list[list[Tensor]]] = {name: [[] for _ in tower.units] for name, tower in level.old.items()}
    outputs: dict[DenseBranch, list[Tensor]] = {name: [] for name in level.old}
    for item in tracked(maps, len(maps), f"closed form for {level.level}", progress):
        level.require_map(item)
        features = level.old_maps(item.to(device).float())
        seen = {name: _layers(tower, features) for name, tower in level.old.items()}
        scores = level.logits({name: final for name, (_, final) in seen.items()}).sigmoid().flatten(1).amax(dim=0)
        chosen, weight = _choose(scores, per_image, generator)
        places.append(chosen)
        importance.append(weight)
        for name, (befores, final) in seen.items():
            outputs[name].append(final.flatten(1)[:, chosen])
            for kept, before in zip(layers[name], befores, strict=True):
                kept.append(before.flatten(1)[:, chosen])
    return _Cells(places=places, importance=torch.cat(importance)), _Aims(
        layers={name: [torch.cat(values, dim=1) for values in kept] for name, kept in layers.items()},
        outputs={name: torch.cat(values, dim=1) for name, values in outputs.items()},
    )


def _choose(scores: Tensor, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Choose the cells with the best scores and a sample of the others.

    Returns:
        Their positions, and the number of cells that each of them stands for.
    """
    total, device = len(scores), scores.device
    if total <= count:
        return torch.arange(total, device=device), torch.ones(total, device=device)
    order = scores.argsort(descending=True, stable=True)
    num_sure = math.ceil(SURE_SHARE * count)
    others = order[num_sure:][torch.randperm(total - num_sure, generator=generator)[: count - num_sure].to(device)]
    weight = torch.ones(num_sure + len(others), device=device)
    weight[num_sure:] = (total - num_sure) / max(1, len(others))
    return torch.cat([order[:num_sure], others]), weight


def _layers(tower: Tower, features: Tensor) -> tuple[list[Tensor], Tensor]:
    """The output of every unit before its activation, and all predictions in one tensor; each (channels, H, W)."""
    befores = []
    for unit in tower.units:
        before = _without_relu(unit)(features)
        befores.append(before[0])
        features = F.relu(before) if ends_in_relu(unit) else before
    return befores, torch.cat([predict(features)[0] for predict in tower.predictions.values()])


def _imitate_output(level: LevelPair, maps: Sequence[Tensor], cells: _Cells, weight: Tensor) -> None:
    """Fill a light output convolution so that it gives nearly the map of the old one, which is linear."""
    assert level.output is not None
    assert level.old_output is not None
    (conv,) = convolutions(level.old_output)
    assert conv.bias is not None
    _fill(level.output, cells.columns(maps, conv.kernel_size[0]), torch.cat([conv.weight.flatten(1).T, conv.bias[None]]).double(), weight)


def _fit_output(level: LevelPair, maps: Sequence[Tensor], cells: _Cells, aims: _Aims, weights: dict[DenseBranch, Tensor]) -> None:
    """Fill the level's output convolution with the directions of its input that explain most of what the old towers compute."""
    assert level.output is not None
    (conv,) = convolutions(level.output)
    columns = cells.columns(maps, conv.kernel_size[0])
    maps_to_aims, covariance = [], torch.zeros((), dtype=torch.float64, device=columns.device)
    for branch in aims.layers:
        weight = weights[branch]
        share = weight / weight.sum()
        wanted = [_unit_variance(values, share) for values in (*aims.layers[branch], aims.outputs[branch])]
        maps_to_aims.append(_ridge(columns, torch.cat(wanted), weight)[:-1])
        covariance = covariance + ((columns * share) @ columns.T).double()
    together = torch.cat(maps_to_aims, dim=1)
    _, directions = torch.linalg.eigh(together.T @ covariance @ together)
    found = together @ directions[:, -conv.out_channels :]
    # One row for the offset. If the old towers compute fewer values than the level has channels, the channels left over are 0.
    _write(conv, conv, F.pad(found, (0, conv.out_channels - found.shape[1], 0, 1)))


def _fit_common(level: LevelPair, count: int, maps: list[Tensor], cells: _Cells, aims: Sequence[_Aim]) -> list[Tensor]:
    """Fill the units that both branches read, each with an equal share of the channels; returns the features behind them."""
    units = level.pairs[0].student.units
    for place, unit in enumerate(units[:count]):
        if not has_norm(unit):
            parts = [(aim, _features_to_imitate(pair, place, aim)) for pair, aim in zip(level.pairs, aims, strict=True)]
            _fit_unit(unit, units[place + 1], maps, cells, parts)
            settle(unit, maps)
        maps = [unit(item) for item in maps]
    return maps


def _fit_tower(pair: BranchPair, first: int, maps: list[Tensor], cells: _Cells, aim: _Aim) -> float:
    """Fill a tower from unit number ``first``, which the maps enter, to its last layer; returns the error of its outputs."""
    units, predictions = list(pair.student.units), list(pair.student.predictions.values())
    own_predictions = [predict for predict in predictions if not pair.is_shared(predict)]
    for place, unit in list(enumerate(units))[first:]:
        following = units[place + 1] if place + 1 < len(units) else predictions[0]
        if not pair.is_shared(unit) and not has_norm(unit):
            features = _features_to_imitate(pair, place, aim)
            imitates = pair.is_shared(following)
            if imitates:  # The old layer needs the features that it has always read.
                features = aim.layers[pair.teacher.layers.index(following) - 1] if following in pair.teacher.units else aim.layers[-1]
            _fit_unit(unit, following, maps, cells, [(aim, features)], imitates=imitates)
            settle(unit, maps)
        maps = [unit(item) for item in maps]
    if own_predictions:
        kernel = _kernel(own_predictions[0])
        columns = cells.columns(maps, kernel)
        sizes = [convolutions(predict)[-1].out_channels for predict in predictions]
        for predict, part in zip(predictions, aim.readout(columns, kernel).split(sizes, dim=1), strict=True):
            if not pair.is_shared(predict):
                _fill(predict, columns, part, aim.weight)
    outputs = [torch.cat([predict(item)[0] for predict in predictions]).flatten(1) for item in maps]
    return aim.error(torch.cat([values[:, places] for values, places in zip(outputs, cells.places, strict=True)], dim=1))


def _features_to_imitate(pair: BranchPair, place: int, aim: _Aim) -> Tensor:
    """The outputs of the old unit that a new one stands for. The last new units stand for the last old ones."""
    units = list(pair.student.units)
    with_relu = [unit for unit in units if ends_in_relu(unit)]
    behind = next((unit for unit in units[place : place + 2] if ends_in_relu(unit)), None)  # a linear unit has the target of the next one
    depth = with_relu.index(behind) if behind is not None else len(with_relu) - 1
    return aim.layers[min(max(0, depth - len(with_relu) + len(aim.layers)), len(aim.layers) - 1)]


def _fit_unit(
    unit: nn.Module,
    following: nn.Module,
    maps: list[Tensor],
    cells: _Cells,
    parts: Sequence[tuple[_Aim, Tensor]],
    *,
    imitates: bool = False,
) -> None:
    """Fill one layer: some channels carry the estimate, the others imitate features; all of them do if an old layer reads them.

    Args:
        unit: The layer.
        following: The layer that reads it.
        maps: What enters the layer.
        cells: The chosen cells.
        parts: The aims with the features to imitate; each gets an equal share of the channels.
        imitates: Carry no estimate.
    """
    kernel = 3 if _is_depthwise(unit) else _kernel(unit)
    columns = cells.columns(maps, kernel)
    width = convolutions(following if _is_depthwise(unit) else unit)[-1].out_channels
    found: list[Tensor] = []
    for aim, features in parts:
        if imitates:
            found.append(_ridge(columns, features, aim.weight))
            continue
        share = width // len(parts)
        estimate = aim.readout(columns, kernel)
        carried = _carried(estimate, columns, aim.weight, math.floor(share * CARRIED))
        busiest = _variance(F.relu(features)).topk(min(share - carried.shape[1], len(features))).indices
        found += [carried, _ridge(columns, features[busiest], aim.weight)]
    wanted = torch.cat(found, dim=1)
    if wanted.shape[1] < width:  # The layer is wider than the old ones and the estimates together.
        wanted = torch.cat([wanted, wanted.new_zeros(len(wanted), width - wanted.shape[1])], dim=1)
    weight = parts[0][0].weight if len(parts) == 1 else sum((aim.weight / aim.weight.sum() for aim, _ in parts), torch.zeros(()))
    _fill(unit, columns, wanted, weight)


def _carried(estimate: Tensor, columns: Tensor, weight: Tensor, most: int) -> Tensor:
    """The estimate, reduced to its main directions if it has too many channels, and shifted to where ReLU does not change it."""
    if estimate.shape[1] > most:
        values = _apply(estimate, columns)
        share = weight / weight.sum()
        centred = values - (values * share).sum(dim=1, keepdim=True)
        _, directions = torch.linalg.eigh(((centred * share) @ centred.T).double())
        estimate = estimate @ directions[:, len(directions) - most :]
    values = _apply(estimate, columns)
    lowest, highest = values.amin(dim=1), values.amax(dim=1)
    estimate = estimate.clone()
    estimate[-1] -= (lowest - _SHIFT_MARGIN * (highest - lowest)).double()
    return estimate


def _fill(module: nn.Module, columns: Tensor, wanted: Tensor, weight: Tensor) -> None:
    """Write a linear map of patches into the convolutions of a unit or prediction; depthwise ones take the nearest map of their form."""
    convs = convolutions(module)
    if len(convs) == 1 and not _is_depthwise(module):
        _write(module, convs[0], wanted)
        return
    depthwise = convs[0]
    channels = depthwise.in_channels
    # For each input channel the first singular vector: the kernel whose multiples come closest to those of all outputs.
    kernels = wanted[:-1].unflatten(0, (channels, -1))  # (C, 9, outputs)
    scale = _variance(_apply(wanted, columns)).clamp(min=1e-12).rsqrt().double()
    shapes = torch.linalg.svd(kernels * scale, full_matrices=False).U[:, :, 0]
    side, inner = depthwise.kernel_size[0], math.isqrt(shapes.shape[1])
    square = F.pad(shapes.unflatten(1, (inner, inner)), [(side - inner) // 2] * 4)
    depthwise.weight.copy_(square[:, None])
    set_offset(module, depthwise, torch.zeros(channels))
    if len(convs) == 2:
        filtered = torch.einsum("ckn,ck->cn", columns.unflatten(0, (channels, -1)), shapes.float())
        _write(module, convs[1], _ridge(filtered, _apply(wanted, columns), weight))


def _ridge(columns: Tensor, wanted: Tensor, weight: Tensor) -> Tensor:
    """Weighted ridge regression from (D, n) columns to (outputs, n) values: (D + 1, outputs) in float64, the last row is the offset."""
    share = weight / weight.sum()
    with_one = torch.cat([columns, columns.new_ones(1, columns.shape[1])])
    weighted = with_one * share
    normal, right = (weighted @ with_one.T).double(), (weighted @ wanted.T).double()
    diagonal = normal.diagonal()[:-1]
    diagonal += RIDGE * diagonal.mean() + 1e-12
    return torch.linalg.solve(normal, right)


def _apply(linear: Tensor, columns: Tensor) -> Tensor:
    return linear[:-1].T.float() @ columns + linear[-1][:, None].float()


def _variance(values: Tensor) -> Tensor:
    """(channels, n) -> (channels,). The variance of a single cell is 0."""
    return values.var(dim=1, correction=min(1, values.shape[1] - 1))


def _unit_variance(values: Tensor, share: Tensor) -> Tensor:
    centred = values - (values * share).sum(dim=1, keepdim=True)
    return values * ((centred**2 * share).sum().clamp(min=1e-12)).rsqrt()


def _write(module: nn.Module, conv: nn.Conv2d, linear: Tensor) -> None:
    conv.weight.copy_(linear[:-1].T.reshape(conv.weight.shape))
    set_offset(module, conv, linear[-1])


def _kernel(module: nn.Module) -> int:
    return max(conv.kernel_size[0] for conv in convolutions(module))


def _is_depthwise(module: nn.Module) -> bool:
    """Whether it is a single depthwise convolution."""
    return isinstance(module, nn.Conv2d) and module.groups > 1


def _without_relu(unit: nn.Module) -> nn.Module:
    return unit[:-1] if isinstance(unit, nn.Sequential) and ends_in_relu(unit) else unit
