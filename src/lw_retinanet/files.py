"""Writing files so that a crash leaves either the old content or the new content, and checks of paths."""

import errno
import hashlib
import os
import re
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from lw_retinanet.errors import DiskFullError, InputError, LwRetinaNetError, OutputError, printable, shown


@contextmanager
def replacing(path: Path, *, durable: bool = True, size: int | None = None) -> Iterator[Path]:
    """Yield a temporary path in the same folder. On success the file there is renamed to ``path``; on failure it is removed.

    The temporary name keeps the suffix, since many writers choose the format by it. Missing folders are created.

    Args:
        path: The file to write.
        durable: Flush the file to the disk, so that it survives a power cut. This is too slow for many small files.
        size: Bytes of the file if they are known beforehand; whether there is room for them is then checked first.

    Raises:
        DiskFullError: If there is no room for the file.
        OutputError: If the file cannot be written for another reason.
    """
    written = 0
    if size is not None:
        require_room(path, size)
    temporary = path.with_name(f".{path.stem[:200]}.{os.getpid()}.part{path.suffix}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield temporary
            if durable:
                with temporary.open("rb+") as file:
                    os.fsync(file.fileno())
            temporary.chmod(0o666 & ~_umask())  # some writers make files that others cannot read
            temporary.replace(path)
            if durable:
                _sync_folder(path.parent)
        finally:
            with suppress(OSError):
                written = temporary.stat().st_size
            temporary.unlink(missing_ok=True)
    except OSError as error:
        needed = f"{size:,}" if size is not None else f"more than {written:,}" if written else "more"
        raise not_written(path, error, needed=needed) from error


def _umask() -> int:
    try:
        return int(re.search(r"Umask:\s*(\d+)", Path("/proc/self/status").read_text())[1], 8)  # type: ignore[index]
    except (OSError, TypeError):
        mask = os.umask(0o077)
        os.umask(mask)
        return mask


_NO_ROOM = {errno.ENOSPC, errno.EFBIG, getattr(errno, "EDQUOT", errno.ENOSPC)}


def not_written(path: Path, error: OSError, *, needed: str = "more") -> LwRetinaNetError:
    """What to raise for a file that could not be written: a `DiskFullError` that says how many bytes are needed, or an `OutputError`."""
    reason = error.strerror or str(error)
    if error.errno in _NO_ROOM:
        return DiskFullError(
            f"{path}: cannot be written ({reason}): it needs {needed} bytes, and {free_bytes(path):,} are free there; "
            "make room on the disk, or choose another folder"
        )
    return OutputError(f"{path}: cannot be written ({reason}); check the folder and the free space")


def free_bytes(path: Path) -> int:
    """Bytes that are free on the disk where a path is, or would be."""
    return shutil.disk_usage(next(parent for parent in (path, *path.absolute().parents) if parent.exists())).free


def require_room(path: Path, needed: int, what: str = "it") -> None:
    """Check before the work that a file of ``needed`` bytes can be written.

    Raises:
        DiskFullError: If it cannot.
    """
    if needed > (free := free_bytes(path)):
        raise DiskFullError(
            f"{path}: {what} needs {needed:,} bytes, and {free:,} are free there; make room on the disk, or choose another folder"
        )


def write_bytes(path: Path, content: bytes, *, durable: bool = True) -> None:
    """Write a small file completely or not at all; see :func:`replacing`."""
    with replacing(path, durable=durable) as temporary:
        temporary.write_bytes(content)


def write_text(path: Path, content: str) -> None:
    """Write a small UTF-8 file completely or not at all; see :func:`replacing`."""
    write_bytes(path, content.encode())


def output_folder(path: Path) -> Path:
    """Return the path if it is a folder or can become one. Checking this before long work saves the work.

    Raises:
        OutputError: If nothing can be written there.
    """
    place = next((parent for parent in (path, *path.absolute().parents) if parent.exists() or parent.is_symlink()), path)
    if not place.is_dir():
        raise OutputError(f"{place} is a file, so nothing can be written to a folder {path}; choose another output folder")
    if not os.access(place, os.W_OK | os.X_OK):
        raise OutputError(f"{place} is not writable; choose another output folder")
    return path


def existing(path: Path, what: str) -> Path:
    """Return the path of a file or folder; ``what`` names it in the message if it does not exist.

    Raises:
        InputError: If there is nothing at this path.
    """
    if not os.path.exists(path):  # noqa: PTH110 - Path.exists() raises for a name that no file can have
        raise InputError(f"{what} {shown(str(path), most=300)} does not exist; check the path")
    return path


def no_file(path: Path) -> str:
    """What is wrong with a path at which there is no ordinary file."""
    return "is no ordinary file" if path.exists() or path.is_symlink() else "does not exist"


def read_limited(path: Path, most: int) -> bytes:
    """The content of an ordinary file of at most ``most`` bytes; a pipe or a device would never end.

    Raises:
        InputError: If it is no such file.
        OSError: If it cannot be read.
    """
    if not stat.S_ISREG(path.stat().st_mode):
        raise InputError(f"{printable(path)}: it is no ordinary file; name one")
    with path.open("rb") as stream:
        content = stream.read(most + 1)
    if len(content) > most:
        raise InputError(f"{printable(path)}: it is larger than {most / 2**20:g} MiB, the most that is read; name another file")
    return content


def leftovers(folder: Path) -> list[Path]:
    """Temporary files of :func:`replacing` whose process was killed. Only for folders that no other process writes to."""
    return sorted(folder.glob(".*.part*"))


def _sync_folder(folder: Path) -> None:
    # A rename survives a power cut only when the folder is flushed to the disk, too.
    if os.name == "posix":
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def sha256(path: Path) -> str:
    """Hexadecimal SHA-256 digest of a file's content."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
