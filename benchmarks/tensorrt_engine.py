"""Build TensorRT engines from exported ONNX files, compare each with its file, and time them. NOT RUN YET: no NVIDIA GPU was at hand.

    pip install 'lw-retinanet[onnx]' tensorrt
    lw-retinanet export MODEL --format onnx --out light.onnx
    lw-retinanet export MODEL --format onnx --precision int8 --symmetric --calibrate DATA --out light-int8.onnx
    python benchmarks/tensorrt_engine.py light.onnx light-int8.onnx [--fp16] [--size 800] [--batch 1 8 32] [--out FOLDER] [--json]

Files with raw outputs (logits and deltas). A file with int8 inside is built as it is; ``--fp16`` is for the others. Written for TensorRT 10
and 11; the latter takes its precisions from the file, which ``--fp16`` has NVIDIA's ModelOpt convert first.
The answers come first: the relative error of logits and deltas against ONNX Runtime on the CPU must be within the limits of
``lw-retinanet export`` (in fp32 ten times that), else the engine is not timed and the exit code is 1. Exit code 2: something is missing,
and a line says what.
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lw_retinanet.benchmarking.machine import machine
from lw_retinanet.counting.rounds import summary, take_turns
from lw_retinanet.errors import LwRetinaNetError
from lw_retinanet.exporting.agreement import FP32_TOLERANCE, RMS_LIMITS
from lw_retinanet.exporting.graph import RawGraph
from lw_retinanet.exporting.onnx import OnnxRuntime

MAJORS = (10, 11)
WORKSPACE_BYTES = 8 << 30


class RefusedError(Exception):
    """What this cannot go on without, and where to get it."""


class Engine:
    """A network in TensorRT: (N, 3, H, W) float32 on the GPU -> logits and deltas there.

    Args:
        trt: the package.
        content: serialised engine.
        name: for tables.
    """

    def __init__(self, trt: Any, content: Any, name: str) -> None:
        self.name = name
        engine = trt.Runtime(trt.Logger(trt.Logger.WARNING)).deserialize_cuda_engine(content)
        if engine is None:
            raise RefusedError(f"TensorRT cannot load the engine of {name} on this GPU")
        self.engine, self.context = engine, engine.create_execution_context()
        self.outputs = [name for name in map(engine.get_tensor_name, range(engine.num_io_tensors)) if name != "images"]
        self.kinds = {trt.float32: torch.float32, trt.float16: torch.float16}
        self.stream = torch.cuda.Stream()

    def __call__(self, images: Tensor) -> list[Tensor]:
        self.context.set_input_shape("images", tuple(images.shape))
        self.context.set_tensor_address("images", images.data_ptr())
        found = []
        for name in self.outputs:
            kind = self.kinds[self.engine.get_tensor_dtype(name)]
            found.append(torch.empty(tuple(self.context.get_tensor_shape(name)), dtype=kind, device=images.device))
            self.context.set_tensor_address(name, found[-1].data_ptr())
        self.stream.wait_stream(torch.cuda.current_stream())
        if not self.context.execute_async_v3(self.stream.cuda_stream):
            raise RuntimeError(f"TensorRT failed to run {self.name} on an input of {tuple(images.shape)}")
        torch.cuda.current_stream().wait_stream(self.stream)
        return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", type=Path, nargs="+")
    parser.add_argument("--fp16", action="store_true")
    parser.add_argument("--size", type=int, default=800, help="side of the input")
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--rounds", type=int, default=50)
    parser.add_argument("--out", type=Path, help="folder for the engines, NAME.engine")
    parser.add_argument("--json", action="store_true", help="print one JSON object only")
    a = parser.parse_args()
    try:
        trt = tensorrt()
        engines, parity = {}, {}
        for path in a.files:
            runtime = OnnxRuntime(path)
            manifest = runtime.manifest
            if manifest.outputs != "raw":
                raise RefusedError(f"{path} gives boxes; export it without --end-to-end")
            precision = "int8" if manifest.precision == "int8" else "fp16" if a.fp16 else "fp32"
            name = f"{path.stem} {precision}"
            content = built(trt, path, fp16=precision == "fp16", size=a.size, most=max(a.batch))
            engines[name] = Engine(trt, content, name)
            parity[name] = differences(engines[name], runtime, a.size)
            limit = FP32_TOLERANCE * 10 if precision == "fp32" else RMS_LIMITS["bf16" if precision == "fp16" else "int8"]
            if not max(parity[name]) <= limit:
                print(f"error: {name} differs from its file: relative errors {parity[name]}, allowed {limit}; not timed", file=sys.stderr)
                return 1
            if a.out is not None:
                a.out.mkdir(parents=True, exist_ok=True)
                (a.out / f"{path.stem}-{precision}.engine").write_bytes(bytes(content))
    except (RefusedError, LwRetinaNetError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    rows = [row for batch in a.batch for row in timed(engines, batch, a.size, a.rounds)]
    result = {
        "what": "network only, TensorRT",
        "machine": {**machine(torch.device("cuda")), "tensorrt": trt.__version__},
        "input": [a.size, a.size],
        "rounds": a.rounds,
        "relative_error_of_logits_and_deltas": parity,
        "rows": rows,
    }
    if a.json:
        print(json.dumps(result))
        return 0
    for row in rows:
        times = row["latency_ms"]
        print(
            f"{row['engine']:32} batch {row['batch']:3}: {times['median']:8.2f} ms ({times['low']:.2f} to {times['high']:.2f}), "
            f"{row['images_per_second']:8.0f} images/s"
        )
    return 0


def tensorrt() -> Any:
    """The package, where it, a GPU and a version that this was written for are there."""
    try:
        import tensorrt as trt
    except ImportError:
        raise RefusedError("this needs TensorRT; install it with: pip install tensorrt") from None
    if int(trt.__version__.split(".")[0]) not in MAJORS:
        known = " and ".join(map(str, MAJORS))
        raise RefusedError(f"this was written for TensorRT {known}, and {trt.__version__} is installed; their interfaces differ")
    if not torch.cuda.is_available():
        raise RefusedError("TensorRT needs an NVIDIA GPU, and torch sees none")
    return trt


def built(trt: Any, path: Path, *, fp16: bool, size: int, most: int) -> Any:
    """A serialised engine for 1 to ``most`` images of one size."""
    builder = trt.Builder(trt.Logger(trt.Logger.WARNING))
    is_weak = fp16 and int(trt.__version__.split(".")[0]) == 10  # version 11 has no such flags, and no networks that need them
    strong = getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
    network = builder.create_network(0 if is_weak or strong is None else 1 << int(strong))
    parser = trt.OnnxParser(network, trt.Logger(trt.Logger.WARNING))
    content = path.read_bytes() if is_weak or not fp16 else in_half(path)
    if not parser.parse(content):
        reasons = "; ".join(str(parser.get_error(place)) for place in range(parser.num_errors))
        raise RefusedError(f"TensorRT cannot read {path}: {reasons[:300]}")
    config = builder.create_builder_config()
    config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, WORKSPACE_BYTES)
    config.clear_flag(trt.BuilderFlag.TF32)  # on by default, and another precision than fp32
    if is_weak:
        config.set_flag(trt.BuilderFlag.FP16)
    profile = builder.create_optimization_profile()
    profile.set_shape("images", *[(batch, 3, size, size) for batch in (1, most, most)])
    config.add_optimization_profile(profile)
    engine = builder.build_serialized_network(network, config)
    if engine is None:
        raise RefusedError(f"TensorRT cannot build an engine of {path}; its log above says why")
    return engine


def in_half(path: Path) -> bytes:
    """The network in fp16 but for its input and outputs."""
    try:
        import onnx
        from modelopt.onnx import autocast
    except ImportError:
        raise RefusedError("--fp16 with TensorRT 11 needs ModelOpt; install it with: pip install 'nvidia-modelopt[onnx]'") from None
    with tempfile.TemporaryDirectory() as scratch:
        copied = Path(scratch) / "network.onnx"
        onnx.save(autocast.convert_to_mixed_precision(onnx_path=str(path), low_precision_type="fp16", keep_io_types=True), str(copied))
        return copied.read_bytes()


def differences(engine: Engine, runtime: OnnxRuntime, size: int) -> list[float]:
    """Root of the mean squared difference over the standard deviation, of logits and of deltas."""
    coarse = torch.randn(1, 3, size // 24, size // 24, generator=torch.Generator().manual_seed(1))
    images = torch.nn.functional.interpolate(coarse, size=(size, size), mode="bilinear")
    wanted = dict(zip(RawGraph.outputs, map(torch.from_numpy, runtime.run(images)), strict=True))
    found = dict(zip(engine.outputs, engine(images.cuda()), strict=True))
    return [
        float((found[name].float().cpu() - values).square().mean().sqrt() / values.std().clamp(min=1e-6)) for name, values in wanted.items()
    ]


def timed(engines: dict[str, Engine], batch: int, size: int, rounds: int) -> list[dict[str, Any]]:
    images = torch.randn(batch, 3, size, size, device="cuda")

    def call(engine: Engine) -> Callable[[int], object]:
        return lambda _: engine(images)

    calls = {name: call(engine) for name, engine in engines.items()}
    times = take_turns(calls, rounds=rounds, warm_up=10, wait=torch.cuda.synchronize)
    rows = []
    for name, values in times.items():
        latency = summary(values)
        rows.append({"engine": name, "batch": batch, "latency_ms": latency, "images_per_second": 1e3 * batch / latency["median"]})
    return rows


if __name__ == "__main__":
    sys.exit(main())
