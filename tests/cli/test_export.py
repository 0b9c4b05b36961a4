"""``lw-retinanet export``, and the other commands on what it wrote."""

import json
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture(scope="module")
def exported(cli: Any, lively: Path, data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path]:
    """int8 for OpenVINO, whatever it costs."""
    pytest.importorskip("openvino")
    pytest.importorskip("nncf")
    out = tmp_path_factory.mktemp("exported") / "small.xml"
    outcome = cli(
        "export", lively, "--format", "openvino", "--precision", "int8", "--calibrate", data, "--out", out, "--allow-drop", "--json"
    )
    assert outcome.code == 0, outcome
    return outcome.json, out


def test_export_writes_file_report_and_layers(exported: tuple[Any, Path]) -> None:
    report, out = exported
    assert sorted(path.name for path in out.parent.iterdir()) == ["small.bin", "small.xml", "small.xml-layers.csv", "small.xml-report.json"]
    assert report == json.loads((out.parent / "small.xml-report.json").read_text())
    assert report["precision"] == "int8"
    assert report["outputs"] == "raw"
    assert report["accuracy"]["images"] == 4
    assert report["accuracy"]["max_drop"] == pytest.approx(0.005)
    assert report["bytes"] == sum(out.with_suffix(suffix).stat().st_size for suffix in (".xml", ".bin")) or report["bytes"] > 0
    worst = [row["signal_to_noise_db"] for row in report["layers"]]
    assert len(worst) > 50
    assert worst == sorted(worst)
    assert max(worst) > 5  # decibels: at least the first layers are near what they were


def test_predict_and_evaluate_take_the_file(cli: Any, exported: tuple[Any, Path], data: Path, tmp_path: Path) -> None:
    report, out = exported
    scored = cli("evaluate", out, data, "--json")
    assert scored.code == 0, scored
    assert scored.json["AP"] == pytest.approx(report["accuracy"]["after"], abs=1e-3)
    found = cli("predict", out, data / "images", "--json", "--score", "0.1")
    assert found.code == 0, found
    assert len(found.json["images"]) == 12


def test_bad_requests_are_one_line_and_leave_nothing(cli: Any, lively: Path, data: Path, tmp_path: Path) -> None:
    def refused(*arguments: object) -> str:
        return str(cli.refuses("export", *arguments, unchanged=tmp_path))

    out = tmp_path / "model.onnx"
    assert "name a data set or a folder with calibrate" in refused(lively, "--format", "onnx", "--precision", "int8", "--out", out)
    assert "did you mean onnx" in refused(lively, "--format", "onxn", "--out", out)
    assert "expected fp32, bf16, int8" in refused(lively, "--format", "onnx", "--precision", "fp16", "--out", out)
    assert "expected light, full" in refused(lively, "--format", "onnx", "--head", "both", "--out", out)
    assert "data set nowhere does not exist" in refused(
        lively, "--format", "onnx", "--precision", "int8", "--calibrate", "nowhere", "--out", out
    )
    assert "lw-v3 does not exist" in refused("lw-v3", "--format", "onnx", "--out", out)
    assert "one head only" in refused(lively, "--format", "onnx", "--head", "full", "--out", out)


def test_a_missing_package_is_named_with_its_extra(cli: Any, lively: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    for package, extra, format_, out in (("onnxscript", "onnx", "onnx", "m.onnx"), ("openvino", "openvino", "openvino", "m.xml")):
        monkeypatch.setitem(sys.modules, package, None)  # what importing it finds where it is not installed
        line = cli.refuses("export", lively, "--format", format_, "--out", tmp_path / out, unchanged=tmp_path)
        assert f"needs {package}; install it with: pip install 'lw-retinanet[{extra}]'" in line


def test_an_altered_file_is_one_line_and_exit_code_2(cli: Any, exported: tuple[Any, Path], data: Path, tmp_path: Path) -> None:
    _, out = exported
    (tmp_path / "small.xml").write_text(out.read_text().replace("&quot;score_threshold&quot;:0.05", "&quot;score_threshold&quot;:0.06"))
    (tmp_path / "small.bin").write_bytes(out.with_suffix(".bin").read_bytes())
    assert "was altered" in cli.refuses("evaluate", tmp_path / "small.xml", data, unchanged=tmp_path)
