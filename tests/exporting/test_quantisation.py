"""int8: giving way until the gate is passed; ranges from images; what stays in float."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.exporting.fakes import fake_target, manifest_of

from lw_retinanet.conventions import InputRule
from lw_retinanet.data.dataset import Dataset
from lw_retinanet.errors import ExportError, ImageError
from lw_retinanet.exporting.calibration import Calibration
from lw_retinanet.exporting.gate import Accuracy
from lw_retinanet.exporting.graph import RawGraph
from lw_retinanet.exporting.quantisation import quantise_through_gate
from lw_retinanet.models.retinanet import RetinaNet

PREDICTIONS = ("head.cls.shared_predict", "head.bbox.shared_predict")


class Verdicts:
    """A gate that says these APs, one after the other, of a network that had 0.3."""

    def __init__(self, *values: float) -> None:
        self.values = iter(values)

    def measure(self, _: object) -> Accuracy:
        return Accuracy(before=0.3, after=next(self.values), low=None, high=None, images=4, max_drop=0.005)


@pytest.fixture
def calibration(sample: Path) -> Calibration:
    return Calibration(sample, InputRule(size=64), count=6)


def attempt(model: RetinaNet, calibration: Calibration, gate: Any, *, allow_drop: bool = False) -> tuple[Any, Any, list[Sequence[str]]]:
    target = fake_target()
    attempts = quantise_through_gate(RawGraph(model), target, calibration, gate, manifest_of(model), allow_drop=allow_drop)
    return attempts[-1], attempts, target.quantised


def test_one_attempt_is_enough_where_it_passes(model: RetinaNet, calibration: Calibration) -> None:
    chosen, attempts, kept = attempt(model, calibration, Verdicts(0.296))
    assert kept == [()]
    assert attempts == [chosen]
    assert [row.layer for row in chosen.errors]


def test_predictions_are_kept_first_then_the_worst_layers(model: RetinaNet, calibration: Calibration) -> None:
    chosen, attempts, kept = attempt(model, calibration, Verdicts(0.28, 0.29, 0.2951))
    assert kept == [(), PREDICTIONS, (*PREDICTIONS, "backbone.conv1")]
    assert chosen is attempts[2]
    assert {row.layer for row in chosen.errors if row.is_kept} == {*PREDICTIONS, "backbone.conv1"}
    assert [entry.as_dict()["num_kept"] for entry in attempts] == [0, 2, 3]


def test_a_gate_that_never_opens_names_the_best_attempt_and_the_worst_layers(model: RetinaNet, calibration: Calibration) -> None:
    with pytest.raises(ExportError, match=r"AP 30\.00 -> 29\.00.*prediction convolutions not.*worst layers: .*allow_drop"):
        attempt(model, calibration, Verdicts(0.28, 0.29, 0.285))


def test_allowed_drops_stop_at_the_first_attempt(model: RetinaNet, calibration: Calibration) -> None:
    chosen, _, kept = attempt(model, calibration, Verdicts(0.1), allow_drop=True)
    assert kept == [()]
    assert not chosen.accuracy.passes


def test_calibration_gives_what_the_network_gets(sample: Path, calibration: Calibration) -> None:
    assert len(calibration) == 6
    train = Dataset.open(sample).read("train")
    names = {train.path(image).name for image in range(train.num_images)}
    assert {file.name for file in calibration.files} < names
    first, second = list(calibration.inputs(("images",))), list(calibration.inputs(("images", "sizes_hw")))
    assert len(first) == len(second) == 6
    assert first[0]["images"].shape == (1, 3, 64, 64)
    assert first[0]["images"].dtype == np.float32
    assert abs(float(first[0]["images"].mean())) < 3  # normalised
    assert second[0]["sizes_hw"].tolist() == [[64, 64]]
    assert np.array_equal(first[3]["images"], second[3]["images"])
    assert len(list(calibration.inputs(("images",), count=2))) == 2


def test_images_that_are_in_both_sets_are_found_by_content(sample: Path, calibration: Calibration, tmp_path: Path) -> None:
    val = Dataset.open(sample).read("val")
    assert calibration.shared_with(val) == 0
    copies = tmp_path / "copies"
    copies.mkdir()
    for number in range(3):
        (copies / f"renamed{number}.png").write_bytes(val.path(number).read_bytes())
    (copies / "own.png").write_bytes(calibration.files[0].read_bytes())
    assert Calibration(copies, InputRule(size=64), count=10).shared_with(val) == 3


def test_a_image_that_is_gone_is_named(sample: Path, tmp_path: Path) -> None:
    import shutil

    copied = tmp_path / "data"
    shutil.copytree(sample, copied)
    train = Dataset.open(copied).read("train")
    train.path(0).unlink()
    with pytest.raises(ImageError, match=train.path(0).name):
        Calibration(copied, InputRule(size=64), count=4)


def rms(found: Any, wanted: torch.Tensor) -> float:
    return float((torch.from_numpy(found) - wanted).square().mean().sqrt() / wanted.std())


def test_onnx_int8_is_close_smaller_and_leaves_alone_what_it_should(
    triton_folder: Path, model: RetinaNet, calibration: Calibration, tmp_path: Path
) -> None:
    onnx = pytest.importorskip("onnx")
    from lw_retinanet.exporting.onnx import OnnxRuntime, _behind_predictions

    network = onnx.load(str(triton_folder / "1" / "model.onnx"))
    layers = OnnxRuntime.layers(network)
    assert len(layers) == len(set(layers))
    kept = [layer for layer in layers if "predict" in layer]
    assert len(kept) == 10  # two branches, five levels
    quantised = OnnxRuntime.quantise(network, calibration, keep=kept, scratch=tmp_path)
    assert OnnxRuntime.layers(quantised) == layers or set(OnnxRuntime.layers(quantised)) == set(layers)
    weights = {node.output[0]: node for node in quantised.graph.node if node.op_type == "DequantizeLinear"}
    scales = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in quantised.graph.initializer}
    for node in quantised.graph.node:
        if node.op_type == "Conv":
            assert (node.input[1] in weights) is (node.name not in kept), node.name
    first = next(node for node in quantised.graph.node if node.name == "backbone.conv1")
    assert scales[weights[first.input[1]].input[1]].shape == (64,)  # one scale an output channel
    # Nothing behind the predictions is rounded.
    decoded = {node.op_type for node in quantised.graph.node if set(node.output) & set(_behind_predictions(network))}
    assert "QuantizeLinear" not in decoded
    assert (tmp_path / "int8.onnx").stat().st_size < 0.5 * (triton_folder / "1" / "model.onnx").stat().st_size
    # Ranges are measured once: the second time they are read.
    before = (tmp_path / "ranges.json").read_bytes()
    again = OnnxRuntime.quantise(network, calibration, keep=kept, scratch=tmp_path)
    assert (tmp_path / "ranges.json").read_bytes() == before
    assert again.SerializeToString() == quantised.SerializeToString()
    # Layers before the first kept one carry noise, but little.
    feeds = next(iter(calibration.inputs(("images", "sizes_hw"))))
    inputs = [torch.from_numpy(feeds[name]) for name in ("images", "sizes_hw")]
    noise = [
        rms(found, torch.from_numpy(wanted))
        for found, wanted in zip(
            OnnxRuntime(OnnxRuntime.tapped(quantised, layers), manifest_of(model)).run(*inputs),
            OnnxRuntime(OnnxRuntime.tapped(network, layers), manifest_of(model)).run(*inputs),
            strict=True,
        )
    ]
    assert 0 < max(noise) < 0.5


def test_symmetric_onnx_is_around_zero(onnx_file: Path, calibration: Calibration, tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    from lw_retinanet.exporting.onnx import OnnxRuntime

    network = OnnxRuntime.quantise(onnx.load(str(onnx_file)), calibration, scratch=tmp_path, symmetric=True)
    values = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in network.graph.initializer}
    zeros = [values[node.input[2]] for node in network.graph.node if node.op_type in ("QuantizeLinear", "DequantizeLinear")]
    assert len(zeros) > 50
    assert {zero.dtype for zero in zeros} == {np.dtype(np.int8)}  # biases in int32 would be among them
    assert not any(zero.any() for zero in zeros)


def test_openvino_int8_is_close_and_keeps_what_it_should(openvino_file: Path, model: RetinaNet, calibration: Calibration) -> None:
    openvino = pytest.importorskip("openvino")
    pytest.importorskip("nncf")
    from lw_retinanet.exporting.openvino import OpenVinoRuntime, _convolutions

    network = openvino.Core().read_model(str(openvino_file))
    layers = OpenVinoRuntime.layers(network)
    kept = [layer for layer in layers if "predict" in layer]
    assert len(kept) == 10
    assert len(layers) == len(set(layers))
    quantised = OpenVinoRuntime.quantise(network, calibration, keep=kept)
    assert set(OpenVinoRuntime.layers(quantised)) == set(layers)
    for operation in _convolutions(quantised):
        # Of the weights: activations may be rounded before a pooling layer in between.
        is_quantised = operation.input_value(1).get_node().get_type_name() != "Constant"
        assert is_quantised is (operation.get_friendly_name() not in kept), operation.get_friendly_name()
    images = torch.from_numpy(next(iter(calibration.inputs(("images",))))["images"])
    with torch.no_grad():
        wanted = model(images, full_head=True)
    logits, deltas = OpenVinoRuntime(quantised, manifest_of(model)).run(images)
    assert 0 < rms(logits, wanted.logits) < 0.4
    assert 0 < rms(deltas, wanted.deltas) < 0.4
    taps = OpenVinoRuntime(OpenVinoRuntime.tapped(quantised, layers[:3]), manifest_of(model)).run(images)
    assert len(taps) == 3
