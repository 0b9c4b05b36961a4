"""Where the images of an annotation file lie, and whether a file name stays in there."""

import posixpath
from collections.abc import Iterable, Sequence
from pathlib import Path, PureWindowsPath

_NUM_PROBES = 5


def is_safe_name(name: str) -> bool:
    """Whether a relative file name stays inside the folder that it is relative to: not absolute, no ``..`` out of it, no URL.

    Symbolic links are not followed: they are the user's own doing, and a usual way to place a large image folder.
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

    Where none holds any, the first candidate that exists: the missing images are then reported by their full path.
    """
    folders = list(dict.fromkeys(candidates))
    # Spread over the file, so that one missing first image does not decide.
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
