import math

import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD

from lw_retinanet.errors import TrainingError
from lw_retinanet.training.ema import MovingAverage
from lw_retinanet.training.optimiser import Optimisation
from lw_retinanet.training.small_loop import Stretch, small_loop


def test_descent_by_hand() -> None:
    # The loss is w, so its gradient is 1, clipped to 0.5. Rates 1, 2, 3: w = 5 - 0.5, - 1, - 1.5.
    model = nn.Linear(1, 1, bias=False)
    nn.init.constant_(model.weight, 5.0)
    model.weight.grad = torch.ones(1, 1)  # left over from something else, must not count
    optimiser = SGD(model.parameters(), lr=0.0)
    average = MovingAverage(model, 0.5)

    def set_rate(step: int) -> None:
        optimiser.param_groups[0]["lr"] = step + 1.0

    def backward() -> Tensor:
        loss = model.weight.sum()
        loss.backward()
        return loss[None]

    optimisation = Optimisation(model, optimiser, set_rate=set_rate, clip=0.5, average=average)
    reports = list(small_loop(optimisation, backward, steps=range(3), total_steps=3, report_every=2))
    assert [report.step for report in reports] == [2, 3]
    assert [len(report.losses) for report in reports] == [2, 1]
    losses = torch.cat([report.losses for report in reports]).flatten()
    assert losses.tolist() == pytest.approx([5.0, 4.5, 3.5], abs=1e-5)  # torch adds 1e-6 to the norm that it divides by
    assert torch.cat([report.norms for report in reports]).tolist() == [1.0, 1.0, 1.0]
    assert model.weight.item() == pytest.approx(2.0, abs=1e-5)
    # Copied first; then the decays are 2 / 11 and 3 / 12.
    second = 2 / 11 * 4.5 + 9 / 11 * 3.5
    assert next(average.module.parameters()).item() == pytest.approx(0.25 * second + 0.75 * 2.0, abs=1e-5)


def test_the_first_step_with_a_gradient_that_is_not_finite_is_named() -> None:
    Stretch(7, torch.zeros(3, 1), torch.tensor([1.0, 2.0, 3.0])).require_finite("tower")
    with pytest.raises(TrainingError, match=r"^tower, step 6: the gradient is not finite; lower train\.rate"):
        Stretch(7, torch.zeros(3, 1), torch.tensor([1.0, math.nan, math.inf])).require_finite("tower")
