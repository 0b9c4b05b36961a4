"""Writing files so that a crash leaves the old content or the new one, never half of either."""

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lw_retinanet.errors import InputError, OutputError


@contextmanager
def replacing(path: Path, *, durable: bool = True) -> Iterator[Path]:
    """Give a temporary path in the same folder to write to; on success it becomes ``path``, on failure it is removed.

    The temporary name keeps the suffix, since many writers choose the format by it. Missing folders are made.

    Args:
        path: the file to write.
        durable: make sure that it survives a power cut; not worth its time for one of many small files.

    Raises:
        OutputError: if the place cannot be written.
    """
    temporary = path.with_name(f".{path.stem[:200]}.{os.getpid()}.part{path.suffix}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield temporary
            if durable:
                with temporary.open("rb+") as file:
                    os.fsync(file.fileno())
            temporary.replace(path)
            if durable:
                _sync_folder(path.parent)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise OutputError(f"{path}: cannot be written ({error.strerror or error}); check the folder and the free space") from error


def write_bytes(path: Path, content: bytes, *, durable: bool = True) -> None:
    """Write a whole small file, all or nothing; arguments and errors as :func:`replacing`."""
    with replacing(path, durable=durable) as temporary:
        temporary.write_bytes(content)


def write_text(path: Path, content: str) -> None:
    """Write a whole small UTF-8 file, all or nothing; errors as :func:`replacing`."""
    write_bytes(path, content.encode())


def output_folder(path: Path) -> Path:
    """The path, if it is a folder or can become one: better to know before hours of work than after them.

    Raises:
        OutputError: else.
    """
    place = next((parent for parent in (path, *path.absolute().parents) if parent.exists() or parent.is_symlink()), path)
    if not place.is_dir():
        raise OutputError(f"{place} is a file, so nothing can be written to a folder {path}; choose another output folder")
    if not os.access(place, os.W_OK | os.X_OK):
        raise OutputError(f"{place} may not be written to; choose another output folder")
    return path


def existing(path: Path, what: str) -> Path:
    """The path, if something is there.

    Args:
        path: A file or folder to read.
        what: What it should be, for the message.

    Raises:
        InputError: if nothing is there.
    """
    if not path.exists():
        raise InputError(f"{what} {path} does not exist; check the path")
    return path


def leftovers(folder: Path) -> list[Path]:
    """What :func:`replacing` left in a folder when its process was killed. Only for folders that no other process writes to."""
    return sorted(folder.glob(".*.part*"))


def _sync_folder(folder: Path) -> None:
    # A rename survives a power cut only once its folder is on the disk.
    if os.name == "posix":
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def sha256(path: Path) -> str:
    """Hexadecimal digest of a file's content."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
