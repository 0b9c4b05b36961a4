"""Some classes of a data set: the others are left out, counted and said; every image stays."""

import logging
from collections.abc import Callable
from pathlib import Path

import pytest

from lw_retinanet.data.chosen_classes import only_classes
from lw_retinanet.data.dataset import Dataset
from lw_retinanet.data.records import Records
from lw_retinanet.data.sample import make_sample
from lw_retinanet.errors import DataError


def test_boxes_of_other_classes_go_and_images_stay(draw_records: Callable[..., Records], tmp_path: Path) -> None:
    boxes = [[(1, 1, 4, 4, 2), (2, 2, 3, 3, 0)], [(0, 0, 5, 5, 1)], [], [(3, 3, 4, 4, 0), (1, 0, 2, 2, 1), (0, 1, 3, 3, 2)]]
    records = draw_records(tmp_path, [((8, 8), objects) for objects in boxes])
    kept, left_out = only_classes(records, ["blue", "red"], tmp_path)
    assert kept.offsets.tolist() == [0, 2, 2, 2, 4]
    assert [category.id for category in kept.categories] == [0, 20]  # with the ids and in the order of the data set
    assert kept.labels.tolist() == [1, 0, 0, 1]
    assert kept.boxes_xywh[:, 0].tolist() == [1, 2, 3, 0]
    assert kept.annotation_ids.tolist() == [1, 2, 4, 6]
    assert (left_out.kind, left_out.count, left_out.examples) == ("other_class", 2, ["green"])


def test_readers_say_what_is_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    sample = make_sample(tmp_path / "sample", num_train=6, num_val=4, size=64)
    whole = Dataset.open(sample).read("train")
    dataset = Dataset.open(sample, classes=["disc"])
    with caplog.at_level(logging.WARNING):
        records = dataset.ready("train")
    discs = int((whole.labels == whole.class_names.index("disc")).sum())
    assert 0 < discs < whole.num_boxes
    assert (records.num_boxes, records.num_images, records.class_names) == (discs, whole.num_images, ("disc",))
    assert f"train: {whole.num_boxes - discs} boxes of other classes are left out" in caplog.text
    with pytest.raises(DataError, match=r"no class 'dics'; did you mean disc\?; it has disc, checker"):
        Dataset.open(sample, classes=["dics"]).read("val")
