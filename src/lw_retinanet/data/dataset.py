"""A data set on disk: its layout is recognised once, when it is opened; its splits are read when they are asked for."""

import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from lw_retinanet.data.box_quality import require_boxes
from lw_retinanet.data.category_match import match_categories
from lw_retinanet.data.data_use import use_line
from lw_retinanet.data.formats import table
from lw_retinanet.data.formats.annotation_format import WHOLE, Part, Parts, Sign
from lw_retinanet.data.formats.other_tools import refuse_archive
from lw_retinanet.data.image_files import is_file
from lw_retinanet.data.image_sizes import require_decodable, require_files, require_sizes, require_whole, with_sizes
from lw_retinanet.data.records import Category, Records
from lw_retinanet.errors import DataError, shown

log = logging.getLogger(__name__)
_ALIASES = {"valid": "val", "validation": "val"}
# The splits that may take the place of a missing one; the first that exists does.
_STAND_INS: Mapping[str, tuple[str, ...]] = {"val": ("test",), "train": ("trainval",)}


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """A data set whose layout is known. Nothing but the layout has been read; `open` makes one.

    Args:
        path: What was opened: a folder or one annotation file.
        parts: What to read for each split, in the order of the layout. A data set without splits has one part, under the key `WHOLE`; then
            `splits` is (), and None asks for it.
    """

    path: Path
    parts: Mapping[str, Part]

    @classmethod
    def open(cls, path: Path, *, classes: Sequence[str] = ()) -> "Dataset":
        """Recognise a data set by its content.

        Args:
            path: A folder (ours: ``train.json``, ``val.json``, ``images/``; COCO's own; Roboflow's; VOC's; YOLO's) or an annotation file.
            classes: Names of the only classes that will be read; () reads all. What is left out of a split is said when it is read.

        Raises:
            DataError: if the path does not exist or holds no known annotation format.
        """
        parts: dict[str, Part] = {}
        for name, part in _recognise(path).items():
            parts.setdefault(_ALIASES.get(name, name), replace(part, classes=tuple(classes)))
        return cls(path=path, parts=parts)

    @property
    def splits(self) -> tuple[str, ...]:
        """The names of the splits, with ``valid`` and ``validation`` called ``val``; () where the data set is not divided."""
        return tuple(split for split in self.parts if split != WHOLE)

    @property
    def held_out(self) -> str | None:
        """``val`` if the data set has images to measure a model on (the split ``val``, or ``test`` in its place), else None."""
        return "val" if {"val", "test"} & set(self.splits) else None

    def or_whole(self, split: str) -> str | None:
        """``split`` if the data set is divided into splits, else None, which stands for the whole data set."""
        return split if self.splits else None

    def part(self, split: str | None = None) -> Part:
        """What to read for a split.

        Args:
            split: The name of the split; None is enough where there is only one. ``test`` stands in for a missing ``val``, and
                ``trainval`` for a missing ``train``.

        Raises:
            DataError: if there is no such split, or there are several and ``split`` is None.
        """
        if split is None:
            if len(self.parts) > 1:
                raise DataError(f"{self.path}: has the splits {', '.join(self.parts)}; name the one to use")
            return next(iter(self.parts.values()))
        if WHOLE in self.parts:
            raise DataError(f"{self.path}: has no splits, so no {split!r}; leave the split out, or pass a folder with train and val")
        name = _ALIASES.get(split, split)
        for candidate in (name, *_STAND_INS.get(name, ())):
            if candidate in self.parts:
                if candidate != name:
                    log.warning("%s has no split %r: %r is used in its place", self.path, name, candidate)
                return self.parts[candidate]
        raise DataError(f"{self.path}: no split {split!r}; it has {', '.join(self.parts)}: name one, or pass its annotation file alone")

    def read(self, split: str | None = None, *, joined: bool = True, scoring: bool = False) -> Records:
        """Read the annotations of a split, and look at no image; what is not used of them is said in one line of the log.

        Args:
            split: As for `part`.
            joined: Whether entries of the same image are joined; without it every id of the file stays.
            scoring: Whether the line is about scoring instead of training.

        Raises:
            DataError: if there is no such split, or its annotations have errors.
        """
        records = self.part(split).read()
        return self._said(records.joined() if joined else records, split, scoring=scoring)

    def _said(self, records: Records, split: str | None, *, scoring: bool) -> Records:
        line = use_line(records, self.path, split, scoring=scoring)
        if line is not None:
            log.warning("%s", line)
        return records

    def ready(self, split: str | None = None, *, classes: Sequence[Category] | None = None, max_pixels: int | None = None) -> Records:
        """Read a split for training or scoring: `read`, and every check of files, sizes and classes that saves a long job from stopping.

        Args:
            split: As for `part`.
            classes: The classes of the model that will be measured on the split; at least one must be among those of the data set.
            max_pixels: The most pixels of an image; None is the decoder's own limit.

        Returns:
            The annotations, with the sizes of all images known.

        Raises:
            DataError: if the annotations have errors or no box that a model could learn or find, or if no class fits.
            ImageError: if an image is missing or cut off, or its header cannot be read or tells another size than the annotation.
        """
        part = self.part(split)
        records = part.read().joined()
        require_files(records)
        records = with_sizes(replace(records, max_pixels=max_pixels))
        require_decodable(records)
        require_boxes(records, self.path if split is None else f"{self.path} ({split})")
        if classes is not None:
            match_categories(classes, records)
        if not part.format.takes_sizes_from_images:
            require_sizes(records)
        require_whole(records)
        return self._said(records, split, scoring=classes is not None)


def _recognise(path: Path) -> Parts:
    if is_file(path):
        return _recognise_file(path)
    if not os.path.exists(path):  # noqa: PTH110 - Path.exists() raises for a name that no file can have
        raise DataError(f"{shown(str(path))}: no such file or folder; check the path to the data set")
    if not path.is_dir():
        raise DataError(f"{path}: neither a file nor a folder; pass a data set")
    for sign in Sign:
        for name in table.FORMATS:
            found = table.load_format(name).recognise_folder(path, sign)
            if found:
                return _recognise_file(found) if isinstance(found, Path) else found
    raise DataError(f"{path}: no annotations recognised; expected {_layouts()}")


def _recognise_file(path: Path) -> Parts:
    try:
        with path.open("rb") as file:
            head = file.read(65536)
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); check its permissions") from error
    refuse_archive(path, head)
    if b"<\0" in head[:4] or b"\0<" in head[:4]:  # XML in UTF-16, which says its encoding itself
        head = head.replace(b"\0", b"")[2 * head.startswith((b"\xff\xfe", b"\xfe\xff")) :]
    text = head.decode("utf-8-sig", errors="replace").lstrip()
    if not text:
        raise DataError(f"{path}: the file is empty; pass an annotation file")
    if head.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise DataError(f"{path}: UTF-16 text; save the file as UTF-8")
    if b"\0" in head:
        raise DataError(f"{path}: not a text file; pass {_layouts()}")
    for name in table.FORMATS:
        parts = table.load_format(name).recognise_file(path, text)
        if parts:
            return parts
    raise DataError(f"{path}: not a known annotation format; pass {_layouts()}")


def _layouts() -> str:
    *layouts, last = (table.load_format(name).layouts for name in table.FORMATS)
    return f"{', '.join(layouts)} or {last}"
