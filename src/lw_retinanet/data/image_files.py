"""Finding image files: those of a folder, those that a user means by files, folders and patterns, and those of an annotation file."""

import glob
import logging
import os
import posixpath
import unicodedata
from collections.abc import Collection, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path, PureWindowsPath
from urllib.parse import unquote

from lw_retinanet.data.problems import Problems
from lw_retinanet.errors import InputError, printable

# The suffix only selects files of a folder or a pattern; what a file is follows from its content.
SUFFIXES = frozenset({".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".png", ".webp", ".bmp", ".dib", ".gif", ".tif", ".tiff"})
log = logging.getLogger(__name__)
_NUM_PROBES = 5  # file names by which the folder of the images is found
_MOST_PARTS = 16  # of a path that may be dropped
# Folders that file servers, archives and desktops leave beside the images, with thumbnails or copies of them.
_COPIES = frozenset({"@eadir", "__macosx", "thumbs", "#recycle", "$recycle.bin"})


def is_file(path: Path) -> bool:
    """Whether a regular file is there; False for a name that no file can have, such as one of 5,000 characters."""
    return os.path.isfile(path)  # noqa: PTH113 - Path.is_file() raises for such names


def is_hidden(name: str) -> bool:
    """Whether a file or folder is hidden, or a folder of thumbnails or copies. Nothing in a data set has such a name."""
    return name.startswith(".") or name.lower() in _COPIES


def files_of(folder: Path, *suffixes: str) -> list[Path]:
    """The files directly in a folder that have one of the suffixes, in upper or lower case; sorted, hidden ones left out."""
    if not os.path.isdir(folder):  # noqa: PTH112 - Path.is_dir() raises for over-long names
        return []
    return sorted(path for path in folder.iterdir() if path.suffix.lower() in suffixes and not is_hidden(path.name))


def find_images(sources: Sequence[str | Path]) -> list[Path]:
    """The image files that files, folders and patterns name, each once, in the order of the sources.

    A file is taken as it is. A folder gives the files with a usual image suffix in it and in its sub-folders, sorted, hidden ones left out.
    A pattern (``*``, ``?``, ``[...]``, ``**``) gives the matching files with such a suffix or, where there are none, all matching files.

    Raises:
        InputError: for a source that does not exist or that yields no image.
    """
    found: dict[str, Path] = {}
    for source in sources:
        for path in _images_of(source):
            found.setdefault(os.path.realpath(path), path)  # not resolve(), which raises for a loop of links
    return list(found.values())


def _images_of(source: str | Path) -> list[Path]:
    path, shown = Path(source).expanduser(), printable(source)
    try:
        if path.is_dir():
            images = sorted(walk_images(path))
            if not images:
                raise InputError(f"{shown}: no images in this folder (looked for {', '.join(sorted(SUFFIXES))}); name another one")
            return images
        if os.path.lexists(path):  # also a link to nowhere or to itself: the decoder says what is wrong with it
            return [path]
        is_pattern = any(character in str(path) for character in "*?[")
        # Path.glob takes no absolute pattern.
        matches = sorted(map(Path, glob.glob(str(path), recursive=True))) if is_pattern else []  # noqa: PTH207
        asked = frozenset(path.parts)
        matches = [match for match in matches if not any(is_hidden(part) and part not in asked for part in match.parts)]
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
    """Files with a usual image suffix below ``folder``, see `walk_files`."""
    return walk_files(folder, SUFFIXES)


def walk_files(folder: Path, suffixes: Collection[str]) -> Iterator[Path]:
    """Files with one of the suffixes below ``folder``; hidden ones and folders of thumbnails (see `is_hidden`) are left out.

    Linked folders are followed, each real folder once, so that a circle of links ends. Links to a folder that is not there are logged.
    """
    seen: set[str] = set()
    lost: list[str] = []
    for parent, folders, files in os.walk(folder, followlinks=True):
        real = os.path.realpath(parent)
        folders[:] = [] if real in seen else sorted(name for name in folders if not is_hidden(name))
        for name in () if real in seen else files:
            path = Path(parent, name)
            if is_hidden(name):
                continue
            if path.suffix.lower() in suffixes:
                yield path
            elif not path.suffix and not os.path.exists(path):  # noqa: PTH110 - see is_file
                lost.append(printable(path))
        seen.add(real)
    if lost:
        more = f" and {len(lost) - 1} more links" if len(lost) > 1 else ""
        log.warning("%s: this link%s leads nowhere, and nothing behind it is used; restore what it leads to", lost[0], more)


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


def place_images(names: Sequence[str], candidates: Iterable[Path], problems: Problems) -> tuple[Path, list[str]]:
    r"""Find the folder of the images, and their names relative to it, with ``/`` between the parts.

    Names are tried as they are written, with backslashes as separators, in other spellings, as absolute paths, and without their first
    parts: many data sets keep the paths of the machine on which they were made. Of several folders the one that holds most of a few names
    is taken.

    Args:
        names: The file names as the annotations give them.
        candidates: Folders in which they may lie, the likeliest first.
        problems: Gets names that leave the folder, and those that were found without their first parts.
    """
    folders = list(dict.fromkeys(candidates))
    plain = [name.replace("\\", "/") for name in names] if any("\\" in name for name in names) else list(names)
    root, hits = _best_root(plain, folders)
    if not hits and plain != list(names) and _best_root(names, folders)[1]:  # on Linux a backslash may be part of a name
        plain, (root, hits) = list(names), _best_root(names, folders)
    for respelled in _spellings(plain) if not hits else ():
        other_root, hits = _best_root(respelled, folders)
        if hits and len(set(respelled)) == len(set(plain)):
            problems.add_many("respelled_image", len(plain), plain)
            root, plain = other_root, respelled
            break
    if not hits and plain and all(name.startswith("/") and Path(name).suffix.lower() in SUFFIXES and is_file(Path(name)) for name in plain):
        above = os.path.commonpath([posixpath.dirname(name) for name in plain])
        return Path(above), [posixpath.relpath(name, above) for name in plain]
    most = max((name.count("/") for name in plain), default=0) if not hits else 0
    for drop in range(1, min(most, _MOST_PARTS) + 1):
        short = ["/".join(name.split("/")[min(drop, name.count("/")) :]) for name in plain]
        short_root, hits = _best_root(short, folders)
        if hits and len(set(short)) == len(set(plain)):
            problems.add_many("moved_image", len(plain), plain)
            root, plain = short_root, short
            break
    unsafe = [name for name in plain if not is_safe_name(name)]
    problems.add_many("unsafe_path", len(unsafe), map(repr, unsafe))
    return root, plain


def _spellings(names: Sequence[str]) -> Iterator[list[str]]:
    """The names with accents in one character, as archives of macOS do not have them, or in two, and without the % of web addresses."""
    for spell in (partial(unicodedata.normalize, "NFC"), partial(unicodedata.normalize, "NFD"), unquote):
        respelled = [spell(name) for name in names]
        if respelled != list(names):
            yield respelled


def _best_root(names: Sequence[str], folders: Sequence[Path]) -> tuple[Path, int]:
    """The folder that holds most of a few names, and how many of them; the first one that exists where none holds any."""
    # The names are spread over the file, so that a missing first image does not decide.
    step = max(1, len(names) // _NUM_PROBES)
    probes = [name for name in names[::step][:_NUM_PROBES] if is_safe_name(name)]
    best, best_hits = None, 0
    for folder in folders:
        hits = sum(is_file(folder / name) for name in probes)
        if hits > best_hits:
            best, best_hits = folder, hits
            if hits == len(probes):
                break
    return best or next((folder for folder in folders if folder.is_dir()), folders[0]), best_hits


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
