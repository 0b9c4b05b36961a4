"""What was named, as contenders."""

import torch

from lw_retinanet.benchmarking.contender import Contender, detector_by_stage, run_detector
from lw_retinanet.benchmarking.entries import Entry
from lw_retinanet.benchmarking.pictures import Pictures
from lw_retinanet.counting.detector_cost import DetectorCost, count_detector
from lw_retinanet.detection.detector import Detector
from lw_retinanet.exporting.opening import manifest_of
from lw_retinanet.heads import HeadPlan
from lw_retinanet.weights.model_file import build_network


def own_contenders(entry: Entry, pictures: Pictures) -> list[Contender]:
    """Each detector of an entry, as it takes part; the first picture says what its input is and how many candidates it has."""
    found = []
    for title, detector in entry.detectors.items():
        precision, is_compiled = title.split()[0], title.endswith("compiled")
        inputs = detector.prepare([pictures.decoded(0)])
        cost = _cost(entry, detector, inputs.size_hw)
        fused = ", fused" if detector.device.type == "cpu" and not is_compiled else ""
        found.append(
            Contender(
                name=f"{entry.name} {title}",
                model=entry.name,
                family="ours",
                runtime=entry.runtime,
                precision=precision,
                how=f"folded{fused}, channels_last{', compiled' if is_compiled else ''}" if entry.runtime == "pytorch" else entry.runtime,
                run=run_detector(detector),
                by_stage=None if is_compiled else detector_by_stage(detector),
                macs=cost.macs,
                params=sum(block.params for block in cost.blocks.values()),
                input_hw=inputs.size_hw,
                candidates=_candidates(detector, pictures),
                accuracy=_accuracy(detector),
            )
        )
    return found


def _cost(entry: Entry, detector: Detector, size_hw: tuple[int, int]) -> DetectorCost:
    if entry.network is not None:
        return count_detector(entry.network, size_hw)
    manifest = manifest_of(detector)
    assert manifest is not None
    record = manifest.record
    if manifest.head == "full":
        record = record.model_copy(update={"plan": HeadPlan(shared=record.plan.shared)})
    return count_detector(build_network(record), size_hw)


@torch.inference_mode()
def _candidates(detector: Detector, pictures: Pictures) -> int | None:
    if detector.runtime.gives_boxes:
        return None
    logits = detector.network(detector.prepare([pictures.decoded(0)]).images).logits
    return int((logits.float().sigmoid() > detector.conventions.output.score_threshold).sum())


def _accuracy(detector: Detector) -> float | None:
    manifest = manifest_of(detector)
    return None if manifest is None or manifest.accuracy is None else float(manifest.accuracy["after"])
