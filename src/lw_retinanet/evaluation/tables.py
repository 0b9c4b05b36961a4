"""COCO metrics as plain text: the twelve lines of pycocotools, and one line a class."""

from lw_retinanet.evaluation.coco_metrics import Metrics
from lw_retinanet.tables import aligned


def summary_table(metrics: Metrics) -> str:
    """The twelve lines that users of COCO know, character for character as pycocotools prints them, without a final line break."""
    few, some, many = metrics.max_detections
    rows = (
        ("AP", "0.50:0.95", "all", many, metrics.AP),
        ("AP", "0.50", "all", many, metrics.AP50),
        ("AP", "0.75", "all", many, metrics.AP75),
        ("AP", "0.50:0.95", "small", many, metrics.APs),
        ("AP", "0.50:0.95", "medium", many, metrics.APm),
        ("AP", "0.50:0.95", "large", many, metrics.APl),
        ("AR", "0.50:0.95", "all", few, metrics.AR1),
        ("AR", "0.50:0.95", "all", some, metrics.AR10),
        ("AR", "0.50:0.95", "all", many, metrics.AR100),
        ("AR", "0.50:0.95", "small", many, metrics.ARs),
        ("AR", "0.50:0.95", "medium", many, metrics.ARm),
        ("AR", "0.50:0.95", "large", many, metrics.ARl),
    )
    titles = {"AP": "Average Precision", "AR": "Average Recall"}
    return "\n".join(
        f" {titles[kind]:<18} ({kind}) @[ IoU={iou:<9} | area={area:>6} | maxDets={limit:>3} ] = {value:0.3f}"
        for kind, iou, area, limit, value in rows
    )


def class_table(metrics: Metrics) -> str:
    """One aligned line a class, in the data set's order, under a heading; a class without boxes to find shows ``-``."""
    rows = [("class", "images", "boxes", "AP", "AP50")]
    for entry in metrics.per_class:
        name = " ".join(entry.name.split())
        rows.append((name, f"{entry.images:,}", f"{entry.boxes:,}", _number(entry.AP), _number(entry.AP50)))
    return "\n".join(aligned(rows))


def _number(value: float) -> str:
    return f"{value:.3f}" if value > -1 else "-"
