import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torchvision.ops import box_iou

from lw_retinanet.boxes import clip, decode, encode
from lw_retinanet.conventions import AnchorRule, BoxRule, Conventions, OutputRule
from lw_retinanet.models.anchors import anchors_per_level, make_anchors
from lw_retinanet.models.postprocess import detect
from lw_retinanet.structures import Detections, Predictions

SIZE = (64, 96)
NOTHING = -20.0
ANCHORS = AnchorRule(octave_scales=(1.0,), aspect_ratios=(0.5, 1.0, 2.0))


def conventions(**output: Any) -> Conventions:
    return Conventions(anchors=ANCHORS, output=OutputRule(**output))


def silent(num_images: int, num_classes: int) -> Predictions:
    number = sum(anchors_per_level(SIZE, ANCHORS))
    return Predictions(torch.full((num_images, number, num_classes), NOTHING), torch.zeros(num_images, number, 4))


def say(predictions: Predictions, image: int, anchor: int, label: int, score: float, box: list[float], rule: BoxRule = BoxRule()) -> None:
    anchors = make_anchors(SIZE, ANCHORS, torch.device("cpu"))
    predictions.logits[image, anchor, label] = math.log(score / (1 - score))
    predictions.deltas[image, anchor] = encode(torch.tensor(box), anchors[anchor], rule)


def run(predictions: Predictions, rules: Conventions) -> Detections:
    sizes_hw = torch.tensor([SIZE] * len(predictions.logits))
    return detect(predictions, size_hw=SIZE, sizes_hw=sizes_hw, conventions=rules)


def test_best_first_one_of_each_object_and_padding_behind() -> None:
    predictions = silent(2, 3)
    # Overlap of the first two: 20 x 18 of 20 x 22: 0.82. The third is another class in the same place, the fourth stands apart.
    say(predictions, 0, 0, 1, 0.6, [10, 10, 30, 30])
    say(predictions, 0, 50, 1, 0.9, [10, 12, 30, 32])
    say(predictions, 0, 60, 2, 0.7, [10, 12, 30, 32])
    say(predictions, 0, 70, 1, 0.3, [50, 10, 70, 30])
    result = run(predictions, conventions(max_detections=5))
    assert result.counts.tolist() == [3, 0]
    assert result.labels.tolist() == [[1, 2, 1, -1, -1], [-1] * 5]
    torch.testing.assert_close(result.scores, torch.tensor([[0.9, 0.7, 0.3, 0, 0], [0.0] * 5]))
    torch.testing.assert_close(result.boxes[0, :4], torch.tensor([[10.0, 12, 30, 32], [10, 12, 30, 32], [50, 10, 70, 30], [0, 0, 0, 0]]))
    assert (result.boxes[1] == 0).all()


def test_one_anchor_may_answer_for_several_classes() -> None:
    predictions = silent(1, 3)
    for label in (0, 2):
        say(predictions, 0, 7, label, 0.5 + 0.1 * label, [10, 10, 30, 30])
    assert run(predictions, conventions()).labels[0, :3].tolist() == [2, 0, -1]


def test_the_threshold_is_exclusive_and_the_number_limited() -> None:
    predictions = silent(1, 1)
    for number in range(4):
        say(predictions, 0, number, 0, 0.5, [20.0 * number, 10, 20.0 * number + 15, 30])
    predictions.logits[0, 0, 0] = 0.0
    assert run(predictions, conventions(score_threshold=0.5)).counts.tolist() == [0]
    assert run(predictions, conventions(score_threshold=0.4999)).counts.tolist() == [4]
    assert run(predictions, conventions(max_detections=2)).counts.tolist() == [2]


def test_candidates_are_counted_level_by_level() -> None:
    predictions = silent(1, 2)
    first, *_ = anchors_per_level(SIZE, ANCHORS)
    for number in range(3):
        say(predictions, 0, number, 0, 0.9 - 0.1 * number, [20.0 * number, 10, 20.0 * number + 15, 30])
    say(predictions, 0, first, 1, 0.2, [10, 40, 30, 60])
    # The best of P3 and the weak one of P4, which no detection of P3 can crowd out.
    result = run(predictions, conventions(candidates_per_level=1))
    torch.testing.assert_close(result.scores[0, :3], torch.tensor([0.9, 0.2, 0.0]))


def test_clipping_before_or_after_suppression() -> None:
    # Clipped to 64 rows both are 40 x 24; unclipped the second is 40 x 64, and their overlap 40 x 24 / (40 x 64) = 0.375.
    for order, count in (("before_nms", 1), ("after_nms", 2)):
        predictions = silent(1, 1)
        say(predictions, 0, 0, 0, 0.9, [10, 40, 50, 64])
        say(predictions, 0, 1, 0, 0.8, [10, 40, 50, 104])
        result = run(predictions, conventions(clip=order))
        assert result.counts.tolist() == [count]
        assert float(result.boxes[..., 3].max()) == pytest.approx(64, abs=1e-4)


def test_legacy_widths_in_the_overlap() -> None:
    # Pixels 0..9 and 0..5: 6 of 10 columns with the border pixels, 5 of 9 without; a limit between the two tells them apart.
    kept = []
    for legacy in (False, True):
        rule = BoxRule(legacy_plus_one=legacy)
        predictions = silent(1, 1)
        say(predictions, 0, 0, 0, 0.9, [0, 0, 9, 9], rule)
        say(predictions, 0, 1, 0, 0.8, [0, 0, 5, 9], rule)
        rules = Conventions(anchors=ANCHORS, boxes=rule, output=OutputRule(nms_iou=0.58))
        kept.append(int(run(predictions, rules).counts))
    assert kept == [2, 1]


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_broken_numbers_are_no_detections_and_hide_none(bad: float) -> None:
    predictions = silent(1, 2)
    say(predictions, 0, 0, 1, 0.9, [10, 10, 30, 30])
    say(predictions, 0, 1, 1, 0.8, [11, 10, 31, 30])
    say(predictions, 0, 2, 0, 0.99, [40, 10, 60, 30])
    predictions.deltas[0, 2, 0] = bad
    rules = conventions(clip="after_nms")
    result = run(predictions, rules)
    assert result.labels[0, :2].tolist() == [1, -1]
    predictions.logits[0, 3, 0] = float("nan")
    assert run(predictions, rules).counts.tolist() == [1]


def literal(predictions: Predictions, rules: Conventions, sizes_hw: Tensor, image: int) -> list[tuple[float, int, list[float]]]:
    """The same, slowly: every pair of every level sorted, every pair of boxes compared."""
    anchors = make_anchors(SIZE, rules.anchors, torch.device("cpu"))
    boxes = clip(decode(predictions.deltas[image], anchors)[None], sizes_hw[image : image + 1])[0].double()
    scores = predictions.logits[image].sigmoid()
    pairs, start = [], 0
    for count in anchors_per_level(SIZE, rules.anchors):
        level = [(float(scores[a, k]), k, a) for a in range(start, start + count) for k in range(scores.shape[1])]
        level = [pair for pair in level if pair[0] > rules.output.score_threshold]
        pairs += sorted(level, reverse=True)[: rules.output.candidates_per_level]
        start += count
    kept: list[tuple[float, int, int]] = []
    for score, label, anchor in sorted(pairs, reverse=True):
        same = [boxes[other] for _, other_label, other in kept if other_label == label]
        # Boxes clipped to nothing overlap nothing, each other included (0 / 0), as in torchvision's own NMS.
        if not same or float(box_iou(boxes[anchor][None], torch.stack(same)).nan_to_num(0.0).max()) <= rules.output.nms_iou:
            kept.append((score, label, anchor))
    return [(score, label, boxes[anchor].tolist()) for score, label, anchor in kept[: rules.output.max_detections]]


@pytest.mark.parametrize("candidates", [7, 40, 10_000])
def test_equal_to_a_literal_version_on_dense_scores(candidates: int) -> None:
    random = torch.Generator().manual_seed(candidates)
    number = sum(anchors_per_level(SIZE, ANCHORS))
    predictions = Predictions(
        torch.randn(2, number, 3, generator=random) * 2 - 2,
        torch.randn(2, number, 4, generator=random) * torch.tensor([1.0, 1.0, 0.3, 0.3]),
    )
    rules = conventions(candidates_per_level=candidates, max_detections=60)
    sizes_hw = torch.tensor([SIZE, (50, 61)])
    result = detect(predictions, size_hw=SIZE, sizes_hw=sizes_hw, conventions=rules)
    for image in range(2):
        expected = literal(predictions, rules, sizes_hw, image)
        count = int(result.counts[image])
        assert count == len(expected) > 10
        assert result.labels[image, :count].tolist() == [label for _, label, _ in expected]
        assert result.scores[image, :count].tolist() == pytest.approx([score for score, _, _ in expected])
        torch.testing.assert_close(result.boxes[image, :count].double(), torch.tensor([box for *_, box in expected], dtype=torch.float64))


def test_half_precision_predictions_are_decoded_in_single() -> None:
    predictions = silent(1, 1)
    say(predictions, 0, 0, 0, 0.9, [10, 10, 30, 30])
    half = Predictions(predictions.logits.bfloat16(), predictions.deltas.bfloat16())
    assert run(half, conventions()).boxes.dtype == torch.float32
