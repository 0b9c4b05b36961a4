"""PASCAL VOC XML -> `Records`: one file an image, read with defusedxml only."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from defusedxml import DefusedXmlException
from defusedxml.ElementTree import ParseError, fromstring

from lw_retinanet.data.builder import MAX_COORDINATE, build_records
from lw_retinanet.data.image_root import find_root, images_by_stem, is_safe_name
from lw_retinanet.data.image_sizes import header_sizes
from lw_retinanet.data.json_sections import read_text
from lw_retinanet.data.problems import Problems
from lw_retinanet.data.records import Category, Records
from lw_retinanet.errors import DataError

if TYPE_CHECKING:
    from xml.etree.ElementTree import Element

_SIDES = ("xmin", "ymin", "xmax", "ymax")


@dataclass
class _Picture:
    """What one XML file says."""

    file_name: str
    size_hw: tuple[int, int]
    names: list[str] = field(default_factory=list)
    boxes_xywh: list[list[float]] = field(default_factory=list)
    is_difficult: list[bool] = field(default_factory=list)


def read_voc(source: Path, *, split: str | None = None, one_based: bool = False, problems: Problems | None = None) -> Records:
    """Read VOC annotations. Classes are sorted by name and get the ids 1..K, images 1..I in the order of the list or of the file names.

    Args:
        source: a folder with ``Annotations/`` (and ``JPEGImages/``, ``ImageSets/Main/``), a folder of XML files, or one XML file.
        split: name of a list in ``ImageSets/Main``; all files if None. The classes are those of all files, whatever the split.
        one_based: subtract 1 from ``xmin`` and ``ymin``, for files that count pixels from 1. The width is ``xmax - xmin`` as written.
        problems: collects what is wrong, and the entries concerned are left out. Without it the first kind of error is raised.

    Raises:
        DataError: if there is no such annotation, or it has errors and ``problems`` is not given.
    """
    found = Problems(source) if problems is None else problems
    folder, files = annotation_files(source)
    image_folders = _image_folders(source, folder)
    images = {stem: name for place in reversed(image_folders) for stem, name in images_by_stem(place).items()}
    pictures = {file.stem: _read_file(file, image_folders, images, one_based, found) for file in files}
    names = sorted({name for picture in pictures.values() if picture is not None for name in picture.names})
    if split is not None:
        wanted = split_stems(source, split)
        lost = [stem for stem in wanted if stem not in pictures]
        found.add_many("broken_file", len(lost), (f"{folder / stem}.xml does not exist" for stem in lost))
        pictures = {stem: pictures[stem] for stem in wanted if stem in pictures}
    if problems is None:
        found.raise_errors()
    read = [picture for picture in pictures.values() if picture is not None]
    return _as_records(read, names, find_root([picture.file_name for picture in read], image_folders or [folder]))


def annotation_files(source: Path) -> tuple[Path, list[Path]]:
    """The folder of XML files that ``source`` means, and the files in it, sorted."""
    if source.is_file():
        return source.parent, [source]
    folder = source / "Annotations" if (source / "Annotations").is_dir() else source
    files = sorted(path for path in folder.glob("*.xml") if not path.name.startswith("."))
    if not files:
        raise DataError(f"{folder}: no XML files; pass the folder that holds Annotations/ or the XML files")
    return folder, files


def split_names(source: Path) -> tuple[str, ...]:
    """The lists of whole data sets in ``ImageSets/Main`` (VOC also keeps one a class there, which are left out)."""
    folder = source / "ImageSets" / "Main"
    return tuple(name for name in ("train", "val", "test", "trainval") if (folder / f"{name}.txt").is_file())


def split_stems(source: Path, split: str) -> list[str]:
    """The file names, without suffix, of one list in ``ImageSets/Main``."""
    text = read_text(source / "ImageSets" / "Main" / f"{split}.txt")
    return list(dict.fromkeys(line.split()[0] for line in text.splitlines() if line.strip()))


def _image_folders(source: Path, folder: Path) -> list[Path]:
    above = folder.resolve().parent
    candidates = [above / "JPEGImages", above / "images", folder, above] if folder != source else [folder, folder / "images"]
    if folder == source or source.is_file():
        candidates += [above / "JPEGImages", above / "images"]
    return [path for path in dict.fromkeys(candidates) if path.is_dir()]


def _read_file(path: Path, folders: Sequence[Path], images: Mapping[str, str], one_based: bool, problems: Problems) -> _Picture | None:
    try:
        root = fromstring(read_text(path), forbid_dtd=True)
    except ParseError as error:
        line, column = error.position
        problems.add("broken_file", f"{path} line {line}, column {column + 1}: {str(error).split(':')[0]}")
        return None
    except DefusedXmlException as error:
        problems.add("broken_file", f"{path}: forbidden XML ({type(error).__name__})")
        return None
    except (DataError, ValueError) as error:
        problems.add("broken_file", str(error) if isinstance(error, DataError) else f"{path}: {error}")
        return None
    if root.tag != "annotation":
        problems.add("broken_file", f"{path}: the outermost element is <{root.tag}>, not <annotation>")
        return None
    picture = _Picture(_file_name(root, path, folders, images, problems), _size_hw(root))
    for number, element in enumerate(root.findall("object"), start=1):
        _read_object(element, f"{path} object {number}", one_based, picture, problems)
    return picture


def _file_name(root: "Element", path: Path, folders: Sequence[Path], images: Mapping[str, str], problems: Problems) -> str:
    """The image of an XML file: as its <filename> says, or named like the XML file where that one exists and the other does not."""
    written = (root.findtext("filename") or "").strip()
    if written and is_safe_name(written) and any((folder / written).is_file() for folder in folders):
        return written
    if path.stem in images:
        return images[path.stem]
    if written and not is_safe_name(written):
        problems.add("unsafe_path", f"{path}: {written!r}")
    return written or f"{path.stem}.jpg"


def _size_hw(root: "Element") -> tuple[int, int]:
    try:
        height, width = (int(float(root.findtext(f"size/{side}") or 0)) for side in ("height", "width"))
    except (ValueError, OverflowError):
        return 0, 0
    return (height, width) if 0 < height < 2**31 and 0 < width < 2**31 else (0, 0)


def _read_object(element: "Element", where: str, one_based: bool, picture: _Picture, problems: Problems) -> None:
    name = (element.findtext("name") or "").strip()
    if not name:
        problems.add("malformed_annotation", f"{where}: no <name>")
        return
    texts = [(element.findtext(f"bndbox/{side}") or "").strip() for side in _SIDES]
    try:
        xmin, ymin, xmax, ymax = map(float, texts)
    except ValueError:
        problems.add("malformed_box", f"{where}: {', '.join(f'{side}={text!r}' for side, text in zip(_SIDES, texts, strict=True))}")
        return
    if not all(math.isfinite(value) and abs(value) <= MAX_COORDINATE for value in (xmin, ymin, xmax, ymax)):
        problems.add("non_finite_box", f"{where}: {', '.join(texts)}")
        return
    if one_based:
        xmin, ymin = xmin - 1, ymin - 1
    picture.names.append(name)
    picture.boxes_xywh.append([xmin, ymin, xmax - xmin, ymax - ymin])
    picture.is_difficult.append((element.findtext("difficult") or "").strip() in ("1", "true", "True"))


def _as_records(pictures: Sequence[_Picture], names: Sequence[str], root: Path) -> Records:
    sizes_hw = [picture.size_hw for picture in pictures]
    unknown = [row for row, size_hw in enumerate(sizes_hw) if size_hw == (0, 0) and is_safe_name(pictures[row].file_name)]
    for row, size in zip(unknown, header_sizes([root / pictures[row].file_name for row in unknown]), strict=True):
        if isinstance(size, tuple):
            sizes_hw[row] = size
    labels = {name: label for label, name in enumerate(names)}
    return build_records(
        root=root,
        file_names=[picture.file_name for picture in pictures],
        sizes_hw=sizes_hw,
        image_of_box=[row for row, picture in enumerate(pictures) for _ in picture.names],
        boxes_xywh=[box for picture in pictures for box in picture.boxes_xywh],
        labels=[labels[name] for picture in pictures for name in picture.names],
        is_difficult=[flag for picture in pictures for flag in picture.is_difficult],
        categories=[Category(id=label + 1, name=name) for label, name in enumerate(names)],
    )
