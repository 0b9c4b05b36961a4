"""Metrics as plain text: COCO's twelve lines, and one line a class."""

from lw_retinanet.evaluate.coco_metrics import Metrics


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
    from rich.cells import cell_len, set_cell_size

    rows = [("class", "images", "boxes", "AP", "AP50")]
    for entry in metrics.per_class:
        name = " ".join(entry.name.split())
        rows.append((name, f"{entry.images:,}", f"{entry.boxes:,}", _number(entry.AP), _number(entry.AP50)))
    widths = [max(cell_len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join(
        "  ".join([set_cell_size(row[0], widths[0]), *(f"{cell:>{width}}" for cell, width in zip(row[1:], widths[1:], strict=True))])
        for row in rows
    )


def _number(value: float) -> str:
    return f"{value:.3f}" if value > -1 else "-"
