import hashlib
from pathlib import Path

import pytest
import torch
from tests.weights.model_files import write_model
from torch import Tensor

from lw_retinanet.config import parse_config
from lw_retinanet.conventions import AnchorRule, Conventions, InputRule
from lw_retinanet.data.records import Category
from lw_retinanet.errors import WeightsError
from lw_retinanet.heads import PRESETS, HeadPlan
from lw_retinanet.lightening.surgery import lighten_copy
from lw_retinanet.models.build import build
from lw_retinanet.weights.model_file import LoadedModel, load_model, make_record, save_model
from lw_retinanet.weights.start import start_from_file, start_from_settings

CLASSES = (Category(id=1, name="cod"), Category(id=7, name="ray"), Category(id=9, name="eel"))
SHORT_SIDE = Conventions(
    anchors=AnchorRule(rounding="torchvision", stride_rule="padded_over_feature"),
    input=InputRule(resize="short_side", size=96, max_size=128, rounding="floor", antialias=False),
)


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("start") / "fish.safetensors"
    return write_model(path, "lw-v3", CLASSES, norm="batch", conventions=SHORT_SIDE, spread=0.5, notes={"data": "sea"})


def answers(loaded: LoadedModel) -> tuple[Tensor, Tensor]:
    images = torch.randn(1, 3, 96, 64, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        predictions = loaded.model.eval()(images)
    return predictions.logits, predictions.deltas


def test_the_same_classes_change_nothing_but_the_notes(file: Path) -> None:
    # Other ids, as another data set of the same classes has them: the record takes them, the weights do not care.
    renumbered = tuple(Category(id=number, name=c.name) for number, c in enumerate(CLASSES))
    start, loaded = start_from_file(file, renumbered, image_size=None, seed=0), load_model(file)
    assert all(torch.equal(tensor, start.model.state_dict()[name]) for name, tensor in loaded.model.state_dict().items())
    assert start.record.categories == renumbered
    assert start.record.conventions == start.model.conventions == SHORT_SIDE
    assert (start.record.norm, start.record.backbone, start.record.plan) == ("batch", "resnet18", PRESETS["lw-v3"])
    sha256 = hashlib.sha256(file.read_bytes()).hexdigest()
    assert start.record.notes == {"start": {"file": file.name, "sha256": sha256, "notes": {"data": "sea"}}}


def test_known_classes_keep_their_answers_in_their_new_place(file: Path) -> None:
    # "eel" moves from place 2 to place 1, "crab" is new, "cod" and "ray" go.
    start = start_from_file(file, (Category(id=3, name="crab"), Category(id=2, name="eel")), image_size=None, seed=0)
    (logits, deltas), (expected, expected_deltas) = answers(start), answers(load_model(file))
    assert logits.shape[2] == 2
    assert start.record.notes["classes_changed"]["kept"] == ["eel"]
    torch.testing.assert_close(logits[..., 1], expected[..., 2])  # convolutions of another width may sum in another order
    torch.testing.assert_close(deltas, expected_deltas)
    # A new class starts from the prior: probability 0.01, logit -ln 99 = -4.6, nearly everywhere.
    assert logits[..., 0].median().item() == pytest.approx(-4.6, abs=0.3)


def test_the_same_names_in_another_order_are_put_in_order(file: Path) -> None:
    start = start_from_file(file, CLASSES[::-1], image_size=None, seed=0)
    torch.testing.assert_close(answers(start)[0], answers(load_model(file))[0].flip(2))


def test_a_size_that_is_asked_for_replaces_the_files_rule(file: Path) -> None:
    start = start_from_file(file, CLASSES, image_size=160, seed=0)
    expected = SHORT_SIDE.input.model_copy(update={"resize": "long_side", "size": 160})
    assert start.model.conventions.input == start.record.conventions.input == expected
    assert start.model.conventions.anchors == SHORT_SIDE.anchors


def test_the_shorter_side_can_be_asked_for(file: Path) -> None:
    start = start_from_file(file, CLASSES, image_size=160, resize="short_side", max_size=300, seed=0)
    rule = start.record.conventions.input
    assert (rule.resize, rule.size, rule.max_size, rule.rounding) == ("short_side", 160, 300, "floor")
    values = {"model": {"backbone": "resnet18", "head_width": 16}, "data": {"image_size": 96, "resize": "short_side", "max_size": 160}}
    new = start_from_settings(parse_config(values).resolved(), CLASSES)
    assert new.model.conventions.input == InputRule(resize="short_side", size=96, max_size=160)
    assert new.record.conventions == new.model.conventions


def test_new_classes_are_drawn_from_the_seed(file: Path) -> None:
    def logits(seed: int) -> Tensor:
        return answers(start_from_file(file, (Category(id=0, name="crab"),), image_size=None, seed=seed))[0]

    assert torch.equal(logits(1), logits(1))
    assert not torch.equal(logits(1), logits(2))


def test_what_cannot_be_started_from_is_named(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="gone does not exist"):
        start_from_file(tmp_path / "gone", CLASSES, image_size=None, seed=0)
    with pytest.raises(WeightsError, match=r"holds no model\.safetensors"):
        start_from_file(tmp_path, CLASSES, image_size=None, seed=0)
    foreign = tmp_path / "retinanet.pth"
    foreign.write_bytes(b"PK")
    with pytest.raises(WeightsError, match=r"retinanet\.pth is not a model file of this program.*lw-retinanet convert"):
        start_from_file(foreign, CLASSES, image_size=None, seed=0)


def test_a_new_network_is_the_settings_own() -> None:
    values = {"model": {"backbone": "resnet18", "head_width": 16, "preset": "bbox-v3"}, "data": {"image_size": 96}}
    start = start_from_settings(parse_config(values).resolved(), CLASSES)
    assert (start.record.preset, start.record.width, start.record.norm, start.record.plan) == ("bbox-v3", 16, "batch", PRESETS["bbox-v3"])
    assert start.record.conventions.input.size == 96
    assert start.record.categories == CLASSES


@pytest.mark.parametrize("categories", [CLASSES, (Category(id=3, name="crab"), CLASSES[1])])
def test_of_a_file_with_two_heads_the_light_one_goes_on(categories: tuple[Category, ...], tmp_path: Path) -> None:
    torch.manual_seed(0)
    full = build(HeadPlan(), num_classes=3, backbone="resnet18", width=16, norm="batch", conventions=SHORT_SIDE).eval()
    light, _ = lighten_copy(full, PRESETS["lw-v3"])
    record = make_record(
        light, preset="lw-v3", backbone="resnet18", width=16, norm="batch", plan=light.head.plan, categories=CLASSES, notes={}
    ).model_copy(update={"switchable": True, "full_output": True})
    save_model(tmp_path / "light.safetensors", light, record)
    start = start_from_file(tmp_path / "light.safetensors", categories, image_size=None, seed=0)
    torch.testing.assert_close(answers(start)[1], answers(LoadedModel(model=light, record=record))[1])
    assert (start.record.switchable, start.record.full_output) == (False, False)
    # What gets no gradient stops distributed training.
    predictions = start.model.train()(torch.randn(1, 3, 96, 64))
    (predictions.logits.sum() + predictions.deltas.sum()).backward()
    assert all(parameter.grad is not None for parameter in start.model.parameters())
    # What the run saves can be opened again.
    save_model(tmp_path / "trained.safetensors", start.model, start.record)
    assert load_model(tmp_path / "trained.safetensors").model.state_dict().keys() == start.model.state_dict().keys()
