"""Score a detector, or a file of detections, with the COCO metrics."""

from collections.abc import Sequence
from pathlib import Path

from lw_retinanet.config import MAX_PIXELS
from lw_retinanet.data.box_quality import require_boxes
from lw_retinanet.data.data_use import write_data_use
from lw_retinanet.data.dataset import Dataset
from lw_retinanet.data.preview import choose
from lw_retinanet.data.records import Records
from lw_retinanet.detection.detector import Detector, readable
from lw_retinanet.detection.display_score import DISPLAY_SCORE
from lw_retinanet.detection.tiling import Tiling
from lw_retinanet.devices import Precision
from lw_retinanet.drawing import contact_sheet, save_image
from lw_retinanet.errors import InputError
from lw_retinanet.evaluation.best_score import score_metrics
from lw_retinanet.evaluation.coco_metrics import Metrics
from lw_retinanet.evaluation.detect_records import detect_records
from lw_retinanet.evaluation.detections import DetectionTable, write_results
from lw_retinanet.evaluation.packed_detections import read_detections
from lw_retinanet.evaluation.report import write_metrics
from lw_retinanet.exporting.load import AnyModel, open_detector
from lw_retinanet.files import existing, output_folder
from lw_retinanet.progress import Progress

FIGURE_IMAGES = 8


def run_evaluation(
    model: AnyModel | None = None,
    data: Path | None = None,
    *,
    split: str | None = None,
    classes: Sequence[str] = (),
    ground_truth: Path | None = None,
    detections: Path | None = None,
    out: Path | None = None,
    head: str | None = None,
    precision: Precision = "fp32",
    device: str = "auto",
    batch_size: int = 1,
    max_pixels: int = MAX_PIXELS,
    max_detections: int = 100,
    tiling: Tiling | None = None,
    progress: Progress | None = None,
) -> Metrics:
    """Score a model on a data set, or a file of detections against a file of annotations.

    The parameters are those of :func:`lw_retinanet.evaluate`; ``tiling`` is how images are cut into tiles.
    """
    if not 10 < max_detections <= 100_000:
        raise InputError(f"max_detections must be 11 to 100,000, got {max_detections}; COCO's own limit is 100")
    if ground_truth is None and detections is None and model is not None and data is not None:
        existing(data, "data set")
        if out:
            output_folder(out)
        detector = _giving(open_detector(model, head=head, device=device, precision=precision), max_detections)
        dataset = Dataset.open(data, classes=classes)
        records = dataset.ready(split or dataset.or_whole("val"), classes=detector.categories, max_pixels=max_pixels)
        metrics = evaluate_into(
            out, detector, records, progress=progress, batch_size=batch_size, max_detections=max_detections, tiling=tiling
        )
        if out:
            write_data_use(out, scored={split or "val": records})
        return metrics
    if tiling is not None and model is None:
        raise InputError("tile is for a model and a data set; detections have been made already")
    if ground_truth is not None and detections is not None and model is None and data is None:
        return _score_file(ground_truth, detections, split, classes, out, max_detections)
    raise InputError("give either a model and a data set, or the files ground_truth and detections")


def _score_file(ground_truth: Path, detections: Path, split: str | None, classes: Sequence[str], out: Path | None, most: int) -> Metrics:
    existing(detections, "detections file")
    if out:
        output_folder(out)
    dataset = Dataset.open(existing(ground_truth, "annotation file"), classes=classes)
    records = dataset.read(split, joined=False, scoring=True)
    require_boxes(records, ground_truth)
    metrics = score_metrics(records, read_detections(detections, records), max_detections=(1, 10, most))
    if out:
        write_metrics(metrics, out, title=detections.name)
        write_data_use(out, scored={split or "val": records})
    return metrics


def _giving(detector: Detector, most: int) -> Detector:
    """The detector, which gives at least as many detections of an image as are scored."""
    output = detector.conventions.output
    if output.max_detections >= most:
        return detector
    raised = output.model_copy(update={"max_detections": most, "candidates_per_level": max(output.candidates_per_level, most)})
    return detector.with_conventions(detector.conventions.model_copy(update={"output": raised}))


def evaluate_into(
    out: Path | None,
    detector: Detector,
    records: Records,
    *,
    progress: Progress | None = None,
    batch_size: int = 1,
    max_detections: int = 100,
    tiling: Tiling | None = None,
) -> Metrics:
    """Evaluate, and write ``detections.json``, ``metrics.json`` and two figures: precision over recall, and some images with detections.

    Without a folder nothing is written.
    """
    detections = detect_records(detector, records, batch_size=batch_size, progress=progress, tiling=tiling)
    return score_into(out, detector, records, detections, max_detections=max_detections, tiling=tiling)


def score_into(
    out: Path | None,
    detector: Detector,
    records: Records,
    detections: DetectionTable,
    *,
    max_detections: int = 100,
    tiling: Tiling | None = None,
    metrics: Metrics | None = None,
) -> Metrics:
    """The second half of :func:`evaluate_into`, for detections that are known, and perhaps their metrics."""
    metrics = metrics or score_metrics(records, detections, max_detections=(1, 10, max_detections))
    if out:
        write_results(detections, records, out / "detections.json")
        write_metrics(metrics, out, title=detector.name)
        _save_detections_figure(out / "pictures" / "detections.jpg", detector, records, tiling)
    return metrics


def _save_detections_figure(path: Path, detector: Detector, records: Records, tiling: Tiling | None) -> None:
    """Draw what a detector finds in a few images that show as many classes as possible."""
    chosen = choose(records, count=min(FIGURE_IMAGES, records.num_images), seed=0)
    results = readable(detector.predict_files([records.decode(image) for image in chosen], score=DISPLAY_SCORE, tiling=tiling))
    sheet = contact_sheet([result.plot() for result in results], columns=4, titles=[Path(records.file_names[i]).name for i in chosen])
    save_image(sheet, path)
