"""A new export target is one class and one row of the table. CONTRIBUTING.md explains this example."""

import zipfile
from pathlib import Path
from typing import Any, Self

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from tests.exporting.fakes import smooth_image
from torch import Tensor

import lw_retinanet as lw
from lw_retinanet.cli.main import _run
from lw_retinanet.devices import Precision
from lw_retinanet.exporting.graph import ExportGraph, RawGraph
from lw_retinanet.exporting.manifest import ExportPrecision, Manifest, opened, sealed
from lw_retinanet.exporting.target import ExportedRuntime
from lw_retinanet.exporting.targets import TARGETS, TargetRow
from lw_retinanet.jobs.export import run_export
from lw_retinanet.weights.model_file import build_network


class NumpyRuntime(ExportedRuntime):
    """Weights in NumPy's ``.npz``, a ZIP archive whose comment holds the manifest. PyTorch runs them in a network built from its record."""

    kind = "numpy"
    suffix = ".npz"

    def __init__(self, network: Any, manifest: Manifest, *, precision: ExportPrecision = "fp32") -> None:
        super().__init__(network, manifest, precision=precision)
        self.graph = network
        if isinstance(network, Path):
            self.graph = RawGraph(build_network(manifest.record).to_empty(device="cpu"))
            with np.load(network) as weights:
                self.graph.load_state_dict({name: torch.from_numpy(weights[name]) for name in self.graph.state_dict()})

    def run(self, *inputs: Tensor) -> tuple[NDArray[Any], ...]:
        with torch.no_grad():
            return tuple(output.numpy() for output in self.graph(*inputs))

    @classmethod
    def make(cls, graph: ExportGraph) -> Any:
        return graph

    @classmethod
    def write(cls, network: Any, path: Path, *, half_weights: bool = False) -> None:
        np.savez(path, **{name: tensor.numpy() for name, tensor in network.state_dict().items()})

    @classmethod
    def seal(cls, path: Path, manifest: Manifest) -> Manifest:
        with zipfile.ZipFile(path, "a") as archive:
            archive.comment = "\n".join(sealed(manifest)).encode()
        return manifest

    @classmethod
    def open(cls, path: Path, *, device: str = "auto", precision: Precision = "fp32") -> Self:
        with zipfile.ZipFile(path) as archive:
            text, checksum = archive.comment.decode().split("\n")
        return cls(path, opened(text, checksum, where=path))


@pytest.fixture
def added(monkeypatch: pytest.MonkeyPatch) -> None:
    """The row that would stand in :mod:`lw_retinanet.exporting.targets`."""
    monkeypatch.setitem(TARGETS, "numpy", TargetRow(__name__, "NumpyRuntime", "a .npz file"))


@pytest.mark.usefixtures("added")
def test_an_added_target_exports_opens_and_answers(model_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "light.npz"
    exported = run_export(model_file, out)  # the suffix names the target
    assert exported.manifest.kind == "numpy"
    assert exported.agreement.missing == 0
    pixels = smooth_image(70, 96)
    (found,), (expected,) = lw.load(out).predict(pixels), lw.load(model_file, device="cpu").predict(pixels)
    assert len(expected) > 5
    np.testing.assert_allclose(found.boxes, expected.boxes, atol=0.01)
    assert found.labels.tolist() == expected.labels.tolist()
    assert _run(["export", str(model_file), "--format", "numyp", "--out", str(out)], False) == 2
    assert "did you mean numpy?" in capsys.readouterr().err


@pytest.mark.usefixtures("added")
def test_what_an_added_target_does_not_have_is_refused(model_file: Path, tmp_path: Path) -> None:
    with pytest.raises(lw.InputError, match=r"format numpy has no bf16; .*: openvino"):
        run_export(model_file, tmp_path / "light.npz", precision="bf16")
