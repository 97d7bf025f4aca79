"""Calls with `lengths` or `mask` whose like has come before: small kernels do for them what `_padded` does in Python.

Python's work for each sample, a few us, took longer than the kernel on samples of some KiB: (16, 80, 500) of float32
took three to four times as long as the same batch without.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from ..arrays.dtypes import STORED
from ..shapes import schedule
from ..shapes.geometry import CHANNELS_FIRST, FEW_POSITIONS, FIELDS
from .checks import Problem
from .loading import kernels
from .operands import dense, dims_of, flat_of, kind_of, runner, share_of, threads_for
from .positions import MARGIN, NOTHING, OF_VALUES, Valid, alone, tables

__all__ = ["Lengths", "Masks", "Problems", "padding_of"]

Array = np.ndarray[Any, np.dtype[Any]]

# The dims of a call and the bytes of its mask; None where it must be looked at as a first one: for what is not allowed,
# and for a single problem, which threads share out by its parts.
Problems = tuple[Array, Array] | None


class Lengths(NamedTuple):
    """What makes the problems of a call with `lengths`."""

    kernel: Callable[..., int]
    samples: int
    per: int  # positions for each of a length
    zeroed: int  # values of the kernel's work that are 0 where a sample has no problem

    def problems(self, dims: Array, lengths: Any, mask: None, y: Array, work: Array, launcher: int) -> Problems:
        """y's padding is zero afterwards."""
        if type(lengths) is list:
            try:
                lengths = np.array(lengths)
            except ValueError:  # lists of different lengths
                return None
        if type(lengths) is not np.ndarray or lengths.shape != (self.samples,) or lengths.dtype.kind not in "iu":
            return None
        made = np.empty((self.samples, len(FIELDS)), np.int64)
        count = self.kernel(dims, np.ascontiguousarray(lengths, np.int64), self.per, made, y, launcher)
        if count < 2:
            return None
        if count < self.samples:
            work[: self.zeroed] = 0.0
        return made[:count], NOTHING


class Masks(NamedTuple):
    """What makes the problems of a call with `mask`."""

    kernel: Callable[..., int]
    shape: tuple[int, ...]  # of the mask's bytes, axes in the order of x's memory
    order: tuple[int, ...]
    channel_axis: int
    step: int  # from position to position
    sums: int  # of each part of a sample

    def problems(self, dims: Array, lengths: None, mask: Any, y: Array, work: Array, launcher: int) -> Problems:
        if type(mask) is not np.ndarray or mask.dtype != np.bool_ or mask.ndim != len(self.order):
            return None
        if mask.shape[self.channel_axis] != 1:
            return None
        line = np.zeros(math.prod(self.shape) + 2 * MARGIN, np.uint8)
        try:
            line[MARGIN:-MARGIN].view(np.bool_).reshape(self.shape)[...] = mask.transpose(self.order)
        except ValueError:  # it does not broadcast
            return None
        made = np.empty((self.shape[0], len(FIELDS)), np.int64)
        if not self.kernel(dims, line[MARGIN:], self.step, self.sums, made):
            return None
        return made, line[MARGIN:]


def padding_of(
    direction: str, p: Problem, v: Valid, w: Array | None, b: Array | None, y: Array, **arrays: Array | None
) -> tuple[Callable[..., None], dict[str, int], Array, int, Lengths | Masks] | None:
    """(kernel, shares, dims of the batch, values of the kernel's work, what makes the problems), or None."""
    nbytes = p.size * p.result.itemsize
    lanes = threads_for(nbytes)
    if p.N == 1 or alone(nbytes, p.N, lanes) or (v.lengths is not None and (v.most == 0 or p.S < FEW_POSITIONS)):
        return None
    arrays["Y"] = y
    share = share_of(direction, p, p.layout, **arrays) | {
        "FIRST": 0, "LAST": 1, "PARALLEL": int(lanes > 1),
        "SLOTS": schedule.TASKS_PER_THREAD * lanes if lanes > 1 else 1,
    }  # fmt: skip
    dims = dims_of(p, share, w, b, **arrays)
    forward, kind = direction == "forward", STORED.index(p.dtype.name)
    sums = 2 * (p.G if forward else p.C)
    full = v if v.lengths is None else v._replace(counts=np.full(p.N, p.S), apart=())
    runs, size, mask_kind, _ = tables(direction, p, full, dims, dense(p, **arrays), sums)
    kinds = p.layout, kind, *(() if forward else (kind_of(arrays["DY"]),)), -1, -1, mask_kind, p.activation
    kernel = getattr(kernels(direction), f"{direction}_kernel").ready.get(kinds)
    if kernel is None or not runs or len(runs[0].dims) < p.N:
        return None
    padding: Lengths | Masks
    if v.lengths is not None:
        arguments = dims, np.zeros(1, np.int64), 1, dims, flat_of(y, p), 0
        make = kernels("padding").lengths_kernel(arguments, int(not forward), p.layout, p.result.itemsize, kind)
        padding = Lengths(runner(make, p, share["PARALLEL"]), p.N, p.S // v.most, 2 * p.N * p.G if forward else 0)
    else:
        model = runs[0].dims[:1].copy()
        for field in ("FIRST", "LAST", "SLOTS"):
            model[0, FIELDS.index(field)] = share[field]
        dims = model
        make = kernels("padding").masks_kernel((dims, np.zeros(1, np.uint8), 1, 1, dims))
        spatial, channel = p.order, p.channel_axis
        each = mask_kind == OF_VALUES and (p.layout != CHANNELS_FIRST or p.S < FEW_POSITIONS)  # of x's values
        order = (0, channel, *spatial) if p.layout == CHANNELS_FIRST else (0, *spatial, channel)
        shape = tuple(p.shape[a] if a != channel or each else 1 for a in order)
        padding = Masks(make, shape, order, channel, p.C if each and p.layout != CHANNELS_FIRST else 1, sums)
    work = size + (2 * p.N * p.G if forward else 2 * p.N * p.G + 2 * p.C)
    return runner(kernel, p, share["PARALLEL"]), share, dims, work, padding
