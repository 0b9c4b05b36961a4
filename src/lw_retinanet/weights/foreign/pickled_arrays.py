"""Pickles of NumPy arrays, as Detectron and Detectron2 publish their models, read without running anything that they name."""

import io
import math
import pickle
import pickletools
import re
from collections import OrderedDict
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from lw_retinanet.errors import WeightsError

_SCALAR_TYPES = re.compile(r"[biuf](1|2|4|8)|b1")
_OLD_TORCH = 0x1950A86A20F9469CFC6C  # the whole first pickle of a file in torch's older form
_OLD_TORCH_PICKLES = 5  # this number, version, machine, object, names of its tensors
_NUMPY_HOMES = ("numpy.core.multiarray", "numpy._core.multiarray")


class PickledArray:
    """One array of a pickle. NumPy's own state reader never sees what the file says.

    Args:
        values: None until the pickle has given the content.
    """

    __slots__ = ("values",)
    values: NDArray[Any] | None

    def __new__(cls, *_: object) -> Self:
        array = super().__new__(cls)
        array.values = None
        return array

    def __setstate__(self, state: Any) -> None:
        shape, dtype, is_fortran, content = state[-4:]
        self.values = _array(content, dtype, shape, "F" if is_fortran else "C")


class _Dtype:
    __slots__ = ("code", "order")

    def __init__(self, code: object, *_: object) -> None:
        self.code, self.order = str(code), "<"

    def __setstate__(self, state: Any) -> None:
        self.order = str(state[1])

    def resolve(self) -> "np.dtype[Any]":
        if not _SCALAR_TYPES.fullmatch(self.code) or self.order not in ("<", ">", "|", "="):
            raise pickle.UnpicklingError(f"arrays of numbers are expected, not of type {self.code[:20]!r}")
        return np.dtype(self.order.replace("|", "<") + self.code)


# Stand-ins are classes, and not functions, since a pickle could hang values on a function for good.
class _Reconstruct:
    """``numpy.core.multiarray._reconstruct``: an empty array, filled by its state."""

    def __new__(cls, *_: object) -> PickledArray:  # type: ignore[misc]
        return PickledArray()


class _FromBuffer:
    """``numpy.core.numeric._frombuffer``, of pickles of protocol 5."""

    def __new__(cls, content: object, dtype: object, shape: Any, order: object = "C") -> PickledArray:  # type: ignore[misc]
        array = PickledArray()
        array.values = _array(content, dtype, shape, "F" if order == "F" else "C")
        return array


class _Scalar:
    """``numpy.core.multiarray.scalar``."""

    def __new__(cls, dtype: object, content: object = b"") -> Any:
        return _array(content, dtype, (), "C").item()


class _Encode:
    """``_codecs.encode``: how Python 3 writes bytes in protocol 2."""

    def __new__(cls, text: str, encoding: str = "latin1") -> bytes:  # type: ignore[misc]
        if encoding not in ("latin1", "latin-1"):
            raise pickle.UnpicklingError(f"bytes are expected as latin1, not {encoding[:20]!r}")
        return text.encode("latin1")


_STAND_INS: dict[tuple[str, str], type] = {
    **{(home, "_reconstruct"): _Reconstruct for home in _NUMPY_HOMES},
    **{(home, "scalar"): _Scalar for home in _NUMPY_HOMES},
    ("numpy.core.numeric", "_frombuffer"): _FromBuffer,
    ("numpy._core.numeric", "_frombuffer"): _FromBuffer,
    ("numpy", "ndarray"): PickledArray,
    ("numpy", "dtype"): _Dtype,
    ("collections", "OrderedDict"): OrderedDict,
    ("_codecs", "encode"): _Encode,
}


class _Reader(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        try:
            return _STAND_INS[module, name]
        except KeyError:
            raise pickle.UnpicklingError(f"it names {module}.{name}") from None


def read_pickled_arrays(content: bytes, where: str) -> Any:
    """The object of a pickle; its arrays are :class:`PickledArray`, text of Python 2 is read as latin1.

    Raises:
        WeightsError: if it names anything beside arrays of numbers and ordered dicts, or is damaged. Nothing of it is ever run.
    """
    foreign = [name for name in globals_of(content, where) if tuple(name.rsplit(".", 1)) not in _STAND_INS]
    if foreign:
        raise WeightsError(
            f"{where} wants to use {_some(foreign)}, and nothing was run; give a pickle of NumPy arrays or a .safetensors file"
        )
    try:
        return _Reader(io.BytesIO(content), encoding="latin1").load()
    except Exception as error:  # a hostile pickle can call the stand-ins with anything
        reason = str(error).strip().splitlines()[:1] or [type(error).__name__]
        raise WeightsError(f"{where} is a pickle that cannot be read ({reason[0][:200]}); get the file anew") from None


def globals_of(content: bytes, where: str) -> list[str]:
    """Dotted names of all that the pickles one after the other in ``content`` refer to, found by reading and not by running.

    Raises:
        WeightsError: if it is damaged, or made to fill the memory.
    """
    stream = io.BytesIO(content)
    found: dict[str, None] = {}
    try:
        is_old_torch, number = False, 0
        while stream.tell() < len(content):
            names = _Names()
            number += 1
            for opcode, argument, _ in pickletools.genops(stream):
                if "PUT" in opcode.name and isinstance(argument, int) and argument > len(content):
                    # The unpickler would make room for as many.
                    raise ValueError(f"it wants {argument:,} places")
                is_old_torch = is_old_torch or (number == 1 and argument == _OLD_TORCH)
                name = names.see(opcode.name, argument)
                if name is not None:
                    found[name] = None
            # What follows the pickles of torch's older form are the tensors, of which the first may well begin like a pickle.
            if (is_old_torch and number == _OLD_TORCH_PICKLES) or stream.read(1) != b"\x80":
                break
            stream.seek(-1, io.SEEK_CUR)
    except Exception as error:  # pickletools raises whatever the damaged place leads to
        reason = str(error).strip().splitlines()[:1] or [type(error).__name__]
        raise WeightsError(f"{where} is a pickle that cannot be read ({reason[0][:200]}); get the file anew") from None
    return list(found)


class _Names:
    """Follows the texts of a pickle, since newer protocols take a global's module and name from the stack."""

    def __init__(self) -> None:
        self.texts: list[str] = ["", ""]
        self.memo: dict[int, str | None] = {}
        self.last: str | None = None

    def see(self, opcode: str, argument: Any) -> str | None:
        """Take note of an operation; a dotted name if it refers to a global."""
        if opcode in ("GLOBAL", "INST"):
            self.last = None
            return _modern(str(argument).replace(" ", ".", 1))
        if opcode == "STACK_GLOBAL":
            self.last = None
            return _modern(".".join(self.texts[-2:]))
        if opcode == "MEMOIZE":
            self.memo[len(self.memo)] = self.last
        elif "PUT" in opcode:
            self.memo[argument] = self.last
        else:
            self.last = self.memo.get(argument) if "GET" in opcode else argument if isinstance(argument, str) else None
            if self.last is not None:
                self.texts = [self.texts[-1], self.last]
        return None


def _modern(name: str) -> str:
    """The name that a module of Python 2 has in Python 3."""
    module, _, rest = name.partition(".")
    return f"{ {'__builtin__': 'builtins', 'copy_reg': 'copyreg'}.get(module, module) }.{rest}"


def _array(content: Any, dtype: Any, shape: Any, order: Any) -> NDArray[Any]:
    raw = content.encode("latin1") if isinstance(content, str) else content
    if not isinstance(dtype, _Dtype) or not isinstance(raw, bytes | bytearray):
        raise pickle.UnpicklingError("arrays of numbers are expected, not of objects")
    resolved = dtype.resolve()
    sides = tuple(int(side) for side in shape)
    if any(side < 0 for side in sides) or math.prod(sides) * resolved.itemsize != len(raw):
        raise pickle.UnpicklingError(f"an array of shape {str(sides)[:60]} comes with {len(raw):,} bytes")
    return np.frombuffer(raw, resolved).reshape(sides, order=order)


def _some(names: list[str]) -> str:
    return ", ".join(name[:80] for name in names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
