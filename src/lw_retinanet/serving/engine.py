"""What the service does with images: prepare one in a pool, detect in several in the worker thread, describe the model."""

import io
import math
import time
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from lw_retinanet import __version__
from lw_retinanet.counting.profile import profile, with_head
from lw_retinanet.data.images import decode
from lw_retinanet.data.sample import draw_scene
from lw_retinanet.detection.detector import Detector, HeadChoice, NetworkInputs
from lw_retinanet.detection.result import detection_dicts
from lw_retinanet.detection.runtime import TorchRuntime
from lw_retinanet.errors import ImageError, InputError
from lw_retinanet.exporting.opening import manifest_of
from lw_retinanet.heads import HeadPlan
from lw_retinanet.serving.refusal import RefusedError

NUM_EXAMPLES = 3
_EXAMPLE_SIDE = 480
_TIMED_RUNS = 3


class NotFiniteError(InputError):
    """The network's answer is not a number: its weights are damaged, or its arithmetic overflows."""


@dataclass(frozen=True, kw_only=True, eq=False)
class PreparedImage:
    """An image ready for the network, and how it is to be answered.

    Args:
        inputs: One image.
        score: Smallest score of its detections.
        is_full: Whether the full head answers.
    """

    inputs: NetworkInputs
    score: float
    is_full: bool

    @property
    def kind(self) -> Hashable:
        """Images of one kind may go through the network together."""
        return self.inputs.size_hw, self.is_full


class DetectionEngine:
    """A detector as the service uses it."""

    def __init__(self, detector: Detector, *, max_pixels: int) -> None:
        self.detector = detector
        self.max_pixels = max_pixels
        self.ms: dict[HeadChoice, float] = {}
        self.examples = [_example(number) for number in range(NUM_EXAMPLES)]

    @property
    def heads(self) -> tuple[HeadChoice, ...]:
        """The heads that differ."""
        detector = self.detector
        return detector.heads if detector.switchable and manifest_of(detector) is None else (detector.head,)

    def prepare(self, data: bytes, *, score: float, head: str | None) -> PreparedImage:
        """Decode and resize an image file.

        Raises:
            RefusedError: 4xx if the file is no image, too large, or the score or the head is not available.
        """
        try:
            self.detector.conventions_under(score)
            chosen = self.detector.head if head is None else self.detector.with_head(head).head
        except InputError as error:
            raise RefusedError(422, "bad_parameter", str(error).removeprefix(self.detector.name).strip()) from None
        try:
            pixels = decode(data, max_pixels=self.max_pixels, name="the image")
        except ImageError as error:
            message = str(error).removesuffix(" or raise max_pixels")
            raise RefusedError(413 if message != str(error) else 400, "bad_image", message) from None
        except MemoryError:
            raise RefusedError(503, "out_of_memory", "no memory for this image at the moment; try again", retry_after=1) from None
        return self._prepared(pixels, score, chosen)

    @torch.inference_mode()
    def _prepared(self, pixels: NDArray[np.uint8], score: float, head: HeadChoice) -> PreparedImage:
        return PreparedImage(inputs=self.detector.prepare([pixels]), score=score, is_full=head == "full")

    def detect(self, group: Sequence[PreparedImage]) -> list[dict[str, Any]]:
        """The answer for each of several images of one kind."""
        parts = [image.inputs for image in group]
        one = len(parts) == 1
        inputs = NetworkInputs(
            images=parts[0].images if one else torch.cat([part.images for part in parts]),
            sizes_hw=parts[0].sizes_hw if one else torch.cat([part.sizes_hw for part in parts]),
            originals_hw=[part.originals_hw[0] for part in parts],
        )
        # Suppression goes from the best box down, so what scores less changes nothing above it.
        conventions = self.detector.conventions_under(min(image.score for image in group))
        with torch.inference_mode():
            found = self.detector.detections(inputs, conventions, full_head=group[0].is_full)
        answers = []
        for row, image in enumerate(group):
            keep = found.scores[row] > image.score
            keep &= torch.arange(len(keep)) < found.counts[row]
            boxes, scores, labels = (part[row][keep].numpy() for part in (found.boxes, found.scores, found.labels))
            if not (np.isfinite(boxes).all() and np.isfinite(scores).all()):
                raise NotFiniteError("the network's answer is not finite; check the model's weights and its precision")
            height, width = inputs.originals_hw[row]
            detections = detection_dicts(boxes, scores, labels, self.detector.categories)
            answers.append({"file": None, "width": width, "height": height, "detections": detections})
        return answers

    def warm_up(self, score: float) -> None:
        """Answer an example with each head, twice, and time it.

        Raises:
            NotFiniteError: If an answer is not finite.
        """
        for head in self.heads:
            prepared = self._prepared(decode(self.examples[0]), score, head)
            if not self.detector.runtime.gives_boxes:
                with torch.inference_mode():
                    raw = self.detector.network(prepared.inputs.images, full_head=prepared.is_full)
                if not (raw.logits.isfinite().all() and raw.deltas.isfinite().all()):
                    raise NotFiniteError(
                        f"{self.detector.name}: its answer to an example is not finite; check its weights and its precision"
                    )
            times = []
            for _ in range(_TIMED_RUNS):
                started = time.perf_counter()
                self.detect([prepared])
                times.append(time.perf_counter() - started)
            self.ms[head] = 1000 * min(times)

    def describe(self) -> dict[str, Any]:
        """What ``/model`` says."""
        detector = self.detector
        side = detector.conventions.input.size
        return {
            "name": detector.name,
            "version": __version__,
            "classes": [{"id": category.id, "name": category.name} for category in detector.categories],
            "image_size": side,
            "head": detector.head,
            "heads": [{"name": head, "gmacs": self._gmacs(head, side), "ms": round(self.ms.get(head, math.nan), 2)} for head in self.heads],
        }

    def _gmacs(self, head: HeadChoice, side: int) -> float | None:
        """Of one image of side x side pixels; None for exported files, which hold no model to count."""
        if not isinstance(self.detector.runtime, TorchRuntime):
            return None
        model = self.detector.model
        counted = with_head(model, HeadPlan()) if head == "full" else model
        return round(profile(counted, name=head, size_hw=(side, side)).macs / 1e9, 3)


def _example(number: int) -> bytes:
    """A drawn image with shapes, as a JPEG file."""
    scene = draw_scene(np.random.default_rng((2026, number)), (_EXAMPLE_SIDE * 3 // 4, _EXAMPLE_SIDE))
    stream = io.BytesIO()
    Image.fromarray(scene.image).save(stream, "JPEG", quality=90)
    return stream.getvalue()
