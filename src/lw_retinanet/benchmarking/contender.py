"""One network in one runtime and precision, as a measurement sees it: encoded pictures in, boxes out."""

from collections.abc import Callable, Sequence
from contextlib import nullcontext
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
from lw_retinanet.exporting.matches import Detected
from lw_retinanet.models.postprocess import detect


@dataclass(frozen=True, kw_only=True)
class Contender:
    """What takes part.

    Args:
        name: in tables; no two have the same.
        model: what the user named, or torchvision's builder.
        family: ``ours``, ``torchvision`` (the RetinaNet that ours are compared with) or ``peer``.
        runtime: ``pytorch``, ``onnx``, ``openvino`` or ``torchvision``.
        precision: ``fp32``, ``bf16`` or ``int8``.
        how: it is run, in a few words.
        run: pictures of one call -> an answer each.
        by_stage: the same, telling a clock where it is; None where that cannot be seen.
        macs: of one picture; None if not counted.
        params: None if not counted.
        input_hw: height and width of the network's input, as of the first picture.
        candidates: (anchor, class) pairs of that picture over the score threshold, which post-processing has to deal with; None if unknown.
        accuracy: AP, where the file says it.
        remarks: sentences for the reader.
    """

    name: str
    model: str
    family: str
    runtime: str
    precision: str
    how: str
    run: Callable[[Sequence[bytes]], list[Detected]]
    by_stage: Callable[[Sequence[bytes], StageClock], object] | None
    macs: int | None
    params: int | None
    input_hw: tuple[int, int]
    candidates: int | None = None
    accuracy: float | None = None
    remarks: tuple[str, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """All that is plain."""
        left_out = ("run", "by_stage", "input_hw", "remarks")
        values = {name: value for name, value in vars(self).items() if name not in left_out}
        return {**values, "input_hw": list(self.input_hw), "remarks": list(self.remarks)}


def run_detector(detector: Detector) -> Callable[[Sequence[bytes]], list[Detected]]:
    """JPEG to boxes by a detector of this package, of whatever runtime."""

    def run(files: Sequence[bytes]) -> list[Detected]:
        results = detector.predict_arrays([decode(file) for file in files])
        return [Detected(*map(torch.from_numpy, (result.boxes, result.scores, result.labels))) for result in results]

    return run


def detector_by_stage(detector: Detector) -> Callable[[Sequence[bytes], StageClock], object]:
    """The same, stage by stage. Boxes that the file itself finds have no post-processing: it is in the network."""
    gives_boxes = detector.runtime.gives_boxes

    @torch.inference_mode()
    def run(files: Sequence[bytes], clock: StageClock) -> None:
        def detected(group: list[NDArray[np.uint8]]) -> list[NDArray[np.uint8]]:
            with clock.stage("preprocess"):
                inputs = detector.prepare(group)
            if gives_boxes:
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

        with clock.stage("decode"):
            images = [decode(file) for file in files]
        # Together goes through the network what the detector itself would send together.
        list(in_groups(images, lambda image: detector.padded_hw((image.shape[0], image.shape[1])), detected, size=len(images)))

    return run


def run_torchvision(
    model: nn.Module, *, device: torch.device, bf16: bool = False, channels_last: bool = False
) -> Callable[[Sequence[bytes]], list[Detected]]:
    """JPEG to boxes by one of torchvision's detectors; pictures are read as for ours, since decoders are not what is compared.

    Args:
        model: on the device, in evaluation mode and the memory format that it is to run in.
        device: of the model.
        bf16: under autocast.
        channels_last: pictures are laid out so, too.
    """

    @torch.inference_mode()
    def run(files: Sequence[bytes]) -> list[Detected]:
        images = [_tensor(decode(file), device, channels_last) for file in files]
        with _autocast(device, bf16):
            found = model(images)
        return [Detected(one["boxes"].float().cpu(), one["scores"].float().cpu(), one["labels"].cpu()) for one in found]

    return run


def torchvision_by_stage(
    model: nn.Module, *, device: torch.device, bf16: bool = False, channels_last: bool = False
) -> Callable[[Sequence[bytes], StageClock], object]:
    """The same, stage by stage; arguments as for :func:`run_torchvision`."""

    @torch.inference_mode()
    def run(files: Sequence[bytes], clock: StageClock) -> None:
        with clock.stage("decode"):
            decoded = [decode(file) for file in files]
        with clock.stage("preprocess"):
            images = [_tensor(image, device, channels_last) for image in decoded]
        with _autocast(device, bf16), clock.watching(model=model):
            found = model(images)
        with clock.stage("post-processing"):
            for one in found:
                one["boxes"].cpu()

    return run


def as_picture(image: NDArray[np.uint8]) -> Tensor:
    """(H, W, 3) uint8 -> (3, H, W) float32 in 0..1, as torchvision's detectors take it."""
    return torch.from_numpy(image).permute(2, 0, 1).contiguous().float() / 255


def _tensor(image: NDArray[np.uint8], device: torch.device, channels_last: bool) -> Tensor:
    moved = torch.from_numpy(image).permute(2, 0, 1).to(device)
    return (moved if channels_last else moved.contiguous()).float() / 255


def _autocast(device: torch.device, bf16: bool) -> Any:
    return torch.autocast(device.type, torch.bfloat16) if bf16 else nullcontext()
