"""Checkpoints: all that a run needs to go on, in one safetensors file. A crash at any moment leaves a whole checkpoint."""

import json
import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from torch.optim import Optimizer

from lw_retinanet.errors import RunFolderError, first_line, shown
from lw_retinanet.files import leftovers, not_written, replacing, sha256, write_text
from lw_retinanet.weights.tensor_file import save_tensors

KEEP = 2
log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """State of a training between two steps.

    Args:
        step: Number of optimiser steps done.
        tensors: Tensors by flat names: ``model.*``, ``ema.*``, ``optimiser.*``.
        notes: Plain values that are not tensors.
        path: The file that it was read from.
    """

    step: int
    tensors: dict[str, Tensor]
    notes: dict[str, Any]
    path: Path | None = None

    def part(self, name: str) -> dict[str, Tensor]:
        """The tensors under ``name.``, without that prefix."""
        return {key.removeprefix(f"{name}."): tensor for key, tensor in self.tensors.items() if key.startswith(f"{name}.")}


def save_checkpoint(folder: Path, checkpoint: Checkpoint) -> Path:
    """Write ``step-N.safetensors`` and its checksum, then delete all but the two newest checkpoints.

    The file appears under its name only when all of it is on the disk.

    Raises:
        DiskFullError: if there is no room for it; earlier checkpoints are untouched.
        OutputError: if it cannot be written for another reason; earlier checkpoints are untouched.
    """
    path = folder / f"step-{checkpoint.step:08d}.safetensors"
    metadata = {"step": str(checkpoint.step), "notes": json.dumps(checkpoint.notes)}
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in checkpoint.tensors.items()}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _remove_leftovers(folder)
        if path.is_dir():
            aside = path.rename(path.with_name(f"{path.name}-{time.time_ns()}"))
            log.warning("%s is a folder where a checkpoint belongs; it is called %s now", path, aside.name)
        with replacing(path, size=sum(tensor.nbytes for tensor in tensors.values())) as temporary:
            save_tensors(tensors, temporary, metadata=metadata)
            write_text(path.with_suffix(".sha256"), sha256(temporary))
        for old in checkpoint_files(folder)[:-KEEP]:
            old.unlink()
            old.with_suffix(".sha256").unlink(missing_ok=True)
    except OSError as error:
        raise not_written(path, error) from None
    return path


def _remove_leftovers(folder: Path) -> None:
    """Delete the temporary files of a run that was killed while saving, and checksums without a checkpoint."""
    # safetensors writes into a temporary file of its own beside the given one.
    for leftover in (*leftovers(folder), *folder.glob(".tmp??????")):
        leftover.unlink()
    for checksum in folder.glob("step-*.sha256"):
        if not checksum.with_suffix(".safetensors").exists():
            checksum.unlink()


def load_latest(folder: Path) -> Checkpoint | None:
    """Read the newest checkpoint whose checksum is right. Each damaged one gives a warning. None if there is no checkpoint.

    Raises:
        RunFolderError: if there are checkpoints and none is whole.
    """
    files = checkpoint_files(folder)
    for path in reversed(files):
        try:
            stored = path.with_suffix(".sha256").read_text()
            if sha256(path) != stored:
                raise ValueError("its checksum does not fit")
            with safe_open(path, framework="pt") as file:
                metadata = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (not a mapping)
            step = int(metadata["step"])
            if step < 0:
                raise ValueError(f"it is of step {step}")
            return Checkpoint(step=step, tensors=tensors, notes=json.loads(metadata["notes"]), path=path)
        except (OSError, ValueError, SafetensorError, KeyError) as error:
            reason = f"it has no {error}" if isinstance(error, KeyError) else first_line(error)
            log.warning("checkpoint %s is damaged (%s); trying the one before", path, shown(reason, most=200))
    if files:
        raise RunFolderError(f"no checkpoint in {folder} is whole; start a new run in another folder")
    return None


def checkpoint_files(folder: Path) -> list[Path]:
    """Files of checkpoints, in the order of their steps."""
    return sorted(folder.glob("step-*.safetensors"))


def optimiser_tensors(optimiser: Optimizer) -> dict[str, Tensor]:
    """State of an optimiser as tensors by flat names; plain numbers become tensors."""
    state: Mapping[int, Mapping[str, Any]] = optimiser.state_dict()["state"]
    entries = ((index, name, value) for index, values in state.items() for name, value in values.items() if value is not None)
    return {f"{index}.{name}": torch.as_tensor(value) for index, name, value in entries}


def load_optimiser(optimiser: Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Set the state of an optimiser from :func:`optimiser_tensors`. Its groups and their settings stay as they are.

    Raises:
        ValueError, IndexError: if the state is that of other parameters.
    """
    parameters = [parameter for group in optimiser.param_groups for parameter in group["params"]]
    state: dict[int, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        index, _, name = key.partition(".")
        parameter = parameters[int(index)]
        if tensor.shape == parameter.shape:
            # The memory format of the parameter keeps the order of all later sums, so that a resumed run gives the same bits.
            state.setdefault(int(index), {})[name] = torch.empty_like(parameter).copy_(tensor)
        elif name == "step" and tensor.numel() == 1:
            state.setdefault(int(index), {})[name] = tensor
        else:
            raise ValueError(f"the optimiser's {shown(key)} has the shape {tuple(tensor.shape)}")
    optimiser.load_state_dict({"state": state, "param_groups": optimiser.state_dict()["param_groups"]})
