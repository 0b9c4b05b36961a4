"""One small model with two heads, and its exported files, each made once."""

from pathlib import Path

import pytest
import torch
from tests.exporting.fakes import CATEGORIES

from lw_retinanet.conventions import Conventions, InputRule
from lw_retinanet.data.sample import make_sample
from lw_retinanet.heads import PRESETS, HeadPlan
from lw_retinanet.jobs.export import run_export
from lw_retinanet.lightening.surgery import lighten_copy
from lw_retinanet.models.build import build
from lw_retinanet.models.retinanet import RetinaNet
from lw_retinanet.weights.model_file import load_model, make_record, save_model


@pytest.fixture(scope="session")
def model_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """ResNet-18, 16 channels, a full and a light head that answer differently; scores spread, so that images have detections."""
    torch.manual_seed(0)
    conventions = Conventions(input=InputRule(size=96))
    full = build(HeadPlan(), num_classes=3, backbone="resnet18", width=16, norm="batch", init="fan_in", conventions=conventions).eval()
    with torch.no_grad():
        # As trained ones have them: statistics that are not 0 and 1, so that folding matters.
        for module in full.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                assert module.running_mean is not None
                assert module.running_var is not None
                module.running_mean.normal_(std=0.1)
                module.running_var.uniform_(0.7, 1.4)
        for branch, offset in ((full.head.cls, -2.5), (full.head.bbox, 0.0)):
            predict = branch.shared_predict
            assert isinstance(predict, torch.nn.Conv2d)
            predict.weight.normal_(std=0.05)
            assert predict.bias is not None
            predict.bias.fill_(offset)
    light, _ = lighten_copy(full, PRESETS["lw-v3"])
    record = make_record(
        full, preset="lw-v3", backbone="resnet18", width=16, norm="batch", plan=HeadPlan(), categories=CATEGORIES, notes={"data": "none"}
    )
    path = tmp_path_factory.mktemp("two heads") / "small.safetensors"
    save_model(path, light, record.model_copy(update={"plan": light.head.plan, "switchable": True, "full_output": True}))
    return path


@pytest.fixture(scope="session")
def model(model_file: Path) -> RetinaNet:
    return load_model(model_file).model


@pytest.fixture(scope="session")
def sample(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A made-up data set of 8 training and 24 validation images."""
    return make_sample(tmp_path_factory.mktemp("sample") / "shapes", num_train=8, num_val=24, size=64)


@pytest.fixture(scope="session")
def onnx_file(model_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The light head, raw outputs."""
    pytest.importorskip("onnxscript")
    pytest.importorskip("onnxruntime")
    return run_export(model_file, tmp_path_factory.mktemp("onnx") / "light.onnx", format="onnx").file


@pytest.fixture(scope="session")
def openvino_file(model_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The full head."""
    pytest.importorskip("openvino")
    return run_export(model_file, tmp_path_factory.mktemp("openvino") / "full.xml", head="full").file


@pytest.fixture(scope="session")
def triton_folder(model_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The light head, boxes."""
    pytest.importorskip("onnxscript")
    pytest.importorskip("onnxruntime")
    return run_export(model_file, tmp_path_factory.mktemp("triton") / "detector", format="triton").file
