"""The arguments of a call for arrays on a GPU: checked, laid out for the kernels, put among what kernels are given."""

import contextlib
from typing import Any

import numpy as np

from ...arrays.device import (
    Array,
    DeviceArray,
    Maker,
    cuda_module,
    dense_strides,
    described,
    device_of,
    overlap,
    shape_only,
    simulated,
    uploaded,
)  # fmt: skip
from ...arrays.families import float_row
from ...arrays.streams import Streams
from ...shapes.geometry import CHANNELS_FIRST
from ...shapes.strides import layout_of
from ..checks import Problem, channel_axis_of, check_apart, problem, shape_of_parameter
from ..positions import lengths_of, outermost
from ..rows import ROWS, Rows, normalized, rows, steps_of_rows
from . import grids
from .grids import MOST, lanes_that_fit

__all__ = [
    "Call", "count_of", "current", "dense", "lengths_in", "operand_of", "order_of", "output_of", "parameter_of",
    "problem_of", "statistics_of", "strides_like", "target_of",
]  # fmt: skip


class Call:
    """What the launches of one call share. Left as a context, it lets other streams wait for them."""

    def __init__(self, x: DeviceArray, maker: Maker) -> None:
        self.maker = maker
        self.device = device_of(x.owner)
        self.streams = Streams(cuda_module(), x.owner, maker.stream)
        self.values: dict[str, Any] = {}  # arguments of kernels by name
        self.alive: list[Any] = []  # what kernels work on, until all are launched
        self.made: list[DeviceArray] = []
        self.launches: list[tuple[Any, int, dict[str, Any]]] = []
        self.repeatable = True  # no copies were made, which depend on more than kinds
        # stands for the address of what is not given and not read
        self.nothing: Any = np.zeros(1, np.uint64) if simulated(x.owner) else 0

    def described(self, name: str, value: Any) -> DeviceArray:
        """What came beside x, on the same device: kernels cannot read another's memory."""
        device = described(name, value)
        number = device_of(device.owner)
        if number is not None and self.device is not None and number != self.device:
            raise ValueError(f"{name} must lie on x's device {self.device}, got device {number}")
        self.streams.meet(name, device.owner, device.stream)
        return device

    def __enter__(self) -> "Call":
        return self

    def __exit__(self, *fault: object) -> None:
        self.streams.end()

    def launch(self, kernel: Any, blocks: int, **more: Any) -> None:
        """Run a kernel: its arguments are those of ours that it has names for."""
        if blocks > MOST:
            raise ValueError(f"x must not need more than {MOST} blocks of a GPU, got {blocks}")
        values = self.values | more
        self.launches.append((kernel, blocks, values))
        self.run(kernel, blocks, [values[name] for name in kernel.names])

    def run(self, kernel: Any, blocks: int, arguments: list[Any]) -> None:
        from ...kernels.cuda.target import launch

        self.streams.begin()
        launch(kernel, blocks, self.maker.stream, arguments)

    def scratch(self, size: int, dtype: Any = np.float64) -> DeviceArray:
        """Memory for this call."""
        dtype = np.dtype(dtype)
        return self.empty((max(size, 1),), (dtype.itemsize,), dtype)

    def empty(self, shape: tuple[int, ...], strides: tuple[int, ...], dtype: Any) -> DeviceArray:
        made = described("a result", self.maker.empty(shape, strides, np.dtype(dtype)))
        made = made._replace(array=shape_only(shape, strides, np.dtype(dtype)))
        self.made.append(made)
        return made

    def as_number(self, one: Any) -> Any:
        """An array of one element as one without axes, which in Numba forgets its stream."""
        number = one.reshape(())
        return number.bind(self.maker.stream) if hasattr(number, "bind") else number

    def copy(self, source: DeviceArray, target: DeviceArray) -> None:
        """Copy between two layouts."""
        from ...kernels.cuda.copying import copy

        self.repeatable = False
        shape = source.array.shape
        steps = [tuple(step // a.array.itemsize for step in a.array.strides) for a in (source, target)]
        threads = grids.THREADS
        self.launch(
            copy(source.kind, target.kind, len(shape), threads), -(-source.array.size // threads),
            source=source.address, target=target.address, size=source.array.size, shape=shape, source_strides=steps[0],
            target_strides=steps[1],
        )  # fmt: skip

    def clear(self, target: DeviceArray) -> None:
        """Fill a small array with zeros."""
        zeros = uploaded("zeros", np.zeros(target.array.shape, target.array.dtype), self.maker.stream)
        self.copy(zeros, target)

    def relaid(self, source: DeviceArray, order: Any) -> DeviceArray:
        """A dense copy, its axes in memory in that order."""
        shape, dtype = source.array.shape, source.array.dtype
        dense = self.empty(shape, dense_strides(shape, order, dtype.itemsize), dtype)
        self.copy(source, dense)
        return dense

    def laid_out(self, p: Problem, dtype: Any) -> DeviceArray:
        """New memory for an array of x's shape, laid out as x."""
        return self.empty(p.shape, dense_strides(p.shape, order_of(p), np.dtype(dtype).itemsize), dtype)

    def operand(self, name: str, short: str, device: DeviceArray | None, p: Problem) -> DeviceArray | None:
        """Put an array of x's shape among the arguments, laid out as x; None becomes zeros that nothing reads."""
        if device is not None and (p.steps(device.array) is None or min(device.array.strides, default=0) < 0):
            device = self.relaid(device, order_of(p))
        steps = (0, 0) if device is None else p.steps(device.array)
        assert steps is not None
        self.values |= {
            name: self.nothing if device is None else device.address, f"{short}_n": steps[0], f"{short}_r": steps[1],
        }  # fmt: skip
        self.alive.append(device)
        return device

    def parameter(self, name: str, given: DeviceArray | None, p: Problem) -> str:
        """Put a weight or bias among the arguments; its kind."""
        short = name[0]
        shared = given is not None and given.array.shape == p.parameter_shapes[0]
        self.values |= {
            short: self.nothing if given is None else given.address,
            f"{short}_n": 0 if given is None or shared else p.C,
            f"{short}_c": int(given is not None),
        }
        self.alive.append(given)
        return p.dtype.accumulator.name if given is None else given.kind


def order_of(p: Problem) -> tuple[int, ...]:
    """The axes in x's memory, outermost first."""
    if isinstance(p, Rows):
        return (*p.order, *range(p.channel_axis, len(p.shape)))
    return (0, p.channel_axis, *p.order) if p.layout == CHANNELS_FIRST else (0, *p.order, p.channel_axis)


# --------------------------------------------------------------------------------------------------------------- checks


def problem_of(
    call: Call, x: DeviceArray, num_groups: Any, eps: Any, channel_axis: Any, activation: Any
) -> tuple[Problem, DeviceArray]:
    """The checked problem and x laid out for it: a copy where no kernel can walk its memory."""
    array = x.array
    float_row("x", array)
    negative = min(array.strides, default=0) < 0
    natural = tuple(range(array.ndim))
    if channel_axis is ROWS:
        lead = array.ndim - len(normalized(num_groups))
        dense = array.ndim > lead >= 0 and not negative and _rows_walk(array, lead)
        if not dense and array.size:
            array = shape_only(array.shape, None, array.dtype)
        p: Problem = rows(array, num_groups, eps, ROWS, activation)
    else:
        if array.ndim >= 2:
            axis = channel_axis_of(channel_axis, array.ndim)
            if array.size and (negative or layout_of(array.shape, array.strides, array.itemsize, axis) is None):
                array = shape_only(array.shape, None, array.dtype)
        p = problem(array, num_groups, eps, channel_axis, activation)
    if p.C // p.G * p.S > MOST or p.N * p.C > MOST:
        raise ValueError(f"x must not have more than {MOST} elements a group, or channels, on a GPU, got {p.shape}")
    if array is not x.array and array.size:
        x = call.relaid(x, natural)
    return p, x


def _rows_walk(array: Array, lead: int) -> bool:
    order = tuple(range(lead))
    return steps_of_rows(array.shape, array.strides, array.itemsize, order) is not None


def parameter_of(call: Call, name: str, value: Any, p: Problem) -> DeviceArray | None:
    """A weight or bias on the device, dense; arrays of the host are copied there."""
    if value is None:
        return None
    host = type(value) in (np.ndarray, np.memmap)
    device = None if host else call.described(name, value)
    array = value if device is None else device.array
    float_row(name, array)
    shape_of_parameter(name, array.shape, p)
    if device is None:
        return uploaded(name, value.astype(value.dtype.newbyteorder("="), copy=False), call.maker.stream)
    return dense(call, device)


def dense(call: Call, device: DeviceArray | None) -> DeviceArray | None:
    """The array itself where it is C-contiguous, else a copy."""
    if device is None or device.array.size < 2 or device.array.flags.c_contiguous:
        return device
    return call.relaid(device, range(device.array.ndim))


def operand_of(call: Call, name: str, value: Any, p: Problem) -> DeviceArray | None:
    if value is None:
        return None
    device = call.described(name, value)
    float_row(name, device.array)
    if device.array.shape != p.shape:
        raise ValueError(f"{name} must have x's shape {p.shape}, got {device.array.shape}")
    return device


def statistics_of(call: Call, name: str, value: Any, p: Problem) -> DeviceArray:
    device = call.described(name, value)
    float_row(name, device.array)
    if device.array.shape != p.statistics_shape:
        raise ValueError(f"{name} must have shape {p.statistics_shape}, got {device.array.shape}")
    return device


def lengths_in(call: Call, lengths: Any, mask: Any, p: Problem) -> bool:
    """Put `lengths` among the arguments; whether there are any."""
    call.values |= {"lengths": call.nothing, "inner": 1}
    if mask is not None:
        raise TypeError("mask must be None for arrays on a GPU; lengths are taken there")
    if lengths is None:
        return False
    spatial = [axis for axis in range(1, len(p.shape)) if axis != p.channel_axis]
    if isinstance(p, Rows):
        raise ValueError("lengths must not be given to layer norm, which normalizes each row by itself")
    if isinstance(lengths, (np.ndarray, list, tuple)):
        given = uploaded("lengths", lengths_of(lengths, p, spatial), call.maker.stream)
    else:
        given = call.described("lengths", lengths)
        if given.array.dtype != np.int64:
            raise TypeError(f"lengths must have dtype int64 on a GPU, got {given.array.dtype}")
        if given.array.shape != (p.N,):
            raise ValueError(f"lengths must have shape ({p.N},), got {given.array.shape}")
        if not given.array.flags.c_contiguous:
            raise ValueError(f"lengths must be contiguous on a GPU, got strides {given.array.strides}")
    if not spatial or not outermost(p, spatial[0]):
        raise ValueError("lengths must count along the outermost spatial axis in memory on a GPU")
    call.alive.append(given)
    inner = 1
    for axis in spatial[1:]:
        inner *= p.shape[axis]
    call.values |= {"lengths": given.address, "inner": inner}
    return True


def output_of(call: Call, value: Any, p: Problem) -> DeviceArray:
    device = call.described("out", value)
    if device.array.dtype != p.result:
        raise TypeError(f"out must have x's dtype {p.result}, got {device.array.dtype}")
    if device.array.shape != p.shape:
        raise ValueError(f"out must have x's shape {p.shape}, got {device.array.shape}")
    if device.read_only:
        raise ValueError("out must be writable, got a read-only array")
    check_apart(device.array)
    return device


def target_of(call: Call, out: DeviceArray, p: Problem, same: list[Any], others: list[Any]) -> DeviceArray:
    """Where kernels may write: `out`, or new memory where that is laid out otherwise or in something's way."""

    def meets(other: DeviceArray | None) -> bool:
        return other is not None and overlap(out, other)

    def in_the_way(other: DeviceArray | None) -> bool:
        if other is None or not meets(other):
            return False
        return (other.first, p.steps(other.array), other.kind) != (out.first, p.steps(out.array), out.kind)

    fits = p.steps(out.array) is not None and min(out.array.strides) >= 0
    if fits and not any(map(in_the_way, same)) and not any(map(meets, others)):
        return out
    return call.laid_out(p, out.array.dtype)


def count_of(p: Problem, devices: dict[str, DeviceArray | None], last: bool, lanewise: bool, padded: bool) -> int:
    """Values that a thread can move at once: 16 bytes of x, or one."""
    lanes = 16 // p.x.dtype.itemsize
    row = p.C // p.G if lanewise else p.C if last else p.S
    if padded and not last:
        return 1
    sizes, places = [row], []
    for name, device in devices.items():
        if device is None:
            continue
        if name in ("weight", "bias"):
            if lanewise:
                places.append((device.first, device.array.itemsize))
            continue
        steps = p.steps(device.array)
        assert steps is not None
        sizes += [steps[0] if p.N > 1 else 0, 0 if lanewise else steps[1]]
        places.append((device.first, device.array.itemsize))
    return lanes_that_fit(lanes, tuple(sizes), tuple(places))


def strides_like(x: Array) -> tuple[int, ...]:
    """The strides of a dense array in x's memory order."""
    order = sorted(range(x.ndim), key=lambda axis: -abs(x.strides[axis]))
    return dense_strides(x.shape, order, x.itemsize)


def current(x: DeviceArray) -> Any:
    """The context in which x's device is the current one."""
    number = device_of(x.owner)
    if number is None:
        return contextlib.nullcontext()
    return cuda_module().gpus[number]
