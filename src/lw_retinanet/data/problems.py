"""What can be wrong with a data set. Every kind of problem is counted, with its first few examples; a reader raises the errors."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from lw_retinanet.errors import DataError, shown

Severity = Literal["error", "warning"]
Effect = Literal["repaired box", "note"]
NUM_EXAMPLES = 5
_MOST_CHARACTERS = 200  # of an example
_MOST_OF_A_WORD = 60  # in a longer example, so that a path gives way and the reason behind it stays


@dataclass(frozen=True)
class Kind:
    """A kind of problem. An error stops a reader and fails a check; a warning is only reported.

    Args:
        severity: Which of the two it is.
        text: What there is a number of.
        remedy: What to do, or what is done.
        effect: What the reader has done about it, if that belongs into the one line that every command says (`DataUse`).
        short: The words for it there.
    """

    severity: Severity
    text: str
    remedy: str
    effect: Effect | None = None
    short: str = ""


KINDS: Mapping[str, Kind] = {
    "broken_file": Kind("error", "annotation files that cannot be read", "repair or remove them"),
    "malformed_image": Kind("error", "image entries without a usable id, file_name or size", "repair or remove them"),
    "malformed_annotation": Kind("error", "annotations with a missing or unusable field", "repair or remove them"),
    "malformed_category": Kind("error", "categories without a usable id or name", "repair them"),
    "odd_class_name": Kind("error", "class names with control characters or half characters, or too long", "rename the classes"),
    "no_images": Kind("error", "splits without images", "check that this is the right file"),
    "all_ignored": Kind("error", "splits whose boxes are all crowd or difficult", "clear these flags where they are wrong"),
    "duplicate_image_id": Kind("error", "image ids used twice", "give every image its own id"),
    "duplicate_category_id": Kind("error", "category ids used twice", "give every category its own id"),
    "unknown_image": Kind("error", "annotations of an image that is not listed", "list the image or remove them"),
    "unknown_category": Kind("error", "annotations of a class that is not listed", "list the class or remove them"),
    "malformed_box": Kind("error", "boxes that are not the right numbers", "repair or remove them"),
    "non_finite_box": Kind("error", "boxes with nan, inf or absurdly large numbers", "repair or remove them"),
    "unsafe_path": Kind("error", "file names that leave the image folder", "write them relative to the image folder"),
    "missing_image": Kind("error", "images that do not exist", "restore the files or remove their entries"),
    "unreadable_image": Kind("error", "images that cannot be read", "replace the files or remove their entries"),
    "ambiguous_image": Kind(
        "error", "XML files that several images could belong to", "put the XML files into sub-folders of the names that the images' have"
    ),
    "corner_box": Kind(
        "error",
        "splits whose boxes reach out of the images as they are read, and would all fit if their four numbers were two corners",
        "write them as the format wants: x, y, width, height (YOLO: the centre first)",
    ),
    "size_mismatch": Kind(
        "error", "images whose size (displayed orientation) is not the annotated one", "correct the width and height, or re-annotate"
    ),
    "turned_image": Kind(
        "error",
        "images whose boxes fit the stored pixels, and not the image as its EXIF tag displays it",
        "turn the boxes or drop the tag: lw-retinanet data convert does either (turned: boxes or images)",
    ),
    "duplicate_annotation_id": Kind("warning", "annotation ids used twice", "harmless here: scoring renumbers them"),
    "renumbered_annotation_ids": Kind("warning", "annotation ids that are not whole numbers", "annotations are numbered 1, 2, 3..."),
    "duplicate_file_name": Kind(
        "warning",
        "file names listed twice",
        "their entries are joined, equal boxes once",
        "note",
        "more entries of a file joined with its first",
    ),
    "duplicate_class_name": Kind("warning", "class names used twice", "give every class its own name"),
    "reversed_box": Kind("warning", "boxes with reversed corners", "the corners are put in order", "repaired box", "reversed corners"),
    "mask_box": Kind("warning", "annotations with a mask and no box", "the box around the mask is taken", "repaired box", "around masks"),
    "polygon_box": Kind(
        "warning", "polygons and oriented boxes", "the upright box around them is taken", "repaired box", "around polygons"
    ),
    "fraction_box": Kind("warning", "boxes in fractions of the image", "they are taken times its size", "repaired box", "fractions"),
    "more_numbers": Kind(
        "warning", "boxes with more numbers", "only the box is read", "note", "rows have keypoints, confidences or tracks, not read"
    ),
    "respelled_image": Kind(
        "warning",
        "image names with other accents than the files', or with the % of web addresses",
        "the images are found",
        "note",
        "image names spelled as the files are",
    ),
    "moved_image": Kind(
        "warning",
        "image paths of another place",
        "the images are found by the last parts",
        "note",
        "image paths of another place shortened",
    ),
    "other_filename": Kind(
        "warning",
        "XML files whose <filename> is another image",
        "the image of the XML's own name is taken",
        "note",
        "XML files name another image, and are used for that of their own name",
    ),
    "no_size": Kind(
        "warning",
        "XML files that say a size of 0 or none that can be read",
        "the size of the image is taken",
        "note",
        "XML files say no usable size, and that of the image is taken",
    ),
    "image_without_label": Kind(
        "warning",
        "images without a label file",
        "they count as background",
        "note",
        "images have no label file and are background",
    ),
    "label_without_image": Kind(
        "warning", "label files without an image", "they are not read", "note", "label files have no image and are not read"
    ),
    "other_class": Kind(
        "warning", "boxes of other classes than those asked for", "they are left out", "note", "boxes of other classes are left out"
    ),
    "empty_box": Kind("warning", "boxes of zero size", "training drops them"),
    "tiny_box": Kind("warning", "boxes narrower or lower than 1 px", "training drops them"),
    "outside_box": Kind("warning", "boxes outside their image", "training drops them"),
    "partly_outside_box": Kind("warning", "boxes partly outside their image", "training clips them"),
    "duplicate_box": Kind("warning", "boxes that repeat another of the same image and class", "remove the copies"),
    "image_without_boxes": Kind("warning", "images without boxes", "they count as background"),
    "class_without_boxes": Kind("warning", "classes without boxes", "their AP cannot be measured"),
    "image_in_two_splits": Kind("warning", "images that another split holds too", "keep every image in one split"),
    "different_classes": Kind("warning", "splits whose classes differ from the first split's", "give all splits one class list"),
}


@dataclass
class Problem:
    """How often a kind of problem was found, and its first few examples."""

    kind: str
    count: int = 0
    examples: list[str] = field(default_factory=list)

    @property
    def severity(self) -> Severity:
        """``error`` or ``warning``."""
        return KINDS[self.kind].severity

    def line(self) -> str:
        """``image ids used twice: 3 (4, 9, 12); give every image its own id``."""
        more = ", ..." if self.count > len(self.examples) else ""
        kind = KINDS[self.kind]
        return f"{kind.text}: {self.count:,} ({', '.join(self.examples)}{more}); {kind.remedy}"

    def as_dict(self) -> dict[str, object]:
        """The entry of the JSON report."""
        return {"kind": self.kind, "severity": self.severity, "count": self.count, "examples": list(self.examples), "text": self.line()}


class Problems:
    """The problems of one annotation file or split, in the order in which their kinds first appeared."""

    def __init__(self, where: Path | str) -> None:
        self.where = where
        self._by_kind: dict[str, Problem] = {}

    def merge(self, problems: Iterable[Problem]) -> None:
        """Count those of another list, too."""
        for problem in problems:
            self.add_many(problem.kind, problem.count, problem.examples)

    def add(self, kind: str, example: str) -> None:
        """Count one more of a kind."""
        self.add_many(kind, 1, (example,))

    def add_many(self, kind: str, count: int, examples: Iterable[str]) -> None:
        """Count ``count`` more of a kind; only the first few of ``examples`` are evaluated. A count of 0 adds nothing."""
        if count == 0:
            return
        problem = self._by_kind.setdefault(kind, Problem(kind))
        problem.count += count
        for example in examples:
            if len(problem.examples) >= NUM_EXAMPLES:
                break
            problem.examples.append(_shortened(example))

    def found(self) -> Sequence[Problem]:
        """Errors first, each group in order of appearance."""
        return sorted(self._by_kind.values(), key=lambda problem: problem.severity != "error")

    def raise_errors(self) -> None:
        """Raise the first kind of error as one line.

        Raises:
            DataError: if there is an error; warnings alone pass.
        """
        errors = [problem for problem in self.found() if problem.severity == "error"]
        if errors:
            others = len(errors) - 1
            more = f"; {others} more kinds of errors are listed by 'lw-retinanet data check'" if others else ""
            raise DataError(f"{self.where}: {errors[0].line()}{more}")


def _shortened(example: str) -> str:
    if len(example) > _MOST_CHARACTERS:
        example = " ".join(shown(word, most=_MOST_OF_A_WORD) for word in example.split(" "))
    return shown(example, most=_MOST_CHARACTERS)
