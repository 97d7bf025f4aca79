"""Samples of which only some positions are valid: `lengths` and `mask`, checked.

With `lengths` each sample is a problem of its own size, so its bits are those of the sample alone. With `mask` all
positions are read and what is not valid is left out of every sum.
"""

import math
from typing import Any, NamedTuple

import numpy as np

from ..arrays.families import hint, view
from ..shapes.geometry import CHANNELS_FIRST, FEW_POSITIONS
from ..shapes.strides import laid_out
from .checks import Problem, reshaped, shown
from .rows import Rows

__all__ = ["Valid", "lengths_of", "outermost", "valid_positions"]

Array = np.ndarray[Any, np.dtype[Any]]

# What may cure an x without positions.
ONE_CHANNEL = "; give sequences of one channel an axis for it: x[:, None]"


class Valid(NamedTuple):
    """What is valid of x: the first positions of an axis, or those of a mask."""

    lengths: Array | None  # (N,)
    mask: Array | None  # of bool, of x's shape but for one channel
    axis: int = 0  # whose first positions `lengths` counts
    most: int = 0  # its size if it is the outermost of the positions in memory, else 0
    apart: tuple[int, ...] = ()  # samples that are no problem of the batch's kernel, but calls of their own

    @property
    def positions(self) -> Array:
        """What a plan is run with: the mask, or the lengths, 0 for samples apart."""
        if self.lengths is None:
            assert self.mask is not None
            return self.mask
        lengths = self.lengths.copy()
        lengths[list(self.apart)] = 0
        return lengths


def valid_positions(lengths: Any, mask: Any, p: Problem, x: Array) -> Valid:
    """Check `lengths` and `mask`; at least one of them is given. p.x is `x` or a copy of it."""
    if isinstance(p, Rows):
        name = "mask" if lengths is None else "lengths"
        raise ValueError(f"{name} must not be given to layer norm, which normalizes each row by itself")
    n, spatial = None if lengths is None else lengths_of(lengths, p), p.spatial
    flags = None if mask is None else _mask(mask, p)
    if n is not None and flags is not None:
        along = np.arange(p.shape[spatial[0]]) < n[:, None]
        shape = [p.N if a == 0 else p.shape[a] if a == spatial[0] else 1 for a in range(len(p.shape))]
        flags = flags & along.reshape(shape)
    if n is None or flags is not None:
        return Valid(None, flags)
    axis, counts = spatial[0], n * math.prod(p.shape[axis] for axis in spatial[1:])
    first = outermost(p, axis)
    # alone, channels with few positions have no gaps, and what has one position has loops of its own
    few = min(FEW_POSITIONS if p.layout == CHANNELS_FIRST else 2, p.S)
    apart = tuple(
        i
        for i in range(p.N)
        if counts[i] == 1
        or (p.C > 1 and 0 < counts[i] < few)
        or (counts[i] and not (first and _laid_out_alone(p, x, int(n[i]))))
    )
    return Valid(n, None, axis, p.shape[axis] if first else 0, apart)


def outermost(p: Problem, axis: int) -> bool:
    """Whether the axis is the outermost in memory of those that have more than one position."""
    return next((a == axis for a in p.order if p.shape[a] > 1), True)


def _laid_out_alone(p: Problem, x: Array, length: int) -> bool:
    """Whether the first positions of a sample of x have by themselves the layout that the batch has in p.

    Where p.x is a copy they may have another, and so other parts of sums: other bits.
    """
    if p.x is x:
        return True
    axis = p.spatial[0]
    shape = tuple(1 if a == 0 else length if a == axis else size for a, size in enumerate(p.shape))
    layout, order, _ = laid_out(shape, x.strides, x.itemsize, p.channel_axis, x.flags.aligned)
    return layout == p.layout and [a for a in order if shape[a] > 1] == [a for a in p.order if shape[a] > 1]


def lengths_of(lengths: Any, p: Problem) -> Array:
    """Check `lengths`: they count along the first axis of positions."""
    if not p.spatial:
        raise ValueError(f"lengths must not be given where x has no positions, got x of shape {p.shape}{ONE_CHANNEL}")
    axis = p.spatial[0]
    most = p.shape[axis]
    if not isinstance(lengths, np.ndarray) and hasattr(lengths, "__dlpack__"):
        lengths = view("lengths", lengths)
    if not isinstance(lengths, (np.ndarray, list, tuple)) or isinstance(lengths, np.ma.MaskedArray):
        raise TypeError(f"lengths must be an array or a list of {p.N} integers, got {shown(lengths)}{hint(lengths)}")
    try:
        values = np.asarray(lengths)
    except ValueError:  # rows of different lengths
        values = np.empty((), object)
    if values.size == 0 and isinstance(lengths, (list, tuple)):
        values = values.astype(np.int64)
    if values.dtype.kind not in "iu":
        cure = "; use numpy.asarray(...).astype(int)" if values.dtype.kind in "bf" else ""
        raise TypeError(f"lengths must be an array or a list of {p.N} integers, got {shown(lengths)}{cure}")
    if values.shape != (p.N,):
        raise ValueError(f"lengths must have shape ({p.N},), got {values.shape}{reshaped(values.shape, (p.N,))}")
    wrong = values[(values < 0) | (values > most)]
    if wrong.size:
        raise ValueError(f"lengths must be from 0 to {most}, the size of axis {axis}; got {wrong[0]}")
    return values.astype(np.int64)


def _mask(mask: Any, p: Problem) -> Array:
    if not isinstance(mask, np.ndarray) and hasattr(mask, "__dlpack__"):
        mask = view("mask", mask)
    if not isinstance(mask, np.ndarray) or isinstance(mask, np.ma.MaskedArray):
        raise TypeError(f"mask must be a numpy.ndarray of bool, got {shown(mask)}{hint(mask)}")
    if mask.dtype != np.bool_:
        cure = "; use its .astype(bool)" if mask.dtype.kind in "iuf" else ""
        raise TypeError(f"mask must have dtype bool, got {mask.dtype}{cure}")
    shape = tuple(size if axis != p.channel_axis else 1 for axis, size in enumerate(p.shape))
    try:
        return np.broadcast_to(np.asarray(mask), shape)
    except ValueError:
        cure = reshaped(mask.shape, shape)
        if len(shape) == 2:  # there are no positions
            cure = ONE_CHANNEL
        raise ValueError(f"mask must have shape {shape} or one that broadcasts to it, got {mask.shape}{cure}") from None
