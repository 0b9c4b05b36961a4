"""Checkpoints: all that a run needs to go on, in one safetensors file. A crash at any moment leaves a whole checkpoint."""

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.optim import Optimizer

from lw_retinanet.errors import OutputError, RunFolderError
from lw_retinanet.files import leftovers, replacing, sha256, write_text

KEEP = 2
log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """State of a training between two steps.

    Args:
        step: Number of optimiser steps done.
        tensors: Tensors by flat names: ``model.*``, ``ema.*``, ``optimiser.*``.
        notes: Plain values that are not tensors.
    """

    step: int
    tensors: dict[str, Tensor]
    notes: dict[str, Any]

    def part(self, name: str) -> dict[str, Tensor]:
        """The tensors under ``name.``, without that prefix."""
        return {key.removeprefix(f"{name}."): tensor for key, tensor in self.tensors.items() if key.startswith(f"{name}.")}


def save_checkpoint(folder: Path, checkpoint: Checkpoint) -> Path:
    """Write ``step-N.safetensors`` and its checksum, then delete all but the two newest checkpoints.

    The file appears under its name only when all of it is on the disk.

    Raises:
        OutputError: if it cannot be written, for instance because the disk is full; earlier checkpoints are untouched.
    """
    path = folder / f"step-{checkpoint.step:08d}.safetensors"
    metadata = {"step": str(checkpoint.step), "notes": json.dumps(checkpoint.notes)}
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in checkpoint.tensors.items()}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _remove_leftovers(folder)
        with replacing(path) as temporary:
            save_file(tensors, temporary, metadata=metadata)
            write_text(path.with_suffix(".sha256"), sha256(temporary))
        for old in checkpoint_files(folder)[:-KEEP]:
            old.unlink()
            old.with_suffix(".sha256").unlink(missing_ok=True)
    except (OSError, SafetensorError) as error:
        raise OutputError(f"{path}: cannot be written ({error}); make room on the disk, then resume the run") from None
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
                metadata = file.metadata()
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (not a mapping)
            return Checkpoint(step=int(metadata["step"]), tensors=tensors, notes=json.loads(metadata["notes"]))
        except (OSError, ValueError, SafetensorError, KeyError) as error:
            log.warning("checkpoint %s is damaged (%s); trying the one before", path, error)
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
    """Set the state of an optimiser from :func:`optimiser_tensors`. Its groups and their settings stay as they are."""
    parameters = [parameter for group in optimiser.param_groups for parameter in group["params"]]
    state: dict[int, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        index, _, name = key.partition(".")
        parameter = parameters[int(index)]
        if tensor.shape == parameter.shape:
            # The memory format of the parameter keeps the order of all later sums, so that a resumed run gives the same bits.
            state.setdefault(int(index), {})[name] = torch.empty_like(parameter).copy_(tensor)
        else:
            state.setdefault(int(index), {})[name] = tensor
    optimiser.load_state_dict({"state": state, "param_groups": optimiser.state_dict()["param_groups"]})
