"""Finding image files: those of a folder, and those that a user means by files, folders and patterns."""

import glob
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from lw_retinanet.data.images import printable
from lw_retinanet.errors import InputError

# The suffix only selects files of a folder or a pattern; what a file is follows from its content.
SUFFIXES = frozenset({".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".png", ".webp", ".bmp", ".dib", ".gif", ".tif", ".tiff"})


def find_images(sources: Sequence[str | Path]) -> list[Path]:
    """The image files that files, folders and patterns name, each once, in the order of the sources.

    A file is taken as it is. A folder gives the files with a usual image suffix in it and in its sub-folders, sorted, hidden ones left out.
    A pattern (``*``, ``?``, ``[...]``, ``**``) gives the matching files with such a suffix or, where there are none, all matching files.

    Raises:
        InputError: for a source that does not exist or that yields no image.
    """
    found: dict[Path, Path] = {}
    for source in sources:
        for path in _images_of(source):
            found.setdefault(path.resolve(), path)
    return list(found.values())


def _images_of(source: str | Path) -> list[Path]:
    path, shown = Path(source).expanduser(), printable(source)
    try:
        if path.is_dir():
            images = sorted(walk_images(path))
            if not images:
                raise InputError(f"{shown}: no images in this folder (looked for {', '.join(sorted(SUFFIXES))}); name another one")
            return images
        if path.exists():
            return [path]
        is_pattern = any(character in str(path) for character in "*?[")
        # Path.glob takes no absolute pattern.
        matches = sorted(map(Path, glob.glob(str(path), recursive=True))) if is_pattern else []  # noqa: PTH207
        files = [match for match in matches if match.is_file()]
    except (OSError, ValueError) as error:  # a name that is too long, a NUL character, a folder that may not be read
        reason = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise InputError(f"{shown}: cannot be read ({reason}); check the path and its permissions") from None
    if files:
        return [file for file in files if file.suffix.lower() in SUFFIXES] or files
    if "://" in str(source):
        raise InputError(f"{shown}: web addresses are not read; download the image and name the file")
    what = "no file matches this pattern" if is_pattern else "no such file or folder"
    raise InputError(f"{shown}: {what}; check the path")


def walk_images(folder: Path) -> Iterator[Path]:
    """Files with a usual image suffix below ``folder``, hidden files and folders left out.

    Linked folders are followed, each real folder once, so that a circle of links ends.
    """
    seen: set[str] = set()
    for parent, folders, files in os.walk(folder, followlinks=True):
        real = os.path.realpath(parent)
        folders[:] = [] if real in seen else sorted(name for name in folders if not name.startswith("."))
        if real not in seen:
            yield from (Path(parent, name) for name in files if not name.startswith(".") and Path(name).suffix.lower() in SUFFIXES)
        seen.add(real)
