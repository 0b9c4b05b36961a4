"""Reads weights files of other programs without running code from them: the tensors by name, and what else the file holds."""

import contextlib
import json
import re
import warnings
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from lw_retinanet.errors import ConfigError, InputError, WeightsError, first_line, shown
from lw_retinanet.files import no_file, read_limited
from lw_retinanet.weights.foreign.pickled_arrays import PickledArray, list_names, names_in_pickles, read_pickled_arrays
from lw_retinanet.weights.foreign.wrappers import find_place
from lw_retinanet.weights.tensor_file import read_header
from lw_retinanet.yaml_file import read_yaml

# Files of torch before 1.6 start with this pickle: one number.
_OLD_TORCH = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
_ENVELOPES = ("state_dict", "model", "model_state", "model_state_dict", "blobs", "net", "network")
_PREFIXES = ("module.", "_orig_mod.", "model.", "net.", "network.", "detector.")
# Classes of objects that training programs store beside the tensors. Objects of these classes become inert placeholders; a file that
# names any other class is refused.
_KNOWN_PROGRAMS = re.compile(
    r"(mmengine|mmdet|mmcv|detectron2|fvcore|yacs|omegaconf|lightning|pytorch_lightning|lightning_fabric|torchmetrics|deepforest|numpy|pandas)\..*"
    r"|collections\.\w+|pathlib\.\w+|argparse\.Namespace|typing\.Any|datetime\.\w+|copyreg\._reconstructor"
    r"|builtins\.(getattr|object|dict|list|tuple|set|str|int|long|float|bool|slice)"
)
# What torch's own reader may rebuild; torch decides by itself whether it does.
_TORCH = re.compile(
    r"torch\.(_utils\._rebuild_\w+|_tensor\.\w+|storage\.\w+|nn\.parameter\.Parameter|Size|device|\w+Storage|[a-z]+\d+\w*|bool)"
    r"|collections\.(OrderedDict|Counter)|_codecs\.encode|builtins\.(set|bytearray|complex)"
)
HUB_FILES = ("model.safetensors", "pytorch_model.bin")
_MOST_SETTINGS = 1 << 20
_REMEDY = "give a .safetensors file or one saved with torch.save(model.state_dict(), FILE)"


@dataclass(frozen=True, kw_only=True)
class ForeignFile:
    """The content of a weights file.

    Args:
        where: Name of the file, for messages.
        tensors: The tensors by name, without prefixes that wrappers add (``module.``, ``model.``).
        extras: Everything else at the top level, mostly plain values; objects of other programs are inert placeholders.
        left_out: Names of tensors beside the detector, such as metrics and counters -> why they are left out.
        weights: Name of the place that the tensors come from, then those of other places with a whole detector, such as ``model_ema``.
    """

    where: str
    tensors: Mapping[str, Tensor]
    extras: Mapping[str, Any]
    left_out: Mapping[str, str] = field(default_factory=dict)
    weights: tuple[str, ...] = ()


def read_weights_file(path: Path, *, weights: str | None = None) -> ForeignFile:
    """Read a safetensors file, a file of ``torch.save`` (of any version), or a pickle of NumPy arrays; the content decides which it is.

    Args:
        path: The file, or a folder as the Hugging Face hub has it.
        weights: The name of one of several detectors in a checkpoint, for example ``model_ema``; None takes those that were trained.

    Raises:
        WeightsError: If the file is missing, empty, damaged, of another kind, holds no named tensors, or could only be read by running
            code that it names. No code is run.
    """
    if path.is_dir():
        path = _of_folder(path)
    where = str(path)
    if not path.is_file():
        raise WeightsError(f"weights file {where} {no_file(path)}; give an existing file or torchvision:NAME")
    try:
        with path.open("rb") as file:
            start = file.read(16)
    except OSError as error:
        raise WeightsError(f"weights file {where} cannot be opened ({error.strerror}); check its permissions") from None
    if not start:
        raise WeightsError(f"weights file {where} is empty; get the file anew")
    if start.startswith(b"PK\x03\x04"):
        content = _read_torch(path, _pickle_of_zip(path))
    elif start.startswith(_OLD_TORCH[: len(start)]):
        content = _read_torch(path, path.read_bytes())
    elif start.startswith(b"\x80"):
        content = read_pickled_arrays(path.read_bytes(), where)
    elif start[8:9] == b"{":
        content = _read_safetensors(path)
    else:
        raise WeightsError(f"{where} is no weights file: neither safetensors, nor a torch file, nor a pickle; {_REMEDY}")
    found = unwrap(content, where, weights=weights)
    return replace(found, extras={**found.extras, **_settings_beside(path)})


def _of_folder(folder: Path) -> Path:
    """The weights in a folder of the hub's kind."""
    found = next((folder / name for name in HUB_FILES if (folder / name).is_file()), None)
    if found is None:
        raise WeightsError(f"{folder} holds neither {' nor '.join(HUB_FILES)}; name the weights file")
    return found


def _settings_beside(path: Path) -> dict[str, Any]:
    """Settings that programs write next to their weights, under the names of the files: the hub's, Detectron2's and MMDetection's."""
    found: dict[str, Any] = {}
    if path.name in HUB_FILES and (path.parent / "config.json").is_file():
        found["config.json"] = _json_settings(path.parent / "config.json")
    if (path.parent / "config.yaml").is_file():
        with contextlib.suppress(ConfigError):  # of another program
            found["config.yaml"] = read_yaml(path.parent / "config.yaml", what="settings file")
    programs = [each for each in path.parent.glob("*.py") if "RetinaHead" in _start_of(each)]
    if len(programs) == 1:
        found[".py"] = _start_of(programs[0])
    return found


def _json_settings(path: Path) -> Any:
    try:
        return json.loads(read_limited(path, _MOST_SETTINGS))
    except (OSError, InputError, ValueError, RecursionError):
        raise WeightsError(f"the settings {path} beside the weights cannot be read; get the folder anew, or move the weights") from None


def _start_of(path: Path) -> str:
    try:
        return read_limited(path, _MOST_SETTINGS).decode(errors="replace")
    except (OSError, InputError):
        return ""


def unwrap(content: object, where: str, *, weights: str | None = None) -> ForeignFile:
    """Find the state dict in the content of a file.

    Args:
        content: What the reader of the file returned, or a state dict.
        where: Name of the file, for messages.
        weights: As for :func:`read_weights_file`.

    Raises:
        WeightsError: If there is no state dict, or not the one that is wanted.
    """
    place, others = find_place(content, where, weights)
    if place is None:
        return _unwrap_by_name(content, where)
    tensors: dict[str, Tensor] = {}
    left_out: dict[str, str] = {}
    extras: dict[str, Any] = {}
    around = content
    for key in place.path:
        assert isinstance(around, Mapping)
        extras.update({str(name): value for name, value in around.items() if name != key})
        around = around[key]
    for name, value in place.state.items():
        tensor = _as_tensor(value, f"{shown(str(name))} of {where}")
        if tensor is None:
            extras[str(name)] = value
        elif str(name).startswith(place.prefix):
            tensors[str(name).removeprefix(place.prefix)] = tensor
        else:
            left_out[str(name)] = f"not part of {place.prefix.removesuffix('.')}, the detector"
    return ForeignFile(where=where, tensors=tensors, extras=extras, left_out=left_out, weights=(place.name, *others))


def _unwrap_by_name(content: object, where: str) -> ForeignFile:
    """The state dict under one of the usual names, for files without the names of the usual parts of a detector."""
    extras: dict[str, Any] = {}
    for _ in range(3):
        if not isinstance(content, Mapping):
            break
        inner = next((key for key in _ENVELOPES if isinstance(content.get(key), Mapping) and _has_tensors(content[key])), None)
        if inner is None:
            break
        extras.update({str(key): value for key, value in content.items() if key != inner})
        content = content[inner]
    if not isinstance(content, Mapping) or not _has_tensors(content):
        raise WeightsError(f"{where} holds no named tensors; {_REMEDY}")
    tensors: dict[str, Tensor] = {}
    for key, value in content.items():
        tensor = _as_tensor(value, f"{shown(str(key))} of {where}")
        if tensor is None:
            extras[str(key)] = value
        else:
            tensors[str(key)] = tensor
    return ForeignFile(where=where, tensors=_without_wrappers(tensors), extras=extras)


def _has_tensors(content: object, depth: int = 4) -> bool:
    if not isinstance(content, Mapping) or not depth:
        return False
    return any(isinstance(value, Tensor | PickledArray) or _has_tensors(value, depth - 1) for value in content.values())


def _as_tensor(value: object, where: str) -> Tensor | None:
    if isinstance(value, PickledArray) and value.values is not None:
        return torch.from_numpy(np.array(value.values, dtype=value.values.dtype.newbyteorder("="), order="C"))
    if not isinstance(value, Tensor):
        return None
    tensor = value.detach()
    if tensor.device.type != "cpu" or tensor.layout is not torch.strided or tensor.is_quantized:
        raise WeightsError(f"{where} is not a plain tensor (sparse, quantised or without values); save the model in float32")
    if tensor.untyped_storage().nbytes() < tensor.numel() * tensor.element_size():
        raise WeightsError(f"{where} claims the shape {tuple(tensor.shape)} but has fewer values; get the file anew")
    return tensor


def _without_wrappers(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    names = {name: name for name in tensors}
    while True:
        prefix = next((p for p in _PREFIXES if any(name.startswith(p) for name in names.values())), None)
        # A wrapper prefixes most names. A name without the prefix stays as it is, and is reported like any other.
        if prefix is None or sum(name.startswith(prefix) for name in names.values()) * 2 < len(names):
            return {name: tensors[original] for original, name in names.items()}
        shorter = {original: name.removeprefix(prefix) for original, name in names.items()}
        if len(set(shorter.values())) < len(shorter):
            return {name: tensors[original] for original, name in names.items()}
        names = shorter


def _read_safetensors(path: Path) -> dict[str, Any]:
    try:
        read_header(path)
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (not a mapping)
    except (SafetensorError, OSError, ValueError) as error:
        raise WeightsError(f"cannot read weights file {path}: {first_line(error)[:200]}; get the file anew") from None


def _pickle_of_zip(path: Path) -> bytes:
    """The part of a torch file that could run code."""
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
            names = [entry.filename for entry in entries]
            if any(name.endswith("/constants.pkl") or "/code/" in name for name in names):
                raise WeightsError(f"{path} is a TorchScript program, whose code is not run here; {_REMEDY}")
            pickles = [entry for entry in entries if entry.filename.count("/") == 1 and entry.filename.endswith("/data.pkl")]
            if len(pickles) != 1:
                raise WeightsError(f"{path} is a zip archive, but not a torch file; {_REMEDY}")
            # torch does not compress, so the content is never larger than the file: a zip bomb is refused.
            if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
                raise WeightsError(f"{path} is a compressed zip archive, which torch does not write; unpack it, and give what is inside")
            if damaged := archive.testzip():
                raise WeightsError(f"weights file {path} is damaged ({shown(damaged)} has another checksum); get the file anew")
            return archive.read(pickles[0])
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError, EOFError, RuntimeError) as error:
        raise WeightsError(f"weights file {path} is cut short or damaged ({first_line(error)[:200]}); get the file anew") from None


def _read_torch(path: Path, pickled: bytes) -> object:
    where = str(path)
    names = names_in_pickles(pickled, where)
    unknown = [name for name in names if not _KNOWN_PROGRAMS.fullmatch(name) and not _TORCH.fullmatch(name)]
    if unknown:
        raise WeightsError(f"{where} wants to use {list_names(unknown)}, and nothing was run; {_REMEDY}")
    # Python 2's name of int, which pickles of protocol 2 use.
    others = {name.replace("builtins.long", "builtins.int") for name in names if not _TORCH.fullmatch(name)}
    placeholders: list[Any] = [(_placeholder(name), name) for name in sorted(others)]
    guard: Any = torch.serialization.safe_globals(placeholders) if placeholders else contextlib.nullcontext()
    try:
        with guard, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch warns about how the file was written
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch.load raises half a dozen types for a damaged file
        reason = "it is damaged, or holds more than tensors" if type(error).__name__ == "UnpicklingError" else first_line(error)[:200]
        raise WeightsError(f"cannot read weights file {where}: {reason}; {_REMEDY}") from None


def _placeholder(name: str) -> type:
    """A class that accepts any arguments and does nothing, in place of another program's class. Tables of settings keep their content."""

    def accept(self: object, *_: object, **__: object) -> None:
        pass

    def make(cls: type, *_: object, **__: object) -> object:
        return object.__new__(cls)

    def keep(self: Any, state: object) -> None:
        self.kept_state = state

    has_settings = name.startswith("omegaconf.") or name == "argparse.Namespace"
    methods = {"__new__": make, "__init__": accept, "__setstate__": keep if has_settings else accept}
    return type(name.rpartition(".")[2], (), {**methods, "__slots__": ("kept_state",) if has_settings else ()})
