"""Metrics as files."""

import json
from pathlib import Path

from lw_retinanet.evaluation.coco_metrics import Metrics
from lw_retinanet.evaluation.pr_picture import save_pr_picture
from lw_retinanet.files import write_text


def write_metrics(metrics: Metrics, out: Path, *, title: str) -> None:
    """Write ``metrics.json`` and ``pictures/precision_recall.png`` into a folder."""
    write_text(out / "metrics.json", json.dumps(metrics.as_dict(), indent=2) + "\n")
    save_pr_picture(metrics, out / "pictures" / "precision_recall.png", title=title)
