from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from lw_retinanet.config import Config, load_config, parse_config
from lw_retinanet.conventions import AnchorRule, BoxRule, Conventions
from lw_retinanet.data.records import Category, Records
from lw_retinanet.detection.detector import Detector
from lw_retinanet.errors import ConfigError
from lw_retinanet.models.anchors import make_anchors
from lw_retinanet.structures import Predictions, Targets
from lw_retinanet.training.atss import match_adaptively
from lw_retinanet.training.distributed import World
from lw_retinanet.training.loop import train
from lw_retinanet.training.losses import box_loss, box_qualities, focal_loss, quality_focal_loss
from lw_retinanet.training.matching import AnchorMatches, match
from lw_retinanet.training.objective import assign, label_losses
from lw_retinanet.training.run_folder import RunFolder
from lw_retinanet.weights.create import ANCHORS
from lw_retinanet.weights.model_file import load_model, save_model
from lw_retinanet.weights.start import start_from_settings

SIZE_HW = (64, 96)
MakeConfig = Callable[..., Config]


def settings_of(**sections: dict[str, Any]) -> Config:
    return parse_config(sections).resolved()


def targets() -> Targets:
    return Targets(
        boxes=torch.tensor([[[4.0, 8.0, 60.0, 50.0], [40.0, 20.0, 56.0, 40.0]], [[0.0, 0.0, 0.0, 0.0]] * 2]),
        labels=torch.tensor([[2, 0], [-1, -1]]),
        is_ignored=torch.zeros(2, 2, dtype=torch.bool),
    )


def is_same(one: AnchorMatches, other: AnchorMatches) -> bool:
    return torch.equal(one.labels, other.labels) and torch.equal(one.boxes, other.boxes)


@pytest.mark.parametrize("number", ["one", "nine"])
@pytest.mark.parametrize("assignment", ["iou", "atss", None])
def test_the_settings_choose_the_assignment_and_else_the_anchors_do(number: str, assignment: Any) -> None:
    rule = ANCHORS[number]
    anchors, matches = assign(SIZE_HW, targets(), config=Config().train.model_copy(update={"assignment": assignment}), rule=rule)
    assert torch.equal(anchors, make_anchors(SIZE_HW, rule, torch.device("cpu")))
    fixed = match(anchors, targets())
    adaptive = match_adaptively(anchors, targets(), size_hw=SIZE_HW, num_anchors=rule.num_anchors)
    assert not is_same(fixed, adaptive)
    is_adaptive = assignment == "atss" or (assignment is None and number == "one")
    assert is_same(matches, adaptive if is_adaptive else fixed)


def test_resolved_settings_say_which_assignment() -> None:
    assert settings_of().train.assignment == "iou"
    assert settings_of(model={"anchors": "one"}).train.assignment == "atss"
    assert settings_of(model={"anchors": "one"}, train={"assignment": "iou"}).train.assignment == "iou"
    # The file that a training starts from brings its own anchors, so that is seen when it is open.
    started = settings_of(model={"start": "runs/1"})
    assert started.train.assignment is None
    assert "anchors" not in yaml.safe_dump(started.model_dump(mode="json"))


def test_quality_takes_giou_in_every_recipe_and_refuses_another(tmp_path: Path) -> None:
    for recipe in ("default", "paper"):
        resolved = settings_of(train={"recipe": recipe, "class_loss": "quality"})
        assert resolved.train.box_loss == "giou"
        file = tmp_path / f"{recipe}.yaml"
        file.write_text(yaml.safe_dump(resolved.model_dump(mode="json")))
        assert parse_config(load_config(file)).resolved() == resolved
    assert settings_of(train={"recipe": "paper"}).train.box_loss == "smooth_l1"
    with pytest.raises(ConfigError, match=r"^settings: train: class_loss=quality scores .* not l1; leave box_loss out$"):
        settings_of(train={"class_loss": "quality", "box_loss": "l1"})
    with pytest.raises(ConfigError, match=r"model\.anchors='ten' is not one of nine, one$"):
        settings_of(model={"anchors": "ten"})
    with pytest.raises(ConfigError, match="leave out anchors"):
        settings_of(model={"start": "runs/1", "anchors": "one"})


def answers(anchors: Tensor, seed: int = 0) -> Predictions:
    random = torch.Generator().manual_seed(seed)
    return Predictions(
        (torch.randn(2, len(anchors), 3, generator=random) * 2).requires_grad_(),
        (torch.randn(2, len(anchors), 4, generator=random) * 0.3).requires_grad_(),
    )


def test_losses_are_those_of_the_settings() -> None:
    conventions = Conventions(boxes=BoxRule(clamp="both", legacy_plus_one=True), anchors=ANCHORS["one"])
    focal = settings_of(model={"anchors": "one"}, train={"recipe": "paper", "box_weight": 3}).train
    quality = settings_of(model={"anchors": "one"}, train={"class_loss": "quality", "box_weight": 2}).train
    anchors, matches = assign(SIZE_HW, targets(), config=focal, rule=conventions.anchors)
    logits, deltas = predictions = answers(anchors)
    losses = label_losses(predictions, anchors, matches, config=focal, conventions=conventions)
    assert losses.shape == (2, 2)
    torch.testing.assert_close(losses[0], focal_loss(logits, matches.labels))
    torch.testing.assert_close(losses[1], 3 * box_loss(deltas, anchors, matches, kind="smooth_l1", rule=conventions.boxes))
    losses = label_losses(predictions, anchors, matches, config=quality, conventions=conventions)
    qualities = box_qualities(deltas, anchors, matches, rule=conventions.boxes)
    assert 0 < float(qualities.max()) < 1
    torch.testing.assert_close(losses[0], quality_focal_loss(logits, matches.labels, qualities))
    torch.testing.assert_close(losses[1], 2 * box_loss(deltas, anchors, matches, kind="giou", rule=conventions.boxes))


def test_scores_learn_of_boxes_but_boxes_not_of_scores() -> None:
    config = settings_of(model={"anchors": "one"}, train={"class_loss": "quality"}).train
    anchors, matches = assign(SIZE_HW, targets(), config=config, rule=ANCHORS["one"])
    predictions = answers(anchors)
    classes, boxes = label_losses(predictions, anchors, matches, config=config, conventions=Conventions(anchors=ANCHORS["one"]))
    of_logits, of_deltas = torch.autograd.grad(classes.sum(), list(predictions), retain_graph=True)
    assert of_deltas.count_nonzero() == 0
    assert of_logits.count_nonzero() == of_logits.numel()
    (pulled,) = torch.autograd.grad(boxes.sum(), [predictions.deltas])
    assert torch.equal(pulled.abs().sum(dim=2) > 0, matches.is_positive)


def test_a_image_without_objects_costs_background_only() -> None:
    config = settings_of(model={"anchors": "one"}, train={"class_loss": "quality"}).train
    anchors, matches = assign(SIZE_HW, targets(), config=config, rule=ANCHORS["one"])
    predictions = answers(anchors)
    losses = label_losses(predictions, anchors, matches, config=config, conventions=Conventions(anchors=ANCHORS["one"]))
    scores = torch.sigmoid(predictions.logits[1])
    torch.testing.assert_close(losses[:, 1], torch.stack([-(scores**2 * torch.log1p(-scores)).sum(), torch.tensor(0.0)]))


def test_no_value_is_asked_of_the_device() -> None:
    config = settings_of(model={"anchors": "one"}, train={"class_loss": "quality"}).train
    anchors, real = assign(SIZE_HW, targets(), config=config, rule=ANCHORS["one"])
    with FakeTensorMode() as mode:
        matches = AnchorMatches(*(mode.from_tensor(tensor) for tensor in real))
        predictions = Predictions(torch.zeros(2, len(anchors), 3, requires_grad=True), torch.zeros(2, len(anchors), 4, requires_grad=True))
        losses = label_losses(predictions, mode.from_tensor(anchors), matches, config=config, conventions=Conventions())
        losses.sum().backward()
        assert losses.shape == (2, 2)


def test_one_anchor_trains_and_its_file_knows_it(data: Records, run_path: Path) -> None:
    config = settings_of(
        model={"preset": "lw-v3", "backbone": "resnet18", "norm": "frozen", "head_width": 32, "anchors": "one"},
        data={"image_size": 64, "workers": 0, "augment": "none"},
        train={"steps": 3, "batch_size": 4, "precision": "fp32", "ema": 0, "class_loss": "quality"},
    )
    categories = tuple(Category(id=number, name=name) for number, name in enumerate("abc"))
    start = start_from_settings(config, categories)
    before = {name: tensor.clone() for name, tensor in start.model.state_dict().items() if name.startswith("head")}
    with RunFolder.created(run_path, config, {}) as folder:
        trained = train(start.model, data, config=config, folder=folder, world=World())
    assert any(not torch.equal(tensor, before[name]) for name, tensor in trained.state_dict().items() if name in before)
    file = run_path / "model.safetensors"
    save_model(file, trained, start.record)
    loaded = load_model(file)
    assert loaded.model.conventions.anchors == AnchorRule(base_size=8, octave_scales=(1,), aspect_ratios=(1,))
    assert loaded.model.head.num_anchors == 1
    images = [torch.randint(0, 255, (48, 64, 3), generator=torch.Generator().manual_seed(1), dtype=torch.uint8).numpy()]
    found, expected = (
        Detector.of_model(model.eval(), categories, device=torch.device("cpu")).predict(images, score=0.0)[0]
        for model in (loaded.model, trained)
    )
    assert len(found.scores) > 0
    assert torch.equal(torch.as_tensor(found.boxes), torch.as_tensor(expected.boxes))
    assert torch.equal(torch.as_tensor(found.scores), torch.as_tensor(expected.scores))
