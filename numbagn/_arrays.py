"""The kinds of array the library takes: how each is recognised and handed to a kernel. No rules about shapes."""

from typing import Any

import numpy as np

from ._dtypes import Dtype, dtype_row, supported

__all__ = ["as_array", "flat", "float_row", "real_row"]


def as_array(name: str, value: Any) -> np.ndarray:
    """`value` as a plain NumPy array of native byte order, or a TypeError that names it.

    Subclasses are refused since they carry meaning that would be lost (a mask, a unit), but for memory maps.
    """
    kind = type(value)
    if kind is not np.ndarray and kind is not np.memmap:
        hint = ""
        if isinstance(value, np.ma.MaskedArray):
            hint = "; use its .filled(...) or its .data"
        elif hasattr(value, "__array__") or isinstance(value, (list, tuple)):
            hint = "; convert it with numpy.asarray"
        raise TypeError(f"{name} must be a numpy.ndarray, got {kind.__module__}.{kind.__qualname__}{hint}")
    array: np.ndarray = np.asarray(value)
    return array if array.dtype.isnative else array.astype(array.dtype.newbyteorder("="))


def float_row(name: str, array: np.ndarray) -> Dtype:
    """The row of the array's dtype, one of the floats', or a TypeError that names it."""
    return real_row(name, array, integers=False)


def real_row(name: str, array: np.ndarray, integers: bool = True) -> Dtype:
    """The row of the array's dtype, or a TypeError that names it."""
    row = dtype_row(array.dtype, integers)
    if row is None:
        hint = "; convert it with .astype" if array.dtype.kind in "iub" else ""
        raise TypeError(f"{name} must have dtype {supported(integers)}, got {array.dtype}{hint}")
    return row


class _Memory:
    """The start of an array's memory, offered as a writable array of one element that keeps the array alive."""

    def __init__(self, array: np.ndarray, storage: np.dtype):
        self.array = array
        self.__array_interface__ = {
            "shape": (1,),
            "typestr": storage.str,
            "data": (array.__array_interface__["data"][0], False),
            "version": 3,
        }


def flat(array: np.ndarray, storage: np.dtype) -> np.ndarray:
    """A one-dimensional array of dtype `storage` that begins where `array` does, for a kernel that knows the strides.

    Always of the one type kernels are compiled for, also where `array` is read-only, strided or transposed; so its
    length may be shorter than what the kernel reads. `array` must be aligned and not empty.
    """
    if array.flags.c_contiguous and array.flags.writeable:
        line = array.reshape(-1)
        return line if line.dtype == storage else line.view(storage)
    return np.asarray(_Memory(array, storage))
