"""The same weights in torchvision's RetinaNet, v1 and v2, and in ours: the same numbers at every stage, images to boxes."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn
from torchvision.models import resnet50
from torchvision.models.detection import RetinaNet as TorchvisionRetinaNet
from torchvision.models.detection import retinanet_resnet50_fpn, retinanet_resnet50_fpn_v2
from torchvision.models.detection._utils import overwrite_eps
from torchvision.models.detection.backbone_utils import _resnet_fpn_extractor
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.retinanet import RetinaNetHead, _default_anchorgen
from torchvision.ops.feature_pyramid_network import LastLevelP6P7
from torchvision.ops.misc import FrozenBatchNorm2d
from torchvision.transforms.v2.functional import pil_to_tensor
from torchvision.transforms.v2.functional import resize as resize_image

from lw_retinanet.config import TrainConfig
from lw_retinanet.conventions import Conventions, InputRule
from lw_retinanet.data.preprocess import normalise, pad_to, padded_size
from lw_retinanet.data.records import Category
from lw_retinanet.detection.detector import Detector
from lw_retinanet.heads import PRESETS, HeadPlan, TowerPlan
from lw_retinanet.models.anchors import make_anchors
from lw_retinanet.models.build import build
from lw_retinanet.models.postprocess import detect
from lw_retinanet.models.retinanet import RetinaNet
from lw_retinanet.structures import Batch, Predictions, Targets
from lw_retinanet.training import step
from lw_retinanet.training.distributed import World
from lw_retinanet.training.step import accumulate_gradients
from lw_retinanet.weights.foreign.torchvision import TORCHVISION_V1, TORCHVISION_V2

NUM_CLASSES = 7
SHORT_SIDE = 160
KEYS = {
    "backbone.body.": "backbone.",
    "backbone.fpn.": "fpn.",
    "head.classification_head.cls_logits.": "head.cls.shared_predict.",
    "head.regression_head.bbox_reg.": "head.bbox.shared_predict.",
    **{f"head.classification_head.conv.{i}.": f"head.cls.shared_units.{i}." for i in range(4)},
    **{f"head.regression_head.conv.{i}.": f"head.bbox.shared_units.{i}." for i in range(4)},
}


PLANS = {"v1": PRESETS["retinanet"], "v2": HeadPlan(shared=TowerPlan(units=("3x3-gn",) * 4))}


def our_key(key: str) -> str:
    prefix = next(prefix for prefix in KEYS if key.startswith(prefix))
    return KEYS[prefix] + key.removeprefix(prefix)


@torch.no_grad()
def _fill(model: TorchvisionRetinaNet) -> None:
    """Weights as a trained network has them: every norm differs, signals neither die nor explode, hundreds of scores pass 0.05."""
    random = torch.Generator().manual_seed(0)
    for module in model.modules():
        if isinstance(module, FrozenBatchNorm2d | nn.BatchNorm2d):
            assert module.running_mean is not None
            assert module.running_var is not None
            for buffer, low, high in ((module.weight, 0.5, 1.0), (module.bias, -0.2, 0.2), (module.running_mean, -0.2, 0.2)):
                buffer.uniform_(low, high, generator=random)
            # Channels that hardly vary, as trained networks have some, are where the epsilon tells.
            variance = module.running_var.uniform_(0.5, 2.0, generator=random)
            if module is model.backbone.body.bn1:
                variance[:8] = 1e-4
                module.weight[:8] *= 1e-2
        elif isinstance(module, nn.GroupNorm):
            module.weight.uniform_(0.5, 1.5, generator=random)
            module.bias.uniform_(-0.2, 0.2, generator=random)
        elif isinstance(module, nn.Conv2d):
            fan_in = module.weight[0].numel()
            module.weight.normal_(std=(2 / fan_in) ** 0.5, generator=random)
            if module.bias is not None:
                module.bias.uniform_(-0.1, 0.1, generator=random)
    for name, module in model.backbone.body.named_modules():
        if name.endswith("bn3"):
            module.weight.mul_(0.3)  # the sum of a stage's branches must not double from block to block
    model.eval()
    images = torch.randn(1, 3, 96, 96, generator=random)
    features = model.backbone(images)
    for level in features.values():
        assert 0.01 < float(level.std()) < 100
    outputs = model.head(list(features.values()))
    for predict, output, std in (
        (model.head.classification_head.cls_logits, outputs["cls_logits"], 1.0),
        (model.head.regression_head.bbox_reg, outputs["bbox_regression"], 0.3),
    ):
        predict.weight.mul_(std / output.std())
        predict.bias.uniform_(-0.1, 0.1, generator=random)
    model.head.classification_head.cls_logits.bias.sub_(4.5)  # 0.05 is at -2.94


Pair = tuple[TorchvisionRetinaNet, RetinaNet]


def with_their_weights(theirs: TorchvisionRetinaNet, conventions: Conventions, version: str) -> RetinaNet:
    """Our network with torchvision's weights, for images of SHORT_SIDE."""
    rule = conventions.input.model_copy(update={"size": SHORT_SIDE})
    ours = build(PLANS[version], num_classes=NUM_CLASSES, backbone="resnet50", conventions=conventions.model_copy(update={"input": rule}))
    state = {our_key(key): tensor for key, tensor in theirs.state_dict().items() if not key.endswith("num_batches_tracked")}
    ours.load_state_dict(state, strict=True)
    return ours.to(memory_format=torch.channels_last).eval()


@pytest.fixture(scope="module", params=["v1", "v2"])
def pair(request: pytest.FixtureRequest) -> Pair:
    """torchvision's network and ours with its weights. Norms are frozen in both versions, so that training compares too."""
    version = request.param
    body = resnet50(weights=None, norm_layer=FrozenBatchNorm2d)
    extra = LastLevelP6P7(256 if version == "v1" else 2048, 256)
    backbone = _resnet_fpn_extractor(body, 5, returned_layers=[2, 3, 4], extra_blocks=extra)
    anchors = _default_anchorgen()
    head = RetinaNetHead(256, 9, NUM_CLASSES, norm_layer=None if version == "v1" else lambda channels: nn.GroupNorm(32, channels))
    theirs = TorchvisionRetinaNet(backbone, NUM_CLASSES, anchor_generator=anchors, head=head, min_size=SHORT_SIDE, max_size=1333)
    if version == "v1":
        overwrite_eps(theirs, 0.0)  # as torchvision does to the published weights
    else:
        theirs.head.regression_head._loss_type = "giou"
    _fill(theirs)
    ours = with_their_weights(theirs, TORCHVISION_V1 if version == "v1" else TORCHVISION_V2, version)
    return theirs.eval(), ours


def normalise_in_double(images: Tensor, sizes_hw: Tensor, rule: InputRule) -> Tensor:
    result = normalise(images, sizes_hw, rule).double()
    mean, std = (torch.tensor(values, dtype=torch.float64)[:, None, None] for values in (rule.mean, rule.std))
    for image, (height, width), values in zip(images, sizes_hw.tolist(), result, strict=True):
        values[:, :height, :width] = (image[:, :height, :width].double() / rule.scale - mean) / std
    return result


@pytest.fixture
def double_pair(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> Iterator[Pair]:
    """Both networks in double precision for one test."""
    before = [{name: tensor.clone() for name, tensor in model.state_dict().items()} for model in pair]
    monkeypatch.setattr(step, "normalise", normalise_in_double)
    yield pair[0].double(), pair[1].double()
    for model, state in zip(pair, before, strict=True):
        model.zero_grad(set_to_none=True)
        model.float().load_state_dict(state)


def random_images() -> list[Tensor]:
    """Two images of different width, so that one is padded; the short side is SHORT_SIDE, so that neither side is resized."""
    random = torch.Generator().manual_seed(1)
    small = [torch.rand(1, 3, 10, width // 16, generator=random) for width in (224, 192)]
    smooth = [nn.functional.interpolate(image, scale_factor=16, mode="bilinear")[0] for image in small]
    noise = [torch.rand(3, SHORT_SIDE, width, generator=random) for width in (224, 192)]
    return [((0.7 * a + 0.3 * b) * 255).to(torch.uint8) for a, b in zip(smooth, noise, strict=True)]


def real_images(shared: Path, count: int) -> list[tuple[Tensor, list[list[float]], list[int]]]:
    """Images of the aquarium at SHORT_SIDE with their boxes (xyxy) and labels."""
    folder = shared / "data" / "aquarium"
    table = json.loads((folder / "val.json").read_text())
    ids = sorted(category["id"] for category in table["categories"])
    found = []
    for entry in table["images"]:
        objects = [a for a in table["annotations"] if a["image_id"] == entry["id"] and min(a["bbox"][2:]) > 8]
        if not objects:
            continue
        image = pil_to_tensor(Image.open(folder / "images" / entry["file_name"]).convert("RGB"))
        scale = SHORT_SIDE / min(image.shape[1:])
        size = [max(SHORT_SIDE, round(side * scale)) for side in image.shape[1:]]
        boxes = [[scale * v for v in (x, y, x + w, y + h)] for x, y, w, h in (a["bbox"] for a in objects)]
        found.append((resize_image(image, size), boxes, [ids.index(a["category_id"]) for a in objects]))
        if len(found) == count:
            break
    return found


def make_batch(
    images: list[Tensor],
    boxes: list[list[list[float]]] | None = None,
    labels: list[list[int]] | None = None,
    dtype: torch.dtype = torch.float32,
) -> Batch:
    sizes_hw = [(image.shape[1], image.shape[2]) for image in images]
    targets = None
    if boxes is not None and labels is not None:
        most = max(map(len, labels))
        targets = Targets(
            boxes=torch.stack(
                [nn.functional.pad(torch.tensor(rows, dtype=dtype).reshape(-1, 4), (0, 0, 0, most - len(rows))) for rows in boxes]
            ),
            labels=torch.tensor([row + [-1] * (most - len(row)) for row in labels]),
            is_ignored=torch.zeros(len(images), most, dtype=torch.bool),
        )
    return Batch(
        images=pad_to(images, padded_size(sizes_hw, 32)),
        sizes_hw=torch.tensor(sizes_hw),
        scales_xy=torch.ones(len(images), 2),
        targets=targets,
        indices=tuple(range(len(images))),
    )


@torch.no_grad()
def both_predictions(pair: Pair, batch: Batch) -> tuple[dict[str, Tensor], Predictions, list[Tensor]]:
    theirs, ours = pair
    inputs = normalise(batch.images, batch.sizes_hw, ours.conventions.input)
    features = list(theirs.backbone(inputs).values())
    sizes = [(int(height), int(width)) for height, width in batch.sizes_hw]
    return theirs.head(features), ours(inputs), theirs.anchor_generator(ImageList(inputs, sizes), features)


def require_equal_detections(pair: Pair, images: list[Tensor]) -> None:
    theirs, ours = pair
    batch = make_batch(images)
    size_hw = (batch.images.shape[2], batch.images.shape[3])
    with torch.no_grad():
        expected: list[dict[str, Tensor]] = theirs([image.float() / 255 for image in images])
        predictions = ours(normalise(batch.images, batch.sizes_hw, ours.conventions.input))
    found = detect(predictions, size_hw=size_hw, sizes_hw=batch.sizes_hw, conventions=ours.conventions)
    for image, want in enumerate(expected):
        count = int(found.counts[image])
        assert count == len(want["scores"]) >= 100
        free = torch.ones(count, dtype=torch.bool)
        for box, score, label in zip(want["boxes"], want["scores"], want["labels"], strict=True):
            # Of equal scores either may come first, so the order is not compared.
            fits = free & (found.labels[image, :count] == label) & ((found.scores[image, :count] - score).abs() < 1e-5)
            fits &= (found.boxes[image, :count] - box).abs().amax(dim=1) < 0.05
            assert fits.any(), f"image {image}: no detection of class {int(label)} at {box.tolist()} with score {float(score):.6f}"
            free[fits.nonzero()[0]] = False


def require_equal_losses_and_gradients(
    pair: Pair, images: list[Tensor], boxes: list[list[list[float]]], labels: list[list[int]], *, tolerance: float
) -> None:
    theirs, ours = pair
    dtype = next(ours.parameters()).dtype
    targets: list[dict[str, Any]] = [
        {"boxes": torch.tensor(b, dtype=dtype), "labels": torch.tensor(k)} for b, k in zip(boxes, labels, strict=True)
    ]
    theirs.zero_grad(set_to_none=True)
    ours.zero_grad(set_to_none=True)
    theirs.train()
    losses = theirs([image.to(dtype) / 255 for image in images], targets)
    theirs.eval()
    sum(losses.values()).backward()
    # torchvision divides image by image and averages; for one image both normalisers do the same.
    config = TrainConfig.model_validate(
        {"box_loss": theirs.head.regression_head._loss_type, "box_weight": 1.0, "normaliser": "batch" if len(images) == 1 else "image"}
    )
    batch = make_batch(images, boxes, labels, dtype)
    result = accumulate_gradients(ours, [batch], config=config, conventions=ours.conventions, world=World(), use_bf16=False)
    assert int(result.num_positive) >= 5
    expected = torch.stack([losses["classification"], losses["bbox_regression"]]).detach().float()
    torch.testing.assert_close(result.losses, expected, rtol=1e-5, atol=0)
    parameters = dict(ours.named_parameters())
    compared = 0
    for name, parameter in theirs.named_parameters():
        want, got = parameter.grad, parameters[our_key(name)].grad
        assert want is not None, name
        assert got is not None, name
        assert float(want.norm()) > 0, name
        assert float((got - want).norm() / want.norm()) < tolerance, name
        compared += 1
    assert compared == len(parameters)


def test_anchors_are_equal_to_the_last_bit(pair: Pair) -> None:
    batch = make_batch(random_images())
    _, _, anchors = both_predictions(pair, batch)
    ours = make_anchors((batch.images.shape[2], batch.images.shape[3]), pair[1].conventions.anchors, torch.device("cpu"))
    for expected in anchors:
        assert torch.equal(ours, expected)


def test_logits_and_deltas(pair: Pair) -> None:
    expected, found, _ = both_predictions(pair, make_batch(random_images()))
    torch.testing.assert_close(found.logits, expected["cls_logits"], rtol=0, atol=1e-4)
    torch.testing.assert_close(found.deltas, expected["bbox_regression"], rtol=0, atol=1e-4)
    # The comparison means something only where the numbers are neither tiny nor all alike.
    assert 0.3 < float(found.logits.std()) < 3
    assert 0.1 < float(found.deltas.std()) < 1


def test_detections(pair: Pair) -> None:
    require_equal_detections(pair, random_images())


def odd_images() -> list[NDArray[np.uint8]]:
    """Smooth shapes under noise, of sizes that are enlarged, reduced and limited by the long side."""
    random = np.random.default_rng(0)
    images = []
    for height, width in ((97, 131), (333, 250), (160, 217)):
        coarse = Image.fromarray(random.integers(0, 256, (8, 11, 3), dtype=np.uint8))
        smooth = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC)).astype(np.float64)
        images.append(np.clip(smooth + random.normal(0, 30, smooth.shape), 0, 255).astype(np.uint8))
    return images


def require_same_answers(theirs: TorchvisionRetinaNet, ours: RetinaNet, images: list[NDArray[np.uint8]]) -> None:
    """Each image alone, as it is, through both."""
    detector = Detector.of_model(ours, tuple(Category(id=number, name=str(number)) for number in range(NUM_CLASSES)))
    for image in images:
        with torch.no_grad():
            want = {key: values.numpy() for key, values in theirs([torch.from_numpy(image).permute(2, 0, 1).float() / 255])[0].items()}
        found = detector.predict_arrays([image])[0]
        assert len(found) == len(want["scores"]) >= 100
        free = np.ones(len(found), bool)
        for box, score, label in zip(want["boxes"], want["scores"], want["labels"], strict=True):
            fits = free & (found.labels == label) & (abs(found.scores - score) < 1e-5) & (abs(found.boxes - box) < 0.05).all(axis=1)
            assert fits.any(), f"{image.shape}: no detection of class {label} at {box} with score {score:.6f}"
            free[np.flatnonzero(fits)[0]] = False


def test_images_of_any_size_through_the_detector(pair: Pair) -> None:
    require_same_answers(*pair, odd_images())


@pytest.mark.parametrize(
    ("version", "make", "conventions"),
    [
        # Trained from nothing, v1 has batch norms with their usual epsilon.
        ("v1", retinanet_resnet50_fpn, TORCHVISION_V1.model_copy(update={"norm_eps": 1e-5})),
        ("v2", retinanet_resnet50_fpn_v2, TORCHVISION_V2),
    ],
)
def test_models_as_torchvision_makes_them(version: str, make: Any, conventions: Conventions) -> None:
    theirs = make(weights=None, weights_backbone=None, num_classes=NUM_CLASSES, min_size=SHORT_SIDE)
    _fill(theirs)
    require_same_answers(theirs.eval(), with_their_weights(theirs, conventions, version), odd_images()[:1])


def test_the_epsilon_of_the_norms_tells(pair: Pair) -> None:
    # Were this not so, the tests above would pass with any epsilon.
    theirs, ours = pair
    conventions = ours.conventions.model_copy(update={"norm_eps": 1e-5 if ours.conventions.norm_eps == 0 else 0.0})
    other = with_their_weights(theirs, conventions, "v1" if conventions.p6_source == "P5" else "v2")
    inputs = torch.randn(1, 3, 96, 96, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        assert float((other(inputs).logits - ours(inputs).logits).abs().max()) > 1e-3


BOXES = [
    [[20.0, 30.0, 90.0, 120.0], [100.0, 20.0, 140.0, 60.0], [60.0, 60.0, 190.0, 150.0], [150.0, 90.0, 182.0, 122.0]],
    [[10.0, 10.0, 150.0, 150.0], [30.0, 40.0, 70.0, 90.0]],
]
LABELS = [[1, 6, 0, 3], [2, 2]]


def test_losses_and_gradients(pair: Pair) -> None:
    # The two sum in different orders, so here and there a ReLU or a pooling falls to the other side of a tie in single precision, and the
    # gradients of the kernels behind it differ by up to a percent; in double precision below there is no such excuse.
    require_equal_losses_and_gradients(pair, random_images(), BOXES, LABELS, tolerance=2e-2)


@pytest.mark.parametrize("count", [1, 2])
def test_gradients_in_double_precision(double_pair: Pair, count: int) -> None:
    require_equal_losses_and_gradients(double_pair, random_images()[:count], BOXES[:count], LABELS[:count], tolerance=1e-4)


@pytest.mark.real
def test_real_images(pair: Pair, shared: Path) -> None:
    found = real_images(shared, 4)
    assert len(found) == 4
    for image, _, _ in found:
        expected, predictions, _ = both_predictions(pair, make_batch([image]))
        torch.testing.assert_close(predictions.logits, expected["cls_logits"], rtol=0, atol=1e-4)
        torch.testing.assert_close(predictions.deltas, expected["bbox_regression"], rtol=0, atol=1e-4)
        require_equal_detections(pair, [image])


@pytest.mark.real
def test_gradients_on_real_images(double_pair: Pair, shared: Path) -> None:
    for image, boxes, labels in real_images(shared, 2):
        require_equal_losses_and_gradients(double_pair, [image], [boxes], [labels], tolerance=1e-4)
