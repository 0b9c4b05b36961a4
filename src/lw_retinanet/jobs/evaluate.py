"""Score a detector, or a file of detections, with the COCO metrics."""

from pathlib import Path

from lw_retinanet.config import MAX_PIXELS
from lw_retinanet.data.box_quality import require_boxes
from lw_retinanet.data.data_use import write_data_use
from lw_retinanet.data.dataset import Dataset
from lw_retinanet.data.preview import choose
from lw_retinanet.data.records import Records
from lw_retinanet.detection.detector import Detector
from lw_retinanet.devices import Precision
from lw_retinanet.drawing import contact_sheet, save_image
from lw_retinanet.errors import InputError
from lw_retinanet.evaluation.coco_metrics import Metrics, evaluate
from lw_retinanet.evaluation.detect_records import detect_records
from lw_retinanet.evaluation.detections import read_results, write_results
from lw_retinanet.evaluation.report import write_metrics
from lw_retinanet.files import existing, output_folder
from lw_retinanet.jobs.load import open_detector
from lw_retinanet.progress import Progress

FIGURE_IMAGES = 8
FIGURE_SCORE = 0.3  # smallest score that is drawn; the metrics use every detection


def run_evaluation(
    model: str | Path | Detector | None = None,
    data: Path | None = None,
    *,
    split: str | None = None,
    ground_truth: Path | None = None,
    detections: Path | None = None,
    out: Path | None = None,
    head: str | None = None,
    precision: Precision = "fp32",
    device: str = "auto",
    batch_size: int = 1,
    max_pixels: int = MAX_PIXELS,
    progress: Progress | None = None,
) -> Metrics:
    """Score a model on a data set, or a file of detections against a file of annotations.

    The parameters are those of :func:`lw_retinanet.evaluate`.
    """
    if ground_truth is None and detections is None and model is not None and data is not None:
        existing(data, "data set")
        if out:
            output_folder(out)
        detector = open_detector(model, head=head, device=device, precision=precision)
        dataset = Dataset.open(data)
        records = dataset.ready(split or dataset.or_whole("val"), classes=detector.categories, max_pixels=max_pixels)
        if out:
            metrics = evaluate_into(out, detector, records, progress=progress, batch_size=batch_size)
            write_data_use(out, scored={split or "val": records})
            return metrics
        return evaluate(records, detect_records(detector, records, batch_size=batch_size, progress=progress))
    if ground_truth is not None and detections is not None and model is None and data is None:
        return _score_file(ground_truth, detections, split, out)
    raise InputError("give either a model and a data set, or the files ground_truth and detections")


def _score_file(ground_truth: Path, detections: Path, split: str | None, out: Path | None) -> Metrics:
    existing(detections, "detections file")
    if out:
        output_folder(out)
    records = Dataset.open(existing(ground_truth, "annotation file")).read(split, joined=False, scoring=True)
    require_boxes(records, ground_truth)
    metrics = evaluate(records, read_results(detections, records))
    if out:
        write_metrics(metrics, out, title=detections.name)
        write_data_use(out, scored={split or "val": records})
    return metrics


def evaluate_into(out: Path, detector: Detector, records: Records, *, progress: Progress | None = None, batch_size: int = 1) -> Metrics:
    """Evaluate, and write ``detections.json``, ``metrics.json`` and two figures: precision over recall, and some images with detections."""
    detections = detect_records(detector, records, batch_size=batch_size, progress=progress)
    metrics = evaluate(records, detections)
    write_results(detections, records, out / "detections.json")
    write_metrics(metrics, out, title=detector.name)
    _save_detections_figure(out / "pictures" / "detections.jpg", detector, records)
    return metrics


def _save_detections_figure(path: Path, detector: Detector, records: Records) -> None:
    """Draw what a detector finds in a few images that show as many classes as possible."""
    chosen = choose(records, count=min(FIGURE_IMAGES, records.num_images), seed=0)
    results = [detector.predict_arrays([records.decode(image)], score=FIGURE_SCORE)[0] for image in chosen]
    sheet = contact_sheet([result.plot() for result in results], columns=4, titles=[Path(records.file_names[i]).name for i in chosen])
    save_image(sheet, path)
