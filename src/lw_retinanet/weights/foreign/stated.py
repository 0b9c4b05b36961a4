"""What a checkpoint states beside its tensors: thresholds, sizes and class names among the settings of the program that trained it."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from lw_retinanet.data.records import Category
from lw_retinanet.errors import WeightsError, shown

# The arguments of torchvision's RetinaNet -> our names. Programs around it keep these names for their own settings.
_ARGUMENTS = {
    "score_thresh": "output.score_threshold",
    "nms_thresh": "output.nms_iou",
    "detections_per_img": "output.max_detections",
    "topk_candidates": "output.candidates_per_level",
    "min_size": "input.size",
    "max_size": "input.max_size",
    "image_mean": "input.mean",
    "image_std": "input.std",
    "size_divisible": "input.pad_multiple",
}
_NAMES = ("label_dict", "numeric_to_label_dict", "id2label", "label2id", "class_names", "classes", "class_to_idx", "names", "labels")
_TRAINER = re.compile("optimi|lr_sched|callback|loops")  # state of training, which can be long
_MOST_DEPTH = 5


@dataclass(frozen=True, kw_only=True)
class Stated:
    """A value that a checkpoint states.

    Args:
        value: The value.
        where: The keys that lead to it, for people.
    """

    value: Any
    where: str


@dataclass(frozen=True, kw_only=True)
class Statements:
    """All that a checkpoint states.

    Args:
        conventions: Dotted names of conventions -> their values.
        class_names: Number of a class row -> its name; None if the file has no names.
        num_classes: Number of classes, which may count a background or not.
    """

    conventions: Mapping[str, Stated] = field(default_factory=dict)
    class_names: Stated | None = None
    num_classes: Stated | None = None

    @property
    def names_where(self) -> str:
        """The keys of the class names."""
        return self.class_names.where if self.class_names else ""


def read_statements(extras: Mapping[str, Any]) -> Statements:
    """Find what is known by torchvision's names of arguments, or is a list or a table of class names. The outermost place counts.

    Args:
        extras: What a file holds beside its tensors, the content of ``config.json`` included.
    """
    conventions: dict[str, Stated] = {}
    names: Stated | None = None
    num_classes: Stated | None = None
    for where, settings in places(extras):
        for key, setting in _ARGUMENTS.items():
            value = plain(settings.get(key))
            if key == "min_size" and isinstance(value, Sequence) and not isinstance(value, str) and value:
                value = plain(value[-1])  # in evaluation mode torchvision takes the last of several
            if isinstance(value, list | tuple):
                value = [plain(each) for each in value]
            if value is not None and setting not in conventions:
                conventions[setting] = Stated(value=value, where=where + key)
        for key in _NAMES:
            found = _names(settings.get(key))
            if found and names is None:
                names = Stated(value=found, where=where + key)
        count = plain(settings.get("num_classes"))
        if num_classes is None and isinstance(count, int) and not isinstance(count, bool):
            num_classes = Stated(value=count, where=f"{where}num_classes")
    return Statements(conventions=conventions, class_names=names, num_classes=num_classes)


def places(extras: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield each table of settings with the keys that lead to it, the outermost first."""
    level: list[tuple[str, Mapping[str, Any]]] = [("", extras)]
    for _ in range(_MOST_DEPTH):
        yield from level
        inside = [
            (f"{where}{key}.", plain(value)) for where, settings in level for key, value in settings.items() if not _TRAINER.search(key)
        ]
        level = [(where, {str(key): value for key, value in table.items()}) for where, table in inside if isinstance(table, Mapping)]


def plain(value: Any) -> Any:
    """The settings that an inert placeholder of omegaconf or argparse holds, as a table; any other value as it is."""
    for _ in range(3):
        state = getattr(value, "kept_state", None)
        if not isinstance(state, Mapping):
            return value
        value = state.get("_content", state.get("_val", state))
    return value


def _names(value: Any) -> dict[int, str] | None:
    """Names by row, from a list, from ``{name: number}`` or from ``{number: name}``."""
    value = plain(value)
    if isinstance(value, Mapping):
        pairs = [(plain(key), plain(each)) for key, each in value.items()]
        if pairs and all(isinstance(each, int) and not isinstance(each, bool) for _, each in pairs):
            pairs = [(number, name) for name, number in pairs]
        rows = {int(number): name for number, name in pairs if re.fullmatch(r"\d{1,6}", str(number))}
        return rows if len(rows) == len(pairs) and all(isinstance(name, str) and name for name in rows.values()) else None
    if isinstance(value, list | tuple) and all(isinstance(plain(name), str) and plain(name) for name in value):
        return {row: plain(name) for row, name in enumerate(value)} or None
    return None


def stated_categories(stated: Statements, num_rows: int, where: str, *, has_background_row: bool) -> tuple[Category, ...] | None:
    """The classes that a file names, in the order of its last rows: all, or all but the first, a background. None if it names none.

    Args:
        stated: What the file states.
        num_rows: Number of class rows of an anchor.
        where: Name of the file, for messages.
        has_background_row: Whether row 0 may be a background without a name.

    Raises:
        WeightsError: If names or their number contradict the rows.
    """
    remedy = "give the names as classes"
    count, names = stated.num_classes, stated.class_names
    fitting = (num_rows, num_rows - 1) if has_background_row else (num_rows,)
    if count is not None and count.value not in fitting:
        raise WeightsError(f"{where} states {shown(count.value)} classes ({count.where}), and its class predictor has {num_rows}; {remedy}")
    if names is None:
        return None
    rows: dict[int, str] = names.value
    listed = list(rows.values())
    twice = next((name for name in listed if listed.count(name) > 1), None)
    if twice is not None:
        raise WeightsError(f"{where} names two classes {shown(twice)} ({names.where}); {remedy}")
    first, last = min(rows), max(rows)
    if len(rows) not in fitting or last - first + 1 != len(rows) or first > 1 or last >= num_rows:
        raise WeightsError(f"{where} names {len(rows)} classes ({names.where}) for {num_rows} rows of its class predictor; {remedy}")
    offset = num_rows - 1 - last  # names may be counted from 0 without the background
    return tuple(Category(id=row + offset, name=rows[row]) for row in sorted(rows))
