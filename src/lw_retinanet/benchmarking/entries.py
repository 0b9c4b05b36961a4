"""What a user may name to be measured: model files, run folders, exported files, and presets, which get weights that are made up."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from lw_retinanet.benchmarking.pictures import Pictures
from lw_retinanet.benchmarking.realistic import make_realistic
from lw_retinanet.config import parse_config
from lw_retinanet.conventions import Conventions
from lw_retinanet.data.records import Category
from lw_retinanet.detection.detector import Detector
from lw_retinanet.errors import InputError
from lw_retinanet.exporting.opening import exported_file, manifest_of, open_exported
from lw_retinanet.heads import is_preset, known_presets
from lw_retinanet.models.retinanet import RetinaNet
from lw_retinanet.weights.create import create_model
from lw_retinanet.weights.foreign.torchvision_twin import preset_conventions
from lw_retinanet.weights.model_file import ModelRecord, load_model

NATIVE_SIZE = 800
Timed = Literal["fp32", "bf16"]


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One of the models that were named.

    Args:
        name: as tables show it; no two have the same.
        detectors: what is timed, by precision: ``fp32``, ``bf16``, ``int8``.
        runtime: ``pytorch``, ``onnx`` or ``openvino``.
        network: None for an exported file.
        reference: in fp32, whatever is timed; None for an exported file.
        record: of the file; None for a preset.
        backbone: setting that builds another network with the same one.
        width: of its pyramid.
        origin: name of the entry whose network this is, where it is another one's in another runtime.
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
        """One of the detectors, for what all have in common."""
        return next(iter(self.detectors.values()))


def open_entries(
    names: Sequence[str],
    *,
    precisions: Sequence[Timed],
    size: int | None,
    num_classes: int,
    backbone: str,
    device: torch.device,
    compiled: bool,
) -> tuple[list[Entry], int]:
    """Open all that was named.

    Args:
        names: of files, folders and presets.
        precisions: to be timed. An exported file has its own, but for one of OpenVINO that is not int8.
        size: side that pictures are resized to; None leaves it to the files, and gives presets that of the first file, or 800.
        num_classes: of presets.
        backbone: of presets.
        device: to compute on.
        compiled: run PyTorch's networks through ``torch.compile``, too.

    Returns:
        The entries, presets among them still without realistic scores, and the size of these.

    Raises:
        InputError: for what cannot be opened, with the reason.
    """
    shown = _names(names)
    for name in names:
        if not is_preset(name) and not Path(name).exists():
            raise InputError(f"{name!r} is no preset, model file, exported file or run folder{known_presets(name)}")
    entries: dict[str, Entry] = {}
    for name, title in zip(names, shown, strict=True):
        if not is_preset(name):
            opened = _exported if exported_file(Path(name)) else _of_file
            entries[title] = opened(Path(name), title, precisions, size, device, compiled)
    sizes = [entry.some.conventions.input.size for entry in entries.values()]
    preset_size = size or next(iter(sizes), NATIVE_SIZE)
    for name, title in zip(names, shown, strict=True):
        if is_preset(name):
            network = made_up_network(name, size=preset_size, num_classes=num_classes, backbone=backbone)
            entries[title] = _of_network(network, title, precisions, device, compiled, backbone=backbone)
    return [entries[title] for title in shown], preset_size


def made_up_network(preset: str, *, size: int, num_classes: int, backbone: str, width: int = 256) -> RetinaNet:
    """A network with random weights and torchvision's conventions; :func:`give_scores` makes it worth timing.

    Raises:
        InputError: for an unknown backbone or one that cannot be had.
    """
    settings = {"preset": preset, "backbone": backbone, "head_width": width, "norm": "frozen", "stride_in": "3x3"}
    network = create_model(parse_config({"model": settings}, where="benchmark").model, num_classes=num_classes, image_size=size, seed=0)
    network.conventions = preset_conventions(network.conventions)
    return network.eval()


def give_scores(network: RetinaNet, pictures: Pictures, *, candidates: int) -> None:
    """Realistic scores for the first of the pictures, in place."""
    detector = Detector.of_model(network, (), device=next(network.parameters()).device, fold=False)
    make_realistic(network, detector.prepare([pictures.decoded(0)]).images, candidates=candidates)


def _names(names: Sequence[str]) -> list[str]:
    """Short, but no two alike."""
    short = [name if is_preset(name) else Path(name).name for name in names]
    if len(set(short)) < len(names):
        short = [name if is_preset(name) else "/".join(Path(name).parts[-2:]) for name in names]
    if len(set(short)) < len(names):
        short = list(names)
    twice = next((name for name in short if short.count(name) > 1), None)
    if twice is not None:
        raise InputError(f"{twice} was named twice; name every model once")
    return short


def _of_network(
    network: RetinaNet,
    name: str,
    precisions: Sequence[Timed],
    device: torch.device,
    compiled: bool,
    *,
    backbone: str,
    record: ModelRecord | None = None,
) -> Entry:
    names = [f"class_{number}" for number in range(network.num_classes)]
    categories = record.categories if record else tuple(Category(id=number, name=each) for number, each in enumerate(names))
    detectors: dict[str, Detector] = {}
    for precision in precisions:
        detectors[precision] = Detector.of_model(network, categories, device=device, precision=precision, name=name, record=record)
        if compiled:
            made = Detector.of_model(network, categories, device=device, precision=precision, compile=True, name=name, record=record)
            detectors[f"{precision} compiled"] = made
    reference = detectors.get("fp32") or Detector.of_model(network, categories, device=device, name=name, record=record)
    return Entry(
        name=name,
        detectors=detectors,
        runtime="pytorch",
        network=network,
        reference=reference,
        record=record,
        backbone=backbone,
        width=network.fpn.out_channels,
    )


def _of_file(path: Path, name: str, precisions: Sequence[Timed], size: int | None, device: torch.device, compiled: bool) -> Entry:
    loaded = load_model(path)
    loaded.model.conventions = _resized(loaded.model.conventions, size)
    return _of_network(loaded.model, name, precisions, device, compiled, backbone=loaded.record.backbone, record=loaded.record)


def _exported(path: Path, name: str, precisions: Sequence[Timed], size: int | None, device: torch.device, _: bool) -> Entry:
    first = open_exported(path, device=device.type if device.type == "cuda" else "cpu")
    manifest = manifest_of(first)
    assert manifest is not None
    detectors: dict[str, Detector] = {manifest.precision: first}
    if manifest.kind == "openvino" and manifest.precision == "fp32":
        detectors = {precision: open_exported(path, precision=precision) for precision in precisions}
    record = manifest.record
    conventions = _resized(record.conventions, size)
    detectors = {precision: detector.with_conventions(conventions) for precision, detector in detectors.items()}
    return Entry(
        name=name,
        detectors=detectors,
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
