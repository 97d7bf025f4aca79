"""Calls with `lengths` or a `mask`: each sample that has valid positions becomes a problem of its own for the kernel.

Small kernels make the table of these problems: Python's work for each sample, a few us, took longer than the kernel on
samples of some KiB ((16, 80, 500) of float32: three to four times as long as the same batch without).
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from ..shapes import schedule
from ..shapes.geometry import CHANNELS_FIRST, FEW_CHANNELS, FEW_POSITIONS, FIELDS
from .checks import Problem
from .loading import kernels
from .operands import launcher_of, shares, threads_for
from .positions import Valid
from .threads import patient

__all__ = ["NO_MASK", "Lengths", "Masks", "Together", "padding_of"]

Array = np.ndarray[Any, np.dtype[Any]]

# Few samples from so many bytes on are shared out among the threads one by one, else several at a time.
ALONE_BYTES = 1 << 20
# Bytes before and after a mask that vectors may read.
MARGIN = 64
# The kinds of mask, as `kernels.cpu.masks.MASKS` has them.
NO_MASK, OF_VALUES, OF_ROWS = 0, 1, 2

S, SAMPLE = FIELDS.index("S"), FIELDS.index("SAMPLE")


class Together(NamedTuple):
    """How problems are shared out among the threads: several at a time, or each in its parts."""

    direction: str
    layout: int
    sizes: tuple[int, int, int]  # C, G and S
    itemsize: int
    dense: bool
    threads: int

    def alone(self, nbytes: int, samples: int) -> bool:
        """Whether threads share out each sample's parts: the samples are large, and few for so many threads."""
        return self.threads > 1 and samples < 2 * self.threads and nbytes >= ALONE_BYTES * samples

    def runs(self, dims: Array, launcher: int, scratch: int) -> Sequence[tuple[Array, int, int]]:
        """(problems, launcher, values of scratch) of each run of the kernel over the problems in `dims`."""
        if not len(dims):
            return ()
        C, G, full = self.sizes
        if not self.alone(int(dims[:, S].sum()) * C * self.itemsize, len(dims)):
            return ((dims, launcher, scratch),)
        runs = []
        for q in range(len(dims)):
            positions = int(dims[q, S])
            cut = self.layout == CHANNELS_FIRST and C > 1 and positions < full
            sizes = 1, C, G, positions
            share = shares(self.direction, self.layout, sizes, self.itemsize, self.dense and not cut)
            for field in ("FIRST", "LAST", "SLOTS"):
                dims[q, FIELDS.index(field)] = share[field]
            runs.append((dims[q : q + 1], launcher_of(share["PARALLEL"]), share["SLOTS"] * share["SLOT"]))
        return runs


class Lengths(NamedTuple):
    """What makes the problems of a call with `lengths`."""

    together: Together
    kernel: Callable[..., int]
    samples: int
    per: int  # positions for each of a length
    axis: int  # whose first ones are valid
    zeroed: int  # values of the kernel's work that are 0 where a sample has no problem
    mask_kind: int = NO_MASK

    def problems(self, dims: Array, lengths: Any, y: Array, work: Array, launcher: int) -> tuple[Array, None] | None:
        """(the problems, no mask), or None where the lengths must be looked at first; y's padding is zero afterwards.

        A length of 0 makes no problem.
        """
        if type(lengths) is list:
            try:
                lengths = np.array(lengths)
            except ValueError:  # lists of different lengths
                return None
        if type(lengths) is not np.ndarray or lengths.shape != (self.samples,) or lengths.dtype.kind not in "iu":
            return None
        made = np.empty((self.samples, len(FIELDS)), np.int64)
        lengths = np.ascontiguousarray(lengths, np.int64)
        count = self.kernel(dims, lengths, self.per, int(self.together.direction == "backward"), made, y, launcher)
        if count < 0:
            return None
        if count < self.samples:
            work[: self.zeroed] = 0.0
        return made[:count], None

    def clear(self, y: Array, dresidual: Array | None, problems: Array, lengths: Any) -> None:
        """Zeros in dresidual where nothing is valid; the kernels do that in y."""
        if dresidual is None:
            return
        before = (slice(None),) * (self.axis - 1)
        for n, length in enumerate(lengths):
            dresidual[n][(*before, slice(int(length), None))] = 0


class Masks(NamedTuple):
    """What makes the problems of a call with `mask`."""

    together: Together
    kernel: Callable[..., int]
    shape: tuple[int, ...]  # of the mask's bytes, axes in the order of x's memory
    order: tuple[int, ...]
    channel_axis: int
    step: int  # from position to position
    sums: int  # of each part of a sample
    zeroed: int
    mask_kind: int

    def problems(self, dims: Array, mask: Any, y: Array, work: Array, launcher: int) -> tuple[Array, Array] | None:
        """(the problems, the bytes of the mask), or None where the mask must be looked at first."""
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
        count = self.kernel(dims, line[MARGIN:], self.step, self.sums, made)
        if count < self.shape[0]:
            work[: self.zeroed] = 0.0
        return made[:count], line[MARGIN:]

    def clear(self, y: Array, dresidual: Array | None, problems: Array, mask: Any) -> None:
        """Zeros in samples without a valid position."""
        if len(problems) < self.shape[0]:
            for n in set(range(self.shape[0])).difference(problems[:, SAMPLE].tolist()):
                y[n] = 0
                if dresidual is not None:
                    dresidual[n] = 0


def padding_of(
    direction: str, p: Problem, v: Valid, dense: bool, of_batch: dict[str, int]
) -> tuple[Lengths | Masks, dict[str, int]]:
    """What makes the problems of calls like this one, and the shares of the work, from those of a full batch.

    dense: whether no array has gaps between rows.
    """
    itemsize, first = p.result.itemsize, p.layout == CHANNELS_FIRST
    threads = threads_for(p.size * itemsize)
    dense = dense and not (v.mask is not None and first and p.S >= FEW_POSITIONS)
    together = Together(direction, p.layout, (p.C, p.G, p.S), itemsize, dense, threads)
    share = {"FIRST": 0, "LAST": 1, "PARALLEL": int(threads > 1), "PAST": of_batch["PAST"]}
    share["SLOTS"] = schedule.TASKS_PER_THREAD * threads if threads > 1 else 1
    zeroed, made = 2 * p.N * p.G if direction == "forward" else 0, kernels("padding")
    table = np.zeros((1, 1), np.int64)
    if v.mask is None:
        y = np.empty(1, {2: np.uint16, 4: np.float32, 8: np.float64}[itemsize])
        kernel = made.lengths_kernel((table, table[0], 1, 0, table, y, 0), p.layout, itemsize)
        if threads > 1:
            kernel = patient(kernel, p.x.nbytes)
        share["SLOT"] = max(of_batch["SLOT"], schedule.SHORT_SLOT)  # of short samples that have one channel, too
        return Lengths(together, kernel, p.N, p.S // v.most if v.most else 1, v.axis, zeroed), of_batch | share

    # one byte a position where a vector's values are of one row, or of a row and the next; else one for each value
    kind = OF_VALUES if first or p.C < FEW_CHANNELS else OF_ROWS
    each = p.S < FEW_POSITIONS if first else p.C < FEW_CHANNELS
    order = (0, p.channel_axis, *p.order) if first else (0, *p.order, p.channel_axis)
    shape = tuple(p.shape[a] if a != p.channel_axis or each else 1 for a in order)
    step, row, sums = p.C if each and not first else 1, p.rows[0], 2 * (p.G if direction == "forward" else p.C)
    kernel = made.masks_kernel((table, np.empty(1, np.uint8), 1, 1, table))
    one = shares(direction, p.layout, (1, p.C, p.G, p.S), itemsize, dense) | share | {"N": 1}
    mask = {"MASK_N": p.C * p.S if each else p.S, "MASK_R": row if each else int(not first)}
    one |= mask | {"MASK_C": int(kind == OF_VALUES)}
    return Masks(together, kernel, shape, order, p.channel_axis, step, sums, zeroed, kind), one
