"""A runtime and a backend that are this process's own PyTorch, so that what surrounds them is tested in no time."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from lw_retinanet.data.records import Category
from lw_retinanet.exporting.backend import Backend
from lw_retinanet.exporting.calibration import Calibration
from lw_retinanet.exporting.manifest import ExportPrecision, Manifest, Outputs
from lw_retinanet.heads import PRESETS
from lw_retinanet.models.retinanet import RetinaNet
from lw_retinanet.weights.model_file import make_record

CATEGORIES = (Category(id=7, name="disc"), Category(id="x", name="grün <&>"), Category(id=90, name='"blue"'))


class TorchRuntime:
    """Runs the graph module itself; ``change`` is what an unfaithful runtime would do to each output."""

    path = None

    def __init__(self, graph: nn.Module, change: Callable[[str, Tensor], Tensor] = lambda _, values: values) -> None:
        self.graph, self.change = graph, change
        self.inputs: tuple[str, ...] = tuple(graph.inputs)  # type: ignore[arg-type]
        self.outputs: tuple[str, ...] = tuple(graph.outputs)  # type: ignore[arg-type]

    def __call__(self, *inputs: Tensor) -> tuple[NDArray[Any], ...]:
        with torch.no_grad():
            found = self.graph(*(torch.as_tensor(values) for values in inputs))
        return tuple(self.change(name, values.clone()).numpy() for name, values in zip(self.outputs, found, strict=True))


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


def fake_backend(
    *, change: Callable[[str, Tensor], Tensor] = lambda _, values: values, quantised: list[Sequence[str]] | None = None
) -> Backend:
    """Its network is the graph module; quantising rounds the logits of those layers that are not kept and notes what was kept."""

    def write(network: Any, path: Path, _: bool) -> None:
        path.write_bytes(b"network")
        if path.suffix == ".xml":
            path.with_suffix(".bin").write_bytes(b"weights")

    def quantise(network: nn.Module, calibration: Calibration, _: Path, keep: Sequence[str]) -> nn.Module:
        if quantised is not None:
            quantised.append(tuple(keep))
        return network

    def seal(path: Path, manifest: Manifest) -> Manifest:
        path.write_text(manifest.model_dump_json())
        return manifest

    written: list[nn.Module] = []

    def make(graph: nn.Module) -> nn.Module:
        written.append(graph)
        return graph

    return Backend(
        suffix=".onnx",
        make=make,
        write=write,
        seal=seal,
        open=lambda _path, _precision: TorchRuntime(written[-1], change),  # type: ignore[arg-type, return-value]
        run=lambda network, _precision: TorchRuntime(network, change),  # type: ignore[arg-type, return-value]
        quantise=quantise,
        inputs=lambda network: tuple(network.inputs),
        layers=lambda _: ["backbone.conv1", "head.cls.shared_predict", "head.bbox.shared_predict"],
        tap=lambda network, layers: _Tapped(len(layers)),
        quantiser="json",
    )


class _Tapped(nn.Module):
    """As many outputs as layers."""

    inputs = ("images",)

    def __init__(self, number: int) -> None:
        super().__init__()
        self.outputs = tuple(map(str, range(number)))

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        return tuple(images * (place + 1) for place in range(len(self.outputs)))


def picture(height: int, width: int, seed: int = 0) -> NDArray[np.uint8]:
    """Smooth colours."""
    coarse = torch.rand((1, 3, 5, 6), generator=torch.Generator().manual_seed(seed))
    smooth = nn.functional.interpolate(coarse, size=(height, width), mode="bilinear")[0]
    array: NDArray[np.uint8] = (smooth * 255).to(torch.uint8).permute(1, 2, 0).numpy().copy()
    return array
