"""Exported files through ``lw_retinanet.load``: the same answers as the model, and clear words where they cannot answer."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.exporting.fakes import CATEGORIES, smooth_image

import lw_retinanet as lw
from lw_retinanet.cli.main import _run
from lw_retinanet.conventions import Conventions
from lw_retinanet.detection.detector import Detector
from lw_retinanet.detection.precision import choose_precision
from lw_retinanet.detection.result import Result
from lw_retinanet.errors import ConfigError, InputError, OutputError, WeightsError
from lw_retinanet.exporting.graph import IMAGES, ExportGraph
from lw_retinanet.exporting.opening import manifest_of
from lw_retinanet.exporting.target import ExportedRuntime
from lw_retinanet.structures import Predictions

SIZES = ((70, 96), (96, 41), (200, 120))  # three padded shapes, none of them traced


def require_same(found: list[Result], expected: list[Result], *, box: float) -> None:
    for one, other in zip(found, expected, strict=True):
        assert len(other) > 5
        assert one.labels.tolist() == other.labels.tolist()
        np.testing.assert_allclose(one.scores, other.scores, atol=1e-4)
        np.testing.assert_allclose(one.boxes, other.boxes, atol=box)
        assert one.names == other.names
        assert one.file == other.file


def pictures_on_disk(folder: Path) -> list[Path]:
    from PIL import Image

    paths = []
    for number, (height, width) in enumerate(SIZES):
        paths.append(folder / f"{number}.png")
        Image.fromarray(smooth_image(height, width, seed=number)).save(paths[-1])
    return paths


@pytest.mark.parametrize("kind", ["onnx_file", "openvino_file", "triton_folder"])
def test_every_kind_answers_as_the_model(request: pytest.FixtureRequest, kind: str, model_file: Path, tmp_path: Path) -> None:
    exported = lw.load(request.getfixturevalue(kind))
    head: Any = "full" if kind == "openvino_file" else "light"
    original = lw.load(model_file, device="cpu").with_head(head)
    manifest = manifest_of(exported)
    assert manifest is not None
    assert manifest.head == head
    assert exported.categories == CATEGORIES
    assert exported.conventions == original.conventions
    paths = pictures_on_disk(tmp_path)
    require_same(exported.predict(paths), original.predict(paths), box=0.01)
    require_same(exported.predict(paths, score=0.16, batch_size=3), original.predict(paths, score=0.16), box=0.01)
    assert [result.to_dict()["detections"][0]["category_id"] for result in exported.predict(paths)] == [
        result.to_dict()["detections"][0]["category_id"] for result in original.predict(paths)
    ]


def test_light_and_full_answers_differ(onnx_file: Path, openvino_file: Path) -> None:
    light, full = lw.load(onnx_file).predict(smooth_image(*SIZES[0]))[0], lw.load(openvino_file).predict(smooth_image(*SIZES[0]))[0]
    assert not (len(light) == len(full) and np.allclose(light.scores, full.scores, atol=1e-3))


def test_a_file_with_one_head_refuses_the_other(onnx_file: Path) -> None:
    exported = lw.load(onnx_file)
    assert exported.with_head("light").head == "light"
    assert not exported.switchable
    with pytest.raises(InputError, match=r"light\.onnx holds one head only, so there is no full head to switch to"):
        exported.with_head("full")
    with pytest.raises(ConfigError, match="did you mean light"):
        exported.with_head("lihgt")


def with_threshold(conventions: Conventions, threshold: float) -> Conventions:
    return conventions.model_copy(update={"output": conventions.output.model_copy(update={"score_threshold": threshold})})


def test_a_built_in_threshold_cannot_be_lowered_but_raised(triton_folder: Path) -> None:
    exported = lw.load(triton_folder)
    image = smooth_image(*SIZES[0])
    with pytest.raises(InputError, match=r"score 0\.01 is below the 0\.05 that is built into detector"):
        exported.predict(image, score=0.01)
    everything = exported.predict(image)[0]
    middle = float(np.median(everything.scores))
    some = exported.predict(image, score=middle)[0]
    assert len(some) == int((everything.scores > middle).sum())
    strict, lax = (with_threshold(exported.conventions, threshold) for threshold in (middle, 0.01))
    assert len(exported.with_conventions(strict).predict(image)[0]) == len(some)
    for call in (lambda: exported.with_conventions(strict).predict(image, score=0.01), lambda: exported.with_conventions(lax)):
        with pytest.raises(InputError, match=r"below the 0\.05 that is built into"):
            call()
    with pytest.raises(InputError, match="gives boxes, not logits"):
        exported.network(torch.zeros((1, 3, 64, 64)))


def test_built_in_rules_of_nms_are_said_and_not_ignored(triton_folder: Path, onnx_file: Path, sample: Path) -> None:
    built_in, raw = lw.load(triton_folder), lw.load(onnx_file)
    for name, value in (("max_detections", 300), ("nms_iou", 0.9)):
        changed = built_in.conventions.model_copy(update={"output": built_in.conventions.output.model_copy(update={name: value})})
        with pytest.raises(InputError, match=rf"{name} {value} is not the \S+ that is built into detector; export raw outputs"):
            built_in.with_conventions(changed)
        raw.with_conventions(changed)
    with pytest.raises(InputError, match=r"max_detections 300 is not the 100 .* export raw outputs"):
        lw.evaluate(triton_folder, sample, max_detections=300)
    assert lw.evaluate(onnx_file, sample, max_detections=300).max_detections == (1, 10, 300)


def test_batches_of_many_shapes_stay_right_when_the_cache_of_networks_is_full(openvino_file: Path, model_file: Path) -> None:
    from lw_retinanet.exporting.openvino import OpenVinoRuntime

    runtime = OpenVinoRuntime(openvino_file, max_compiled=1)
    network = lw.load(model_file, device="cpu").model
    for shape in ((1, 3, 32, 64), (2, 3, 64, 32), (3, 3, 96, 96), (1, 3, 32, 64)):
        images = torch.randn(shape)
        with torch.no_grad():
            expected: Predictions = network(images, full_head=True)
        for found, wanted in zip(runtime.run(images), expected, strict=True):
            np.testing.assert_allclose(found, wanted.numpy(), atol=1e-4)
    assert len(runtime._compiled) == 2  # one of a shape, one for the rest


def test_threads_do_not_mix_their_answers(openvino_file: Path, onnx_file: Path) -> None:
    from concurrent.futures import ThreadPoolExecutor

    images = [smooth_image(96, 96, seed=number) for number in range(4)]
    for path in (openvino_file, onnx_file):
        exported = lw.load(path)
        alone = [exported.predict(image)[0].scores for image in images]
        with ThreadPoolExecutor(4) as pool:
            together = list(pool.map(lambda image: exported.predict(image)[0].scores, images * 3))  # noqa: B023  (ends with the turn)
        assert all(np.array_equal(one, other) for one, other in zip(together, alone * 3, strict=True))


def test_what_needs_weights_says_so(onnx_file: Path, model_file: Path) -> None:
    from lw_retinanet.weights.model_file import load_model

    with pytest.raises(InputError, match="holds no weights to change or train; give the model file"):
        lw.lighten(lw.load(onnx_file), "lw-v3")
    with pytest.raises(WeightsError, match=r"was exported and holds no weights"):
        load_model(onnx_file)
    assert not hasattr(lw.load(onnx_file), "no_such_thing")
    assert isinstance(lw.load(model_file), Detector)


def test_what_a_runtime_cannot_do_is_refused(onnx_file: Path, openvino_file: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="computes in the precision that it was exported in; use fp32"):
        lw.load(onnx_file, precision="bf16")
    with pytest.raises(InputError, match=r"fp16 is for inference on GPUs .*; use the precision fp32 or auto$"):
        lw.load(openvino_file, precision="fp16")
    with pytest.raises(InputError, match="runs on the CPU only"):
        lw.load(openvino_file, device="cuda")
    with pytest.raises(InputError, match="leave compile out"):
        lw.load(openvino_file, compile=True)
    with pytest.raises(WeightsError, match=r"absent\.onnx does not exist"):
        lw.load(tmp_path / "absent.onnx")
    assert lw.load(openvino_file, precision="bf16").chosen_precision == "bf16"
    assert lw.load(openvino_file).chosen_precision == "fp32"
    assert lw.load(onnx_file, precision="auto").chosen_precision == "fp32"


def test_a_size_that_cannot_be_run_is_named(onnx_file: Path, openvino_file: Path) -> None:
    for path in (onnx_file, openvino_file):
        exported = lw.load(path)
        assert isinstance(exported.runtime, ExportedRuntime)
        with pytest.raises(InputError, match=r"cannot run an input of \(1, 4, 64, 64\)"):
            exported.runtime.run(torch.zeros((1, 4, 64, 64)))


def test_altered_onnx_files_are_noticed(onnx_file: Path, tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    content = onnx_file.read_bytes()

    def refused(changed: bytes, message: str) -> None:
        path = tmp_path / "changed.onnx"
        path.write_bytes(changed)
        with pytest.raises(WeightsError, match=message):
            lw.load(path)

    refused(content[: len(content) // 2], "cannot read ONNX file")
    refused(b"not a model", "cannot read ONNX file")
    refused(content.replace(b'"disc"', b'"disk"'), "metadata of .* was altered")
    model = onnx.load_model_from_string(content)
    del model.metadata_props[:]
    refused(model.SerializeToString(), "was not exported by this program, or lost its metadata")
    model = onnx.load_model_from_string(content)
    largest = max(model.graph.initializer, key=lambda tensor: len(tensor.raw_data))
    values = onnx.numpy_helper.to_array(largest).copy()
    values.flat[0] += 1
    largest.CopyFrom(onnx.numpy_helper.from_array(values, largest.name))
    refused(model.SerializeToString(), "not the one that was exported with this metadata")


def test_altered_openvino_files_are_noticed(openvino_file: Path, tmp_path: Path) -> None:
    text, weights = openvino_file.read_text(), openvino_file.with_suffix(".bin").read_bytes()

    def refused(xml: str, content: bytes | None, message: str) -> None:
        path = tmp_path / "changed.xml"
        path.write_text(xml)
        path.with_suffix(".bin").unlink(missing_ok=True)
        if content is not None:
            path.with_suffix(".bin").write_bytes(content)
        with pytest.raises(WeightsError, match=message):
            lw.load(path)

    refused(text, None, r"no weights beside it \(changed\.bin\)")
    refused(text, weights[:-4] + b"\0\0\1\0", "not the one that was exported")
    refused(text.replace('auto_pad="explicit"', 'auto_pad="valid"', 1), weights, "not the one that was exported")
    refused(text.replace("&quot;disc&quot;", "&quot;disk&quot;"), weights, "was altered")
    refused("<net/>", weights, "was not exported by this program")
    refused("\0", weights, "was not exported by this program")


def test_running_files_needs_no_training_code() -> None:
    code = (
        "import sys\nfrom lw_retinanet.exporting.targets import target_classes\ntarget_classes()\nimport lw_retinanet.exporting.opening\n"
        "wrong = ('lw_retinanet.training', 'lw_retinanet.lightening', 'onnx', 'openvino', 'nncf')\n"
        "print([name for name in sys.modules if name.startswith(wrong)])"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.splitlines()[-1] == "[]"


def test_sizes_beyond_the_compiled_ones_share_a_request(openvino_file: Path) -> None:
    from lw_retinanet.exporting.openvino import OpenVinoRuntime

    runtime = OpenVinoRuntime(openvino_file, max_compiled=1)
    for side in (64, 96, 128, 160):
        logits, _ = runtime.run(torch.zeros(1, 3, side, 64))
        assert logits.shape[1] % 9 == 0
    assert len(runtime._requests.by_shape) == 2  # each holds on to its tensors


def test_a_file_of_the_full_head_answers_without_being_asked_for_it(
    openvino_file: Path, onnx_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = pictures_on_disk(tmp_path)[0]
    for file in (openvino_file, onnx_file):
        assert _run(["predict", str(file), str(path), "--json", "--score", "0.1"], False) == 0
    assert _run(["predict", str(openvino_file), str(path), "--head", "light"], False) == 2
    assert "holds the full head only" in capsys.readouterr().err


@pytest.mark.parametrize("device", ["gpu", "mps"])
def test_other_devices_are_refused(onnx_file: Path, device: str) -> None:
    with pytest.raises(InputError, match=r"cpu, cuda|cpu or cuda"):
        lw.load(onnx_file, device=device)


def test_what_is_not_quantised_has_a_precision(openvino_file: Path) -> None:
    from lw_retinanet.exporting.openvino import OpenVinoRuntime

    assert OpenVinoRuntime(openvino_file).precision == "fp32"
    expected = choose_precision("auto", torch.device("cpu"), "inference")
    assert OpenVinoRuntime(openvino_file, precision="int8").precision == expected


def test_a_place_that_openvino_cannot_write_to_is_named(openvino_file: Path, tmp_path: Path) -> None:
    from lw_retinanet.exporting.openvino import OpenVinoRuntime

    network = OpenVinoRuntime(openvino_file).model
    (tmp_path / "in the way").touch()
    with pytest.raises(OutputError, match="in the way cannot be written to"):
        OpenVinoRuntime.write(network, tmp_path / "in the way" / "small.xml")


class _SumAfterGroupNorm(ExportGraph):
    """What a block of a backbone with group norm ends with."""

    inputs = (IMAGES,)
    outputs = ("sum",)

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = torch.nn.Conv2d(3, 3, 3, padding=1), torch.nn.GroupNorm(1, 3)

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor]:
        return (self.norm(self.conv(images)) + images,)


def test_openvino_adds_to_a_group_norm(openvino_file: Path) -> None:
    """Compiling that for one shape ends the process with a segmentation fault."""
    from lw_retinanet.exporting.openvino import OpenVinoRuntime

    torch.manual_seed(0)
    graph = _SumAfterGroupNorm().eval()
    runtime = OpenVinoRuntime(OpenVinoRuntime.make(graph), manifest_of(lw.load(openvino_file)))
    for shape in ((1, 3, 32, 64), (2, 3, 64, 32)):
        images = torch.randn(shape)
        with torch.no_grad():
            np.testing.assert_allclose(runtime.run(images)[0], graph(images)[0].numpy(), atol=1e-5)
    assert set(runtime._compiled) == {None}
