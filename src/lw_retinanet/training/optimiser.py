"""The optimiser with its parameter groups, and what one step of it consists of."""

import math
from collections.abc import Callable

from torch import Tensor, nn
from torch.optim import SGD, AdamW, Optimizer
from torch.optim.swa_utils import AveragedModel

from lw_retinanet.config import TrainConfig
from lw_retinanet.models.retinanet import RetinaNet
from lw_retinanet.training.schedule import linear_rate, rate_factor, warmup_length


class Optimisation:
    """Turns the gradients of a module into a step: learning rate, clipping, optimiser, moving average of the weights.

    A step calls ``set_rate``, then any number of backward passes, then :meth:`clip_gradients` and :meth:`apply`.

    Args:
        module: Its parameters that require gradients are trained.
        optimiser: Holds these parameters.
        set_rate: Sets the learning rate of a step, given its number, from 0. See :func:`scheduled_rate`.
        clip: Largest norm of the gradient of all parameters; infinity turns clipping off.
        average: Moving average of the weights of ``module``; None keeps none.
    """

    def __init__(
        self,
        module: nn.Module,
        optimiser: Optimizer,
        *,
        set_rate: Callable[[int], object],
        clip: float = math.inf,
        average: AveragedModel | None = None,
    ) -> None:
        self.module = module
        self.optimiser = optimiser
        self.set_rate = set_rate
        self.clip = clip
        self.average = average
        self.learned = trainable(module)

    def clip_gradients(self) -> Tensor:
        """Limit the norm of the gradient; returns the norm before that, as a tensor () on the device."""
        return nn.utils.clip_grad_norm_(self.learned, self.clip)

    def apply(self, *, has_diverged: Tensor | None = None) -> None:
        """Move the weights, drop the gradients, and update the moving average.

        Args:
            has_diverged: () float on the device of the weights. Where it is 1, the weights and the state of the optimiser stay as they are.
                The device decides that, so the host need not wait for the value. Only fused optimisers heed it.
        """
        if has_diverged is not None:
            # Fused optimisers look for this attribute; torch's GradScaler sets it in the same way.
            self.optimiser.found_inf = has_diverged  # type: ignore[attr-defined]
        self.optimiser.step()
        self.optimiser.zero_grad(set_to_none=True)
        if self.average:
            self.average.update_parameters(self.module)


def scheduled_rate(optimiser: Optimizer, config: TrainConfig, total_steps: int) -> Callable[[int], None]:
    """A function of the step that sets every group of :func:`make_optimiser` to its share of the peak rate.

    Args:
        optimiser: Its groups carry ``peak_rate``.
        config: Resolved settings; the schedule, its version and its warm-up count.
        total_steps: Length of the run.
    """
    schedule, warmup_steps = config.schedule or "cosine", warmup_length(config, total_steps)
    cosine_from = 0 if config.schedule_version == 1 else None

    def set_rate(step: int) -> None:
        factor = rate_factor(step, total_steps=total_steps, warmup_steps=warmup_steps, schedule=schedule, cosine_from=cosine_from)
        for group in optimiser.param_groups:
            group["lr"] = group["peak_rate"] * factor

    return set_rate


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
            # Biases and the parameters of norms have one dimension. Decaying them buys nothing and moves the class prior.
            parameters = [p for p in learned if (id(p) in backbone) == is_backbone and (p.ndim > 1) == decays]
            if parameters:
                group_rate = rate * (factor if is_backbone else 1.0)
                groups.append({"params": parameters, "lr": group_rate, "peak_rate": group_rate, "weight_decay": decay if decays else 0.0})
    if config.optimiser == "sgd":
        return SGD(groups, momentum=0.9, fused=True)
    return AdamW(groups, fused=True)


def peak_rate(config: TrainConfig, images_per_step: int) -> float:
    """The rate of the settings, or the paper's linear rule where the recipe leaves it open."""
    return config.rate if config.rate is not None else linear_rate(images_per_step)


def trainable(model: nn.Module) -> list[Tensor]:
    """Parameters that receive gradients."""
    return [parameter for parameter in model.parameters() if parameter.requires_grad]
