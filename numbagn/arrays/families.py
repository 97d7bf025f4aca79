"""The kinds of array the library takes: how each is recognised and handed to a kernel. No rules about shapes.

One row for each kind. No library is imported to recognise its arrays: before it is loaded there can be none.
"""

import sys
from collections.abc import Callable
from importlib import import_module
from typing import Any, NamedTuple, TypeVar, cast

import numpy as np

from .dtypes import Dtype, dtype_named, dtype_row, supported

__all__ = [
    "as_array", "bfloat16", "detached", "fitting", "flat", "float_row", "hint", "in_kind", "in_memory",
    "may_share_memory", "of_simulator", "real_row", "view",
]  # fmt: skip

Result = TypeVar("Result")


class Family(NamedTuple):
    """One kind of array."""

    library: str  # as in sys.modules
    owns: Callable[[Any, type], bool]  # (the library, the type of a value): whether it is of this kind
    view: Callable[[str, Any], np.ndarray]  # (argument's name, array): the same memory, or a TypeError
    back: Callable[[np.ndarray, Any], Any]  # (result, the array whose kind it is to be of)
    written: Callable[[Any], None] = lambda out: None  # told that a result was written to its memory
    # of an array: the module whose `__all__` names functions of ours that it has for this kind; "": ours take its view
    elsewhere: Callable[[Any], str] = lambda array: ""


def _as_it_is(array: np.ndarray, like: Any) -> np.ndarray:
    return array


# ---------------------------------------------------------------------------------------------------------------- torch


def detached(name: str, tensor: Any) -> Any:
    """The tensor without its history, or a TypeError where gradients would be expected to flow."""
    if not tensor.requires_grad:
        return tensor
    if sys.modules["torch"].is_grad_enabled():
        raise TypeError(
            f"{name} must not require gradients, which do not flow through; use its .detach() or torch.no_grad()"
        )
    return tensor.detach()


def _torch_view(name: str, tensor: Any) -> np.ndarray:
    torch, tensor = sys.modules["torch"], detached(name, tensor)
    half = tensor.dtype is torch.bfloat16
    try:
        # not by DLPack, which forgets a negative bit, and takes twice as long
        array: np.ndarray = (tensor.view(torch.int16) if half else tensor).numpy()
    except (TypeError, RuntimeError) as fault:
        raise TypeError(
            f"{name} must be a dense tensor in CPU memory, got {_of(tensor)} on {tensor.device}: {_line(fault)}"
        ) from None
    return array.view(bfloat16(name)) if half else array


def _torch_back(array: np.ndarray, like: Any) -> Any:
    torch = sys.modules["torch"]
    if array.dtype.name == "bfloat16":
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(array)


def _torch_written(out: Any) -> None:
    """Tell torch's autograd, which then refuses to use what was there before."""
    if not out.is_inference():  # those have no gradients to spoil
        sys.modules["torch"].autograd.graph.increment_version(out)


def bfloat16(name: str) -> np.dtype:
    try:
        return dtype_named("bfloat16")
    except ImportError:
        raise TypeError(f"{name} must not be bfloat16 without ml_dtypes: pip install 'numbagn[bf16]'") from None


# ------------------------------------------------------------------------------------------------------------------ JAX


def _jax_view(name: str, array: Any) -> np.ndarray:
    if name == "out":
        raise TypeError("out must be an array that can be written to, got a jax.Array, which never changes")
    if isinstance(array, sys.modules["jax"].core.Tracer):
        raise TypeError(f"{name} must hold values, got a jax.core.Tracer; inside transformations use jax.pure_callback")
    devices = array.devices()
    if len(devices) > 1 or next(iter(devices)).platform != "cpu":
        raise TypeError(f"{name} must lie in CPU memory, got a jax.Array on {', '.join(map(str, devices))}")
    try:
        return np.asarray(array)  # without a copy, bfloat16 too
    except (TypeError, RuntimeError) as fault:
        raise TypeError(f"{name} must be an array of numbers, got a jax.Array: {_line(fault)}") from None


def _jax_back(array: np.ndarray, like: Any) -> Any:
    """Without a copy where the memory begins at a multiple of 64 bytes, as that of results of 2 MiB and more does.

    float64 (the statistics) stays NumPy's while JAX has no float64: as float32 it would spoil gradients.
    """
    jax = sys.modules["jax"]
    (device,) = like.devices()
    if array.dtype.name == "bfloat16":  # not known to DLPack as NumPy has it
        return jax.device_put(array, device)
    result = sys.modules["jax.numpy"].from_dlpack(array, device=device)
    return result if result.dtype == array.dtype else array


# ---------------------------------------------------------------------------- whatever else keeps to the array standard


def _standard_view(name: str, array: Any) -> np.ndarray:
    try:
        return np.from_dlpack(array)
    except (BufferError, RuntimeError, TypeError, ValueError) as fault:
        raise TypeError(f"{name} must lie in CPU memory, got {_of(array)}: {_line(fault)}") from None


def _standard_back(array: np.ndarray, like: Any) -> Any:
    return like.__array_namespace__().from_dlpack(array)


# ----------------------------------------------------------------------------------------------------------------- dask


def _dask_view(name: str, array: Any) -> np.ndarray:
    raise TypeError(f"{name} must be in memory here, got {_of(array)}; use its .compute()")


# ----------------------------------------------------------------------------------------------------------------- GPUs

DEVICE = "numbagn.calls.gpu.passes"


def _device_view(name: str, array: Any) -> np.ndarray:
    raise TypeError(f"{name} must lie in CPU memory here, got {_of(array)}; copy it there")


def _on_device(kind: type) -> bool:
    taken = hasattr(kind, "__cuda_array_interface__") and not hasattr(kind, "as_subclass")  # no tensors with a meaning
    return taken or of_simulator(kind)


def of_simulator(kind: type) -> bool:
    """Whether it is the type of the device arrays of Numba's simulator, which have no interface."""
    return kind.__name__ == "FakeCUDAArray" and kind.__module__.endswith("simulator.cudadrv.devicearray")


# ----------------------------------------------------------------------------------------------------------------- rows

_FAMILIES = (
    Family(
        "numpy",
        lambda numpy, kind: kind in (numpy.ndarray, numpy.memmap),
        lambda name, array: np.asarray(array),
        _as_it_is,
    ),
    Family(
        "torch",
        lambda torch, kind: kind in (torch.Tensor, torch.nn.Parameter),
        _torch_view,
        _torch_back,
        _torch_written,
        lambda tensor: DEVICE if tensor.is_cuda else "",
    ),
    Family(
        "jax",
        lambda jax, kind: issubclass(kind, (jax.Array, jax.core.Tracer)),
        _jax_view,
        _jax_back,
    ),
    Family(
        "builtins",  # any library; behind JAX, whose arrays on a CPU have the attribute
        lambda builtins, kind: _on_device(kind),
        _device_view,
        _as_it_is,
        elsewhere=lambda array: DEVICE,
    ),
    Family(
        "dask.array",
        lambda array, kind: issubclass(kind, array.Array),
        _dask_view,
        _as_it_is,
        elsewhere=lambda array: "numbagn.interop.dask",
    ),
    Family(
        "numpy",  # where nothing more is needed
        lambda numpy, kind: (
            hasattr(kind, "__dlpack__") and hasattr(kind, "__array_namespace__") and not issubclass(kind, numpy.ndarray)
        ),
        _standard_view,
        _standard_back,
    ),
)
_known: dict[type, Family] = {}


def _family(name: str, value: Any) -> Family:
    """The row of a value's kind, or a TypeError that names it.

    Subclasses are refused since they carry meaning that would be lost (a mask, a unit), but for memory maps.
    """
    kind = type(value)
    row = _known.get(kind)
    if row is None:
        row = next((row for row in _FAMILIES if _owns(row, kind)), None)
        if row is None:
            raise TypeError(f"{name} must be a numpy.ndarray, got {_of(value)}{hint(value)}")
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


def _of(value: Any) -> str:
    return f"{type(value).__module__}.{type(value).__qualname__}"


def _line(fault: Exception) -> str:
    """The first sentence of what a library says."""
    return str(fault).strip().partition("\n")[0]


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


_NO_ARRAYS = frozenset((type(None), bool, int, float, str))


def in_memory(public: str, name: str, value: Any) -> None:
    """Refuse an array that only another module could take, in the name of the public function, which has none there."""
    if type(value) is not np.ndarray and _family(name, value).elsewhere(value):
        cure = "use its .compute()" if hasattr(value, "compute") else "copy it there"
        raise TypeError(f"{name} must be in CPU memory for {public}, got {_of(value)}; {cure}")


def in_kind(
    function: Callable[..., Result], given: Any, *more: Any, lead: str = "x", public: str | None = None
) -> Result:
    """Call function(given, *more) with NumPy's views of the arrays in a named tuple; results are of the kind of one.

    A function that is to take arrays of all kinds begins with::

        if type(x) is not ndarray or (out is not None and type(out) is not ndarray):
            return in_kind(this_function, given)

    and then has a plain `x` and `out`; `as_array` takes the others in any kind. Only results that are plain arrays, or
    tuples of them, are turned into others, of the kind of the argument `lead`. `public`: what users call the function,
    where that is not its name.
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
