"""A network of PyTorch in OpenVINO as well, made in memory: what it would gain there, without exporting it first."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lw_retinanet.benchmarking.entries import Entry, Timed
from lw_retinanet.benchmarking.pictures import Pictures
from lw_retinanet.detection.detector import Detector
from lw_retinanet.exporting.graph import RawGraph
from lw_retinanet.exporting.manifest import ExportPrecision, Manifest
from lw_retinanet.exporting.opening import exported_detector
from lw_retinanet.exporting.openvino import OpenVinoRuntime
from lw_retinanet.heads import HeadPlan
from lw_retinanet.weights.model_file import ModelRecord, make_record


def openvino_copy(entry: Entry, pictures: Pictures, precisions: Sequence[Timed]) -> Entry:
    """The same network in OpenVINO, in these precisions and in int8, whose ranges come from the pictures that are timed.

    Args:
        entry: of PyTorch, with its scores.
        pictures: of the measurement.
        precisions: beside int8.

    Raises:
        MissingExtraError: if ``openvino`` or ``nncf`` is not installed.
    """
    assert entry.network is not None
    assert entry.reference is not None
    network = OpenVinoRuntime.make(RawGraph(entry.network))
    detectors: dict[str, Detector] = {}
    for precision in precisions:
        detectors[precision] = _detector(entry, network, precision)
    quantised = OpenVinoRuntime.quantise(network, _Ranges(entry.reference, pictures))
    detectors["int8"] = _detector(entry, quantised, "int8")
    return replace(entry, name=f"{entry.name} openvino", detectors=detectors, runtime="openvino", origin=entry.name)


def _detector(entry: Entry, network: Any, precision: ExportPrecision) -> Detector:
    manifest = Manifest(kind="openvino", outputs="raw", precision=precision, head="only", record=_record(entry))
    return exported_detector(OpenVinoRuntime(network, manifest, precision=precision), name=entry.name)


def _record(entry: Entry) -> ModelRecord:
    """Of the file with what is timed now, the input's size; of a preset, what stands in a file of it."""
    assert entry.network is not None
    if entry.record is not None:
        return entry.record.model_copy(update={"conventions": entry.network.conventions})
    plan: HeadPlan = entry.network.head.plan
    return make_record(
        entry.network,
        preset=entry.name,
        backbone=entry.backbone,
        width=entry.width,
        norm="frozen",
        plan=plan,
        categories=entry.some.categories,
        notes={},
    )


class _Ranges:
    """The pictures of a measurement as calibration."""

    def __init__(self, detector: Detector, pictures: Pictures) -> None:
        self.detector, self.pictures = detector, pictures

    def __len__(self) -> int:
        return len(self.pictures.files)

    def inputs(self, names: Sequence[str]) -> Iterator[dict[str, NDArray[Any]]]:
        (name,) = names
        for number in range(len(self)):
            images = self.detector.prepare([self.pictures.decoded(number)]).images
            yield {name: np.ascontiguousarray(images.cpu().numpy())}
