"""What an annotation format can do: recognise a data set, read it, and write one."""

import enum
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lw_retinanet.data.problems import Problems
from lw_retinanet.data.records import MAX_COORDINATE, Records
from lw_retinanet.errors import DataError

CORNERS = ("xmin", "ymin", "xmax", "ymax")
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
    """

    format: "AnnotationFormat"
    path: Path
    root: Path | None = None
    split: str | None = None

    def read(self, problems: Problems | None = None) -> Records:
        """Read the annotations, see `AnnotationFormat.read`."""
        return self.format.read(self.path, root=self.root, split=self.split, problems=problems)


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
        records = self.parse(path, root, split, found)
        if problems is None:
            found.raise_errors()
        return records

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


def existing_splits(folder: Path, pattern: str) -> dict[str, Path]:
    """The files that exist among ``{split}.json`` and the like, by split."""
    paths = {split: folder / pattern.format(split) for split in SPLIT_FOLDERS}
    return {split: path for split, path in paths.items() if path.is_file()}


def read_text(path: Path) -> str:
    """A text file as UTF-8, with or without a byte order mark.

    Raises:
        DataError: if the file is missing, unreadable or not UTF-8.
    """
    try:
        return path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8 text (byte {error.start}); save the file as UTF-8") from error
    except FileNotFoundError as error:
        raise DataError(f"{path}: no such file; check the path") from error
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); check the path and its permissions") from error


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
        shown = ", ".join(f"{corner}={text!r}" for corner, text in zip(CORNERS, texts, strict=True))
        problems.add("malformed_box", f"{where}: {shown}")
        return None
    if not all(math.isfinite(value) and abs(value) <= MAX_COORDINATE for value in (xmin, ymin, xmax, ymax)):
        problems.add("non_finite_box", f"{where}: {', '.join(texts)}")
        return None
    return [xmin, ymin, xmax - xmin, ymax - ymin]
