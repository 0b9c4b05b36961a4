"""The data file of a YOLO data set (data.yaml, or darknet's obj.data), and the images and label files that it means."""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from lw_retinanet.data.formats.annotation_format import WHOLE, read_text
from lw_retinanet.data.image_files import SUFFIXES, files_of, is_file, walk_images
from lw_retinanet.errors import DataError, quoted, shown
from lw_retinanet.yaml_file import parse_yaml

_SPLIT_KEYS = ("train", "val", "valid", "validation", "test")
_NUM_PROBES = 5
_MOST_CHARACTERS = 4096  # of a path
_MOST_DIGITS = 9  # of a class number
_NO_LABELS = frozenset({"classes", "notes", "readme", "train", "val", "test", "labels", "obj", "predefined_classes"})


@dataclass(frozen=True, kw_only=True)
class YoloFile:
    """The content of a data.yaml or an obj.data.

    Args:
        path: The file itself.
        folder: The folder that its entries are relative to.
        names: Class names by YOLO's class number.
        splits: The folders or lists of images of each split, as written.
        num_extra: How many numbers of keypoints follow each box (``kpt_shape``); None if there is no such entry.
    """

    path: Path
    folder: Path
    names: dict[int, str]
    splits: dict[str, tuple[str, ...]]
    num_extra: int | None = None


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
    if path.suffix.lower() == ".txt":
        return _from_class_list(path, text)
    pairs = _darknet_pairs(text)
    if pairs is not None:
        return _from_darknet(path, pairs)
    content = parse_yaml(text, where=str(path), as_text=True, error=DataError)
    if not isinstance(content, dict) or "names" not in content:
        raise DataError(f"{path}: no 'names'; a YOLO data file lists its classes under 'names' and its images under 'train' and 'val'")
    names = _names(path, content["names"])
    num_classes = content.get("nc")
    if num_classes is not None and num_classes != str(len(names)):
        raise DataError(f"{path}: nc is {shown(num_classes)}, but 'names' has {len(names)} classes; correct one of them")
    splits = {key: _entries(path, key, content[key]) for key in _SPLIT_KEYS if content.get(key) not in (None, "", [])}
    return YoloFile(
        path=path,
        folder=_base(path, content.get("path")),
        names=names,
        splits=splits,
        num_extra=_num_keypoint_values(content.get("kpt_shape")),
    )


def _num_keypoint_values(shape: Any) -> int | None:
    numbers = (
        [int(one) for one in shape if isinstance(one, str) and one.isdecimal() and len(one) < _MOST_DIGITS]
        if isinstance(shape, list)
        else []
    )
    return numbers[0] * numbers[1] if len(numbers) == 2 else None


def _base(path: Path, written: Any) -> Path:
    """The folder that ``path`` means: as written, or relative to the data file, as Ultralytics takes it; else the data file's own."""
    base = path.parent / written.replace("\\", "/") if isinstance(written, str) and len(written) < _MOST_CHARACTERS else path.parent
    return base if os.path.isdir(base) else path.parent  # noqa: PTH112 - Path.is_dir() raises for a name that no file can have


def _from_class_list(path: Path, text: str) -> YoloFile:
    """Label Studio's export: ``classes.txt`` beside ``images/`` and ``labels/``, maybe with a folder a split in them."""
    names = dict(enumerate(line.strip() for line in text.splitlines() if line.strip()))
    if not names:
        raise DataError(f"{path}: no classes; write the names there, one a line")
    images = path.parent / "images"
    splits: dict[str, tuple[str, ...]] = {split: (f"images/{split}",) for split in _SPLIT_KEYS if (images / split).is_dir()}
    return YoloFile(path=path, folder=path.parent, names=names, splits=splits or {WHOLE: ("images",)})


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
    return YoloFile(path=path, folder=path.parent, names=_names(names_file, [*lines]), splits=splits)


def _names(path: Path, value: Any) -> dict[int, str]:
    pairs = list(value.items()) if isinstance(value, dict) else list(enumerate(value)) if isinstance(value, list) else []
    names: dict[int, str] = {}
    for key, name in pairs:
        if not (isinstance(key, int) or (key.isdecimal() and len(key) < _MOST_DIGITS)) or not isinstance(name, str) or not name.strip():
            raise DataError(
                f"{path}: class {quoted(key)}: {quoted(name)}; 'names' is a list of names, or of numbers with names "
                "(a name such as null needs quotes)"
            )
        names[int(key)] = name
    if not names:
        raise DataError(f"{path}: 'names' is {'empty' if not value else quoted(value)}; list the classes there")
    return dict(sorted(names.items()))


def _entries(path: Path, key: str, value: Any) -> tuple[str, ...]:
    entries = value if isinstance(value, list) else [value]
    if not all(isinstance(entry, str) and 0 < len(entry) < _MOST_CHARACTERS and "\0" not in entry for entry in entries):
        raise DataError(f"{path}: {key}: {shown(value)}; write a folder, a text file of image paths, or a list of those")
    return tuple(map(str, entries))


def locate(entry: str, folders: Sequence[Path]) -> Path | None:
    """The existing file or folder that a path of a data file means, None if there is none.

    Many exported data sets hold paths of another machine (``data/train.txt``, ``../train/images``, ``/content/set/train``), so leading
    components are dropped until something exists.
    """
    path = PurePosixPath(entry.replace("\\", "/"))
    for drop in range(len(path.parts)):
        for folder in folders:
            candidate = folder.joinpath(*path.parts[drop:])
            if os.path.exists(candidate):  # noqa: PTH110 - Path.exists() raises for a name that no file can have
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
            raise DataError(
                f"{data.path}: {split}: {entry}: no such folder or list under {data.folder}; correct the path or remove the line"
            )
        if place.is_dir():
            found = [ImageAndLabel(image, _label_of(image)) for image in sorted(walk_images(place))]
        else:
            found = _from_list(place, data.folder)
        pairs |= {pair.image: pair for pair in found}
    return list(pairs.values())


def _label_candidates(image: Path) -> Iterator[Path]:
    """Where the label file of an image may lie: in ``labels/`` in place of one ``images/`` of its path, the last first; or beside it."""
    parts = image.parts
    for place in range(len(parts) - 2, -1, -1):
        if parts[place].lower() == "images":
            for name in ("labels", "Labels"):
                yield Path(*parts[:place], name, *parts[place + 1 :])
    yield image


def _label_of(image: Path) -> Path | None:
    endings = (".txt", ".TXT")
    return next((label for path in _label_candidates(image) for label in map(path.with_suffix, endings) if os.path.lexists(label)), None)


def unused_labels(pairs: Sequence[ImageAndLabel]) -> list[Path]:
    """The label files that have no image, in the folders ``labels/`` of those that have one."""
    used = {pair.label for pair in pairs if pair.label is not None}
    lost = []
    for folder in sorted({label.parent for label in used}):
        place = next((row for row, part in reversed(list(enumerate(folder.parts))) if part.lower() == "labels"), None)
        labels = [path for path in files_of(folder, ".txt") if path not in used and path.stem.lower() not in _NO_LABELS] if place else []
        if labels:
            images = Path(*folder.parts[:place], "images", *folder.parts[place + 1 :]) if place else folder
            stems = {path.stem for path in files_of(images, *SUFFIXES)}
            lost += [path for path in labels if path.stem not in stems]
    return lost


def _from_list(path: Path, folder: Path) -> list[ImageAndLabel]:
    lines = [line.strip().replace("\\", "/") for line in read_text(path).splitlines()]
    odd = next((number for number, line in enumerate(lines, 1) if line and not _is_image_name(line)), None)
    if odd is not None:
        raise DataError(f"{path} line {odd}: not the path of an image; a list has one a line")
    entries = [Path(line) for line in lines if line]
    bases = list(dict.fromkeys([folder, path.parent]))
    relative = [entry for entry in entries if not is_file(entry) or not entry.is_absolute()]
    image_place = _placement(
        relative, [*bases, *(base / "images" for base in bases), *(base.resolve().parent / "images" for base in bases)]
    )
    label_place = _placement([entry.with_suffix(".txt") for entry in relative], bases)
    pairs = []
    for entry in entries:
        is_there = entry.is_absolute() and (is_file(entry) or image_place is None)
        image = entry if is_there else _placed(entry, image_place or (bases[0], 0))
        label = _label_of(image)
        if label is None and label_place is not None and not is_there:
            beside = _placed(entry.with_suffix(".txt"), label_place)
            label = beside if is_file(beside) else None
        pairs.append(ImageAndLabel(image, label))
    return pairs


def _is_image_name(line: str) -> bool:
    return len(line) < _MOST_CHARACTERS and "\0" not in line and Path(line).suffix.lower() in SUFFIXES


def _placement(entries: Sequence[Path], folders: Sequence[Path]) -> tuple[Path, int] | None:
    """The folder in which one of the first entries exists, and the number of leading components to drop for it."""
    for entry in entries[:_NUM_PROBES]:
        for drop in range(len(entry.parts)):
            for folder in folders:
                if is_file(folder.joinpath(*entry.parts[drop:])):
                    return folder, drop
    return None


def _placed(entry: Path, place: tuple[Path, int]) -> Path:
    folder, drop = place
    return folder.joinpath(*entry.parts[min(drop, len(entry.parts) - 1) :])
