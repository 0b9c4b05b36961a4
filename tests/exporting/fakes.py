"""An export target that is this process's own PyTorch, so that what surrounds it is tested in no time."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from lw_retinanet.data.records import Category
from lw_retinanet.devices import Precision
from lw_retinanet.exporting.end_to_end import EndToEnd
from lw_retinanet.exporting.graph import ExportGraph, RawGraph
from lw_retinanet.exporting.manifest import ExportPrecision, Manifest, Outputs
from lw_retinanet.exporting.target import CalibrationInputs, ExportedRuntime
from lw_retinanet.exporting.triton import TritonRepository
from lw_retinanet.heads import PRESETS
from lw_retinanet.models.retinanet import RetinaNet
from lw_retinanet.weights.model_file import make_record

CATEGORIES = (Category(id=7, name="disc"), Category(id="x", name="grün <&>"), Category(id=90, name='"blue"'))


def manifest_of(model: RetinaNet, *, outputs: Outputs = "raw", precision: ExportPrecision = "fp32") -> Manifest:
    record = make_record(
        model,
        preset="lw-v3",
        backbone="resnet18",
        width=16,
        norm="batch",
        plan=PRESETS["lw-v3"],
        categories=CATEGORIES[: model.num_classes],
        notes={},
    )
    return Manifest(kind="onnx", outputs=outputs, precision=precision, head="only", record=record)


class FakeRuntime(ExportedRuntime):
    """Its networks are the graph modules themselves; ``change`` is what an unfaithful runtime would do to each output."""

    kind = "onnx"
    suffix = ".onnx"
    features = frozenset({"bf16", "int8", "end_to_end", "symmetric"})
    quantiser = "json"
    change: Callable[[str, Tensor], Tensor] = staticmethod(lambda _, values: values)
    quantised: ClassVar[list[Sequence[str]]]
    written: ClassVar[list[Any]]

    def __init__(self, network: Any, manifest: Manifest, *, precision: ExportPrecision = "fp32") -> None:
        super().__init__(network, manifest, precision=precision)
        self.graph = self.written[-1] if isinstance(network, Path) else network
        self.inputs = self.graph.inputs

    def run(self, *inputs: Tensor) -> tuple[NDArray[Any], ...]:
        with torch.no_grad():
            found = self.graph(*(torch.as_tensor(values) for values in inputs))
        return tuple(self.change(name, values.clone()).numpy() for name, values in zip(self.graph.outputs, found, strict=True))

    @classmethod
    def make(cls, graph: ExportGraph) -> Any:
        cls.written.append(graph)
        return graph

    @classmethod
    def quantise(
        cls, network: Any, calibration: CalibrationInputs, *, keep: Sequence[str] = (), scratch: Path, symmetric: bool = False
    ) -> Any:
        cls.quantised.append(tuple(keep))
        return network

    @classmethod
    def layers(cls, network: Any) -> list[str]:
        return ["backbone.conv1", "head.cls.shared_predict", "head.bbox.shared_predict"]

    @classmethod
    def tapped(cls, network: Any, layers: Sequence[str]) -> Any:
        return _Tapped(len(layers))

    @classmethod
    def write(cls, network: Any, path: Path, *, half_weights: bool = False) -> None:
        path.write_bytes(b"network")

    @classmethod
    def seal(cls, path: Path, manifest: Manifest) -> Manifest:
        path.write_text(manifest.model_dump_json())
        return manifest

    @classmethod
    def open(cls, path: Path, *, device: str = "auto", precision: Precision = "fp32") -> Self:
        raise NotImplementedError


class FakeTriton(FakeRuntime):
    """The same in a folder."""

    always_gives_boxes = True
    companions = TritonRepository.companions
    find, place = TritonRepository.find, TritonRepository.place

    @classmethod
    def complete(cls, out: Path, network: Any) -> None:
        (out / "config.pbtxt").write_text("made")


def fake_target(
    change: Callable[[str, Tensor], Tensor] = lambda _, values: values, *, base: type[FakeRuntime] = FakeRuntime, **members: Any
) -> type[FakeRuntime]:
    """A target of its own for each test."""
    return type("Fake", (base,), {"change": staticmethod(change), "quantised": [], "written": [], **members})


def exported_runtime(
    model: RetinaNet,
    change: Callable[[str, Tensor], Tensor] = lambda _, values: values,
    *,
    outputs: Outputs = "raw",
    precision: ExportPrecision = "fp32",
    half_weights: bool = False,
) -> FakeRuntime:
    """A model as an exported network."""
    manifest = manifest_of(model, outputs=outputs, precision=precision).model_copy(update={"half_weights": half_weights})
    return fake_target(change)((RawGraph if outputs == "raw" else EndToEnd)(model), manifest)


class _Tapped(ExportGraph):
    """As many outputs as layers."""

    inputs = ("images",)

    def __init__(self, number: int) -> None:
        super().__init__()
        self.outputs = tuple(map(str, range(number)))  # type: ignore[misc]

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        return tuple(images * (place + 1) for place in range(len(self.outputs)))


def smooth_image(height: int, width: int, seed: int = 0) -> NDArray[np.uint8]:
    """Smooth colours."""
    coarse = torch.rand((1, 3, 5, 6), generator=torch.Generator().manual_seed(seed))
    smooth = nn.functional.interpolate(coarse, size=(height, width), mode="bilinear")[0]
    array: NDArray[np.uint8] = (smooth * 255).to(torch.uint8).permute(1, 2, 0).numpy().copy()
    return array
