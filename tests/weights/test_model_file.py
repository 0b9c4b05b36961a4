import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from lw_retinanet.config import ModelConfig
from lw_retinanet.conventions import AnchorRule, Conventions, InputRule
from lw_retinanet.data.records import Category
from lw_retinanet.errors import WeightsError
from lw_retinanet.heads import plan_of
from lw_retinanet.models.build import build
from lw_retinanet.weights.create import create_model
from lw_retinanet.weights.model_file import KEY, find_model_file, load_model, make_record, save_model

CATEGORIES = (Category(id=3, name="cod"), Category(id="0x7f", name="ray\N{SNOWMAN}", supercategory="flat"), Category(id=90, name="cod"))
Edit = Callable[[dict[str, torch.Tensor], dict[str, Any]], object]


def write(path: Path, preset: str = "lw-v3", conventions: Conventions | None = None) -> torch.nn.Module:
    torch.manual_seed(1)
    model = build(plan_of(preset), num_classes=3, backbone="mobilenet_v2", width=16, norm="batch", conventions=conventions or Conventions())
    # Statistics that are not those of a new model: they must travel too.
    model.train()
    model(torch.randn(2, 3, 64, 64))
    record = make_record(
        model,
        preset=preset,
        backbone="mobilenet_v2",
        width=16,
        norm="batch",
        plan=plan_of(preset),
        categories=CATEGORIES,
        notes={"data": "fish", "epochs": 2},
    )
    save_model(path, model, record)
    return model.eval()


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("good") / "model.safetensors"
    write(path)
    return path


@pytest.mark.parametrize("preset", ["retinanet", "lw-v3-released", "lw-narrow", "lw-stem", "lw-stem-p3p4p5-shared"])
def test_a_model_comes_back_as_it_went(preset: str, tmp_path: Path) -> None:
    conventions = Conventions(input=InputRule(size=96, mean=(0.1, 0.2, 0.3)), anchors=AnchorRule(octave_scales=(1.0, 1.5)), p7_relu=False)
    model = write(tmp_path / "run" / "model.safetensors", preset, conventions)
    loaded = load_model(tmp_path / "run")  # a run folder means the model in it
    images = torch.randn(1, 3, 96, 64)
    with torch.no_grad():
        expected, found = model(images), loaded.model(images)
    assert torch.equal(found.logits, expected.logits)
    assert torch.equal(found.deltas, expected.deltas)
    assert loaded.model.conventions == conventions
    assert loaded.record.categories == CATEGORIES
    assert (loaded.record.preset, loaded.record.plan) == (preset, plan_of(preset))
    assert loaded.record.notes == {"data": "fish", "epochs": 2}
    assert not loaded.model.training
    assert not any(tensor.is_meta for tensor in [*loaded.model.parameters(), *loaded.model.buffers()])


def switchable(path: Path) -> torch.nn.Module:
    """Write a light model that keeps its full head and the convolution that makes the full head's P3."""
    torch.manual_seed(1)
    plan = plan_of("lw-v3")
    model = build(plan, num_classes=3, backbone="resnet18", width=16, full_output=("P3",)).eval()
    record = make_record(
        model, preset="lw-v3", backbone="resnet18", width=16, norm="frozen", plan=plan, categories=CATEGORIES, notes={}
    ).model_copy(update={"switchable": True, "full_output": True})
    save_model(path, model, record)
    return model


def test_both_heads_of_a_light_model_come_back(tmp_path: Path) -> None:
    model = switchable(tmp_path / "model.safetensors")
    loaded = load_model(tmp_path / "model.safetensors")
    assert (loaded.record.switchable, loaded.record.full_output) == (True, True)
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        for full_head in (False, True):
            expected, found = model(images, full_head=full_head), loaded.model(images, full_head=full_head)
            assert torch.equal(found.logits, expected.logits)
            assert torch.equal(found.deltas, expected.deltas)
    assert not torch.equal(loaded.model(images).logits, found.logits)


def test_the_full_heads_convolution_is_there_exactly_if_the_record_says_so(tmp_path: Path) -> None:
    switchable(tmp_path / "both.safetensors")
    with pytest.raises(WeightsError, match=r"2 not known, first fpn\.full_output\.bias"):
        load_model(changed(tmp_path / "both.safetensors", tmp_path, lambda tensors, record: record.update(full_output=False)))
    with pytest.raises(WeightsError, match=r"1 missing, first fpn\.full_output\.weight"):
        load_model(changed(tmp_path / "both.safetensors", tmp_path, lambda tensors, record: tensors.pop("fpn.full_output.weight")))


def test_files_from_before_there_were_two_heads_still_load(good: Path, tmp_path: Path) -> None:
    def older(tensors: dict[str, torch.Tensor], record: dict[str, Any]) -> None:
        del record["switchable"], record["full_output"]

    assert not load_model(changed(good, tmp_path, older)).record.switchable


def test_the_file_is_plain_tensors_and_text(good: Path) -> None:
    with safe_open(good, framework="pt") as file:
        record = json.loads(file.metadata()[KEY])
    assert [one["id"] for one in record["classes"]] == [3, "0x7f", 90]
    assert record["format"] == 1


def test_half_precision_tensors_are_loaded_as_the_network_computes(good: Path, tmp_path: Path) -> None:
    path = changed(
        good, tmp_path, lambda tensors, record: tensors.update({n: t.half() for n, t in tensors.items() if t.is_floating_point()})
    )
    model = load_model(path).model
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    with torch.no_grad():
        model(torch.randn(1, 3, 64, 64))


def changed(good: Path, folder: Path, edit: Edit) -> Path:
    """Write a copy whose tensors and record were changed by ``edit``."""
    tensors = load_file(good)
    with safe_open(good, framework="pt") as file:
        record = json.loads(file.metadata()[KEY])
    edit(tensors, record)
    save_file(tensors, folder / "changed.safetensors", metadata={KEY: json.dumps(record)})
    return folder / "changed.safetensors"


def poison(tensors: dict[str, torch.Tensor], record: dict[str, Any]) -> None:
    name = min(name for name, tensor in tensors.items() if tensor.is_floating_point())
    tensors[name].view(-1)[0] = float("nan")


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (poison, "1 not finite, first backbone"),
        (lambda t, r: t.pop(max(t)), r"do not fit its record: 1 missing, first head"),
        (lambda t, r: t.update(extra=torch.zeros(1)), "1 not known, first extra"),
        (lambda t, r: r["classes"].pop(), "of another shape, first head"),
        (lambda t, r: r.update(backbone="resnet18"), "missing, first backbone"),
        (lambda t, r: r.update(width=24), "of another shape, first"),
        (lambda t, r: r.update(backbone="resnet19"), "record of model file .* cannot be used: .*resnet19"),
        (lambda t, r: r.update(classes=[]), r"cannot be used: classes=\[\]: "),
        (lambda t, r: r.update(format=2), "cannot be used: format=2: .*newer one"),
        (lambda t, r: r.update(surprise=1), "cannot be used: unknown field 'surprise'; "),
        (lambda t, r: r["plan"].update(cls={"P9": {}}), "cannot be used: plan"),
        (lambda t, r: r["plan"].update(cls={"P3": {"units": ["3x3-gn"]}}), "cannot be used: .*group norm has a multiple of 32 channels"),
    ],
)
def test_a_file_that_does_not_fit_itself_is_refused(good: Path, tmp_path: Path, edit: Edit, message: str) -> None:
    path = changed(good, tmp_path, edit)
    with pytest.raises(WeightsError, match=message) as caught:
        load_model(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"\0" * 4, b"not tensors at all, but text", b"\xff" * 64])
def test_a_damaged_file_is_refused(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    with pytest.raises(WeightsError, match=r"cannot read model file .*; give a whole"):
        load_model(path)


def test_a_truncated_file_is_refused(good: Path, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(good.read_bytes()[:-1])
    with pytest.raises(WeightsError, match="cannot read model file"):
        load_model(path)


@pytest.mark.parametrize("metadata", [None, {"format": "pt"}])
def test_foreign_safetensors_are_refused(metadata: dict[str, str] | None, tmp_path: Path) -> None:
    save_file({"weight": torch.zeros(2)}, tmp_path / "other.safetensors", metadata=metadata)
    with pytest.raises(WeightsError, match="not a model of this program"):
        load_model(tmp_path / "other.safetensors")


@pytest.mark.parametrize("text", ["{", "[" * 100_000, "3"])
def test_a_record_that_is_no_record_is_refused(text: str, tmp_path: Path) -> None:
    save_file({"weight": torch.zeros(2)}, tmp_path / "other.safetensors", metadata={KEY: text})
    with pytest.raises(WeightsError, match=r"the record of model file .* cannot be used"):
        load_model(tmp_path / "other.safetensors")


def of(suffix: str, change: Callable[[torch.Tensor], torch.Tensor]) -> Edit:
    """An edit of the first tensor with this end of its name."""

    def edit(tensors: dict[str, torch.Tensor], record: dict[str, Any]) -> None:
        name = min(name for name in tensors if name.endswith(suffix))
        tensors[name] = change(tensors[name])

    return edit


def field(path: str, value: object) -> Edit:
    """An edit of a field of the record."""

    def edit(tensors: dict[str, torch.Tensor], record: dict[str, Any]) -> None:
        *parts, last = path.split(".")
        for part in parts:
            record = record[part]
        record[last] = value

    return edit


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (of("weight", lambda t: torch.full_like(t, 3e38)), "1 with numbers beyond 1e.12"),
        (of("running_var", lambda t: -t - 1), "1 of variances that are not above 0"),
        (of("weight", lambda t: t.to(torch.int32)), "1 of another type"),
        (of("weight", lambda t: t.to(torch.float8_e4m3fn)), "1 of another type"),
        *((field("width", 10**power), "cannot be used: width=10+.*less than or equal") for power in (5, 9, 18, 30)),
        (field("plan.shared.width", 10**9), "a tower must be 1 to 8,192"),
        (field("plan.shared.units", ["3x3"] * 300_000), "1 to 64 units, got 300,000"),
        (field("conventions.input.size", 100_000), "conventions.input.size=100000"),
        (field("conventions.input.pad_multiple", 100_000), "pad_multiple=100000"),
        (field("conventions.input.std", [1e-300] * 3), "std.0=1e-300"),
        (field("conventions.input.mean", [float("nan")] * 3), "mean.0=nan"),
        (field("conventions.input.scale", float("inf")), "scale=inf"),
        (field("conventions.anchors.base_size", float("inf")), "base_size=inf"),
        (field("conventions.anchors.octave_scales", [1.0] * 300_000), "at most 64"),
        (field("conventions.anchors.octave_scales", []), "at least 1"),
        (field("conventions.output.max_detections", 10**30), "max_detections=10+"),
        (field("conventions.output.nms_iou", float("nan")), "nms_iou=nan"),
    ],
)
def test_numbers_that_no_network_has_are_refused_before_anything_is_built(good: Path, tmp_path: Path, edit: Edit, message: str) -> None:
    test_a_file_that_does_not_fit_itself_is_refused(good, tmp_path, edit, message)


def test_a_record_with_a_number_of_thousands_of_digits_is_refused(tmp_path: Path) -> None:
    test_a_record_that_is_no_record_is_refused('{"format": ' + "9" * 5000 + "}", tmp_path)


def test_notes_too_deep_to_be_written_again_are_refused(good: Path, tmp_path: Path) -> None:
    deep: list[Any] = []
    for _ in range(300):
        deep = [deep]
    path = changed(good, tmp_path, field("notes", {"x": deep}))
    with pytest.raises(WeightsError, match="cannot be used: it is not JSON that can be read and written"):
        load_model(path)


def test_of_two_tensors_with_one_name_neither_is_taken(good: Path, tmp_path: Path) -> None:
    raw = good.read_bytes()
    size = int.from_bytes(raw[:8], "little")
    header = raw[8 : 8 + size].rstrip()
    name, entry = next((name, entry) for name, entry in json.loads(header).items() if name != "__metadata__")
    twice = header[:-1] + f', "{name}": {json.dumps(entry)}}}'.encode()
    (tmp_path / "model.safetensors").write_bytes(len(twice).to_bytes(8, "little") + twice + raw[8 + size :])
    with pytest.raises(WeightsError, match=f"cannot read model file .*: its header has {name} twice; give a whole"):
        load_model(tmp_path)


def test_a_pipe_is_no_model_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.safetensors")
    with pytest.raises(WeightsError, match=r"is no ordinary file; give a \.safetensors file"):
        load_model(tmp_path / "pipe.safetensors")


def test_what_is_not_there_is_said(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="does not exist"):
        find_model_file(tmp_path / "gone.safetensors")
    with pytest.raises(WeightsError, match=r"holds no model\.safetensors; resume its training"):
        find_model_file(tmp_path)


def test_as_many_names_as_classes() -> None:
    model = create_model(ModelConfig(backbone="mobilenet_v2", head_width=16), num_classes=2)
    with pytest.raises(WeightsError, match="has 2 classes, 3 names"):
        make_record(
            model, preset="lw-v3", backbone="mobilenet_v2", width=16, norm="batch", plan=plan_of("lw-v3"), categories=CATEGORIES, notes={}
        )


def test_a_failed_save_leaves_the_earlier_file(good: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(good.read_bytes())

    def interrupted(tensors: object, target: Path, **_: object) -> None:
        target.write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr("lw_retinanet.weights.model_file.save_tensors", interrupted)
    loaded = load_model(path)
    with pytest.raises(KeyboardInterrupt):
        save_model(path, loaded.model, loaded.record)
    assert path.read_bytes() == good.read_bytes()
    assert list(tmp_path.iterdir()) == [path]
