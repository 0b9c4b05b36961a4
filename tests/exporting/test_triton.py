"""The configuration of a Triton repository."""

from pathlib import Path

import pytest

from lw_retinanet.errors import OutputError
from lw_retinanet.exporting.triton import TritonRepository, config_text


def test_repository_is_what_triton_expects(triton_folder: Path, onnx_file: Path) -> None:
    onnx = pytest.importorskip("onnx")
    assert sorted(str(path.relative_to(triton_folder)) for path in triton_folder.rglob("*") if path.is_file()) == [
        "1/model.onnx",
        "config.pbtxt",
    ]
    text = (triton_folder / "config.pbtxt").read_text()
    # The batch is Triton's own axis; free axes are -1; a single number has an axis of one.
    assert text == (
        'name: "detector"\n'
        'backend: "onnxruntime"\n'
        "max_batch_size: 8\n"
        "dynamic_batching { }\n"
        "input [\n"
        '  { name: "images", data_type: TYPE_FP32, dims: [ 3, -1, -1 ] },\n'
        '  { name: "sizes_hw", data_type: TYPE_INT64, dims: [ 2 ] }\n'
        "]\n"
        "output [\n"
        '  { name: "boxes", data_type: TYPE_FP32, dims: [ 100, 4 ] },\n'
        '  { name: "scores", data_type: TYPE_FP32, dims: [ 100 ] },\n'
        '  { name: "labels", data_type: TYPE_INT64, dims: [ 100 ] },\n'
        '  { name: "counts", data_type: TYPE_INT64, dims: [ 1 ], reshape { shape: [ ] } }\n'
        "]\n"
    )
    raw = config_text("raw", onnx.load(str(onnx_file)))
    assert '{ name: "logits", data_type: TYPE_FP32, dims: [ -1, 3 ] }' in raw
    assert '{ name: "deltas", data_type: TYPE_FP32, dims: [ -1, 4 ] }' in raw


def test_a_name_that_triton_refuses_is_refused_before_it_does() -> None:
    assert TritonRepository.place(Path("a/my-model.v2")) == Path("a/my-model.v2/1/model.onnx")
    with pytest.raises(OutputError, match="letters, digits"):
        TritonRepository.place(Path("a/my model"))
