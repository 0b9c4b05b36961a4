import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from lw_retinanet.config import Config
from lw_retinanet.data.box_quality import usable
from lw_retinanet.data.loader import StepPlan, TrainingSet, collate
from lw_retinanet.data.preprocess import normalise
from lw_retinanet.data.records import Records
from lw_retinanet.errors import TrainingError
from lw_retinanet.heads import PRESETS, HeadPlan
from lw_retinanet.lightening.surgery import lighten_copy
from lw_retinanet.models.build import build
from lw_retinanet.models.retinanet import RetinaNet
from lw_retinanet.structures import Batch, Targets
from lw_retinanet.training.distillation import distillation
from lw_retinanet.training.distributed import World
from lw_retinanet.training.step import StepResult, Teacher, accumulate_gradients, require_finite

MakeModel = Callable[..., RetinaNet]
MakeConfig = Callable[..., Config]
ALONE = World()


def batches_of(data: Records, model: RetinaNet, config: Config, *, batch_size: int, accumulate: int) -> list[Batch]:
    """The micro-batches of step 0."""
    plan = StepPlan(
        sizes_hw=data.sizes_hw,
        config=config.data,
        rule=model.conventions.input,
        seed=3,
        batch_size=batch_size,
        accumulate=accumulate,
        end_step=1,
    )
    dataset = TrainingSet(data, usable=usable(data), seed=3, config=config.data, rule=model.conventions.input)
    found = []
    for keys in plan:
        batch = collate([dataset[key] for key in keys])
        assert isinstance(batch, Batch)
        found.append(batch)
    return found


def run(
    model: RetinaNet, batches: list[Batch], config: Config, world: World = ALONE, **teaching: Any
) -> tuple[StepResult, dict[str, Tensor]]:
    model.zero_grad(set_to_none=True)
    result = accumulate_gradients(
        model, batches, config=config.train, conventions=model.conventions, world=world, use_bf16=False, **teaching
    )
    return result, {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("normaliser", ["batch", "image"])
@pytest.mark.parametrize("objective", [{"box_loss": "giou"}, {"box_loss": "smooth_l1"}, {"assignment": "atss", "class_loss": "quality"}])
def test_accumulation_equals_the_large_batch(
    normaliser: str, objective: dict[str, str], data: Records, make_model: MakeModel, make_config: MakeConfig
) -> None:
    model, config = make_model(), make_config(normaliser=normaliser, **objective)
    large = batches_of(data, model, config, batch_size=8, accumulate=1)
    small = batches_of(data, model, config, batch_size=2, accumulate=4)
    assert sorted(index for batch in small for index in batch.indices) == sorted(large[0].indices)
    # Images without any box and with several share the step, so dividing each micro-batch by its own positives would show.
    assert len({int((batch.targets.labels >= 0).sum()) for batch in small if batch.targets}) > 1
    one, expected = run(model, large, config)
    four, found = run(model, small, config)
    torch.testing.assert_close(four.losses, one.losses, rtol=1e-6, atol=0)
    assert int(four.num_positive) == int(one.num_positive) > 0
    assert found.keys() == expected.keys() == {name for name, _ in model.named_parameters()}
    for name, gradient in expected.items():
        # 1e-6 of the sums' rounding grows on the way down through the backbone, whose gradients are sums of millions of products.
        scale = float(gradient.norm())
        assert scale > 0, name
        assert float((found[name] - gradient).norm()) < 1e-5 * scale, name


def test_normalisers_by_their_definition(data: Records, make_model: MakeModel, make_config: MakeConfig) -> None:
    model = make_model()
    singles = []
    (batch,) = batches_of(data, model, make_config(), batch_size=4, accumulate=1)
    for row in range(4):
        assert batch.targets is not None
        targets = Targets(**{name: getattr(batch.targets, name)[row : row + 1] for name in ("boxes", "labels", "is_ignored")})
        part = replace(
            batch,
            images=batch.images[row : row + 1],
            sizes_hw=batch.sizes_hw[row : row + 1],
            indices=batch.indices[row : row + 1],
            targets=targets,
        )
        singles.append(run(model, [part], make_config())[0])
    sums = torch.stack([single.losses * single.num_positive.clamp(min=1) for single in singles])
    positives = sum(int(single.num_positive) for single in singles)
    whole, _ = run(model, [batch], make_config(normaliser="batch"))
    torch.testing.assert_close(whole.losses, sums.sum(dim=0) / positives)
    averaged, _ = run(model, [batch], make_config(normaliser="image"))
    torch.testing.assert_close(averaged.losses, torch.stack([single.losses for single in singles]).mean(dim=0))


def test_the_weight_of_the_box_loss(data: Records, make_model: MakeModel, make_config: MakeConfig) -> None:
    model = make_model()
    batches = batches_of(data, model, make_config(), batch_size=4, accumulate=1)
    plain, heavy = (run(model, batches, make_config(box_weight=weight))[0].losses for weight in (1.0, 3.0))
    torch.testing.assert_close(heavy, plain * torch.tensor([1.0, 3.0]))


def test_a_step_without_any_object_is_finite(data: Records, make_model: MakeModel, make_config: MakeConfig) -> None:
    model = make_model()
    (batch,) = batches_of(data, model, make_config(), batch_size=2, accumulate=1)
    empty = Targets(boxes=torch.zeros(2, 1, 4), labels=torch.full((2, 1), -1), is_ignored=torch.zeros(2, 1, dtype=torch.bool))
    result, gradients = run(model, [replace(batch, targets=empty)], make_config())
    assert int(result.num_positive) == 0
    assert float(result.losses[1]) == 0
    assert float(result.losses[0]) > 0
    assert all(gradient.isfinite().all() for gradient in gradients.values())


def test_bf16_stays_near_and_its_losses_are_single(data: Records, make_model: MakeModel, make_config: MakeConfig) -> None:
    model, config = make_model("group"), make_config()
    batches = batches_of(data, model, config, batch_size=4, accumulate=1)
    exact, _ = run(model, batches, config)
    model.zero_grad(set_to_none=True)
    rough = accumulate_gradients(model, batches, config=config.train, conventions=model.conventions, world=World(), use_bf16=True)
    assert rough.losses.dtype == torch.float32
    assert not torch.equal(rough.losses, exact.losses)
    torch.testing.assert_close(rough.losses, exact.losses, rtol=0.02, atol=0)
    assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in model.parameters())


@pytest.mark.parametrize(
    ("losses", "norm", "part"),
    [
        ([float("nan"), 1.0], 1.0, "classification not finite"),
        ([1.0, float("inf")], 1.0, "bbox_regression not finite"),
        ([1.0, 1.0], float("inf"), "gradient norm not finite"),
        ([float("nan"), -float("inf")], 1.0, "classification and bbox_regression not finite"),
        ([1.0, 1.0, float("nan")], 1.0, "distillation not finite"),
    ],
)
def test_what_is_not_finite_is_named(losses: list[float], norm: float, part: str) -> None:
    with pytest.raises(TrainingError, match=rf"^step 7: {part}, on images a\.jpg, b\.jpg;"):
        require_finite(losses, norm, step=7, images=["a.jpg", "b.jpg"])


def test_finite_numbers_pass() -> None:
    require_finite([0.0, 1e30], 0.0, step=1, images=[])


class Twins(World):
    """Two processes that hold the very same images."""

    def sum(self, values: Tensor) -> Tensor:
        return 2 * values


def assert_same_gradients(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        # As above: rounding of sums over millions of products.
        assert float((found[name] - gradient).norm()) <= 1e-5 * float(gradient.norm()), name


def sure(teacher: RetinaNet) -> RetinaNet:
    """Without the prior of 0.01: below 0.02 a teacher's boxes do not count."""
    with torch.no_grad():
        for name, parameter in teacher.head.cls.named_parameters():
            if "predict" in name and name.endswith("bias"):
                parameter.zero_()
    return teacher.eval()


def test_who_says_what_the_teacher_says_learns_from_labels_alone(data: Records, make_model: MakeModel, make_config: MakeConfig) -> None:
    model = make_model()
    batches = batches_of(data, model, make_config(), batch_size=4, accumulate=1)
    alone, expected = run(model, batches, make_config())
    taught, found = run(model, batches, make_config(), teacher=Teacher(model=copy.deepcopy(model).eval()))
    assert alone.losses.shape == (2,)
    assert torch.equal(taught.losses[:2], alone.losses)
    # Generalised IoU of a box with itself is 1 but for the 1e-7 that keeps empty boxes from dividing by zero.
    assert float(taught.losses[2]) == pytest.approx(0, abs=1e-5)
    assert_same_gradients(found, expected)


def test_the_teachers_part_by_its_definition(data: Records, make_model: MakeModel, make_config: MakeConfig) -> None:
    model, teacher = make_model(), sure(make_model("batch", seed=1))
    (batch,) = batches_of(data, model, make_config(), batch_size=4, accumulate=1)
    images = normalise(batch.images, batch.sizes_hw, model.conventions.input)
    with torch.no_grad():
        expected = distillation(model(images), teacher(images))
    before = {name: tensor.clone() for name, tensor in teacher.state_dict().items()}
    taught, gradients = run(model, [batch], make_config(distill_weight=0.5), teacher=Teacher(model=teacher))
    torch.testing.assert_close(taught.losses[2], 0.5 * expected)
    assert float(expected) > 0
    assert gradients.keys() == {name for name, _ in model.named_parameters()}
    assert all(parameter.grad is None for parameter in teacher.parameters())
    assert all(torch.equal(tensor, before[name]) for name, tensor in teacher.state_dict().items())


@pytest.mark.parametrize(("times", "world"), [(3, ALONE), (1, Twins(size=2)), (2, Twins(size=2))])
def test_the_teacher_weighs_as_much_in_many_parts_as_in_one(
    times: int, world: World, data: Records, make_model: MakeModel, make_config: MakeConfig
) -> None:
    # The same images again, in further micro-batches or processes, change no mean; averaging over equal processes changes nothing.
    model, teacher = make_model(), sure(make_model(seed=1))
    batches = batches_of(data, model, make_config(), batch_size=2, accumulate=1)
    one, expected = run(model, batches, make_config(), teacher=Teacher(model=teacher))
    many, found = run(model, batches * times, make_config(), world, teacher=Teacher(model=teacher))
    torch.testing.assert_close(many.losses, one.losses)
    assert_same_gradients(found, expected)


def test_a_lightened_teacher_teaches_with_the_head_that_is_asked_for(data: Records, make_model: MakeModel, make_config: MakeConfig) -> None:
    model = make_model()
    torch.manual_seed(1)
    full = build(HeadPlan(), num_classes=3, backbone="resnet18", width=32, init="fan_in", conventions=model.conventions).eval()
    both, _ = lighten_copy(full, PRESETS["lw-v3"])
    batches = batches_of(data, model, make_config(), batch_size=2, accumulate=1)
    expected, with_full, with_light = (
        run(model, batches, make_config(), teacher=Teacher(model=teacher, full_head=full_head))[0].losses
        for teacher, full_head in ((full, False), (both, True), (both, False))
    )
    assert torch.equal(with_full, expected)
    assert not torch.equal(with_light, expected)


def test_a_teacher_sees_the_images_as_it_was_trained_to(data: Records, make_model: MakeModel, make_config: MakeConfig) -> None:
    model, teacher = make_model(), make_model(seed=1).eval()
    rule = model.conventions.input.model_copy(update={"mean": (0.1, 0.2, 0.3), "std": (1.0, 1.0, 1.0)})
    teacher.conventions = teacher.conventions.model_copy(update={"input": rule})
    seen: list[Tensor] = []
    teacher.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    (batch,) = batches_of(data, model, make_config(), batch_size=2, accumulate=1)
    run(model, [batch], make_config(), teacher=Teacher(model=teacher))
    assert torch.equal(seen[0], normalise(batch.images, batch.sizes_hw, rule))
    assert not torch.equal(seen[0], normalise(batch.images, batch.sizes_hw, model.conventions.input))
