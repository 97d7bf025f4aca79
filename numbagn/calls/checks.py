"""All checks of arguments with their error texts, and the canonical view of the arrays that pass them.

Canonical means (N, C, S): samples, channels, positions, in one of two memory layouts the kernels have loops for.
"""

import math
import numbers
import operator
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

from ..arrays.dtypes import Dtype
from ..arrays.families import as_array, float_row, real_row
from ..shapes.geometry import CHANNELS_FIRST
from ..shapes.strides import dense, empty_in, laid_out, spread, steps_in

__all__ = ["Problem", "check_apart", "operand", "output", "parameter", "problem", "reshaped", "statistics"]

ACTIVATIONS = (None, "relu", "silu", "gelu", "gelu_tanh")


class Problem(NamedTuple):
    """What is to be normalized: x, checked, in a memory layout the kernels know."""

    x: np.ndarray
    dtype: Dtype
    shape: tuple[int, ...]
    N: int
    C: int
    G: int
    S: int
    eps: float
    activation: int
    channel_axis: int
    layout: int
    order: tuple[int, ...]  # the spatial axes, outermost in memory first

    @property
    def size(self) -> int:
        """Elements of x."""
        return self.N * self.C * self.S

    @property
    def result(self) -> np.dtype:
        """The dtype of y and dx."""
        return self.x.dtype if self.dtype.result == self.x.dtype.name else np.dtype(self.dtype.result)

    @property
    def parameter_shapes(self) -> tuple[tuple[int, ...], ...]:
        """The shapes a weight or bias may have; the first is that of the gradient of one that is not given."""
        return (self.C,), (self.N, self.C)

    @property
    def statistics_shape(self) -> tuple[int, ...]:
        """The shape of mean and rstd."""
        return self.N, self.G

    @property
    def spatial(self) -> list[int]:
        """The axes of positions."""
        return sorted(self.order)

    def in_order(self, statistic: np.ndarray) -> np.ndarray:
        """A mean or rstd with its axes in the order the kernels walk them."""
        return statistic

    def in_shape(self, values: np.ndarray) -> np.ndarray:
        """A mean or rstd as the kernels leave it, in its own shape."""
        return values.reshape(self.statistics_shape)

    @property
    def groups(self) -> tuple[int, ...] | None:
        """That shape, if the values lie in memory in the order of its axes."""
        return self.statistics_shape

    def steps(self, array: np.ndarray) -> tuple[int, int] | None:
        """Elements from sample to sample and from row to row of `array`; None where its memory is not laid out so."""
        return steps_in(array.shape, array.strides, array.itemsize, self.channel_axis, self.order, self.layout)

    def gapless(self, array: np.ndarray) -> bool:
        """Whether the positions of a sample of `array`, laid out as x, follow each other without gaps."""
        steps = self.steps(array)
        inner, rows = self.rows
        return steps is not None and (rows == 1 or steps[1] == inner)

    @property
    def rows(self) -> tuple[int, int]:
        """Elements of a row, and how many of them a sample has."""
        return (self.S, self.C) if self.layout == CHANNELS_FIRST else (self.C, self.S)

    def like_x(self, array: np.ndarray) -> np.ndarray:
        """`array`, or a copy of it in x's layout where its memory is laid out otherwise or unaligned."""
        if self.steps(array) is not None and array.flags.aligned:
            return array
        copy = self.empty(array.dtype)
        np.copyto(copy, array)
        return copy

    def empty(self, dtype: np.dtype) -> np.ndarray:
        """A new array of x's shape in x's layout."""
        return empty_in(self.shape, dtype, self.channel_axis, self.order, self.layout)


# -------------------------------------------------------------------------------------------------------------- checks


def problem(
    x: Any, num_groups: Any, eps: Any = 0.0, channel_axis: Any = 1, activation: Any = None, name: str = "x"
) -> Problem:
    """Check x and the options; copy x only where no kernel can walk its memory."""
    array = as_array(name, x)
    row = real_row(name, array)
    if array.ndim < 2:
        cure = f"; give a single sample a batch axis: {name}[None]" if array.ndim else ""
        raise ValueError(f"{name} must have at least 2 dimensions (N, C, ...), got shape {array.shape}{cure}")
    axis = channel_axis_of(channel_axis, array.ndim)
    channels = array.shape[axis]
    groups = groups_of(num_groups, channels)
    spatial = tuple(a for a in range(1, array.ndim) if a != axis)
    layout, order, axes = laid_out(array.shape, array.strides, array.itemsize, axis, array.flags.aligned)
    if axes and array.size:
        copy = dense(array.shape, array.dtype, axes)
        np.copyto(copy, array)
        array = copy
    positions = math.prod(array.shape[a] for a in spatial)
    return Problem(
        array, row, array.shape, array.shape[0], channels, groups, positions, epsilon(eps), activation_code(activation),
        axis, layout, order,
    )  # fmt: skip


def shown(value: Any) -> str:
    """What came, for a message: one line, and not all of a large array."""
    try:
        text = " ".join(repr(value).split())
    except Exception:  # an integer of 4301 digits; what cannot show itself
        return f"what cannot be shown, of {type(value).__qualname__}"
    return text if len(text) <= 80 else f"{text[:60]}... ({type(value).__qualname__})"


def integer(name: str, value: Any) -> int:
    """A whole number that is not a bool."""
    if isinstance(value, (bool, np.bool_)):
        raise TypeError(f"{name} must be an integer, got {shown(value)}")
    try:
        return operator.index(value)
    except TypeError:
        raise TypeError(f"{name} must be an integer, got {shown(value)}") from None


def channel_axis_of(channel_axis: Any, ndim: int) -> int:
    """The channel axis counted from the front."""
    axis = integer("channel_axis", channel_axis)
    if not -ndim <= axis < ndim:
        allowed = f"from 1 to {ndim - 1} or negative for {ndim} dimensions"
        raise ValueError(f"channel_axis must be {allowed}, got {shown(axis)}")
    axis %= ndim
    if axis == 0:
        raise ValueError(
            f"channel_axis must not be the batch axis 0, got {channel_axis}; give a single sample a batch axis: x[None]"
        )
    return axis


def groups_of(num_groups: Any, channels: int) -> int:
    """The number of groups, a divisor of the number of channels."""
    groups = integer("num_groups", num_groups)
    if groups < 1 or channels % groups:
        divisors = [g for g in range(1, channels + 1) if channels % g == 0] if channels <= 1 << 16 else []
        allowed = f"one of {', '.join(map(str, divisors))}" if divisors else f"a positive divisor of {shown(channels)}"
        raise ValueError(f"num_groups must divide the {shown(channels)} channels: {allowed}; got {shown(groups)}")
    return groups


def epsilon(eps: Any) -> float:
    """A finite number that is not negative."""
    if isinstance(eps, (bool, np.bool_)) or not isinstance(eps, numbers.Real):
        raise TypeError(f"eps must be a real number, got {shown(eps)}")
    try:
        value = float(eps)
    except OverflowError:  # an int or a fraction beyond any float
        value = math.inf
    if not (math.isfinite(value) and value >= 0.0):
        raise ValueError(f"eps must be finite and not negative, got {shown(eps)}")
    return value


def activation_code(activation: Any) -> int:
    """The number kernels know an activation by; 0 for None."""
    if activation is not None and not isinstance(activation, str):
        raise TypeError(f"activation must be None or a string, got {shown(activation)}")
    if activation not in ACTIVATIONS:
        raise ValueError(f"activation must be one of {', '.join(map(repr, ACTIVATIONS))}, got {shown(activation)}")
    return ACTIVATIONS.index(activation)


def parameter(name: str, value: Any, p: Problem) -> np.ndarray | None:
    """A weight or bias, dense and in the accumulator's dtype."""
    if value is None:
        return None
    array = as_array(name, value)
    float_row(name, array)
    shape_of_parameter(name, array.shape, p)
    with np.errstate(all="ignore"):
        dense = np.require(array, p.dtype.accumulator, ("C", "A"))
    return dense.reshape(-1) if array.shape == p.parameter_shapes[0] else dense


def shape_of_parameter(name: str, shape: tuple[int, ...], p: Problem) -> None:
    """Check the shape of a weight or bias."""
    if shape not in p.parameter_shapes:
        allowed = " or ".join(map(str, p.parameter_shapes))
        raise ValueError(f"{name} must have shape {allowed}, got {shape}{reshaped(shape, p.parameter_shapes[0])}")


def reshaped(shape: tuple[int, ...], wanted: tuple[int, ...]) -> str:
    """The cure for a shape that lacks axes of the one that is wanted, or has more of size 1."""
    axes = [n for n in shape if n != 1]
    same = axes == [n for n in wanted if n != 1] or (len(axes) == 1 and axes[0] == math.prod(wanted))
    return f"; use its .reshape{wanted}" if same else ""


def operand(name: str, value: Any, p: Problem) -> np.ndarray | None:
    """A skip, residual or dy: of x's shape, in x's layout, of x's dtype or else the accumulator's."""
    if value is None:
        return None
    array = as_array(name, value)
    float_row(name, array)
    if array.shape != p.shape:
        sizes = zip(array.shape[::-1], p.shape[::-1], strict=False)
        cure = "; use numpy.broadcast_to" if array.ndim <= len(p.shape) and all(n in (1, m) for n, m in sizes) else ""
        raise ValueError(f"{name} must have x's shape {p.shape}, got {array.shape}{cure}")
    if array.dtype != p.x.dtype:
        with np.errstate(all="ignore"):
            array = array.astype(p.dtype.accumulator, copy=False)
    return p.like_x(array)


def statistics(name: str, value: Any, p: Problem) -> np.ndarray:
    """mean or rstd as float64."""
    array = as_array(name, value)
    float_row(name, array)
    if array.shape != p.statistics_shape:
        cure = reshaped(array.shape, p.statistics_shape)
        raise ValueError(f"{name} must have shape {p.statistics_shape}, got {array.shape}{cure}")
    return np.require(p.in_order(array), np.float64, ("C", "A", "W"))  # writable: the one type kernels are compiled for


def output(value: Any, p: Problem, name: str = "x") -> np.ndarray:
    """Check `out`: what y or dx is to be written to, in either byte order."""
    as_array("out", value)
    array: np.ndarray = value
    if value.dtype.newbyteorder("=") != p.result:
        allowed = f"{name}'s dtype {p.result}" if p.result == p.x.dtype else f"dtype {p.result} for {p.x.dtype} {name}"
        raise TypeError(f"out must have {allowed}, got {value.dtype}")
    if value.shape != p.shape:
        raise ValueError(f"out must have {name}'s shape {p.shape}, got {value.shape}")
    if not value.flags.writeable:
        raise ValueError("out must be writable, got a read-only array")
    check_apart(value)
    return array


def check_apart(out: np.ndarray) -> None:
    """Refuse an `out` of which two elements share memory: it could not hold both."""
    if not _apart(out.shape, out.strides, out.itemsize):
        raise ValueError(
            f"out must have no elements that share memory, got strides {out.strides} for shape {out.shape}; "
            "numpy.empty_like makes such an array"
        )


@lru_cache(maxsize=4096)  # calls with operands ask each time, and it takes 2 us
def _apart(shape: tuple[int, ...], strides: tuple[int, ...], itemsize: int) -> bool:
    size = math.prod(shape)
    if size < 2 or spread(shape, strides, itemsize):
        return True
    steps = [(n, abs(step)) for n, step in zip(shape, strides, strict=True) if n > 1]
    room = itemsize + sum((n - 1) * step for n, step in steps)
    if size * itemsize > room or min(step for _, step in steps) < itemsize:
        return False
    # interleaved in a way that only as_strided makes: element by element
    places = np.zeros(1, np.int64)
    for n, step in steps:
        places = np.add.outer(places, np.arange(n) * step).reshape(-1)
    places.sort()
    return bool(np.diff(places).min() >= itemsize)
