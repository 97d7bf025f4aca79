"""Arrays in the memory of a GPU: how they are described without a copy, and how results of their kind are made.

A library's arrays are known by `__cuda_array_interface__`; nothing of CUDA is imported before one has come.
"""

import sys
from collections.abc import Callable
from functools import cache, lru_cache
from typing import Any, NamedTuple

import numpy as np

from .libraries import bfloat16, detached, of_simulator
from .streams import stream_of, torch_stream

__all__ = [
    "DeviceArray", "Maker", "cuda_module", "dense_strides", "described", "device_of", "maker_of", "overlap",
    "shape_only", "simulated", "uploaded",
]  # fmt: skip

Array = np.ndarray[Any, np.dtype[Any]]


class DeviceArray(NamedTuple):
    """An array in a GPU's memory."""

    array: Array  # its shape, strides and dtype; without memory, never to be read
    address: Any  # of its first element; in Numba's simulator the memory itself
    owner: Any  # whose memory it is
    stream: Any  # the producer's, as its interface names it; None: nobody needs to wait for it
    read_only: bool = False  # its owner forbids to write to it

    @property
    def kind(self) -> str:
        """The name of its dtype."""
        return self.array.dtype.name

    @property
    def first(self) -> int:
        """The address as a number."""
        return self.address if isinstance(self.address, int) else self.address.__array_interface__["data"][0]


@lru_cache(maxsize=4096)
def shape_only(shape: tuple[int, ...], strides: tuple[int, ...] | None, dtype: np.dtype[Any]) -> Array:
    """An array of that shape over the memory of one element, to ask for strides and the like."""
    if 0 in shape:
        return np.empty(shape, dtype)
    if strides is None:
        strides = dense_strides(shape, range(len(shape)), dtype.itemsize)
    return np.lib.stride_tricks.as_strided(np.empty(1, dtype), shape, strides)


def dense_strides(shape: tuple[int, ...], order: Any, itemsize: int) -> tuple[int, ...]:
    """The strides of a dense array whose axes lie in memory in that order, outermost first."""
    strides, step = [0] * len(shape), itemsize
    for axis in reversed(list(order)):
        strides[axis] = step
        step *= shape[axis]
    return tuple(strides)


# ----------------------------------------------------------------------------------------------------------- what came


def simulated(value: Any) -> bool:
    """Whether the value is a device array of Numba's simulator, which has no interface."""
    return of_simulator(type(value))


def described(name: str, value: Any) -> DeviceArray:
    """What came, or a TypeError that names it."""
    if simulated(value):
        array = value._ary
        if type(array) is not np.ndarray:
            raise TypeError(f"{name} must be an array of numbers")
        return DeviceArray(shape_only(array.shape, array.strides, array.dtype), memory_of(array), value, 0)
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(value, torch.Tensor):
        value = _tensor(name, value)
    try:
        interface = value.__cuda_array_interface__
    except AttributeError:
        raise TypeError(
            f"{name} must be a device array as x is, got {type(value).__module__}.{type(value).__qualname__}; copy it "
            "to the device"
        ) from None
    shape, typestr = tuple(interface["shape"]), interface["typestr"]
    dtype = bfloat16(name) if typestr[1:] == "V2" else np.dtype(typestr)
    (address, fixed), strides = interface["data"], interface.get("strides")
    if not dtype.isnative or interface.get("mask") is not None:
        raise TypeError(f"{name} must be of native byte order and without a mask on a GPU, got {typestr}")
    if any(place % dtype.itemsize for place in (address, *(strides or ()))):
        raise ValueError(f"{name} must be aligned to its {dtype.itemsize} bytes an element, got address {address}")
    array = shape_only(shape, strides, dtype)
    return DeviceArray(array, int(address), value, interface.get("stream"), bool(fixed))


def _tensor(name: str, tensor: Any) -> Any:
    """A tensor of torch without its history, or an error that names it: by the rules for tensors in CPU memory."""
    torch = sys.modules["torch"]
    if type(tensor) not in (torch.Tensor, torch.nn.Parameter):  # such have a meaning that would be lost
        kind = f"{type(tensor).__module__}.{type(tensor).__qualname__}"
        raise TypeError(f"{name} must be a torch.Tensor, got {kind}; use its .as_subclass(torch.Tensor)")
    tensor = detached(name, tensor)
    if not tensor.is_cuda:
        raise TypeError(f"{name} must be a device array as x is, got a tensor on {tensor.device}; use its .to(...)")
    if tensor.is_neg():  # its memory has the other sign, which the interface does not tell
        raise TypeError(f"{name} must lie in memory as it is, got a tensor with its negative bit; use .resolve_neg()")
    return tensor


def overlap(one: DeviceArray, other: DeviceArray) -> bool:
    """Whether two arrays may share memory: by the first and last bytes of each."""
    if not one.array.size or not other.array.size:
        return False
    (a, b), (c, d) = _extent(one), _extent(other)
    return a < d and c < b


def _extent(device: DeviceArray) -> tuple[int, int]:
    """The first byte of an array and the one after its last."""
    spans = [(n - 1) * s for n, s in zip(device.array.shape, device.array.strides, strict=True)]
    below, above = sum(min(v, 0) for v in spans), sum(max(v, 0) for v in spans)
    return device.first + below, device.first + above + device.array.itemsize


def memory_of(array: Array) -> Array:
    """All memory from an array's first element to its last as one axis, for the simulator."""
    extent = 1 + sum((n - 1) * s for n, s in zip(array.shape, array.strides, strict=True)) // array.itemsize
    storage = np.dtype(f"u{array.itemsize}") if array.dtype.kind != "i" else array.dtype
    if array.size == 0:
        return np.empty(0, storage)
    return np.lib.stride_tricks.as_strided(array, (extent,), (array.itemsize,)).view(storage)


# ------------------------------------------------------------------------------------------------------ results like it


class Maker(NamedTuple):
    """How to make arrays of the kind of one that came, and where to run kernels on them."""

    empty: Callable[[tuple[int, ...], tuple[int, ...], np.dtype[Any]], Any]  # shape, strides in bytes, dtype
    stream: Any  # what a launch takes


def maker_of(leader: DeviceArray) -> Maker:
    """The maker of results for the call that `leader` came with."""
    cuda = cuda_module()
    torch, cupy = sys.modules.get("torch"), sys.modules.get("cupy")
    owner = leader.owner
    if torch is not None and isinstance(owner, torch.Tensor):

        def torch_empty(shape: tuple[int, ...], strides: tuple[int, ...], dtype: np.dtype[Any]) -> Any:
            steps = [step // dtype.itemsize for step in strides]
            return torch.empty_strided(shape, steps, dtype=getattr(torch, dtype.name), device=owner.device)

        return Maker(torch_empty, stream_of(cuda, torch_stream(owner)))
    if cupy is not None and isinstance(owner, cupy.ndarray):

        def cupy_empty(shape: tuple[int, ...], strides: tuple[int, ...], dtype: np.dtype[Any]) -> Any:
            memory = cupy.empty(int(np.prod(shape)), dtype).data
            return cupy.ndarray(shape, dtype, memory, strides)

        return Maker(cupy_empty, stream_of(cuda, leader.stream))
    own = stream_of(cuda, leader.stream)

    def numba_empty(shape: tuple[int, ...], strides: tuple[int, ...], dtype: np.dtype[Any]) -> Any:
        # with the stream that kernels run on: whoever takes the result has to wait for that one
        return cuda.device_array(shape, dtype=dtype, strides=strides if 0 not in shape else None, stream=own)

    return Maker(numba_empty, own)


@cache
def cuda_module() -> Any:
    """`numba.cuda` of the maintained package, or an ImportError that says how to get it."""
    from numba import config, cuda

    if not config.ENABLE_CUDASIM:
        if getattr(cuda, "implementation", "Built-in") != "NVIDIA":
            raise ImportError(
                "arrays on a GPU need the package numba-cuda: pip install 'numbagn[cuda13]', or 'numbagn[cuda12]' "
                "for drivers of CUDA 12"
            )
        if not cuda.is_available():
            raise RuntimeError(f"arrays on a GPU need a CUDA driver, which numba-cuda did not find: {_why(cuda)}")
    return cuda


def _why(cuda: Any) -> str:
    try:
        cuda.current_context()
    except Exception as fault:
        return " ".join(str(fault).split())[:200]
    return "unknown"


def device_of(owner: Any) -> int | None:
    """The number of the device that an array lies on; None: the current one."""
    torch, cupy = sys.modules.get("torch"), sys.modules.get("cupy")
    if torch is not None and isinstance(owner, torch.Tensor):
        return int(owner.device.index)
    if cupy is not None and isinstance(owner, cupy.ndarray):
        return int(owner.device.id)
    context = getattr(getattr(owner, "gpu_data", None), "context", None)
    return None if context is None else int(context.device.id)


# ---------------------------------------------------------------------------------------------- parameters of the host

# Copies of small arrays of the host (a layer's parameters, lengths) are kept by their bytes, so that a change in place
# is seen: up to 8192 channels in float32. 8 MiB on the card at most, the longest unused go first: those of old weights,
# in training. To look 1.25 KiB up takes 0.5 us, 32 KiB 21 us; what is larger is copied in each call.
MOST_UPLOADED, LARGEST_UPLOADED = 256, 32 << 10


def uploaded(name: str, values: Array, stream: Any) -> DeviceArray:
    """A copy of an array of the host on the current device, made on `stream`; nobody writes to it.

    A stream may not wait for copies that were begun on another; nor may the host, if a copy on its own stream will do.
    """
    cuda = cuda_module()
    values = np.ascontiguousarray(values)
    storage = values.view(np.uint16) if values.dtype.name == "bfloat16" else values
    if values.nbytes <= LARGEST_UPLOADED:
        number = 0 if simulated_target(cuda) else cuda.get_current_device().id
        copy = _kept(storage.tobytes(), storage.dtype, storage.shape, stream, number)
    else:  # of memory of our own: the caller's may be changed before the device has read it, where its pages are locked
        copy = cuda.to_device(storage.copy(), stream=stream)
    device = described(name, copy)
    return device._replace(array=shape_only(values.shape, None, values.dtype))


@lru_cache(maxsize=MOST_UPLOADED)
def _kept(values: bytes, dtype: np.dtype[Any], shape: tuple[int, ...], stream: Any, number: int) -> Any:
    """A copy of these values on the device of that number, which is the current one."""
    return cuda_module().to_device(np.frombuffer(values, dtype).reshape(shape), stream=stream)


def simulated_target(cuda: Any) -> bool:
    from numba import config

    return bool(config.ENABLE_CUDASIM)
