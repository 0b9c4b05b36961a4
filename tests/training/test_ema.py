import pytest
import torch
from torch import nn

from lw_retinanet.training.ema import MovingAverage


def test_average_by_the_written_rule() -> None:
    linear, norm = nn.Linear(1, 1, bias=False), nn.BatchNorm2d(1)
    model = nn.Sequential(linear, norm)
    ema = MovingAverage(model, 0.75)
    weight, mean = 0.0, 0.0
    for update in range(40):
        value = float(update**2)
        with torch.no_grad():
            linear.weight.fill_(value)
            for buffer, content in ((norm.running_mean, -value), (norm.num_batches_tracked, update)):
                assert buffer is not None
                buffer.fill_(content)
        ema.update_parameters(model)
        # The first update copies; then the decay grows from 2 / 11 to its limit, 0.75, which it has from the 27th on: 27 / 36.
        decay = 0.0 if update == 0 else min(0.75, (1 + update) / (10 + update))
        weight, mean = decay * weight + (1 - decay) * value, decay * mean - (1 - decay) * value
        average = ema.module.state_dict()
        assert average["0.weight"].item() == pytest.approx(weight, rel=1e-5)
        assert average["1.running_mean"].item() == pytest.approx(mean, rel=1e-5)
        assert average["1.num_batches_tracked"].item() == update


def test_the_model_itself_is_left_alone() -> None:
    model = nn.Linear(2, 2)
    before = model.weight.detach().clone()
    ema = MovingAverage(model, 0.9)
    ema.update_parameters(model)
    ema.module.state_dict()["weight"].add_(1)
    ema.update_parameters(model)
    assert torch.equal(model.weight, before)
