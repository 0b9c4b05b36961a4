"""The files of one export, which appear together or not at all."""

import contextlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lw_retinanet.files import replacing


@contextmanager
def replacing_all(path: Path, *, weights_suffix: str | None = None, companions: tuple[Path, ...] = ()) -> Iterator[Path]:
    """Give a temporary path to write to, which becomes ``path`` on success.

    Args:
        path: The file to write.
        weights_suffix: Suffix of a second file beside it, which appears together with it.
        companions: Files that the caller writes meanwhile; removed on failure, together with folders that this made.
    """
    made = [parent for parent in path.absolute().parents if not parent.exists()]
    try:
        with replacing_pair(path, path.with_suffix(weights_suffix)) if weights_suffix else replacing(path) as temporary:
            yield temporary
    except BaseException:
        for companion in companions:
            companion.unlink(missing_ok=True)
        for folder in made:  # the innermost first; folders with other files stay
            with contextlib.suppress(OSError):
                folder.rmdir()
        raise


@contextmanager
def replacing_pair(path: Path, weights: Path) -> Iterator[Path]:
    """:func:`~lw_retinanet.files.replacing` for a file and the weights beside it, since neither can be read with another one's weights."""
    before = weights.with_name(f".{weights.name}.before")
    is_moved = False
    try:
        with replacing(path) as temporary:
            new = temporary.with_suffix(weights.suffix)
            try:
                yield temporary
                for file in (temporary, new):
                    with file.open("rb+") as stream:
                        os.fsync(stream.fileno())  # so that nothing slow comes between the two renames
                if weights.exists():
                    weights.replace(before)
                is_moved = True
                new.replace(weights)
            finally:
                new.unlink(missing_ok=True)
    except BaseException:
        if before.exists():
            before.replace(weights)
        elif is_moved:
            weights.unlink(missing_ok=True)
        raise
    before.unlink(missing_ok=True)
