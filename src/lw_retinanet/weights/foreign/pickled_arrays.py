"""Reads pickles of NumPy arrays, the form of Detectron's and Detectron2's models, without running any function that they name."""

import io
import math
import pickle
import pickletools
import re
from collections import OrderedDict
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from lw_retinanet.errors import WeightsError, first_line

_SCALAR_TYPES = re.compile(r"[biuf](1|2|4|8)|b1")
_OLD_TORCH = 0x1950A86A20F9469CFC6C  # the only content of the first pickle of a file of torch before 1.6
_OLD_TORCH_PICKLES = 5  # this number, version, machine, object, keys of its tensors
_NUMPY_HOMES = ("numpy.core.multiarray", "numpy._core.multiarray")


class PickledArray:
    """An array of a pickle, which is checked here before NumPy sees it.

    Args:
        values: The array; None until the pickle has given its content.
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


# Stand-ins are classes instead of functions: a pickle could set attributes of a function, which would outlive the reading.
class _Reconstruct:
    """Stands in for ``numpy.core.multiarray._reconstruct``: an empty array, which its state then fills."""

    def __new__(cls, *_: object) -> PickledArray:  # type: ignore[misc]
        return PickledArray()


class _FromBuffer:
    """Stands in for ``numpy.core.numeric._frombuffer``, which pickles of protocol 5 use."""

    def __new__(cls, content: object, dtype: object, shape: Any, order: object = "C") -> PickledArray:  # type: ignore[misc]
        array = PickledArray()
        array.values = _array(content, dtype, shape, "F" if order == "F" else "C")
        return array


class _Scalar:
    """Stands in for ``numpy.core.multiarray.scalar``."""

    def __new__(cls, dtype: object, content: object = b"") -> Any:
        return _array(content, dtype, (), "C").item()


class _Encode:
    """Stands in for ``_codecs.encode``, with which Python 3 writes bytes in protocol 2."""

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
        """Return the stand-in for a name in the pickle, and refuse every other name."""
        try:
            return _STAND_INS[module, name]
        except KeyError:
            raise pickle.UnpicklingError(f"it names {module}.{name}") from None


def read_pickled_arrays(content: bytes, where: str) -> Any:
    """Return the object of a pickle. Its arrays are :class:`PickledArray`; text of Python 2 is read as latin1.

    Raises:
        WeightsError: If it names anything but arrays of numbers and ordered dicts, or is damaged. No function that it names is run.
    """
    unknown = [name for name in names_in_pickles(content, where) if tuple(name.rsplit(".", 1)) not in _STAND_INS]
    if unknown:
        raise WeightsError(
            f"{where} wants to use {list_names(unknown)}, and nothing was run; give a pickle of NumPy arrays or a .safetensors file"
        )
    try:
        return _Reader(io.BytesIO(content), encoding="latin1").load()
    except Exception as error:  # a hostile pickle can call the stand-ins with anything
        raise WeightsError(f"{where} is a pickle that cannot be read ({first_line(error)[:200]}); get the file anew") from None


def names_in_pickles(content: bytes, where: str) -> list[str]:
    """Return the dotted names of all functions and classes that the consecutive pickles in ``content`` refer to, without running them.

    Raises:
        WeightsError: If the content is damaged, or made to fill the memory.
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
                    # The unpickler would allocate a memo of this size.
                    raise ValueError(f"it wants {argument:,} places")
                is_old_torch = is_old_torch or (number == 1 and argument == _OLD_TORCH)
                name = names.see(opcode.name, argument)
                if name is not None:
                    found[name] = None
            # In files of torch before 1.6 the tensors follow the pickles, and the first of them may begin like a pickle.
            if (is_old_torch and number == _OLD_TORCH_PICKLES) or stream.read(1) != b"\x80":
                break
            stream.seek(-1, io.SEEK_CUR)
    except Exception as error:  # pickletools raises many types for a damaged pickle
        raise WeightsError(f"{where} is a pickle that cannot be read ({first_line(error)[:200]}); get the file anew") from None
    return list(found)


class _Names:
    """Follows the strings of a pickle, since newer protocols take the module and name of a global from the stack."""

    def __init__(self) -> None:
        self.texts: list[str] = ["", ""]
        self.memo: dict[int, str | None] = {}
        self.last: str | None = None

    def see(self, opcode: str, argument: Any) -> str | None:
        """Record an operation, and return the dotted name of the global that it refers to, if it does."""
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
    """The dotted name with the name that its module has in Python 3."""
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


def list_names(names: list[str]) -> str:
    """Return the first names and the number of the others, for messages."""
    return ", ".join(name[:80] for name in names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
