"""Finding image files: those of a folder, those that a user means by files, folders and patterns, and those of an annotation file."""

import glob
import os
import posixpath
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path, PureWindowsPath

from lw_retinanet.data.images import printable
from lw_retinanet.errors import InputError

# The suffix only selects files of a folder or a pattern; what a file is follows from its content.
SUFFIXES = frozenset({".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".png", ".webp", ".bmp", ".dib", ".gif", ".tif", ".tiff"})
_NUM_PROBES = 5  # file names by which the folder of the images is found


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


def is_safe_name(name: str) -> bool:
    """Whether a file name stays inside the folder that it is relative to: it is not absolute, has no ``..`` out of it, and is no URL.

    Symbolic links may lead out, since they are a usual way to place a large image folder.
    """
    if not name or "\0" in name:
        return False
    if name[0] not in "/\\" and ":" not in name and ".." not in name:
        return True
    if "://" in name or name[0] in "/\\" or PureWindowsPath(name).drive:
        return False
    return posixpath.normpath(name.replace("\\", "/")).split("/")[0] != ".."


def find_root(file_names: Sequence[str], candidates: Iterable[Path]) -> Path:
    """The candidate folder that holds most of the first few file names, the earliest where several tie.

    Where none holds any, it is the first candidate that exists, so that missing images can be reported by a full path.
    """
    folders = list(dict.fromkeys(candidates))
    # The names are spread over the file, so that a missing first image does not decide.
    step = max(1, len(file_names) // _NUM_PROBES)
    probes = [name for name in file_names[::step][:_NUM_PROBES] if is_safe_name(name)]
    best, best_hits = None, 0
    for folder in folders:
        hits = sum((folder / name).is_file() for name in probes)
        if hits > best_hits:
            best, best_hits = folder, hits
            if hits == len(probes):
                break
    if best is not None:
        return best
    return next((folder for folder in folders if folder.is_dir()), folders[0])


def root_candidates(path: Path) -> list[Path]:
    """Folders in which the images of an annotation file may lie, the likeliest first."""
    folder = path.resolve().parent
    split = path.stem.removeprefix("instances_")  # COCO's own: annotations/instances_val2017.json and val2017/
    above = folder.parent
    return [
        folder / "images",
        folder,
        folder / split,
        folder / "images" / split,
        above / "images",
        above / split,
        above / "images" / split,
        above,
    ]
