"""Conversion of whole files: every tensor lands where the hand-written table says; every other tensor is an error or reported."""

import hashlib
import math
import pickle
from collections import OrderedDict
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from tests.weights import foreign_states
from tests.weights.foreign_states import STATES, State
from torch import Tensor

from lw_retinanet.conventions import Conventions
from lw_retinanet.data.records import Category
from lw_retinanet.detection.detector import Detector
from lw_retinanet.errors import ConfigError, InputError, WeightsError
from lw_retinanet.heads import HeadPlan, block_tower
from lw_retinanet.models.build import build
from lw_retinanet.weights.foreign import caffe2, detectron2, mmdet, odtk, torchvision
from lw_retinanet.weights.foreign.conversion import ConvertedModel
from lw_retinanet.weights.foreign.convert import convert
from lw_retinanet.weights.model_file import load_model, make_record, save_model

Tensors = dict[str, Tensor]


def write(path: Path, state: State, form: str = "pth", **extras: Any) -> Path:
    """Write a state dict in the form in which each framework saves it."""
    if form == "safetensors":
        save_file(state.tensors, path)
    elif form == "detectron2.pkl":
        arrays = {name: tensor.numpy() for name, tensor in state.tensors.items()}
        path.write_bytes(pickle.dumps({"model": arrays, "__author__": "somebody", "matching_heuristics": True}, protocol=2))
    elif form == "caffe2.pkl":
        arrays = {name: tensor.numpy() for name, tensor in state.tensors.items()}
        path.write_bytes(pickle.dumps({"blobs": arrays, "cfg": "MODEL: {}"}, protocol=2))
    else:
        torch.save({"state_dict": OrderedDict(state.tensors), **extras}, path, _use_new_zipfile_serialization=form != "old.pth")
    return path


def assert_landed(conversion: ConvertedModel, state: State, beside: Iterable[str] = ()) -> None:
    found = conversion.loaded.model.state_dict()
    for ours, theirs in state.landing.items():
        assert torch.equal(found[ours], state.tensors[theirs]), (ours, theirs)
    assert conversion.report.used == state.landing
    assert set(conversion.report.unused) == (state.tensors.keys() - set(state.landing.values())) | set(beside)
    assert all(conversion.report.unused.values())


def assert_predicts(conversion: ConvertedModel) -> None:
    """Check the model's predictions: with random weights scores are around a half, so there are many detections."""
    loaded = conversion.loaded
    small = loaded.model.conventions.model_copy(update={"input": loaded.model.conventions.input.model_copy(update={"size": 64})})
    loaded.model.conventions = small
    image = np.random.default_rng(0).integers(0, 256, (70, 90, 3), np.uint8)
    result = Detector.of_model(loaded.model, loaded.record.categories).predict([image])[0]
    assert len(result) > 0
    assert np.isfinite(result.boxes).all()
    assert result.boxes.min() >= 0
    if small.output.clip_to != "padded_minus_one":
        assert result.boxes[:, 2].max() <= 90


CASES: list[tuple[str, str, dict[str, Any], Conventions]] = [
    ("torchvision", "pth", {}, torchvision.TORCHVISION_V1),
    ("torchvision", "old.pth", {"generation": 1}, torchvision.TORCHVISION_V1),
    ("torchvision", "safetensors", {"generation": 2}, torchvision.TORCHVISION_V1),
    ("torchvision", "pth", {"has_norm": True, "width": 64}, torchvision.TORCHVISION_V2),
    ("detectron2", "detectron2.pkl", {"backbone": "resnet18"}, detectron2.CONVENTIONS),
    ("mmdet", "pth", {}, mmdet.CONVENTIONS),
    ("mmdet", "old.pth", {"has_norm": True, "width": 64}, mmdet.CONVENTIONS),
    ("odtk", "pth", {}, odtk.CONVENTIONS),
]


@pytest.mark.parametrize(("framework", "form", "options", "expected"), CASES)
def test_every_tensor_lands_in_its_place(framework: str, form: str, options: dict[str, Any], expected: Conventions, tmp_path: Path) -> None:
    state = STATES[framework](**options)
    path = write(tmp_path / "weights.bin", state, form)
    before = hashlib.sha256(path.read_bytes()).hexdigest()
    conversion = convert(path)
    assert conversion.report.framework == framework
    assert conversion.report.backbone == conversion.loaded.record.backbone == "resnet18"
    assert_landed(conversion, state)
    assert (conversion.loaded.record.plan == HeadPlan()) != options.get("has_norm", False)
    # Only basic blocks here, which cannot stride in a 1x1; and 3 rows are not torchvision's own file, whose epsilon is 0.
    expected = expected.model_copy(update={"stride_in": "3x3", "norm_eps": expected.norm_eps or 1e-5})
    assert conversion.loaded.model.conventions == conversion.loaded.record.conventions == expected
    assert_predicts(conversion)
    assert hashlib.sha256(path.read_bytes()).hexdigest() == before


@pytest.mark.parametrize(("framework", "form"), [("caffe2", "caffe2.pkl"), ("detectron2", "pth")])
def test_bottlenecks_land_too(framework: str, form: str, tmp_path: Path) -> None:
    state = STATES[framework]("resnet50")
    conversion = convert(write(tmp_path / "weights", state, form))
    assert conversion.report.backbone == "resnet50"
    assert_landed(conversion, state)
    assert conversion.loaded.model.conventions == (caffe2.CONVENTIONS if framework == "caffe2" else detectron2.CONVENTIONS)
    first = conversion.loaded.model.get_submodule("backbone.layer2.0.conv1")
    assert getattr(first, "stride") == (2, 2)  # noqa: B009  (mypy knows a Module only)
    if framework == "caffe2":
        # An affine layer only scales and shifts: s * features + b.
        norm: Any = conversion.loaded.model.get_submodule("backbone.bn1")
        scale, shift = norm.scale_and_shift()
        assert torch.equal(scale, state.tensors["res_conv1_bn_s"])
        assert torch.equal(shift, state.tensors["res_conv1_bn_b"])
    assert_predicts(conversion)


def test_a_file_of_real_shapes(tmp_path: Path) -> None:
    # ResNet-50, 256 channels, 91 rows: torchvision's own file, in half precision to be quick.
    state = foreign_states.torchvision("resnet50", 256, 91)
    state.tensors = {name: tensor.half() for name, tensor in state.tensors.items()}
    save_file(state.tensors, tmp_path / "coco.safetensors")
    conversion = convert(tmp_path / "coco.safetensors")
    record = conversion.loaded.record
    assert record.conventions == torchvision.TORCHVISION_V1
    # 34.0 million parameters as torchvision counts them, less 11 of 91 class rows of 9 anchors.
    frozen = sum(tensor.numel() for name, tensor in conversion.loaded.model.state_dict().items() if "running" in name)
    buffers = sum(
        tensor.numel() for name, tensor in conversion.loaded.model.state_dict().items() if ".bn" in name or "downsample.1" in name
    )
    assert sum(t.numel() for t in conversion.loaded.model.state_dict().values()) - buffers == 34_014_999 - 11 * 9 * (256 * 9 + 1)
    assert frozen * 2 == buffers
    assert [c.id for c in record.categories[:12]] == [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 13]
    assert record.categories[-1].name == "toothbrush"
    weight = state.tensors["head.classification_head.cls_logits.weight"].float()
    ours = conversion.loaded.model.state_dict()["head.cls.shared_predict.weight"]
    # Label 11 is COCO's id 13 (12 is not used); anchor 4 of 9.
    assert torch.equal(ours[4 * 80 + 11], weight[4 * 91 + 13])
    assumed = {item.setting: item.value for item in conversion.report.assumed}
    assert assumed["norm_eps"] == 0.0
    assert "classes" in assumed


@pytest.mark.parametrize("prefix", ["module.", "model.", "module.model."])
def test_prefixes_of_wrappers_are_taken_off(prefix: str, tmp_path: Path) -> None:
    state = foreign_states.torchvision()
    wrapped = State(tensors={prefix + name: tensor for name, tensor in state.tensors.items()})
    assert_landed(convert(write(tmp_path / "w.ckpt", wrapped, epoch=3)), state)


def test_extra_settings_of_odtk_are_read(tmp_path: Path) -> None:
    scales = [4 * 2 ** (i / 3) for i in range(3)]
    extras: dict[str, Any] = {"backbone": "ResNet18FPN", "classes": 3, "ratios": [0.5, 1.0, 2.0], "scales": scales}
    conversion = convert(write(tmp_path / "w.pth", foreign_states.odtk(), **extras))
    assert conversion.loaded.record.conventions.anchors.aspect_ratios == (0.5, 1.0, 2.0)
    assert "anchors.aspect_ratios" not in {item.setting for item in conversion.report.assumed}


CAFFE_CONFIG = """
img_norm = dict(mean=[103.53, 116.28, 123.675], std=[1.0, 1.0, 1.0], to_rgb=False)
model = dict(backbone=dict(type='ResNet', depth=50, style='caffe'), test_cfg=dict(nms_pre=500, score_thr=0.02, nms=dict(iou_threshold=0.6)))
test_pipeline = [dict(type='MultiScaleFlipAug', img_scale=(1000, 600))]
__import__('os').system('touch TRACE')
"""


def test_the_configuration_in_an_mmdetection_file_is_read_and_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    meta = {"CLASSES": ("cat", "dog", "bird"), "config": CAFFE_CONFIG, "mmdet_version": "2.25.0"}
    conversion = convert(write(tmp_path / "w.pth", foreign_states.mmdet("resnet50"), meta=meta))
    found = conversion.loaded.record.conventions
    assert found.stride_in == "1x1"
    assert (found.input.channel_order, found.input.mean, found.input.std) == ("bgr", (103.53, 116.28, 123.675), (1.0, 1.0, 1.0))
    assert (found.input.size, found.input.max_size) == (600, 1000)
    assert (found.output.candidates_per_level, found.output.score_threshold, found.output.nms_iou) == (500, 0.02, 0.6)
    assert [c.name for c in conversion.loaded.record.categories] == ["cat", "dog", "bird"]
    assert not (tmp_path / "TRACE").exists()


def test_mean_of_a_detectron2_file_is_taken_and_its_anchors_are_compared(tmp_path: Path) -> None:
    state = foreign_states.detectron2()
    state.tensors["pixel_mean"] = torch.tensor([1.0, 2.0, 3.0]).view(3, 1, 1)
    # Areas 32^2 (2^(1/3))^2k; heights are ratio times widths; sizes outer, ratios inner.
    for level in range(5):
        rows = []
        for scale in range(3):
            for ratio in (0.5, 1.0, 2.0):
                width = math.sqrt((32 * 2**level * 2 ** (scale / 3)) ** 2 / ratio)
                rows.append([-width / 2, -width * ratio / 2, width / 2, width * ratio / 2])
        state.tensors[f"anchor_generator.cell_anchors.{level}"] = torch.tensor(rows)
    conversion = convert(write(tmp_path / "w.pth", state))
    assert conversion.loaded.record.conventions.input.mean == (1.0, 2.0, 3.0)
    state.tensors["anchor_generator.cell_anchors.2"] *= 1.1
    with pytest.raises(WeightsError, match="holds other anchors of stride 32 than detectron2's; give them as anchors"):
        convert(write(tmp_path / "w.pth", state))


def edited(change: Callable[[Tensors], object], framework: str = "torchvision", **options: Any) -> State:
    state = STATES[framework](**options)
    change(state.tensors)
    return state


TOWER = "head.regression_head.conv.1.0.weight"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop(TOWER), rf"do not fit a RetinaNet of torchvision \(v1\), resnet18: 1 missing, first {TOWER}; give the whole"),
        (lambda t: t.update(surprise=torch.zeros(1)), "1 not known, first surprise"),
        (lambda t: t.update({TOWER: torch.zeros(32, 16, 3, 3)}), rf"{TOWER} \(32, 16, 3, 3\) instead of \(32, 32, 3, 3\)"),
        (lambda t: t[TOWER].view(-1)[5:6].fill_(math.nan), f"1 not finite, first {TOWER}"),
        (lambda t: t[TOWER].view(-1)[5:6].fill_(math.inf), f"1 not finite, first {TOWER}"),
        (
            lambda t: t["backbone.body.bn1.running_var"].fill_(-1),
            "1 of variances that are not above 0, first backbone.body.bn1.running_var",
        ),
        (lambda t: t.update({TOWER: t[TOWER].int()}), f"{TOWER} of .* holds torch.int32, not floating point"),
        (lambda t: t.pop("head.classification_head.cls_logits.weight"), "is no RetinaNet of torchvision, detectron2.* by its .* tensors"),
        (lambda t: t.update({"head.regression_head.bbox_reg.weight": torch.zeros(24, 32, 3, 3)}), "27 rows for 6 anchors"),
        (
            lambda t: t.update({"head.regression_head.bbox_reg.weight": torch.zeros(12, 32, 3, 3)}),
            "is for 3 anchors in a cell, torchvision has 9",
        ),
        (lambda t: t.update({"head.regression_head.bbox_reg.weight": torch.zeros(35, 32, 3, 3)}), "35 rows, not four for each anchor"),
        (lambda t: t.update({"backbone.body.layer1.0.conv2.weight": torch.zeros(64, 2, 3, 3)}), r"is a ResNeXt \(32 groups\)"),
        (lambda t: t.update({"backbone.body.layer1.2.conv1.weight": torch.zeros(64, 64, 3, 3)}), r"has \(3, 2, 2, 2\) basic blocks"),
        (lambda t: [t.pop(k) for k in list(t) if "layer" in k and "body" in k], "backbone of .* is of an unknown kind, no ResNet"),
    ],
)
def test_a_file_that_does_not_fit_is_explained(change: Callable[[Tensors], object], message: str, tmp_path: Path) -> None:
    path = write(tmp_path / "w.pth", edited(change))
    with pytest.raises(WeightsError, match=message) as caught:
        convert(path)
    assert "\n" not in str(caught.value)


def test_what_no_model_of_ours_can_do_is_refused(tmp_path: Path) -> None:
    state = edited(lambda t: t.update({"head.cls_subnet.1.weight": torch.zeros(32)}), "detectron2")
    with pytest.raises(WeightsError, match=r"norms inside its towers \(head.cls_subnet.1\)"):
        convert(write(tmp_path / "w.pth", state))
    state = edited(lambda t: t.update({"retnet_cls_conv_n0_fpn5_w": torch.zeros(32, 32, 3, 3)}), "caffe2")
    with pytest.raises(WeightsError, match="heads that differ between levels"):
        convert(write(tmp_path / "w.pkl", state, "caffe2.pkl"))
    state = edited(lambda t: t.update({"conv1_b": torch.ones(64)}), "caffe2")
    with pytest.raises(WeightsError, match="a bias that is not zero before an affine layer"):
        convert(write(tmp_path / "w.pkl", state, "caffe2.pkl"))
    with pytest.raises(WeightsError, match=r"made by MMDetection 1\.2\.0, whose anchors"):
        convert(write(tmp_path / "w.pth", foreign_states.mmdet(), meta={"mmdet_version": "1.2.0"}))
    state = edited(lambda t: t.pop("bbox_head.retina_cls.weight"), "mmdet")
    with pytest.raises(WeightsError, match="but no RetinaNet"):
        convert(write(tmp_path / "w.pth", state))


def test_frameworks_by_name(tmp_path: Path) -> None:
    path = write(tmp_path / "w.pth", foreign_states.odtk())
    assert convert(path, origin="odtk").report.framework == "odtk"
    with pytest.raises(WeightsError, match="no RetinaNet of mmdet: it looks like odtk"):
        convert(path, origin="mmdet")
    with pytest.raises(ConfigError, match=r"unknown framework 'mmdt'.*did you mean mmdet"):
        convert(path, origin="mmdt")


def test_conventions_can_be_set(tmp_path: Path) -> None:
    path = write(tmp_path / "w.pth", foreign_states.torchvision())
    conversion = convert(path, overrides={"input.size": 416, "input.max_size": 416, "norm_eps": 0, "output.max_detections": 7})
    found = conversion.loaded.record.conventions
    assert (found.input.size, found.input.max_size, found.norm_eps, found.output.max_detections) == (416, 416, 0, 7)
    assert {"norm_eps", "input.size"}.isdisjoint(item.setting for item in conversion.report.assumed)
    for wrong, message in (
        ({"input.siz": 3}, "unknown convention 'input.siz'; did you mean input.size"),
        ({"input.size": "big"}, "input.size='big': "),
        ({"norm_eps": True}, "norm_eps=True: expected neither true nor false"),
        ({"backbone": "resnet51"}, "backbone=resnet51: only ResNets .* did you mean resnet50"),
    ):
        with pytest.raises(ConfigError, match=message):
            convert(tmp_path / "is not even looked at", overrides=wrong)
    with pytest.raises(WeightsError, match="resnet18 has no bottlenecks"):
        convert(path, overrides={"stride_in": "1x1"})


def test_classes_name_rows_change_them_or_are_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "w.pth", foreign_states.torchvision(rows=4))
    unnamed = convert(path).loaded.record.categories
    assert [(c.id, c.name) for c in unnamed] == [(i, f"class_{i}") for i in range(4)]
    named = convert(path, classes="a,b,c")
    assert [(c.id, c.name) for c in named.loaded.record.categories] == [(1, "a"), (2, "b"), (3, "c")]
    theirs = torch.load(path, weights_only=True)["state_dict"]["head.classification_head.cls_logits.bias"]
    assert torch.equal(named.loaded.model.state_dict()["head.cls.shared_predict.bias"].view(9, 3), theirs.view(9, 4)[:, 1:])
    with pytest.raises(WeightsError, match=r"the list of classes gives 2 classes, but the file has 4 class rows; give 3 \(row 0"):
        convert(path, classes="a,b")
    with pytest.raises(InputError, match="names 'a' twice"):
        convert(path, classes="a,a,b")
    meta = {"dataset_meta": {"classes": ("Cat", "dog", "bird")}, "mmdet_version": "3.3.0"}
    changed = convert(write(tmp_path / "m.pth", foreign_states.mmdet(), meta=meta), classes="cat,fish")
    assert [c.name for c in changed.loaded.record.categories] == ["cat", "fish"]
    assert changed.loaded.record.notes["classes_changed"]["kept"] == ["cat"]
    assert changed.source is None


def test_the_written_file_is_the_model(tmp_path: Path) -> None:
    conversion = convert(
        write(tmp_path / "w.pth", foreign_states.mmdet()), classes=[Category(id=i, name=n) for i, n in ((3, "a"), (5, "b"), (9, "c"))]
    )
    save_model(tmp_path / "m.safetensors", conversion.loaded.model, conversion.loaded.record)
    again = load_model(tmp_path / "m.safetensors")
    assert again.record == conversion.loaded.record
    assert again.record.notes["converted"]["framework"] == "mmdet"
    assert [c.id for c in again.record.categories] == [3, 5, 9]
    assert all(torch.equal(tensor, conversion.loaded.model.state_dict()[name]) for name, tensor in again.model.state_dict().items())
    # And a model file is a source too: for other classes and conventions.
    changed = convert(tmp_path / "m.safetensors", classes="c,d", overrides={"input.size": 300})
    assert [c.name for c in changed.loaded.record.categories] == ["c", "d"]
    assert changed.loaded.model.conventions.input.size == changed.loaded.record.conventions.input.size == 300
    old, new = (m.state_dict()["head.cls.shared_predict.bias"] for m in (again.model, changed.loaded.model))
    assert torch.equal(new.view(9, 2)[:, 0], old.view(9, 3)[:, 2])
    with pytest.raises(WeightsError, match="do not fit these conventions"):
        convert(tmp_path / "m.safetensors", overrides={"p6_source": "P5"})
    with pytest.raises(ConfigError, match="has its own backbone"):
        convert(tmp_path / "m.safetensors", overrides={"backbone": "resnet50"})


def test_a_model_with_two_heads_keeps_both_under_other_conventions(tmp_path: Path) -> None:
    torch.manual_seed(0)
    plan = HeadPlan(cls={"P3": block_tower("v3")}, bbox={"P3": block_tower("v3")})
    model = build(plan, num_classes=2, backbone="resnet18", width=16, full_output=("P3",)).eval()
    names = (Category(id=1, name="a"), Category(id=2, name="b"))
    record = make_record(model, preset="lw-v3", backbone="resnet18", width=16, norm="frozen", plan=plan, categories=names, notes={})
    save_model(tmp_path / "light.safetensors", model, record.model_copy(update={"switchable": True, "full_output": True}))
    loaded = convert(tmp_path / "light.safetensors", overrides={"input.size": 300}).loaded
    assert (loaded.record.switchable, loaded.record.full_output, loaded.model.conventions.input.size) == (True, True, 300)
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        for full_head in (False, True):
            assert torch.equal(loaded.model(images, full_head=full_head).logits, model(images, full_head=full_head).logits)


def test_torchvisions_own_weights_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    from torchvision.models.detection import RetinaNet_ResNet50_FPN_Weights

    with pytest.raises(WeightsError, match=r"no RetinaNet called 'retinanet_resnet50'.*did you mean"):
        convert("torchvision:retinanet_resnet50")
    state = foreign_states.torchvision(rows=91)
    monkeypatch.setattr(RetinaNet_ResNet50_FPN_Weights, "get_state_dict", lambda *_, **__: state.tensors)
    conversion = convert("torchvision:retinanet_resnet50_fpn")
    assert conversion.report.source == "torchvision:retinanet_resnet50_fpn"
    assert len(conversion.loaded.record.categories) == 80


def wrapped(state: State, prefix: str, **others: torch.Tensor) -> dict[str, torch.Tensor]:
    return {**{prefix + name: tensor for name, tensor in state.tensors.items()}, **others}


METRICS = {"val_precision.true_positives": torch.tensor(3.0), "confusion": torch.zeros(3, 3)}


@pytest.mark.parametrize("framework", ["torchvision", "odtk"])
@pytest.mark.parametrize(
    ("wrap", "left_out"),
    [
        (lambda s: wrapped(s, "module.", n_averaged=torch.tensor(5)), {"n_averaged"}),  # torch's AveragedModel
        (lambda s: {"state_dict": wrapped(s, "retinanet.net.", **METRICS), "pytorch-lightning_version": "2.1.0"}, set(METRICS)),
        (lambda s: {"epoch": 5, "ema": s.tensors, "optimizer": {"param_groups": [], "state": {0: {"step": torch.tensor(1)}}}}, set()),
        (lambda s: {"weights": s.tensors}, set()),
        (lambda s: {"ema": {"module": wrapped(s, "_orig_mod.")}}, set()),
        (lambda s: wrapped(s, "", total=torch.tensor(9.0)), {"total"}),
    ],
)
def test_the_detector_is_found_in_what_trainers_wrap_around_it(
    framework: str, wrap: Callable[[State], dict[str, Any]], left_out: set[str], tmp_path: Path
) -> None:
    state = getattr(foreign_states, framework)()
    torch.save(wrap(state), tmp_path / "w.pth")
    conversion = convert(tmp_path / "w.pth")
    assert_landed(conversion, state, left_out)
    assert all(name in "\n".join(conversion.report.lines()) for name in left_out)


def test_averaged_weights_are_offered_by_name(tmp_path: Path) -> None:
    state = foreign_states.torchvision()
    averaged = State(tensors={name: tensor * 0.5 for name, tensor in state.tensors.items()}, landing=state.landing)
    torch.save({"model": state.tensors, "model_ema": wrapped(averaged, "module.", n_averaged=torch.tensor(5))}, tmp_path / "w.pth")
    conversion = convert(tmp_path / "w.pth")
    assert_landed(conversion, state)
    assert "  weights = model: the file also holds model_ema" in conversion.report.lines()
    assert_landed(convert(tmp_path / "w.pth", overrides={"weights": "model_ema"}), averaged, ["n_averaged"])
    with pytest.raises(WeightsError, match=r"no weights of a detector called emma; it has model, model_ema"):
        convert(tmp_path / "w.pth", overrides={"weights": "emma"})


def test_of_two_detectors_one_has_to_be_named(tmp_path: Path) -> None:
    state = foreign_states.torchvision()
    torch.save(wrapped(state, "student.") | wrapped(state, "assistant."), tmp_path / "w.pth")
    with pytest.raises(WeightsError, match="choose one of them by name: weights=student or weights=assistant"):
        convert(tmp_path / "w.pth")
    student = wrapped(state, "student.")
    assert_landed(convert(tmp_path / "w.pth", overrides={"weights": "assistant"}), state, student)
