"""Calls with `lengths` whose like has come before: a small kernel makes the problems that `_padded` makes in Python.

Python's work for each sample, a few us, took longer than the kernel on samples of some KiB: (16, 80, 500) of float32
took three times as long as the same batch without `lengths`.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from . import _schedule
from ._dtypes import STORED
from ._loading import kernels
from ._operands import dense, dims_of, flat_of, kind_of, runner, share_of, shares
from ._padded import ALONE_BYTES, Valid
from ._problem import Problem
from ._threads import limit
from .kernels.geometry import FEW_POSITIONS, FIELDS

__all__ = ["Padding", "padding_of", "problems"]

Array = np.ndarray[Any, np.dtype[Any]]


class Padding(NamedTuple):
    """What makes the problems of a call."""

    kernel: Callable[..., int]
    samples: int
    per: int  # positions for each of a length
    zeroed: int  # values of the kernel's work that are 0 where a sample has no problem


def padding_of(
    direction: str, p: Problem, v: Valid, w: Array | None, b: Array | None, y: Array, **arrays: Array | None
) -> tuple[Callable[..., None], dict[str, int], Array, int, Padding] | None:
    """(kernel, shares, dims of the batch, values of the kernel's work, what makes the problems), or None."""
    forward, kind = direction == "forward", STORED.index(p.dtype.name)
    kinds = p.layout, kind, *(() if forward else (kind_of(arrays["DY"]),)), -1, -1, 0, p.activation
    kernel = getattr(kernels(direction), f"{direction}_kernel").ready.get(kinds)
    fits = v.most and p.N > 1 and p.S >= FEW_POSITIONS and p.C * p.S * p.result.itemsize < ALONE_BYTES
    if kernel is None or not fits:
        return None
    arrays["Y"] = y
    lanes = limit() if p.size * p.result.itemsize >= _schedule.PARALLEL_BYTES else 1
    share = share_of(direction, p, p.layout, **arrays) | {
        "FIRST": 0, "LAST": 1, "PARALLEL": int(lanes > 1),
        "SLOTS": _schedule.TASKS_PER_THREAD * lanes if lanes > 1 else 1,
    }  # fmt: skip
    dims = dims_of(p, share, w, b, **arrays)
    parts = shares(direction, p.layout, 1, p.C, p.G, p.S, p.result.itemsize, dense(p, **arrays))["PARTS"]
    work = 2 * p.N * p.G * (1 + parts) if forward else 2 * p.N * p.C * parts + 3 * p.N * p.G + 2 * p.C
    arguments = dims, np.zeros(1, np.int64), 1, dims, flat_of(y, p), 0
    make = kernels("padding").padding_kernel(arguments, int(not forward), p.layout, p.result.itemsize, kind)
    padding = Padding(runner(make, p, share["PARALLEL"]), p.N, p.S // v.most, 2 * p.N * p.G if forward else 0)
    return runner(kernel, p, share["PARALLEL"]), share, dims, work, padding


def problems(padding: Padding, dims: Array, lengths: Any, y: Array, work: Array, launcher: int) -> Array | None:
    """The dims of a call, y's padding being zero now; None where the lengths are to be looked at as for the first call.

    Those that are not allowed are left to that, and so is a batch of one problem, which threads share out by its parts.
    """
    if type(lengths) is list:
        try:
            lengths = np.array(lengths)
        except ValueError:  # lists of different lengths
            return None
    if type(lengths) is not np.ndarray or lengths.shape != (padding.samples,) or lengths.dtype.kind not in "iu":
        return None
    tables = np.empty((padding.samples, len(FIELDS)), np.int64)
    count = padding.kernel(dims, np.ascontiguousarray(lengths, np.int64), padding.per, tables, y, launcher)
    if count < 2:
        return None
    if count < padding.samples:
        work[: padding.zeroed] = 0.0
    return tables[:count]
