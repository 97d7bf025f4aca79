"""Memory of a call on a GPU while it is planned, and what kernels are given of it."""

from collections.abc import Iterable
from typing import NamedTuple

from ...arrays.device import Array, DeviceArray, dense_strides, overlap
from ...kernels.cuda.operands import Operand, Parameter, Strided
from ...shapes.geometry import CHANNELS_FIRST
from ..checks import Problem
from ..rows import Rows
from .grids import lanes_that_fit

__all__ = [
    "Buffer", "Way", "count_of", "fits", "in_the_way", "operand_of", "order_of", "parameter_of", "strided",
    "strides_like",
]  # fmt: skip


class Buffer(NamedTuple):
    """An argument, or what the call makes: that is aligned, and apart from all others."""

    name: str
    array: Array  # its shape, strides and dtype
    came: DeviceArray | None = None  # the argument

    @property
    def first(self) -> int:
        """Its address, as far as that matters."""
        return 0 if self.came is None else self.came.first

    @property
    def kind(self) -> str:
        """The name of its dtype."""
        return str(self.array.dtype.name)

    @property
    def shape(self) -> tuple[int, ...]:
        shape: tuple[int, ...] = self.array.shape
        return shape


# ---------------------------------------------------------------------------------------------------------- for kernels


def operand_of(buffer: Buffer | None, p: Problem) -> Operand | None:
    """An array laid out as x."""
    return None if buffer is None else Operand(buffer.name, *_steps(buffer, p))


def parameter_of(buffer: Buffer | None, p: Problem) -> Parameter:
    """A weight or bias."""
    if buffer is None:
        return Parameter(0, 0, 0)
    return Parameter(buffer.name, 0 if buffer.shape == p.parameter_shapes[0] else p.C, 1)


def strided(buffer: Buffer) -> Strided:
    """An array of any layout."""
    return Strided(buffer.name, tuple(step // buffer.array.itemsize for step in buffer.array.strides))


# -------------------------------------------------------------------------------------------------------------- layouts


def order_of(p: Problem) -> tuple[int, ...]:
    """The axes in x's memory, outermost first."""
    if isinstance(p, Rows):
        return (*p.order, *range(p.channel_axis, len(p.shape)))
    return (0, p.channel_axis, *p.order) if p.layout == CHANNELS_FIRST else (0, *p.order, p.channel_axis)


def strides_like(x: Array) -> tuple[int, ...]:
    """The strides of a dense array in x's memory order."""
    order = sorted(range(x.ndim), key=lambda axis: -abs(x.strides[axis]))
    return dense_strides(x.shape, order, x.itemsize)


def fits(buffer: Buffer, p: Problem) -> bool:
    """Whether kernels can walk over it as over x."""
    return p.steps(buffer.array) is not None and min(buffer.array.strides, default=0) >= 0


def in_the_way(other: Buffer | None, out: Buffer, p: Problem, same: bool) -> bool:
    """Whether kernels that read `other` may not write to `out`; of the same layout, each element is read first."""
    if other is None or other.came is None or out.came is None or not overlap(out.came, other.came):
        return False
    return not same or (other.first, p.steps(other.array), other.kind) != (out.first, p.steps(out.array), out.kind)


class Way(NamedTuple):
    """How a thread walks over arrays."""

    last: bool  # along channels, channels last
    lanewise: bool  # along channels of one position each
    padded: bool  # where positions may be invalid


def count_of(p: Problem, way: Way, arrays: Iterable[Buffer | None], parameters: Iterable[Buffer | None] = ()) -> int:
    """Values that a thread can move at once: 16 bytes of x, or one."""
    if way.padded and not way.last:
        return 1
    walked = [buffer for buffer in arrays if buffer is not None]
    sizes = [p.C // p.G if way.lanewise else p.C if way.last else p.S]
    for buffer in walked:
        n, r = _steps(buffer, p)
        sizes += [n if p.N > 1 else 0, 0 if way.lanewise else r]
    if way.lanewise:
        walked += [buffer for buffer in parameters if buffer is not None]
    places = tuple((buffer.first, buffer.array.itemsize) for buffer in walked)
    return lanes_that_fit(16 // p.x.dtype.itemsize, tuple(sizes), places)


def _steps(buffer: Buffer, p: Problem) -> tuple[int, int]:
    steps = p.steps(buffer.array)
    assert steps is not None
    return steps
