"""What surrounds the writing: settings that do not go together, places that cannot be written, and nothing left behind after a failure."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.exporting import fakes
from tests.exporting.fakes import FakeRuntime, FakeTriton, fake_target
from torch import Tensor

from lw_retinanet.errors import DataError, DiskFullError, ExportError, InputError, OutputError, WeightsError
from lw_retinanet.exporting.settings import ExportSettings
from lw_retinanet.exporting.targets import TARGETS, TargetRow
from lw_retinanet.jobs.export import run_export
from lw_retinanet.weights.model_file import load_model, save_model

Change = Callable[[str, Tensor], Tensor]


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """Puts PyTorch in the place of ONNX."""

    def install(change: Change = lambda _, values: values, **members: Any) -> type[FakeRuntime]:
        made = fake_target(change)
        monkeypatch.setattr(fakes, "installed", made, raising=False)
        monkeypatch.setattr(fakes, "installed_triton", fake_target(change, base=FakeTriton, **members), raising=False)
        monkeypatch.setitem(TARGETS, "onnx", TargetRow("tests.exporting.fakes", "installed", "a fake"))
        monkeypatch.setitem(TARGETS, "triton", TargetRow("tests.exporting.fakes", "installed_triton", "a fake"))
        return made

    return install


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"format": "onnx", "precision": "int8"}, "name a data set or a folder with calibrate"),
        ({"format": "onnx", "precision": "bf16"}, "format onnx has no bf16; .*: openvino"),
        ({"format": "triton", "half_weights": True}, "format triton has no half_weights"),
        (
            {"format": "openvino", "precision": "int8", "calibrate": Path(), "symmetric": True},
            "format openvino has no symmetric.*: onnx, triton",
        ),
        ({"format": "openvino", "end_to_end": True}, "format openvino has no end_to_end"),
        ({"format": "onnx", "calibrate": Path(), "allow_drop": True}, "calibrate, allow_drop: for precision int8 only"),
        ({"format": "openvino", "precision": "int8", "calibrate": Path(), "half_weights": True}, "half_weights rounds what"),
    ],
)
def test_settings_that_do_not_go_together(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        ExportSettings(**settings)


def test_places_that_cannot_be_written(model_file: Path, tmp_path: Path) -> None:
    for out, format_, message in (
        ("model.xml", "onnx", r"a file of format onnx ends in \.onnx"),
        ("model.onnx", "openvino", r"ends in \.xml"),
        ("bad name", "triton", "letters, digits"),
        ("full", "triton", "is not empty"),
    ):
        (tmp_path / "full").mkdir(exist_ok=True)
        (tmp_path / "full" / "something").touch()
        settings: Any = {"format": format_}
        with pytest.raises(OutputError, match=message):
            run_export(model_file, tmp_path / out, **settings)
    (tmp_path / "folder.onnx").mkdir()
    with pytest.raises(OutputError, match="is a folder"):
        run_export(model_file, tmp_path / "folder.onnx", format="onnx")
    with pytest.raises(WeightsError, match="does not exist"):
        run_export(tmp_path / "absent.safetensors", tmp_path / "model.onnx", format="onnx")


def test_file_report_and_answer_say_the_same(model_file: Path, tmp_path: Path, fake: Callable[..., Any]) -> None:
    fake()
    exported = run_export(model_file, tmp_path / "new" / "small.onnx", format="onnx", head="full")
    assert exported.manifest.head == "full"
    assert exported.manifest.record.notes == {"data": "none"}
    report = json.loads((tmp_path / "new" / "small.onnx-report.json").read_text())
    assert report == json.loads(json.dumps(exported.as_dict()))
    assert report["agreement"]["missing"] == 0
    assert report["accuracy"] is None
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == ["small.onnx", "small.onnx-report.json"]
    assert any("detections, 0 without a match" in line for line in exported.lines())


@pytest.mark.parametrize(("format_", "out"), [("onnx", "deep/er/small.onnx"), ("triton", "deep/repository")])
def test_a_failed_check_leaves_nothing(model_file: Path, tmp_path: Path, fake: Callable[..., Any], format_: Any, out: str) -> None:
    def unfaithful(name: str, values: Tensor) -> Tensor:
        return values + 1 if values.is_floating_point() else values

    fake(change=unfaithful)
    with pytest.raises(ExportError):
        run_export(model_file, tmp_path / out, format=format_)
    assert list(tmp_path.iterdir()) == []


def test_an_old_file_survives_a_failed_export(model_file: Path, tmp_path: Path, fake: Callable[..., Any]) -> None:
    fake(change=lambda _, values: values + 1)
    out = tmp_path / "small.onnx"
    out.write_text("old")
    with pytest.raises(ExportError):
        run_export(model_file, out, format="onnx")
    assert out.read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["small.onnx"]


def test_int8_is_gated_reported_and_flagged(model_file: Path, sample: Path, tmp_path: Path, fake: Callable[..., Any]) -> None:
    target = fake()
    exported = run_export(model_file, tmp_path / "small.onnx", precision="int8", calibrate=sample, gate_images=21, calibration_images=3)
    assert target.quantised == [()]
    report = exported.as_dict()
    assert report["accuracy"]["images"] == 21
    assert report["accuracy"]["difference"] == 0.0  # the fake rounds nothing
    assert report["accuracy"]["low"] == 0.0
    assert not report["flagged"]
    assert exported.manifest.accuracy is not None
    assert exported.manifest.accuracy["before"] == report["accuracy"]["before"]
    assert (tmp_path / "small.onnx-layers.csv").read_text().splitlines()[0] == "layer,signal_to_noise_db,is_kept"
    assert any("small.onnx-layers.csv" in line for line in exported.lines())
    assert "relative error of logits and deltas" in exported.lines()[0]  # rounded detections are not held against exact ones


def test_int8_needs_a_validation_split(model_file: Path, sample: Path, tmp_path: Path) -> None:
    pictures = sample / "images"
    with pytest.raises(InputError, match="name a data set with boxes for the gate"):
        run_export(model_file, tmp_path / "small.onnx", precision="int8", calibrate=pictures)
    with pytest.raises(DataError):
        run_export(model_file, tmp_path / "small.onnx", precision="int8", calibrate=sample, validate=tmp_path)


def test_the_same_images_on_both_sides_are_warned_of(
    model_file: Path, sample: Path, tmp_path: Path, fake: Callable[..., Any], caplog: pytest.LogCaptureFixture
) -> None:
    fake()
    exported = run_export(
        model_file, tmp_path / "small.onnx", precision="int8", calibrate=sample / "val.json", validate=sample, gate_images=4
    )
    assert any("4 of the 24 calibration images are validation images too" in note for note in exported.notes)
    assert "calibrate on others" in caplog.text
    assert any(line.startswith("warning: ") for line in exported.lines())


def test_a_model_that_finds_nothing_is_compared_at_a_lower_threshold(model_file: Path, tmp_path: Path, fake: Callable[..., Any]) -> None:
    loaded = load_model(model_file)
    output = loaded.model.conventions.output.model_copy(update={"score_threshold": 0.97})
    silent = loaded.model.conventions.model_copy(update={"output": output})
    loaded.model.conventions = silent
    quiet_file = tmp_path / "silent.safetensors"
    save_model(quiet_file, loaded.model, loaded.record.model_copy(update={"conventions": silent}))
    fake()
    exported = run_export(quiet_file, tmp_path / "good.onnx", end_to_end=True)
    assert exported.agreement.compared > 50
    assert exported.agreement.missing == 0
    assert exported.manifest.record.conventions.output.score_threshold == 0.97
    fake(change=lambda name, values: values + 5 if name == "boxes" else values)
    with pytest.raises(ExportError, match="are not the model's"):
        run_export(quiet_file, tmp_path / "wrong.onnx", end_to_end=True)


def test_rounded_boxes_have_to_be_found_again(model_file: Path, sample: Path, tmp_path: Path, fake: Callable[..., Any]) -> None:
    fake(change=lambda name, values: values + 500 if name == "boxes" else values)
    with pytest.raises(ExportError, match="shares only 0% of the model's detections"):
        run_export(
            model_file,
            tmp_path / "small.onnx",
            precision="int8",
            calibrate=sample,
            calibration_images=3,
            end_to_end=True,
            allow_drop=True,
            gate_images=20,
        )


def test_a_triton_folder_is_whole_or_not_there(model_file: Path, tmp_path: Path, fake: Callable[..., Any]) -> None:
    def fails(folder: Path, _: Any) -> None:
        (folder / "config.pbtxt").write_text("half")
        raise OSError(28, "No space left on device")

    fake(complete=staticmethod(fails))
    with pytest.raises(DiskFullError, match="No space left"):
        run_export(model_file, tmp_path / "repository", format="triton")
    assert list(tmp_path.iterdir()) == []


def test_reports_of_two_formats_stand_side_by_side(model_file: Path, tmp_path: Path, fake: Callable[..., Any]) -> None:
    fake()
    (tmp_path / "small.onnx-layers.csv").write_text("of an int8 file that had this name before")
    run_export(model_file, tmp_path / "small.onnx", format="onnx")
    run_export(model_file, tmp_path / "small", format="triton")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["small", "small-report.json", "small.onnx", "small.onnx-report.json"]
