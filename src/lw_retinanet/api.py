"""The public functions. ``create`` builds a network; each other one does a whole job, as the command of its name, with its defaults."""

from collections.abc import Mapping, Sequence
from os import PathLike, fspath
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar, overload

from torch import nn

from lw_retinanet.config import MAX_PIXELS, parse_config
from lw_retinanet.data.records import Category
from lw_retinanet.detection.detector import Detector, HeadChoice, readable, single_images
from lw_retinanet.detection.display_score import DISPLAY_SCORE, SmallestScore
from lw_retinanet.detection.result import Result
from lw_retinanet.detection.tiling import Tiling
from lw_retinanet.devices import Precision
from lw_retinanet.errors import InputError
from lw_retinanet.evaluation.coco_metrics import Metrics
from lw_retinanet.evaluation.paired import Comparison
from lw_retinanet.exporting.load import AnyModel, open_detector
from lw_retinanet.exporting.manifest import ExportPrecision
from lw_retinanet.heads import HeadPlan
from lw_retinanet.jobs.compare import run_comparison
from lw_retinanet.jobs.convert import run_conversion
from lw_retinanet.jobs.evaluate import run_evaluation
from lw_retinanet.jobs.export import Exported, run_export
from lw_retinanet.jobs.lighten import lighten_model
from lw_retinanet.jobs.predict import images_of, labelled_images, predict_into
from lw_retinanet.jobs.profile import CostReport, run_profile
from lw_retinanet.jobs.report import RunReport, run_report
from lw_retinanet.jobs.run_request import checked_request
from lw_retinanet.jobs.ship import ShipSettings, run_ship
from lw_retinanet.jobs.shipment import Shipment
from lw_retinanet.jobs.train import Run, run_training
from lw_retinanet.progress import Progress
from lw_retinanet.weights.create import CreatedModel, created
from lw_retinanet.weights.foreign.conversion import ConvertedModel
from lw_retinanet.weights.model_file import LoadedModel

if TYPE_CHECKING:
    from lw_retinanet.detection.detector import Source
    from lw_retinanet.lightening.calibration_images import Images

ModelT = TypeVar("ModelT", bound=nn.Module)


def create(
    preset: str = "lw-v3",
    *,
    num_classes: int = 80,
    backbone: str = "resnet50",
    backbone_weights: str = "none",
    head_width: int = 256,
    image_size: int = 640,
) -> CreatedModel:
    """Build a detector's network with a random head.

    Args:
        preset: The head: ``retinanet``, ``lw-v1``, ``lw-v2``, ``lw-v3``, ``both-narrow64``, ... (:func:`lw_retinanet.heads.plan_of`).
        num_classes: The number of classes.
        backbone: ``resnet18``, ``resnet34``, ``resnet50``, ``resnet101``, ``resnet152``, ``mobilenet_v2`` or ``timm:NAME``.
        backbone_weights: ``none``, ``imagenet``, or a file with torchvision's parameter names. With weights the backbone's norms are
            frozen.
        head_width: The channels of the pyramid and of the head's towers.
        image_size: The longer side of the resized images in pixels.

    Returns:
        A module: (N, 3, H, W) normalised images -> :class:`~lw_retinanet.structures.Predictions`. Its ``save(path)`` writes a model file,
        and the other functions take it, too; its classes are called ``class_0``, ``class_1``, ...

    Raises:
        InputError: if ``num_classes`` or ``image_size`` is out of range.
        ConfigError: for an unknown name; the message offers the nearest known one.
        WeightsError: if the backbone weights are not available or do not fit.

    Example:
        >>> import torch, lw_retinanet as lw
        >>> model = lw.create("lw-v3", num_classes=7, backbone="resnet18", head_width=64)
        >>> predictions = model(torch.zeros(1, 3, 64, 64))
        >>> tuple(predictions.logits.shape)  # 9 anchors on each of 86 cells
        (1, 774, 7)
    """
    if num_classes < 1:
        raise InputError(f"num_classes must be at least 1, got {num_classes}")
    if not 32 <= image_size <= 4096:
        raise InputError(f"image_size must be from 32 to 4096 pixels, got {image_size}")
    model = {"preset": preset, "backbone": backbone, "backbone_weights": backbone_weights, "head_width": head_width}
    config = parse_config({"model": {**model, "init": "fan_in_light"}}, where="create")
    return created(config.resolved().model, num_classes=num_classes, image_size=image_size)


def load(
    path: str | Path,
    *,
    device: str = "auto",
    precision: Precision = "fp32",
    compile: bool = False,  # noqa: A002
) -> Detector:
    """Open a model file, a run folder or an exported file as a detector.

    Args:
        path: A ``.safetensors`` file of this program, a run folder, or what ``lw-retinanet export`` wrote: an ``.onnx`` file, OpenVINO's
            ``.xml``, or a Triton model folder. Exported files run on the CPU unless a CUDA device is named.
        device: ``auto`` (CUDA if there is a GPU), ``cpu``, ``cuda``, ``cuda:1``, ...
        precision: The precision of the network; ``auto`` takes the faster one, by a measurement.
        compile: Run the network through ``torch.compile``. The first image of every input size then takes a minute, later ones are faster.

    Raises:
        WeightsError: if the file is missing, damaged or not a model of this program.
        MissingExtraError: if the runtime of an exported file is not installed.

    Example:
        >>> import lw_retinanet as lw
        >>> detector = lw.load("runs/mine", device="cpu")
        >>> detector.class_names
        ('disc', 'checker', 'star', 'ring')
        >>> results = detector.predict("my_data/images/val_0001.jpg", score=0.5)
        >>> len(results)
        1
    """
    return open_detector(path, device=device, precision=precision, compile=compile)


def train(
    data: str | Path | None = None,
    *,
    model: str | Path | None = None,
    config: str | Path | Mapping[str, Mapping[str, Any]] | None = None,
    train: Mapping[str, Any] | None = None,
    out: str | Path | None = None,
    resume: str | Path | None = None,
    device: str = "auto",
    progress: Progress | None = None,
) -> Run:
    """Train a detector, evaluate it on ``val``, and leave model, metrics, log and figures in one run folder.

    Args:
        data: The data set: a folder or an annotation file, recognised by its content. None takes the one that ``config`` or the resumed
            run was made with.
        model: A preset such as ``lw-v3``, or the path of a model file or run folder to start from. None takes the one in ``config``, or
            else ``lw-v3``.
        config: A YAML file with settings, or the same as a mapping, for instance ``{"data": {"image_size": 416}}``; ``docs/settings.md``
            lists all settings.
        train: Settings of the section ``train``, which override those in ``config``.
        out: The new run folder; None takes the next free ``runs/MODEL-DATA-NUMBER``.
        resume: The folder of a run to continue.
        device: ``auto`` (CUDA if there is a GPU), ``cpu``, ``cuda``, ``cuda:1``, ...
        progress: Wraps the batches of the evaluation, for instance to show a bar.

    Returns:
        The run: ``run.folder``, ``run.metrics`` (None if the data set has no ``val``) and ``run.detector()``.

    Raises:
        ConfigError: for settings that are unknown, out of range or contradictory.
        DataError: if the data set cannot be trained on.
        RunFolderError: if ``out`` is not empty, or ``resume`` holds no run that these settings continue.
        TrainingError: if the loss is not finite.

    Example:
        >>> import lw_retinanet as lw
        >>> small = {"model": {"backbone": "resnet18", "head_width": 64}, "data": {"image_size": 64, "workers": 0}}
        >>> run = lw.train("my_data", model="lw-v3", config=small, out="runs/new", train={"steps": 2, "batch_size": 2, "precision": "fp32"})
        >>> run.metrics.images
        24
        >>> sorted(path.name for path in run.folder.iterdir() if path.suffix)
        ['config.yaml', 'data.json', 'detections.json', 'log.jsonl', 'metrics.json', 'model.safetensors']
    """
    request = checked_request(
        _path(data),
        model=None if model is None else fspath(model),
        config=config if isinstance(config, Mapping) else _path(config),
        train=train or {},
        out=_path(out),
        resume=_path(resume),
    )
    return run_training(**vars(request), device=device, progress=progress)


def evaluate(
    model: AnyModel | None = None,
    data: str | Path | None = None,
    *,
    split: str | None = None,
    classes: Sequence[str] = (),
    ground_truth: str | Path | None = None,
    detections: str | Path | None = None,
    out: str | Path | None = None,
    head: HeadChoice | None = None,
    precision: Precision = "fp32",
    device: str = "auto",
    batch_size: int = 1,
    max_pixels: int = MAX_PIXELS,
    max_detections: int = 100,
    tile: int | None = None,
    overlap: float = 0.2,
    whole_image: bool = False,
    progress: Progress | None = None,
) -> Metrics:
    """Score a model on a data set, or a file of detections against a file of annotations, with the COCO metrics.

    Args:
        model: A model file, run folder or exported file, or an object that holds a model, as for :func:`predict`.
        data, split, classes: The data set, a split (None: ``val`` if it has splits), and names of the only classes that count (() is all).
        ground_truth, detections: In place of ``model`` and ``data``, an annotation file and what is scored: COCO results, or a folder.
        out: A folder for ``detections.json``, ``metrics.json`` and figures; None writes nothing.
        head, precision, device, max_pixels, tile, overlap, whole_image: As for :func:`predict`.
        batch_size: The number of images that go through the network at a time; with ``tile``, the number of tiles of one image.
        max_detections: How many detections of an image and class are scored, best first; COCO's limit is 100.
        progress: Wraps the batches, for instance to show a bar.

    Raises:
        WeightsError, DataError: if the model, the data set or the detections cannot be used.

    Example:
        >>> import lw_retinanet as lw
        >>> metrics = lw.evaluate("runs/mine", "my_data")  # the twelve COCO numbers in 0..1, and those of every class
        >>> metrics.images, 0 <= metrics.AP <= 1
        (24, True)
        >>> lw.evaluate(ground_truth="my_data/val.json", detections="runs/mine/detections.json").AP == metrics.AP
        True
    """
    return run_evaluation(
        model,
        _path(data),
        split=split,
        classes=classes,
        ground_truth=_path(ground_truth),
        detections=_path(detections),
        out=_path(out),
        head=head,
        precision=precision,
        device=device,
        batch_size=batch_size,
        max_pixels=max_pixels,
        max_detections=max_detections,
        tiling=Tiling.of(tile, overlap=overlap, whole_image=whole_image),
        progress=progress,
    )


def predict(
    model: AnyModel,
    sources: "Sequence[Source] | Source | None" = None,
    *,
    data: str | Path | None = None,
    split: str | None = None,
    out: str | Path | None = None,
    score: SmallestScore = DISPLAY_SCORE,
    head: HeadChoice | None = None,
    precision: Precision = "fp32",
    device: str = "auto",
    batch_size: int = 1,
    max_pixels: int = MAX_PIXELS,
    nms: float | None = None,
    class_agnostic: bool = False,
    max_detections: int | None = None,
    tile: int | None = None,
    overlap: float = 0.2,
    whole_image: bool = False,
    bands: Sequence[int] | None = None,
    value_range: Sequence[float] | None = None,
    wgs84: bool = False,
) -> list[Result]:
    """Find objects in images.

    Args:
        model: A model file, run folder or exported file; or what ``load``, ``train``, ``convert``, ``from_torchvision`` or ``create`` gave.
        sources: Files, folders, globs, PIL images or (H, W, 3) uint8 RGB arrays; one of them, or several. None are the images of ``data``.
        data, split: A data set, and a split of it (None takes ``val`` if there are splits); ``results.json`` has its ids.
        out: A folder for images with boxes, ``predictions.json`` and ``results.json`` (COCO); None writes nothing.
        score: The smallest score of a detection; ``best`` is :attr:`Detector.best_score`. The default is for people who look at images;
            ``Detector.predict`` gives everything above the model's own threshold.
        head: The head of a lightened model: ``light``, or ``full`` for the one it had before; None takes the one that answers by default.
        precision: The precision of the network; ``auto`` takes the faster one, by a measurement.
        device: ``auto`` (CUDA if there is a GPU), ``cpu``, ``cuda``, ``cuda:1``, ...
        batch_size: The number of images that go through the network at a time.
        max_pixels: The most pixels of an image; larger ones are refused.
        nms, class_agnostic, max_detections: As for :meth:`Detector.with_output`.
        tile: The side in pixels of the tiles that large images are cut into. Rasters such as GeoTIFFs are then read tile by tile, whatever
            their size (extra ``geo``), and with ``out`` their boxes also go into a GeoJSON file.
        overlap: The share of a tile that the next one has, too. It should be larger than the objects.
        whole_image: Also look at the image as a whole, for objects larger than a tile.
        bands: The bands of a raster that are red, green and blue, counted from 1; None takes those that the file calls so.
        value_range: The values of a raster that become black and full brightness; needed unless it has 8 bits a sample.
        wgs84: GeoJSON in longitude and latitude instead of the raster's own coordinates.

    Returns:
        One result for each image, in order.

    Raises:
        WeightsError: if the model cannot be opened.
        ImageError: for an image that cannot be read.
        InputError: if ``out`` holds one of the images.

    Example:
        >>> import lw_retinanet as lw
        >>> results = lw.predict("runs/mine", ["my_data/images/val_0001.jpg", "my_data/images/val_0002.jpg"])
        >>> [result.file for result in results]
        ['my_data/images/val_0001.jpg', 'my_data/images/val_0002.jpg']
        >>> results[0].boxes.shape[1]  # x1, y1, x2, y2 in pixels
        4
    """
    tiling = Tiling.of(tile, overlap=overlap, whole_image=whole_image, bands=bands, value_range=value_range, wgs84=wgs84)
    records = labelled_images(_path(data), split)
    outcomes = predict_into(
        _path(out),
        model,
        images_of(records) if sources is None else single_images(sources),
        records=records,
        score=score,
        head=head,
        precision=precision,
        device=device,
        batch_size=batch_size,
        max_pixels=max_pixels,
        output={"nms": nms, "class_agnostic": class_agnostic, "max_detections": max_detections},
        tiling=tiling,
    )
    return readable(outcomes)


def convert(
    weights: str | Path,
    out: str | Path | None = None,
    *,
    origin: str = "auto",
    classes: str | Path | Sequence[str] | Sequence[Category] | None = None,
    overrides: Mapping[str, Any] | None = None,
    check: Sequence[str | Path] = (),
    half: bool = False,
) -> ConvertedModel:
    """Convert a trained RetinaNet of torchvision, Detectron2, MMDetection, odtk or Detectron, so that it gives the same detections.

    Args:
        weights: A weights file, or a folder as the Hugging Face hub has it; ``torchvision:retinanet_resnet50_fpn`` or
            ``torchvision:retinanet_resnet50_fpn_v2``, which are downloaded unless torch's cache holds them; or a model file or run folder
            of ours, for which only ``classes`` and ``overrides`` matter.
        out: The model file to write (``.safetensors``); None writes nothing.
        origin: ``torchvision``, ``detectron2``, ``mmdet``, ``odtk`` or ``caffe2``; ``auto`` recognises the framework by the names of the
            tensors.
        classes: Names, categories, a text file of names, or a data set. They name the class rows if only the number of rows is known. If
            the file names other classes, or has COCO's number of rows and not theirs, the model is changed to predict these classes.
        overrides: Dotted names of fields of :class:`lw_retinanet.Conventions` -> values, for instance ``{"input.size": 416}``, and
            ``backbone``.
        check: Images, folders or globs on which the model is also compared with the origin's own library, if that is installed.
        half: Store the kernels of convolutions in fp16; norms and biases stay in fp32.

    Returns:
        The model with the conventions of its framework (``loaded``), and a report on every tensor (``report``).

    Raises:
        WeightsError: if the source cannot be read, is no RetinaNet of these frameworks, or does not fit.
        ConfigError: for a framework or an override that does not exist.
        InputError: for classes that cannot be read.
        OutputError: if the model file cannot be written.

    Example:
        >>> import torch, torchvision, lw_retinanet as lw
        >>> model = torchvision.models.detection.retinanet_resnet50_fpn(weights=None, weights_backbone=None, num_classes=3)
        >>> torch.save(model.state_dict(), "retinanet.pth")
        >>> converted = lw.convert("retinanet.pth", "converted.safetensors", classes=["cat", "dog"])  # row 0 is the background
        >>> converted.report.framework
        'torchvision'
        >>> lw.load("converted.safetensors").class_names
        ('cat', 'dog')
    """
    return run_conversion(weights, _path(out), origin=origin, classes=classes, overrides=overrides, check=check, half=half)


def profile(
    model: AnyModel,
    *,
    size: int | tuple[int, int] | None = None,
    classes: int | None = None,
    backbone: str | None = None,
    width: int | None = None,
    anchors: Literal["nine", "one"] | None = None,
    stride_in: Literal["3x3", "1x1"] | None = None,
    budget: float | None = None,
    latency: bool = False,
    plot: str | Path | None = None,
    device: str = "auto",
) -> CostReport:
    """Count multiply-accumulates and parameters of every block of a detector.

    Args:
        model: A preset, a model file, a run folder, ``torchvision:NAME``, an object that holds a model, or any network of torchvision.
        size: The side of the network input in pixels, or its height and width; None is 800 for presets and the model's own for others.
        classes: The number of classes of a preset (None is 80), or of ``torchvision:NAME`` with the background as one (None is 91).
        backbone: The backbone of a preset; None is ``resnet50``.
        width: The channels of a preset's pyramid and towers; None is 256.
        anchors: The anchors of a preset's cell: ``nine``, or ``one`` as in ATSS; None is ``nine``.
        stride_in: The convolution of a preset's bottleneck that has the stride; None is ``3x3``.
        budget: The GMACs to reach: ranks what is worth lightening, and proposes the plan that is expected to do the least harm.
        latency: Also measure milliseconds an image, here and now.
        plot: A ``.png`` or ``.svg`` file for a bar chart: every block, or with a budget what is saved where.
        device: The device for ``latency``: ``auto``, ``cpu``, ``cuda``, ...

    Returns:
        ``cost`` with MACs and parameters, and, with a budget, ``ranking`` and ``proposal``.

    Raises:
        InputError: for a model that does not exist, or a budget that no plan reaches.
        ConfigError: for a size that is too small, or a detector that cannot be counted.

    Example:
        >>> import lw_retinanet as lw
        >>> full, light = lw.profile("retinanet").cost, lw.profile("lw-v3").cost
        >>> f"{full.macs / 1e9:.2f} {light.macs / 1e9:.2f} GMACs"
        '149.19 91.77 GMACs'
        >>> f"{full.share(full.blocks['D3']):.0%}"
        '43%'
    """
    return run_profile(
        model,
        size=size,
        classes=classes,
        backbone=backbone,
        width=width,
        anchors=anchors,
        stride_in=stride_in,
        budget=budget,
        latency=latency,
        plot=_path(plot),
        device=device,
    )


def compare(
    detections_a: str | Path,
    detections_b: str | Path,
    data: str | Path,
    *,
    split: str | None = None,
    classes: Sequence[str] = (),
    draws: int = 1000,
    seed: int = 0,
    progress: Progress | None = None,
) -> Comparison:
    """Say how much better the detections B are than the detections A, with 95 % intervals.

    The same images are drawn for both, with replacement, many times, and both are scored on every draw.

    Args:
        detections_a: The COCO results file of the first detector.
        detections_b: The COCO results file of the second detector.
        data: The data set that both were run on, with at least 20 images.
        split: The split of the data set; None takes ``val`` if the data set has splits.
        classes: Names of the only classes that count; () is all.
        draws: How often images are drawn, at least 100.
        seed: Seed for the draws.
        progress: Wraps the draws, for instance to show a bar.

    Returns:
        The metrics of B minus those of A.

    Raises:
        DataError: if the data set or the detections cannot be used.
        InputError: if there are too few images.

    Example:
        >>> import lw_retinanet as lw
        >>> comparison = lw.compare("runs/mine/detections.json", "runs/mine/detections.json", "my_data", draws=100)
        >>> comparison.as_dict()["difference"], comparison.images
        (0.0, 24)
    """
    return run_comparison(
        Path(detections_a), Path(detections_b), Path(data), split=split, classes=classes, draws=draws, seed=seed, progress=progress
    )


def export(
    model: AnyModel,
    out: str | Path,
    *,
    format: str | None = None,  # noqa: A002
    precision: ExportPrecision = "fp32",
    calibrate: str | Path | None = None,
    calibration_images: int = 300,
    validate: str | Path | None = None,
    gate_images: int | None = None,
    max_drop: float = 0.5,
    allow_drop: bool = False,
    symmetric: bool = False,
    end_to_end: bool = False,
    half_weights: bool = False,
    head: HeadChoice = "light",
    seed: int = 0,
    progress: Progress | None = None,
) -> Exported:
    """Write a model for ONNX Runtime, OpenVINO or Triton, after comparing it with PyTorch.

    Args:
        model: A model file or run folder, or an object that holds a model, as for :func:`predict`.
        out: The file to write: ``.onnx``, or ``.xml`` for OpenVINO (its weights go beside it as ``.bin``); or a new folder for Triton.
        format: ``onnx``, ``openvino`` or ``triton``; None takes the one that the suffix of ``out`` belongs to.
        precision: ``fp32``, ``bf16`` (OpenVINO) or ``int8``, which needs ``calibrate``.
        calibrate, calibration_images: For int8: a data set or a folder with calibration images, and the largest number of them.
        validate, gate_images: For int8: the data set whose ``val`` gives the AP (None takes ``calibrate``), and the largest number of its
            images (None takes all).
        max_drop: The points of AP that int8 may cost.
        allow_drop: Write the int8 file even if it costs more, and flag it.
        symmetric: int8 ranges around zero, as TensorRT needs them (ONNX).
        end_to_end: Decoding and NMS inside the file (ONNX).
        half_weights: Store weights in fp16 (OpenVINO).
        head: The head of a lightened model: ``light``, or ``full`` for the one it had before.
        seed: Seed for the choice of images.
        progress: Wraps the validation images, for instance to show a bar.

    Returns:
        The file, its manifest, how it was compared with PyTorch and, for int8, what it costs.

    Raises:
        InputError: for settings that do not go with the model, the data or one another.
        MissingExtraError: if a package is not installed; the message names the extra.
        ExportError: if the file does not answer as the model does, or int8 costs too much. Nothing is written then.

    Example:
        >>> import lw_retinanet as lw
        >>> exported = lw.export("runs/mine", "mine.onnx")
        >>> exported.agreement.missing  # detections of PyTorch that the file does not give
        0
        >>> lw.load("mine.onnx").class_names
        ('disc', 'checker', 'star', 'ring')
    """
    return run_export(
        model,
        out,
        format=format,
        precision=precision,
        calibrate=calibrate,
        calibration_images=calibration_images,
        validate=validate,
        gate_images=gate_images,
        max_drop=max_drop / 100,
        allow_drop=allow_drop,
        symmetric=symmetric,
        end_to_end=end_to_end,
        half_weights=half_weights,
        head=head,
        seed=seed,
        progress=progress,
    )


def report(run: str | Path, out: str | Path | None = None, *, data: str | Path | None = None) -> RunReport:
    """Write one HTML page of a training run, which begins with what to do next and needs no other file.

    A run that is not finished, was not evaluated, or whose data set is gone gives a page that says what is missing.

    Args:
        run: The run folder.
        out: The HTML file to write, in a folder that exists; None takes ``report.html`` in the run folder.
        data: Where the data set of the run is now; None takes the place where it was.

    Returns:
        ``.page``, its path; ``.findings``, what to do next, each with ``what``, ``do`` and ``section``; and ``.missing``.

    Raises:
        RunFolderError: if ``run`` is no run folder.
        InputError: if ``data`` does not exist.
        OutputError: if the page cannot be written.

    Example:
        >>> import lw_retinanet as lw
        >>> report = lw.report("runs/mine")
        >>> report.page.name
        'report.html'
        >>> [finding.do for finding in report.findings if "random" in finding.what][0][:30]
        'Start from trained ones: model'
    """
    return run_report(Path(run), _path(out), data=_path(data))


def ship(
    model: str | Path,
    data: str | Path,
    out: str | Path,
    *,
    max_drop: float = 0.5,
    to: str | None = None,
    budget: float | None = None,
    epochs: int = 0,
    classes: str | None = None,
    fit_steps: int = 1500,
    rounds: int = 30,
    seed: int = 0,
    device: str = "auto",
    progress: Progress | None = None,
) -> Shipment:
    """Lighten a trained detector, export it in the form that is fastest here with AP inside the limit, and write the receipt on a page.

    Args:
        model: A model file, a run folder, a checkpoint of another framework (:func:`convert`), or ``torchvision:NAME``.
        data: The data set. Images of its training split are looked at, and the boxes of ``val`` measure AP.
        out: The folder for models, ``results.md`` and figures. If it was interrupted, the finished steps are kept.
        max_drop: Points of AP that the shipped file may lose against the original.
        to: The preset to lighten to. Without one it is ``lw-narrow`` or, with a budget, a plan that reaches the budget.
        budget: GMACs that the light model may need at the model's image size.
        epochs: Epochs of training with labels after lightening, with the old head as the teacher.
        classes: For a checkpoint that does not name its classes: as for :func:`convert`, as text.
        fit_steps: Steps of the fit, which needs no labels.
        rounds: Rounds of timing.
        seed: Seed for the choice of images and for the order of fit and training.
        device: ``auto``, ``cpu`` or ``cuda``.
        progress: Wraps images, steps and rounds, for instance to show a bar.

    Returns:
        The numbers; ``shipped`` is the form that is shipped, or None if every one loses more than ``max_drop``. Files are kept then, too.

    Raises:
        InputError: for a model or data that cannot be used, or a folder that was made from something else. Nothing is written then.

    Example:
        >>> import lw_retinanet as lw
        >>> shipment = lw.ship("runs/mine", "my_data", "receipt", max_drop=100, fit_steps=2, rounds=2)
        >>> lw.load(shipment.shipped.file).class_names
        ('disc', 'checker', 'star', 'ring')
        >>> shipment.page.name
        'results.md'
    """
    settings = ShipSettings(
        to=to,
        budget=budget,
        max_drop=max_drop,
        epochs=epochs,
        classes=classes,
        fit_steps=fit_steps,
        rounds=rounds,
        seed=seed,
        device=device,
    )
    return run_ship(model, Path(data), Path(out), settings, progress=progress)


def _path(value: str | Path | None) -> Path | None:
    return None if value is None else Path(value)


@overload
def lighten(  # type: ignore[overload-overlap]
    model: "Detector | str | PathLike[str] | LoadedModel | ConvertedModel | CreatedModel",
    to: str | HeadPlan = ...,
    *,
    images: "Images | None" = ...,
    fit_steps: int | None = ...,
    keep_pyramid: bool = ...,
    light_pyramid: bool = ...,
    seed: int = ...,
    progress: Progress | None = ...,
) -> Detector: ...


@overload
def lighten(
    model: ModelT,
    to: str | HeadPlan = ...,
    *,
    images: "Images | None" = ...,
    fit_steps: int | None = ...,
    keep_pyramid: bool = ...,
    light_pyramid: bool = ...,
    seed: int = ...,
    progress: Progress | None = ...,
) -> ModelT: ...


def lighten(
    model: AnyModel,
    to: str | HeadPlan = "lw-narrow",
    *,
    images: "Images | None" = None,
    fit_steps: int | None = None,
    keep_pyramid: bool = False,
    light_pyramid: bool = False,
    seed: int = 0,
    progress: Progress | None = None,
) -> Detector | nn.Module:
    """Make a trained detector cheaper: its finest level gets light towers, fitted to give the answers of the old ones.

    All weights that the plan does not name stay as they are, and so do the answers of the levels P4 to P7. The given model is not changed.

    A torchvision detector, here a very small one, stays what it is:

    >>> import torch, lw_retinanet as lw
    >>> from torchvision.models.detection import RetinaNet
    >>> from torchvision.models.detection.anchor_utils import AnchorGenerator
    >>> backbone = torch.nn.Conv2d(3, 128, kernel_size=8, stride=8)
    >>> anchors = AnchorGenerator(sizes=((16, 32),), aspect_ratios=((1.0,),))
    >>> model = RetinaNet(backbone, num_classes=3, anchor_generator=anchors, min_size=64, max_size=64)
    >>> images = [torch.rand(3, 64, 64), torch.rand(3, 64, 64)]
    >>> light = lw.lighten(model, images=images, fit_steps=2)
    >>> type(light) is type(model)
    True
    >>> sorted(light.eval()(images)[0])
    ['boxes', 'labels', 'scores']

    Args:
        model: torchvision's ``RetinaNet`` or ``FCOS``, or its ``FasterRCNN``, ``MaskRCNN`` or ``KeypointRCNN`` with a feature pyramid (of
            which the proposal network becomes light on P2); or a subclass of these; or a model file, a run folder, or what ``load``,
            ``train``, ``convert``, ``from_torchvision`` or ``create`` gave.
        to: A preset such as ``lw-narrow``, ``lw-v3`` or ``both-v3-bn`` (:func:`lw_retinanet.heads.plan_of`), or a plan.
        images: Calibration images, which should be like those that the model will see; labels are not read. A folder, a data set (at most
            512 images of its training split are drawn), or a list of files. For a torchvision model the list may also hold PIL images,
            (H, W, 3) uint8 arrays, and (3, H, W) float tensors as the model takes them. Without images the towers are filled from the old
            weights alone, which costs much accuracy until the model is trained again.
        fit_steps: Number of steps of distillation after the closed form. None means 1500, which take minutes on two cores, or 0 if there
            are no images.
        keep_pyramid: Leave the convolution that makes the finest map (and P4) as it is. By default it is fitted too if both branches are
            new, because then only they read its map. This costs no arithmetic.
        light_pyramid: For torchvision's R-CNNs: put a depthwise and a 1x1 convolution in the place of the 3x3 one that makes P2, fitted to
            give the old map. The second stage reads that map, so its answers change a little.
        seed: Seed for everything that is drawn at random.
        progress: Passes on images, feature maps and steps, for instance to show a bar.

    Returns:
        For a torchvision model, a model of the same class, in the same mode and on the same device, for the same training code; otherwise
        a detector that has both heads.

    Raises:
        InputError: if this model cannot be lightened, or the images cannot be used; the message says why.
        ImageError: for an image that cannot be read.
        ConfigError: for an unknown preset, with the nearest known one.
        WeightsError: if a model file cannot be used.
    """
    pyramid = {"keep_pyramid": keep_pyramid, "light_pyramid": light_pyramid}
    return lighten_model(model, to, images=images, fit_steps=fit_steps, seed=seed, progress=progress, **pyramid)
