"""Files that are damaged, of another kind or hostile: each gives one clear line, and none of their code runs."""

import argparse
import os
import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lw_retinanet.errors import WeightsError
from lw_retinanet.weights.foreign.pickled_arrays import PickledArray, read_pickled_arrays
from lw_retinanet.weights.foreign.weights_file import read_weights_file, unwrap


class Call:
    """Pickles to a call of a function."""

    def __init__(self, function: Callable[..., Any], *arguments: object) -> None:
        self.parts = (function, arguments)

    def __reduce__(self) -> Any:
        return self.parts


def hostile(trace: Path) -> dict[str, Any]:
    import os

    command = f"touch {trace}"
    code = f"open({str(trace)!r}, 'w')"
    return {
        "os.system": Call(os.system, command),
        "builtins.eval": Call(eval, code),
        "builtins.exec": Call(exec, code),
        "pathlib.Path.touch": Call(Path.touch, trace),
        "inside": {"model": {"weight": np.zeros(2, np.float32), "more": [{"deep": Call(os.system, command)}]}},
        "an argument": Call(str, Call(eval, code)),
        "numpy's own reader": Call(np.load, str(trace)),
    }


KINDS = sorted(hostile(Path("x")))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_nothing_in_a_pickle_runs(kind: str, protocol: int, tmp_path: Path) -> None:
    path = tmp_path / "evil.pkl"
    path.write_bytes(pickle.dumps(hostile(tmp_path / "trace")[kind], protocol=protocol))
    refuses(path, "wants to use|it names")
    assert not (tmp_path / "trace").exists()


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "numpy's own reader"])
@pytest.mark.parametrize("is_zip", [True, False])
def test_nothing_in_a_checkpoint_runs(kind: str, is_zip: bool, tmp_path: Path) -> None:
    path = tmp_path / "evil.pth"
    content = {"state_dict": {"weight": torch.zeros(1)}, "more": hostile(tmp_path / "trace")[kind]}
    torch.save(content, path, _use_new_zipfile_serialization=is_zip)
    line = refuses(path, "wants to use|holds more than tensors")
    assert "weights_only" not in line
    assert not (tmp_path / "trace").exists()


def test_the_guard_is_what_stops_it(tmp_path: Path) -> None:
    # The other side of the proof: an ordinary reader does run these.
    pickle.loads(pickle.dumps(hostile(tmp_path / "trace")["builtins.eval"])).close()
    assert (tmp_path / "trace").exists()


def refuses(path: Path, message: str) -> str:
    before = path.read_bytes()
    with pytest.raises(WeightsError, match=message) as caught:
        read_weights_file(path)
    line = str(caught.value)
    assert "\n" not in line
    assert str(path) in line
    assert len(line) < 600
    assert path.read_bytes() == before
    return line


def test_a_hostile_pickle_inside_a_torch_zip(tmp_path: Path) -> None:
    good, evil = tmp_path / "good.pth", tmp_path / "evil.pth"
    torch.save({"weight": torch.zeros(2)}, good)
    with zipfile.ZipFile(good) as source, zipfile.ZipFile(evil, "w") as target:
        for name in source.namelist():
            is_pickle = name.endswith("data.pkl")
            target.writestr(name, pickle.dumps(hostile(tmp_path / "trace")["os.system"], 2) if is_pickle else source.read(name))
    refuses(evil, "wants to use (posix|nt).system, and nothing was run; give a .safetensors")
    assert not (tmp_path / "trace").exists()


def test_usual_company_of_a_checkpoint_is_let_in_as_inert_things(tmp_path: Path) -> None:
    path = tmp_path / "trained.pth"
    content = {
        "state_dict": OrderedDict(weight=torch.arange(3.0)),
        "args": argparse.Namespace(lr=1),
        "score": np.float64(0.5),
        "history": np.arange(3),
        "call": Call(np.load, str(tmp_path / "is not even opened")),
        "epoch": 4,
    }
    torch.save(content, path)
    file = read_weights_file(path)
    assert torch.equal(file.tensors["weight"], torch.arange(3.0))
    assert file.extras["epoch"] == 4
    assert not isinstance(file.extras["args"], argparse.Namespace)
    assert not isinstance(file.extras["history"], np.ndarray)


def test_a_whole_pickled_model_is_refused_by_its_name(tmp_path: Path) -> None:
    torch.save(torch.nn.Linear(2, 2), tmp_path / "model.pt")
    refuses(tmp_path / "model.pt", r"wants to use torch.nn.modules.linear.Linear, and nothing was run; give .*state_dict")


def bad_files() -> dict[str, bytes]:
    import io

    buffer = io.BytesIO()
    torch.save({"weight": torch.zeros(1000)}, buffer)
    whole = buffer.getvalue()
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as target:
        target.writestr("hello.txt", "hello")
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as target:
        target.writestr("archive/data.pkl", b"\0" * 10_000_000)
    arrays = pickle.dumps({"model": {"weight": np.zeros(100, np.float32)}}, protocol=2)
    return {
        "empty": b"",
        "text": b"<!DOCTYPE html><title>not found</title>",
        "cut zip": whole[: len(whole) // 2],
        "cut header": whole[:10],
        "zip that is no checkpoint": archive.getvalue(),
        "zip bomb": packed.getvalue(),
        "cut pickle": arrays[: len(arrays) // 2],
        "safetensors of an absurd header": b"\xff\xff\xff\xff\xff\xff\xff\x7f{" + b" " * 20,
        "cut safetensors": b'\x40\0\0\0\0\0\0\0{"a":',
        "absurd memo": b"\x80\x02]r\xff\xff\xff\x7f.",
        "absurd bytes": b"\x80\x04\x8e\xff\xff\xff\xff\xff\xff\xff\x7fab.",
        "deep": b"\x80\x02" + b"(" * 200_000 + b"t" * 200_000 + b".",
        "a number": pickle.dumps(3, protocol=2),
        "no tensors": pickle.dumps({"a": {"b": 3}}, protocol=2),
        "objects": pickle.dumps({"w": np.array([{}, []], dtype=object)}, protocol=2),
        "texts": pickle.dumps({"w": np.array(["a", "b"])}, protocol=2),
        "old torch, cut": b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.\x80\x02M\xe9\x03.",
    }


@pytest.mark.parametrize("kind", sorted(bad_files()))
def test_a_file_that_holds_no_weights_is_explained_in_one_line(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    path.write_bytes(bad_files()[kind])
    refuses(path, "get the file anew|give ")


def test_a_missing_file_and_a_folder_are_said(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.pth")
    for path, what in (
        (tmp_path / "none.pth", "does not exist"),
        (tmp_path / "pipe.pth", "is no ordinary file"),
    ):
        with pytest.raises(WeightsError, match=f"{what}; give an existing file or torchvision:NAME"):
            read_weights_file(path)
    with pytest.raises(WeightsError, match=r"holds neither model\.safetensors nor pytorch_model\.bin; name the weights file"):
        read_weights_file(tmp_path)


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("dtype", ["<f4", ">f4", "<f2", "<f8", "<i8"])
@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_arrays_come_through_bit_by_bit(protocol: int, dtype: str, order: Any, tmp_path: Path) -> None:
    values = np.array(np.arange(24).reshape(2, 3, 4), dtype=dtype, order=order)
    (tmp_path / "w.pkl").write_bytes(pickle.dumps({"model": OrderedDict(w=values, scalar=np.array(3.0))}, protocol=protocol))
    found = read_weights_file(tmp_path / "w.pkl").tensors
    assert torch.equal(found["w"], torch.from_numpy(np.arange(24).reshape(2, 3, 4).astype(dtype[1:])))
    assert found["scalar"].item() == 3


def test_text_pickled_by_python_2_is_read() -> None:
    # What cPickle of Python 2 writes for {'a': numpy.array([1.0], 'f4')}: bytes as text, modules of old names.
    content = (
        b"\x80\x02}q\x01U\x01acnumpy.core.multiarray\n_reconstruct\nq\x02cnumpy\nndarray\nq\x03K\x00\x85U\x01b\x87Rq\x04(K\x01K\x01\x85"
        b"cnumpy\ndtype\nq\x05U\x02f4K\x00K\x01\x87Rq\x06(K\x03U\x01<NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89U\x04\x00\x00\x80?tbs."
    )
    found = read_pickled_arrays(content, "old.pkl")["a"]
    assert isinstance(found, PickledArray)
    assert found.values is not None
    assert found.values.tolist() == [1.0]


def assert_read_or_refused(content: bytes) -> None:
    line = ""
    try:
        unwrap(read_pickled_arrays(content, "noise"), "noise")
    except WeightsError as error:
        line = str(error)
    assert "\n" not in line


@settings(deadline=None, max_examples=200)
@given(content=st.binary(max_size=80))
def test_any_bytes_are_either_read_or_refused(content: bytes) -> None:
    assert_read_or_refused(b"\x80\x02" + content + b".")


@settings(deadline=None, max_examples=100)
@given(place=st.integers(min_value=2), value=st.integers(min_value=0, max_value=255))
def test_one_wrong_byte_never_escapes(place: int, value: int) -> None:
    content = bytearray(pickle.dumps({"model": {"w": np.zeros(3, np.float32)}}, protocol=2))
    content[2 + place % (len(content) - 2)] = value
    assert_read_or_refused(bytes(content))


def test_tensors_without_their_values_are_refused() -> None:
    with pytest.raises(WeightsError, match=r"claims the shape .* but has fewer values"):
        unwrap({"w": torch.zeros(1).expand(1_000_000_000)}, "f")
    with pytest.raises(WeightsError, match="is not a plain tensor"):
        unwrap({"w": torch.zeros(2, 2).to_sparse()}, "f")
    with pytest.raises(WeightsError, match="is not a plain tensor"):
        unwrap({"w": torch.empty(2, device="meta")}, "f")


@pytest.mark.parametrize("envelope", ["state_dict", "model", "model_state", "blobs"])
def test_envelopes_and_prefixes_come_off(envelope: str) -> None:
    file = unwrap({envelope: {"module.model.a": torch.zeros(1), "module.model.b": torch.ones(1)}, "epoch": 3}, "f")
    assert set(file.tensors) == {"a", "b"}
    assert file.extras["epoch"] == 3
    # A prefix that would make two names one stays.
    assert set(unwrap({"model.a": torch.zeros(1), "a": torch.ones(1)}, "f").tensors) == {"model.a", "a"}


@pytest.mark.parametrize("size", [128, 640, 1152])  # whose numbers begin with 0x80 in the file, as a pickle does
def test_tensors_of_the_older_form_are_not_taken_for_pickles(size: int, tmp_path: Path) -> None:
    path = tmp_path / "old.pth"
    torch.save({"weight": torch.arange(size).float()}, path, _use_new_zipfile_serialization=False)
    assert read_weights_file(path).tensors["weight"].tolist() == list(range(size))
