"""Every remedy that a message of a job about its input names is followed here, and helps."""

import json
from pathlib import Path

import pytest

import lw_retinanet as lw
from lw_retinanet.data.sample import make_sample
from lw_retinanet.errors import InputError
from lw_retinanet.jobs.run_request import checked_request


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_sample(tmp_path_factory.mktemp("sample") / "shapes", num_train=4, num_val=2, size=64)


def results(data: Path) -> str:
    """A perfect detection of every box of val."""
    table = json.loads((data / "val.json").read_text())
    return json.dumps([{key: one[key] for key in ("image_id", "category_id", "bbox")} | {"score": 0.9} for one in table["annotations"]])


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda text: text[:-5], "not JSON.* is the file complete"),
        (lambda text: text.encode("utf-16"), "not UTF-8 text; give a COCO results file in JSON"),
        (lambda text: "3", "expected a JSON list of detections"),
        (lambda text: json.dumps({"images": [{"name": "a.jpg"}]}), "give its predictions.json or results.json, or any COCO results file"),
        (lambda text: text.replace("0.9", "NaN", 1), "write finite numbers or leave the detection out"),
    ],
)
def test_what_messages_about_results_say_helps(data: Path, tmp_path: Path, wrong: object, message: str) -> None:
    file, text = tmp_path / "results.json", results(data)
    content = wrong(text)  # type: ignore[operator]
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(InputError, match=message):
        lw.evaluate(ground_truth=data / "val.json", detections=file)
    file.write_text(text)
    assert lw.evaluate(ground_truth=data / "val.json", detections=file).AP > 0.999


def test_what_other_messages_say_helps(data: Path, tmp_path: Path) -> None:
    file = tmp_path / "results.json"
    file.write_text(results(data))
    with pytest.raises(InputError, match="max_detections must be 11 to 100,000, got 5"):
        lw.evaluate(ground_truth=data / "val.json", detections=file, max_detections=5)
    lw.evaluate(ground_truth=data / "val.json", detections=file, max_detections=11)
    with pytest.raises(InputError, match="has a split val already; pass the training annotations alone"):
        lw.split_data(data, tmp_path / "divided")
    assert lw.split_data(data / "train.json", tmp_path / "divided", val=0.5).images == 4
    with pytest.raises(InputError, match="name the data set to train on: lw-retinanet train DATA"):
        checked_request(None)
    assert checked_request(data).source == data


def test_a_teacher_with_other_classes_or_anchors_names_what_to_choose(data: Path, tmp_path: Path) -> None:
    """Each is refused in a dry run, too, which makes the same checks."""
    import torch

    from lw_retinanet.config import parse_config
    from lw_retinanet.data.dataset import Dataset
    from lw_retinanet.data.records import Category
    from lw_retinanet.jobs.dry_run import plan_training
    from lw_retinanet.weights.model_file import save_model
    from lw_retinanet.weights.start import start_from_settings

    model = {"backbone": "mobilenet_v2", "head_width": 16}
    train = {"steps": 1, "precision": "fp32"}
    values = {"model": model, "data": {"image_size": 64, "workers": 0}, "train": train}
    classes = Dataset.open(data).read("train").categories
    for name, known, changed in (
        ("classes", tuple(Category(id=one.id, name=f"other {one.name}") for one in classes), {}),
        ("anchors", classes, {"anchors": "one"}),
        ("same", classes, {}),
    ):
        start = start_from_settings(parse_config({**values, "model": {**model, **changed}}).resolved(), known)
        save_model(tmp_path / f"{name}.safetensors", start.model, start.record)
        config = parse_config({**values, "train": {**train, "teacher": str(tmp_path / f"{name}.safetensors")}})
        if name == "same":
            assert plan_training(config, data, device=torch.device("cpu")).steps == 1
        else:
            with pytest.raises(InputError, match=f"has other {name} than the student.*; choose a teacher with the same"):
                plan_training(config, data, device=torch.device("cpu"))
