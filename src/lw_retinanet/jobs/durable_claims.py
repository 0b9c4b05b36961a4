"""The claims of the self-check. Each tries its cases one by one and says of each what went wrong, if anything did."""

import contextlib
import copy
import importlib.util
import io
import json
import time
from collections.abc import Callable, Iterator, Mapping
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchvision.models.detection import retinanet_resnet50_fpn

from lw_retinanet.conventions import Conventions, InputRule
from lw_retinanet.counting.macs import count_blocks
from lw_retinanet.data.images import decode
from lw_retinanet.data.records import Category, Records, build_records
from lw_retinanet.data.sample import make_sample
from lw_retinanet.detection.detector import Detector
from lw_retinanet.errors import InputError, MissingExtraError, TrainingError, first_line
from lw_retinanet.evaluation.coco_metrics import evaluate
from lw_retinanet.evaluation.detections import DetectionTable
from lw_retinanet.exporting.matches import Detected, match_lists
from lw_retinanet.heads import PRESETS
from lw_retinanet.jobs.command_server import CommandServer, RunningCommand
from lw_retinanet.jobs.hostile_files import (
    HEIGHT,
    WIDTH,
    hostile_annotations,
    hostile_images,
    hostile_models,
    odd_annotations,
    odd_images,
)
from lw_retinanet.jobs.train import open_training_data
from lw_retinanet.models.build import build
from lw_retinanet.models.retinanet import RetinaNet
from lw_retinanet.training.step import autocast
from lw_retinanet.weights.foreign.torchvision_model import from_torchvision
from lw_retinanet.weights.model_file import load_model, make_record, save_model

Cases = Iterator[tuple[str, str | None]]
"""For each case its name, and what went wrong; None if nothing did."""

# 800 x 800, 80 classes, 9 anchors, ResNet-50 with the stride in the 3x3, P6 from C5: multiply-accumulates of the network and of D3.
MACS = {
    "retinanet": (149_194_714_112, 64_604_160_000),
    "lw-v1": (138_708_954_112, 54_118_400_000),
    "lw-v2": (113_477_594_112, 28_887_040_000),
    "lw-v3": (91_768_794_112, 7_178_240_000),
    "lw-v3-released": (92_506_074_112, 7_915_520_000),
    "bbox-v1": (127_601_114_112, 43_010_560_000),
    "bbox-v2": (138_708_954_112, 54_118_400_000),
    "bbox-v3": (127_485_914_112, 42_895_360_000),
    "lw-narrow": (92_443_354_112, 7_852_800_000),
    "lw-dw5": (91_896_794_112, 7_306_240_000),
}
PATIENCE_SECONDS = 300.0


class Workshop:
    """What the claims need, made when the first one asks for it.

    Args:
        folder: An empty folder.
        is_quick: Whether fewer cases are wanted.
        commands: Starts commands.
    """

    def __init__(self, folder: Path, *, is_quick: bool, commands: CommandServer) -> None:
        self.folder, self.is_quick, self.commands = folder, is_quick, commands

    @cached_property
    def data(self) -> Path:
        """A made-up data set."""
        return make_sample(self.folder / "data", num_train=8, num_val=4, size=64)

    @cached_property
    def annotations(self) -> dict[str, Any]:
        """Its training annotations."""
        table: dict[str, Any] = json.loads((self.data / "train.json").read_text(encoding="utf-8"))
        return table

    @cached_property
    def model_file(self) -> Path:
        """A small model with random weights that finds plenty in every image."""
        torch.manual_seed(0)
        shape: dict[str, Any] = {"backbone": "resnet18", "width": 32, "norm": "batch"}
        rule = Conventions(input=InputRule(size=64))
        model = build(PRESETS["lw-v3"], num_classes=3, init="fan_in", conventions=rule, **shape).eval()
        with torch.no_grad():
            for name, parameter in model.head.named_parameters():
                if name.endswith("bias") and parameter.numel() == 27:  # nine anchors of three classes, whose prior is taken out
                    parameter.zero_()
        names = tuple(Category(id=number, name=name) for number, name in enumerate("abc", start=1))
        path = self.folder / "model.safetensors"
        save_model(path, model, make_record(model, preset="lw-v3", plan=PRESETS["lw-v3"], categories=names, notes={}, **shape))
        return path


def counts(_: Workshop) -> Cases:
    """Every preset's multiply-accumulates, exactly."""
    for preset, wanted in MACS.items():
        with torch.device("meta"):
            blocks = count_blocks(build(PRESETS[preset], num_classes=80, backbone="resnet50", conventions=Conventions()), (800, 800))
        found = (sum(cost.macs for cost in blocks.values()), blocks["D3"].macs)
        yield preset, None if found == wanted else f"{found} in place of {wanted}"


def parity(workshop: Workshop) -> Cases:
    """torchvision's RetinaNet and ours with the same weights, from pixels to boxes."""
    theirs = _lively_torchvision()
    loaded = from_torchvision(theirs)
    ours = Detector.of_model(loaded.model, loaded.record.categories)
    random = np.random.default_rng(3)
    for number in range(3 if workshop.is_quick else 12):
        size_hw = [(160, 160), (120, 200), (210, 130)][number % 3]
        image = random.integers(0, 255, (*size_hw, 3), dtype=np.uint8)
        [given] = ours.predict_arrays([image])
        with torch.inference_mode():
            [wanted] = theirs([torch.from_numpy(image).permute(2, 0, 1) / 255])
        rows = loaded.record.categories
        labels = torch.tensor([rows[label].id for label in given.labels.tolist()])
        answer = Detected(torch.from_numpy(given.boxes), torch.from_numpy(given.scores), labels)
        truth = Detected(wanted["boxes"], wanted["scores"], wanted["labels"])
        # Scores and overlaps that differ by less than the tolerance may be cut off by NMS or by the limit in one of the two.
        apart = match_lists(truth, answer, most=300, box=0.05, score=1e-4, threshold=0.05, nms_iou=theirs.nms_thresh)
        is_right = len(truth.scores) > 0 and apart.missing == 0
        yield f"image {number}", None if is_right else f"{apart.missing} of {len(truth.scores)} detections have no match within 0.05 pixels"


def kills(workshop: Workshop) -> Cases:
    """Training killed with -9 goes on to the same bytes."""
    whole, broken = workshop.folder / "whole", workshop.folder / "broken"
    _ended(_training(workshop, whole))
    count, random = (1 if workshop.is_quick else 5), np.random.default_rng(5)
    for number in range(count):
        training = _training(workshop, broken)
        wanted = _lines(broken) + int(random.integers(1, 4))
        limit = time.monotonic() + PATIENCE_SECONDS
        while training.poll() is None and _lines(broken) < wanted and time.monotonic() < limit:
            time.sleep(0.01)
        time.sleep(float(random.uniform(0, 0.1)))
        code = training.poll()
        training.kill()
        if number < count - 1:
            yield f"kill {number + 1}", None if code is None else f"the run had ended by itself with code {code}"
    _ended(_training(workshop, broken))
    same = (whole / "model.safetensors").read_bytes() == (broken / "model.safetensors").read_bytes()
    yield f"kill {count}, and the end", None if same else "the weights are not those of the unbroken run"


def images(workshop: Workshop) -> Cases:
    """Broken images are refused in one line; odd ones are read as they look."""
    for name, content in hostile_images().items():
        yield name, _refused(partial(decode, content))
    for name, content in odd_images().items():
        pixels = decode(content)
        is_white = pixels.shape == (HEIGHT, WIDTH, 3) and int(pixels.min()) >= 250
        yield name, None if is_white else f"{pixels.shape}, down to {pixels.min()}, and not white of {(HEIGHT, WIDTH, 3)}"


def datasets(workshop: Workshop) -> Cases:
    """Data that cannot be trained on is refused in one line; single faults are trained around."""
    file, good = workshop.data / "train.json", workshop.annotations
    before = file.read_bytes()
    try:
        for name, content in hostile_annotations(good).items():
            file.write_bytes(content)
            yield name, _refused(lambda: open_training_data(workshop.data))
        for name, content in odd_annotations(good).items():
            file.write_bytes(content)
            records, _ = open_training_data(workshop.data)
            yield name, None if records.num_images == len(good["images"]) else f"{records.num_images} images are left"
    finally:
        file.write_bytes(before)


def models(workshop: Workshop) -> Cases:
    """Damaged model files are refused in one line; the good one is loaded."""
    good = workshop.model_file.read_bytes()
    file = workshop.folder / "damaged.safetensors"
    for name, content in hostile_models(good).items():
        file.write_bytes(content)
        yield name, _refused(lambda: load_model(file))
    file.write_bytes(good)
    yield "a whole one", None if load_model(file).model.num_classes == 3 else "it has other classes"


def scores(workshop: Workshop) -> Cases:
    """The twelve COCO numbers are those of pycocotools."""
    try:
        from pycocotools.coco import COCO
        from pycocotools.cocoeval import COCOeval
    except ImportError:
        raise MissingExtraError("pycocotools is not installed") from None
    for number in range(20 if workshop.is_quick else 200):
        truth, table, results, dataset = _drawn(np.random.default_rng(number))
        with contextlib.redirect_stdout(io.StringIO()):
            coco = COCO()
            coco.dataset = copy.deepcopy(dataset)
            coco.createIndex()
            evaluation = COCOeval(coco, coco.loadRes(results), "bbox")
            evaluation.evaluate()
            evaluation.accumulate()
            evaluation.summarize()
        given = [value for name, value in evaluate(truth, table).as_dict().items() if name not in ("per_class", "images")][:12]
        worst = float(np.abs(np.array(given, np.float64) - evaluation.stats).max())
        yield f"case {number}", None if worst <= 1e-9 else f"a number differs by {worst:.2g}"


def exports(workshop: Workshop) -> Cases:
    """Exported files answer as PyTorch does, at other batches and sizes, for what is installed."""
    known = {"openvino": ("model.xml", ("openvino",)), "onnx": ("model.onnx", ("onnx", "onnxruntime", "onnxscript"))}
    installed = [form for form, (_, packages) in known.items() if all(importlib.util.find_spec(package) for package in packages)]
    for form in installed[: 1 if workshop.is_quick else None]:
        # In a process of its own: a library that crashes must not take the self-check with it.
        out = workshop.folder / "exported" / known[form][0]
        yield form, _fault_of(_command(workshop, "export", workshop.model_file, format=form, out=out))
    if missing := [form for form in known if form not in installed]:
        raise MissingExtraError(f"{' and '.join(missing)} not installed")


def bf16(_: Workshop) -> Cases:
    """A step in bf16 gives gradients like those in fp32, on this processor."""
    for side in (64, 96, 128):
        gradients: dict[bool, Mapping[str, Tensor]] = {}
        for use_bf16 in (False, True):
            gradients[use_bf16] = _gradients(side, use_bf16=use_bf16)
        exact, rounded = (torch.cat([tensor.flatten() for tensor in gradients[use].values()]) for use in (False, True))
        bad = [name for name, tensor in gradients[True].items() if not tensor.isfinite().all()]
        error = float((rounded - exact).norm() / exact.norm())
        yield f"{side} pixels", f"{bad[0]} is not finite" if bad else None if error < 0.1 else f"the gradient is off by {error:.0%}"


CLAIMS: dict[str, tuple[str, Callable[[Workshop], Cases]]] = {
    "counts": ("multiply-accumulates of every preset are the exact ones", counts),
    "parity": ("torchvision's RetinaNet converted gives torchvision's boxes", parity),
    "kills": ("training killed with -9 ends in the same bytes", kills),
    "images": ("damaged images are refused, odd ones read right", images),
    "datasets": ("damaged data sets are refused, single faults survived", datasets),
    "models": ("damaged model files are refused", models),
    "scores": ("COCO numbers are those of pycocotools", scores),
    "exports": ("exported files answer as PyTorch does", exports),
    "bf16": ("this processor computes gradients in bf16", bf16),
}
"""By name: what a claim says, and how it is tried."""


def _refused(work: Callable[[], object]) -> str | None:
    try:
        work()
    except InputError as error:
        return None if "\n" not in str(error) else "its message has several lines"
    except Exception as error:
        return f"{type(error).__name__}: {first_line(error)}"
    return "it was taken"


def _lively_torchvision() -> Any:
    """torchvision's RetinaNet with random weights under which signals neither die nor explode, and some scores are high."""
    torch.manual_seed(0)
    model: Any = retinanet_resnet50_fpn(weights=None, weights_backbone=None, num_classes=4, min_size=160, max_size=256)
    norms = [module for module in model.modules() if isinstance(module, torch.nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = 1.0
    with torch.no_grad():
        features = model.train().backbone(torch.randn(2, 3, 160, 160))  # fills in the statistics of the norms
        for predict, output, spread in (
            (model.head.classification_head.cls_logits, "cls_logits", 1.0),
            (model.head.regression_head.bbox_reg, "bbox_regression", 0.3),
        ):
            predict.weight.mul_(spread / model.head(list(features.values()))[output].std())
        model.head.classification_head.cls_logits.bias.fill_(-5.5)
    return model.eval()


def _training(workshop: Workshop, out: Path) -> RunningCommand:
    """A training in a process of its own: new, or going on with what is in the folder."""
    settings = {
        **{"model.backbone": "mobilenet_v2", "model.head_width": 16, "data.image_size": 64, "data.workers": 2, "train.precision": "fp32"},
        **{"train.batch_size": 2, "train.steps": 20, "train.save_every": 2},
    }
    # A run that was killed before it wrote its settings has not begun.
    if (out / "config.yaml").is_file():
        return _command(workshop, "train", resume=out)
    return _command(workshop, "train", workshop.data, *(f"{name}={value}" for name, value in settings.items()), out=out)


def _command(workshop: Workshop, name: str, what: Path | None = None, *settings: str, **options: object) -> RunningCommand:
    """A command of this program in a process of its own."""
    dashes = "-" * 2  # the one place below the command line that writes options, since it calls the command
    given = [part for option, value in options.items() for part in (f"{dashes}{option}", str(value))]
    given += [part for setting in settings for part in (f"{dashes}set", setting)]
    return workshop.commands.start([name, *([str(what)] if what else []), *given])


def _fault_of(command: RunningCommand) -> str | None:
    """How a command failed; None if it did not."""
    code, errors = command.end(PATIENCE_SECONDS)
    return f"it ended with code {code}: {errors[-300:]}" if code else None


def _ended(command: RunningCommand) -> None:
    if fault := _fault_of(command):
        raise TrainingError(fault)


def _lines(run: Path) -> int:
    log = run / "log.jsonl"
    return len(log.read_bytes().splitlines()) if log.is_file() else 0


def _drawn(random: np.random.Generator) -> tuple[Records, DetectionTable, list[dict[str, Any]], dict[str, Any]]:
    """A random case: ground truth and detections for us, and the same for pycocotools."""
    num_images, num_boxes = int(random.integers(1, 5)), int(random.integers(1, 15))
    box_images, labels = np.sort(random.integers(0, num_images, num_boxes)), random.integers(0, 2, num_boxes)
    boxes = np.column_stack([random.integers(0, 100, (num_boxes, 2)), random.integers(1, 120, (num_boxes, 2))]).astype(float)
    crowd = random.random(num_boxes) < 0.15
    categories = [Category(id=3, name="a"), Category(id=7, name="b")]
    records = build_records(
        root=Path(),
        file_names=[f"{number}.png" for number in range(num_images)],
        sizes_hw=[(256, 256)] * num_images,
        image_of_box=box_images,
        boxes_xywh=boxes,
        labels=labels,
        categories=categories,
        is_crowd=crowd,
    )
    chosen = random.integers(0, num_boxes, 2 * num_boxes)
    shifted = boxes[chosen] + np.column_stack([random.integers(-6, 7, (len(chosen), 2)), np.zeros((len(chosen), 2))])
    table = DetectionTable.from_arrays(box_images[chosen], shifted, random.permutation(len(chosen)) / len(chosen), labels[chosen])
    ids = [category.id for category in categories]
    rows = zip(table.image.tolist(), table.labels.tolist(), table.boxes_xywh.tolist(), table.scores.tolist(), strict=True)
    results = [
        {"image_id": records.image_ids[image], "category_id": ids[label], "bbox": box, "score": score} for image, label, box, score in rows
    ]
    dataset = {
        "images": [{"id": number, "width": 256, "height": 256} for number in records.image_ids],
        "categories": [{"id": category.id, "name": category.name} for category in categories],
        "annotations": [
            {
                "id": number + 1,
                "image_id": records.image_ids[int(box_images[number])],
                "category_id": ids[int(labels[number])],
                "bbox": boxes[number].tolist(),
                "area": float(boxes[number, 2] * boxes[number, 3]),
                "iscrowd": int(crowd[number]),
            }
            for number in range(num_boxes)
        ],
    }
    return records, table, results, dataset


def _gradients(side: int, *, use_bf16: bool) -> Mapping[str, Tensor]:
    """Of a small network's outputs, by the name of the weight."""
    torch.manual_seed(1)
    model: RetinaNet = build(PRESETS["lw-v3"], num_classes=3, backbone="resnet18", width=32, norm="group", init="fan_in").train()
    model.to(memory_format=torch.channels_last)
    inputs = torch.randn(2, 3, side, side)
    with autocast(torch.device("cpu"), use_bf16):
        predictions = model(inputs)
    (predictions.logits.float().square().mean() + predictions.deltas.float().square().mean()).backward()
    return {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}
