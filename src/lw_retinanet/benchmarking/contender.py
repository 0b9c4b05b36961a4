"""One network in one runtime and precision, as a measurement sees it: encoded images in, boxes out."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from lw_retinanet.benchmarking.stages import StageClock
from lw_retinanet.data.images import decode
from lw_retinanet.detection.detector import Detector
from lw_retinanet.detection.pipeline import in_groups
from lw_retinanet.models.postprocess import detect

Run = Callable[[Sequence[bytes], StageClock | None], object]
"""Finds the boxes in encoded images. If there is a clock, it is told when each stage begins and ends."""


@dataclass(frozen=True, kw_only=True)
class Contender:
    """A network that takes part in a measurement.

    Args:
        name: Unique name for tables.
        model: What the user named, or torchvision's builder.
        family: ``ours``, ``torchvision`` (the RetinaNet that ours are compared with) or ``peer``.
        runtime: ``pytorch``, ``onnx``, ``openvino`` or ``torchvision``.
        precision: ``fp32``, ``bf16`` or ``int8``.
        how: How the network is run, in a few words.
        run: One call.
        has_stages: Whether ``run`` can tell a clock about its stages.
        macs: MACs for one image; None if not counted.
        params: Number of parameters; None if not counted.
        input_hw: Height and width of the network's input for the first image.
        candidates: Number of (anchor, class) pairs of that image over the score threshold, which post-processing works on; None if unknown.
        accuracy: AP, if the file states it; of ``peer``, AP of its published weights on COCO.
        remarks: Sentences for the reader.
    """

    name: str
    model: str
    family: str
    runtime: str
    precision: str
    how: str
    run: Run
    has_stages: bool = True
    macs: int | None
    params: int | None
    input_hw: tuple[int, int]
    candidates: int | None = None
    accuracy: float | None = None
    remarks: tuple[str, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        left_out = ("run", "has_stages", "input_hw", "remarks")
        values = {name: value for name, value in vars(self).items() if name not in left_out}
        return {**values, "input_hw": list(self.input_hw), "remarks": list(self.remarks)}


def detector_run(detector: Detector) -> Run:
    """From encoded images to boxes with a detector of this package, in any runtime.

    If the network itself gives boxes, post-processing belongs to the stage ``network``.
    """

    def run(files: Sequence[bytes], clock: StageClock | None) -> object:
        if clock is None:
            return detector.predict_arrays([decode(file) for file in files])
        with clock.stage("decode"):
            images = [decode(file) for file in files]
        # The same groups go through the network together as in ``predict_arrays``.
        padded = in_groups(images, lambda image: detector.padded_hw((image.shape[0], image.shape[1])), staged(clock), size=len(images))
        with torch.inference_mode():
            return list(padded)

    def staged(clock: StageClock) -> Callable[[list[NDArray[np.uint8]]], list[NDArray[np.uint8]]]:
        def detected(group: list[NDArray[np.uint8]]) -> list[NDArray[np.uint8]]:
            with clock.stage("preprocess"):
                inputs = detector.prepare(group)
            if detector.runtime.gives_boxes:
                with clock.stage("network"):
                    detector.detections(inputs, detector.conventions)
                return group
            with clock.watching(), clock.stage("network"):
                predictions = detector.network(inputs.images)
            with clock.stage("post-processing"):
                detect(
                    predictions,
                    size_hw=inputs.size_hw,
                    sizes_hw=inputs.sizes_hw,
                    conventions=detector.conventions,
                    images_hw=inputs.originals_hw,
                )
            return group

        return detected

    return run


def torchvision_run(model: nn.Module, *, bf16: bool = False, channels_last: bool = False) -> Run:
    """From encoded images to boxes with one of torchvision's detectors. Images are decoded as for ours: decoders are not compared.

    Args:
        model: On its device, in evaluation mode and in the memory format that it runs in.
        bf16: Run under autocast.
        channels_last: Lay the images out in channels_last, too.
    """
    device = next(model.parameters()).device

    @torch.inference_mode()
    def run(files: Sequence[bytes], clock: StageClock | None) -> object:
        stage: Callable[[str], AbstractContextManager[Any]] = clock.stage if clock else nullcontext
        with stage("decode"):
            decoded = [decode(file) for file in files]
        with stage("preprocess"):
            images = [image_tensor(image, device, channels_last=channels_last) for image in decoded]
        autocast: Any = torch.autocast(device.type, torch.bfloat16) if bf16 else nullcontext()
        with autocast, clock.watching(model=model) if clock else nullcontext():
            found = model(images)
        with stage("post-processing"):
            return [(one["boxes"].float().cpu(), one["scores"].float().cpu(), one["labels"].cpu()) for one in found]

    return run


def image_tensor(image: NDArray[np.uint8], device: torch.device | str = "cpu", *, channels_last: bool = False) -> Tensor:
    """(H, W, 3) uint8 -> (3, H, W) float32 in 0..1, as torchvision's detectors take it."""
    moved = torch.from_numpy(image).permute(2, 0, 1).to(device)
    return (moved if channels_last else moved.contiguous()).float() / 255
