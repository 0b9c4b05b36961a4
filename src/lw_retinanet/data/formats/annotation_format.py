"""What an annotation format can do: recognise a data set, read it, and write one."""

import enum
import math
import re
import stat
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lw_retinanet.data.box_quality import are_corners
from lw_retinanet.data.chosen_classes import only_classes
from lw_retinanet.data.image_files import is_file
from lw_retinanet.data.problems import NUM_EXAMPLES, Problems
from lw_retinanet.data.records import MAX_COORDINATE, Records
from lw_retinanet.errors import DataError

CORNERS = ("xmin", "ymin", "xmax", "ymax")
MAX_CLASSES = 10_000  # of a data set; the head of a detector has nine rows of weights for each
MAX_FILE_BYTES = 2**31  # of an annotation file, since reading takes about twice as much memory; COCO's largest has 0.5 GB
_MOST_CHARACTERS = 500  # of a class name
_NOT_TEXT = re.compile("[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")  # control characters, half characters
WHOLE = ""  # the split of a data set that has none
SPLIT_FOLDERS = ("train", "val", "valid", "validation", "test")
Content = Path | Callable[[], Iterator[bytes]]  # of a file to write: a file to copy, or a function that gives the bytes
Files = dict[str, Content]  # by path inside the target folder


class Sign(enum.Enum):
    """How clearly a folder shows its format. The clearest sign is looked for first, in the folder as seen by every format."""

    STRUCTURE = "files and folders that only this format names so"
    OWN_FILES = "annotation files of its own kind anywhere in the folder"
    ANY_FILE = "a file of a kind that other formats use for other things, too"


@dataclass(frozen=True, kw_only=True)
class Part:
    """One split of a data set on disk.

    Args:
        format: Who reads it.
        path: What the reader opens.
        root: The image folder, where the layout says it.
        split: The reader's own name of the split, None where the file or folder has none.
        classes: Names of the only classes that are read; () reads all.
    """

    format: "AnnotationFormat"
    path: Path
    root: Path | None = None
    split: str | None = None
    classes: tuple[str, ...] = ()

    def read(self, problems: Problems | None = None) -> Records:
        """Read the annotations, see `AnnotationFormat.read`; boxes of other classes are left out, and counted.

        Raises:
            DataError: if the annotations cannot be read, or have none of a class that is asked for.
        """
        records = self.format.read(self.path, root=self.root, split=self.split, problems=problems)
        if not self.classes:
            return records
        records, left_out = only_classes(records, self.classes, self.path)
        if left_out.count == 0:
            return records
        if problems is not None:
            problems.merge([left_out])
        return replace(records, remarks=(*records.remarks, left_out))


Parts = Mapping[str, Part]  # by the layout's own name of the split; the only key is `WHOLE` where there are no splits


class AnnotationFormat(ABC):
    """One annotation format. To add one, write a module of this package with a subclass and its instance ``FORMAT``; `table` lists them.

    Attributes:
        name: What users call it in ``data convert``.
        layouts: What a data set of this format looks like, for messages: "a CSV table".
        has_annotation_ids: Whether annotations carry ids, by which a user finds them in the file.
        takes_sizes_from_images: Whether `parse` reads the headers of all images, because the annotations do not tell their sizes.
    """

    name: str
    layouts: str
    has_annotation_ids = False
    takes_sizes_from_images = False

    def recognise_file(self, path: Path, head: str) -> Parts:
        """The splits of an annotation file, {} if it is not of this format.

        Args:
            path: The file.
            head: The start of its text, white space in front left out, never empty.

        Raises:
            DataError: if the file is of this format and cannot be used.
        """
        return {}

    def recognise_folder(self, folder: Path, sign: Sign) -> Parts | Path:
        """The splits of a folder that shows the sign of this format, or the annotation file that stands for it; {} if there is none."""
        return {}

    def read(self, path: Path, *, root: Path | None = None, split: str | None = None, problems: Problems | None = None) -> Records:
        """Read annotations.

        Args:
            path: The file or folder.
            root: The folder of the images; found by looking for the first few files if not given.
            split: The split to read, by the format's own name, where one path holds several.
            problems: Collects what is wrong, and the entries concerned are left out. Without it the first kind of error is raised.

        Raises:
            DataError: if nothing can be read, or there are errors and ``problems`` is not given.
        """
        found = Problems(path) if problems is None else problems
        records = _in_order(self.parse(path, root, split, found), found)
        _check_classes(records, found)
        if are_corners(records):
            found.add("corner_box", f"{records.num_boxes:,} boxes")
        if problems is None:
            found.raise_errors()
        return replace(records, remarks=tuple(problem for problem in found.found() if problem.severity == "warning"))

    @abstractmethod
    def parse(self, path: Path, root: Path | None, split: str | None, problems: Problems) -> Records:
        """What `read` does, with all errors of single entries added to ``problems``."""

    def holds(self, records: Records) -> NDArray[np.bool_]:
        """(B,) which boxes a file of this format can hold; the others are left out when writing."""
        return np.ones(records.num_boxes, dtype=np.bool_)

    @abstractmethod
    def kept(self, splits: Mapping[str, Records]) -> dict[str, Records]:
        """The data set as it is when it has been written in this format and read again; file names and the order of images aside."""

    @abstractmethod
    def files(self, splits: Mapping[str, Records]) -> Files:
        """The files of a data set in this format, images included.

        Raises:
            DataError: if the format cannot express the data set.
        """


def _in_order(records: Records, problems: Problems) -> Records:
    """The same records, with the corners of every box in order: left before right, top before bottom."""
    sides = records.boxes_xywh[:, 2:]
    rows = np.flatnonzero((sides < 0).any(axis=1))
    if not len(rows):
        return records
    problems.add_many("reversed_box", len(rows), (records.file_names[records.image_of_box[row]] for row in rows[:NUM_EXAMPLES]))
    boxes = np.hstack([records.boxes_xywh[:, :2] + np.minimum(sides, 0), np.abs(sides)])
    return replace(records, boxes_xywh=boxes, areas=np.abs(records.areas))


def _check_classes(records: Records, problems: Problems) -> None:
    """Class names go into tables, figures and model files, so each must be a line of text."""
    require_few_classes(len(records.categories), problems.where)
    odd = [name for name in records.class_names if len(name) > _MOST_CHARACTERS or _NOT_TEXT.search(name)]
    problems.add_many("odd_class_name", len(odd), odd)


def require_few_classes(count: int, where: Path | str) -> None:
    """Refuse more classes than a detector can have.

    Raises:
        DataError: saying the limit.
    """
    if count > MAX_CLASSES:
        raise DataError(
            f"{where}: more than {MAX_CLASSES:,} classes, the most that a detector can have here; join rare ones, or leave them out"
        )


def existing_splits(folder: Path, pattern: str) -> dict[str, Path]:
    """The files that exist among ``{split}.json`` and the like, by split."""
    paths = {split: folder / pattern.format(split) for split in SPLIT_FOLDERS}
    return {split: path for split, path in paths.items() if is_file(path)}


def read_bytes(path: Path) -> bytes:
    """The content of an annotation file.

    Raises:
        DataError: if the file is missing, unreadable, no regular file (reading a pipe would wait for ever), or too large.
    """
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise DataError(f"{path}: not a regular file; put the annotations into a file")
        if status.st_size > MAX_FILE_BYTES:
            raise DataError(
                f"{path}: {status.st_size / 2**30:.1f} GiB is too much for an annotation file (at most {MAX_FILE_BYTES / 2**30:.0f} GiB); "
                "leave out the masks, or divide it by images"
            )
        return path.read_bytes()
    except FileNotFoundError as error:
        raise DataError(f"{path}: no such file; check the path") from error
    except (OSError, ValueError) as error:  # ValueError: a name that no file can have
        reason = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise DataError(f"{path}: cannot be read ({reason}); check the path and its permissions") from error


def read_text(path: Path) -> str:
    """A text file as UTF-8, with or without a byte order mark.

    Raises:
        DataError: if it cannot be read (see `read_bytes`) or is not UTF-8.
    """
    try:
        return read_bytes(path).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8 text (byte {error.start}); save the file as UTF-8") from error


def box_from_corners(texts: Sequence[str], where: str, problems: Problems) -> list[float] | None:
    """x, y, width and height of a box written as the four `CORNERS`; None, and a problem, if they are not usable numbers.

    Args:
        texts: The four numbers as written.
        where: Where they stand, for the list of problems.
        problems: Gets what is wrong.
    """
    try:
        xmin, ymin, xmax, ymax = map(float, texts)
    except ValueError:
        shown = ", ".join(f"{corner}={text[:30]!r}" for corner, text in zip(CORNERS, texts, strict=True))
        problems.add("malformed_box", f"{where}: {shown}")
        return None
    if not all(math.isfinite(value) and abs(value) <= MAX_COORDINATE for value in (xmin, ymin, xmax, ymax)):
        problems.add("non_finite_box", f"{where}: {', '.join(text[:30] for text in texts)}")
        return None
    return [xmin, ymin, xmax - xmin, ymax - ymin]
