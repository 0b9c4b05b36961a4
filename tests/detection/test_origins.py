"""Each origin's conventions against a literal version of what that framework does: the same input, the same boxes."""

from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import NamedTuple, cast

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from tests.detection import literal_origins as literal
from tests.detection.literal_origins import Found, Maps, Prepared, Sized
from torch import Tensor, nn

from lw_retinanet.conventions import Conventions
from lw_retinanet.data.preprocess import resized_size
from lw_retinanet.data.records import Category
from lw_retinanet.detection.detector import Detector
from lw_retinanet.heads import HeadPlan
from lw_retinanet.models.retinanet import RetinaNet
from lw_retinanet.structures import Predictions
from lw_retinanet.weights.foreign import caffe2, detectron2, mmdet, odtk, torchvision

NUM_CLASSES = 3
SHORT, LONG = 96, 160  # 800 and 1333, scaled down
CATEGORIES = tuple(Category(id=number, name=str(number)) for number in range(NUM_CLASSES))

ORIGINS = {
    "torchvision_v1": torchvision.TORCHVISION_V1,
    "torchvision_v2": torchvision.TORCHVISION_V2,
    "detectron2": detectron2.CONVENTIONS,
    "mmdet": mmdet.CONVENTIONS,
    "mmdet_caffe": mmdet.CAFFE_CONVENTIONS,
    "odtk": odtk.CONVENTIONS,
    "caffe2": caffe2.CONVENTIONS,
}


class Literal(NamedTuple):
    size: Callable[[int, int, int, int], Sized]
    prepare: Callable[[NDArray[np.uint8], Sized], Prepared]
    boxes: Callable[[Sequence[Maps], Prepared, tuple[int, int]], list[Found]]
    tolerance: float  # of input values, in levels of 0..255


# Whole levels are rounded in fixed-point arithmetic by Pillow and by torch alike, not always to the same side.
LITERAL = {
    "torchvision_v1": Literal(literal.torchvision_size, literal.torchvision_input, literal.torchvision_boxes, 1e-2),
    "torchvision_v2": Literal(literal.torchvision_size, literal.torchvision_input, literal.torchvision_boxes, 1e-2),
    "detectron2": Literal(literal.detectron2_size, literal.detectron2_input, literal.detectron2_boxes, 1.01),
    "mmdet": Literal(literal.mmdet_size, literal.mmdet_input, literal.mmdet_boxes, 1.01),
    "mmdet_caffe": Literal(literal.mmdet_size, literal.mmdet_caffe_input, literal.mmdet_boxes, 1.01),
    "odtk": Literal(literal.odtk_size, literal.odtk_input, literal.odtk_boxes, 1.01),
    "caffe2": Literal(literal.caffe2_size, literal.caffe2_input, literal.caffe2_boxes, 1e-2),
}


class Recorded(nn.Module):
    """In place of a network: says random things about any input, many of them with confidence, and remembers both."""

    def __init__(self, conventions: Conventions) -> None:
        super().__init__()
        self.conventions = conventions
        self.head = SimpleNamespace(plan=HeadPlan())
        self.images = torch.zeros(0)
        self.maps: list[Maps] = []

    def forward(self, images: Tensor) -> Predictions:
        self.images, self.maps = images, []
        random = torch.Generator().manual_seed(images.shape[2] * 1000 + images.shape[3])
        logits, deltas = [], []
        for stride in (8, 16, 32, 64, 128):
            size_hw = (-(-images.shape[2] // stride), -(-images.shape[3] // stride))
            # Of P3 more than a thousand pairs pass 0.05; of P7 some do not, which Caffe2 takes all the same.
            says = torch.randn(9 * NUM_CLASSES, *size_hw, generator=random) * 1.5 - 3.5
            moves = torch.randn(9, 4, *size_hw, generator=random) * torch.tensor([0.6, 0.6, 0.4, 0.4])[:, None, None]
            extreme = torch.rand(9, 2, *size_hw, generator=random) < 0.03
            moves[:, 2:] = torch.where(extreme, torch.sign(moves[:, 2:]) * 5, moves[:, 2:])  # beyond the clamp at 4.1, both ways
            moves = moves.flatten(0, 1)
            self.maps.append(Maps(says.double().numpy(), moves.double().numpy()))
            logits.append(says.reshape(9, NUM_CLASSES, -1).permute(2, 0, 1).reshape(1, -1, NUM_CLASSES))
            deltas.append(moves.reshape(9, 4, -1).permute(2, 0, 1).reshape(1, -1, 4))
        return Predictions(torch.cat(logits, dim=1), torch.cat(deltas, dim=1))


def scaled_down(origin: str) -> Conventions:
    conventions = ORIGINS[origin]
    return conventions.model_copy(update={"input": conventions.input.model_copy(update={"size": SHORT, "max_size": LONG})})


def picture(size_hw: tuple[int, int]) -> NDArray[np.uint8]:
    return np.random.default_rng(sum(size_hw)).integers(0, 256, (*size_hw, 3), dtype=np.uint8)


@pytest.mark.parametrize("size_hw", [(97, 131), (320, 240), (53, 211)])
@pytest.mark.parametrize("origin", ORIGINS)
def test_a_detector_answers_as_its_origin(origin: str, size_hw: tuple[int, int]) -> None:
    conventions, image = scaled_down(origin), picture(size_hw)
    network = Recorded(conventions)
    result = Detector.of_model(cast(RetinaNet, network), CATEGORIES).predict_arrays([image])[0]

    inputs = LITERAL[origin].prepare(image, LITERAL[origin].size(*size_hw, SHORT, LONG))
    level = conventions.input.scale * np.array(conventions.input.std)[:, None, None]
    np.testing.assert_allclose(network.images[0].numpy() * level, inputs.values * level, rtol=0, atol=LITERAL[origin].tolerance)

    expected = LITERAL[origin].boxes(network.maps, inputs, size_hw)
    assert len(result) == len(expected) >= 60
    boxes_xywh = result.boxes.astype(np.float64)
    boxes_xywh[:, 2:] -= boxes_xywh[:, :2]
    free = np.ones(len(result), bool)
    for label, score, box in expected:
        fits = free & (result.labels == label) & (abs(result.scores - score) < 1e-6)
        fits &= (abs(boxes_xywh - box) < 1e-3).all(axis=1)
        assert fits.any(), f"no detection of class {label} at {box} with score {score:.6f}"
        free[np.flatnonzero(fits)[0]] = False
    assert (np.diff(result.scores) <= 0).all()


def test_origins_differ_where_it_matters() -> None:
    # One image, one network: were the conventions ignored, all would answer alike.
    answers = [
        Detector.of_model(cast(RetinaNet, Recorded(scaled_down(origin))), CATEGORIES).predict(picture((97, 131)))[0] for origin in ORIGINS
    ]
    boxes = {result.boxes[:20].tobytes() for result in answers}
    assert len(boxes) == len(ORIGINS) - 2  # torchvision's two and MMDetection's two differ inside the network only


@pytest.mark.parametrize(
    ("origin", "expected"),
    [
        ("torchvision_v1", (800, 1066)),
        ("torchvision_v2", (800, 1066)),
        ("detectron2", (800, 1067)),
        ("mmdet", (800, 1067)),
        ("mmdet_caffe", (800, 1067)),
        ("odtk", (800, 1066)),
        ("caffe2", (800, 1067)),
    ],
)
def test_size_of_a_vga_image(origin: str, expected: tuple[int, int]) -> None:
    assert resized_size((480, 640), ORIGINS[origin].input) == expected


@pytest.mark.parametrize("origin", ORIGINS)
def test_sizes_of_many_images(origin: str) -> None:
    sides = np.random.default_rng(0).integers(30, 1500, (500, 2)).tolist()
    rule = ORIGINS[origin].input
    for height, width in [[97, 97], [480, 640], [427, 640], [600, 1000], [1000, 600], [425, 320], *sides]:
        assert resized_size((height, width), rule) == LITERAL[origin].size(height, width, 800, 1333).size_hw


def test_a_callers_score_holds_on_the_last_level_too() -> None:
    detector = Detector.of_model(cast(RetinaNet, Recorded(scaled_down("caffe2"))), CATEGORIES)
    assert detector.predict_arrays([picture((97, 131))], score=0.3)[0].scores.min() > 0.3


def test_records_of_earlier_files_mean_what_they_meant() -> None:
    new = {"last_level_score_threshold", "clip_to", "frame", "scale_back", "drop_empty", "resample_as", "inclusive"}
    old = Conventions().model_dump()
    for part in ("anchors", "input", "output"):
        old[part] = {key: value for key, value in old[part].items() if key not in new}
    assert Conventions.model_validate(old) == Conventions()


@pytest.mark.parametrize("origin", ORIGINS)
def test_conventions_survive_a_file(origin: str) -> None:
    assert Conventions.model_validate_json(ORIGINS[origin].model_dump_json()) == ORIGINS[origin]
