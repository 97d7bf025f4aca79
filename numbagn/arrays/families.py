"""Arrays of all kinds seen as NumPy arrays, and results given back in the kind that came. No rules about shapes."""

import sys
from collections.abc import Callable
from importlib import import_module
from typing import Any, TypeVar, cast

import numpy as np

from .dtypes import Dtype, dtype_row, supported
from .libraries import DEVICE, FAMILIES, Family, type_of

__all__ = ["as_array", "fitting", "flat", "float_row", "hint", "in_kind", "in_memory"]
__all__ += ["may_share_memory", "real_row", "view"]

Result = TypeVar("Result")

_known: dict[type, Family] = {}


def _family(name: str, value: Any) -> Family:
    """The row of a value's kind, or a TypeError that names it.

    Subclasses are refused since they carry meaning that would be lost (a mask, a unit), but for memory maps.
    """
    kind = type(value)
    row = _known.get(kind)
    if row is None:
        row = next((row for row in FAMILIES if _owns(row, kind)), None)
        if row is None:
            raise TypeError(f"{name} must be a numpy.ndarray, got {type_of(value)}{hint(value)}")
        _known[kind] = row
    return row


def _owns(row: Family, kind: type) -> bool:
    library = sys.modules.get(row.library)
    try:
        return library is not None and row.owns(library, kind)
    except AttributeError:  # another thread is importing it
        return False


def hint(value: Any) -> str:
    """What to do with a value that is not taken."""
    if isinstance(value, np.ma.MaskedArray):
        return "; use its .filled(...) or its .data"
    if type(value).__module__.partition(".")[0] == "xarray":
        return "; give its .data, and keep its labels with .copy(data=...)"
    if hasattr(value, "compute"):
        return "; use its .compute()"
    if hasattr(value, "to_numpy"):  # data frames and their columns
        return "; use its .to_numpy()"
    if hasattr(value, "as_subclass"):
        return "; use its .as_subclass(torch.Tensor)"
    if hasattr(value, "__array__") or isinstance(value, (list, tuple)):
        return "; convert it with numpy.asarray"
    return ""


# ---------------------------------------------------------------------------------------------------------- in and out


def view(name: str, value: Any) -> np.ndarray:
    """The memory of an array of any kind as a plain NumPy array, or a TypeError that names it."""
    return value if type(value) is np.ndarray else _family(name, value).view(name, value)


def may_share_memory(name: str, value: Any, other_name: str, other: Any) -> bool:
    """Whether two arrays of any kinds may share memory."""
    there, other_there = (_family(n, v).elsewhere(v) == DEVICE for n, v in ((name, value), (other_name, other)))
    if there and other_there:
        from .device import described, overlap

        return overlap(described(name, value), described(other_name, other))
    if there or other_there:
        return False
    return np.may_share_memory(view(name, value), view(other_name, other))


def as_array(name: str, value: Any) -> np.ndarray:
    """`value` as a plain NumPy array of native byte order, or a TypeError that names it."""
    array = view(name, value)
    return array if array.dtype.isnative else array.astype(array.dtype.newbyteorder("="))


# What most arguments are that are no arrays: not asked for anything.
_NO_ARRAYS = frozenset((type(None), bool, int, float, str))


def in_memory(public: str, name: str, value: Any) -> None:
    """Refuse an array that only another module could take, in the name of the public function, which has none there."""
    if type(value) is not np.ndarray and _family(name, value).elsewhere(value):
        cure = "use its .compute()" if hasattr(value, "compute") else "copy it there"
        raise TypeError(f"{name} must be in CPU memory for {public}, got {type_of(value)}; {cure}")


def in_kind(
    function: Callable[..., Result], given: Any, *more: Any, lead: str = "x", public: str | None = None
) -> Result:
    """Call function(given, *more) with NumPy's views of the arrays in a named tuple; results are of the kind of one.

    A function that is to take arrays of all kinds begins with::

        if type(x) is not ndarray or (out is not None and type(out) is not ndarray):
            return in_kind(this_function, given)

    and then has a plain `x` and `out`; `as_array` takes the others in any kind. Only results that are plain arrays, or
    tuples of them, are turned into others, of the kind of the argument `lead`. Where arrays of that kind are worked on
    by another module (`Family.elsewhere`), its function of the same name is called instead, with the arguments as they
    are. `public`: what users call the function, where that is not its name.
    """
    leader, out = getattr(given, lead), getattr(given, "out", None)
    row = _family(lead, leader)
    elsewhere = row.elsewhere(leader)
    if elsewhere:
        module = import_module(elsewhere)
        name = function.__name__.lstrip("_")
        if name not in module.__all__:
            in_memory(public or name, lead, leader)
        own: Callable[..., Result] = getattr(module, name)
        family = None if out is None else _family("out", out)
        made = own(given, *more)
        if family is not None:
            family.written(out)
        return made
    views = {id(leader): row.view(lead, leader)}  # by identity: an `out` that is x is still x
    if out is not None:
        target = views[id(out)] = view("out", out)
    for name, value in zip(given._fields, given, strict=True):
        if id(value) not in views and type(value) not in _NO_ARRAYS and hasattr(value, "__dlpack__"):
            views[id(value)] = view(name, value)
    result: Any = function(given._make(views.get(id(value), value) for value in given), *more)
    if out is not None:
        _family("out", out).written(out)

    def back(value: Any) -> Any:
        if out is not None and value is target:
            return out
        return row.back(value, leader) if type(value) is np.ndarray else value

    return cast(Result, tuple([back(value) for value in result]) if type(result) is tuple else back(result))


def float_row(name: str, array: np.ndarray) -> Dtype:
    """The row of the array's dtype, one of the floats', or a TypeError that names it."""
    return real_row(name, array, integers=False)


def real_row(name: str, array: np.ndarray, integers: bool = True) -> Dtype:
    """The row of the array's dtype, or a TypeError that names it."""
    row = dtype_row(array.dtype, integers)
    if row is None:
        cure = "; convert it with .astype" if array.dtype.kind in "iubf" else ""
        raise TypeError(f"{name} must have dtype {supported(integers)}, got {array.dtype}{cure}")
    return row


def fitting(name: str, values: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """A copy in another float dtype, or a ValueError that names a finite value which would be infinite there."""
    with np.errstate(all="ignore"):
        result = values.astype(dtype)
    lost = np.isfinite(values) & ~np.isfinite(result)
    if lost.any():
        raise ValueError(f"{name} must have values that fit into {dtype}, got {values[lost][0]}; take a wider dtype")
    return result


class _Memory:
    """The start of an array's memory, offered as a writable array of one element that keeps the array alive."""

    def __init__(self, array: np.ndarray, storage: np.dtype):
        self.array = array
        place = array.__array_interface__["data"][0], False  # not read-only
        self.__array_interface__ = {"shape": (1,), "typestr": storage.str, "data": place, "version": 3}


def flat(array: np.ndarray, storage: np.dtype) -> np.ndarray:
    """A one-dimensional array of dtype `storage` that begins where `array` does, for a kernel that knows the strides.

    Always of the one type kernels are compiled for, also where `array` is read-only, strided or transposed; so its
    length may be shorter than what the kernel reads. `array` must be aligned and not empty.
    """
    if array.flags.c_contiguous and array.flags.writeable:
        line = array.reshape(-1)
        return line if line.dtype == storage else line.view(storage)
    return np.asarray(_Memory(array, storage))
