"""The data file of a YOLO data set (data.yaml, or darknet's obj.data), and the images and label files that it means."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import yaml

from lw_retinanet.data.formats.annotation_format import read_text
from lw_retinanet.data.image_files import walk_images
from lw_retinanet.errors import DataError

_SPLIT_KEYS = ("train", "val", "valid", "validation", "test")
_NUM_PROBES = 5


@dataclass(frozen=True, kw_only=True)
class YoloFile:
    """The content of a data.yaml or an obj.data.

    Args:
        path: The file itself.
        folder: The folder that its entries are relative to.
        names: Class names by YOLO's class number.
        splits: The folders or lists of images of each split, as written.
    """

    path: Path
    folder: Path
    names: dict[int, str]
    splits: dict[str, tuple[str, ...]]


class ImageAndLabel(NamedTuple):
    """An image and its label file; without one it is an image without objects."""

    image: Path
    label: Path | None


def read_yolo_file(path: Path) -> YoloFile:
    """Read data.yaml (YAML with ``names``) or darknet's obj.data (lines ``key = value``).

    Raises:
        DataError: if it is neither; the message has the line where it is known.
    """
    text = read_text(path)
    pairs = _darknet_pairs(text)
    if pairs is not None:
        return _from_darknet(path, pairs)
    try:
        content = yaml.safe_load(text)
    except yaml.MarkedYAMLError as error:
        line = f" line {error.problem_mark.line + 1}" if error.problem_mark is not None else ""
        raise DataError(f"{path}{line}: malformed YAML: {error.problem}; repair the file") from error
    except yaml.YAMLError as error:
        raise DataError(f"{path}: malformed YAML: {str(error).splitlines()[0]}; repair the file") from error
    if not isinstance(content, dict) or "names" not in content:
        raise DataError(f"{path}: no 'names'; a YOLO data file lists its classes under 'names' and its images under 'train' and 'val'")
    names = _names(path, content["names"])
    num_classes = content.get("nc")
    if isinstance(num_classes, int) and num_classes != len(names):
        raise DataError(f"{path}: nc is {num_classes}, but 'names' has {len(names)} classes; correct one of them")
    splits = {key: _entries(path, key, content[key]) for key in _SPLIT_KEYS if content.get(key)}
    base = path.parent / str(content.get("path") or "")
    return YoloFile(path=path, folder=base if base.is_dir() else path.parent, names=names, splits=splits)


def _darknet_pairs(text: str) -> dict[str, str] | None:
    lines = [line.strip() for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    if not lines or not all("=" in line and ":" not in line.split("=", 1)[0] for line in lines):
        return None
    return {key.strip().lower(): value.strip() for key, value in (line.split("=", 1) for line in lines)}


def _from_darknet(path: Path, pairs: dict[str, str]) -> YoloFile:
    if "names" not in pairs:
        raise DataError(f"{path}: no 'names = FILE'; darknet's data file names the file of class names")
    names_file = locate(pairs["names"], [path.parent])
    if names_file is None:
        raise DataError(f"{path}: names = {pairs['names']}: no such file; correct the path")
    lines = [line.strip() for line in read_text(names_file).splitlines()]
    while lines and not lines[-1]:
        lines.pop()
    splits: dict[str, tuple[str, ...]] = {key: (pairs[key],) for key in _SPLIT_KEYS if pairs.get(key)}
    return YoloFile(path=path, folder=path.parent, names=_names(names_file, lines), splits=splits)


def _names(path: Path, value: Any) -> dict[int, str]:
    pairs = list(value.items()) if isinstance(value, dict) else list(enumerate(value)) if isinstance(value, list) else []
    names: dict[int, str] = {}
    for key, name in pairs:
        if not str(key).isdecimal() or not isinstance(name, str | int | float) or not str(name).strip():
            raise DataError(f"{path}: class {key!r}: {name!r}; 'names' is a list of names or numbers with names")
        names[int(key)] = str(name)
    if not names:
        raise DataError(f"{path}: 'names' is empty; list the classes there")
    return dict(sorted(names.items()))


def _entries(path: Path, key: str, value: Any) -> tuple[str, ...]:
    entries = value if isinstance(value, list) else [value]
    if not all(isinstance(entry, str) for entry in entries):
        raise DataError(f"{path}: {key}: {value!r}; write a folder, a text file of image paths, or a list of those")
    return tuple(entries)


def locate(entry: str, folders: Sequence[Path]) -> Path | None:
    """The existing file or folder that a path of a data file means, None if there is none.

    Many exported data sets hold paths of another machine (``data/train.txt``, ``../train/images``), so leading components are dropped
    until something exists.
    """
    path = PurePosixPath(entry.replace("\\", "/"))
    if path.is_absolute():
        return Path(path) if Path(path).exists() else None
    for drop in range(len(path.parts)):
        for folder in folders:
            candidate = folder.joinpath(*path.parts[drop:])
            if candidate.exists():
                return candidate
    return None


def images_and_labels(data: YoloFile, split: str) -> list[ImageAndLabel]:
    """Every image of a split, whether it exists or not, with its label file if that exists.

    Raises:
        DataError: if an entry of the split is neither a folder nor a list.
    """
    pairs: dict[Path, ImageAndLabel] = {}
    for entry in data.splits[split]:
        place = locate(entry, [data.folder, data.path.parent])
        if place is None:
            raise DataError(f"{data.path}: {split}: {entry}: no such folder or list under {data.folder}; correct the path")
        if place.is_dir():
            found = [ImageAndLabel(image, _label_of(image)) for image in sorted(walk_images(place)) if image.is_file()]
        else:
            found = _from_list(place, data.folder)
        pairs |= {pair.image: pair for pair in found}
    return list(pairs.values())


def _label_candidates(image: Path) -> list[Path]:
    """Where the label file of an image may lie: in ``labels/`` in place of the last ``images/`` of the path, or beside the image."""
    parts = image.parts
    beside = image.with_suffix(".txt")
    for place in range(len(parts) - 2, -1, -1):
        if parts[place] == "images":
            return [Path(*parts[:place], "labels", *parts[place + 1 :]).with_suffix(".txt"), beside]
    return [beside]


def _label_of(image: Path) -> Path | None:
    return next((path for path in _label_candidates(image) if path.is_file()), None)


def _from_list(path: Path, folder: Path) -> list[ImageAndLabel]:
    entries = [Path(line.strip().replace("\\", "/")) for line in read_text(path).splitlines() if line.strip()]
    bases = list(dict.fromkeys([folder, path.parent]))
    relative = [entry for entry in entries if not entry.is_absolute()]
    image_place = _placement(
        relative, [*bases, *(base / "images" for base in bases), *(base.resolve().parent / "images" for base in bases)]
    )
    label_place = _placement([entry.with_suffix(".txt") for entry in relative], bases)
    pairs = []
    for entry in entries:
        image = entry if entry.is_absolute() else _placed(entry, image_place or (bases[0], 0))
        label = _label_of(image)
        if label is None and label_place is not None and not entry.is_absolute():
            beside = _placed(entry.with_suffix(".txt"), label_place)
            label = beside if beside.is_file() else None
        pairs.append(ImageAndLabel(image, label))
    return pairs


def _placement(entries: Sequence[Path], folders: Sequence[Path]) -> tuple[Path, int] | None:
    """The folder in which one of the first entries exists, and the number of leading components to drop for it."""
    for entry in entries[:_NUM_PROBES]:
        for drop in range(len(entry.parts)):
            for folder in folders:
                if folder.joinpath(*entry.parts[drop:]).is_file():
                    return folder, drop
    return None


def _placed(entry: Path, place: tuple[Path, int]) -> Path:
    folder, drop = place
    return folder.joinpath(*entry.parts[min(drop, len(entry.parts) - 1) :])
