"""The adapter against a small copy of SAHI's documented base class; scripts/clients/sahi_client.py runs it in SAHI itself."""

import importlib
import sys
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

import lw_retinanet as lw
from lw_retinanet.errors import MissingExtraError

NAME = "lw_retinanet.interop.sahi"


class DetectionModel:
    """``sahi.models.base.DetectionModel`` (0.12): what it does before and after the methods of a subclass."""

    def __init__(
        self, model_path: Any = None, model: Any = None, device: str = "cpu", confidence_threshold: float = 0.3, **others: Any
    ) -> None:
        self.model_path, self.confidence_threshold, self.device = model_path, confidence_threshold, torch.device(device)
        self.image_size, self.category_mapping = others.get("image_size"), others.get("category_mapping")
        self.set_model(model) if model else self.load_model()  # type: ignore[attr-defined]


@dataclass
class ObjectPrediction:
    bbox: list[float]
    score: float
    category_id: int
    category_name: str
    shift_amount: Any
    full_shape: Any


@pytest.fixture
def adapter(monkeypatch: pytest.MonkeyPatch) -> Any:
    base, prediction = ModuleType("sahi.models.base"), ModuleType("sahi.prediction")
    base.DetectionModel, prediction.ObjectPrediction = DetectionModel, ObjectPrediction  # type: ignore[attr-defined]
    for module in (ModuleType("sahi"), ModuleType("sahi.models"), base, prediction):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.delitem(sys.modules, NAME, raising=False)
    yield importlib.import_module(NAME).SahiModel
    sys.modules.pop(NAME, None)


def test_a_detector_answers_slices_as_sahi_expects(adapter: Any, tmp_path: Path) -> None:
    torch.manual_seed(0)
    made = lw.create("lw-v3", num_classes=2, backbone="mobilenet_v2", head_width=16, image_size=64)
    file = made.save(tmp_path / "m.safetensors")
    image = np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8)
    for sahi_model in (adapter(model_path=str(file), confidence_threshold=0.005), adapter(model=made, confidence_threshold=0.005)):
        assert (sahi_model.num_categories, sahi_model.category_names, sahi_model.has_mask) == (2, ["class_0", "class_1"], False)
        sahi_model.perform_inference(image)
        wanted = lw.load(file, device="cpu").predict(image, score=0.005)[0]
        for shift, shape in (([[10, 20]], [[480, 640]]), ([10, 20], [480, 640])):
            sahi_model._create_object_prediction_list_from_original_predictions(shift_amount_list=shift, full_shape_list=shape)
            (found,) = sahi_model._object_prediction_list_per_image
            assert len(found) == len(wanted) > 0
            assert (found[0].bbox, found[0].category_id) == (wanted.boxes[0].tolist(), wanted.labels[0])
            assert (found[0].category_name, found[0].shift_amount, found[0].full_shape) == (wanted.names[0], [10, 20], [480, 640])
    small = adapter(model=made, image_size=32, category_mapping={"0": "cat", "1": "dog"})
    assert small.model.conventions.input.size == 32
    assert small.category_names == ["cat", "dog"]


def test_without_sahi_the_remedy_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sahi", None)
    monkeypatch.delitem(sys.modules, NAME, raising=False)
    with pytest.raises(MissingExtraError, match="needs SAHI; install it with: pip install sahi"):
        importlib.import_module(NAME)
