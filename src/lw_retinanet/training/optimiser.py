"""The optimiser with its parameter groups."""

from torch import Tensor, nn
from torch.optim import SGD, AdamW, Optimizer

from lw_retinanet.config import TrainConfig
from lw_retinanet.models.retinanet import RetinaNet
from lw_retinanet.training.schedule import linear_rate


def peak_rate(config: TrainConfig, images_per_step: int) -> float:
    """The rate of the settings, or the paper's linear rule where the recipe leaves it open."""
    return config.rate if config.rate is not None else linear_rate(images_per_step)


def make_optimiser(model: RetinaNet, config: TrainConfig, images_per_step: int) -> Optimizer:
    """AdamW or SGD over four groups: backbone and the rest, with and without weight decay.

    Each group carries ``peak_rate``, which the schedule multiplies.
    """
    rate, factor, decay = peak_rate(config, images_per_step), config.backbone_rate, config.weight_decay
    assert factor is not None
    assert decay is not None
    learned = trainable(model)
    backbone = {id(parameter) for parameter in model.backbone.parameters()}
    groups = []
    for is_backbone in (False, True):
        for decays in (True, False):
            # Biases and norms have one dimension; decaying them buys nothing and moves the class prior.
            parameters = [p for p in learned if (id(p) in backbone) == is_backbone and (p.ndim > 1) == decays]
            if parameters:
                group_rate = rate * (factor if is_backbone else 1.0)
                groups.append({"params": parameters, "lr": group_rate, "peak_rate": group_rate, "weight_decay": decay if decays else 0.0})
    if config.optimiser == "sgd":
        return SGD(groups, momentum=0.9, fused=True)
    return AdamW(groups, fused=True)


def set_rates(optimiser: Optimizer, factor: float) -> None:
    """Set every group's rate to ``factor`` times its peak."""
    for group in optimiser.param_groups:
        group["lr"] = group["peak_rate"] * factor


def step_unless(optimiser: Optimizer, is_refused: Tensor) -> None:
    """Step, or leave weights and state as they are, which the device decides: the host need not know yet.

    Args:
        optimiser: of :func:`make_optimiser`.
        is_refused: () float on the device of the weights, 1 for no step.
    """
    # Where fused optimisers look for it; it is what torch's GradScaler tells them.
    optimiser.found_inf = is_refused  # type: ignore[attr-defined]
    optimiser.step()


def trainable(model: nn.Module) -> list[Tensor]:
    """Parameters that receive gradients."""
    return [parameter for parameter in model.parameters() if parameter.requires_grad]
