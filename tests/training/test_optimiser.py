from collections.abc import Callable

import pytest
import torch
from torch.optim import SGD, AdamW

from lw_retinanet.config import Config
from lw_retinanet.models.retinanet import RetinaNet
from lw_retinanet.training.optimiser import Optimisation, make_optimiser, peak_rate, scheduled_rate


def test_groups_hold_every_trained_parameter_once(make_model: Callable[..., RetinaNet], make_config: Callable[..., Config]) -> None:
    model = make_model("batch")
    model.backbone.freeze(2)
    optimiser = make_optimiser(model, make_config(rate=0.1, backbone_rate=0.5, weight_decay=0.3).train, images_per_step=4)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    seen = []
    for group in optimiser.param_groups:
        for parameter in group["params"]:
            name = names[id(parameter)]
            seen.append(name)
            assert group["lr"] == group["peak_rate"] == pytest.approx(0.05 if name.startswith("backbone.") else 0.1), name
            # Biases and the factors of norms keep their size; kernels decay.
            assert group["weight_decay"] == (0.3 if parameter.ndim > 1 else 0.0), name
    assert sorted(seen) == sorted(name for name, parameter in model.named_parameters() if parameter.requires_grad)
    assert not any(name.startswith(("backbone.conv1", "backbone.layer1")) for name in seen)
    assert any(name.startswith("backbone.layer2") for name in seen)


def test_the_schedule_scales_every_group_from_its_peak(make_model: Callable[..., RetinaNet], make_config: Callable[..., Config]) -> None:
    config = make_config(rate=0.1, backbone_rate=0.5, schedule="steps", warmup_steps=0).train
    optimiser = make_optimiser(make_model(), config, images_per_step=4)
    set_rate = scheduled_rate(optimiser, config, total_steps=9)
    # A tenth from 2/3, a hundredth from 8/9, and back again: each is a share of the peak.
    for step, share in ((6, 0.1), (8, 0.01), (5, 1.0)):
        set_rate(step)
        assert sorted({group["lr"] for group in optimiser.param_groups}) == pytest.approx([0.05 * share, 0.1 * share])


def test_recipes_choose_rule_and_rate(make_model: Callable[..., RetinaNet], make_config: Callable[..., Config]) -> None:
    paper = make_config(recipe="paper", rate=None).train
    # 0.01 for 16 images a step: 0.005 for the paper's 8.
    assert peak_rate(paper, 8) == 0.005
    sgd = make_optimiser(make_model(), paper, images_per_step=8)
    assert isinstance(sgd, SGD)
    assert sgd.defaults["momentum"] == 0.9
    assert isinstance(make_optimiser(make_model(), make_config().train, images_per_step=8), AdamW)
    assert peak_rate(make_config(rate=None).train, 8) == 2e-4


@pytest.mark.parametrize("recipe", ["default", "paper"])
def test_a_refused_step_changes_neither_weights_nor_state(
    recipe: str, make_model: Callable[..., RetinaNet], make_config: Callable[..., Config]
) -> None:
    model, twin = make_model(), make_model()
    config = make_config(recipe=recipe).train
    optimiser, expected = (make_optimiser(one, config, images_per_step=4) for one in (model, twin))

    def step(one: RetinaNet, by: torch.optim.Optimizer, value: float, refused: float) -> None:
        for parameter in one.parameters():
            parameter.grad = torch.full_like(parameter, value)
        Optimisation(one, by, set_rate=lambda _: None).apply(has_diverged=torch.tensor(refused))
        assert all(parameter.grad is None for parameter in one.parameters())

    for value, refused in ((0.1, 0.0), (float("nan"), 1.0), (0.2, 0.0)):
        step(model, optimiser, value, refused)
        if not refused:
            step(twin, expected, value, 0.0)
    # The counters of AdamW's bias correction, too: else the third step would be another one.
    assert all(torch.equal(one, other) for one, other in zip(model.parameters(), twin.parameters(), strict=True))
    for one, other in zip(optimiser.state.values(), expected.state.values(), strict=True):
        assert all(torch.equal(one[name], other[name]) for name in one)
