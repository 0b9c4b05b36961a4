import errno
import os
import stat
from pathlib import Path
from types import SimpleNamespace

import pytest

from lw_retinanet.errors import DiskFullError
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


def test_a_file_that_does_not_fit_is_refused_before_it_is_begun(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=1000))
    with (
        pytest.raises(DiskFullError, match=r"x\.bin: it needs 1,001 bytes, and 1,000 are free there; make room"),
        replacing(tmp_path / "deep" / "x.bin", size=1001),
    ):
        pytest.fail("begun")
    assert not list(tmp_path.iterdir())
    with replacing(tmp_path / "x.bin", size=1000) as temporary:
        temporary.write_bytes(b"x")
    assert (tmp_path / "x.bin").read_bytes() == b"x"


def test_a_full_disk_is_told_with_bytes_and_keeps_the_old_content(tmp_path: Path) -> None:
    path = tmp_path / "x.bin"
    path.write_bytes(b"old")

    def filled() -> None:
        with replacing(path) as temporary:
            temporary.write_bytes(b"x" * 70)
            raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(DiskFullError, match=r"x\.bin: cannot be written \(No space .*\): it needs more than 70 bytes, and [\d,]+ are free"):
        filled()
    assert path.read_bytes() == b"old"
    assert [child.name for child in tmp_path.iterdir()] == ["x.bin"]


def test_files_are_written_by_the_umask_whatever_their_writer_does(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        with replacing(tmp_path / "model.bin") as temporary:
            temporary.write_bytes(b"x")
            temporary.chmod(0o600)  # as safetensors does
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "model.bin").stat().st_mode) == 0o640
