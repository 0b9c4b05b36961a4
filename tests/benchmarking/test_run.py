from pathlib import Path
from typing import Any

import pytest
import torch
from tests.weights.model_files import write_model

from lw_retinanet.benchmarking import run, timing, torchvision_contenders
from lw_retinanet.benchmarking.parity import ParityError
from lw_retinanet.benchmarking.run import benchmark
from lw_retinanet.benchmarking.settings import BenchmarkSettings
from lw_retinanet.conventions import Conventions, InputRule
from lw_retinanet.counting.rounds import take_turns
from lw_retinanet.data.records import Category
from lw_retinanet.detection.detector import Detector
from lw_retinanet.errors import ConfigError, InputError
from lw_retinanet.jobs.export import run_export
from lw_retinanet.weights.foreign.torchvision_twin import torchvision_twin
from lw_retinanet.weights.model_file import load_model, save_model

SMALL: dict[str, Any] = {"size": 64, "rounds": 2, "warm_up": 0, "threads": 1, "backbone": "resnet18", "num_classes": 3, "candidates": 100}


@pytest.fixture
def model_file(tmp_path: Path) -> Path:
    conventions = Conventions(input=InputRule(size=64))
    classes = [Category(id=1, name="a"), Category(id=5, name="b")]
    return write_model(tmp_path / "mine.safetensors", "retinanet", classes, norm="batch", conventions=conventions, spread=1.0)


def rows_of(result: dict[str, Any]) -> dict[str, Any]:
    return {row["name"]: row for row in result["contenders"]}


def test_presets_against_torchvision() -> None:
    result = benchmark(["lw-v3", "retinanet"], BenchmarkSettings(against_torchvision=True, precision="bf16", **SMALL))
    rows = rows_of(result)
    assert list(rows) == [
        "torchvision as shipped fp32",
        "torchvision channels_last, autocast bf16",
        "lw-v3 bf16",
        "retinanet bf16",
    ]
    # torchvision got the weights of the one that has the full head, whatever came first.
    assert [parity["name"] for parity in result["parity"]] == ["retinanet", "lw-v3 bf16", "retinanet bf16"]
    assert any("torchvision has the weights of retinanet" in remark for remark in result["remarks"])
    assert any("Random weights with realistic scores (100 candidates" in remark for remark in result["remarks"])
    assert rows["torchvision as shipped fp32"]["macs"] == rows["retinanet bf16"]["macs"] > rows["lw-v3 bf16"]["macs"]
    assert rows["torchvision as shipped fp32"]["params"] == rows["retinanet bf16"]["params"]
    assert abs(rows["lw-v3 bf16"]["candidates"] - 100) < 20  # counted in fp32, on the same image
    assert all(row["input_hw"] == [64, 64] for row in rows.values())
    roles = {name: [each["role"] for each in row["times_as_fast"]] for name, row in rows.items()}
    assert roles["lw-v3 bf16"] == ["shipped", "best"]
    assert roles["retinanet bf16"] == ["shipped", "best", "alike"]
    assert {"D3", "D7", "post-processing"} <= set(rows["lw-v3 bf16"]["stages"]["milliseconds"])
    assert result["machine"]["threads"] == 1


def test_a_light_model_alone_meets_another_network(model_file: Path) -> None:
    result = benchmark(["lw-v3"], BenchmarkSettings(against_torchvision=True, **SMALL))
    assert result["parity"] == []
    assert any("torchvision's network is another one, so there is no parity to check" in remark for remark in result["remarks"])
    assert len(rows_of(result)) == 3


def test_a_file_keeps_its_own_size_and_weights(model_file: Path) -> None:
    settings = BenchmarkSettings(**{**SMALL, "size": None}, against_torchvision=True)
    result = benchmark([str(model_file), "lw-v3"], settings)
    rows = rows_of(result)
    assert rows["mine.safetensors fp32"]["input_hw"] == rows["lw-v3 fp32"]["input_hw"] == [64, 64]
    assert result["parity"][0]["name"] == "mine.safetensors"
    assert not any("mine" in remark for remark in result["remarks"] if "Random weights" in remark)
    assert rows_of(benchmark([str(model_file)], BenchmarkSettings(**{**SMALL, "size": 96})))["mine.safetensors fp32"]["input_hw"] == [
        96,
        96,
    ]


def test_nothing_is_timed_when_the_answers_differ(monkeypatch: pytest.MonkeyPatch) -> None:
    twin_of = torchvision_twin

    def other(network: Any) -> Any:
        twin = twin_of(network)
        torch.nn.init.zeros_(twin.head.classification_head.cls_logits.weight)
        return twin

    monkeypatch.setattr(torchvision_contenders, "torchvision_twin", other)
    monkeypatch.setattr(run, "timed", lambda *_, **__: pytest.fail("timed"))
    with pytest.raises(ParityError, match="retinanet does not answer as torchvision does"):
        benchmark(["retinanet"], BenchmarkSettings(against_torchvision=True, **SMALL))


def test_peers_take_part(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "PEERS", ("ssdlite320_mobilenet_v3_large",))
    monkeypatch.setattr(run, "contender_presets", lambda: ["lw-v3"])
    result = benchmark([], BenchmarkSettings(peers=True, **SMALL))
    rows = rows_of(result)
    peer = rows["ssdlite320_mobilenet_v3_large fp32"]
    assert (peer["family"], peer["input_hw"]) == ("peer", [320, 320])
    assert peer["macs"] > 0
    assert peer["accuracy"] == pytest.approx(0.213)  # torchvision's documentation of its weights
    assert peer["times_as_fast"][0]["than"] == "lw-v3 fp32"
    assert any("Not all networks get inputs of one size" in remark for remark in result["remarks"])


@pytest.mark.slow
def test_exported_files_meet_their_model(model_file: Path) -> None:
    pytest.importorskip("onnxscript")
    pytest.importorskip("onnxruntime")
    exported = run_export(model_file, model_file.with_name("mine.onnx"), format="onnx").file
    names = [str(exported), str(model_file)]
    result = benchmark(names, BenchmarkSettings(**SMALL))
    rows = rows_of(result)
    assert (rows["mine.onnx fp32"]["runtime"], rows["mine.onnx fp32"]["macs"]) == ("onnx", rows["mine.safetensors fp32"]["macs"])
    assert set(rows["mine.onnx fp32"]["stages"]["milliseconds"]) == {"decode", "preprocess", "network", "post-processing"}
    assert [(parity["name"], parity["against"]) for parity in result["parity"]] == [("mine.onnx fp32", "mine.safetensors fp32")]
    loaded = load_model(model_file)
    with torch.no_grad():
        loaded.model.head.cls.shared_predict.weight.mul_(1.1)  # type: ignore[union-attr, operator]
    save_model(model_file, loaded.model, loaded.record)
    with pytest.raises(ParityError, match=r"mine\.onnx fp32 does not answer as mine\.safetensors fp32"):
        benchmark(names, BenchmarkSettings(**SMALL))


def test_openvino_copies_answer_as_their_networks() -> None:
    pytest.importorskip("openvino")
    pytest.importorskip("nncf")
    result = benchmark(["lw-v3"], BenchmarkSettings(openvino=True, **SMALL))
    rows = rows_of(result)
    assert list(rows) == ["lw-v3 fp32", "lw-v3 openvino fp32", "lw-v3 openvino int8"]
    assert [(parity["name"], parity["against"]) for parity in result["parity"]] == [
        ("lw-v3 openvino fp32", "lw-v3 fp32"),
        ("lw-v3 openvino int8", "lw-v3 fp32"),
    ]
    assert result["parity"][0]["detections"] > 0
    assert result["parity"][1]["rms"] > 1e-3  # it was rounded
    assert len({row["macs"] for row in rows.values()}) == 1
    assert sum("Random weights" in remark for remark in result["remarks"]) == 1


def test_refusals(model_file: Path) -> None:
    for change, words in (
        ({"rounds": 1}, "rounds must be at least 2, got 1"),
        ({"size": 8}, "size must be from 32 to"),
        ({"batch_size": 0}, "batch_size must be at least 1"),
    ):
        with pytest.raises(ConfigError, match=words):
            BenchmarkSettings(**{**SMALL, **change})
    with pytest.raises(InputError, match="name what to measure"):
        benchmark([], BenchmarkSettings(**SMALL))
    with pytest.raises(InputError, match=r"mine\.safetensors was named twice"):
        benchmark([str(model_file), str(model_file)], BenchmarkSettings(**SMALL))
    with pytest.raises(InputError, match=r"no preset, model file, exported file or run folder.*lw-v3"):
        benchmark(["lw-v33"], BenchmarkSettings(**SMALL))


@pytest.mark.slow
def test_files_are_held_against_what_is_exact_whatever_comes_first(model_file: Path) -> None:
    pytest.importorskip("openvino")
    half, whole = (
        run_export(model_file, model_file.with_name(name), format="openvino", half_weights=name == "half.xml").file
        for name in ("half.xml", "whole.xml")
    )
    result = benchmark([str(half), str(whole)], BenchmarkSettings(**{**SMALL, "precision": "bf16"}))
    assert result["parity"] == []
    assert sum("nothing else here has its weights in fp32" in remark for remark in result["remarks"]) == 2
    result = benchmark([str(half), str(model_file)], BenchmarkSettings(**{**SMALL, "precision": "bf16"}))
    # PyTorch's network in fp32, though it is timed in bf16.
    pairs = [(parity["name"], parity["against"]) for parity in result["parity"]]
    assert pairs == [("mine.safetensors bf16", "mine.safetensors fp32"), ("half.xml bf16", "mine.safetensors fp32")]
    result = benchmark([str(half), str(whole)], BenchmarkSettings(**SMALL))
    assert [(parity["name"], parity["against"]) for parity in result["parity"]] == [("whole.xml fp32", "half.xml fp32")]
    assert 0 < result["parity"][0]["rms"] < 0.01  # weights in fp16 are allowed their rounding


def test_images_of_several_sizes_are_prepared_for_before_the_clock_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from PIL import Image

    for number, size in enumerate([(64, 48), (64, 48), (48, 64), (64, 64)]):
        Image.new("RGB", size, (40 * number, 90, 120)).save(tmp_path / f"{number}.png")
    before: list[int] = []

    def turns(calls: Any, **how: Any) -> Any:
        before.append(len(shapes))
        return take_turns(calls, **how)

    shapes: list[Any] = []
    predict = Detector.predict_arrays

    def watched(self: Detector, images: Any, **how: Any) -> Any:
        shapes.append(images[0].shape)
        return predict(self, images, **how)

    monkeypatch.setattr(timing, "take_turns", turns)
    monkeypatch.setattr(Detector, "predict_arrays", watched)
    report = benchmark(["lw-v3"], BenchmarkSettings(images=tmp_path, **{**SMALL, "rounds": 8}))
    assert set(shapes[: before[0]]) == {(48, 64, 3), (64, 48, 3), (64, 64, 3)}
    assert before[0] == 3
    assert report["contenders"][0]["stages"]["whole"] > 0
