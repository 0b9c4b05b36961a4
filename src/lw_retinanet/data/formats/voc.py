"""PASCAL VOC XML, read with defusedxml only, since a plain XML parser can be made to fill the memory."""

import posixpath
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from xml.etree import ElementTree as ET

import numpy as np
from defusedxml import DefusedXmlException
from defusedxml.ElementTree import ParseError, fromstring
from numpy.typing import NDArray

from lw_retinanet.data.formats.annotation_format import (
    CORNERS,
    SPLIT_FOLDERS,
    WHOLE,
    AnnotationFormat,
    Files,
    Part,
    Parts,
    Sign,
    box_from_corners,
    read_text,
)
from lw_retinanet.data.formats.target_files import (
    require_plain_class_names,
    target_names,
    with_unique_stems,
    without_details,
)
from lw_retinanet.data.image_files import SUFFIXES, find_root, is_safe_name
from lw_retinanet.data.image_sizes import known_sizes
from lw_retinanet.data.problems import Problems
from lw_retinanet.data.records import Category, Records, build_records
from lw_retinanet.errors import DataError


@dataclass
class _Annotated:
    """What one XML file says about its image."""

    file_name: str
    size_hw: tuple[int, int]
    names: list[str] = field(default_factory=list)
    boxes_xywh: list[list[float]] = field(default_factory=list)
    is_difficult: list[bool] = field(default_factory=list)


class Voc(AnnotationFormat):
    """VOC: one XML file an image, in ``Annotations/`` beside ``JPEGImages/``, with the splits listed in ``ImageSets/Main/``.

    Classes are sorted by name and get the ids 1..K, those of all files whatever the split; images get 1..I in the order of the list or of
    the file names. Coordinates are taken as written. What is written has no crowd regions: they become difficult boxes.
    """

    name = "voc"
    layouts = "VOC's Annotations/ folder"

    def recognise_file(self, path: Path, head: str) -> Parts:
        """One XML file, for one image."""
        return {WHOLE: Part(format=self, path=path)} if head[0] == "<" else {}

    def recognise_folder(self, folder: Path, sign: Sign) -> Parts:
        """``Annotations/``, or XML files in the folder or in a folder a split."""
        if sign is Sign.STRUCTURE and (folder / "Annotations").is_dir():
            splits = _split_names(folder)
            return {split: Part(format=self, path=folder, split=split) for split in splits} or {WHOLE: Part(format=self, path=folder)}
        if sign is not Sign.OWN_FILES:
            return {}
        if next(folder.glob("*.xml"), None) is not None:
            return {WHOLE: Part(format=self, path=folder)}
        folders = {split: folder / split for split in SPLIT_FOLDERS}
        return {split: Part(format=self, path=path) for split, path in folders.items() if next(path.glob("*.xml"), None) is not None}

    def parse(self, path: Path, root: Path | None, split: str | None, problems: Problems) -> Records:
        """See `AnnotationFormat.read`; a split is a list in ``ImageSets/Main``."""
        folder, files = _annotation_files(path)
        image_folders = _image_folders(path, folder) if root is None else [root]
        images = {stem: name for place in reversed(image_folders) for stem, name in _images_by_stem(place).items()}
        annotated = {file.stem: _read_file(file, image_folders, images, problems) for file in files}
        names = sorted({name for one in annotated.values() if one is not None for name in one.names})
        if split is not None:
            wanted = _split_stems(path, split)
            lost = [stem for stem in wanted if stem not in annotated]
            problems.add_many("broken_file", len(lost), (f"{folder / stem}.xml does not exist" for stem in lost))
            annotated = {stem: annotated[stem] for stem in wanted if stem in annotated}
        found = [one for one in annotated.values() if one is not None]
        return _as_records(found, names, find_root([one.file_name for one in found], image_folders or [folder]))

    def kept(self, splits: Mapping[str, Records]) -> dict[str, Records]:
        """Boxes and names of the classes that have any; crowd regions are difficult boxes."""
        return without_details(splits, self.holds, has_difficult=True)

    def files(self, splits: Mapping[str, Records]) -> Files:
        """``Annotations/``, ``JPEGImages/`` and ``ImageSets/Main/``."""
        require_plain_class_names(splits, "VOC")
        files: Files = {}
        names = target_names(splits)
        stems: dict[str, str] = {}
        for split, records in splits.items():
            # VOC has no sub-folders; an image of several splits is one file there.
            flat = {name: name.replace("/", "__") for name in names[split]}
            fresh = with_unique_stems([flat[name] for name in names[split] if name not in stems], split, set(stems.values()))
            stems |= dict(zip([name for name in names[split] if name not in stems], fresh, strict=True))
            sizes_hw = known_sizes(records)
            in_split = [stems[name] for name in names[split]]
            for row, name in enumerate(in_split):
                files[f"JPEGImages/{name}"] = records.path(row)
                files[f"Annotations/{posixpath.splitext(name)[0]}.xml"] = partial(_xml_text, records, row, name, sizes_hw[row])
            lines = "".join(f"{posixpath.splitext(name)[0]}\n" for name in in_split)
            files[f"ImageSets/Main/{split}.txt"] = partial(iter, [lines.encode()])
        return files


def _annotation_files(source: Path) -> tuple[Path, list[Path]]:
    """The folder of XML files that ``source`` means, and the files in it, sorted."""
    if source.is_file():
        return source.parent, [source]
    folder = source / "Annotations" if (source / "Annotations").is_dir() else source
    files = sorted(path for path in folder.glob("*.xml") if not path.name.startswith("."))
    if not files:
        raise DataError(f"{folder}: no XML files; pass the folder that holds Annotations/ or the XML files")
    return folder, files


def _split_names(source: Path) -> tuple[str, ...]:
    """The lists of whole data sets in ``ImageSets/Main`` (VOC also keeps one a class there, which are left out)."""
    folder = source / "ImageSets" / "Main"
    return tuple(name for name in ("train", "val", "test", "trainval") if (folder / f"{name}.txt").is_file())


def _split_stems(source: Path, split: str) -> list[str]:
    """The file names, without suffix, of one list in ``ImageSets/Main``."""
    text = read_text(source / "ImageSets" / "Main" / f"{split}.txt")
    return list(dict.fromkeys(line.split()[0] for line in text.splitlines() if line.strip()))


def _images_by_stem(folder: Path) -> dict[str, str]:
    """Names of the image files directly in a folder, by their name without suffix."""
    return {path.stem: path.name for path in folder.iterdir() if path.suffix.lower() in SUFFIXES}


def _image_folders(source: Path, folder: Path) -> list[Path]:
    above = folder.resolve().parent
    candidates = [above / "JPEGImages", above / "images", folder, above] if folder != source else [folder, folder / "images"]
    if folder == source or source.is_file():
        candidates += [above / "JPEGImages", above / "images"]
    return [path for path in dict.fromkeys(candidates) if path.is_dir()]


def _read_file(path: Path, folders: Sequence[Path], images: Mapping[str, str], problems: Problems) -> _Annotated | None:
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
    annotated = _Annotated(_file_name(root, path, folders, images, problems), _size_hw(root))
    for number, element in enumerate(root.findall("object"), start=1):
        _read_object(element, f"{path} object {number}", annotated, problems)
    return annotated


def _file_name(root: ET.Element, path: Path, folders: Sequence[Path], images: Mapping[str, str], problems: Problems) -> str:
    """The image of an XML file: as its <filename> says, or named like the XML file where that one exists and the other does not."""
    written = (root.findtext("filename") or "").strip()
    if written and is_safe_name(written) and any((folder / written).is_file() for folder in folders):
        return written
    if path.stem in images:
        return images[path.stem]
    if written and not is_safe_name(written):
        problems.add("unsafe_path", f"{path}: {written!r}")
    return written or f"{path.stem}.jpg"


def _size_hw(root: ET.Element) -> tuple[int, int]:
    try:
        height, width = (int(float(root.findtext(f"size/{side}") or 0)) for side in ("height", "width"))
    except (ValueError, OverflowError):
        return 0, 0
    return (height, width) if 0 < height < 2**31 and 0 < width < 2**31 else (0, 0)


def _read_object(element: ET.Element, where: str, annotated: _Annotated, problems: Problems) -> None:
    name = (element.findtext("name") or "").strip()
    if not name:
        problems.add("malformed_annotation", f"{where}: no <name>")
        return
    box = box_from_corners([(element.findtext(f"bndbox/{corner}") or "").strip() for corner in CORNERS], where, problems)
    if box is None:
        return
    annotated.names.append(name)
    annotated.boxes_xywh.append(box)
    annotated.is_difficult.append((element.findtext("difficult") or "").strip() in ("1", "true", "True"))


def _as_records(images: Sequence[_Annotated], names: Sequence[str], root: Path) -> Records:
    labels = {name: label for label, name in enumerate(names)}
    records = build_records(
        root=root,
        file_names=[image.file_name for image in images],
        sizes_hw=[image.size_hw for image in images],
        image_of_box=[row for row, image in enumerate(images) for _ in image.names],
        boxes_xywh=[box for image in images for box in image.boxes_xywh],
        labels=[labels[name] for image in images for name in image.names],
        is_difficult=[flag for image in images for flag in image.is_difficult],
        categories=[Category(id=label + 1, name=name) for label, name in enumerate(names)],
    )
    return replace(records, sizes_hw=known_sizes(records))


def _xml_text(records: Records, row: int, name: str, size_hw: NDArray[np.int32]) -> Iterator[bytes]:
    root = ET.Element("annotation")
    ET.SubElement(root, "folder").text = "JPEGImages"
    ET.SubElement(root, "filename").text = name
    size = ET.SubElement(root, "size")
    for side, value in (("width", size_hw[1]), ("height", size_hw[0]), ("depth", 3)):
        ET.SubElement(size, side).text = str(int(value))
    rows = records.rows(row)
    columns = (records.boxes(row).tolist(), records.labels[rows].tolist(), records.is_ignored[rows].tolist())
    for box, label, is_ignored in zip(*columns, strict=True):
        element = ET.SubElement(root, "object")
        ET.SubElement(element, "name").text = records.class_names[label]
        ET.SubElement(element, "difficult").text = str(int(is_ignored))
        bndbox = ET.SubElement(element, "bndbox")
        for side, value in zip(CORNERS, box, strict=True):
            ET.SubElement(bndbox, side).text = f"{value:.10g}" if abs(value) < 1e5 else repr(value)
    ET.indent(root)
    yield ET.tostring(root, encoding="utf-8") + b"\n"


FORMAT = Voc()
