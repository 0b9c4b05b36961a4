"""The files of a data set in COCO, YOLO or VOC form: what to write where, before anything is written."""

import json
import os
import posixpath
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Literal
from xml.etree import ElementTree as ET

import numpy as np
import yaml
from numpy.typing import NDArray

from lw_retinanet.data.box_quality import image_of_box
from lw_retinanet.data.image_root import is_safe_name
from lw_retinanet.data.image_sizes import header_sizes
from lw_retinanet.data.records import Records
from lw_retinanet.errors import DataError

Form = Literal["coco", "yolo", "voc"]
Content = Path | Callable[[], Iterator[bytes]]  # a file to copy, or what to write
Plan = dict[str, Content]  # by path inside the target folder


def plan_coco(splits: Mapping[str, Records]) -> Plan:
    """``{split}.json`` and ``images/``: everything that `Records` holds."""
    plan: Plan = {}
    names = _names(splits)
    for split, records in splits.items():
        plan |= {f"images/{name}": records.path(row) for row, name in enumerate(names[split])}
        plan[f"{split}.json"] = _coco_json(records, names[split])
    return plan


def _coco_json(records: Records, names: list[str]) -> Callable[[], Iterator[bytes]]:
    def content() -> Iterator[bytes]:
        sizes_hw = known_sizes(records).tolist()
        yield b'{"images": ['
        images = (
            {"id": image_id, "file_name": name} | ({"width": width, "height": height} if width and height else {})
            for image_id, name, (height, width) in zip(records.image_ids, names, sizes_hw, strict=True)
        )
        yield from _json_lines(images)
        yield b'], "annotations": ['
        image_rows = image_of_box(records).tolist()
        columns = zip(
            records.annotation_ids.tolist(),
            image_rows,
            records.labels.tolist(),
            records.boxes_xywh.tolist(),
            records.areas.tolist(),
            records.is_crowd.tolist(),
            records.is_difficult.tolist(),
            strict=True,
        )
        annotations = (
            {
                "id": annotation_id,
                "image_id": records.image_ids[row],
                "category_id": records.categories[label].id,
                "bbox": bbox,
                "area": area,
                "iscrowd": int(is_crowd),
            }
            | ({"ignore": 1} if is_difficult else {})
            for annotation_id, row, label, bbox, area, is_crowd, is_difficult in columns
        )
        yield from _json_lines(annotations)
        yield b'], "categories": ['
        categories = (
            {"id": category.id, "name": category.name}
            | ({} if category.supercategory is None else {"supercategory": category.supercategory})
            for category in records.categories
        )
        yield from _json_lines(categories)
        yield b"]}\n"

    return content


def _json_lines(objects: Iterable[Mapping[str, object]]) -> Iterator[bytes]:
    separator = "\n"
    for one in objects:
        yield (separator + json.dumps(one)).encode()
        separator = ",\n"


def plan_yolo(splits: Mapping[str, Records]) -> Plan:
    """``data.yaml``, ``images/{split}/`` and ``labels/{split}/``; crowd regions and boxes without an area have no place there."""
    first = next(iter(splits.values()))
    content = {"path": "."} | {split: f"images/{split}" for split in splits} | {"names": dict(enumerate(first.class_names))}
    text = yaml.safe_dump(content, sort_keys=False, allow_unicode=True).encode()
    plan: Plan = {"data.yaml": lambda: iter([text])}
    for split, records in splits.items():
        names = _with_unique_stems(_names({split: records})[split], split)
        sizes_hw = known_sizes(records)
        if not sizes_hw.all():
            row = int(np.flatnonzero(~sizes_hw.all(axis=1))[0])
            raise DataError(f"{records.path(row)}: the image size is neither annotated nor readable, and YOLO needs it; restore the image")
        for row, name in enumerate(names):
            plan[f"images/{split}/{name}"] = records.path(row)
            plan[f"labels/{split}/{posixpath.splitext(name)[0]}.txt"] = _yolo_labels(records, row, sizes_hw[row])
    return plan


def _yolo_labels(records: Records, row: int, size_hw: NDArray[np.int32]) -> Callable[[], Iterator[bytes]]:
    def content() -> Iterator[bytes]:
        rows = records.rows(row)
        boxes = records.boxes_xywh[rows]
        size_wh = size_hw[::-1].astype(np.float64)
        fractions = np.hstack([boxes[:, :2] + boxes[:, 2:] / 2, boxes[:, 2:]]) / np.tile(size_wh, 2)
        keep = has_yolo_form(records)[rows]
        for label, values in zip(records.labels[rows][keep].tolist(), fractions[keep].tolist(), strict=True):
            # Ten digits: below a millionth of a pixel for any image.
            yield (f"{label} " + " ".join(f"{value:.10f}" for value in values) + "\n").encode()

    return content


def has_yolo_form(records: Records) -> NDArray[np.bool_]:
    """(B,) which boxes a YOLO label file can hold: no crowd regions (they would become objects), no zero or negative sizes."""
    has_area = np.logical_and(records.boxes_xywh[:, 2] > 0, records.boxes_xywh[:, 3] > 0)
    return np.logical_and(has_area, ~records.is_crowd)


def plan_voc(splits: Mapping[str, Records]) -> Plan:
    """``Annotations/``, ``JPEGImages/`` and ``ImageSets/Main/``; crowd regions are written as difficult."""
    plan: Plan = {}
    names = _names(splits)
    stems: dict[str, str] = {}
    for split, records in splits.items():
        # VOC has no sub-folders; an image of several splits is one file there.
        flat = {name: name.replace("/", "__") for name in names[split]}
        fresh = _with_unique_stems([flat[name] for name in names[split] if name not in stems], split, set(stems.values()))
        stems |= dict(zip([name for name in names[split] if name not in stems], fresh, strict=True))
        sizes_hw = known_sizes(records)
        in_split = [stems[name] for name in names[split]]
        for row, name in enumerate(in_split):
            plan[f"JPEGImages/{name}"] = records.path(row)
            plan[f"Annotations/{posixpath.splitext(name)[0]}.xml"] = _voc_xml(records, row, name, sizes_hw[row])
        plan[f"ImageSets/Main/{split}.txt"] = _lines([posixpath.splitext(name)[0] for name in in_split])
    return plan


def _lines(lines: list[str]) -> Callable[[], Iterator[bytes]]:
    return lambda: (f"{line}\n".encode() for line in lines)


def _voc_xml(records: Records, row: int, name: str, size_hw: NDArray[np.int32]) -> Callable[[], Iterator[bytes]]:
    def content() -> Iterator[bytes]:
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
            for side, value in zip(("xmin", "ymin", "xmax", "ymax"), box, strict=True):
                ET.SubElement(bndbox, side).text = f"{value:.10g}" if abs(value) < 1e5 else repr(value)
        ET.indent(root)
        yield ET.tostring(root, encoding="utf-8") + b"\n"

    return content


def known_sizes(records: Records) -> NDArray[np.int32]:
    """(I, 2) sizes, taken from the image header where the annotations do not say, (0, 0) where that fails too."""
    sizes_hw = records.sizes_hw.copy()
    unknown = np.flatnonzero(~sizes_hw.all(axis=1)).tolist()
    for row, size in zip(unknown, header_sizes([records.path(row) for row in unknown]), strict=True):
        sizes_hw[row] = size if isinstance(size, tuple) else (0, 0)
    return sizes_hw


def _names(splits: Mapping[str, Records]) -> dict[str, list[str]]:
    """File names for the target, unchanged unless two different images of different splits share one; those go to a folder a split."""
    names: dict[str, list[str]] = {}
    home: dict[str, str] = {}
    is_shared = False
    for split, records in splits.items():
        unsafe = next((name for name in records.file_names if not is_safe_name(name)), None)
        if unsafe is not None:
            raise DataError(f"{records.root}: {unsafe!r} leaves the image folder; write file names relative to it")
        names[split] = [posixpath.normpath(name.replace("\\", "/")) for name in records.file_names]
        for row, name in enumerate(names[split]):
            path = os.fspath(records.path(row))
            is_shared |= home.setdefault(name, path) != path
    return {split: [f"{split}/{name}" for name in own] for split, own in names.items()} if is_shared else names


def _with_unique_stems(names: list[str], split: str, taken: set[str] | None = None) -> list[str]:
    """The names, changed where two differ in nothing but the suffix: their annotation files would be one."""
    stems = {posixpath.splitext(name)[0] for name in taken or ()}
    twice = next((name for name, count in _counts(names).items() if count > 1), None)
    if twice is not None:
        raise DataError(f"{split}: {twice} is listed twice, and this form has one annotation file an image; merge the entries")
    unique = []
    for name in names:
        stem, suffix = posixpath.splitext(name)
        number = 1
        while stem in stems:
            number += 1
            stem = f"{posixpath.splitext(name)[0]}_{number}"
        stems.add(stem)
        unique.append(stem + suffix)
    return unique


def _counts(names: list[str]) -> dict[str, int]:
    counts: dict[str, int] = {}
    for name in names:
        counts[name] = counts.get(name, 0) + 1
    return counts
