"""The whole measurement: open, compare answers, time in turns, time by stage."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import torch

from lw_retinanet.benchmarking.contender import Contender
from lw_retinanet.benchmarking.counterpart import SHIPPED, counterpart
from lw_retinanet.benchmarking.entries import Entry, Timed, give_scores, open_entries
from lw_retinanet.benchmarking.machine import IDLE_LOAD, machine, pinned_threads
from lw_retinanet.benchmarking.openvino_copy import openvino_copy
from lw_retinanet.benchmarking.own_contenders import own_contenders
from lw_retinanet.benchmarking.parity import Parity, check_variant
from lw_retinanet.benchmarking.peers import PEERS, peer
from lw_retinanet.benchmarking.pictures import Pictures, made_up_pictures, pictures_of, usual_side
from lw_retinanet.benchmarking.realistic import CANDIDATES
from lw_retinanet.benchmarking.report import Report
from lw_retinanet.benchmarking.timing import timed
from lw_retinanet.config import MAX_SIZE
from lw_retinanet.detection.detector import Detector
from lw_retinanet.devices import choose_device, exact_fp32, uses_bf16
from lw_retinanet.errors import ConfigError, InputError
from lw_retinanet.exporting.opening import manifest_of
from lw_retinanet.heads import contender_presets
from lw_retinanet.progress import Progress


@dataclass(frozen=True, kw_only=True)
class BenchmarkSettings:
    """How to measure.

    Args:
        against_torchvision: torchvision's RetinaNet takes part, as shipped and at its best.
        peers: torchvision's other detectors take part.
        precision: of PyTorch's networks; ``all`` is fp32, and bf16 where the device has it.
        size: side that pictures are resized to; None: the models' own, presets 800.
        rounds: that count.
        warm_up: rounds before them.
        batch_size: pictures a call.
        threads: None: as many as torch takes.
        images: folder of pictures; None makes some up.
        square: cut pictures to squares, so that networks see square inputs.
        device: ``auto``, ``cpu``, ``cuda``.
        compiled: networks that went through ``torch.compile`` take part, too.
        openvino: networks of PyTorch take part in OpenVINO, too, in int8 as well.
        num_classes: of presets.
        backbone: of presets.
        candidates: (anchor, class) pairs over the score threshold in presets.
    """

    against_torchvision: bool = False
    peers: bool = False
    precision: Literal["fp32", "bf16", "all"] = "fp32"
    size: int | None = None
    rounds: int = 30
    warm_up: int = 5
    batch_size: int = 1
    threads: int | None = None
    images: Path | None = None
    square: bool = False
    device: str = "cpu"
    compiled: bool = False
    openvino: bool = False
    num_classes: int = 80
    backbone: str = "resnet50"
    candidates: int = CANDIDATES

    def __post_init__(self) -> None:
        for name, least in (("rounds", 2), ("warm_up", 0), ("batch_size", 1), ("num_classes", 1), ("candidates", 1)):
            if getattr(self, name) < least:
                raise ConfigError(f"{name} must be at least {least}, got {getattr(self, name)}")
        if self.size is not None and not 32 <= self.size <= MAX_SIZE:
            raise ConfigError(f"size must be from 32 to {MAX_SIZE} pixels, got {self.size}")


def benchmark(names: Sequence[str], settings: BenchmarkSettings, *, progress: Progress | None = None) -> Report:
    """Measure models side by side, pictures in files to boxes, in one process.

    Args:
        names: model files, run folders, exported files, presets. None of them with ``peers`` is all presets of the paper's tables and ours.
        settings: see there.
        progress: wraps the rounds.

    Raises:
        InputError: if something cannot be opened or measured.
        ParityError: if two that should have the same weights do not answer alike; nothing is timed then.
    """
    names = list(names) or (contender_presets() if settings.peers else [])
    if not names:
        raise InputError("name what to measure: model files, run folders, exported files or presets; or --peers")
    device = choose_device(settings.device)
    with pinned_threads(settings.threads), exact_fp32():
        return _Benchmark(names, settings, device).report(progress)


@dataclass
class _Benchmark:
    """A measurement while it is made."""

    names: Sequence[str]
    settings: BenchmarkSettings
    device: torch.device
    remarks: list[str] = field(default_factory=list)
    parities: list[Parity] = field(default_factory=list)

    def report(self, progress: Progress | None) -> Report:
        before = machine(self.device)
        if before["load_before"] is not None and before["load_before"] > IDLE_LOAD * len(before["cpus"]):
            self.remarks.append(f"The machine was not idle: its load was {before['load_before']:.1f} before this began.")
        precisions = self._precisions()
        pictures = None if self.settings.images is None else pictures_of(self.settings.images)
        entries, size = open_entries(
            self.names,
            precisions=precisions,
            size=self.settings.size,
            num_classes=self.settings.num_classes,
            backbone=self.settings.backbone,
            device=self.device,
            compiled=self.settings.compiled,
        )
        pictures = pictures or made_up_pictures(size)
        if self.settings.square:
            pictures = pictures.squares(usual_side(size))
        for entry in entries:
            if entry.record is None:
                assert entry.network is not None
                give_scores(entry.network, pictures, candidates=self.settings.candidates)
        contenders = []
        if self.settings.against_torchvision:
            theirs = counterpart(
                entries,
                pictures,
                precisions=precisions,
                compiled=self.settings.compiled,
                size=size,
                num_classes=self.settings.num_classes,
                candidates=self.settings.candidates,
                device=self.device,
            )
            contenders += theirs.contenders
            self.parities += theirs.parities
            self.remarks.append(theirs.remark)
        if self.settings.openvino:
            entries += [openvino_copy(entry, pictures, precisions) for entry in entries if entry.network is not None]
            self.remarks.append(
                "OpenVINO copies are calibrated for int8 on the pictures that are timed; what int8 costs in AP, `export` says."
            )
        for entry in entries:
            self._compare_precisions(entry, pictures)
            contenders += own_contenders(entry, pictures)
        self._compare_files(entries, pictures)
        for name in PEERS if self.settings.peers else ():
            contenders += peer(
                name,
                pictures,
                precisions=precisions,
                size=size,
                num_classes=self.settings.num_classes,
                candidates=self.settings.candidates,
                device=self.device,
            )
        self._remark_on(entries, contenders)
        measured = timed(
            contenders,
            pictures,
            rounds=self.settings.rounds,
            warm_up=self.settings.warm_up,
            batch_size=self.settings.batch_size,
            device=self.device,
            progress=progress,
        )
        return Report(
            machine=before,
            settings={**vars(self.settings), "images": str(self.settings.images) if self.settings.images else None},
            pictures=pictures.source,
            parities=tuple(self.parities),
            measured=tuple(measured),
            shipped=next((one.name for one in contenders if one.name.startswith(SHIPPED)), None),
            remarks=tuple(dict.fromkeys(self.remarks)),
        )

    def _precisions(self) -> tuple[Timed, ...]:
        if self.settings.precision != "all":
            return (self.settings.precision,)
        if uses_bf16("auto", self.device):
            return ("fp32", "bf16")
        self.remarks.append("This device does not multiply in bf16, so there are no rows in bf16; --precision bf16 measures its emulation.")
        return ("fp32",)

    def _compare_precisions(self, entry: Entry, pictures: Pictures) -> None:
        """A network in less than fp32, or compiled, with itself in fp32."""
        for title, detector in entry.detectors.items():
            if entry.reference is not None and detector is not entry.reference:
                self._compare(entry.reference, f"{entry.origin or entry.name} fp32", detector, f"{entry.name} {title}", title, pictures)

    def _compare_files(self, entries: Sequence[Entry], pictures: Pictures) -> None:
        """Exported files with the model that they were made from, or with the first file in fp32 that was made from the same."""
        for entry in entries:
            if entry.network is not None:
                continue
            alike = sorted((other for other in entries if _same_weights(entry, other)), key=lambda other: other.network is None)
            exact = {other.name: other.reference or other.detectors.get("fp32") for other in alike}
            origin, reference = next(((name, found) for name, found in exact.items() if found is not None), (None, None))
            if origin == entry.name and len(entry.detectors) == 1:
                continue  # it is what others are compared with
            if reference is None or origin is None:
                self.remarks.append(f"{entry.name}: nothing else here has its weights in fp32, so its answers were compared with none.")
                continue
            for title, detector in entry.detectors.items():
                if detector is not reference:
                    self._compare(reference, f"{origin} fp32", detector, f"{entry.name} {title}", title, pictures)

    def _compare(self, reference: Detector, against: str, detector: Detector, name: str, title: str, pictures: Pictures) -> None:
        precision = title.split()[0]
        halves = [manifest.half_weights for each in (reference, detector) if (manifest := manifest_of(each))]
        if precision == "fp32" and any(halves):
            precision = "half"
        self.parities.append(check_variant(reference, detector, pictures, name=name, against=against, precision=precision))

    def _remark_on(self, entries: Sequence[Entry], contenders: Sequence[Contender]) -> None:
        made_up = [entry.name for entry in entries if entry.record is None and entry.origin is None]
        if made_up:
            self.remarks.append(
                f"Random weights with realistic scores ({self.settings.candidates} candidates in the first picture): {', '.join(made_up)}. "
                "Their times are real, their answers are not."
            )
        if self.settings.peers:
            self.remarks.append("torchvision's other detectors have random weights with realistic scores as well.")
        empty = [one.name for one in contenders if one.candidates == 0]
        if empty:
            self.remarks.append(
                f"No score of {', '.join(empty)} passes its threshold, so post-processing had nothing to do and its time says little; "
                "take trained weights or pictures like those that it was trained on."
            )
        if len({one.input_hw for one in contenders}) > 1:
            self.remarks.append(
                "Not all networks see inputs of one size; --size with --square gives all of them the same, but for SSD and SSDLite."
            )


def _same_weights(one: Entry, other: Entry) -> bool:
    """By their records, but for what an export leaves out."""
    if one.record is None or other.record is None:
        return False
    changed = {"switchable": False, "full_output": False}
    if one.record.model_copy(update=changed) != other.record.model_copy(update=changed):
        return False
    heads = [manifest.head for detector in (one.some, other.some) if (manifest := manifest_of(detector))]
    return "full" not in heads or (len(heads) == 2 and heads[0] == heads[1])
