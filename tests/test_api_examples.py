"""Every public function has an example in its docstring, and the example works."""

import doctest
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from types import FunctionType
from typing import Any

import pytest

import lw_retinanet as lw
from lw_retinanet.data.sample import make_sample

FUNCTIONS = [name for name in lw.__all__ if isinstance(getattr(lw, name), FunctionType)]
# The files that the examples take for granted.
TINY: dict[str, dict[str, Any]] = {
    "model": {"backbone": "mobilenet_v2", "head_width": 16},
    "data": {"image_size": 64, "workers": 0},
    "train": {"steps": 2, "batch_size": 2, "precision": "fp32"},
}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with ``my_data`` and a run ``runs/mine`` with a full head that was trained on it."""
    folder = tmp_path_factory.mktemp("examples")
    make_sample(folder / "my_data", num_train=8, num_val=24, size=64)
    lw.train(folder / "my_data", model="retinanet", config=TINY, out=folder / "runs" / "mine", device="cpu")
    yield folder
    shutil.rmtree(folder)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_example(name: str, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)
    for package in ("openvino", "nncf", "onnx", "onnxscript", "onnxruntime") if name == "ship" else ():
        monkeypatch.setitem(sys.modules, package, None)  # calibrating and compiling take most of a minute
    function = getattr(lw, name)
    examples = doctest.DocTestFinder(recurse=False).find(function, name, globs={})
    assert sum(len(test.examples) for test in examples) > 1, f"{name} has no example in its docstring"
    report: list[str] = []
    for test in examples:
        doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE).run(test, out=report.append)
    assert not report, "".join(report)
