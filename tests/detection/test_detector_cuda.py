"""What a detector does on a CUDA device; without one, that the parts are put together as there."""

import numpy as np
import pytest
import torch

from lw_retinanet.conventions import Conventions, InputRule
from lw_retinanet.data.records import Category
from lw_retinanet.detection import cuda_graphs, detector
from lw_retinanet.detection.detector import Detector
from lw_retinanet.heads import plan_of
from lw_retinanet.models import postprocess
from lw_retinanet.models.build import build
from lw_retinanet.models.suppression import suppress

CATEGORIES = (Category(id=1, name="a"), Category(id=2, name="b"))


def made(device: str, **how: object) -> Detector:
    torch.manual_seed(0)
    conventions = Conventions(input=InputRule(size=128))
    model = build(plan_of("lw-v3"), num_classes=2, backbone="resnet18", width=32, conventions=conventions)
    for name, bias in model.head.cls.named_parameters():
        if "predict" in name and name.endswith("bias"):
            torch.nn.init.zeros_(bias)
    return Detector.of_model(model, CATEGORIES, device=device, **how)  # type: ignore[arg-type]


@pytest.fixture
def _kernels_by_the_host(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(detector, "has_triton", lambda _: True)
    monkeypatch.setattr(postprocess, "suppress_on_device", suppress)
    monkeypatch.setattr(cuda_graphs, "record_graph", lambda work, _: work)


@pytest.mark.usefixtures("_kernels_by_the_host")
def test_by_a_graph_as_without() -> None:
    images = [np.random.default_rng(seed).integers(0, 256, (90, 120, 3), dtype=np.uint8) for seed in (0, 1)]
    one = made("cpu")
    one.heads = ("light", "full")
    for score, full in ((0.5, "light"), (0.5, "light"), (0.55, "light"), (0.5, "full")):
        for _ in range(3):
            found = one.predict(images, score=score, head=full, batch_size=2)  # type: ignore[arg-type]
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(detector, "has_triton", lambda _: False)
            expected = one.predict(images, score=score, head=full, batch_size=2)  # type: ignore[arg-type]
        assert len(expected[0].scores) > 3
        for ours, theirs in zip(found, expected, strict=True):
            assert ours.labels.tolist() == theirs.labels.tolist()
            np.testing.assert_allclose(ours.scores, theirs.scores, rtol=0, atol=1e-6)  # by one sort or another
            np.testing.assert_allclose(ours.boxes, theirs.boxes, rtol=0, atol=1e-3)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("antialias", [True, False])
@pytest.mark.parametrize("size", [48, 200])
def test_a_gpu_prepares_the_same_pixels(antialias: bool, size: int) -> None:
    random = np.random.default_rng(0)
    images = [random.integers(0, 256, shape, dtype=np.uint8) for shape in ((90, 120, 3), (120, 77, 3))]
    rule = InputRule(size=size, antialias=antialias)
    prepared = []
    for device in ("cpu", "cuda"):
        model = build(plan_of("lw-v3"), num_classes=2, backbone="resnet18", width=8, conventions=Conventions(input=rule))
        prepared.append(Detector.of_model(model, CATEGORIES, device=device).prepare(images))
    on_cpu, on_gpu = prepared
    assert on_gpu.images.device.type == "cuda"
    assert on_gpu.sizes_hw.tolist() == on_cpu.sizes_hw.tolist()
    limit = 1.01 / 255 / min(rule.std)  # one level of 255, which is what rounding can differ by
    assert (on_gpu.images.cpu() - on_cpu.images).abs().max() <= limit


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_graph_answers_as_the_first_calls_do() -> None:
    one = made("cuda", precision="bf16")
    image = np.random.default_rng(0).integers(0, 256, (200, 300, 3), dtype=np.uint8)
    answers = [one.predict([image], score=0.1)[0] for _ in range(5)]
    assert len(answers[0].scores) > 5
    for answer in answers[1:]:
        assert answer.labels.tolist() == answers[0].labels.tolist()
        np.testing.assert_allclose(answer.boxes, answers[0].boxes, atol=0.05)
    with torch.no_grad():
        for parameter in one.model.head.parameters():
            parameter.zero_()
    assert one.predict([image], score=0.6)[0].scores.tolist() == []  # all scores are 0.5: the graph of earlier weights is gone
