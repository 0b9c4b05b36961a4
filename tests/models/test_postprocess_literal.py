"""Post-processing against the straightforward order of steps, on a thousand random cases under all kinds of rules."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torchvision.ops import box_iou

from lw_retinanet.boxes import decode
from lw_retinanet.conventions import AnchorRule, BoxRule, Conventions, InputRule, OutputRule
from lw_retinanet.data.preprocess import resized_size
from lw_retinanet.models import candidates, postprocess
from lw_retinanet.models.anchors import anchors_per_level, make_anchors
from lw_retinanet.models.candidates import _fixed
from lw_retinanet.models.postprocess import detect
from lw_retinanet.models.suppression import suppress_without_waiting
from lw_retinanet.structures import Detections, Predictions

SIZE = (32, 64)
ANCHORS = AnchorRule(octave_scales=(0.5,), aspect_ratios=(0.5, 2.0))
IMAGES_HW = ((50, 93), (20, 41))
Row = tuple[float, int, list[float]]


def literal(logits: Tensor, deltas: Tensor, image_hw: tuple[int, int], rules: Conventions) -> list[Row]:
    """One image: sigmoid of all, threshold, the best of each level, decode, clip, NMS of each class, scale."""
    output, plus_one = rules.output, float(rules.boxes.legacy_plus_one)
    input_hw = resized_size(image_hw, rules.input)
    scores = logits.double().sigmoid().float()
    decoded = decode(deltas, make_anchors(SIZE, ANCHORS, torch.device("cpu")), rules.boxes)
    if output.scale_back == "uniform":
        factor = max(image_hw) / rules.input.size
        factors = torch.tensor([factor] * 4)
    else:
        factors = torch.tensor([image_hw[1] / input_hw[1], image_hw[0] / input_hw[0]] * 2)
    frame_hw = image_hw if output.frame == "picture" else input_hw
    limit_hw = SIZE if output.clip_to == "padded_minus_one" else frame_hw
    limits = torch.tensor([limit_hw[1], limit_hw[0]] * 2) - (0 if output.clip_to == "picture" else 1)
    pixel = torch.tensor([0.0, 0, plus_one, plus_one])

    def clipped(boxes: Tensor) -> Tensor:
        return torch.minimum((boxes - pixel).clamp(min=0), limits) + pixel

    def filled(box: Tensor) -> bool:
        x1, y1, x2, y2 = box.tolist()
        return not output.drop_empty or (x2 > x1 and y2 > y1)

    if output.frame == "picture":
        decoded = (decoded - pixel) * factors + pixel
    values, chances = logits.tolist(), scores.tolist()
    pairs: list[tuple[float, int, int]] = []
    start = 0
    counts = anchors_per_level(SIZE, ANCHORS)
    for level, count in enumerate(counts):
        own = output.last_level_score_threshold if level == len(counts) - 1 else None
        threshold = torch.tensor(output.score_threshold if own is None else own)
        passed = (scores[start : start + count] > threshold).nonzero().tolist()
        found = sorted((-values[a + start][k], a + start, k) for a, k in passed)
        pairs += [(chances[a][k], a, k) for _, a, k in found[: output.candidates_per_level]]
        start += count
    rows = sorted(pairs, key=lambda pair: (-pair[0], pair[1:]))
    if output.clip == "before_nms":
        decoded = clipped(decoded)
        rows = [row for row in rows if filled(decoded[row[1]])]
    finite = decoded.isfinite().all(dim=1).tolist()
    rows = [row for row in rows if finite[row[1]]]
    boxes = decoded[[a for _, a, _ in rows]].double()
    too_much = (box_iou(boxes, boxes) > output.nms_iou).tolist()
    kept: list[int] = []
    for place, (_, _, label) in enumerate(rows):
        if not any(rows[other][2] == label and too_much[place][other] for other in kept):
            kept.append(place)
    answers = []
    for score, anchor, label in [rows[place] for place in kept[: output.max_detections]]:
        box = decoded[anchor] if output.clip == "before_nms" else clipped(decoded[anchor])
        if output.clip == "before_nms" or filled(box):
            answers.append((score, label, ((box - pixel) * factors + pixel if output.frame == "input" else box).tolist()))
    return answers


def random_case(seed: int) -> tuple[Predictions, Conventions]:
    random = torch.Generator().manual_seed(seed)

    def pick(*values: Any) -> Any:
        return values[int(torch.randint(len(values), (), generator=random))]

    shape = (len(IMAGES_HW), sum(anchors_per_level(SIZE, ANCHORS)), pick(1, 3))
    logits = torch.randn(shape, generator=random) * pick(1.0, 3.0) - pick(0.0, 2.0, 4.0)
    deltas = torch.randn(*shape[:2], 4, generator=random) * pick(0.1, 0.5)
    if pick(True, False):
        logits = logits.round()  # many ties
    if pick(True, False):
        logits[pick(0, 1)] = -30.0  # nothing found
    if pick(True, False, False):
        for tensor in (logits, deltas):
            which = torch.rand(tensor.shape, generator=random) < 0.05
            tensor[which] = pick(math.nan, math.inf, -math.inf)
    frame = pick("input", "picture")
    output = OutputRule(
        score_threshold=pick(0.05, 0.3, 0.0),
        last_level_score_threshold=pick(None, 0.0, 0.6),
        candidates_per_level=pick(3, 20, 1000),
        nms_iou=pick(0.3, 0.5, 1.0),
        max_detections=pick(1, 8, 100),
        clip=pick("before_nms", "after_nms"),
        clip_to=pick("picture", "picture_minus_one", *(["padded_minus_one"] if frame == "input" else [])),
        frame=frame,
        scale_back=pick("per_axis", "uniform"),
        drop_empty=pick(True, False),
    )
    boxes = BoxRule(legacy_plus_one=pick(True, False), clamp=pick("max", "both", "none"))
    return Predictions(logits, deltas), Conventions(anchors=ANCHORS, boxes=boxes, input=InputRule(size=64), output=output)


@pytest.mark.parametrize("hundred", range(10))
def test_equal_to_the_straightforward_order(hundred: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def suppress_fixed(boxes: Tensor, labels: Tensor, is_real: Tensor, *, iou: float, most: int) -> Tensor:
        kept, is_complete = suppress_without_waiting(boxes, labels, is_real, iou=iou, most=most)
        assert is_complete.all()
        return kept

    found = 0
    for seed in range(100 * hundred, 100 * hundred + 100):
        predictions, rules = random_case(seed)
        sizes_hw = torch.tensor([resized_size(image_hw, rules.input) for image_hw in IMAGES_HW])

        def run() -> Detections:
            return detect(predictions, size_hw=SIZE, sizes_hw=sizes_hw, conventions=rules, images_hw=IMAGES_HW)  # noqa: B023

        results = [run()]
        with monkeypatch.context() as patch:  # what runs where waiting for the device would cost
            patch.setattr(postprocess, "best_candidates", _fixed)
            patch.setattr(postprocess, "suppress", suppress_fixed)
            results.append(run())
        for image, image_hw in enumerate(IMAGES_HW):
            expected = literal(predictions.logits[image], predictions.deltas[image], image_hw, rules)
            count = len(expected)
            found += count
            for result in results:
                assert int(result.counts[image]) == count, seed
                assert result.labels[image].tolist() == [label for _, label, _ in expected] + [-1] * (rules.output.max_detections - count)
                assert result.scores[image, :count].tolist() == [score for score, _, _ in expected]
                # Another order of the same float32 operations: a few units in the last place of a few hundred pixels.
                boxes = torch.tensor([box for *_, box in expected]).reshape(-1, 4)
                torch.testing.assert_close(result.boxes[image, :count], boxes, rtol=1e-5, atol=1e-4)
                assert (result.boxes[image, count:] == 0).all()
                assert (result.scores[image, count:] == 0).all()
    assert found > 500


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.filterwarnings("ignore:Synchronization debug mode")  # torch calls it a prototype
def test_a_cuda_device_is_waited_for_once(monkeypatch: pytest.MonkeyPatch) -> None:
    copied: list[bool] = []
    on_device = postprocess.detect_on_device

    def watched(*arguments: Any, **how: Any) -> Tensor:
        packed = on_device(*arguments, **how)
        torch.cuda.set_sync_debug_mode("default")
        copied.append(True)
        return packed

    monkeypatch.setattr(postprocess, "detect_on_device", watched)
    for seed in range(50):
        predictions, rules = random_case(seed)
        sizes_hw = torch.tensor([resized_size(image_hw, rules.input) for image_hw in IMAGES_HW])
        expected = detect(predictions, size_hw=SIZE, sizes_hw=sizes_hw, conventions=rules, images_hw=IMAGES_HW)
        there = Predictions(predictions.logits.cuda(), predictions.deltas.cuda())
        sizes_there = sizes_hw.cuda()

        def run() -> Detections:
            return detect(there, size_hw=SIZE, sizes_hw=sizes_there, conventions=rules, images_hw=IMAGES_HW)  # noqa: B023

        run()  # anchors and limits are kept from one call to the next
        copied.clear()
        torch.cuda.set_sync_debug_mode("error")
        try:
            found = run()
        finally:
            torch.cuda.set_sync_debug_mode("default")
        assert copied == [True]
        assert found.labels.tolist() == expected.labels.tolist()
        torch.testing.assert_close(found.boxes, expected.boxes, rtol=1e-5, atol=1e-3)


@pytest.mark.skipif(torch.cuda.is_available(), reason="kernels that are interpreted take no CUDA tensors")
def test_the_whole_way_by_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    kernels = pytest.importorskip("lw_retinanet.models.kernels", reason="needs Triton")
    monkeypatch.setattr(kernels, "_BLOCK", 128)
    monkeypatch.setattr(kernels, "_EACH", 128)
    for seed in (0, 8):
        predictions, rules = random_case(seed)
        sizes_hw = torch.tensor([resized_size(image_hw, rules.input) for image_hw in IMAGES_HW])
        results = [detect(predictions, size_hw=SIZE, sizes_hw=sizes_hw, conventions=rules, images_hw=IMAGES_HW)]
        with monkeypatch.context() as patch:
            for module in (candidates, postprocess):
                patch.setattr(module, "has_triton", lambda _: True)
            results.append(detect(predictions, size_hw=SIZE, sizes_hw=sizes_hw, conventions=rules, images_hw=IMAGES_HW))
        expected, found = results
        assert (found.counts.tolist(), found.labels.tolist()) == (expected.counts.tolist(), expected.labels.tolist())
        torch.testing.assert_close(found.boxes, expected.boxes, rtol=1e-5, atol=1e-4)  # some float32 operations in another order
        assert found.scores.tolist() == expected.scores.tolist()
