from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import ValidationError

from lw_retinanet import heads
from lw_retinanet.config import RECIPES, Config, load_config, override, parse_config, setting_names
from lw_retinanet.errors import ConfigError


def parse(*settings: str) -> Config:
    return parse_config(override({}, settings))


def test_names_that_are_written_twice_are_the_same() -> None:
    # heads.py repeats them, since it must not import torch.
    from lw_retinanet.models import blocks

    assert tuple(blocks.UNITS) == heads.UNIT_NAMES
    assert tuple(blocks.PREDICTIONS) == heads.PREDICTION_NAMES


@pytest.mark.parametrize(
    ("setting", "parts"),
    [
        ("model.preset=lw-v33", ["model.preset='lw-v33'", "did you mean lw-v3?", "cls-, bbox- or both- with one of v1,"]),
        ("model.preset=both-narrow100", ["model.preset='both-narrow100'", "did you mean both-narrow96?"]),
        ("model.preset=3", ["model.preset=3", "string"]),
        ("model.backbone=resnet51", ["model.backbone", "resnet51", "did you mean resnet5"]),
        ("model.backbone='timm:'", ["model.backbone", "timm:NAME"]),
        ("train.epoch=3", ["train.epoch", "unknown setting", "did you mean train.epochs"]),
        ("trian.epochs=3", ["trian", "unknown setting", "did you mean train"]),
        ("train.epochs=0", ["train.epochs=0", "greater than 0"]),
        ("train.epochs=2.5", ["train.epochs=2.5", "integer"]),
        ("train.epochs=many", ["train.epochs='many'", "integer"]),
        ("train.epochs=yes", ["train.epochs=True", "number"]),
        ("train.rate=true", ["train.rate=True", "number"]),
        ("train.rate=-1", ["train.rate=-1"]),
        ("train.rate=.nan", ["train.rate=nan", "finite"]),
        ("train.rate=.inf", ["train.rate=inf", "finite"]),
        ("train.ema=1", ["train.ema=1", "less than 1"]),
        ("train.schedule=cosin", ["train.schedule", "did you mean cosine"]),
        ("data.augment=no", ["data.augment=False", "none, flip, jitter, full"]),
        ("data.image_size=16", ["data.image_size=16", "32"]),
        ("data.jitter=[2, 1]", ["data.jitter", "small to large"]),
        ("data.jitter=[1]", ["data.jitter"]),
        ("data.resize=shortside", ["data.resize", "did you mean short_side"]),
        ("data.max_size=1000", ["data", "resize=short_side"]),
        ("train.base_steps=90000", ["train", "train.schedule=paper"]),
        ("train.epochs", ["section.name=value"]),
        ("train.epochs=", ["section.name=value"]),
        ("train.steps=9999999999999999999", ["train.steps=9999999999999999999", "less than or equal to 1000000000"]),
        ("train.batch_size=1000000000", ["less than or equal to 4096"]),
        ("train.accumulate=1000000000", ["less than or equal to 4096"]),
        ("model.head_width=1000000", ["less than or equal to 2048"]),
        ("data.workers=100000", ["less than or equal to 256"]),
        ("train.seed=" + "9" * 60, ["less than 9223372036854775808"]),
        ("train.seed=" + "9" * 5000, ["train.seed='999", "integer"]),
        ("train.seed=" + "[" * 5000, ["train.seed='[[["]),
        ("train.steps=2024-99-99", ["train.steps='2024-99-99'", "integer"]),
        ("train.recipe=" + "s" * 10**6, ["is not one of default, paper"]),
        ("train." + "s" * 10**5 + "=1", ["unknown setting 'train.sss"]),
        ("train.\u202e=1", ["unknown setting"]),
        ("epochs=3", ["section.name=value", "did you mean train.epochs"]),
        ("train=3", ["section.name=value"]),
    ],
)
def test_every_bad_setting_is_refused_in_one_line_that_helps(setting: str, parts: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        parse(setting)
    message = str(caught.value)
    assert "\n" not in message
    assert len(message) < 500
    for part in parts:
        assert part in message


def test_settings_that_do_not_go_together() -> None:
    for settings, part in (
        (["data.resize=short_side", "data.image_size=1400"], "image_size=1400, is longer than the longer one may be, max_size=1333"),
        (["data.resize=short_side", "data.max_size=600"], "image_size=640"),
        (["train.base_steps=9", "train.steps=9", "train.schedule=paper"], "leave one out"),
        (["model.start=runs/1", "data.resize=short_side"], "together with data.image_size"),
    ):
        with pytest.raises(ConfigError, match=part):
            parse(*settings)
    fine = parse("model.start=runs/1", "data.resize=short_side", "data.image_size=700", "data.max_size=1166").data
    assert (fine.resize, fine.image_size, fine.max_size) == ("short_side", 700, 1166)


def test_text_that_yaml_does_not_read_as_a_number_is_still_one() -> None:
    assert parse("train.rate=1e-4", "train.epochs=3", "train.epochs=4").train.rate == 1e-4
    assert parse("train.epochs=3", "train.epochs=4").train.epochs == 4


def test_overriding_leaves_the_files_values_alone() -> None:
    values: dict[str, Any] = {"train": {"epochs": 3}}
    assert override(values, ["train.seed=7", "model.preset=retinanet"]) == {
        "train": {"epochs": 3, "seed": 7},
        "model": {"preset": "retinanet"},
    }
    assert values == {"train": {"epochs": 3}}
    with pytest.raises(ConfigError, match="section train is not a mapping"):
        override({"train": 3}, ["train.seed=7"])


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_resolved_config_leaves_nothing_open_and_survives_its_file(recipe: str, tmp_path: Path) -> None:
    resolved = parse(f"train.recipe={recipe}").resolved()
    open_settings = {name for name in setting_names() if getattr(getattr(resolved, name.split(".")[0]), name.split(".")[1]) is None}
    # `steps` and `base_steps` stay open in favour of epochs, `start` of a new network; the paper's rate is computed from the batch.
    stays_open = {"train.steps", "train.base_steps", "train.teacher", "model.start"}
    assert open_settings == stays_open | ({"train.rate"} if recipe == "paper" else set())
    assert (resolved.model.norm, resolved.data.image_size) == ("batch", 640)
    file = tmp_path / "config.yaml"
    file.write_text(yaml.safe_dump(resolved.model_dump(mode="json")))
    assert parse_config(load_config(file)) == resolved
    assert resolved.resolved() == resolved


def test_a_setting_beats_the_recipe_even_where_it_is_zero() -> None:
    train = (
        parse("train.recipe=paper", "train.clip=0", "train.ema=0.5", "train.freeze=0", "model.backbone_weights=imagenet").resolved().train
    )
    assert (train.clip, train.ema, train.freeze, train.optimiser) == (0, 0.5, 0, "sgd")


def test_pretrained_weights_freeze_the_norm_and_the_stem() -> None:
    resolved = parse("model.backbone_weights=imagenet").resolved()
    assert (resolved.model.norm, resolved.train.freeze) == ("frozen", 1)
    assert parse("model.backbone_weights=imagenet", "model.norm=group").resolved().model.norm == "group"


def test_a_model_file_to_start_from_decides_all_of_the_model(tmp_path: Path) -> None:
    resolved = parse("model.start=runs/1", "train.recipe=paper").resolved()
    # Its stem is frozen as that of pretrained weights; its size rule is its own until another is asked for.
    assert (resolved.train.freeze, resolved.data.image_size) == (1, None)
    file = tmp_path / "config.yaml"
    file.write_text(yaml.safe_dump(resolved.model_dump(mode="json")))
    assert load_config(file)["model"] == {"start": "runs/1"}
    assert parse_config(load_config(file)) == resolved == resolved.resolved()
    assert parse("model.start=runs/1", "data.image_size=96", "train.freeze=0").resolved().data.image_size == 96
    with pytest.raises(ConfigError, match=r"^settings: model: the file of start='runs/1' decides .*; leave out preset, norm$"):
        parse("model.start=runs/1", "model.preset=lw-v3", "model.norm=batch")


def test_the_file_of_a_run_can_be_given_to_another(tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    file.write_text(yaml.safe_dump({**Config().model_dump(mode="json"), "run": {"data": "somewhere"}}))
    assert parse_config(load_config(file)) == Config()


@pytest.mark.parametrize(
    ("content", "part"),
    [(b"train:\n  epochs: [1\nmodel: 3\n", "line 3"), (b"- 1\n", "expected sections"), (b"\xff\xfe", "UTF-8"), (None, "cannot read")],
)
def test_an_unreadable_file_is_named(content: bytes | None, part: str, tmp_path: Path) -> None:
    file = tmp_path / "settings.yaml"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(ConfigError, match=part) as caught:
        load_config(file)
    assert "settings.yaml" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_empty_file_or_section_is_no_surprise(tmp_path: Path) -> None:
    (tmp_path / "empty.yaml").write_text("")
    assert parse_config(load_config(tmp_path / "empty.yaml")) == Config()
    with pytest.raises(ConfigError, match="train=None"):
        parse_config({"train": None}, where="settings.yaml")


def test_settings_cannot_change_under_a_run() -> None:
    with pytest.raises(ValidationError):
        Config().train.epochs = 3


def test_every_setting_is_described() -> None:
    page = (Path(__file__).parents[1] / "docs" / "settings.md").read_text(encoding="utf-8")
    sections = {part.split("\n", 1)[0]: part for part in page.split("\n## ")}
    for name in setting_names():
        section, setting = name.split(".")
        rows = [row.split("|")[1] for row in sections[section].splitlines() if row.startswith("|")]
        assert any(f"`{setting}`" in row for row in rows), name
