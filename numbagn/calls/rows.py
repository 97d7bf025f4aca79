"""Layer norm as a problem of the group norm kernels: each row of x, its last dimensions, is a sample of one group."""

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np

from ..arrays.families import as_array, float_row
from ..shapes.geometry import CHANNELS_FIRST
from ..shapes.strides import merged
from .checks import Problem, activation_code, epsilon, integer, shown

__all__ = ["ROWS", "normalized", "rows"]


class _Rows:
    """The type of `ROWS`."""


# Stands for the channel axis where the number of groups is a normalized shape instead: layer norm of rows.
ROWS = _Rows()


class Rows(Problem):
    """x (*rows, *normalized): N rows of C elements, each an own channel of one position.

    The `order` of a problem is that of the leading axes here, outermost in memory first, and `channel_axis` the first
    axis of a row.
    """

    __slots__ = ()

    @property
    def parameter_shapes(self) -> tuple[tuple[int, ...], ...]:
        return (self.shape[self.channel_axis :],)

    @property
    def statistics_shape(self) -> tuple[int, ...]:
        return self.shape[: self.channel_axis]

    def steps(self, array: np.ndarray) -> tuple[int, int] | None:
        return steps_of_rows(array.shape, array.strides, array.itemsize, self.order)

    def empty(self, dtype: np.dtype) -> np.ndarray:
        axes = (*self.order, *range(self.channel_axis, len(self.shape)))
        return np.empty([self.shape[a] for a in axes], dtype).transpose(np.argsort(axes))

    def in_order(self, statistic: np.ndarray) -> np.ndarray:
        return statistic if self.order == tuple(range(len(self.order))) else statistic.transpose(self.order)

    @property
    def groups(self) -> tuple[int, ...] | None:
        return self.statistics_shape if self.order == tuple(range(len(self.order))) else None

    def in_shape(self, values: np.ndarray) -> np.ndarray:
        in_order = values.reshape([self.shape[a] for a in self.order])
        return in_order.transpose(np.argsort(self.order)) if self.order else in_order


@lru_cache(maxsize=4096)
def steps_of_rows(
    shape: tuple[int, ...], strides: tuple[int, ...], itemsize: int, order: tuple[int, ...]
) -> tuple[int, int] | None:
    """(step from row to row in elements, 1), if rows are dense and evenly spaced in the order of leading axes given."""
    if any(stride % itemsize for stride in strides):
        return None
    row = merged(shape, strides, tuple(range(len(order), len(shape))))
    between = merged(shape, strides, order)
    if row is None or between is None or (row[0] > 1 and row[1] != itemsize):
        return None
    return between[1] // itemsize, 1


def normalized(normalized_shape: Any) -> tuple[int, ...]:
    """Check a normalized shape: an int or several, as a tuple."""
    several = isinstance(normalized_shape, Sequence) and not isinstance(normalized_shape, (str, bytes))
    sizes = tuple(integer("normalized_shape", n) for n in (normalized_shape if several else (normalized_shape,)))
    if not sizes or min(sizes) < 0:
        raise ValueError(f"normalized_shape must be one or more sizes, none negative, got {shown(normalized_shape)}")
    return sizes


def rows(x: Any, normalized_shape: Any, eps: Any = 0.0, channel_axis: Any = ROWS, activation: Any = None) -> Rows:
    """Check x and the options, as `problem` does; copy x only where rows are not dense or not evenly spaced."""
    array = as_array("x", x)
    row = float_row("x", array)
    sizes = normalized(normalized_shape)
    lead = array.ndim - len(sizes)
    if lead < 0 or array.shape[lead:] != sizes:
        raise ValueError(f"x must have normalized_shape {sizes} as its last dimensions, got shape {array.shape}")
    order = tuple(sorted(range(lead), key=lambda axis: -abs(array.strides[axis])))
    aligned = array.flags.aligned and steps_of_rows(array.shape, array.strides, array.itemsize, order) is not None
    if not aligned and array.size:
        array, order = array.copy("C"), tuple(range(lead))
    return Rows(
        array, row, array.shape, math.prod(array.shape[:lead]), math.prod(sizes), 1, 1, epsilon(eps),
        activation_code(activation), lead, CHANNELS_FIRST, order,
    )  # fmt: skip
