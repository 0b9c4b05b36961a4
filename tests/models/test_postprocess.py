import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torchvision.ops import box_iou

from lw_retinanet.boxes import clip, decode, encode
from lw_retinanet.conventions import AnchorRule, BoxRule, Conventions, InputRule, OutputRule
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


def test_boxes_of_other_classes_are_removed_if_classes_do_not_matter() -> None:
    predictions = silent(1, 3)
    say(predictions, 0, 50, 1, 0.9, [10, 12, 30, 32])
    say(predictions, 0, 60, 2, 0.7, [10, 12, 30, 32])
    say(predictions, 0, 70, 0, 0.3, [50, 10, 70, 30])
    assert run(predictions, conventions()).labels[0, :3].tolist() == [1, 2, 0]
    result = run(predictions, conventions(class_agnostic=True))
    assert (result.counts.tolist(), result.labels[0, :2].tolist()) == ([2], [1, 0])


def test_predictions_may_ask_for_gradients() -> None:
    predictions = silent(1, 3)
    say(predictions, 0, 7, 2, 0.6, [10, 10, 30, 30])
    expected = run(predictions, conventions())
    found = run(Predictions(predictions.logits.requires_grad_(), predictions.deltas.requires_grad_()), conventions())
    assert found.labels.tolist() == expected.labels.tolist()
    assert found.boxes.tolist() == expected.boxes.tolist()


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


def test_overlap_does_not_depend_on_how_the_origin_writes_corners() -> None:
    # Ten columns and six of them: 0.6, which an origin with inclusive corners computes from 0..9 and 0..5; 5 of 9 would be 0.56.
    for legacy in (False, True):
        rule = BoxRule(legacy_plus_one=legacy)
        for nms_iou, count in ((0.58, 1), (0.62, 2)):
            predictions = silent(1, 1)
            say(predictions, 0, 0, 0, 0.9, [0, 0, 10, 10], rule)
            say(predictions, 0, 1, 0, 0.8, [0, 0, 6, 10], rule)
            rules = Conventions(anchors=ANCHORS, boxes=rule, output=OutputRule(nms_iou=nms_iou))
            assert int(run(predictions, rules).counts) == count


@pytest.mark.parametrize(
    ("clip_to", "legacy", "expected"),
    [
        ("picture", False, [0, 0, 90, 60]),
        ("picture_minus_one", False, [0, 0, 89, 59]),
        ("padded_minus_one", False, [0, 0, 95, 63]),
        # The last pixel of an inclusive box is clipped, and the box ends behind it.
        ("picture", True, [0, 0, 91, 61]),
        ("picture_minus_one", True, [0, 0, 90, 60]),
        ("padded_minus_one", True, [0, 0, 96, 64]),
    ],
)
@pytest.mark.parametrize("order", ["before_nms", "after_nms"])
def test_what_boxes_are_clipped_to(clip_to: str, legacy: bool, expected: list[float], order: str) -> None:
    rule = BoxRule(legacy_plus_one=legacy)
    predictions = silent(1, 1)
    say(predictions, 0, 0, 0, 0.9, [-7, -7, 200, 200], rule)
    rules = Conventions(anchors=ANCHORS, boxes=rule, output=OutputRule.model_validate({"clip_to": clip_to, "clip": order}))
    result = detect(predictions, size_hw=SIZE, sizes_hw=torch.tensor([[60, 90]]), conventions=rules)
    assert result.boxes[0, 0].tolist() == pytest.approx(expected, abs=1e-4)
    assert (result.boxes[0, 1:] == 0).all()


def test_padding_cannot_be_clipped_to_in_the_image() -> None:
    with pytest.raises(ValueError, match="frame=picture has no padding to clip to"):
        OutputRule(frame="picture", clip_to="padded_minus_one")


def test_back_to_the_image_by_two_factors_or_by_one() -> None:
    # 50 x 93 pixels at the scale 64 / 93 are 34.4 x 64, rounded to 34 x 64: the sides' ratios are 50 / 34 and 93 / 64, the scale 93 / 64.
    predictions = silent(1, 1)
    say(predictions, 0, 0, 0, 0.9, [10, 10, 30, 30])
    for way, factor_y in (("per_axis", 50 / 34), ("uniform", 93 / 64)):
        for frame in ("input", "picture"):
            rules = conventions(scale_back=way, frame=frame).model_copy(update={"input": InputRule(size=64)})
            arguments: dict[str, Any] = {"size_hw": SIZE, "sizes_hw": torch.tensor([[34, 64]]), "conventions": rules}
            boxes = detect(predictions, **arguments, images_hw=[(50, 93)]).boxes[0, 0]
            assert boxes.tolist() == pytest.approx([10 * 93 / 64, 10 * factor_y, 30 * 93 / 64, 30 * factor_y], rel=1e-5)
            assert detect(predictions, **arguments).boxes[0, 0].tolist() == pytest.approx([10, 10, 30, 30], abs=1e-4)


def test_suppression_in_image_pixels_sees_what_clipping_there_leaves() -> None:
    # Of inclusive corners the overlap depends on the scale: columns 0..9 and 0..5 are 6 of 10; at half size 0..4.5 and 0..2.5, 3.5 of 5.5.
    rule = BoxRule(legacy_plus_one=True)
    counts = []
    for frame in ("input", "picture"):
        predictions = silent(1, 1)
        say(predictions, 0, 0, 0, 0.9, [0, 0, 10, 10], rule)
        say(predictions, 0, 1, 0, 0.8, [0, 0, 6, 10], rule)
        output = OutputRule.model_validate({"frame": frame, "nms_iou": 0.62})
        rules = Conventions(anchors=ANCHORS, boxes=rule, output=output)
        found = detect(predictions, size_hw=SIZE, sizes_hw=torch.tensor([[64, 96]]), conventions=rules, images_hw=[(32, 48)])
        assert found.boxes[0, 0].tolist() == pytest.approx([0, 0, 5.5, 5.5], abs=1e-4)
        counts.append(int(found.counts))
    assert counts == [2, 1]


def test_the_last_level_may_have_a_threshold_of_its_own() -> None:
    numbers = anchors_per_level(SIZE, ANCHORS)
    predictions = silent(1, 1)
    for level, score in ((0, 0.04), (3, 0.04), (4, 0.03)):
        say(predictions, 0, sum(numbers[:level]), 0, score, [20.0 * level, 10, 20.0 * level + 15, 30])
    assert int(run(predictions, conventions()).counts) == 0
    # P7's other anchors, at e^-20, pass 0 too, and lie elsewhere.
    found = run(predictions, conventions(last_level_score_threshold=0.0))
    assert found.scores[0, :2].tolist() == [pytest.approx(0.03), pytest.approx(0, abs=1e-6)]
    assert int(run(predictions, conventions(last_level_score_threshold=0.035)).counts) == 0


@pytest.mark.parametrize("order", ["before_nms", "after_nms"])
def test_boxes_that_clipping_empties(order: str) -> None:
    predictions = silent(2, 2)
    say(predictions, 0, 0, 0, 0.9, [100, 10, 120, 30])  # right of the image
    say(predictions, 0, 1, 1, 0.8, [10, 10, 30, 30])
    say(predictions, 0, 2, 1, 0.7, [10, -30, 30, -10])  # above it
    say(predictions, 0, 3, 0, 0.6, [40, 10, 60, 30])
    assert int(run(predictions, conventions(clip=order)).counts[0]) == 4
    result = run(predictions, conventions(clip=order, drop_empty=True, max_detections=5))
    assert result.counts.tolist() == [2, 0]
    assert result.labels.tolist() == [[1, 0, -1, -1, -1], [-1] * 5]
    torch.testing.assert_close(result.scores[0], torch.tensor([0.8, 0.6, 0, 0, 0]))
    torch.testing.assert_close(result.boxes[0, :3], torch.tensor([[10.0, 10, 30, 30], [40, 10, 60, 30], [0, 0, 0, 0]]))


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
