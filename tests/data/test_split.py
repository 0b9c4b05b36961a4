from pathlib import Path

import numpy as np
import pytest

from lw_retinanet.data.records import Category, Records, build_records
from lw_retinanet.data.split import divide
from lw_retinanet.errors import ConfigError, DataError


def many(num_images: int = 200) -> Records:
    """Frames of clips of four; class 0 in every image, class 1 in a fifth of them, class 2 in eight."""
    rows = [(image, 0) for image in range(num_images)]
    rows += [(image, 1) for image in range(0, num_images, 5)] + [(image, 2) for image in range(0, num_images, num_images // 8)]
    return build_records(
        root=Path("x"),
        file_names=[f"day {image % 2}/clip{image // 4}_{image % 4}.jpg" for image in range(num_images)],
        sizes_hw=[(10, 10)] * num_images,
        image_of_box=[image for image, _ in rows],
        boxes_xywh=[[1, 1, 5, 5]] * len(rows),
        labels=[label for _, label in rows],
        categories=[Category(id=k, name=str(k)) for k in range(3)],
    )


def test_every_image_once_and_every_class_its_share() -> None:
    records = many()
    parts = divide(records, 0.25, seed=3)
    assert sorted([*parts["train"].file_names, *parts["val"].file_names]) == sorted(records.file_names)
    assert parts["val"].num_images == 50
    assert np.bincount(parts["val"].labels).tolist() == [50, 10, 2]
    assert divide(records, 0.25, seed=3)["val"].fingerprint() == parts["val"].fingerprint()
    assert divide(records, 0.25, seed=4)["val"].fingerprint() != parts["val"].fingerprint()


@pytest.mark.parametrize("group", [r"clip\d+", r"(clip\d+)_\d", "^day (.)/"])
def test_groups_stay_together(group: str) -> None:
    parts = divide(many(), 0.25, group=group)
    start = 0 if group.startswith("^") else 6
    keys = [
        {name[start : start + 5] if group.startswith("^") else name[6:].split("_")[0] for name in part.file_names}
        for part in parts.values()
    ]
    assert not keys[0] & keys[1]
    assert all(keys)


def test_few_images_still_give_two_splits() -> None:
    for val in (0.01, 0.99):
        parts = divide(many(16).subset(np.arange(2)), val)
        assert [part.num_images for part in parts.values()] == [1, 1]


def test_what_cannot_be_divided() -> None:
    with pytest.raises(ConfigError, match="between 0 and 1, got 1"):
        divide(many(), 1.0)
    with pytest.raises(ConfigError, match=r"no regular expression.*try for instance"):
        divide(many(), 0.2, group="(")
    with pytest.raises(DataError, match="1 groups of images cannot be divided"):
        divide(many(), 0.2, group="clip")
