"""The report of a data set check: problems, table of classes and sizes of boxes, as text or JSON."""

from collections.abc import Mapping
from dataclasses import dataclass

from lw_retinanet.data.problems import Problem
from lw_retinanet.data.records import Id
from lw_retinanet.errors import shown


@dataclass(frozen=True, kw_only=True)
class ClassCount:
    """One line of the table of classes.

    Args:
        id: The id of the class.
        name: The name of the class.
        images: Number of images with at least one box of the class.
        boxes: Number of its boxes, crowd regions and difficult boxes left out.
        ignored: Number of its crowd regions and difficult boxes.
    """

    id: Id
    name: str
    images: int
    boxes: int
    ignored: int


@dataclass(frozen=True, kw_only=True)
class SplitReport:
    """What was found in one split.

    Args:
        split: Its name, None where the data set has no splits.
        form: The name of the annotation format.
        path: The annotation file or folder.
        images: Number of images.
        boxes: Number of boxes, ignored ones included.
        problems: All problems, errors first.
        classes: The table of classes.
        side_histogram: Number of boxes by the square root of their area in pixels; ignored boxes are left out.
        coco_sizes: Number of boxes that are small, medium or large by COCO's limits (32 and 96 pixels squared in the original image).
    """

    split: str | None
    form: str
    path: str
    images: int
    boxes: int
    problems: tuple[Problem, ...]
    classes: tuple[ClassCount, ...]
    side_histogram: Mapping[str, int]
    coco_sizes: Mapping[str, int]

    def as_dict(self) -> dict[str, object]:
        """The entry of the JSON report."""
        return {
            **vars(self),
            "problems": [problem.as_dict() for problem in self.problems],
            "classes": [dict(vars(count)) for count in self.classes],
            "side_histogram": dict(self.side_histogram),
            "coco_sizes": dict(self.coco_sizes),
        }

    def lines(self) -> list[str]:
        """Plain text, without colours or line ends."""
        title = f"{shown(self.split)}: " if self.split is not None else ""
        where = f"({self.form}, {shown(self.path, most=300)})"
        lines = [f"{title}{self.images:,} images, {self.boxes:,} boxes, {len(self.classes):,} classes {where}"]
        lines += [f"  {problem.severity}: {problem.line()}" for problem in self.problems] or ["  no problems found"]
        if self.classes:
            names = [shown(count.name) for count in self.classes]
            width = max(len("class"), *map(len, names))
            lines.append(f"  {'class':<{width}}  {'id':>6}  {'images':>9}  {'boxes':>9}  {'ignored':>9}")
            lines += [
                f"  {name:<{width}}  {shown(str(count.id)):>6}  {count.images:>9,}  {count.boxes:>9,}  {count.ignored:>9,}"
                for name, count in zip(names, self.classes, strict=True)
            ]
        total = sum(self.side_histogram.values())
        if total:
            lines.append("  square root of the box area, pixels of the original images:")
            peak = max(self.side_histogram.values())
            for label, count in self.side_histogram.items():
                row = f"  {label:>9}  {count:>9,}  {count / total:>6.1%}  {'#' * round(30 * count / peak)}"
                lines.append(row.rstrip())
            lines.append("  COCO sizes: " + ", ".join(f"{name} {count / total:.1%}" for name, count in self.coco_sizes.items()))
        return lines


@dataclass(frozen=True, kw_only=True)
class DataReport:
    """The report of a whole data set, split by split."""

    source: str
    splits: tuple[SplitReport, ...]

    def _count(self, severity: str) -> int:
        return sum(problem.count for part in self.splits for problem in part.problems if problem.severity == severity)

    @property
    def num_errors(self) -> int:
        """How many errors all splits have together."""
        return self._count("error")

    @property
    def num_warnings(self) -> int:
        """How many warnings all splits have together."""
        return self._count("warning")

    def as_dict(self) -> dict[str, object]:
        """JSON-able: numbers, strings, lists and dicts only."""
        return {
            "source": self.source,
            "errors": self.num_errors,
            "warnings": self.num_warnings,
            "splits": [part.as_dict() for part in self.splits],
        }

    def lines(self) -> list[str]:
        """Plain text, without colours or line ends."""
        lines = [line for part in self.splits for line in part.lines()]
        return [*lines, f"errors: {self.num_errors:,}, warnings: {self.num_warnings:,}"]
