import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lw_retinanet.heads import plan_of
from lw_retinanet.models.build import build
from lw_retinanet.models.retinanet import RetinaNet
from lw_retinanet.structures import Predictions
from lw_retinanet.training.network_graphs import NetworkGraphs, record_passes

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def network() -> RetinaNet:
    torch.manual_seed(0)
    model = build(plan_of("lw-v3"), num_classes=2, backbone="resnet18", width=8).to(DEVICE).train()
    model.backbone.freeze(1)
    return model


def gradients(model: nn.Module, predictions: Predictions) -> list[Tensor]:
    model.zero_grad()
    sum(part.float().square().mean() for part in predictions).backward()  # type: ignore[union-attr]
    return [parameter.grad.clone() for parameter in model.parameters() if parameter.grad is not None]


@pytest.mark.gpu
@pytest.mark.skipif(DEVICE.type == "cpu", reason="needs a CUDA device")
@pytest.mark.parametrize("use_bf16", [False, True])
def test_graphs_give_what_the_network_gives(use_bf16: bool) -> None:
    model = network()
    plain, graphs = copy.deepcopy(model), NetworkGraphs(model, use_bf16=use_bf16)
    assert NetworkGraphs.fits(model)
    for step in range(5):
        images = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(step)).to(DEVICE)
        with torch.autocast("cuda", torch.bfloat16, enabled=use_bf16):
            expected = plain(images)
        found = graphs(images)
        for ours, theirs in zip(found, expected, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-3)
        # Sums of gradients are in no fixed order on a GPU; bf16 rounds them to 2^-8.
        for ours, theirs in zip(gradients(model, found), gradients(plain, expected), strict=True):
            assert (ours - theirs).norm() <= (0.03 if use_bf16 else 1e-3) * theirs.norm() + 1e-9
        del found, expected, ours, theirs  # recording needs the graphs of earlier steps to be gone, as they are in training
        with torch.no_grad():
            for net in (model, plain):
                for parameter in net.parameters():
                    parameter.add_(parameter.sign(), alpha=1e-3 * step)  # a graph reads the weights as they are
    assert len(graphs._replays._made) == 1


def test_a_shape_is_recorded_when_it_repeats_and_memory_is_the_limit() -> None:
    model, recorded = network(), []

    def record(run: Any, given: RetinaNet, images: Tensor) -> Any:
        assert given is model
        recorded.append(tuple(images.shape))
        if images.shape[2] == 96:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return run

    graphs = NetworkGraphs(model, use_bf16=False, record=record)
    for side in (64, 64, 64, 64, 96, 96, 96, 96, 64):
        images = torch.zeros(1, 3, side, side, device=DEVICE)
        assert graphs(images).logits.equal(model(images).logits)
    assert recorded == [(1, 3, 64, 64), (1, 3, 96, 96)]
    with torch.no_grad():
        assert NetworkGraphs(model, use_bf16=False, record=record)(images).logits.equal(model(images).logits)


def test_a_recording_that_differs_is_not_used(caplog: pytest.LogCaptureFixture) -> None:
    model = network()

    def frozen(run: Any, _: RetinaNet, images: Tensor) -> Any:
        recorded = run(images)  # what comes back whatever the images are
        return lambda images: recorded

    graphs = NetworkGraphs(model, use_bf16=False, record=frozen)
    with caplog.at_level("INFO"):
        for seed in range(4):
            images = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(seed)).to(DEVICE)
            assert graphs(images).logits.equal(model(images).logits)
    assert "differs by" in caplog.text


def test_random_and_counting_layers_are_not_recorded() -> None:
    counting = build(plan_of("lw-v3"), num_classes=2, backbone="resnet18", width=8, norm="batch").to(DEVICE)
    assert not NetworkGraphs.fits(counting)
    assert NetworkGraphs.fits(network()) == (DEVICE.type == "cuda")


@pytest.mark.skipif(DEVICE.type == "cuda", reason="a GPU records by itself")
def test_gradients_go_through_a_replay(monkeypatch: pytest.MonkeyPatch) -> None:
    # Without a GPU a replay repeats nothing, so the values of the recording must come back: once, and not added up.
    class Recording:
        def __init__(self, *_: object, **__: object) -> None: ...
        def __enter__(self) -> None: ...
        def __exit__(self, *_: object) -> None: ...

    monkeypatch.setattr(torch.cuda, "CUDAGraph", lambda: type("Graph", (), {"replay": lambda self: None})())
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: None)
    monkeypatch.setattr(torch.cuda, "graph", Recording)
    monkeypatch.setattr(torch, "empty_like", torch.ones_like)
    model = network()
    images = torch.randn(1, 3, 64, 64)
    replay = record_passes(model, model, images)
    monkeypatch.undo()
    found, expected = replay(images), model(images)
    assert found.logits.equal(expected.logits)
    assert found.logits.requires_grad
    learned = [parameter for parameter in model.parameters() if parameter.requires_grad]
    wanted = torch.autograd.grad([part.sum() for part in expected], learned, allow_unused=True)
    (found.logits.sum() + found.deltas.sum()).backward()
    for parameter, value in zip(learned, wanted, strict=True):
        assert (parameter.grad is None) == (value is None)
        if value is not None:
            torch.testing.assert_close(parameter.grad, value)
