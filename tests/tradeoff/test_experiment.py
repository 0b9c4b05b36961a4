"""The experiment file: what it means, and what is refused before any work."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from lw_retinanet.errors import ConfigError
from lw_retinanet.tradeoff.experiment import Variant, open_experiment, parse_experiment


def test_rows_come_line_by_line_and_the_first_is_the_baseline(values: dict[str, Any]) -> None:
    experiment = parse_experiment(values, where="file")
    assert [cell.name for cell in experiment.cells()] == ["retinanet@96", "retinanet@64", "lw-v3@96", "bbox-v1-init-paper@96"]
    assert experiment.baseline.name == "retinanet@96"
    assert [cell.name for cell in experiment.chosen(["lw-v3@96"])] == ["lw-v3@96"]
    assert len(experiment.chosen([])) == 4


def test_settings_of_a_run_come_from_the_experiment_the_row_and_the_seed(values: dict[str, Any]) -> None:
    experiment = parse_experiment(values, where="file")
    config = experiment.config(experiment.chosen(["bbox-v1-init-paper@96"])[0], 7)
    assert (config.model.preset, config.model.init, config.data.image_size, config.train.seed) == ("bbox-v1", "paper", 96, 7)
    assert (config.train.steps, config.train.batch_size, config.data.augment) == (3, 2, "flip")
    usual = experiment.config(experiment.baseline, 0)
    assert usual.model.init == "fan_in"


def test_what_is_special_about_a_variant_is_in_its_label() -> None:
    assert Variant(preset="bbox-v1").label == "bbox-v1"
    special = Variant(preset="bbox-v1", init="fan_in_light", teacher=True)
    assert special.label == "bbox-v1, init fan-in-light, with teacher"
    assert special.slug == "bbox-v1-init-fan-in-light-with-teacher"


def test_one_variant_in_two_regimes_has_two_names(values: dict[str, Any]) -> None:
    values["lines"].append({"name": "lightened", "regime": "lighten", "variants": ["lw-v3"], "scales": [96]})
    assert parse_experiment(values, where="file").cells()[-1].name == "lw-v3-lighten@96"


def test_options_stand_in_for_the_paths_of_the_file(values: dict[str, Any], tmp_path: Path) -> None:
    file = tmp_path / "experiment.yaml"
    file.write_text(yaml.safe_dump(values))
    experiment = open_experiment(file, data=Path("elsewhere"), trunk=[Path("other.safetensors")])
    assert (experiment.data, experiment.trunk) == ("elsewhere", "other.safetensors")
    assert open_experiment(file).data == values["data"]


def change(values: dict[str, Any], place: tuple[str | int, ...], value: Any) -> None:
    target: Any = values
    for key in place[:-1]:
        target = target[key]
    target[place[-1]] = value


@pytest.mark.parametrize(
    ("place", "value", "said"),
    [
        (("lines", 1, "variants", 0), "lw-v33", r"line blocks.*lw-v33.*did you mean lw-v3"),
        (("lines", 0, "scales"), [96, 12], r"lines\.0\.scales\.1=12.*64"),
        (("lines", 0, "scales"), ["large"], r"lines\.0\.scales\.0='large'"),
        (("lines", 0, "scales"), [64, 96], r"first line is the scaling line.*large to small"),
        (("lines", 0, "variants"), ["retinanet", "lw-v1"], r"first line is the scaling line: one variant"),
        (("lines", 1, "variants", 0), "retinanet", r"retinanet@96 is there twice"),
        (("lines", 1, "regime"), "heads", r"lines\.1\.regime='heads'"),
        (("lines", 1, "variant"), "lw-v3", r"unknown field 'lines\.1\.variant'.*did you mean variants"),
        (("lines", 1, "variants", 1, "present"), "lw-v1", r"unknown field.*did you mean preset"),
        (("seeds",), [0, 0], r"seeds \[0, 0\] are not all different"),
        (("seeds",), [], r"seeds"),
        (("trunk",), None, r"start from a trained model; name it as trunk"),
        (("settings", "train", "stepz"), 3, r"unknown setting 'train\.stepz'; did you mean train\.steps"),
        (("settings", "model"), {"preset": "lw-v3"}, r"settings\.model\.preset is decided by the rows"),
        (("settings",), {"train": 3}, r"sections model, data and train"),
        (("draws",), 5, r"draws=5"),
        (("pairs",), [["retinanet@96", "lw-v3@69"]], r"pairs names lw-v3@69, which is no row; did you mean lw-v3@96"),
    ],
)
def test_nonsense_is_refused_in_one_line(values: dict[str, Any], place: tuple[str | int, ...], value: Any, said: str) -> None:
    change(values, place, value)
    with pytest.raises(ConfigError, match=said) as refused:
        parse_experiment(values, where="file.yaml")
    assert str(refused.value).startswith("file.yaml")
    assert "\n" not in str(refused.value)


def test_a_teacher_needs_cached_maps_and_its_own_anchors(values: dict[str, Any]) -> None:
    for variant, regime in (
        ({"preset": "lw-v3", "teacher": True}, "full"),
        ({"preset": "lw-v3", "teacher": True}, "lighten"),
        ({"preset": "lw-v3", "teacher": True, "anchors": "one"}, "head"),
    ):
        values["lines"][1] = {"name": "blocks", "regime": regime, "variants": [variant], "scales": [96]}
        with pytest.raises(ConfigError, match="a teacher teaches in the regimes head and finetune only"):
            parse_experiment(values, where="file.yaml")


def test_a_row_that_is_not_there_is_named_with_the_nearest(values: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"no row is called lw-v3@69; did you mean lw-v3@96\?"):
        parse_experiment(values, where="file").chosen(["lw-v3@69"])
