"""The whole measurement: open, compare answers, time in turns, time by stage."""

from collections.abc import Sequence
from typing import Any

import torch

from lw_retinanet.benchmarking.contender import Contender
from lw_retinanet.benchmarking.entries import Entry, contenders_of, give_scores, open_entries
from lw_retinanet.benchmarking.images import BenchmarkImages, images_of, made_up_images, usual_side
from lw_retinanet.benchmarking.machine import IDLE_LOAD, machine, pinned_threads
from lw_retinanet.benchmarking.openvino_copy import openvino_copy
from lw_retinanet.benchmarking.parity import Parity, check_variant
from lw_retinanet.benchmarking.report import report
from lw_retinanet.benchmarking.settings import BenchmarkSettings, Timed
from lw_retinanet.benchmarking.timing import timed
from lw_retinanet.benchmarking.torchvision_contenders import PEERS, SHIPPED, peer_contenders, torchvision_retinanet
from lw_retinanet.detection.detector import Detector
from lw_retinanet.devices import choose_device, exact_fp32, multiplies_in_bf16
from lw_retinanet.errors import InputError
from lw_retinanet.exporting.opening import manifest_of
from lw_retinanet.heads import contender_presets
from lw_retinanet.progress import Progress


def benchmark(names: Sequence[str], settings: BenchmarkSettings, *, progress: Progress | None = None) -> dict[str, Any]:
    """Measure models side by side in one process, from encoded images to boxes.

    Args:
        names: Model files, run folders, exported files and presets. With ``peers``, no names mean the presets of this package.
        settings: How to measure.
        progress: Wraps the rounds.

    Returns:
        The report, see :func:`~lw_retinanet.benchmarking.report.report`.

    Raises:
        InputError: If something cannot be opened or measured.
        ParityError: If two networks that should have the same weights give different answers. Nothing is timed then.
    """
    names = list(names) or (contender_presets() if settings.peers else [])
    if not names:
        raise InputError("name what to measure: model files, run folders, exported files or presets; or ask for the peers")
    device = choose_device(settings.device)
    with pinned_threads(settings.threads), exact_fp32():
        return _Benchmark(settings, device).run(names, progress)


class _Benchmark:
    """A measurement while it is made: collects comparisons of answers, and remarks."""

    def __init__(self, settings: BenchmarkSettings, device: torch.device) -> None:
        self.settings, self.device = settings, device
        self.remarks: list[str] = []
        self.parities: list[Parity] = []

    def run(self, names: Sequence[str], progress: Progress | None) -> dict[str, Any]:
        settings = self.settings
        before = machine(self.device)
        if before["load_before"] is not None and before["load_before"] > IDLE_LOAD * len(before["cpus"]):
            self.remarks.append(f"The machine was not idle: its load was {before['load_before']:.1f} before this began.")
        precisions = self._precisions()
        images = None if settings.images is None else images_of(settings.images)
        entries, size = open_entries(names, settings, precisions, self.device)
        images = images or made_up_images(size)
        if settings.square:
            images = images.squares(usual_side(size))
        contenders = self._contenders(entries, images, precisions, size)
        return report(
            timed(contenders, images, settings, device=self.device, progress=progress),
            machine=before,
            settings={**vars(settings), "images": str(settings.images) if settings.images else None},
            images=images.source,
            parities=self.parities,
            remarks=self.remarks,
            shipped=next((one.name for one in contenders if one.name.startswith(SHIPPED)), None),
        )

    def _precisions(self) -> tuple[Timed, ...]:
        if self.settings.precision != "all":
            return (self.settings.precision,)
        if multiplies_in_bf16(self.device):
            return ("fp32", "bf16")
        self.remarks.append("This device does not multiply in bf16, so bf16 was not measured; the precision bf16 measures its emulation.")
        return ("fp32",)

    def _contenders(self, entries: list[Entry], images: BenchmarkImages, precisions: Sequence[Timed], size: int) -> list[Contender]:
        """All that take part: torchvision's RetinaNet, what was named, copies in OpenVINO, peers. Their answers have been compared."""
        settings, device = self.settings, self.device
        for entry in entries:
            if entry.record is None:
                assert entry.network is not None
                give_scores(entry.network, images, candidates=settings.candidates)
        contenders: list[Contender] = []
        if settings.against_torchvision:
            contenders, parity, remark = torchvision_retinanet(entries, images, settings, precisions=precisions, size=size, device=device)
            self.parities += [parity] if parity else []
            self.remarks.append(remark)
        if settings.openvino:
            entries = entries + [openvino_copy(entry, images, precisions) for entry in entries if entry.network is not None]
            self.remarks.append(
                "OpenVINO copies are calibrated for int8 on the images that are timed; what int8 costs in AP, `export` says."
            )
        for entry in entries:
            self._compare_precisions(entry, images)
            contenders += contenders_of(entry, images)
        self._compare_files(entries, images)
        for name in PEERS if settings.peers else ():
            contenders += peer_contenders(name, images, settings, precisions=precisions, size=size, device=device)
        self._remark_on(entries, contenders)
        return contenders

    def _compare_precisions(self, entry: Entry, images: BenchmarkImages) -> None:
        """Compare a network in bf16 or int8, or compiled, with itself in fp32."""
        for title, detector in entry.detectors.items():
            if entry.reference is not None and detector is not entry.reference:
                self._compare(entry.reference, f"{entry.origin or entry.name} fp32", detector, f"{entry.name} {title}", title, images)

    def _compare_files(self, entries: Sequence[Entry], images: BenchmarkImages) -> None:
        """Compare exported files with the model that they were made from, or with the first file in fp32 that was made from the same."""
        for entry in entries:
            if entry.network is not None:
                continue
            alike = sorted((other for other in entries if _same_weights(entry, other)), key=lambda other: other.network is None)
            exact = {other.name: other.reference or other.detectors.get("fp32") for other in alike}
            origin, reference = next(((name, found) for name, found in exact.items() if found is not None), (None, None))
            if origin == entry.name and len(entry.detectors) == 1:
                continue  # the others are compared with this one
            if reference is None or origin is None:
                self.remarks.append(f"{entry.name}: nothing else here has its weights in fp32, so its answers were compared with none.")
                continue
            for title, detector in entry.detectors.items():
                if detector is not reference:
                    self._compare(reference, f"{origin} fp32", detector, f"{entry.name} {title}", title, images)

    def _compare(self, reference: Detector, against: str, detector: Detector, name: str, title: str, images: BenchmarkImages) -> None:
        precision = title.split()[0]
        halves = [manifest.half_weights for each in (reference, detector) if (manifest := manifest_of(each))]
        if precision == "fp32" and any(halves):
            precision = "half"
        self.parities.append(check_variant(reference, detector, images, name=name, against=against, precision=precision))

    def _remark_on(self, entries: Sequence[Entry], contenders: Sequence[Contender]) -> None:
        made_up = [entry.name for entry in entries if entry.record is None and entry.origin is None]
        if made_up:
            self.remarks.append(
                f"Random weights with realistic scores ({self.settings.candidates} candidates in the first image): {', '.join(made_up)}. "
                "Their times are real, their answers are not."
            )
        if self.settings.peers:
            self.remarks.append("torchvision's other detectors have random weights with realistic scores as well.")
        empty = [one.name for one in contenders if one.candidates == 0]
        if empty:
            self.remarks.append(
                f"No score of {', '.join(empty)} passes its threshold, so post-processing had nothing to do and its time says little; "
                "take trained weights, or images like those of the training."
            )
        if len({one.input_hw for one in contenders}) > 1:
            self.remarks.append(
                "Not all networks get inputs of one size; a size with square images gives all of them the same, except SSD and SSDLite."
            )


def _same_weights(one: Entry, other: Entry) -> bool:
    """Whether the records are equal, except for what an export leaves out."""
    if one.record is None or other.record is None:
        return False
    changed = {"switchable": False, "full_output": False}
    if one.record.model_copy(update=changed) != other.record.model_copy(update=changed):
        return False
    heads = [manifest.head for detector in (one.some, other.some) if (manifest := manifest_of(detector))]
    return "full" not in heads or (len(heads) == 2 and heads[0] == heads[1])
