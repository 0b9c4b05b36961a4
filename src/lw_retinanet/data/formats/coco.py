"""COCO JSON, with any ids in any order; fast enough for files of COCO's own size."""

import gc
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lw_retinanet.data.formats.annotation_format import (
    SPLIT_FOLDERS,
    WHOLE,
    AnnotationFormat,
    Files,
    Part,
    Parts,
    Sign,
    existing_splits,
    require_few_classes,
)
from lw_retinanet.data.formats.json_sections import iterate_sections
from lw_retinanet.data.formats.masks import box_of_mask
from lw_retinanet.data.formats.other_tools import read_head, refuse_other_json
from lw_retinanet.data.formats.target_files import target_names
from lw_retinanet.data.image_files import files_of, is_file, place_images, root_candidates
from lw_retinanet.data.image_sizes import known_sizes
from lw_retinanet.data.problems import Problems
from lw_retinanet.data.records import MAX_COORDINATE, Category, Id, Records, build_records
from lw_retinanet.errors import DataError

_NUMBERS = frozenset({int, float})


class Coco(AnnotationFormat):
    """COCO JSON: one file a split, with the lists ``images``, ``annotations`` and ``categories``; all else is ignored.

    A mask counts only where an annotation has no box: then the box around it is taken.

    A missing ``iscrowd`` is 0, a missing ``area`` the area of the box, and ``ignore`` becomes `Records.is_difficult`. Boxes of zero
    size are kept as annotated. Writing and reading again loses nothing.
    """

    name = "coco"
    layouts = "train.json and val.json with images/, COCO's annotations/ folder, a Roboflow export"
    has_annotation_ids = True

    def recognise_file(self, path: Path, head: str) -> Parts:
        """A JSON object; a JSON list is COCO's format of detections, and refused, as is the JSON of other tools."""
        if head[0] in "[{":
            refuse_other_json(path, head)
        if head[0] == "[":
            raise DataError(f"{path}: a JSON list, as detections are written; pass the ground truth's annotation file")
        return {WHOLE: Part(format=self, path=path)} if head[0] == "{" else {}

    def recognise_folder(self, folder: Path, sign: Sign) -> Parts | Path:
        """Our own layout, COCO's own, Roboflow's export, or a folder with one JSON file."""
        if sign is Sign.STRUCTURE:
            return self._own_layout(folder) or self._coco_layout(folder) or self._roboflow_layout(folder)
        files = files_of(folder, ".json") if sign is Sign.ANY_FILE else []
        if len(files) > 1:
            refuse_other_json(files[0], read_head(files[0]))
            shown = ", ".join(path.name for path in files[:5])
            raise DataError(f"{folder}: several JSON files ({shown}), none called train.json or val.json; pass the one to use")
        return files[0] if files else {}

    def _own_layout(self, folder: Path) -> Parts:
        root = folder / "images" if (folder / "images").is_dir() else None
        return {split: Part(format=self, path=path, root=root) for split, path in existing_splits(folder, "{}.json").items()}

    def _coco_layout(self, folder: Path) -> Parts:
        annotations = folder / "annotations"
        by_split: dict[str, Path] = {}
        files = [path for path in files_of(annotations, ".json") if path.name.startswith("instances_")]
        for path in reversed(files):  # the newest year of a split comes first
            by_split.setdefault(path.stem.removeprefix("instances_").rstrip("0123456789").rstrip("_-"), path)
        by_split = by_split or existing_splits(annotations, "{}.json")
        order = sorted(by_split, key=lambda split: (SPLIT_FOLDERS.index(split) if split in SPLIT_FOLDERS else len(SPLIT_FOLDERS), split))
        if order == ["default"]:  # as CVAT calls the whole
            return {WHOLE: Part(format=self, path=by_split["default"])}
        return {split: Part(format=self, path=by_split[split]) for split in order}

    def _roboflow_layout(self, folder: Path) -> Parts:
        if is_file(folder / "_annotations.coco.json"):
            return {WHOLE: Part(format=self, path=folder / "_annotations.coco.json", root=folder)}
        paths = existing_splits(folder, "{}/_annotations.coco.json")
        return {split: Part(format=self, path=path, root=path.parent) for split, path in paths.items()}

    def parse(self, path: Path, root: Path | None, split: str | None, problems: Problems) -> Records:
        """See `AnnotationFormat.read`; a file is one split."""
        images, categories, annotations = _Images(problems), _Categories(problems), _Annotations(problems)
        sinks: Mapping[str, Callable[[Sequence[Any]], None]] = {
            "images": images.extend,
            "categories": categories.extend,
            "annotations": annotations.extend,
        }
        seen: set[str] = set()
        with _paused_collector():
            for key, batch in iterate_sections(path):
                if key in sinks and batch is not None:
                    seen.add(key)
                    sinks[key](batch)
        lacking = next((key for key in ("images", "annotations") if key not in seen), None)
        if lacking is not None:
            raise DataError(f"{path}: not a COCO annotation file: it has no list {lacking!r}; pass the ground truth's annotation file")
        place, names = place_images(images.names, root_candidates(path) if root is None else [root, path.parent], problems)
        image_rows, labels = annotations.resolve(images.rows, categories.rows)
        keep = (image_rows >= 0) & (labels >= 0)
        ids = annotations.ids()
        return build_records(
            root=place,
            file_names=names,
            image_ids=images.ids,
            sizes_hw=images.sizes_hw,
            image_of_box=image_rows[keep],
            labels=labels[keep],
            categories=categories.found,
            annotation_ids=None if ids is None else ids[keep],
            **{name: column[keep] for name, column in annotations.columns().items()},
        )

    def kept(self, splits: Mapping[str, Records]) -> dict[str, Records]:
        """All of it."""
        return dict(splits)

    def files(self, splits: Mapping[str, Records]) -> Files:
        """``{split}.json`` and ``images/``."""
        files: Files = {}
        names = target_names(splits)
        for split, records in splits.items():
            files |= {f"images/{name}": records.path(row) for row, name in enumerate(names[split])}
            files[f"{split}.json"] = partial(_json_text, records, names[split])
        return files


@contextmanager
def _paused_collector() -> Iterator[None]:
    """Pause the garbage collector: parsing makes no cycles, and the search for them among new objects takes a third of the time."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def _as_id(value: object) -> Id | None:
    """A JSON value as an id: a whole number, also one written as 3.0, or a string; None for anything else."""
    if isinstance(value, bool):
        return None
    if isinstance(value, int | str):
        return value
    return int(value) if isinstance(value, float) and value.is_integer() else None


def _is_number(value: object) -> bool:
    return type(value) in _NUMBERS


class _Images:
    def __init__(self, problems: Problems) -> None:
        self.problems = problems
        self.rows: dict[Id, int] = {}
        self.ids: list[Id] = []
        self.names: list[str] = []
        self.sizes_hw: list[tuple[int, int]] = []

    def extend(self, batch: Sequence[Any]) -> None:
        for image in batch:
            image_id = _as_id(image.get("id")) if isinstance(image, dict) else None
            name = image.get("file_name") if image_id is not None else None
            size_hw = self._size_hw(image) if image_id is not None else None
            if image_id is None or not isinstance(name, str) or not name or size_hw is None:
                example = f"id {image_id!r}" if image_id is not None else f"entry {str(image)[:60]}"
                self.problems.add("malformed_image", example)
                continue
            if image_id in self.rows:
                self.problems.add("duplicate_image_id", repr(image_id))
                continue
            self.rows[image_id] = len(self.ids)
            self.ids.append(image_id)
            self.names.append(name)
            self.sizes_hw.append(size_hw)

    @staticmethod
    def _size_hw(image: dict[str, Any]) -> tuple[int, int] | None:
        height, width = image.get("height"), image.get("width")
        if height is None or width is None:
            return 0, 0
        if not (_is_number(height) and _is_number(width) and 0 <= height < 2**31 and 0 <= width < 2**31):
            return None
        return int(height), int(width)


class _Categories:
    def __init__(self, problems: Problems) -> None:
        self.problems = problems
        self.rows: dict[Id, int] = {}
        self.found: list[Category] = []

    def extend(self, batch: Sequence[Any]) -> None:
        for category in batch:
            require_few_classes(len(self.found), self.problems.where)
            category_id = _as_id(category.get("id")) if isinstance(category, dict) else None
            name = category.get("name") if category_id is not None else None
            if category_id is None or not isinstance(name, str) or not name:
                self.problems.add("malformed_category", str(category)[:60])
            elif category_id in self.rows:
                self.problems.add("duplicate_category_id", repr(category_id))
            else:
                supercategory = category.get("supercategory")
                self.rows[category_id] = len(self.found)
                self.found.append(
                    Category(id=category_id, name=name, supercategory=supercategory if isinstance(supercategory, str) else None)
                )


class _Annotations:
    """The columns of the annotation list.

    A batch of annotations is checked column by column, since a loop over annotations takes several times as long. Only a batch with
    something wrong in it is gone through one by one.
    """

    def __init__(self, problems: Problems) -> None:
        self.problems = problems
        self._image_ids: list[Any] = []
        self._category_ids: list[Any] = []
        self._ids: list[Any] = []
        self._boxes: list[NDArray[np.float64]] = []
        self._areas: list[NDArray[np.float64]] = []
        self._crowd: list[NDArray[np.bool_]] = []
        self._difficult: list[NDArray[np.bool_]] = []

    def extend(self, batch: Sequence[Any]) -> None:
        if not self._append(batch):
            boxed = [self._with_box(annotation) for annotation in batch]
            sound = [annotation for annotation in boxed if self._is_sound(annotation)]
            if not self._append(sound):
                raise AssertionError("an annotation passed one by one but not in its batch")

    def _append(self, batch: Sequence[Any]) -> bool:
        """Take a batch as a whole; if anything is wrong in it, take nothing and return False."""
        if not set(map(type, batch)) <= {dict}:
            return False
        bboxes = [annotation.get("bbox") for annotation in batch]
        if not (set(map(type, bboxes)) <= {list} and set(map(len, bboxes)) <= {4}):
            return False
        numbers = list(chain.from_iterable(bboxes))
        areas = [annotation.get("area") for annotation in batch]
        flags = [[annotation.get(key) for annotation in batch] for key in ("iscrowd", "ignore")]
        image_ids = [annotation.get("image_id") for annotation in batch]
        category_ids = [annotation.get("category_id") for annotation in batch]
        if not (
            set(map(type, numbers)) <= _NUMBERS
            and set(map(type, areas)) <= _NUMBERS | {type(None)}
            and set(map(type, chain.from_iterable(flags))) <= {int, bool, float, type(None)}
            and set(chain.from_iterable(flags)) <= {0, 1, None}
            and set(map(type, image_ids)) <= {int, str, float}
            and set(map(type, category_ids)) <= {int, str, float}
        ):
            return False
        try:
            boxes = np.array(numbers, dtype=np.float64).reshape(-1, 4)
            given = np.array(areas, dtype=np.float64)
        except OverflowError:  # an integer beyond 1e308
            return False
        is_missing = np.array([area is None for area in areas], dtype=np.bool_)
        if not ((np.abs(boxes) <= MAX_COORDINATE).all() and ((np.abs(given) <= MAX_COORDINATE**2) | is_missing).all()):
            return False
        self._boxes.append(boxes)
        self._areas.append(np.where(is_missing, boxes[:, 2] * boxes[:, 3], given))
        self._crowd.append(np.array(flags[0], dtype=np.bool_))
        self._difficult.append(np.array(flags[1], dtype=np.bool_))
        self._image_ids += image_ids
        self._category_ids += category_ids
        self._ids += [annotation.get("id") for annotation in batch]
        return True

    def _with_box(self, annotation: Any) -> Any:
        """The annotation, with the box around its mask if it has a mask and no box."""
        if not isinstance(annotation, dict) or annotation.get("bbox") not in (None, []):
            return annotation
        bbox = box_of_mask(annotation.get("segmentation"))
        if bbox is None:
            return annotation
        self.problems.add("mask_box", f"annotation {annotation.get('id', 'without id')!r}")
        return {**annotation, "bbox": bbox}

    def _is_sound(self, annotation: Any) -> bool:
        """The checks of `_append` for one annotation; what is wrong is added to the problems."""
        if not isinstance(annotation, dict):
            self.problems.add("malformed_annotation", str(annotation)[:60])
            return False
        where = f"annotation {annotation.get('id', 'without id')!r}"
        bbox = annotation.get("bbox")
        if not isinstance(bbox, list) or len(bbox) != 4 or not all(map(_is_number, bbox)):
            self.problems.add("malformed_box", f"{where}: bbox {str(bbox)[:60]}")
            return False
        if not all(abs(value) <= MAX_COORDINATE for value in bbox):
            self.problems.add("non_finite_box", f"{where}: bbox {str(bbox)[:60]}")
            return False
        area = annotation.get("area")
        wrong = [key for key in ("image_id", "category_id") if _as_id(annotation.get(key)) is None]
        wrong += [key for key in ("iscrowd", "ignore") if annotation.get(key) not in (None, 0, 1)]
        if area is not None and not (_is_number(area) and abs(area) <= MAX_COORDINATE**2):
            wrong.append("area")
        if wrong:
            self.problems.add("malformed_annotation", f"{where}: {wrong[0]} {str(annotation.get(wrong[0]))[:60]!r}")
            return False
        return True

    def resolve(self, image_rows: Mapping[Id, int], category_rows: Mapping[Id, int]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """(B,) image number and label of each annotation, -1 where its id is not listed, which is a problem."""
        columns = []
        for kind, key, ids, rows in (
            ("unknown_image", "image_id", self._image_ids, image_rows),
            ("unknown_category", "category_id", self._category_ids, category_rows),
        ):
            column = np.fromiter((rows.get(one, -1) for one in ids), dtype=np.int64, count=len(ids))
            lost = np.flatnonzero(column < 0)
            self.problems.add_many(kind, len(lost), (f"annotation {self._ids[row]!r}: {key} {ids[row]!r}" for row in lost))
            columns.append(column)
        return columns[0], columns[1]

    def ids(self) -> NDArray[np.int64] | None:
        """(B,) the file's own annotation ids; None unless all are whole numbers."""
        types = set(map(type, self._ids))
        if types <= {int}:
            try:
                return np.array(self._ids, dtype=np.int64)
            except OverflowError:
                pass
        if types != {type(None)}:
            odd = [one for one in self._ids if type(one) is not int or not -(2**63) <= one < 2**63]
            self.problems.add_many("renumbered_annotation_ids", len(odd), map(repr, odd))
        return None

    def columns(self) -> dict[str, NDArray[Any]]:
        """What `Records` holds of the boxes, in the order of the file."""
        return {
            "boxes_xywh": np.concatenate([np.zeros((0, 4)), *self._boxes]),
            "areas": np.concatenate([np.zeros(0), *self._areas]),
            "is_crowd": np.concatenate([np.zeros(0, dtype=np.bool_), *self._crowd]),
            "is_difficult": np.concatenate([np.zeros(0, dtype=np.bool_), *self._difficult]),
        }


def _json_text(records: Records, names: list[str]) -> Iterator[bytes]:
    sizes_hw = known_sizes(records).tolist()
    yield b'{"images": ['
    yield from _json_lines(
        {"id": image_id, "file_name": name} | ({"width": width, "height": height} if width and height else {})
        for image_id, name, (height, width) in zip(records.image_ids, names, sizes_hw, strict=True)
    )
    yield b'], "annotations": ['
    columns = zip(
        records.annotation_ids.tolist(),
        records.image_of_box.tolist(),
        records.labels.tolist(),
        records.boxes_xywh.tolist(),
        records.areas.tolist(),
        records.is_crowd.tolist(),
        records.is_difficult.tolist(),
        strict=True,
    )
    yield from _json_lines(
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
    yield b'], "categories": ['
    yield from _json_lines(
        {"id": category.id, "name": category.name} | ({} if category.supercategory is None else {"supercategory": category.supercategory})
        for category in records.categories
    )
    yield b"]}\n"


def _json_lines(objects: Iterable[Mapping[str, object]]) -> Iterator[bytes]:
    separator = "\n"
    for one in objects:
        yield (separator + json.dumps(one)).encode()
        separator = ",\n"


FORMAT = Coco()
