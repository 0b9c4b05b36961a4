"""What to do next: sentences that follow from the numbers of a run, each only where the numbers say so."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from lw_retinanet.detection.display_score import DISPLAY_SCORE
from lw_retinanet.evaluation.diagnosis import Diagnosis
from lw_retinanet.reporting.evidence import Evidence, Scored

NOT_LEARNED = 0.01  # AP50 below which next to nothing was learned
MOSTLY = 0.4
LOWER_RECALL = 0.1  # small boxes are found less often than others by at least this
RISING = 0.01  # of AP over the last third of the evaluations: one point
FALLEN = 0.02  # of AP below the best evaluation: more than most evaluations of one run differ by chance
EVALUATIONS = 4  # fewer do not show a trend
COSTLY = 0.03  # of AP50 that one kind of error costs
FEW_BOXES = 50  # of a class to learn from
WEAK = 0.5  # of the mean AP
TINY = 16  # pixels of the resized image: two cells of the finest map
MISCALIBRATED = 0.1
OTHER_SCORE = 0.1  # from the score that `predict` shows
WIDE = 0.03  # half of the interval of AP


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One thing to do.

    Args:
        what: What the numbers say.
        do: What to try.
        section: Where the page shows it: the name of a section.
    """

    what: str
    do: str
    section: str


def findings(evidence: Evidence) -> list[Finding]:
    """All findings of a run, what spoils its numbers first, then what costs most."""
    found: list[Finding] = []
    for rule in _RULES_OF_RUNS:
        found += rule(evidence)
    if evidence.scored:
        if evidence.scored.metrics.AP50 < NOT_LEARNED:
            return [*found, *_not_learned(evidence)]
        for scored_rule in _RULES_OF_SCORES:
            found += scored_rule(evidence, evidence.scored)
    return found


def _unfinished(evidence: Evidence) -> Iterator[Finding]:
    if evidence.model is None:
        yield Finding(
            what=f"The training is not finished: {evidence.steps:,} steps are done.",
            do="Wait for its end, and make this page again." if evidence.is_written else "Resume it; the command is below.",
            section="missing",
        )


def _shared_images(evidence: Evidence) -> Iterator[Finding]:
    if evidence.train and evidence.held_out and (shared := evidence.train.shared_images(evidence.held_out)):
        yield Finding(
            what=f"{shared:,} of {evidence.held_out.num_images:,} validation images are training images too, so every AP here is too good.",
            do="Keep them apart, and train again.",
            section="data",
        )


def _random_backbone(evidence: Evidence) -> Iterator[Finding]:
    if evidence.setting("model", "backbone_weights") == "none" and evidence.setting("model", "start") is None:
        yield Finding(
            what="The backbone started from random weights.",
            do="Start from trained ones: model.backbone_weights=imagenet, or a trained model as the start.",
            section="provenance",
        )


def _trend(evidence: Evidence) -> Iterator[Finding]:
    points = evidence.ap_over_time
    if len(points) < EVALUATIONS:
        return
    steps, aps = zip(*points, strict=True)
    best = int(np.argmax(aps))
    gain = aps[-1] - aps[-1 - max(1, len(aps) // 3)]
    if best == len(aps) - 1 and gain >= RISING:
        epochs = evidence.setting("train", "epochs") if evidence.setting("train", "steps") is None else None
        longer = f"train.epochs={2 * epochs}" if isinstance(epochs, int) else f"train.steps={2 * steps[-1]}"
        yield Finding(
            what=f"AP still rises: by {100 * gain:.1f} points over the last third of the evaluations.",
            do=f"Train longer: {longer}.",
            section="training",
        )
    elif aps[best] - aps[-1] >= FALLEN:
        yield Finding(
            what=f"AP was best after {steps[best]:,} of {steps[-1]:,} steps ({100 * aps[best]:.1f}) and has fallen to {100 * aps[-1]:.1f}.",
            do=f"Train for about {steps[best]:,} steps (train.steps={steps[best]}), with data.augment=full, or on more images.",
            section="training",
        )


def _not_learned(evidence: Evidence) -> Iterator[Finding]:
    yield Finding(
        what="The model finds next to nothing.",
        do="Look at the curves: if the loss still falls, train longer; if it does not, try a smaller train.rate. Look at the images with "
        "their boxes as well (data preview), in case boxes and images do not belong together.",
        section="training",
    )


def _doubtful_labels(_: Evidence, scored: Scored) -> Iterator[Finding]:
    kinds = [one.kind for one in scored.diagnosis.suspects]
    without, other = kinds.count("no label"), kinds.count("other class")
    if without + other:
        parts = [f"{without:,} where there is no label"] * bool(without) + [f"{other:,} on a label of another class"] * bool(other)
        yield Finding(
            what=f"{without + other:,} labels look wrong: detections that are very sure, {' and '.join(parts)}.",
            do="Look at the list, and put right those that are; AP counts them as the model's errors.",
            section="labels",
        )


def _small_boxes(evidence: Evidence, scored: Scored) -> Iterator[Finding]:
    small, *others = scored.diagnosis.sizes
    missed = [size.boxes - size.found for size in scored.diagnosis.sizes]
    rest, rest_found = sum(size.boxes for size in others), sum(size.found for size in others)
    if not small.boxes or not rest or missed[0] < MOSTLY * sum(missed):
        return
    if rest_found / rest - small.found / small.boxes < LOWER_RECALL:
        return
    yield Finding(
        what=f"Small objects are missed most: {missed[0]:,} of {sum(missed):,} missed boxes. "
        f"{small.found / small.boxes:.0%} of the small ones are found, and {rest_found / rest:.0%} of the others.",
        do=f"Train at a larger size ({_larger(evidence)}), or cut large images into tiles (parameter tile of predict and evaluate).",
        section="sizes",
    )


def _larger(evidence: Evidence) -> str:
    size = evidence.image_size
    return f"data.image_size={3 * size // 2 // 32 * 32} in place of {size}" if size else "a larger data.image_size"


def _weak_classes(evidence: Evidence, scored: Scored) -> Iterator[Finding]:
    """Classes that are found far worse than the others, though there are boxes enough to learn from: see `_few_boxes`."""
    learned = _learned(evidence, scored)
    for label, one in enumerate(scored.metrics.per_class):
        if not -1 < one.AP < WEAK * scored.metrics.AP or (learned and learned[label] < FEW_BOXES):
            continue
        side = _side(evidence, scored, label)
        is_tiny = side is not None and side < TINY
        yield Finding(
            what=f"{one.name} is found far worse than the other classes: AP {100 * one.AP:.1f}, the mean is {100 * scored.metrics.AP:.1f}.",
            do=f"Its objects are {side:.0f} pixels large in the resized image (median): train at a larger size ({_larger(evidence)})."
            if is_tiny
            else "Look at its row in the table of classes taken for others and at the worst images; add images of it.",
            section="classes",
        )


def _side(evidence: Evidence, scored: Scored, label: int) -> float | None:
    """Median side of a class's boxes in pixels of the resized image; None where sizes are not known."""
    records, size = scored.records, evidence.image_size
    rows = (records.labels == label) & ~records.is_ignored
    longest = records.sizes_hw.max(axis=1)[records.image_of_box[rows]]
    if size is None or not rows.any() or not longest.all():
        return None
    return float(np.median(np.sqrt(records.boxes_xywh[rows, 2:].prod(axis=1)) * size / longest))


def _learned(evidence: Evidence, scored: Scored) -> list[int] | None:
    """The number of boxes to learn from of each class; None if the training data cannot be read."""
    if evidence.train is None or evidence.train.class_names != scored.records.class_names:
        return None
    counts: list[int] = np.bincount(evidence.train.labels[~evidence.train.is_ignored], minlength=len(scored.records.categories)).tolist()
    return counts


def _main_error(_: Evidence, scored: Scored) -> Iterator[Finding]:
    worst = max(scored.diagnosis.errors, key=lambda kind: kind.ap_cost)
    if worst.ap_cost < COSTLY:
        return
    advice = {
        "class": _confused(scored),
        "location": "The objects are found, but their boxes are not tight enough: train longer or at a larger size, and look whether the "
        "labels themselves are tight.",
        "class and location": "Train longer, and look at the worst images: such detections are near an object, and wrong in both.",
        "duplicate": "Several boxes are left on one object: predict with a smaller nms overlap.",
        "background": "Add images without any object, and look at the list of labels: some of these may be objects that nobody labelled.",
        "missed": "Look at the worst images for what the missed ones have in common, and add images of that.",
    }
    yield Finding(
        what=f"The costliest kind of error is “{worst.name}”: without it AP50 would be {100 * worst.ap_cost:.1f} points higher.",
        do=advice[worst.name],
        section="errors",
    )


def _confused(scored: Scored) -> str:
    names = scored.records.class_names
    between = scored.diagnosis.confusion[:-1, :-1].copy()
    np.fill_diagonal(between, 0)
    if not between.any():
        return "Look at the worst images: the class is wrong where the box is right."
    truth, said = np.unravel_index(int(between.argmax()), between.shape)
    return (
        f"Most often {names[truth]} is taken for {names[said]} ({between.max():,} times): add images of both, look whether "
        "their labels are right, and merge the classes if the images do not show the difference."
    )


def _few_boxes(evidence: Evidence, scored: Scored) -> Iterator[Finding]:
    learned = _learned(evidence, scored)
    if learned is None:
        return
    rare = [
        f"{one.name} ({number:,} boxes, AP {100 * one.AP:.1f})"
        for one, number in zip(scored.metrics.per_class, learned, strict=True)
        if number < FEW_BOXES and -1 < one.AP < scored.metrics.AP
    ]
    if rare:
        yield Finding(
            what=f"Few boxes to learn from, and an AP below the mean: {_listed(rare)}.",
            do="Add images of these classes first.",
            section="classes",
        )


def _scores(_: Evidence, scored: Scored) -> Iterator[Finding]:
    said = scored.diagnosis
    if said.recall and abs(said.score - DISPLAY_SCORE) >= OTHER_SCORE:
        yield Finding(
            what=f"The best score to show detections from is {said.score:.2f} (precision {said.precision:.0%}, recall {said.recall:.0%}), "
            f"not {DISPLAY_SCORE:g}.",
            do=f"Predict with score={said.score:.2f}; take a higher one if false alarms cost you more than misses.",
            section="calibration",
        )
    if said.calibration_error >= MISCALIBRATED:
        yield Finding(
            what=f"Scores are {_leaning(said)} what share of detections is right, by {100 * said.calibration_error:.0f} points on average.",
            do="Use scores to rank detections and to set a limit, not as probabilities.",
            section="calibration",
        )


def _leaning(said: Diagnosis) -> str:
    lean = sum(one.number * (one.score - one.precision) for one in said.bins)
    return "above" if lean > 0 else "below"


def _wide_interval(_: Evidence, scored: Scored) -> Iterator[Finding]:
    ap = scored.estimates.get("AP")
    if ap is None:
        yield Finding(
            what=f"AP is measured on {scored.records.num_images:,} images, too few to say how sure it is.",
            do="Use at least 20 validation images, better some hundreds.",
            section="classes",
        )
    elif (ap.high - ap.low) / 2 >= WIDE:
        yield Finding(
            what=f"AP {100 * ap.value:.1f} is uncertain: between {100 * ap.low:.1f} and {100 * ap.high:.1f} "
            f"on {scored.records.num_images:,} images.",
            do="Take smaller differences between two runs for chance, compare them in pairs (compare), or add validation images.",
            section="classes",
        )


def _listed(items: Sequence[str], *, most: int = 5) -> str:
    rest = len(items) - most
    return ", ".join(items[:most]) + (f" and {rest:,} more" if rest > 0 else "")


_RULES_OF_RUNS: tuple[Callable[[Evidence], Iterator[Finding]], ...] = (_unfinished, _shared_images, _trend, _random_backbone)
_RULES_OF_SCORES: tuple[Callable[[Evidence, Scored], Iterator[Finding]], ...] = (
    _doubtful_labels,
    _small_boxes,
    _weak_classes,
    _main_error,
    _few_boxes,
    _scores,
    _wide_interval,
)
