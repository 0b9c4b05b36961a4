import base64
import io
import json
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from lw_retinanet.data.records import Category
from lw_retinanet.detection.result import Result
from lw_retinanet.errors import InputError, MissingExtraError


@pytest.fixture
def result() -> Result:
    return Result(
        file="deep/cat.jpg",
        image=np.full((50, 80, 3), 90, np.uint8),
        boxes=np.array([[10, 5, 40, 45], [60.5, 20, 70, 30.25]], np.float32),
        scores=np.array([0.75, 0.5], np.float32),
        labels=np.array([1, 0]),
        categories=(Category(id=44, name="fish"), Category(id="c9", name="cat")),
    )


def test_plain_values(result: Result) -> None:
    assert result.to_dict() == {
        "file": "deep/cat.jpg",
        "width": 80,
        "height": 50,
        "detections": [
            {"box": [10.0, 5.0, 40.0, 45.0], "score": 0.75, "label": 1, "name": "cat", "category_id": "c9"},
            {"box": [60.5, 20.0, 70.0, 30.25], "score": 0.5, "label": 0, "name": "fish", "category_id": 44},
        ],
    }
    assert json.loads(result.to_json()) == result.to_dict()
    assert result.names == ["cat", "fish"]
    assert len(result) == 2


def test_coco_results_have_corners_as_width_and_height_and_the_data_sets_ids(result: Result) -> None:
    assert result.to_coco(17) == [
        {"image_id": 17, "category_id": "c9", "bbox": [10.0, 5.0, 30.0, 40.0], "score": 0.75},
        {"image_id": 17, "category_id": 44, "bbox": [60.5, 20.0, 9.5, 10.25], "score": 0.5},
    ]
    json.dumps(result.to_coco("a"))


def test_the_drawing_has_boxes_and_leaves_the_image_alone(result: Result) -> None:
    drawn = result.plot()
    assert drawn.shape == result.image.shape
    assert (result.image == 90).all()
    changed = (drawn != 90).any(axis=2)
    assert changed[25, 8:13].any()  # the left edge of the first box
    assert not changed[25, 20:30].any()  # its inside, below the name


def test_low_scores_are_saved_only_if_asked_for(result: Result, tmp_path: Path) -> None:
    faint = replace(result, scores=np.array([0.75, 0.29], np.float32))
    assert (np.asarray(Image.open(faint.save(tmp_path / "a.png"))) == faint.plot(score=0.3)).all()
    assert (np.asarray(Image.open(faint.save(tmp_path / "b.png", score=0.0))) == faint.plot()).all()
    assert (faint.plot() != faint.plot(score=0.3)).any()


def test_forms_of_other_tools(result: Result, monkeypatch: pytest.MonkeyPatch) -> None:
    header, first, second = result.to_csv().splitlines()
    assert header == "xmin,ymin,xmax,ymax,label,score,image_path"
    assert (first, second) == ("10.0,5.0,40.0,45.0,cat,0.75,deep/cat.jpg", "60.5,20.0,70.0,30.25,fish,0.5,deep/cat.jpg")
    # Of 80 x 50 pixels: centre (25, 25), sides 30 and 40.
    assert result.to_yolo().splitlines()[0] == "1 0.312500 0.500000 0.375000 0.800000 0.750000"
    task = result.to_label_studio("/data/cat.jpg")
    (prediction,) = task["predictions"]
    region = prediction["result"][0]
    assert (task["data"], prediction["score"], region["score"]) == ({"image": "/data/cat.jpg"}, 0.75, 0.75)
    assert region["value"] == {"x": 12.5, "y": 10.0, "width": 37.5, "height": 80.0, "rotation": 0, "rectanglelabels": ["cat"]}
    assert (region["original_width"], region["original_height"]) == (80, 50)
    # Stand-ins with the arguments of FiftyOne and pandas.
    labels = SimpleNamespace(Detection=dict, Detections=lambda detections: detections)
    monkeypatch.setitem(sys.modules, "fiftyone", labels)
    assert result.to_fiftyone()[0] == {"label": "cat", "confidence": 0.75, "bounding_box": [0.125, 0.1, 0.375, 0.8]}
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(MissingExtraError, match="pip install pandas"):
        result.to_pandas()


def test_the_table_of_pandas(result: Result) -> None:
    pytest.importorskip("pandas")
    assert result.to_pandas().iloc[0].tolist() == [10.0, 5.0, 40.0, 45.0, "cat", 0.75, "deep/cat.jpg"]


def test_saving(result: Result, tmp_path: Path) -> None:
    path = result.save(tmp_path / "new" / "out.png")
    assert path == tmp_path / "new" / "out.png"
    np.testing.assert_array_equal(np.asarray(Image.open(path)), result.plot())
    with pytest.raises(InputError, match="must end in"):
        result.save(tmp_path / "out.nonsense")
    assert [child.name for child in tmp_path.iterdir()] == ["new"]


def test_a_notebook_shows_the_drawn_image(result: Result) -> None:
    shown = replace(result, scores=np.array([0.75, 0.1], np.float32), file="<b>.jpg")._repr_html_()
    content = base64.b64decode(shown.split("base64,")[1].split('"')[0])
    with Image.open(io.BytesIO(content)) as picture:
        assert picture.size == (80, 50)
        pixels = np.asarray(picture).astype(int)
    assert np.abs(pixels[:, 10:40] - 90).max() > 60  # the cat's frame
    assert np.abs(pixels[18:34, 58:74] - 90).max() < 40  # a low score is left out
    assert "&lt;b&gt;.jpg: 1 detections" in shown
