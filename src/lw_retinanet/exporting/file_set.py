"""The files that make up one export, which appear together or not at all."""

import contextlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lw_retinanet.files import replacing


def files_of(path: Path) -> list[Path]:
    """The file at ``path`` and, of OpenVINO's XML, the weights beside it."""
    return [path, path.with_suffix(".bin")] if path.suffix == ".xml" else [path]


@contextmanager
def written(path: Path, *companions: Path) -> Iterator[Path]:
    """A temporary file that becomes ``path``, with its weights if it is OpenVINO's; both or none, and no new folders or companions without
    them."""
    made = [parent for parent in path.absolute().parents if not parent.exists()]
    try:
        with replacing_pair(path) if path.suffix == ".xml" else replacing(path) as temporary:
            yield temporary
    except BaseException:
        for companion in companions:
            companion.unlink(missing_ok=True)
        for folder in made:  # the innermost first; what is not empty stays
            with contextlib.suppress(OSError):
                folder.rmdir()
        raise


@contextmanager
def replacing_pair(path: Path) -> Iterator[Path]:
    """:func:`~lw_retinanet.files.replacing` for an XML and the weights beside it: an XML with other weights would be no file at all."""
    weights = path.with_suffix(".bin")
    before = weights.with_name(f".{weights.name}.before")
    is_moved = False
    try:
        with replacing(path) as temporary:
            new = temporary.with_suffix(".bin")
            try:
                yield temporary
                for file in (temporary, new):
                    with file.open("rb+") as stream:
                        os.fsync(stream.fileno())  # so that nothing slow stands between the two renames
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
