"""What of a data set is not used, and what was repaired: one line for every command, and a file for a run folder."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lw_retinanet.data.box_quality import clipped_sides
from lw_retinanet.data.problems import KINDS
from lw_retinanet.data.records import Records
from lw_retinanet.errors import shown
from lw_retinanet.files import write_text

DATA_FILE = "data.json"  # of a run folder


@dataclass(frozen=True, kw_only=True)
class DataUse:
    """The use of one split.

    Args:
        images: Number of images.
        boxes: Number of boxes.
        unused: By reason, how many boxes are neither learned from nor looked for.
        missed: By reason, how many boxes count in scoring although no detection can match them; training does not use them.
        repaired: By reason, how many boxes the reader put right, or made of something else.
        notes: By sentence, how many entries or files the reader joined, left out or took for something else.
    """

    images: int
    boxes: int
    unused: Mapping[str, int]
    missed: Mapping[str, int]
    repaired: Mapping[str, int]
    notes: Mapping[str, int]

    def sentence(self) -> str:
        """``6 of 12 boxes are not used (4 of zero size, 2 crowd); 1 image entries ...``; empty if all is used as it is."""
        parts = [
            f"{sum(counts.values()):,} of {self.boxes:,} boxes {what} ({', '.join(f'{count:,} {why}' for why, count in counts.items())})"
            for counts, what in ((self.unused, "are not used"), (self.missed, "count as missed"), (self.repaired, "are repaired"))
            if counts
        ]
        return "; ".join([*parts, *(f"{count:,} {what}" for what, count in self.notes.items())])


def data_use(records: Records, *, scoring: bool = False) -> DataUse:
    """Count what is not used of a split.

    Args:
        records: The split, with known image sizes if boxes outside their images are to be counted.
        scoring: Count for scoring, in which every box that is no crowd region and not difficult has to be found.
    """
    sides = clipped_sides(records)
    is_open: NDArray[np.bool_] = ~records.is_ignored
    reasons = {
        "of zero size": is_open & (records.boxes_xywh[:, 2:] <= 0).any(axis=1),
        "outside their image": is_open & (sides <= 0).any(axis=1),
        "below 1 px": is_open & (sides < 1).any(axis=1),
    }
    seen = np.zeros(records.num_boxes, dtype=np.bool_)
    hard: dict[str, int] = {}
    for reason, is_meant in reasons.items():
        if count := int((is_meant & ~seen).sum()):
            hard[reason] = count
        seen |= is_meant
    ignored = {"crowd": int(records.is_crowd.sum()), "difficult": int((records.is_difficult & ~records.is_crowd).sum())}
    ignored = {reason: count for reason, count in ignored.items() if count}
    short = {KINDS[one.kind].short: one.count for one in records.remarks if KINDS[one.kind].effect == "repaired box"}
    return DataUse(
        images=records.num_images,
        boxes=records.num_boxes,
        unused=ignored if scoring else hard | ignored,
        missed=hard if scoring else {},
        repaired=short,
        notes={KINDS[one.kind].short: one.count for one in records.remarks if KINDS[one.kind].effect == "note"},
    )


def use_line(records: Records, source: Path, split: str | None = None, *, scoring: bool = False) -> str | None:
    """The line that a command says about a split of a data set; None if all is used as it is."""
    sentence = data_use(records, scoring=scoring).sentence()
    where = f"{split}: " if split else ""
    return f"{where}{sentence}; details: lw-retinanet data check {shown(str(source))}" if sentence else None


def write_data_use(folder: Path, *, trained: Mapping[str, Records] | None = None, scored: Mapping[str, Records]) -> None:
    """Write ``data.json``: what is not used of the splits that are trained and scored on, and all remarks of their reader."""
    content = {
        split: {**vars(data_use(records, scoring=is_scored)), "remarks": [remark.as_dict() for remark in records.remarks]}
        for is_scored, splits in ((False, trained or {}), (True, scored))
        for split, records in splits.items()
    }
    write_text(folder / DATA_FILE, json.dumps(content, indent=1) + "\n")
