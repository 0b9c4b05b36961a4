import inspect
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import lw_retinanet as lw
from lw_retinanet.cli.lighten import lighten_command
from lw_retinanet.data.records import Category
from lw_retinanet.data.sample import make_sample
from lw_retinanet.heads import PRESETS
from lw_retinanet.jobs.train import Run
from lw_retinanet.lightening.calibration_images import MAX_FILES
from lw_retinanet.lightening.filling import checked_steps
from lw_retinanet.lightening.fitting import FitSettings
from lw_retinanet.weights.model_file import make_record, save_model


def tiny(**changes: object) -> lw.RetinaNet:
    settings = {"num_classes": 2, "backbone": "mobilenet_v2", "head_width": 16, "image_size": 64, **changes}
    return lw.create("lw-v3", **settings)  # type: ignore[arg-type]


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run folder as far as loading is concerned."""
    torch.manual_seed(0)
    model = tiny()
    with torch.no_grad():
        for name, parameter in model.head.named_parameters():
            if name.endswith("bias") and parameter.numel() == 2 * 9:
                parameter.zero_()
    categories = (Category(id=4, name="cat"), Category(id=9, name="dog"))
    plan = PRESETS["lw-v3"]
    record = make_record(model, preset="lw-v3", backbone="mobilenet_v2", width=16, norm="batch", plan=plan, categories=categories, notes={})
    save_model(tmp_path / "run" / "model.safetensors", model, record)
    return tmp_path / "run"


def test_create() -> None:
    model = tiny()
    images = torch.randn(2, 3, 64, 64)
    predictions = model(images)
    # (8^2 + 4^2 + 2^2 + 1 + 1) cells of 9 anchors.
    assert predictions.logits.shape == (2, 86 * 9, 2)
    assert predictions.deltas.shape == (2, 86 * 9, 4)
    assert model.conventions.input.size == 64
    # From nothing, norms must learn, or the first step has nothing to hold on to.
    assert any(isinstance(module, torch.nn.BatchNorm2d) for module in model.backbone.modules())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_classes": 0}, "num_classes must be at least 1, got 0"),
        ({"image_size": 5}, "image_size must be from 32 to 4096 pixels, got 5"),
        ({"backbone": "resnet51"}, "did you mean resnet50?"),
        ({"head_width": -1}, "head_width"),
        ({"backbone_weights": "gone.pth"}, "gone.pth does not exist"),
    ],
)
def test_create_refuses_what_it_cannot_build(changes: dict[str, object], message: str) -> None:
    with pytest.raises(lw.InputError) as caught:
        tiny(**changes)
    assert message in str(caught.value)


def test_an_unknown_preset_is_answered_with_the_nearest() -> None:
    with pytest.raises(lw.InputError, match=r"did you mean lw-v3\?"):
        lw.create("lw-v33")


def test_load_a_run_folder_and_predict(run: Path, tmp_path: Path) -> None:
    detector = lw.load(run, device="cpu")
    assert isinstance(detector, lw.Detector)
    assert detector.class_names == ("cat", "dog")
    assert detector.name == "run (lw-v3)"
    array = np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8)
    Image.fromarray(array).save(tmp_path / "a.png")
    results = detector.predict([tmp_path / "a.png", Image.fromarray(array), array], score=0.1)
    assert len(results) == 3
    assert {type(result) for result in results} == {lw.Result}
    assert len(results[0])
    assert results[0].to_dict()["detections"] == results[2].to_dict()["detections"]
    assert set(results[0].names) <= {"cat", "dog"}
    same = lw.load(str(run / "model.safetensors"), device="cpu").predict(array, score=0.1)[0]
    assert np.array_equal(same.boxes, results[2].boxes)


def test_bf16_is_near_fp32(run: Path) -> None:
    array = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    exact, rounded = (lw.load(run, device="cpu", precision=precision).predict(array)[0] for precision in ("fp32", "bf16"))
    assert not np.array_equal(exact.scores, rounded.scores)  # it was asked for, so it is used
    # Eight bits of mantissa through some sixty layers: a few hundredths of a score.
    np.testing.assert_allclose(exact.scores[:5], rounded.scores[:5], rtol=0, atol=0.08)


def test_load_refuses_what_is_no_model(tmp_path: Path) -> None:
    with pytest.raises(lw.InputError, match="does not exist"):
        lw.load(tmp_path / "gone.safetensors")
    with pytest.raises(lw.LwRetinaNetError, match=r"holds no model\.safetensors"):
        lw.load(tmp_path)


@pytest.fixture
def full(tmp_path: Path) -> Path:
    """A model file whose head is not light."""
    torch.manual_seed(0)
    model = lw.create("retinanet", num_classes=2, backbone="mobilenet_v2", head_width=32, image_size=64)
    categories = (Category(id=4, name="cat"), Category(id=9, name="dog"))
    plan = PRESETS["retinanet"]
    settings = {"preset": "retinanet", "backbone": "mobilenet_v2", "width": 32, "norm": "batch", "notes": {}}
    save_model(tmp_path / "full.safetensors", model, make_record(model, plan=plan, categories=categories, **settings))  # type: ignore[arg-type]
    return tmp_path / "full.safetensors"


def test_whatever_holds_a_model_goes_everywhere(full: Path, tmp_path: Path) -> None:
    array = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    data = make_sample(tmp_path / "data", num_train=1, num_val=1, size=64)
    detector = lw.load(full, device="cpu")
    made = lw.create("retinanet", num_classes=4, backbone="mobilenet_v2", head_width=32, image_size=64).eval()
    shapes = lw.load(made.save(tmp_path / "made.safetensors"), device="cpu")
    assert shapes.class_names == ("class_0", "class_1", "class_2", "class_3")
    renamed = lw.convert(tmp_path / "made.safetensors", classes=["disc", "checker", "star", "ring"])
    folder = tmp_path / "folder"
    folder.mkdir()
    run = Run(folder=folder, metrics=None)
    detector.save(folder / "model.safetensors")
    wanted = {name: len(one.predict(array, score=0.0)[0]) for name, one in (("full", detector), ("made", shapes))}
    for holder, name in ((detector, "full"), (run, "full"), (detector.loaded(), "full"), (made, "made"), (renamed, "made")):
        assert len(lw.predict(holder, array, score=0.0, device="cpu")[0]) == wanted[name]
        assert (
            lw.profile(holder).cost.macs
            == lw.profile("retinanet", size=64, classes=2 if name == "full" else 4, backbone="mobilenet_v2", width=32).cost.macs
        )
        light = lw.lighten(holder, "lw-v3")
        assert isinstance(light, lw.Detector)
        assert light.model.head.plan.cls == PRESETS["lw-v3"].cls
        copied = holder.save(tmp_path / "copy.safetensors")
        assert len(lw.load(copied, device="cpu").predict(array, score=0.0)[0]) == wanted[name]
    assert lw.evaluate(renamed, data, device="cpu").images == 1
    # What was asked of a detector goes along.
    asked = detector.with_output(max_detections=3)
    assert len(lw.predict(asked.loaded(), array, score=0.0, device="cpu")[0]) == 3
    with pytest.raises(lw.InputError, match="an object of type Linear is no model that can be opened; give a model file, a run, what lw"):
        lw.predict(torch.nn.Linear(1, 1), array)


def test_a_model_in_memory_is_exported(full: Path, tmp_path: Path) -> None:
    pytest.importorskip("onnxscript")
    pytest.importorskip("onnxruntime")
    detector = lw.load(full, device="cpu").with_output(max_detections=7)
    exported = lw.export(detector, tmp_path / "m.onnx")
    assert exported.manifest.record.conventions.output.max_detections == 7
    assert exported.manifest.record.categories == detector.categories


def test_lighten_a_model_file(full: Path, tmp_path: Path) -> None:
    array = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    (tmp_path / "pictures").mkdir()
    Image.fromarray(array).save(tmp_path / "pictures" / "a.png")
    before = full.read_bytes()
    blind = lw.lighten(full, "lw-v3")
    seeing = lw.lighten(lw.load(full, device="cpu"), "lw-v3", images=tmp_path / "pictures", fit_steps=2)
    assert full.read_bytes() == before
    for light in (blind, seeing):
        assert isinstance(light, lw.Detector)
        assert light.name == "lw-v3"
        assert light.class_names == ("cat", "dog")
        assert light.model.head.plan.cls == PRESETS["lw-v3"].cls
    # The pictures arrived: the towers are not those of the old weights alone.
    name = "head.cls.own_predict.P3.weight"
    assert not torch.equal(blind.model.state_dict()[name], seeing.model.state_dict()[name])


def test_lighten_has_the_defaults_of_the_command(full: Path, tmp_path: Path) -> None:
    assert lw.lighten(full).name == "lw-narrow"
    assert (checked_steps(None, has_images=True), checked_steps(None, has_images=False)) == (1500, 0)
    given = {name: parameter.default for name, parameter in inspect.signature(lighten_command).parameters.items()}
    assert (given["fit_steps"].default, given["rate"].default) == (FitSettings.steps, FitSettings.rate)
    assert (given["images"].default, given["seed"].default, given["keep_pyramid"].default) == (MAX_FILES, 0, False)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"to": "lw-v33"}, r"unknown preset 'lw-v33'; did you mean lw-v3\?"),
        ({"fit_steps": 3}, "fit_steps=3 needs images"),
        ({"images": []}, "images is empty"),
        ({"images": [np.zeros((8, 8, 3), dtype=np.uint8)]}, "images must be files, a folder or a data set"),
    ],
)
def test_lighten_refuses_what_means_nothing(full: Path, arguments: dict[str, object], message: str) -> None:
    with pytest.raises(lw.InputError, match=message):
        lw.lighten(full, **arguments)  # type: ignore[call-overload]


def test_lighten_says_what_it_takes(full: Path) -> None:
    made = tiny()
    bare = lw.RetinaNet(backbone=made.backbone, fpn=made.fpn, head=made.head, conventions=made.conventions)
    with pytest.raises(lw.InputError, match="a bare network has no classes"):
        lw.lighten(bare)
    with pytest.raises(lw.InputError, match="cannot lighten a Linear: only torchvision's RetinaNet, FCOS and R-CNN"):
        lw.lighten(torch.nn.Linear(1, 1))
    with pytest.raises(lw.InputError, match="int is no model that can be opened; give a model file"):
        lw.lighten(7)  # type: ignore[call-overload]


# The command of each function, and the parameters whose option has another name.
COMMANDS: dict[str, tuple[str, dict[str, str]]] = {
    "train": ("train", {}),
    "evaluate": ("evaluate", {}),
    "predict": ("predict", {}),
    "export": ("export", {}),
    "convert": ("convert", {"overrides": "set_"}),
    "profile": ("profile", {}),
    "compare": ("compare", {}),
}
# Python's own: nested settings, and a caller's bar.
PYTHON_ONLY = {"train": {"train", "progress"}, "evaluate": {"progress"}, "predict": set(), "compare": {"progress"}, "export": {"progress"}}
OF_LISTS = {"manifest", "shard", "processes", "ray", "chunk", "merge", "coco"}
COMMAND_ONLY = {"predict": {"every", "json", *OF_LISTS}, "train": {"classes", "settings", "dry_run", "processes", "measure", "json"}}


@pytest.mark.parametrize("name", COMMANDS)
def test_defaults_are_those_of_the_command(name: str) -> None:
    command, renamed = COMMANDS[name]
    function = getattr(import_module(f"lw_retinanet.cli.{command}"), f"{command}_command")
    options = inspect.signature(function).parameters
    parameters = inspect.signature(getattr(lw, name)).parameters
    own = PYTHON_ONLY.get(name, set())
    assert {renamed.get(each, each) for each in parameters if each not in own} == set(options) - COMMAND_ONLY.get(name, {"json"})
    for parameter in parameters.values():
        if parameter.name in own or parameter.default is inspect.Parameter.empty:
            continue
        option = options[renamed.get(parameter.name, parameter.name)].default.default
        default = None if option in ([], "", ..., {}) else option
        assert (parameter.default or None) == (default or None), parameter.name
