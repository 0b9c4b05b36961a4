import json
from typing import Any

import pytest
import yaml

from lw_retinanet import __version__
from lw_retinanet.conventions import Conventions, InputRule
from lw_retinanet.heads import PRESETS
from lw_retinanet.interop.model_card import ModelCard
from lw_retinanet.weights.model_file import ModelRecord

METRICS = {"AP": 0.17951234, "AP50": 0.36, "APs": 0.0, "APm": -1, "images": 63, "per_class": []}


def record(names: tuple[str, ...] = ("cod", "ray"), rule: InputRule | None = None) -> ModelRecord:
    values: dict[str, Any] = {
        "preset": "lw-v3",
        "backbone": "resnet50",
        "width": 256,
        "norm": "frozen",
        "plan": PRESETS["lw-v3"],
        "classes": [{"id": 3 + number, "name": name} for number, name in enumerate(names)],
        "conventions": Conventions(input=rule or InputRule()),
    }
    return ModelRecord.model_validate(values)


def card(**changes: Any) -> ModelCard:
    values: dict[str, Any] = {"record": record(), "size_hw": (640, 640), "macs": 68_123_456_789, "params": 36_000_123}
    return ModelCard(**{**values, "metrics": METRICS, "licence": "apache-2.0", "dataset": "aquarium", **changes})


def parts(text: str) -> tuple[dict[str, Any], str]:
    """Split a card into front matter and body."""
    empty, front, body = text.split("---\n", 2)
    assert empty == ""
    return yaml.safe_load(front), body


def test_the_hub_finds_its_keys() -> None:
    front, _ = parts(card().text("ada/fish"))
    assert (front["license"], front["library_name"], front["pipeline_tag"]) == ("apache-2.0", "lw-retinanet", "object-detection")
    assert {"object-detection", "retinanet", "lw-v3", "resnet50"} <= set(front["tags"])
    (result,) = front["model-index"][0]["results"]
    assert (result["task"]["type"], result["dataset"]["name"]) == ("object-detection", "aquarium")
    # APm is -1: no such box was there to find, which is no measurement. An APs of 0 is one.
    assert [(one["name"].split(",")[0], one["value"]) for one in result["metrics"]] == [("AP", 0.179512), ("AP50", 0.36), ("APs", 0.0)]
    # A folder's name is none of the hub's data sets; a name with an owner may be one.
    assert "datasets" not in front
    assert parts(card(dataset="ada/aquarium").text("x"))[0]["datasets"] == ["ada/aquarium"]


def test_the_hubs_own_reader_agrees() -> None:
    hub = pytest.importorskip("huggingface_hub")
    read = hub.ModelCard(card().text("ada/fish")).data
    assert (read.license, read.library_name, read.pipeline_tag) == ("apache-2.0", "lw-retinanet", "object-detection")
    first = read.eval_results[0]
    assert (first.dataset_name, first.metric_name[:2], first.metric_value) == ("aquarium", "AP", 0.179512)


def test_people_read_the_numbers() -> None:
    _, body = parts(card().text("ada/fish"))
    for said in (
        "| AP, IoU 0.50:0.95 | 0.1795 |",
        "| APs, up to 32 x 32 pixels | 0.0000 |",
        "on 63 images of aquarium.",
        "| input | 640 x 640 pixels |",
        "| MACs, one image | 68,123,456,789 (136,246,913,578 FLOPs) |",
        "| parameters | 36,000,123 |",
        'import lw_retinanet as lw\n\nresults = lw.from_pretrained("ada/fish").predict("photo.jpg")\n',
        "cod, ray.",
        "the longer side becomes 640 pixels",
    ):
        assert said in body
    assert "APm" not in body


def test_what_is_not_known_is_said() -> None:
    front, body = parts(card(metrics=None, licence=None, dataset=None, macs=None).text("fish"))
    assert (front["license"], front["license_name"]) == ("other", "unknown")
    assert "model-index" not in front
    for said in (
        "Not measured.",
        "Its training data are not recorded.",
        "Not stated by the author of this model",
        "not counted for this backbone",
    ):
        assert said in body


def test_a_short_side_rule_is_told() -> None:
    _, body = parts(card(record=record(rule=InputRule(resize="short_side", size=800, max_size=1333))).text("x"))
    assert "the shorter side becomes 800 pixels, the longer one at most 1333" in body


def test_names_cannot_write_the_card() -> None:
    # Names come from annotation files of strangers.
    names = ("<script>", "a\n---\n# b", "`rm`|x", *(f"n{number}" for number in range(98)))
    text = card(record=record(names=names), dataset="evil: [\n---\nlicense: mit").text('x"); import os  # `\n```')
    front, body = parts(text)
    assert front["license"] == "apache-2.0"
    assert "<script>" not in body.replace("\\<script", "")
    assert "\n# b" not in body
    assert "n96, and 1 more in `config.json`." in body  # 3 + 97 of 101 are shown
    assert 'lw.from_pretrained("x\\"); import os #").predict' in body


def test_the_config_is_for_programs() -> None:
    config = json.loads(json.dumps(card().config()))
    assert config["classes"] == [{"label": 0, "id": 3, "name": "cod"}, {"label": 1, "id": 4, "name": "ray"}]
    assert (config["preset"], config["backbone"], config["width"], config["version"]) == ("lw-v3", "resnet50", 256, __version__)
    assert (config["macs"], config["size_hw"], config["metrics"]["AP"]) == (68_123_456_789, [640, 640], 0.17951234)
    assert Conventions.model_validate(config["conventions"]) == Conventions()
