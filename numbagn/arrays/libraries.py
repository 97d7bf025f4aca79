"""The libraries whose arrays are taken: how each array is recognised, seen by NumPy, and made of a result.

One row for each kind of array. No library is imported to recognise its arrays: before it is loaded there can be none.
"""

import sys
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from .dtypes import dtype_named

__all__ = ["DEVICE", "FAMILIES", "Family", "bfloat16", "detached", "of_simulator", "type_of"]


class Family(NamedTuple):
    """One kind of array."""

    library: str  # as in sys.modules
    owns: Callable[[Any, type], bool]  # (the library, the type of a value): whether it is of this kind
    view: Callable[[str, Any], np.ndarray]  # (argument's name, array): the same memory, or a TypeError
    back: Callable[[np.ndarray, Any], Any]  # (result, the array whose kind it is to be of)
    written: Callable[[Any], None] = lambda out: None  # told that a result was written to its memory
    # where an array cannot be viewed: the module with functions of its own for it, those in its `__all__`; else ""
    elsewhere: Callable[[Any], str] = lambda array: ""


def type_of(value: Any) -> str:
    return f"{type(value).__module__}.{type(value).__qualname__}"


def _line(fault: Exception) -> str:
    """The first sentence of what a library says."""
    return str(fault).strip().partition("\n")[0]


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
            f"{name} must be a dense tensor in CPU memory, got {type_of(tensor)} on {tensor.device}: {_line(fault)}"
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
        raise TypeError(f"{name} must lie in CPU memory, got {type_of(array)}: {_line(fault)}") from None


def _standard_back(array: np.ndarray, like: Any) -> Any:
    return like.__array_namespace__().from_dlpack(array)


# ----------------------------------------------------------------------------------------------------------------- dask


def _dask_view(name: str, array: Any) -> np.ndarray:
    raise TypeError(f"{name} must be in memory here, got {type_of(array)}; use its .compute()")


# ----------------------------------------------------------------------------------------------------------------- GPUs

DEVICE = "numbagn.calls.gpu.passes"


def _device_view(name: str, array: Any) -> np.ndarray:
    raise TypeError(f"{name} must lie in CPU memory here, got {type_of(array)}; copy it there")


def _on_device(kind: type) -> bool:
    # subclasses of torch.Tensor may carry a meaning that would be lost
    taken = hasattr(kind, "__cuda_array_interface__") and not hasattr(kind, "as_subclass")
    return taken or of_simulator(kind)


def of_simulator(kind: type) -> bool:
    """Whether it is the type of the device arrays of Numba's simulator, which have no interface."""
    return kind.__name__ == "FakeCUDAArray" and kind.__module__.endswith("simulator.cudadrv.devicearray")


# ----------------------------------------------------------------------------------------------------------------- rows

FAMILIES = (
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
    Family("jax", lambda jax, kind: issubclass(kind, (jax.Array, jax.core.Tracer)), _jax_view, _jax_back),
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
