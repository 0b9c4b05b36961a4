"""Training a head on cached maps is training the detector with everything else frozen."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lw_retinanet.data.dataset import Dataset
from lw_retinanet.data.image_sizes import with_sizes
from lw_retinanet.data.records import Records
from lw_retinanet.detection.detector import Detector
from lw_retinanet.errors import TrainingError
from lw_retinanet.evaluation.detect_records import detect_records
from lw_retinanet.models.retinanet import RetinaNet
from lw_retinanet.tradeoff.experiment import Cell, Experiment, parse_experiment
from lw_retinanet.tradeoff.feature_maps import FeatureMaps, compute_feature_maps
from lw_retinanet.tradeoff.head_training import MapBatch, TrainedHead, batches, detect_from_maps, targets_of, train_head
from lw_retinanet.tradeoff.runner import Runner
from lw_retinanet.weights.model_file import load_model

CPU = torch.device("cpu")


def maps_of(trunk: RetinaNet, records: Records, folder: Path, views: tuple[str, ...] = ("plain", "mirrored")) -> FeatureMaps:
    rule = trunk.conventions.input
    return compute_feature_maps(trunk, records, folder, rule=rule, views=views, origin={}, device=CPU, use_bf16=False)


def test_the_head_finds_on_the_maps_what_the_detector_finds_in_the_images(trunk_file: Path, shapes: Path, tmp_path: Path) -> None:
    loaded = load_model(trunk_file)
    held_out = with_sizes(Dataset.open(shapes).read("val"))
    maps = maps_of(loaded.model, held_out, tmp_path, ("plain",))
    found = detect_from_maps(loaded.model, maps, loaded.record.categories, device=CPU, use_bf16=False)
    expected = detect_records(Detector.of_model(loaded.model, loaded.record.categories), held_out)
    assert len(found) == len(expected) > 100
    for table in (found, expected):
        assert np.array_equal(np.unique(table.image), np.arange(held_out.num_images))
    order, expected_order = (np.lexsort((table.scores, table.image)) for table in (found, expected))
    np.testing.assert_allclose(found.scores[order], expected.scores[expected_order], atol=1e-5)
    np.testing.assert_allclose(np.sort(found.boxes_xywh, axis=0), np.sort(expected.boxes_xywh, axis=0), atol=1e-2)


def test_every_image_comes_once_an_epoch_with_images_of_its_size(trunk_file: Path, draw_records: Any, tmp_path: Path) -> None:
    wide, tall = (48, 96), (96, 48)
    records = draw_records(tmp_path / "pictures", [(size, [(2, 2, 20, 20, 0)]) for size in (wide, tall, wide, wide, tall, wide, wide)])
    maps = maps_of(load_model(trunk_file).model, records, tmp_path / "maps")
    epoch = batches(maps, epoch=3, seed=5, batch_size=2)
    assert sorted(image for batch in epoch for image in batch.images) == list(range(7))
    assert all(len({maps.padded_hw(image) for image in batch.images}) == 1 for batch in epoch)
    assert [len(batch.images) for batch in epoch].count(2) == 3
    assert epoch == batches(maps, epoch=3, seed=5, batch_size=2)
    others = [batches(maps, epoch=epoch, seed=seed, batch_size=2) for epoch, seed in ((4, 5), (3, 6))]
    assert all(other != batches(maps, epoch=3, seed=5, batch_size=2) for other in others)
    views = {
        (image, view)
        for number in range(12)
        for b in batches(maps, epoch=number, seed=0, batch_size=2)
        for image, view in zip(b.images, b.views, strict=True)
    }
    assert len(views) == 14  # each image is met both ways


def test_boxes_are_scaled_and_mirrored_with_the_image(trunk_file: Path, draw_records: Any, tmp_path: Path) -> None:
    # 128 x 64 pixels become 64 x 32: x 20..60, y 8..24 become 10..30 and 4..12; mirrored, x runs from 64 - 30 to 64 - 10.
    records = draw_records(tmp_path / "pictures", [((64, 128), [(20, 8, 40, 16, 2)]), ((64, 128), [])])
    maps = maps_of(load_model(trunk_file).model, records, tmp_path / "maps")
    targets = targets_of(maps, MapBatch(images=(0, 0, 1), views=("plain", "mirrored", "plain")))
    torch.testing.assert_close(targets.boxes[:, 0], torch.tensor([[10.0, 4, 30, 12], [34, 4, 54, 12], [0, 0, 0, 0]]))
    assert targets.labels[:, 0].tolist() == [2, 2, -1]


def trunk_of(runner: Runner) -> RetinaNet:
    trunk = runner.trunk(0, runner.data.folds[0])
    assert trunk is not None
    return trunk.model


@dataclasses.dataclass(frozen=True)
class Setup:
    runner: Runner
    experiment: Experiment
    maps: FeatureMaps

    def train(self, name: str, *, seed: int = 0, teacher: bool = False, steps: int | None = None, rate: float | None = None) -> TrainedHead:
        cell: Cell = self.experiment.chosen([name])[0]
        config = self.experiment.config(cell, seed)
        changed = {key: value for key, value in (("steps", steps), ("rate", rate)) if value is not None}
        config = config.model_copy(update={"train": config.train.model_copy(update=changed)})
        model = self.runner.model(cell, seed=seed)
        teaching = trunk_of(self.runner).head if teacher else None
        return train_head(model, self.maps, config, device=CPU, use_bf16=False, teacher=teaching, log=ENTRIES.append)


ENTRIES: list[dict[str, Any]] = []


@pytest.fixture
def setup(values: dict[str, Any], tmp_path: Path) -> Setup:
    values["lines"][0]["scales"] = [64]
    values["lines"][1]["scales"] = [64]
    experiment = parse_experiment(values, where="file")
    runner = Runner(experiment, tmp_path / "out", device=CPU)
    ENTRIES.clear()
    return Setup(runner, experiment, maps_of(trunk_of(runner), runner.records, tmp_path / "maps"))


def weights(model: RetinaNet) -> list[torch.Tensor]:
    return [parameter.detach().clone() for parameter in model.head.parameters()]


def test_only_the_head_learns_and_the_seed_decides_it(setup: Setup) -> None:
    before = {name: value.clone() for name, value in trunk_of(setup.runner).state_dict().items()}
    once, again, other = setup.train("lw-v3@64"), setup.train("lw-v3@64"), setup.train("lw-v3@64", seed=1)
    for first, second in zip(weights(once.model), weights(again.model), strict=True):
        torch.testing.assert_close(first, second, rtol=0, atol=0)
    assert any(not torch.equal(first, second) for first, second in zip(weights(once.model), weights(other.model), strict=True))
    for name, value in trunk_of(setup.runner).state_dict().items():
        assert torch.equal(value, before[name]), name
    assert once.steps == 3


def test_the_loss_falls(setup: Setup) -> None:
    setup.train("lw-v3@64", steps=60, rate=3e-3)
    first, *_, last = [entry["classification"] + entry["bbox_regression"] for entry in ENTRIES]
    assert last < 0.8 * first


def test_a_teacher_changes_what_is_learned(setup: Setup) -> None:
    alone, taught = setup.train("lw-v3@64"), setup.train("lw-v3@64", teacher=True)
    assert any(not torch.equal(a, b) for a, b in zip(weights(alone.model), weights(taught.model), strict=True))


def test_a_loss_that_is_not_finite_stops_the_run(setup: Setup) -> None:
    with pytest.raises(TrainingError, match=r"the gradient is not finite; lower train\.rate"):
        setup.train("lw-v3@64", steps=30, rate=1e30)
