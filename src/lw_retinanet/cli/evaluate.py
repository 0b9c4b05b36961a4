"""``lw-retinanet evaluate``."""

from pathlib import Path
from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from lw_retinanet.evaluation.coco_metrics import Metrics


def evaluate_command(
    model: Path | None = typer.Argument(None, help="Model file or run folder."),
    data: Path | None = typer.Argument(None, help="Data set."),
    split: str | None = typer.Option(None, help="Split of the data set [default: val, where there are splits]."),
    ground_truth: Path | None = typer.Option(None, help="Annotation file, for --detections."),
    detections: Path | None = typer.Option(None, help="COCO results file to score, instead of a model."),
    out: Path | None = typer.Option(None, help="Folder for detections.json, metrics.json and pictures."),
    head: str | None = typer.Option(
        None, help="Of a lightened model: light, or full, the one it had before [default: light, or the one in an exported file]."
    ),
    precision: str = typer.Option("fp32", help="Of the network: fp32, bf16, or auto: the faster one, measured at the first picture."),
    device: str = typer.Option("auto", help="auto, cpu or cuda."),
    batch_size: int = typer.Option(1, min=1, max=1024, help="Pictures at a time."),
    json: bool = typer.Option(False, "--json", help="Print one JSON object."),
) -> None:
    """Score a model on a data set, or a file of detections against a file of annotations, with the COCO metrics."""
    from lw_retinanet.cli.console import print_json
    from lw_retinanet.errors import InputError
    from lw_retinanet.evaluation.tables import class_table, summary_table

    if ground_truth or detections:
        if model or data or not (ground_truth and detections):
            raise InputError("give either MODEL and DATA, or --ground-truth and --detections")
        metrics = _score_file(ground_truth, detections, split, out)
    elif model and data:
        metrics = _score_model(model, data, split, out, head, precision, device, batch_size)
    else:
        raise InputError("give MODEL and DATA, or --ground-truth and --detections")
    if json:
        print_json(metrics.as_dict())
    else:
        print(summary_table(metrics))
        print()
        print(class_table(metrics))


def _score_file(ground_truth: Path, detections: Path, split: str | None, out: Path | None) -> "Metrics":
    from lw_retinanet.cli.console import existing
    from lw_retinanet.data.box_quality import require_boxes
    from lw_retinanet.data.dataset import Dataset
    from lw_retinanet.evaluation.coco_metrics import evaluate
    from lw_retinanet.evaluation.detections import read_results
    from lw_retinanet.evaluation.write import write_metrics
    from lw_retinanet.files import output_folder

    existing(detections, "detections file")
    if out:
        output_folder(out)
    records = Dataset.open(existing(ground_truth, "annotation file")).read(split)
    require_boxes(records, ground_truth)
    metrics = evaluate(records, read_results(detections, records))
    if out:
        write_metrics(metrics, out, title=detections.name)
    return metrics


def _score_model(
    model: Path, data: Path, split: str | None, out: Path | None, head: str | None, precision: str, device: str, batch_size: int
) -> "Metrics":
    from lw_retinanet.api import load
    from lw_retinanet.cli.console import checked_precision, existing, with_bar
    from lw_retinanet.data.dataset import Dataset
    from lw_retinanet.evaluation.coco_metrics import evaluate
    from lw_retinanet.evaluation.detect_records import detect_records
    from lw_retinanet.files import output_folder
    from lw_retinanet.jobs.train import evaluate_into

    checked = checked_precision(precision)
    existing(data, "data set")
    if out:
        output_folder(out)
    detector = load(model, device=device, precision=checked)
    if head is not None:
        detector = detector.with_head(head)
    dataset = Dataset.open(data)
    records = dataset.ready(split or dataset.or_whole("val"), classes=detector.categories)
    if out:
        return evaluate_into(out, detector, records, progress=with_bar, batch_size=batch_size)
    return evaluate(records, detect_records(detector, records, batch_size=batch_size, progress=with_bar))
