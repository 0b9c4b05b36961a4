"""What a checkpoint says beside its tensors decides the model: thresholds, names, sizes, the epsilon; contradictions are refused."""

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import save_file
from tests.weights import foreign_states

from lw_retinanet.detection.detector import Detector
from lw_retinanet.errors import ConfigError, WeightsError
from lw_retinanet.weights.foreign.comparison import compare_with_framework
from lw_retinanet.weights.foreign.conversion import ConvertedModel
from lw_retinanet.weights.foreign.convert import convert
from lw_retinanet.weights.model_file import LoadedModel, load_model, save_model


def origins(converted: ConvertedModel) -> dict[str, tuple[Any, str]]:
    return {item.setting: (item.value, item.origin) for item in converted.report.conventions}


def deepforest(path: Path, *, rows: int = 1, **changes: Any) -> Path:
    """A checkpoint as DeepForest 2.1 and its trainer write it."""
    names = {"Tree": 0} if rows == 1 else {f"kind {row}": row for row in range(rows)}
    config = {"architecture": "retinanet", "num_classes": rows, "label_dict": None, "nms_thresh": 0.05, "score_thresh": 0.1}
    config |= {"model": {"name": "weecology/deepforest-tree", "revision": "main"}, "train": {"lr": 0.001}, **changes}
    content = {"state_dict": {f"model.{name}": tensor for name, tensor in foreign_states.torchvision(rows=rows).tensors.items()}}
    about = {"label_dict": names, "numeric_to_label_dict": {row: name for name, row in names.items()}}
    torch.save({**content, "hyper_parameters": {"config": config}, **about, "callbacks": {}}, path)
    return path


@pytest.mark.parametrize(("begun_from", "eps"), [(None, 0.0), ("weecology/deepforest-tree", 1e-5)])
def test_a_deepforest_checkpoint_keeps_its_names_thresholds_and_epsilon(begun_from: str | None, eps: float, tmp_path: Path) -> None:
    converted = convert(deepforest(tmp_path / "trees.pl", model={"name": begun_from, "revision": "main"}))
    rules, found = converted.loaded.record.conventions, origins(converted)
    assert [(c.id, c.name) for c in converted.loaded.record.categories] == [(0, "Tree")]
    assert (rules.output.score_threshold, rules.output.nms_iou, rules.norm_eps) == (0.1, 0.05, eps)
    assert found["output.nms_iou"] == (0.05, "file")
    assert found["norm_eps"] == (eps, "file")
    assert found["input.size"] == (800, "assumed")
    assert not rules.output.class_agnostic
    # Everything is in the model file, too.
    save_model(tmp_path / "m.safetensors", converted.loaded.model, converted.loaded.record)
    noted = load_model(tmp_path / "m.safetensors").record.notes["converted"]["conventions"]
    assert noted["output.nms_iou"] == {"value": 0.05, "origin": "file", "why": "hyper_parameters.config.nms_thresh"}
    assert len(noted) == len(found)


def test_several_kinds_of_trees_suppress_each_other_as_in_deepforest(tmp_path: Path) -> None:
    converted = convert(deepforest(tmp_path / "w.pl", rows=3))
    assert converted.loaded.record.conventions.output.class_agnostic
    assert [c.name for c in converted.loaded.record.categories] == ["kind 0", "kind 1", "kind 2"]


def test_the_name_of_the_file_decides_nothing_and_the_caller_has_the_last_word(tmp_path: Path) -> None:
    path = deepforest(tmp_path / "trees.pl")
    renamed = tmp_path / "caffe_msra_detectron2_half.pth"
    renamed.write_bytes(path.read_bytes())
    first, second = convert(path), convert(renamed)
    assert first.loaded.record.conventions == second.loaded.record.conventions
    changed = convert(path, overrides={"output.nms_iou": 0.4})
    assert origins(changed)["output.nms_iou"] == (0.4, "set")
    lines = "\n".join(changed.report.lines(set_by="from --set"))
    assert "output.nms_iou" in lines
    assert "from --set" in lines


def hub(folder: Path, **config: Any) -> Path:
    folder.mkdir()
    save_file(foreign_states.torchvision(rows=2).tensors, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def test_a_hub_folder_has_its_settings_in_config_json(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"num_classes": 2, "nms_thresh": 0.3, "score_thresh": 0.2, "label_dict": {"Tree": 0, "Bird": 1}}
    folder = hub(tmp_path / "hub", **settings, detections_per_img=7, min_size=[400, 320], image_mean=[0.1, 0.2, 0.3])
    converted = convert(folder)
    rules = converted.loaded.record.conventions
    assert (rules.output.score_threshold, rules.output.nms_iou, rules.output.max_detections) == (0.2, 0.3, 7)
    assert (rules.input.size, rules.input.mean, rules.norm_eps) == (320, (0.1, 0.2, 0.3), 1e-5)
    assert [c.name for c in converted.loaded.record.categories] == ["Tree", "Bird"]
    assert convert(folder / "model.safetensors").loaded.record.conventions == rules
    (folder / "config.json").write_text("{")
    with pytest.raises(WeightsError, match="beside the weights cannot be read; get the folder anew"):
        convert(folder)


def test_names_of_lightning_modules_may_leave_the_background_out(tmp_path: Path) -> None:
    state = {"state_dict": foreign_states.torchvision(rows=3).tensors}
    for names in ({"id2label": {"0": "cat", "1": "dog"}}, {"class_names": ["cat", "dog"]}, {"label2id": {"cat": 1, "dog": 2}}):
        torch.save({**state, "hyper_parameters": {**names, "num_classes": 3, "nms_thresh": 0.6}}, tmp_path / "w.ckpt")
        converted = convert(tmp_path / "w.ckpt")
        assert [(c.id, c.name) for c in converted.loaded.record.categories] == [(1, "cat"), (2, "dog")]
        assert converted.source is not None
        assert converted.source.rows == (1, 2)
        assert converted.loaded.record.conventions.output.nms_iou == 0.6


@pytest.mark.parametrize(("weights", "eps"), [("RetinaNet_ResNet50_FPN_Weights.COCO_V1", 0.0), (None, None)])
def test_arguments_of_torchvisions_training_script_are_read_though_nothing_runs(weights: Any, eps: float | None, tmp_path: Path) -> None:
    args = argparse.Namespace(weights=weights, weights_backbone=None, model="retinanet_resnet50_fpn", lr=0.01)
    torch.save({"model": foreign_states.torchvision().tensors, "args": args, "epoch": 3}, tmp_path / "w.pth")
    assert origins(convert(tmp_path / "w.pth"))["norm_eps"] == ((1e-5, "assumed") if eps is None else (eps, "file"))


def test_settings_in_omegaconf_are_read(tmp_path: Path) -> None:
    omegaconf = pytest.importorskip("omegaconf")
    settings = omegaconf.OmegaConf.create({"detector": {"score_thresh": 0.3, "image_std": [1.0, 0.5, 0.25]}})
    torch.save({"state_dict": foreign_states.torchvision().tensors, "hyper_parameters": settings}, tmp_path / "w.ckpt")
    rules = convert(tmp_path / "w.ckpt").loaded.record.conventions
    assert (rules.output.score_threshold, rules.input.std) == (0.3, (1.0, 0.5, 0.25))


D2 = """
INPUT: {FORMAT: RGB, MIN_SIZE_TEST: 640, MAX_SIZE_TEST: 900}
MODEL:
  META_ARCHITECTURE: RetinaNet
  PIXEL_MEAN: [1.0, 2.0, 3.0]
  RESNETS: {STRIDE_IN_1X1: false}
  RETINANET: {SCORE_THRESH_TEST: 0.3, NMS_THRESH_TEST: 0.4, NUM_CLASSES: 3}
TEST: {DETECTIONS_PER_IMAGE: 50}
"""


def test_detectron2s_configuration_beside_the_file(tmp_path: Path) -> None:
    torch.save({"model": foreign_states.detectron2("resnet50").tensors}, tmp_path / "model_final.pth")
    (tmp_path / "config.yaml").write_text(D2)
    converted = convert(tmp_path / "model_final.pth")
    rules = converted.loaded.record.conventions
    assert (rules.input.size, rules.input.max_size, rules.input.channel_order, rules.input.mean) == (640, 900, "rgb", (1.0, 2.0, 3.0))
    assert (rules.output.score_threshold, rules.output.nms_iou, rules.output.max_detections, rules.stride_in) == (0.3, 0.4, 50, "3x3")
    assert "stride_in" not in {item.setting for item in converted.report.assumed}
    changed = yaml.safe_load(D2)
    changed["MODEL"]["RETINANET"]["NUM_CLASSES"] = 80
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(changed))
    with pytest.raises(WeightsError, match=r"states 80 classes \(config.yaml.MODEL.RETINANET.NUM_CLASSES\), and its class predictor has 3"):
        convert(tmp_path / "model_final.pth")


def test_mmdetections_configuration_beside_the_file(tmp_path: Path) -> None:
    torch.save({"state_dict": foreign_states.mmdet().tensors}, tmp_path / "epoch_12.pth")
    program = "model = dict(bbox_head=dict(type='RetinaHead'), test_cfg=dict(score_thr=0.02, nms=dict(iou_threshold=0.6)))\n"
    (tmp_path / "my_config.py").write_text(f"{program}raise SystemExit\n")
    converted = convert(tmp_path / "epoch_12.pth")
    assert converted.loaded.record.conventions.output.nms_iou == 0.6
    assert origins(converted)["output.score_threshold"] == (0.02, "file")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"score_thresh": 2}, r"states a value that cannot be used \(hyper_parameters.config.score_thresh\): output.score_threshold=2"),
        ({"nms_thresh": 0}, r"output.nms_iou=0: .*; set output.nms_iou"),
        ({"num_classes": 7}, r"states 7 classes \(hyper_parameters.config.num_classes\), and its class predictor has 4; give the names"),
        ({"numbers": {"a": 0, "b": 1}}, r"names 2 classes \(label_dict\) for 4 rows of its class predictor; give the names as classes"),
        ({"numbers": {"a": 0, "b": 1, "c": 2, "d": 7}}, "names 4 classes .* for 4 rows"),
        ({"numbers": {0: "a", 1: "a", 2: "b", 3: "c"}}, "names two classes a"),
    ],
)
def test_what_contradicts_the_weights_is_one_line_with_a_way_out(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    numbers = changes.pop("numbers", None)
    path = deepforest(tmp_path / "w.pl", rows=4, **changes)
    if numbers:
        content = torch.load(path, weights_only=True)
        torch.save({**content, "label_dict": numbers, "numeric_to_label_dict": None}, path)
    with pytest.raises(WeightsError, match=message) as caught:
        convert(path)
    assert "\n" not in str(caught.value)
    # The ways out work: the caller's names and values need not agree with the file's.
    ways = {"output.score_threshold": 0.2, "output.nms_iou": 0.4}
    assert convert(path, classes="a,b,c,d", overrides=ways).loaded.record.conventions.output.nms_iou == 0.4


def test_anchors_that_went_through_fp16_are_the_same_anchors(tmp_path: Path) -> None:
    from lw_retinanet.models.anchors import cell_anchors
    from lw_retinanet.weights.foreign.detectron2 import CONVENTIONS

    state = foreign_states.detectron2()
    for level, stride in enumerate((8, 16, 32, 64, 128)):
        state.tensors[f"anchor_generator.cell_anchors.{level}"] = cell_anchors(stride, CONVENTIONS.anchors).half()
    torch.save({"model": state.tensors}, tmp_path / "w.pth")
    assert convert(tmp_path / "w.pth").report.framework == "detectron2"


def test_half_files_keep_norms_whose_variances_fp16_does_not_hold(tmp_path: Path) -> None:
    state = foreign_states.torchvision()
    state.tensors["backbone.body.layer4.0.bn1.running_var"][3] = 83_614.0
    state.tensors["backbone.body.layer4.0.conv1.weight"][0, 0, 0, 0] = 70_000.0
    torch.save(state.tensors, tmp_path / "w.pth")
    converted = convert(tmp_path / "w.pth")
    for half in (False, True):
        save_model(tmp_path / f"{half}.safetensors", converted.loaded.model, converted.loaded.record, half=half)
    again = load_model(tmp_path / "True.safetensors").model.state_dict()
    wanted = converted.loaded.model.state_dict()
    assert again["backbone.layer4.0.bn1.running_var"][3] == 83_614.0
    assert torch.equal(again["backbone.layer4.0.conv1.weight"], wanted["backbone.layer4.0.conv1.weight"])  # beyond fp16: stays whole
    assert torch.equal(again["backbone.conv1.weight"], wanted["backbone.conv1.weight"].half().float())
    assert (tmp_path / "True.safetensors").stat().st_size < 0.7 * (tmp_path / "False.safetensors").stat().st_size


def predict(loaded: LoadedModel, images: Any) -> Any:
    results = Detector.of_model(loaded.model, loaded.record.categories).predict_arrays(images)
    return [(result.boxes, result.scores, result.labels) for result in results]


def test_the_comparison_uses_the_origins_own_thresholds_and_names_boxes(tmp_path: Path) -> None:
    path = deepforest(tmp_path / "w.pl", nms_thresh=0.2)
    sizes = {"input.size": 64, "input.max_size": 96}
    same = compare_with_framework(convert(path, overrides=sizes), predict).report.comparison
    assert same is not None
    assert same.detections > 0
    assert (same.differences["unmatched"], list(same.unmatched)) == (0, [])
    converted = compare_with_framework(convert(path, overrides={**sizes, "output.nms_iou": 0.9, "output.max_detections": 1000}), predict)
    other = converted.report.comparison
    assert other is not None
    assert other.differences["unmatched"] > 0
    assert other.detections == same.detections
    assert any("the converted model has Tree 0." in text for text in other.unmatched)
    assert any(line.startswith("  without a match: image 1: ") for line in converted.report.lines())


def test_output_can_be_changed_later_and_for_one_call(tmp_path: Path) -> None:
    loaded = convert(deepforest(tmp_path / "w.pl", rows=2), overrides={"input.size": 64}).loaded
    detector = Detector.of_model(loaded.model, loaded.record.categories)
    image = np.random.default_rng(0).integers(0, 256, (70, 90, 3), np.uint8)
    assert len(detector.with_output(max_detections=3).predict([image])[0]) == 3
    assert len(detector.with_output(nms=0.9).predict([image])[0]) > len(detector.predict([image])[0])
    with pytest.raises(ConfigError, match=r"nms_iou=2\.0: "):
        detector.with_output(nms=2.0)
    save_model(tmp_path / "m.safetensors", loaded.model, loaded.record)
    changed = convert(tmp_path / "m.safetensors", overrides={"output.class_agnostic": False})
    assert not changed.loaded.record.conventions.output.class_agnostic
    assert origins(changed)["output.class_agnostic"] == (False, "set")
