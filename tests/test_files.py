import os
from pathlib import Path

import pytest

from lw_retinanet.files import replacing, write_bytes, write_text


def test_failure_leaves_the_old_content_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "metrics.json"
    write_text(path, "old")

    def interrupted() -> None:
        with replacing(path) as temporary:
            temporary.write_text("half of the n")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert [child.name for child in tmp_path.iterdir()] == ["metrics.json"]
    assert path.read_text() == "old"


def test_readers_see_the_old_content_until_all_of_the_new_is_written(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "er" / "model.safetensors"
    write_bytes(path, b"old")
    with replacing(path) as temporary:
        temporary.write_bytes(b"new")
        assert path.read_bytes() == b"old"
        # Some writers choose the format by the suffix; a rename to another folder could cross to another disk.
        assert temporary.suffix == path.suffix
        assert temporary.parent == path.parent
    assert path.read_bytes() == b"new"


def test_content_is_on_the_disk_before_the_name_and_the_name_before_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    fsync, replace = os.fsync, Path.replace

    def recorded_fsync(descriptor: int) -> None:
        calls.append("fsync folder" if os.path.isdir(f"/proc/self/fd/{descriptor}") else "fsync file")  # noqa: PTH112
        fsync(descriptor)

    def recorded_replace(self: Path, target: Path) -> Path:
        calls.append("rename")
        return replace(self, target)

    monkeypatch.setattr(os, "fsync", recorded_fsync)
    monkeypatch.setattr(Path, "replace", recorded_replace)
    write_text(tmp_path / "a.txt", "ä")
    if Path("/proc/self/fd").is_dir():
        assert calls == ["fsync file", "rename", "fsync folder"]
    assert (tmp_path / "a.txt").read_bytes() == "ä".encode()
