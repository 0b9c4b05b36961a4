"""Networks with the same weights must give the same answers before they are timed."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torchvision.models.detection.retinanet import RetinaNet as TorchvisionRetinaNet

from lw_retinanet.benchmarking.contender import image_tensor
from lw_retinanet.benchmarking.images import BenchmarkImages
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
MAX_MISSING = 0.01  # share of the detections: NMS may decide either way between two with equal scores
MAX_IMAGES = 4


class ParityError(LwRetinaNetError):
    """Two networks of the same weights do not give the same answers, so their times cannot be compared."""


@dataclass(kw_only=True)
class Parity:
    """How near the answers of one network are to those of another.

    Args:
        name: The network that is compared.
        against: The network whose answers it must give.
        images: Number of images.
        detections: Detections of ``against``; 0 if only logits and deltas were compared.
        missing: Detections of either network without a match in the other.
        box: Largest difference between matches in pixels.
        score: Largest difference of scores between matches.
        logits: Largest difference of logits and deltas relative to the largest value; None if only boxes can be compared.
        rms: For rounded networks, the root of the mean squared difference over the standard deviation; else None.
        share: For rounded networks that give only boxes, the smallest share of the detections of an image that are found; else None.
    """

    name: str
    against: str
    images: int
    detections: int = 0
    missing: int = 0
    box: float = 0.0
    score: float = 0.0
    logits: float | None = None
    rms: float | None = None
    share: float | None = None

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {"pictures" if name == "images" else name: value for name, value in vars(self).items()}

    def line(self) -> str:
        """One sentence for people."""
        parts = []
        if self.rms is not None:
            parts.append(f"relative error {self.rms:.2g}")
        elif self.logits is not None:
            parts.append(f"logits and deltas within {self.logits:.1g}")
        if self.share is not None:
            parts.append(f"at least {self.share:.0%} of the detections of an image shared")
        if self.detections:
            missing = f", {self.missing} without a match" if self.missing else ""
            parts.append(f"{self.detections} detections{missing}, boxes within {self.box:.2g} px, scores within {self.score:.1g}")
        return f"{self.name} answers as {self.against} does: {'; '.join(parts)} ({self.images} images)"

    def compare_outputs(self, wanted: Tensor, given: Tensor, what: str, *, rms_limit: float | None = None) -> None:
        """Compare logits or deltas: exactly, or as a whole if there is a limit for the relative error.

        Raises:
            ParityError: If they differ too much.
        """
        if wanted.shape != given.shape:
            raise self.error(f"the {what} are {tuple(given.shape)}, not {tuple(wanted.shape)}")
        if rms_limit is None:
            difference = float((wanted - given).abs().max() / wanted.abs().max().clamp(min=1.0))
            if not difference <= LOGITS:
                raise self.error(f"the {what} differ by {difference:.2g} of the largest, more than {LOGITS:.0e}")
            self.logits = max(self.logits or 0.0, difference)
            return
        rms = float((wanted - given).double().square().mean().sqrt() / wanted.double().std().clamp(min=1e-6))
        if not rms <= rms_limit:
            raise self.error(f"the {what} have a relative error of {rms:.2g}, more than {rms_limit}")
        self.rms = max(self.rms or 0.0, rms)

    def compare_detections(self, wanted: Detected, given: Detected, *, score: float, rule: OutputRule) -> None:
        """Count the detections of one image that have no match, and note how far matches are apart."""
        found = match_lists(wanted, given, most=rule.max_detections, box=BOX_PIXELS, score=score, threshold=rule.score_threshold)
        self.detections += len(wanted.scores)
        self.missing += found.missing
        self.box, self.score = max(self.box, found.box), max(self.score, found.score)

    def require_matches(self, *, score: float) -> None:
        """Raise a :class:`ParityError` if too many detections have no match."""
        if self.missing > max(1, MAX_MISSING * self.detections):
            limits = f"score within {score}, box within {BOX_PIXELS} pixels"
            raise self.error(f"{self.missing} of {self.detections} detections have no match ({limits})")

    def error(self, what: str) -> ParityError:
        """The error that says how the answers differ."""
        return ParityError(
            f"{self.name} does not answer as {self.against} does, although both should have the same weights: {what}; nothing was timed. "
            "Export the file anew from this model, or measure the two apart"
        )


@torch.inference_mode()
def check_torchvision(twin: TorchvisionRetinaNet, model: RetinaNet, images: BenchmarkImages, *, name: str, full_head: bool) -> Parity:
    """Compare torchvision's network with ours in fp32: logits and deltas of the same input, and boxes under torchvision's conventions.

    Args:
        twin: torchvision's network with the same weights, on the same device.
        model: Our network. Its own anchors and image size are not used.
        images: The first few are used.
        name: Name of our network for messages.
        full_head: Compare the head that a lightened model had before.

    Raises:
        ParityError: If the answers differ too much.
    """
    device = next(model.parameters()).device
    same = RetinaNet(backbone=model.backbone, fpn=model.fpn, head=model.head, conventions=torchvision_conventions(model.conventions))
    detector = Detector.of_model(same, (), device=device)
    parity = Parity(name=name, against="torchvision", images=min(MAX_IMAGES, len(images.files)))
    for number in range(parity.images):
        image = images.decoded(number)
        inputs = detector.prepare([image])
        ours = detector.network(inputs.images, full_head=full_head)
        theirs = twin.head(list(twin.backbone(inputs.images).values()))
        parity.compare_outputs(theirs["cls_logits"], ours.logits, "logits")
        parity.compare_outputs(theirs["bbox_regression"], ours.deltas, "deltas")
        given = Detected.of_row(detector.detections(inputs, detector.conventions, full_head=full_head), 0)
        found = twin([image_tensor(image).to(device)])[0]
        wanted = Detected(found["boxes"].cpu(), found["scores"].cpu(), found["labels"].cpu())
        parity.compare_detections(wanted, given, score=SCORE, rule=detector.conventions.output)
    parity.require_matches(score=SCORE)
    return parity


@torch.inference_mode()
def check_variant(reference: Detector, detector: Detector, images: BenchmarkImages, *, name: str, against: str, precision: str) -> Parity:
    """Compare two detectors that come from the same weights.

    Args:
        reference: Detector in fp32.
        detector: Detector in another runtime, another precision, or both.
        images: The first few are used.
        name: Name of the detector.
        against: Name of the reference.
        precision: Precision of the detector. In fp32 it must give the same numbers. For ``bf16``, ``int8`` and ``half`` (weights in
            fp16) there is a limit for the relative error as a whole.

    Raises:
        ParityError: If the answers differ too much.
    """
    has_logits = not (reference.runtime.gives_boxes or detector.runtime.gives_boxes)
    is_exact = precision == "fp32"
    parity = Parity(name=name, against=against, images=min(MAX_IMAGES, len(images.files)))
    for number in range(parity.images):
        if has_logits:
            inputs = reference.prepare([images.decoded(number)])
            outputs = reference.network(inputs.images), detector.network(inputs.images.to(detector.device))
            for what, wanted, given in zip(("logits", "deltas"), *outputs, strict=True):
                limit = None if is_exact else RMS_LIMITS[precision]
                parity.compare_outputs(wanted.float().cpu(), given.float().cpu(), what, rms_limit=limit)
            if not is_exact:
                continue
        wanted_boxes, given_boxes = (_detected(each, images, number) for each in (reference, detector))
        if is_exact:
            parity.compare_detections(wanted_boxes, given_boxes, score=EXPORTED_SCORE, rule=reference.conventions.output)
            continue
        share = share_found(wanted_boxes, given_boxes)
        parity.share = share if parity.share is None else min(parity.share, share)
    if parity.share is not None and parity.share < MIN_SHARE:
        raise parity.error(f"of one image they share only {parity.share:.0%} of the detections")
    parity.require_matches(score=EXPORTED_SCORE)
    return parity


def _detected(detector: Detector, images: BenchmarkImages, number: int) -> Detected:
    result = detector.predict_arrays([images.decoded(number)])[0]
    return Detected(*map(torch.from_numpy, (result.boxes, result.scores, result.labels)))
