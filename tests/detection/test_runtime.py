import copy
import shutil
from typing import Any, Literal, cast

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from lw_retinanet.detection import runtime as module
from lw_retinanet.detection.detector import Detector
from lw_retinanet.detection.runtime import TorchRuntime, with_half_weights
from lw_retinanet.errors import InputError
from lw_retinanet.heads import HeadPlan, plan_of
from lw_retinanet.models.build import build
from lw_retinanet.models.fold import folded
from lw_retinanet.models.retinanet import RetinaNet
from lw_retinanet.structures import Predictions

IMAGES = torch.randn(1, 3, 64, 96, generator=torch.Generator().manual_seed(0)).contiguous(memory_format=torch.channels_last)


@pytest.fixture
def model() -> RetinaNet:
    return made(plan_of("lw-v3"))


def made(plan: HeadPlan, norm: Any = "frozen") -> RetinaNet:
    torch.manual_seed(0)
    built = build(plan, num_classes=3, backbone="resnet18", width=16, norm=norm, init="fan_in").eval()
    for part in built.modules():  # statistics that folding must not lose
        if hasattr(part, "running_mean"):
            for name in ("running_mean", "running_var", "weight", "bias"):
                torch.nn.init.uniform_(getattr(part, name), 0.5, 1.5)
    return built


@torch.inference_mode()
def run(runtime: TorchRuntime, **how: bool) -> Predictions:
    return runtime.forward(IMAGES, **how)


def close(one: Predictions, other: Predictions, tolerance: float) -> None:
    for ours, theirs in zip(one, other, strict=True):
        assert theirs.std() > 0.05
        torch.testing.assert_close(ours, theirs, rtol=0, atol=tolerance * float(theirs.abs().max()))


@pytest.mark.parametrize("norm", ["frozen", "batch", "group"])
@torch.inference_mode()
def test_folded_and_channels_last_is_the_plain_network(norm: str) -> None:
    model = made(plan_of("lw-v3"), norm)
    # Float32 sums in another order through some thirty layers: 1e-5 of the largest value.
    close(run(TorchRuntime(model)), model(IMAGES), 1e-5)


@torch.inference_mode()
def test_the_full_head_goes_the_same_way() -> None:
    model = made(HeadPlan())
    close(run(TorchRuntime(model), full_head=True), model(IMAGES, full_head=True), 1e-5)


def test_the_model_itself_stays_as_it_was(model: RetinaNet) -> None:
    before = copy.deepcopy(model.state_dict())
    kinds = [type(part) for part in model.modules()]
    run(TorchRuntime(model))
    run(TorchRuntime(model, precision="bf16"))
    assert [type(part) for part in model.modules()] == kinds
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(parameter.requires_grad and parameter.dtype == torch.float32 for parameter in model.parameters())


def test_the_copy_is_made_once_and_follows_the_weights(model: RetinaNet, monkeypatch: pytest.MonkeyPatch) -> None:
    copies = []

    def counted(original: RetinaNet) -> RetinaNet:
        copies.append(original)
        return folded(original)

    monkeypatch.setattr(module, "folded", counted)
    runtime = TorchRuntime(model)
    first = run(runtime)
    run(runtime)
    assert len(copies) == 1

    optimiser = torch.optim.SGD(model.parameters(), lr=1e-6)
    model(IMAGES).logits.sum().backward()
    optimiser.step()
    trained = run(runtime)
    assert not torch.equal(trained.logits, first.logits)

    model.load_state_dict({name: value * 1.01 for name, value in model.state_dict().items()})
    assert not torch.equal(run(runtime).logits, trained.logits)

    bare = nn.Conv2d(model.head.in_channels, 27, 1)
    model.head.cls.own_predict["P3"] = bare
    with torch.inference_mode():
        close(run(runtime), model(IMAGES), 1e-5)
    assert len(copies) == 4

    bare.weight.data.mul_(2)  # leaves no trace
    old = run(runtime)
    runtime.release()
    assert not torch.equal(run(runtime).logits, old.logits)


@torch.inference_mode()
@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
def test_weights_rounded_once_answer_as_autocast_does(model: RetinaNet, half: torch.dtype) -> None:
    plain = folded(model).to(memory_format=torch.channels_last)
    with torch.autocast("cpu", half):
        expected, answer = plain(IMAGES), with_half_weights(plain, half)(IMAGES)
    assert answer.logits.dtype == half
    assert torch.equal(answer.logits, expected.logits)
    assert torch.equal(answer.deltas, expected.deltas)


def test_bf16_answers_nearly_as_fp32(model: RetinaNet) -> None:
    half, single = run(TorchRuntime(model, precision="bf16")), run(TorchRuntime(model))
    assert half.logits.dtype == torch.bfloat16
    # 8 bits, rounded some thirty times over.
    assert 0 < float((half.logits.float() - single.logits).abs().max()) < 0.05 * float(single.logits.abs().max())


def test_fp16_answers_more_exactly_than_bf16(model: RetinaNet, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "choose_precision", lambda precision, *_: precision)  # as on a GPU
    monkeypatch.setattr(module, "fuse", lambda _: None)  # what a CPU fuses is fp32 and bf16
    single = run(TorchRuntime(model)).logits
    errors = {name: float((run(TorchRuntime(model, precision=name)).logits.float() - single).abs().max()) for name in ("bf16", "fp16")}
    assert 0 < 4 * errors["fp16"] < errors["bf16"]


def test_norms_keep_their_precision() -> None:
    half = with_half_weights(made(plan_of("lw-v3"), "group"))
    assert {part.weight.dtype for part in half.modules() if isinstance(part, nn.GroupNorm)} == {torch.float32}
    assert {part.weight.dtype for part in half.modules() if isinstance(part, nn.Conv2d)} == {torch.bfloat16}


@torch.inference_mode()
def test_a_model_that_shares_parts_may_run_itself(model: RetinaNet) -> None:
    calls = []
    model.backbone.register_forward_hook(lambda *_: calls.append(1))
    answer = run(TorchRuntime(model, fold=False))
    assert len(calls) == 1
    assert torch.equal(answer.logits, model(IMAGES).logits)


@pytest.mark.parametrize("faster", ["fp32", "bf16"])
def test_auto_takes_what_is_faster(faster: str, model: RetinaNet, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "choose_precision", lambda *_: faster)
    runtime = TorchRuntime(model, precision="auto")
    answer = run(runtime)
    assert runtime.chosen_precision == faster
    assert answer.logits.dtype == {"fp32": torch.float32, "bf16": torch.bfloat16}[faster]


def test_without_a_compiler_there_is_one_clear_line(model: RetinaNet, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda _: None)
    with pytest.raises(InputError, match=r"^compile=True needs a C\+\+ compiler and found none; install g\+\+"):
        run(TorchRuntime(model, compile=True))


def test_what_cannot_be_compiled_is_one_clear_line(model: RetinaNet, monkeypatch: pytest.MonkeyPatch) -> None:
    from torch._dynamo.exc import TorchDynamoException

    def broken(*_: Any, **__: Any) -> Any:
        raise TorchDynamoException("the backend is not there\nand much more")

    monkeypatch.setattr(shutil, "which", lambda name: name)
    monkeypatch.setattr(torch, "compile", lambda *_, **__: broken)
    with pytest.raises(InputError, match=r"cannot be compiled here \(the backend is not there\); leave compile out$"):
        run(TorchRuntime(model, compile=True))


class Tiny(nn.Module):
    """Two convolutions: compiling a real network takes a minute."""

    def __init__(self) -> None:
        super().__init__()
        self.logits, self.deltas = nn.Conv2d(3, 2, 3), nn.Conv2d(3, 4, 3)

    def forward(self, images: Tensor, *, full_head: bool = False) -> Predictions:
        logits = self.logits(images).relu().permute(0, 2, 3, 1).reshape(len(images), -1, 2)
        deltas = self.deltas(images).permute(0, 2, 3, 1).reshape(len(images), -1, 4)
        return Predictions(logits * 2 if full_head else logits, deltas)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="needs a C++ compiler")
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")  # of torch's own compiler
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@torch.inference_mode()
def test_compiled_is_the_plain_network(precision: Literal["fp32", "bf16"]) -> None:
    model = cast(RetinaNet, Tiny())
    compiled, plain = TorchRuntime(model, precision=precision, compile=True), TorchRuntime(model, precision=precision)
    for how in ({}, {"full_head": True}):
        # Fused in bf16 a product need not be rounded before what follows: one unit of its 8 bits.
        close(run(compiled, **how), run(plain, **how), 1e-5 if precision == "fp32" else 2**-7)


def test_a_detector_answers_as_its_plain_network(detector: Detector) -> None:
    plain = Detector.of_model(copy.deepcopy(detector.model), detector.categories, fold=False)
    picture = np.random.default_rng(3).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    (one,), (other,) = detector.predict(picture), plain.predict(picture)
    assert len(one) > 10
    # As a converted model is held to its origin: 0.05 px and 1e-5.
    np.testing.assert_allclose(one.boxes, other.boxes, rtol=0, atol=0.05)
    np.testing.assert_allclose(one.scores, other.scores, rtol=0, atol=1e-5)
    np.testing.assert_array_equal(one.labels, other.labels)
    assert detector.chosen_precision == "fp32"


def test_another_runtime_takes_the_networks_place(detector: Detector) -> None:
    class Elsewhere(TorchRuntime):
        def forward(self, images: Tensor, *, full_head: bool = False) -> Predictions:
            return cast(Predictions, self.model(images))

    runtime = Elsewhere(copy.deepcopy(detector.model))
    other = Detector(runtime, categories=detector.categories, conventions=detector.conventions)
    picture = np.random.default_rng(3).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    np.testing.assert_allclose(other.predict(picture)[0].scores, detector.predict(picture)[0].scores, rtol=0, atol=1e-5)
    assert runtime._made is None
