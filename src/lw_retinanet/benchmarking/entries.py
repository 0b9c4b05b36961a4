"""What a user can name to be measured: model files, run folders, exported files, and presets, which get made-up weights."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from lw_retinanet.benchmarking.contender import Contender, detector_run
from lw_retinanet.benchmarking.images import BenchmarkImages
from lw_retinanet.benchmarking.realistic import make_realistic
from lw_retinanet.benchmarking.settings import BenchmarkSettings, Timed
from lw_retinanet.config import parse_config
from lw_retinanet.conventions import Conventions
from lw_retinanet.counting.detector_cost import DetectorCost, count_detector
from lw_retinanet.data.records import Category
from lw_retinanet.detection.detector import Detector
from lw_retinanet.errors import InputError
from lw_retinanet.exporting.opening import exported_file, manifest_of, open_exported
from lw_retinanet.heads import HeadPlan, is_preset, known_presets
from lw_retinanet.models.retinanet import RetinaNet
from lw_retinanet.weights.create import create_model
from lw_retinanet.weights.foreign.convert import open_model
from lw_retinanet.weights.foreign.torchvision import is_named, require_known
from lw_retinanet.weights.foreign.torchvision_twin import preset_conventions
from lw_retinanet.weights.model_file import ModelRecord, build_network

NATIVE_SIZE = 800


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One of the named models.

    Args:
        name: Unique name for tables.
        detectors: What is timed, by precision (``fp32``, ``bf16``, ``int8``); a compiled one has the key ``fp32 compiled``.
        runtime: ``pytorch``, ``onnx`` or ``openvino``.
        network: The network in PyTorch; None for an exported file.
        reference: The detector in fp32, even if it is not timed; None for an exported file.
        record: The record of the file; None for a preset.
        backbone: Setting that builds another network with the same backbone.
        width: Channels of the pyramid.
        origin: Name of the entry that this is a copy of in another runtime.
    """

    name: str
    detectors: Mapping[str, Detector]
    runtime: str
    network: RetinaNet | None
    reference: Detector | None
    record: ModelRecord | None
    backbone: str
    width: int = 256
    origin: str | None = None

    @property
    def some(self) -> Detector:
        """One of the detectors, for what all of them have in common."""
        return next(iter(self.detectors.values()))


def open_entries(
    names: Sequence[str], settings: BenchmarkSettings, precisions: Sequence[Timed], device: torch.device
) -> tuple[list[Entry], int]:
    """Open everything that was named.

    Args:
        names: Files, folders and presets.
        settings: How to measure.
        precisions: Precisions to time. An exported file has its own, except for OpenVINO files, which run in any unless they are int8.
        device: Device to compute on.

    Returns:
        The entries, and the image size of presets: that of the settings, else of the first file, else 800. Presets still need
        :func:`give_scores`.

    Raises:
        InputError: If something cannot be opened.
    """
    shown = _short_names(names)
    for name in names:
        if is_named(name):
            require_known(name)
        elif not is_preset(name) and not Path(name).exists():
            raise InputError(f"{name!r} is no preset, model file, exported file or run folder{known_presets(name)}")
    entries: dict[str, Entry] = {}
    for name, title in zip(names, shown, strict=True):
        if not is_preset(name):
            opened = _open_exported if exported_file(Path(name)) else _open_model
            entries[title] = opened(Path(name), title, settings, precisions, device)
    sizes = [entry.some.conventions.input.size for entry in entries.values()]
    preset_size = settings.size or next(iter(sizes), NATIVE_SIZE)
    for name, title in zip(names, shown, strict=True):
        if is_preset(name):
            network = made_up_network(name, size=preset_size, num_classes=settings.num_classes, backbone=settings.backbone)
            entries[title] = _pytorch_entry(network, title, settings, precisions, device, backbone=settings.backbone)
    return [entries[title] for title in shown], preset_size


def made_up_network(preset: str, *, size: int, num_classes: int, backbone: str, width: int = 256) -> RetinaNet:
    """A network with random weights and torchvision's conventions. Before it is timed, it needs :func:`give_scores`.

    Raises:
        InputError: If the backbone is unknown or not available.
    """
    settings = {"preset": preset, "backbone": backbone, "head_width": width, "norm": "frozen", "stride_in": "3x3"}
    network = create_model(parse_config({"model": settings}, where="benchmark").model, num_classes=num_classes, image_size=size, seed=0)
    network.conventions = preset_conventions(network.conventions)
    return network.eval()


def give_scores(network: RetinaNet, images: BenchmarkImages, *, candidates: int) -> None:
    """Give a network realistic scores on the first image, in place."""
    detector = Detector.of_model(network, (), device=next(network.parameters()).device, fold=False)
    make_realistic(network, detector.prepare([images.decoded(0)]).images, candidates=candidates)


def contenders_of(entry: Entry, images: BenchmarkImages) -> list[Contender]:
    """The detectors of an entry as contenders. The first image gives the input size and the number of candidates."""
    found = []
    for title, detector in entry.detectors.items():
        is_compiled = title.endswith("compiled")
        fused = ", fused" if detector.device.type == "cpu" and not is_compiled else ""
        inputs = detector.prepare([images.decoded(0)])
        cost = _cost(entry, detector, inputs.size_hw)
        manifest = manifest_of(detector)
        found.append(
            Contender(
                name=f"{entry.name} {title}",
                model=entry.name,
                family="ours",
                runtime=entry.runtime,
                precision=title.split()[0],
                how=f"folded{fused}, channels_last{', compiled' if is_compiled else ''}" if entry.runtime == "pytorch" else entry.runtime,
                run=detector_run(detector),
                has_stages=not is_compiled,
                macs=cost.macs,
                params=sum(block.params for block in cost.blocks.values()),
                input_hw=inputs.size_hw,
                candidates=_candidates(detector, images),
                accuracy=float(manifest.accuracy["after"]) if manifest and manifest.accuracy else None,
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
def _candidates(detector: Detector, images: BenchmarkImages) -> int | None:
    if detector.runtime.gives_boxes:
        return None
    logits = detector.network(detector.prepare([images.decoded(0)]).images).logits
    return int((logits.float().sigmoid() > detector.conventions.output.score_threshold).sum())


def _short_names(names: Sequence[str]) -> list[str]:
    """The shortest names that are all different."""
    for parts in (1, 2, None):
        short = [name if is_preset(name) or parts is None else "/".join(Path(name).parts[-parts:]) for name in names]
        if len(set(short)) == len(names):
            return short
    twice = next(name for name in short if short.count(name) > 1)
    raise InputError(f"{twice} was named twice; name every model once")


def _pytorch_entry(
    network: RetinaNet,
    name: str,
    settings: BenchmarkSettings,
    precisions: Sequence[Timed],
    device: torch.device,
    *,
    backbone: str,
    record: ModelRecord | None = None,
) -> Entry:
    made_up = (Category(id=number, name=f"class_{number}") for number in range(network.num_classes))
    categories = record.categories if record else tuple(made_up)

    def detector(precision: Timed, *, compiled: bool = False) -> Detector:
        return Detector.of_model(network, categories, device=device, precision=precision, compile=compiled, name=name, record=record)

    detectors: dict[str, Detector] = {}
    for precision in precisions:
        detectors[precision] = detector(precision)
        if settings.compiled:
            detectors[f"{precision} compiled"] = detector(precision, compiled=True)
    return Entry(
        name=name,
        detectors=detectors,
        runtime="pytorch",
        network=network,
        reference=detectors.get("fp32") or detector("fp32"),
        record=record,
        backbone=backbone,
        width=network.fpn.out_channels,
    )


def _open_model(path: Path, name: str, settings: BenchmarkSettings, precisions: Sequence[Timed], device: torch.device) -> Entry:
    loaded = open_model(path)
    loaded.model.conventions = _resized(loaded.model.conventions, settings.size)
    return _pytorch_entry(loaded.model, name, settings, precisions, device, backbone=loaded.record.backbone, record=loaded.record)


def _open_exported(path: Path, name: str, settings: BenchmarkSettings, precisions: Sequence[Timed], device: torch.device) -> Entry:
    first = open_exported(path, device=device.type if device.type == "cuda" else "cpu")
    manifest = manifest_of(first)
    assert manifest is not None
    detectors: dict[str, Detector] = {manifest.precision: first}
    if manifest.kind == "openvino" and manifest.precision == "fp32":
        detectors = {precision: open_exported(path, precision=precision) for precision in precisions}
    record = manifest.record
    conventions = _resized(record.conventions, settings.size)
    return Entry(
        name=name,
        detectors={precision: detector.with_conventions(conventions) for precision, detector in detectors.items()},
        runtime=manifest.kind,
        network=None,
        reference=None,
        record=record,
        backbone=record.backbone,
        width=record.width,
    )


def _resized(conventions: Conventions, size: int | None) -> Conventions:
    if size is None:
        return conventions
    rule = conventions.input
    longest = max(size, round(rule.max_size * size / rule.size))
    return conventions.model_copy(update={"input": rule.model_copy(update={"size": size, "max_size": longest})})
