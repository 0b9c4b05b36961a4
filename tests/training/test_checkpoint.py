import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import SGD, AdamW, Optimizer

from lw_retinanet.errors import DiskFullError, RunFolderError
from lw_retinanet.files import sha256
from lw_retinanet.training import checkpoint as module
from lw_retinanet.training.checkpoint import Checkpoint, checkpoint_files, load_latest, load_optimiser, optimiser_tensors, save_checkpoint
from lw_retinanet.weights.tensor_file import save_tensors


def make(step: int) -> Checkpoint:
    tensors = {"model.weight": torch.full((64,), float(step)), "model.count": torch.tensor(step), "ema.model.weight": torch.zeros(2, 3).t()}
    return Checkpoint(step=step, tensors=tensors, notes={"seed": 5})


def names(folder: Path) -> list[str]:
    return sorted(child.name for child in folder.iterdir())


def test_round_trip(tmp_path: Path) -> None:
    assert load_latest(tmp_path / "nothing") is None
    save_checkpoint(tmp_path, make(3))
    found = load_latest(tmp_path)
    assert found is not None
    assert (found.step, found.notes) == (3, {"seed": 5})
    assert found.part("model").keys() == {"weight", "count"}  # not ema.model.*
    assert torch.equal(found.part("ema")["model.weight"], torch.zeros(3, 2))
    assert found.part("model")["count"].dtype == torch.int64


def test_the_two_newest_are_kept(tmp_path: Path) -> None:
    for step in (2, 9, 10, 100):
        save_checkpoint(tmp_path, make(step))
    assert [path.stem for path in checkpoint_files(tmp_path)] == ["step-00000010", "step-00000100"]
    assert names(tmp_path) == [f"step-{step:08d}.{suffix}" for step in (10, 100) for suffix in ("safetensors", "sha256")]


def fail_half_way(tensors: Any, path: Path, metadata: Any) -> None:
    Path(path).write_bytes(b"half of a check")
    raise OSError(28, "No space left on device")


def test_a_failed_save_leaves_the_old_ones_and_no_scrap(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for step in (1, 2):
        save_checkpoint(tmp_path, make(step))
    before = names(tmp_path)
    monkeypatch.setattr(module, "save_tensors", fail_half_way)
    with pytest.raises(
        DiskFullError, match=r"step-00000003\.safetensors: cannot be written .*No space left.* needs 288 bytes, and [\d,]+ are free"
    ) as caught:
        save_checkpoint(tmp_path, make(3))
    assert "\n" not in str(caught.value)
    assert names(tmp_path) == before
    found = load_latest(tmp_path)
    assert found is not None
    assert found.step == 2


def test_scrap_of_a_killed_save_is_removed_by_the_next(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, make(1))
    for name in (".step-00000002.part.safetensors", ".step-00000002.77.part.sha256", "step-00000002.sha256", ".tmplokIsN"):
        (tmp_path / name).write_bytes(b"scrap")
    found = load_latest(tmp_path)
    assert found is not None
    assert found.step == 1
    save_checkpoint(tmp_path, make(3))
    assert names(tmp_path) == [f"step-{step:08d}.{suffix}" for step in (1, 3) for suffix in ("safetensors", "sha256")]


def test_a_flipped_byte_anywhere_is_noticed_and_the_one_before_serves(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    save_checkpoint(tmp_path, make(1))
    newest = save_checkpoint(tmp_path, make(2))
    content = newest.read_bytes()
    for place in range(0, len(content), 37):
        caplog.clear()
        newest.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
        found = load_latest(tmp_path)
        assert found is not None
        assert found.step == 1
        assert "step-00000002.safetensors is damaged" in caplog.text
    newest.write_bytes(content)
    found = load_latest(tmp_path)
    assert found is not None
    assert found.step == 2


@pytest.mark.parametrize("damage", ["cut", "empty", "no checksum"])
def test_other_damage_is_noticed_too(damage: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    save_checkpoint(tmp_path, make(1))
    newest = save_checkpoint(tmp_path, make(2))
    if damage == "no checksum":
        newest.with_suffix(".sha256").unlink()
    else:
        newest.write_bytes(newest.read_bytes()[:100] if damage == "cut" else b"")
    found = load_latest(tmp_path)
    assert found is not None
    assert found.step == 1
    assert "damaged" in caplog.text


@pytest.mark.parametrize("metadata", [None, {"step": "x", "notes": "{}"}, {"step": "-5", "notes": "{}"}, {"step": "3"}])
def test_a_checkpoint_that_somebody_wrote_anew_is_noticed(
    metadata: dict[str, str] | None, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    save_checkpoint(tmp_path, make(1))
    newest = save_checkpoint(tmp_path, make(2))
    save_tensors({"model.weight": torch.zeros(2)}, newest, metadata=metadata)
    newest.with_suffix(".sha256").write_text(sha256(newest))
    found = load_latest(tmp_path)
    assert found is not None
    assert found.step == 1
    assert "step-00000002.safetensors is damaged (" in caplog.text


def test_if_none_is_whole_the_run_does_not_silently_start_anew(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, make(1)).write_bytes(b"")
    with pytest.raises(RunFolderError, match=r"no checkpoint in .* is whole"):
        load_latest(tmp_path)


def test_nothing_is_deleted_before_the_new_one_is_on_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for step in (1, 2):
        save_checkpoint(tmp_path, make(step))
    calls: list[str] = []

    def recorded(name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            target = str(args[1] if name == "rename" else args[0])
            calls.append(f"{name} {Path(target).suffix}" if name != "fsync" else name)
            return call(*args, **kwargs)

        return wrapper

    monkeypatch.setattr(os, "fsync", recorded("fsync", os.fsync))
    monkeypatch.setattr(Path, "replace", recorded("rename", Path.replace))
    monkeypatch.setattr(Path, "unlink", recorded("unlink", Path.unlink))
    save_checkpoint(tmp_path, make(3))
    named = calls.index("rename .safetensors")
    # File, then name, then folder; the checksum is complete before the checkpoint that it belongs to appears.
    assert calls[named - 1] == calls[named + 1] == "fsync"
    assert calls.index("rename .sha256") < named
    deleted = [number for number, call in enumerate(calls) if call.startswith("unlink") and number > named]
    assert deleted
    assert not (tmp_path / "step-00000001.safetensors").exists()


@pytest.mark.parametrize("kind", ["adamw", "sgd"])
def test_an_optimiser_goes_on_as_if_nothing_had_been(kind: str) -> None:
    def network() -> tuple[nn.Module, Optimizer]:
        torch.manual_seed(0)
        model = nn.Conv2d(3, 8, 3).to(memory_format=torch.channels_last)
        groups = [{"params": [model.weight], "lr": 0.1}, {"params": [model.bias], "lr": 0.05}]
        return model, SGD(groups, momentum=0.9, fused=True) if kind == "sgd" else AdamW(groups, fused=True)

    def advance(model: nn.Module, optimiser: Optimizer, steps: range) -> None:
        for step in steps:
            optimiser.zero_grad()
            images = torch.randn(2, 3, 6, 6, generator=torch.Generator().manual_seed(step))
            model(images).square().mean().backward()
            optimiser.step()

    unbroken, optimiser = network()
    advance(unbroken, optimiser, range(6))
    first, optimiser = network()
    advance(first, optimiser, range(3))
    saved = {name: tensor.clone().contiguous() for name, tensor in optimiser_tensors(optimiser).items()}
    second, fresh = network()
    second.load_state_dict(first.state_dict())
    load_optimiser(fresh, saved)
    assert [group["lr"] for group in fresh.param_groups] == [0.1, 0.05]
    advance(second, fresh, range(3, 6))
    for a, b in zip(unbroken.parameters(), second.parameters(), strict=True):
        assert torch.equal(a, b)
    # Memory lies as it lay, so that no later sum runs in another order.
    for state in fresh.state.values():
        for tensor in state.values():
            if tensor.ndim == 4:
                assert tensor.is_contiguous(memory_format=torch.channels_last)
