"""A PyTorch network in OpenVINO, made in memory: it shows what an export would gain."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lw_retinanet.benchmarking.entries import Entry
from lw_retinanet.benchmarking.images import BenchmarkImages
from lw_retinanet.benchmarking.settings import Timed
from lw_retinanet.detection.detector import Detector
from lw_retinanet.exporting.graph import RawGraph
from lw_retinanet.exporting.manifest import ExportPrecision, Manifest
from lw_retinanet.exporting.opening import exported_detector
from lw_retinanet.exporting.openvino import OpenVinoRuntime
from lw_retinanet.weights.model_file import ModelRecord, make_record


def openvino_copy(entry: Entry, images: BenchmarkImages, precisions: Sequence[Timed]) -> Entry:
    """Copy a PyTorch network to OpenVINO, in the given precisions and in int8, which is calibrated on the images that are timed.

    Raises:
        MissingExtraError: If ``openvino`` or ``nncf`` is not installed.
    """
    assert entry.network is not None
    assert entry.reference is not None
    record = _record(entry)

    def detector(network: Any, precision: ExportPrecision) -> Detector:
        manifest = Manifest(kind="openvino", outputs="raw", precision=precision, head="only", record=record)
        return exported_detector(OpenVinoRuntime(network, manifest, precision=precision), name=entry.name)

    network = OpenVinoRuntime.make(RawGraph(entry.network))
    detectors = {str(precision): detector(network, precision) for precision in precisions}
    detectors["int8"] = detector(OpenVinoRuntime.quantise(network, _Calibration(entry.reference, images)), "int8")
    return replace(entry, name=f"{entry.name} openvino", detectors=detectors, runtime="openvino", origin=entry.name)


def _record(entry: Entry) -> ModelRecord:
    """The record of the file with the conventions that are timed; for a preset, the record that its model file would have."""
    assert entry.network is not None
    if entry.record is not None:
        return entry.record.model_copy(update={"conventions": entry.network.conventions})
    return make_record(
        entry.network,
        preset=entry.name,
        backbone=entry.backbone,
        width=entry.width,
        norm="frozen",
        plan=entry.network.head.plan,
        categories=entry.some.categories,
        notes={},
    )


class _Calibration:
    """The images of a measurement as calibration images."""

    def __init__(self, detector: Detector, images: BenchmarkImages) -> None:
        self.detector, self.images = detector, images

    def __len__(self) -> int:
        return len(self.images.files)

    def inputs(self, names: Sequence[str]) -> Iterator[dict[str, NDArray[Any]]]:
        (name,) = names
        for number in range(len(self)):
            images = self.detector.prepare([self.images.decoded(number)]).images
            yield {name: np.ascontiguousarray(images.cpu().numpy())}
