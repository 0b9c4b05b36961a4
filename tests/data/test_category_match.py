from pathlib import Path

import numpy as np
import pytest

from lw_retinanet.data.category_match import match_categories
from lw_retinanet.data.records import Category, build_records
from lw_retinanet.errors import DataError


def test_a_models_classes_are_found_by_id_and_name_then_by_name() -> None:
    categories = [Category(id=number, name=name) for number, name in ((7, "ray"), (3, "fish"), (4, "fish"), (9, "eel"))]
    records = build_records(root=Path("x"), file_names=[], sizes_hw=[], image_of_box=[], boxes_xywh=[], labels=[], categories=categories)
    match = match_categories([Category(id=4, name="fish"), Category(id=1, name="ray")], records)
    assert match.labels.tolist() == [2, 0]
    assert match.labels.dtype == np.int32
    assert match.notes == ("the model does not know 2 of the data set's classes ('fish' (id 3), 'eel' (id 9)): their AP is 0",)
    # One class that the data set has, and two that it has not.
    match = match_categories([Category(id=9, name="cod"), Category(id=7, name="ray"), Category(id=9, name="fish")], records)
    assert match.labels.tolist() == [-1, 0, -1]  # two classes are called fish, and neither has the id 9
    assert match.notes[1] == (
        "the data set has none of 2 of the model's classes ('cod' (id 9), 'fish' (id 9)): their detections are left out"
    )
    with pytest.raises(
        DataError, match=r"none of the model's 2 classes \('fish' \(id 1\), 'cod' \(id 9\)\) is among the data set's 4 \('ray' \(id 7\), "
    ):
        match_categories([Category(id=1, name="fish"), Category(id=9, name="cod")], records)
    with pytest.raises(DataError, match="several classes of the model mean the same class of the data set: 'ray'"):
        match_categories([Category(id=7, name="ray"), Category(id=1, name="ray")], records)
