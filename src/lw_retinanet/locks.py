"""Lock files, which keep two processes from working in one place."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from lw_retinanet.errors import InUseError
from lw_retinanet.files import not_written


@contextmanager
def lock_file(file: Path, *, where: str, waits: bool = False) -> Iterator[None]:
    """Hold a lock file until the end of the context. Its folder is created. The system frees the lock of a process that dies.

    Args:
        file: The lock file.
        where: What it guards, for the message.
        waits: Wait for another process that holds it.

    Raises:
        InUseError: If another process holds it.
        DiskFullError: If there is no room for it.
        OutputError: If it cannot be written or locked.
    """
    lock = FileLock(file, timeout=-1 if waits else 0)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except Timeout:
        raise InUseError(f"{where} is in use by another process; wait for it, or choose another one") from None
    except OSError as error:
        raise not_written(file, error) from None
    try:
        yield
    finally:
        lock.release()
