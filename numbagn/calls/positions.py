"""Samples of which only some positions are valid: `lengths` and `mask`, checked and made problems for the kernels.

With `lengths` each sample is a problem of its own size, so its bits are those of the sample alone. With `mask` all
positions are read and what is not valid is left out of every sum.
"""

import math
from typing import Any, NamedTuple

import numpy as np

from ..arrays.families import hint, view
from ..shapes import schedule
from ..shapes.geometry import CHANNELS_FIRST, FEW_CHANNELS, FEW_POSITIONS, FIELDS
from ..shapes.strides import laid_out
from .checks import Problem, reshaped, shown
from .operands import shares, threads_for
from .rows import Rows

__all__ = ["Table", "Valid", "clear_invalid", "lengths_of", "outermost", "tables", "valid_positions"]

Array = np.ndarray[Any, np.dtype[Any]]

# Few samples from so many bytes on are shared out among the threads one by one, else several at a time.
ALONE_BYTES = 1 << 20
# Bytes before and after a mask that vectors may read.
MARGIN = 64
# The kinds of mask, as `kernels.masks.MASKS` has them.
NO_MASK, OF_VALUES, OF_ROWS = 0, 1, 2
NOTHING = None
# What may cure an x without positions.
ONE_CHANNEL = "; give sequences of one channel an axis for it: x[:, None]"


class Valid(NamedTuple):
    """What is valid of x."""

    x: Array  # as it came: p.x may be a copy of it
    counts: Array  # (N,) valid positions of each sample
    lengths: Array | None  # (N,) where they are the first of the first spatial axis
    mask: Array | None  # (N, S) of bool, positions in the order they have in memory, else
    apart: tuple[int, ...]  # samples that are no problem of the batch's kernel, but calls of their own
    most: int = 0  # the largest length that x has room for; 0 where there are no lengths, or all samples are apart


class Table(NamedTuple):
    """One run of a kernel."""

    dims: Array  # (problems, fields)
    parallel: int
    scratch: int


# -------------------------------------------------------------------------------------------------------------- checks


def valid_positions(lengths: Any, mask: Any, p: Problem, x: Array) -> Valid:
    """Check `lengths` and `mask`; at least one of them is given. p.x is `x` or a copy of it."""
    if isinstance(p, Rows):
        name = "mask" if lengths is None else "lengths"
        raise ValueError(f"{name} must not be given to layer norm, which normalizes each row by itself")
    spatial = [axis for axis in range(1, len(p.shape)) if axis != p.channel_axis]
    n = None if lengths is None else lengths_of(lengths, p, spatial)
    flags = None if mask is None else _mask(mask, p)
    if n is not None and flags is not None:
        along = np.arange(p.shape[spatial[0]]) < n[:, None]
        shape = [p.N if a == 0 else p.shape[a] if a == spatial[0] else 1 for a in range(len(p.shape))]
        flags = flags & along.reshape(shape)
    elif n is not None:
        counts = n * math.prod(p.shape[axis] for axis in spatial[1:])
        first = outermost(p, spatial[0])
        # alone, channels with few positions have no gaps, and what has one position has loops of its own
        few = min(FEW_POSITIONS if p.layout == CHANNELS_FIRST else 2, p.S)
        apart = [
            i
            for i in range(p.N)
            if counts[i] == 1 or (p.C > 1 and 0 < counts[i] < few) or not (first and _laid_out_alone(p, x, int(n[i])))
        ]
        return Valid(x, counts, n, None, tuple(i for i in apart if counts[i]), p.shape[spatial[0]] if first else 0)
    assert flags is not None
    shape = [size if axis != p.channel_axis else 1 for axis, size in enumerate(p.shape)]
    order = (0, *p.order, p.channel_axis)
    positions = np.broadcast_to(flags, shape).transpose(order).reshape(p.N, p.S)
    return Valid(x, np.count_nonzero(positions, axis=1), None, positions, ())


def outermost(p: Problem, axis: int) -> bool:
    """Whether the axis is the outermost in memory of those that have more than one position."""
    return next((a == axis for a in p.order if p.shape[a] > 1), True)


def _laid_out_alone(p: Problem, x: Array, length: int) -> bool:
    """Whether the first positions of a sample of x have by themselves the layout that the batch has in p.

    Where p.x is a copy they may have another, and so other parts of sums: other bits.
    """
    if p.x is x:
        return True
    axis = next(a for a in range(1, len(p.shape)) if a != p.channel_axis)
    shape = tuple(1 if a == 0 else length if a == axis else size for a, size in enumerate(p.shape))
    layout, order, _ = laid_out(shape, x.strides, x.itemsize, p.channel_axis, x.flags.aligned)
    return layout == p.layout and [a for a in order if shape[a] > 1] == [a for a in p.order if shape[a] > 1]


def lengths_of(lengths: Any, p: Problem, spatial: list[int]) -> Array:
    if not spatial:
        raise ValueError(f"lengths must not be given where x has no positions, got x of shape {p.shape}{ONE_CHANNEL}")
    most = p.shape[spatial[0]]
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
        raise ValueError(f"lengths must be from 0 to {most}, the size of axis {spatial[0]}; got {wrong[0]}")
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


# -------------------------------------------------------------------------------------------------------------- tables


# Fields that are the same for all samples: what no schedule says.
SHARED = [
    i for i, field in enumerate(FIELDS) if field in ("C", "G", "D", "BATCH") or field.endswith(("_N", "_R", "_C"))
]


def tables(
    direction: str, p: Problem, v: Valid, common: Array, dense: bool, sums_of_part: int
) -> tuple[list[Table], int, int, Array]:
    """(runs of the kernel, values of partial sums they need, the kind of mask, its bytes).

    `common` has the fields that are the same for all samples, and whether y or dx goes past the caches;
    `sums_of_part` is how many sums a sample has for each part.
    """
    kind, mask = NO_MASK, NOTHING
    if v.mask is not None:
        kind, mask = _bytes_of(v.mask, p)
        dense = dense and not (p.layout == CHANNELS_FIRST and p.S >= FEW_POSITIONS)
    samples = [n for n in range(p.N) if v.counts[n] and n not in v.apart]
    if not samples:
        return [], 0, kind, mask
    sizes = [p.S] * len(samples) if v.lengths is None else [int(v.counts[n]) for n in samples]
    cut = p.layout == CHANNELS_FIRST and p.C > 1
    itemsize = p.result.itemsize
    keys = [(direction, p.layout, (1, p.C, p.G, S), itemsize, dense and not (cut and S < p.S)) for S in sizes]
    found = {key: shares(*key) for key in set(keys)}
    of_share = {key: [share.get(field, 0) for field in FIELDS] for key, share in found.items()}
    rows = np.array([of_share[key] for key in keys], np.int64)
    rows[:, SHARED] = common[0, SHARED]
    rows[:, FIELDS.index("PAST")] = common[0, FIELDS.index("PAST")]
    ends = np.cumsum(rows[:, FIELDS.index("PARTS")] * sums_of_part)
    columns: dict[str, Any] = {"N": 1, "S": sizes, "SAMPLE": samples, "AT": [0, *ends[:-1]], "VALID": v.counts[samples]}
    if v.mask is not None:
        spots = [_spots(v.mask[n]) for n in samples]
        columns |= {f"SPOT_{i}": [spot[i] for spot in spots] for i in range(4)}
        elements = kind == OF_VALUES and (p.layout != CHANNELS_FIRST or p.S < FEW_POSITIONS)
        row, first = p.rows[0], p.layout == CHANNELS_FIRST
        columns["MASK_N"] = p.C * p.S if elements else p.S
        columns["MASK_R"] = row if elements else 0 if first else 1
        columns["MASK_C"] = int(kind == OF_VALUES)
    for field, values in columns.items():
        rows[:, FIELDS.index(field)] = values

    lanes = threads_for(sum(sizes) * p.C * itemsize)
    if len(samples) == 1 or alone(sum(sizes) * p.C * itemsize, len(samples), lanes):
        runs = []
        for i, key in enumerate(keys):
            share = found[key]
            runs.append(Table(rows[i : i + 1], share["PARALLEL"], share["SLOTS"] * share["SLOT"]))
    else:
        slots = schedule.TASKS_PER_THREAD * lanes if lanes > 1 else 1
        slot = int(rows[:, FIELDS.index("SLOT")].max())
        for field, value in (("FIRST", 0), ("LAST", 1), ("SLOTS", slots), ("SLOT", slot)):
            rows[:, FIELDS.index(field)] = value
        runs = [Table(rows, int(lanes > 1), slots * slot)]
    return runs, int(ends[-1]), kind, mask


def alone(nbytes: int, samples: int, lanes: int) -> bool:
    """Whether threads share out each sample's parts, not the samples: those are large, and few for so many threads."""
    return lanes > 1 and samples < 2 * lanes and nbytes >= ALONE_BYTES * samples


def _spots(flags: Array) -> list[int]:
    """Four valid positions spread over the sample."""
    valid = np.flatnonzero(flags)
    return [int(valid[np.searchsorted(valid, flags.size * i // 8) % valid.size]) for i in range(1, 8, 2)]


def _bytes_of(positions: Array, p: Problem) -> tuple[int, Array]:
    """(the kind of mask that the kernels read, its bytes).

    One byte a position where a vector's values are of one row, or of a row and the next; else one for each value.
    """
    kind = OF_VALUES
    if p.layout == CHANNELS_FIRST and p.S < FEW_POSITIONS:
        flags = np.repeat(positions[:, None, :], p.C, axis=1)
    elif p.layout != CHANNELS_FIRST and p.C < FEW_CHANNELS:
        flags = np.repeat(positions[:, :, None], p.C, axis=2)
    else:
        flags = positions
        kind = OF_VALUES if p.layout == CHANNELS_FIRST else OF_ROWS
    line = np.zeros(flags.size + 2 * MARGIN, np.uint8)
    line[MARGIN : MARGIN + flags.size] = flags.reshape(-1)
    return kind, line[MARGIN:]


def clear_invalid(result: Array, p: Problem, v: Valid) -> None:
    """Zeros where no kernel has written: at all positions behind `lengths`, and in samples without valid ones."""
    axis = next((a for a in range(1, len(p.shape)) if a != p.channel_axis), 0)
    before = (slice(None),) * (axis - 1)
    for n in range(p.N):
        if v.counts[n] == 0:
            result[n] = 0
        elif v.lengths is not None and v.lengths[n] < p.shape[axis]:
            result[n][(*before, slice(v.lengths[n], None))] = 0
