"""torchvision models in memory: all that decides their predictions is read from the module, and the predictions are the same."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from torch import nn
from torchvision.models.detection import FCOS, RetinaNet
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.backbone_utils import BackboneWithFPN
from torchvision.models.detection.retinanet import RetinaNetHead
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool, LastLevelP6P7
from torchvision.ops.misc import FrozenBatchNorm2d

from lw_retinanet.detection.detector import Detector
from lw_retinanet.errors import WeightsError
from lw_retinanet.weights.foreign.comparison import Arrays, Image, compare_with_framework, compare_with_torchvision
from lw_retinanet.weights.foreign.convert import convert
from lw_retinanet.weights.foreign.torchvision_model import convert_model, from_torchvision
from lw_retinanet.weights.model_file import LoadedModel


def make(
    *,
    body: str = "resnet18",
    norm: Callable[..., nn.Module] = FrozenBatchNorm2d,
    p6_from_c5: bool = False,
    head_norm: bool = False,
    classes: int = 4,
    width: int = 64,
    extra: nn.Module | None = None,
    sizes: Any = None,
    cls: type[RetinaNet] = RetinaNet,
    **settings: Any,
) -> RetinaNet:
    """Make a small RetinaNet with scores around the threshold and with norms that change their inputs."""
    torch.manual_seed(0)
    network: Any = getattr(torchvision.models, body)(weights=None, norm_layer=norm)
    c5 = network.fc.in_features
    last = extra or LastLevelP6P7(c5 if p6_from_c5 else width, width)
    backbone = BackboneWithFPN(network, {"layer2": "0", "layer3": "1", "layer4": "2"}, [c5 // 4, c5 // 2, c5], width, extra_blocks=last)
    sizes = sizes or tuple((x, int(x * 2 ** (1 / 3)), int(x * 2 ** (2 / 3))) for x in (32, 64, 128, 256, 512))
    generator = AnchorGenerator(sizes, ((0.5, 1.0, 2.0),) * len(sizes))
    head = RetinaNetHead(width, len(sizes[0]) * 3, classes, norm_layer=partial(nn.GroupNorm, 32) if head_norm else None)
    model = cls(backbone, classes, anchor_generator=generator, head=head, min_size=96, max_size=150, **settings).eval()
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if name.endswith("running_mean"):
                tensor.normal_(std=0.1)
            elif name.endswith("running_var"):
                tensor.uniform_(0.5, 1.5)
            elif ".head." in f".{name}" and name.endswith("weight") and tensor.dim() == 4:
                tensor.normal_(std=(2 / tensor[0].numel()) ** 0.5)
    nn.init.constant_(head.classification_head.cls_logits.bias, -2.0)
    head.classification_head.cls_logits.weight.data *= 0.3  # scores of 1 would tie
    nn.init.normal_(head.regression_head.bbox_reg.weight, std=0.01)
    return model


def predict(loaded: LoadedModel, images: Sequence[Image]) -> Sequence[Arrays]:
    results = Detector.of_model(loaded.model, loaded.record.categories).predict_arrays(images)
    return [(result.boxes, result.scores, result.labels) for result in results]


CASES: list[dict[str, Any]] = [
    {},
    {"norm": partial(FrozenBatchNorm2d, eps=0.0), "detections_per_img": 17, "score_thresh": 0.2},
    {"norm": nn.BatchNorm2d, "head_norm": True, "p6_from_c5": True, "nms_thresh": 0.7, "topk_candidates": 50},
    {"norm": partial(nn.BatchNorm2d, eps=1e-3), "image_mean": [0.1, 0.2, 0.3], "image_std": [1.0, 0.5, 0.25], "size_divisible": 64},
    {"sizes": ((16,), (32,), (64,), (128,), (256,))},
    {"sizes": tuple((x, x * 3 // 2) for x in (24, 48, 96, 192, 384))},
]


@pytest.mark.parametrize("settings", CASES)
def test_a_live_model_and_its_converted_form_answer_alike(settings: dict[str, Any]) -> None:
    model = make(**settings)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    model.train()
    loaded = from_torchvision(model)
    assert model.training
    image = np.random.default_rng(1).integers(0, 256, (97, 131, 3), np.uint8)
    comparison = compare_with_torchvision(model, loaded, range(4), predict, [image])
    # Logits and deltas are sums of some hundred products of numbers around 1: 1e-4 is float32's share.
    assert comparison.differences["logits"] < 1e-3
    assert comparison.differences["deltas"] < 1e-3
    assert comparison.differences["anchors"] == 0
    assert comparison.differences["boxes"] < 0.05
    assert comparison.differences["scores"] < 1e-4
    assert comparison.differences["unmatched"] == 0
    assert comparison.detections > 30
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_a_caffe_strided_body_is_seen() -> None:
    model = make(body="resnet50", width=32)
    body: Any = model.backbone.body
    for stage in (body.layer2, body.layer3, body.layer4):
        stage[0].conv1.stride, stage[0].conv2.stride = (2, 2), (1, 1)
    loaded = from_torchvision(model, ["a", "b", "c"])
    assert loaded.record.conventions.stride_in == "1x1"
    assert loaded.record.backbone == "resnet50"
    assert [(c.id, c.name) for c in loaded.record.categories] == [(1, "a"), (2, "b"), (3, "c")]
    comparison = compare_with_torchvision(model, loaded, (1, 2, 3), predict)
    assert comparison.differences["logits"] < 1e-3
    assert comparison.differences["unmatched"] == 0


def test_a_wrong_conversion_is_seen_by_the_comparison() -> None:
    model = make()
    loaded = from_torchvision(model)
    wrong = loaded.model.conventions
    for change, row in (
        ({"anchors": wrong.anchors.model_copy(update={"rounding": "exact"})}, "anchors"),
        ({"input": wrong.input.model_copy(update={"antialias": True})}, "scores"),
        ({"output": wrong.output.model_copy(update={"nms_iou": 0.3})}, "unmatched"),
    ):
        loaded.model.conventions = wrong.model_copy(update=change)
        differences = compare_with_torchvision(
            model, loaded, range(4), predict, [np.random.default_rng(1).integers(0, 256, (297, 331, 3), np.uint8)]
        ).differences
        assert differences[row] > 1e-3, row
    loaded.model.conventions = wrong
    with torch.no_grad():
        loaded.model.state_dict()["head.cls.shared_predict.bias"][5] += 0.1
    assert compare_with_torchvision(model, loaded, range(4), predict).differences["logits"] == pytest.approx(0.1, abs=1e-3)


class Careful(RetinaNet):
    """A subclass that only trains in another way."""

    def compute_loss(self, *_: object) -> Any:
        return {}


class OwnEnd(RetinaNet):
    def postprocess_detections(self, *_: object) -> Any:
        return []


def test_subclasses_are_taken_unless_they_answer_in_their_own_way() -> None:
    assert from_torchvision(make(cls=Careful)).record.preset == "retinanet"
    with pytest.raises(WeightsError, match=r"OwnEnd\.postprocess_detections is not torchvision's own"):
        from_torchvision(make(cls=OwnEnd))


def dilated() -> RetinaNet:
    model = make()
    body: Any = model.backbone.body
    for conv in (body.layer4[0].conv1, body.layer4[1].conv2):
        conv.dilation, conv.stride = (2, 2), (1, 1)
    return model


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (lambda: nn.Linear(2, 2), "a torchvision RetinaNet is expected, got Linear"),
        (lambda: FCOS(make().backbone, 3), "expected, got FCOS"),
        (lambda: make(extra=LastLevelMaxPool(), sizes=((32,),) * 4), "is no ResNet with FPN, P6 and P7"),
        (lambda: make(sizes=((32,), (64,), (100,), (256,), (512,))), "do not double from level to level"),
        (lambda: make(fixed_size=(128, 128)), r"the transform has fixed_size=\(128, 128\)"),
        (lambda: make(body="resnext50_32x4d", width=32), r"is a ResNeXt \(32 groups\)"),
        (lambda: make(body="wide_resnet50_2", width=32), "a ResNet of other widths"),
        (dilated, "dilated stages"),
        (lambda: make(norm=partial(nn.GroupNorm, 32)), "has GroupNorm and not batch norm"),
    ],
)
def test_what_cannot_be_carried_over_is_named(model: Callable[[], nn.Module], message: str) -> None:
    with pytest.raises(WeightsError, match=message):
        from_torchvision(model())


def test_a_model_with_more_than_a_retinanet_is_refused() -> None:
    model = make()
    model.head.quality = nn.Linear(2, 2)
    with pytest.raises(WeightsError, match=r"2 not known, first head\.quality"):
        convert_model(model)


@pytest.mark.parametrize("settings", [{"classes": 91}, {"head_norm": True, "p6_from_c5": True, "norm": nn.BatchNorm2d}])
def test_a_file_is_compared_with_torchvisions_own_model(settings: dict[str, Any], tmp_path: Any) -> None:
    torch.save(make(**settings).state_dict(), tmp_path / "w.pth")
    small = {"input.size": 96, "input.max_size": 150}
    conversion = compare_with_framework(convert(tmp_path / "w.pth", overrides=small), predict)
    comparison = conversion.report.comparison
    assert comparison is not None
    assert comparison.status == "checked"
    assert comparison.differences["logits"] < 1e-3
    assert comparison.differences["unmatched"] == 0
    assert comparison.detections > 30
    assert conversion.loaded.record.notes["converted"]["parity"]["status"] == "checked"
    text = "\n".join(conversion.report.lines())
    assert "largest differences from torchvision itself" in text
    # And what torchvision cannot do is not compared.
    conversion = compare_with_framework(convert(tmp_path / "w.pth", overrides={**small, "input.antialias": True}), predict)
    assert conversion.report.comparison is not None
    assert "cannot do" in conversion.report.comparison.status
