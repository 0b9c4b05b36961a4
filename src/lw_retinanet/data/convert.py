"""Converting a data set to another annotation format, without loss to COCO; what another format cannot carry is reported."""

import json
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from lw_retinanet.data.formats.annotation_format import Content, Files
from lw_retinanet.data.formats.table import load_format
from lw_retinanet.data.image_files import is_file, is_safe_name
from lw_retinanet.data.image_sizes import require_sizes
from lw_retinanet.data.orientation import upright_bytes
from lw_retinanet.data.records import Records
from lw_retinanet.data.turned_boxes import turned_images, with_turned_boxes
from lw_retinanet.errors import DataError, ImageError, shown
from lw_retinanet.files import replacing

Turned = Literal["boxes", "images"]
_MANIFEST = ".lw_retinanet_convert.json"  # the format and the files of a conversion, so that another one can replace them


@dataclass(frozen=True, kw_only=True)
class DataConversion:
    """What was written.

    Args:
        out: The folder.
        form: The name of the annotation format.
        images: How many images the annotations name.
        boxes: How many boxes were written.
        losses: One sentence for each thing that the format could not carry; empty for COCO.
    """

    out: Path
    form: str
    images: int
    boxes: int
    losses: tuple[str, ...]


def convert(
    records: Records | Mapping[str, Records], to: str, out: Path, *, copy_images: bool = True, turned: Turned | None = None
) -> DataConversion:
    """Write a data set in another annotation format.

    Boxes are written as they are, those outside their image too. A file appears whole or not at all; a second conversion to the same
    format into the same folder replaces the first one, files that no longer belong to it included.

    Args:
        records: One data set, written as the split ``train``, or split name -> data set.
        to: The name of the format, one of `FORMATS`; COCO is written in our layout.
        out: A new or empty folder, or the folder of an earlier conversion to this format.
        copy_images: Write the images too; without them the annotations still name them.
        turned: What is changed where boxes fit the stored pixels of images that an EXIF tag turns: the ``boxes``, or the ``images``, from
            whose copies the tag is dropped.

    Raises:
        DataError: if ``out`` holds anything else, the data cannot be written in this format, or an image has another size than its
            annotation says. Nothing is written then.
        ImageError: if an image to copy does not exist. Nothing is written then.
    """
    target = load_format(to)
    splits = {"train": records} if isinstance(records, Records) else dict(records)
    if not splits:
        raise DataError("no split to convert; pass at least one data set")
    for split in splits:
        if not re.fullmatch(r"\w[\w.-]*", split):
            raise DataError(f"split {split!r} cannot be a file name; use letters, digits, '_', '-' and '.'")
    if turned == "boxes":
        splits = {split: with_turned_boxes(one) for split, one in splits.items()}
    tagged = {one.path(image) for one in splits.values() for image in turned_images(one)} if turned == "images" else set()
    if tagged and not copy_images:
        raise DataError("the tag can only be dropped from copies of the images; copy them, or turn the boxes")
    for one in splits.values():
        require_sizes(one, unread=False, but=tagged)  # boxes in the wrong places would be wrong in the new format, too
    files = target.files(splits)
    if tagged:
        files = {name: _upright(content) if content in tagged else content for name, content in files.items()}
    if not copy_images:
        files = {name: content for name, content in files.items() if not isinstance(content, Path)}
    missing = [content for content in files.values() if isinstance(content, Path) and not is_file(content)]
    if missing:
        first = shown(str(missing[0]), most=300)
        raise ImageError(f"{first}: no such image ({len(missing):,} missing in all); restore the files or remove their entries")
    _write(files, to, out)
    before, after = list(splits.values()), list(target.kept(splits).values())
    held = np.concatenate([target.holds(records) for records in before])
    return DataConversion(
        out=out,
        form=to,
        images=sum(records.num_images for records in before),
        boxes=int(held.sum()),
        losses=tuple(_losses(before, held, after, to.upper())),
    )


def _upright(path: Content) -> Content:
    assert isinstance(path, Path)
    content = upright_bytes(path)  # now, since nothing may be written if it fails
    return lambda: iter([content])


def _write(files: Files, to: str, out: Path) -> None:
    if out.exists() and not out.is_dir():
        raise DataError(f"{out}: is a file; name a folder")
    manifest = out / _MANIFEST
    earlier = _earlier_files(manifest, to, out)
    foreign = [name for name in files if name not in earlier and (out / name).exists()]
    if foreign:
        raise DataError(f"{out / foreign[0]}: exists and was not written by a conversion; name another folder")
    try:
        out.mkdir(parents=True, exist_ok=True)
        # Both lists first, so that a conversion that is broken off can be repeated.
        _write_file(manifest, _manifest(to, [*files, *(name for name in earlier if name not in files)]))
        for name, content in files.items():
            _write_file(out / name, content)
        for name in earlier - files.keys():
            (out / name).unlink(missing_ok=True)
        _write_file(manifest, _manifest(to, list(files)))
    except OSError as error:
        raise DataError(f"{error.filename or out}: cannot be written ({error.strerror}); check the folder and the free space") from error


def _earlier_files(manifest: Path, to: str, out: Path) -> set[str]:
    """Names of the files of an earlier conversion to the same format."""
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


def _manifest(to: str, files: list[str]) -> Content:
    return lambda: iter([json.dumps({"form": to, "files": files}).encode()])


def _write_file(path: Path, content: Content) -> None:
    with replacing(path, durable=False) as temporary:
        if isinstance(content, Path):
            shutil.copyfile(content, temporary)
        else:
            with temporary.open("wb") as file:
                file.writelines(content())


def _losses(before: Sequence[Records], held: NDArray[np.bool_], after: Sequence[Records], form: str) -> Iterator[str]:
    """What differs between the splits as they were and as they are when they are read again.

    Args:
        before: What was converted.
        held: (B,) Which boxes of all splits were written.
        after: What reading gives.
        form: What sentences call the format.
    """

    def column(splits: Sequence[Records], name: str) -> NDArray[Any]:
        return np.concatenate([getattr(records, name) for records in splits])

    is_crowd, is_difficult = column(before, "is_crowd"), column(before, "is_difficult")
    for count, sentence in (
        (is_crowd & ~held, f"crowd regions are left out: {form} would take them for objects"),
        (is_crowd[held] & ~column(after, "is_crowd"), "crowd regions are difficult boxes now"),
        (is_difficult[held] & ~column(after, "is_difficult"), "difficult boxes are ordinary boxes now"),
        (~is_crowd & ~held, "boxes of zero or negative size are left out"),
    ):
        if count.any():
            yield f"{int(count.sum()):,} {sentence}"
    if not np.allclose(column(before, "areas")[held], column(after, "areas"), rtol=1e-9):
        yield "object areas are those of the boxes now, so small, medium and large are counted differently"
    if any(list(old.image_ids) != list(new.image_ids) for old, new in zip(before, after, strict=True)):
        yield "image ids are lost: reading it again numbers the images 1, 2, 3..."
    classes, classes_now = ({category for records in splits for category in records.categories} for splits in (before, after))
    ids_now = {(category.name, category.id) for category in classes_now}
    if not ids_now <= {(category.name, category.id) for category in classes}:
        yield f"category ids are lost: reading it again numbers the classes from {min(number for _, number in ids_now)}"
    if any(category.supercategory for category in classes) and not any(category.supercategory for category in classes_now):
        yield "supercategories are lost"
    unused = {category.name for category in classes} - {category.name for category in classes_now}
    if unused:
        yield f"{len(unused):,} classes without boxes are lost"
