"""PASCAL VOC XML, read with defusedxml only, since a plain XML parser can be made to fill the memory."""

import os
import posixpath
import re
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
    read_bytes,
    read_text,
)
from lw_retinanet.data.formats.target_files import (
    require_plain_class_names,
    require_text_file_names,
    target_names,
    with_unique_stems,
    without_details,
)
from lw_retinanet.data.image_files import SUFFIXES, files_of, is_file, is_safe_name, walk_files, walk_images
from lw_retinanet.data.image_sizes import known_sizes
from lw_retinanet.data.problems import Problems
from lw_retinanet.data.records import Category, Records, build_records
from lw_retinanet.errors import DataError, shown

_MAX_BYTES = 64 * 2**20  # of an XML file


@dataclass
class _Annotated:
    """What one XML file says about its image."""

    image: Path
    size_hw: tuple[int, int]
    names: list[str] = field(default_factory=list)
    boxes_xywh: list[list[float]] = field(default_factory=list)
    is_difficult: list[bool] = field(default_factory=list)


class Voc(AnnotationFormat):
    """VOC: one XML file an image, in ``Annotations/`` beside ``JPEGImages/`` or ``images/``, with the splits listed in ``ImageSets/Main/``.

    The image of an XML file is the one of the same name, in the same sub-folder; else the one that ``<filename>`` says.

    Classes are sorted by name and get the ids 1..K, those of all files whatever the split; images get 1..I in the order of the list or of
    the file names. Coordinates are taken as written. What is written has no crowd regions: they become difficult boxes.
    """

    name = "voc"
    layouts = "VOC's Annotations/ folder"

    def recognise_file(self, path: Path, head: str) -> Parts:
        """One XML file, for one image."""
        return {WHOLE: Part(format=self, path=path)} if head[0] == "<" else {}

    def recognise_folder(self, folder: Path, sign: Sign) -> Parts:
        """``Annotations/`` (or ``annotations/``), or XML files in the folder or in a folder a split."""
        if sign is Sign.STRUCTURE and _xml_folder(folder) is not None:
            return {split: Part(format=self, path=folder, split=split) for split in _lists(folder)} or {
                WHOLE: Part(format=self, path=folder)
            }
        if sign is not Sign.OWN_FILES:
            return {}
        if files_of(folder, ".xml"):
            return {WHOLE: Part(format=self, path=folder)}
        folders = {split: folder / split for split in SPLIT_FOLDERS}
        return {split: Part(format=self, path=path) for split, path in folders.items() if files_of(path, ".xml")}

    def parse(self, path: Path, root: Path | None, split: str | None, problems: Problems) -> Records:
        """See `AnnotationFormat.read`; a split is a list in ``ImageSets/Main``."""
        folder, files = _annotation_files(path)
        image_folders = _image_folders(path, folder) if root is None else [root]
        images = _images_by_stem(image_folders)
        annotated = {stem: _read_file(file, stem, image_folders, images, problems) for stem, file in files.items()}
        names = sorted({name for one in annotated.values() if one is not None for name in one.names})
        if split is not None:
            wanted, lost = _listed(_lists(path)[split], annotated)
            problems.add_many("broken_file", len(lost), (f"{folder / shown(stem)}.xml does not exist" for stem in lost))
            annotated = {stem: annotated[stem] for stem in wanted}
        return _as_records([one for one in annotated.values() if one is not None], names, image_folders or [folder])

    def kept(self, splits: Mapping[str, Records]) -> dict[str, Records]:
        """Boxes and names of the classes that have any; crowd regions are difficult boxes."""
        return without_details(splits, self.holds, has_difficult=True)

    def files(self, splits: Mapping[str, Records]) -> Files:
        """``Annotations/``, ``JPEGImages/`` and ``ImageSets/Main/``."""
        require_plain_class_names(splits, "VOC")
        require_text_file_names(splits, "VOC")
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


def _xml_folder(folder: Path) -> Path | None:
    """The sub-folder of XML files, in upper or lower case; ``annotations/`` may hold COCO's JSON instead."""
    for name in ("Annotations", "annotations"):
        if (folder / name).is_dir() and (name == "Annotations" or next(walk_files(folder / name, (".xml",)), None) is not None):
            return folder / name
    return None


def _annotation_files(source: Path) -> tuple[Path, dict[str, Path]]:
    """The folder of XML files that ``source`` means, and the files in it and its sub-folders, by path without suffix."""
    if is_file(source):
        return source.parent, {source.stem: source}
    folder = _xml_folder(source) or source
    files = sorted({*(walk_files(folder, (".xml",)) if folder != source else ()), *files_of(folder, ".xml")})
    if not files:
        raise DataError(f"{folder}: no XML files; pass the folder that holds Annotations/ or the XML files")
    return folder, {path.relative_to(folder).with_suffix("").as_posix(): path for path in files}


def _lists(source: Path) -> dict[str, Path]:
    """The lists of whole splits in ``ImageSets/Main`` (VOC also keeps one a class there, which are left out)."""
    files = {path.stem.lower(): path for path in files_of(source / "ImageSets" / "Main", ".txt")}
    return {split: files[split] for split in (*SPLIT_FOLDERS, "trainval") if split in files}


def _listed(path: Path, annotated: Mapping[str, object]) -> tuple[list[str], list[str]]:
    """The XML files of a list, and the lines that name none.

    The whole line is a name, spaces included, if such a file exists; else it may have a last column, or the image's suffix.
    """
    wanted: dict[str, None] = {}
    lost = []
    for line in filter(None, map(str.strip, read_text(path).splitlines())):
        names = [line.replace("\\", "/"), line.replace("\\", "/").rsplit(None, 1)[0]]
        names += [posixpath.splitext(name)[0] for name in names if posixpath.splitext(name)[1].lower() in SUFFIXES]
        found = next((name for name in names if name in annotated), None)
        if found is None:
            lost.append(names[0])
        else:
            wanted[found] = None
    return list(wanted), lost


def _images_by_stem(folders: Sequence[Path]) -> dict[str, list[Path]]:
    """The images of the folders by path without suffix, and by file name alone; the first folder comes first."""
    images: dict[str, list[Path]] = {}
    for folder in folders:
        for path in sorted(walk_images(folder)):
            stem = path.relative_to(folder).with_suffix("").as_posix()
            images.setdefault(stem, []).append(path)
            if "/" in stem:
                images.setdefault(f"*/{path.stem}", []).append(path)
    return images


def _image_folders(source: Path, folder: Path) -> list[Path]:
    above = folder.resolve().parent
    named = ("JPEGImages", "images", "Images")
    candidates = [*(above / name for name in named), folder] if folder != source else [folder]
    if folder == source or is_file(source):
        candidates += [above / name for name in named]
    return [path for path in dict.fromkeys(candidates) if path.is_dir()] or [above]


def _read_xml(path: Path) -> ET.Element:
    """The outermost element. The declared encoding holds, and UTF-8 where none is declared.

    The parser itself knows no encoding with several bytes a character but UTF-8 and UTF-16.
    """
    data = read_bytes(path)
    if len(data) > _MAX_BYTES:
        raise DataError(f"{path}: {len(data) / 2**20:.0f} MiB is too much for the boxes of one image; export it again")
    declared = re.match(rb"\s*<\?xml[^>]*?encoding\s*=\s*[\"']([\w.-]{1,40})[\"']", data)
    encoding = declared[1].decode() if declared else "utf-8"
    for mark, marked in (
        (b"\xef\xbb\xbf", "utf-8-sig"),
        (b"\xff\xfe", "utf-16"),
        (b"\xfe\xff", "utf-16"),
        (b"<\0", "utf-16-le"),
        (b"\0<", "utf-16-be"),
    ):
        if data.startswith(mark):
            encoding = marked
    if encoding.lower().replace("-", "_") in ("punycode", "idna", "unicode_escape", "raw_unicode_escape"):  # slow, and never meant
        raise DataError(f"{path}: the encoding {encoding!r} is not read; save the file as UTF-8")
    try:
        text = data.decode(encoding)
    except (LookupError, UnicodeError) as error:
        raise DataError(f"{path}: not {encoding} text ({shown(str(error))}); save the file as UTF-8") from None
    # The declaration is replaced by spaces, so that places in messages stay right.
    text = re.sub(r"\A\s*<\?xml[^>]*\?>", lambda match: re.sub(r"[^\n]", " ", match[0]), text)
    root: ET.Element = fromstring(text, forbid_dtd=True)
    return root


def _read_file(path: Path, stem: str, folders: Sequence[Path], images: Mapping[str, list[Path]], problems: Problems) -> _Annotated | None:
    try:
        root = _read_xml(path)
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
        known = ": CVAT's own XML; export as COCO, YOLO or PASCAL VOC instead" if root.tag == "annotations" else ""
        problems.add("broken_file", f"{path}: the outermost element is <{shown(root.tag)}>, not <annotation>{known}")
        return None
    annotated = _Annotated(_image_of(root, path, stem, folders, images, problems), _size_hw(root))
    if root.find("size") is not None and annotated.size_hw == (0, 0):
        problems.add("no_size", path.name)
    for number, element in enumerate(root.findall("object"), start=1):
        _read_object(element, f"{path} object {number}", annotated, problems)
    return annotated


def _image_of(
    root: ET.Element, path: Path, stem: str, folders: Sequence[Path], images: Mapping[str, list[Path]], problems: Problems
) -> Path:
    """The image of an XML file: the one of the same name, else the one that <filename> says."""
    written = (root.findtext("filename") or "").strip().replace("\\", "/")
    stem_written, suffix = posixpath.splitext(posixpath.basename(written))
    own = images.get(stem) or images.get(f"*/{posixpath.basename(stem)}") or []
    if own:
        is_other = stem_written != posixpath.basename(stem) and (stem_written in images or f"*/{stem_written}" in images)
        if is_other and is_safe_name(written):
            problems.add("other_filename", f"{path.name}: {written}")
        own = [image for image in own if image.suffix == suffix] or own
        folder = posixpath.basename((root.findtext("folder") or "").strip().replace("\\", "/"))
        own = [image for image in own if image.parent.name == folder] or own
        if len(own) > 1 and stem not in images:
            problems.add("ambiguous_image", f"{path.name}: {own[0]} or {own[1]}")
        return own[0]
    if written and not is_safe_name(written):
        problems.add("unsafe_path", f"{path}: {written!r}")
        return folders[0] / f"{stem}.jpg"
    places = [folder / name for name in (written, posixpath.basename(written)) if name for folder in folders]
    return next((place for place in places if is_file(place)), folders[0] / (written or f"{stem}.jpg"))


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


def _as_records(images: Sequence[_Annotated], names: Sequence[str], folders: Sequence[Path]) -> Records:
    parents = {image.image.parent for image in images}
    root = next((folder for folder in folders if all(parent.is_relative_to(folder) for parent in parents)), None)
    root = root or Path(os.path.commonpath(parents))
    labels = {name: label for label, name in enumerate(names)}
    records = build_records(
        root=root,
        file_names=[image.image.relative_to(root).as_posix() for image in images],
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
