"""No comparison of times without one of answers: networks with the same weights must say the same before they are timed."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torchvision.models.detection.retinanet import RetinaNet as TorchvisionRetinaNet

from lw_retinanet.benchmarking.contender import as_picture, run_detector
from lw_retinanet.benchmarking.pictures import Pictures
from lw_retinanet.conventions import OutputRule
from lw_retinanet.detection.detector import Detector
from lw_retinanet.errors import LwRetinaNetError
from lw_retinanet.exporting.agreement import RMS_LIMITS
from lw_retinanet.exporting.matches import MIN_SHARE, Detected, match_lists, share_found
from lw_retinanet.models.retinanet import RetinaNet
from lw_retinanet.weights.foreign.torchvision_twin import torchvision_conventions

LOGITS = 1e-4  # largest difference in fp32, relative to the largest value where that is above 1
BOX_PIXELS, SCORE = 0.05, 1e-5
EXPORTED_SCORE = 1e-4  # another runtime adds in another order
MAX_MISSING = 0.01  # of the detections: two that tie in NMS may fall either way
MOST_PICTURES = 4


class ParityError(LwRetinaNetError):
    """Two networks of the same weights do not give the same answers, so their times cannot be compared."""


@dataclass(frozen=True, kw_only=True)
class Parity:
    """What was compared.

    Args:
        name: of the one whose answers were looked at.
        against: whose answers they had to be.
        pictures: how many.
        detections: of the latter; 0 where only logits and deltas were compared.
        missing: detections of either that the other does not have.
        box: largest difference in pixels of those that both have.
        score: largest difference of their scores.
        logits: largest difference of logits and deltas relative to the largest value; None where boxes are all that comes out.
        rms: root of the mean squared difference over the standard deviation, for rounded networks; else None.
        share: of the detections of a picture that a rounded network has as well, the smallest; None where logits were compared.
    """

    name: str
    against: str
    pictures: int
    detections: int = 0
    missing: int = 0
    box: float = 0.0
    score: float = 0.0
    logits: float | None = None
    rms: float | None = None
    share: float | None = None

    def as_dict(self) -> dict[str, Any]:
        return dict(vars(self))

    def line(self) -> str:
        """For people."""
        parts = []
        if self.rms is not None:
            parts.append(f"relative error {self.rms:.2g}")
        elif self.logits is not None:
            parts.append(f"logits and deltas within {self.logits:.1g}")
        if self.share is not None:
            parts.append(f"at least {self.share:.0%} of the detections of a picture shared")
        if self.detections:
            share = f", {self.missing} without partner" if self.missing else ""
            parts.append(f"{self.detections} detections{share}, boxes within {self.box:.2g} px, scores within {self.score:.1g}")
        return f"{self.name} answers as {self.against} does: {'; '.join(parts)} ({self.pictures} pictures)"


@torch.inference_mode()
def check_torchvision(twin: TorchvisionRetinaNet, model: RetinaNet, pictures: Pictures, *, name: str, full_head: bool) -> Parity:
    """Compare torchvision's network with ours, in fp32: logits and deltas of the same input, and boxes under torchvision's conventions.

    Args:
        twin: with the same weights, on the same device.
        model: ours; its own anchors and resizing play no part.
        pictures: the first few are used.
        name: for the message.
        full_head: compare the head that a lightened model had before.

    Raises:
        ParityError: if they differ by more than they may.
    """
    device = next(model.parameters()).device
    same = RetinaNet(backbone=model.backbone, fpn=model.fpn, head=model.head, conventions=torchvision_conventions(model.conventions))
    detector = Detector.of_model(same, (), device=device)
    against = "torchvision"
    used = min(MOST_PICTURES, len(pictures.files))
    worst, total = 0.0, _Tally()
    for number in range(used):
        image = pictures.decoded(number)
        inputs = detector.prepare([image])
        ours = detector.network(inputs.images, full_head=full_head)
        theirs = twin.head(list(twin.backbone(inputs.images).values()))
        for what, one, other in (("logits", theirs["cls_logits"], ours.logits), ("deltas", theirs["bbox_regression"], ours.deltas)):
            worst = max(worst, _require_close(one, other, what, name, against))
        found = detector.detections(inputs, detector.conventions, full_head=full_head)
        count = int(found.counts[0])
        given = Detected(found.boxes[0, :count], found.scores[0, :count], found.labels[0, :count])
        wanted = twin([as_picture(image).to(device)])[0]
        total.add(
            Detected(wanted["boxes"].cpu(), wanted["scores"].cpu(), wanted["labels"].cpu()),
            given,
            score=SCORE,
            rule=detector.conventions.output,
        )
    total.require(name, against, score=SCORE)
    return Parity(name=name, against=against, pictures=used, logits=worst, **total.as_dict())


@torch.inference_mode()
def check_variant(reference: Detector, detector: Detector, pictures: Pictures, *, name: str, against: str, precision: str) -> Parity:
    """Compare two detectors that come from the same weights.

    Args:
        reference: in fp32.
        detector: another runtime, precision, or both.
        pictures: the first few are used.
        name: of the detector, for the message.
        against: of the reference.
        precision: of the detector: in fp32 it must give the same numbers; less than that (``bf16``, ``int8``; ``half`` for weights
            in fp16) may not pass a limit as a whole.

    Raises:
        ParityError: if they differ by more than they may.
    """
    used = min(MOST_PICTURES, len(pictures.files))
    has_logits = not (reference.runtime.gives_boxes or detector.runtime.gives_boxes)
    is_exact = precision == "fp32"
    worst, rms, total, shares = 0.0, 0.0, _Tally(), []
    for number in range(used):
        file = pictures.files[number]
        if has_logits:
            inputs = reference.prepare([pictures.decoded(number)])
            pairs = zip(
                ("logits", "deltas"), reference.network(inputs.images), detector.network(inputs.images.to(detector.device)), strict=True
            )
            for what, wanted, given in pairs:
                wanted, given = wanted.float().cpu(), given.float().cpu()
                if is_exact:
                    worst = max(worst, _require_close(wanted, given, what, name, against))
                else:
                    rms = max(rms, _require_near(wanted, given, what, name, against, RMS_LIMITS[precision]))
        if not is_exact and has_logits:
            continue
        wanted_boxes, given_boxes = run_detector(reference)([file])[0], run_detector(detector)([file])[0]
        if is_exact:
            total.add(wanted_boxes, given_boxes, score=EXPORTED_SCORE, rule=reference.conventions.output)
        else:
            shares.append(share_found(wanted_boxes, given_boxes))
    if not is_exact:
        share = min(shares, default=None)
        if share is not None and share < MIN_SHARE:
            raise ParityError(_message(name, against, f"of one picture they share only {share:.0%} of the detections"))
        return Parity(name=name, against=against, pictures=used, rms=rms if has_logits else None, share=share)
    total.require(name, against, score=EXPORTED_SCORE)
    return Parity(name=name, against=against, pictures=used, logits=worst if has_logits else None, **total.as_dict())


class _Tally:
    """Detections of several pictures, and those that one of two lacks."""

    def __init__(self) -> None:
        self.detections = self.missing = 0
        self.box = self.score = 0.0

    def add(self, wanted: Detected, given: Detected, *, score: float, rule: OutputRule) -> None:
        found = match_lists(wanted, given, most=rule.max_detections, box=BOX_PIXELS, score=score, threshold=rule.score_threshold)
        self.detections += len(wanted.scores)
        self.missing += found.missing
        self.box, self.score = max(self.box, found.box), max(self.score, found.score)

    def require(self, name: str, against: str, *, score: float) -> None:
        if self.missing > max(1, MAX_MISSING * self.detections):
            what = f"{self.missing} of {self.detections} detections have no partner (score within {score}, box within {BOX_PIXELS} pixels)"
            raise ParityError(_message(name, against, what))

    def as_dict(self) -> dict[str, Any]:
        return dict(vars(self))


def _require_close(wanted: Tensor, given: Tensor, what: str, name: str, against: str) -> float:
    if wanted.shape != given.shape:
        raise ParityError(_message(name, against, f"the {what} are {tuple(given.shape)}, not {tuple(wanted.shape)}"))
    difference = float((wanted - given).abs().max() / wanted.abs().max().clamp(min=1.0))
    if not difference <= LOGITS:
        raise ParityError(_message(name, against, f"the {what} differ by {difference:.2g} of the largest, more than {LOGITS:.0e}"))
    return difference


def _require_near(wanted: Tensor, given: Tensor, what: str, name: str, against: str, limit: float) -> float:
    if wanted.shape != given.shape:
        raise ParityError(_message(name, against, f"the {what} are {tuple(given.shape)}, not {tuple(wanted.shape)}"))
    rms = float((wanted - given).double().square().mean().sqrt() / wanted.double().std().clamp(min=1e-6))
    if not rms <= limit:
        raise ParityError(_message(name, against, f"the {what} have a relative error of {rms:.2g}, more than {limit}"))
    return rms


def _message(name: str, against: str, what: str) -> str:
    return (
        f"{name} does not answer as {against} does, although both should have the same weights: {what}; nothing was timed. "
        "Export the file anew from this model, or measure the two apart"
    )
