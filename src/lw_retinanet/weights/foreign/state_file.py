"""Weights files of other programs: tensors by name and what else stands beside them, whatever wraps them, without running a file's code."""

import contextlib
import re
import warnings
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from lw_retinanet.errors import WeightsError
from lw_retinanet.weights.foreign.pickled_arrays import PickledArray, globals_of, read_pickled_arrays

# The first pickle of torch's form from before 1.6: one number.
_OLD_TORCH = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
_ENVELOPES = ("state_dict", "model", "model_state", "model_state_dict", "blobs", "net", "network")
_PREFIXES = ("module.", "_orig_mod.", "model.", "net.", "network.", "detector.")
# What the trainers whose files these are keep beside the tensors. Each becomes an inert placeholder, so the list is one of courtesy: it
# tells a usual checkpoint from a strange one.
_TRAINERS = re.compile(
    r"(mmengine|mmdet|mmcv|detectron2|fvcore|yacs|omegaconf|lightning|pytorch_lightning|lightning_fabric|torchmetrics|deepforest|numpy|pandas)\..*"
    r"|collections\.\w+|pathlib\.\w+|argparse\.Namespace|typing\.Any|datetime\.\w+|copyreg\._reconstructor"
    r"|builtins\.(getattr|object|dict|list|tuple|set|str|int|float|bool|slice)"
)
# What torch itself rebuilds; whether it really does is its own decision.
_TORCHS_OWN = re.compile(
    r"torch\.(_utils\._rebuild_\w+|_tensor\.\w+|storage\.\w+|nn\.parameter\.Parameter|Size|device|\w+Storage|[a-z]+\d+\w*|bool)"
    r"|collections\.(OrderedDict|Counter)|_codecs\.encode|builtins\.(set|bytearray|complex)"
)
_WAY_OUT = "give a .safetensors file or one saved with torch.save(model.state_dict(), FILE)"


@dataclass(frozen=True, kw_only=True)
class ForeignFile:
    """What a file holds.

    Args:
        where: the file, for messages.
        tensors: by name, without the prefixes of wrappers (``module.``, ``model.``).
        extras: everything else that stood at the top, mostly plain values; objects of other programs are inert placeholders.
    """

    where: str
    tensors: Mapping[str, Tensor]
    extras: Mapping[str, Any]


def read_foreign(path: Path) -> ForeignFile:
    """Read safetensors, torch's checkpoints (new and old form) and pickles of NumPy arrays, told apart by content.

    Raises:
        WeightsError: if the file is missing, empty, damaged, of another kind, holds no named tensors, or names something that only
            running it could resolve; nothing of it is run.
    """
    where = str(path)
    if not path.is_file():
        raise WeightsError(f"weights file {where} does not exist; give an existing file or torchvision:NAME")
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
        raise WeightsError(f"{where} is no weights file: neither safetensors, nor a torch checkpoint, nor a pickle; {_WAY_OUT}")
    return unwrap(content, where)


def unwrap(content: object, where: str) -> ForeignFile:
    """Find the state dict in what a checkpoint holds.

    Raises:
        WeightsError: if there is none.
    """
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
        raise WeightsError(f"{where} holds no named tensors; {_WAY_OUT}")
    tensors: dict[str, Tensor] = {}
    for key, value in content.items():
        tensor = _as_tensor(value, f"{key} of {where}")
        if tensor is None:
            extras[str(key)] = value
        else:
            tensors[str(key)] = tensor
    return ForeignFile(where=where, tensors=_without_wrappers(tensors), extras=extras)


def _has_tensors(content: object) -> bool:
    if not isinstance(content, Mapping):
        return False
    return any(isinstance(value, Tensor | PickledArray) or _has_tensors(value) for value in content.values())


def _as_tensor(value: object, where: str) -> Tensor | None:
    if isinstance(value, PickledArray) and value.values is not None:
        return torch.from_numpy(np.array(value.values, dtype=value.values.dtype.newbyteorder("="), order="C"))
    if not isinstance(value, Tensor):
        return None
    tensor = value.detach()
    if tensor.device.type != "cpu" or tensor.layout is not torch.strided or tensor.is_quantized:
        raise WeightsError(f"{where} is no plain tensor (sparse, quantised or without values); save the model in float32")
    if tensor.untyped_storage().nbytes() < tensor.numel() * tensor.element_size():
        raise WeightsError(f"{where} claims the shape {tuple(tensor.shape)} but has fewer values; get the file anew")
    return tensor


def _without_wrappers(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    names = {name: name for name in tensors}
    while True:
        prefix = next((p for p in _PREFIXES if any(name.startswith(p) for name in names.values())), None)
        # Only a wrapper's prefix: a name that lacks it stays as it is, and is accounted for as any other.
        if prefix is None or sum(name.startswith(prefix) for name in names.values()) * 2 < len(names):
            return {name: tensors[original] for original, name in names.items()}
        shorter = {original: name.removeprefix(prefix) for original, name in names.items()}
        if len(set(shorter.values())) < len(shorter):
            return {name: tensors[original] for original, name in names.items()}
        names = shorter


def _read_safetensors(path: Path) -> dict[str, Any]:
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (not a mapping)
    except (SafetensorError, OSError, ValueError) as error:
        raise WeightsError(f"cannot read weights file {path}: {_first_line(error)}; get the file anew") from None


def _pickle_of_zip(path: Path) -> bytes:
    """The part of a torch checkpoint that could run code."""
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
            names = [entry.filename for entry in entries]
            if any(name.endswith("/constants.pkl") or "/code/" in name for name in names):
                raise WeightsError(f"{path} is a TorchScript program, whose code is not run here; {_WAY_OUT}")
            pickles = [entry for entry in entries if entry.filename.count("/") == 1 and entry.filename.endswith("/data.pkl")]
            if len(pickles) != 1:
                raise WeightsError(f"{path} is a zip archive, but no torch checkpoint; {_WAY_OUT}")
            # torch packs without compression, so that what is unpacked is never larger than the file.
            if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
                raise WeightsError(f"{path} is a compressed zip archive, which torch does not write; unpack it, and give what is inside")
            return archive.read(pickles[0])
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError, EOFError, RuntimeError) as error:
        raise WeightsError(f"weights file {path} is cut short or damaged ({_first_line(error)}); get the file anew") from None


def _read_torch(path: Path, pickled: bytes) -> object:
    where = str(path)
    names = globals_of(pickled, where)
    unknown = [name for name in names if not _TRAINERS.fullmatch(name) and not _TORCHS_OWN.fullmatch(name)]
    if unknown:
        listed = ", ".join(name[:80] for name in unknown[:3]) + (f" and {len(unknown) - 3} more" if len(unknown) > 3 else "")
        raise WeightsError(f"{where} wants to use {listed}, and nothing was run; {_WAY_OUT}")
    placeholders: list[Any] = [(_placeholder(name), name) for name in names if not _TORCHS_OWN.fullmatch(name)]
    guard: Any = torch.serialization.safe_globals(placeholders) if placeholders else contextlib.nullcontext()
    try:
        with guard, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's remarks on how the file was written
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch.load raises half a dozen types for a damaged file
        reason = "it is damaged, or holds more than tensors" if type(error).__name__ == "UnpicklingError" else _first_line(error)
        raise WeightsError(f"cannot read weights file {where}: {reason}; {_WAY_OUT}") from None


def _placeholder(name: str) -> type:
    """A class that takes anything and does nothing, in place of another program's."""

    def accept(self: object, *_: object, **__: object) -> None:
        pass

    def make(cls: type, *_: object, **__: object) -> object:
        return object.__new__(cls)

    return type(name.rpartition(".")[2], (), {"__new__": make, "__init__": accept, "__setstate__": accept, "__slots__": ()})


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
