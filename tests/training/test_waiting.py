"""That a step never makes the host wait for the device: on ``meta``, which has no values to wait for, and on a GPU where there is one."""

import warnings
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, Self

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from lw_retinanet.config import Config
from lw_retinanet.models.retinanet import RetinaNet
from lw_retinanet.structures import Batch, Targets
from lw_retinanet.training import matching
from lw_retinanet.training.distributed import World
from lw_retinanet.training.ema import MovingAverage
from lw_retinanet.training.optimiser import Optimisation, make_optimiser
from lw_retinanet.training.step import StepResult, Teacher, accumulate_gradients
from lw_retinanet.training.trainer import PendingNumbers

MakeModel = Callable[..., RetinaNet]
MakeConfig = Callable[..., Config]
SETTINGS: list[dict[str, Any]] = [
    {"box_loss": "giou"},
    {"box_loss": "smooth_l1", "normaliser": "image"},
    {"assignment": "atss", "class_loss": "quality"},
]


class CopyWatch(TorchDispatchMode):
    """Refuses copies between devices that the host would wait for, and notes the others."""

    active = False

    def __init__(self) -> None:
        super().__init__()
        self.copied: list[Tensor] = []
        self._patch = pytest.MonkeyPatch()

    def __enter__(self) -> Self:
        real = torch.tensor

        def watched(*arguments: Any, **options: Any) -> Tensor:
            # A copy, too, but on meta no mode sees it.
            device = torch.device(options.get("device") or "cpu")
            assert device.type == "cpu", "the host waits for numbers that are copied to the device"
            return real(*arguments, **options)

        self._patch.setattr(torch, "tensor", watched)
        CopyWatch.active = True
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        CopyWatch.active = False
        self._patch.undo()

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None) -> Any:
        kwargs = kwargs or {}
        if func is torch.ops.aten._to_copy.default and kwargs.get("device", args[0].device) != args[0].device:
            assert kwargs.get("non_blocking"), f"the host waits for a copy of {tuple(args[0].shape)}"
            self.copied.append(args[0])
        if func is torch.ops.aten.copy_.default and args[0].device != args[1].device:
            assert args[2:] == (True,) or kwargs.get("non_blocking"), f"the host waits for a copy of {tuple(args[0].shape)}"
            self.copied.append(args[1])
        return func(*args, **kwargs)


def batch(seed: int, count: int = 2, size: int = 64) -> Batch:
    random = torch.Generator().manual_seed(seed)
    corners = torch.rand((count, 3, 2), generator=random) * size / 2
    return Batch(
        images=torch.randint(0, 256, (count, 3, size, size), dtype=torch.uint8, generator=random).contiguous(
            memory_format=torch.channels_last
        ),
        sizes_hw=torch.tensor([[size, size], [size, size - 16]]),
        scales_xy=torch.ones((count, 2)),
        targets=Targets(
            boxes=torch.cat([corners, corners + 20], dim=2),
            labels=torch.tensor([[0, 1, -1], [2, 1, 0]]),
            is_ignored=torch.tensor([[False, True, False], [False, False, False]]),
        ),
        indices=tuple(range(count)),
    )


def accumulate(model: RetinaNet, config: Config, world: World, teacher: RetinaNet | None) -> StepResult:
    model.zero_grad(set_to_none=True)
    return accumulate_gradients(
        model,
        [batch(1), batch(2)],
        config=config.train,
        conventions=model.conventions,
        world=world,
        use_bf16=False,
        teacher=Teacher(model=teacher) if teacher else None,
    )


def on_meta(model: RetinaNet, config: Config, teacher: RetinaNet | None) -> CopyWatch:
    """One step but for the optimiser, which has no kernels there; the first one, which fills caches, is not watched."""
    world = World(device=torch.device("meta"))
    ema = MovingAverage(model, 0.9)
    accumulate(model, config, world, teacher)
    ema.update_parameters(model)
    with CopyWatch() as watch:
        result = accumulate(model, config, world, teacher)
        norm = nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        ema.update_parameters(model)
    assert torch.cat([result.losses, result.num_positive[None].float(), norm[None]]).device.type == "meta"
    assert all(parameter.grad is not None for parameter in model.parameters())
    return watch


@pytest.mark.parametrize("objective", SETTINGS)
@pytest.mark.parametrize("has_teacher", [False, True])
def test_no_step_asks_the_device(objective: dict[str, Any], has_teacher: bool, make_model: MakeModel, make_config: MakeConfig) -> None:
    teacher = make_model(seed=1).to("meta").eval() if has_teacher else None
    on_meta(make_model("batch").to("meta").train(), make_config(**objective), teacher)


def test_images_travel_as_bytes_and_once(make_model: MakeModel, make_config: MakeConfig) -> None:
    watch = on_meta(make_model().to("meta").train(), make_config(), make_model(seed=1).to("meta").eval())
    images = [copied for copied in watch.copied if copied.ndim == 4]
    assert [image.dtype for image in images] == [torch.uint8] * 2
    # Beside them sizes, boxes, labels and flags of the two micro-batches; nothing else crosses.
    assert len(watch.copied) == 2 * 5
    assert sum(copied.numel() * copied.element_size() for copied in watch.copied if copied.ndim != 4) < 1000


@pytest.mark.parametrize(
    "mistake",
    [
        lambda labels: labels.max().item(),
        lambda labels: labels[labels >= 0].sum(),
        lambda labels: bool((labels >= 0).any()),
        lambda labels: (labels >= 0).nonzero().sum(),
        lambda labels: labels + torch.tensor([1], device=labels.device),
        lambda labels: labels + torch.ones(1).to(labels.device),
        lambda labels: labels.masked_select(labels >= 0).sum(),
    ],
)
def test_the_usual_mistakes_are_seen(
    mistake: Callable[[Tensor], Any], make_model: MakeModel, make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest = matching._match_image

    def mistaken(anchors: Tensor, boxes: Tensor, labels: Tensor, is_ignored: Tensor) -> Any:
        if CopyWatch.active:
            mistake(labels)
        return honest(anchors, boxes, labels, is_ignored)

    monkeypatch.setattr(matching, "_match_image", mistaken)
    with pytest.raises((AssertionError, RuntimeError), match=r"the host waits|[Mm]eta "):
        on_meta(make_model().to("meta").train(), make_config(), None)


def test_a_reading_is_of_its_own_moment() -> None:
    values = torch.tensor([1.5, 2.0])
    reading = PendingNumbers(values + 0)
    values.zero_()
    assert reading.numbers() == [1.5, 2.0]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("objective", SETTINGS)
@pytest.mark.parametrize("optimiser_name", ["sgd", "adamw"])
def test_a_cuda_device_is_not_waited_for(
    objective: dict[str, Any], optimiser_name: str, make_model: MakeModel, make_config: MakeConfig
) -> None:
    device = torch.device("cuda")
    config = make_config(optimiser=optimiser_name, **objective)
    model = make_model("batch").to(device, memory_format=torch.channels_last).train()  # type: ignore[call-overload]
    teacher = make_model(seed=1).to(device).eval()
    optimiser, average = make_optimiser(model, config.train, 4), MovingAverage(model, 0.9)
    optimisation = Optimisation(model, optimiser, set_rate=lambda _: None, clip=1.0, average=average)
    batches = [replace(batch(seed), images=batch(seed).images.pin_memory()) for seed in (1, 2)]
    is_refused = torch.zeros((), device=device)
    readings = []

    def step() -> None:
        result = accumulate_gradients(
            model,
            batches,
            config=config.train,
            conventions=model.conventions,
            world=World(device=device),
            use_bf16=True,
            teacher=Teacher(model=teacher),
        )
        norm = optimisation.clip_gradients()
        outcome = torch.cat([result.losses, result.num_positive[None].float(), norm[None]])
        optimisation.apply(has_diverged=torch.maximum(is_refused, (~outcome.isfinite()).any().float()))
        readings.append(PendingNumbers(outcome))

    for _ in range(2):
        step()
    torch.cuda.synchronize()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Synchronization debug mode")  # torch calls it a prototype
        torch.cuda.set_sync_debug_mode("error")
    try:
        step()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    numbers = readings[-1].numbers()
    assert len(numbers) == 5
    assert numbers[3] > 0
