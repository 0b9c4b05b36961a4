"""Write a data set in another form: lossless to COCO, and said plainly what YOLO and VOC cannot carry."""

import json
import re
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lw_retinanet.data.image_root import is_safe_name
from lw_retinanet.data.records import Records
from lw_retinanet.data.target_forms import Content, Form, Plan, has_yolo_form, plan_coco, plan_voc, plan_yolo
from lw_retinanet.errors import DataError, ImageError
from lw_retinanet.files import replacing

_MANIFEST = ".lw_retinanet_convert.json"  # makes a folder ours: the form, and the files that we wrote
_PLANS = {"coco": plan_coco, "yolo": plan_yolo, "voc": plan_voc}


@dataclass(frozen=True, kw_only=True)
class Conversion:
    """What was written.

    Args:
        losses: one sentence for each thing that the target form could not carry; empty for COCO.
    """

    out: Path
    form: Form
    images: int
    boxes: int
    losses: tuple[str, ...]


def convert(records: Records | Mapping[str, Records], to: Form, out: Path, *, copy_images: bool = True) -> Conversion:
    """Write a data set in COCO (our folder form), YOLO or VOC form.

    Boxes are written as they are, those outside their image too. A file appears whole or not at all; a second conversion of the same
    form into the same folder replaces the first one, files that no longer belong to it included.

    Args:
        records: one data set, written as the split ``train``, or split name -> data set.
        to: the target form.
        out: a new or empty folder, or the folder of an earlier conversion to this form.
        copy_images: write the images too; without them the annotations still name them.

    Raises:
        DataError: if ``out`` holds anything else, or the data cannot be written in this form. Nothing is written then.
        ImageError: if an image to copy does not exist. Nothing is written then.
    """
    if to not in _PLANS:
        raise DataError(f"unknown form {to!r}; the forms are {', '.join(_PLANS)}")
    splits = {"train": records} if isinstance(records, Records) else dict(records)
    _check_splits(splits, to)
    plan = _PLANS[to](splits)
    if not copy_images:
        plan = {name: content for name, content in plan.items() if not isinstance(content, Path)}
    missing = [content for content in plan.values() if isinstance(content, Path) and not content.is_file()]
    if missing:
        raise ImageError(f"{missing[0]}: no such image ({len(missing):,} missing in all); restore the files or remove their entries")
    _write(plan, to, out)
    return Conversion(
        out=out,
        form=to,
        images=sum(one.num_images for one in splits.values()),
        boxes=sum(int(has_yolo_form(one).sum()) if to == "yolo" else one.num_boxes for one in splits.values()),
        losses=tuple(_losses(list(splits.values()), to)),
    )


def _check_splits(splits: Mapping[str, Records], to: Form) -> None:
    if not splits:
        raise DataError("no split to convert; pass at least one data set")
    for split in splits:
        if not re.fullmatch(r"\w[\w.-]*", split):
            raise DataError(f"split {split!r} cannot be a file name; use letters, digits, '_', '-' and '.'")
    if to == "coco":
        return
    first_split, first = next(iter(splits.items()))
    for split, records in splits.items():
        if to == "yolo" and records.class_names != first.class_names:
            raise DataError(f"the classes of {split!r} and {first_split!r} differ, and YOLO has one list for all; convert them separately")
        if len(set(records.class_names)) != len(records.categories):
            raise DataError(f"{split}: two classes share one name, which {to.upper()} cannot tell apart; rename one")
        odd = next((name for name in records.class_names if re.search(r"[\x00-\x1f]", name) or name != name.strip()), None)
        if odd is not None:
            raise DataError(f"{split}: the class name {odd!r} has control characters or outer spaces; rename it")


def _write(plan: Plan, to: Form, out: Path) -> None:
    if out.exists() and not out.is_dir():
        raise DataError(f"{out}: is a file; name a folder")
    manifest = out / _MANIFEST
    earlier = _earlier_files(manifest, to, out)
    foreign = [name for name in plan if name not in earlier and (out / name).exists()]
    if foreign:
        raise DataError(f"{out / foreign[0]}: exists and was not written by a conversion; name another folder")
    try:
        out.mkdir(parents=True, exist_ok=True)
        # Both lists first, so that a conversion that is broken off can be repeated.
        _write_file(manifest, _manifest(to, [*plan, *(name for name in earlier if name not in plan)]))
        for name, content in plan.items():
            _write_file(out / name, content)
        for name in earlier - plan.keys():
            (out / name).unlink(missing_ok=True)
        _write_file(manifest, _manifest(to, list(plan)))
    except OSError as error:
        raise DataError(f"{error.filename or out}: cannot be written ({error.strerror}); check the folder and the free space") from error


def _earlier_files(manifest: Path, to: Form, out: Path) -> set[str]:
    """Names of the files of an earlier conversion to the same form."""
    if not out.is_dir() or not any(out.iterdir()):
        return set()
    try:
        content = json.loads(manifest.read_text(encoding="utf-8"))
        form, files = content["form"], content["files"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{out}: is not empty and not a conversion of ours; name a new folder") from error
    if form != to:
        raise DataError(f"{out}: holds a conversion to {form}; name another folder for {to}")
    return {name for name in files if isinstance(name, str) and is_safe_name(name)}


def _manifest(to: Form, files: list[str]) -> Content:
    return lambda: iter([json.dumps({"form": to, "files": files}).encode()])


def _write_file(path: Path, content: Content) -> None:
    with replacing(path, durable=False) as temporary:
        if isinstance(content, Path):
            shutil.copyfile(content, temporary)
        else:
            with temporary.open("wb") as file:
                file.writelines(content())


def _losses(splits: list[Records], to: Form) -> Iterator[str]:
    if to == "coco":
        return
    num_crowds = sum(int(records.is_crowd.sum()) for records in splits)
    num_difficult = sum(int(records.is_difficult.sum()) for records in splits)
    if to == "yolo":
        num_empty = sum(int((~has_yolo_form(records) & ~records.is_crowd).sum()) for records in splits)
        if num_crowds:
            yield f"{num_crowds:,} crowd regions are left out: YOLO would take them for objects"
        if num_difficult:
            yield f"{num_difficult:,} difficult boxes are ordinary boxes now"
        if num_empty:
            yield f"{num_empty:,} boxes of zero or negative size are left out"
    elif num_crowds:
        yield f"{num_crowds:,} crowd regions are difficult boxes now"
    if any(_has_own_areas(records, to) for records in splits):
        yield "object areas are those of the boxes now, so small, medium and large are counted differently"
    if any(list(records.image_ids) != list(range(1, records.num_images + 1)) for records in splits):
        yield "image ids are lost: reading it again numbers the images 1, 2, 3..."
    if any(_ids_when_read_again(records, to) != dict(zip(records.class_names, records.category_ids, strict=True)) for records in splits):
        yield f"category ids are lost: reading it again numbers the classes from {0 if to == 'yolo' else 1}"
    if any(category.supercategory for records in splits for category in records.categories):
        yield "supercategories are lost"
    if to == "voc":
        unused = sum(int((np.bincount(records.labels, minlength=len(records.categories)) == 0).sum()) for records in splits)
        if unused:
            yield f"{unused:,} classes without boxes are lost"


def _ids_when_read_again(records: Records, to: Form) -> dict[str, int]:
    if to == "yolo":
        return {name: label for label, name in enumerate(records.class_names)}
    return {name: number for number, name in enumerate(sorted(records.class_names), start=1)}


def _has_own_areas(records: Records, to: Form) -> bool:
    """Whether an object that is written has another area than its box, as objects with masks have."""
    kept = has_yolo_form(records) if to == "yolo" else np.ones(records.num_boxes, dtype=np.bool_)
    boxes = records.boxes_xywh[kept]
    return not np.allclose(records.areas[kept], boxes[:, 2] * boxes[:, 3], rtol=1e-9)
