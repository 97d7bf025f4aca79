"""From arrays to what kernels take: dtypes by their numbers, shares of the work, the integers of a call."""

from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

from ..arrays.dtypes import STORED
from ..arrays.families import flat
from ..shapes import schedule
from ..shapes.geometry import FIELDS
from .checks import Problem
from .loading import kernels
from .threads import limit

__all__ = [
    "Arrays",
    "Parameters",
    "dense",
    "dims_of",
    "forget_shares",
    "kind_of",
    "launcher_of",
    "share_of",
    "shares",
    "target_of",
    "threads_for",
    "values_of",
]

Array = np.ndarray[Any, np.dtype[Any]]
# A weight and a bias.
Parameters = tuple[Array | None, Array | None]


class Arrays(NamedTuple):
    """The arrays of x's shape that a kernel reads or writes, None where there is none; y is dx in the backward pass."""

    x: Array
    skip: Array | None
    residual: Array | None
    dy: Array | None
    y: Array
    dresidual: Array | None = None


# What a kernel's integers call them.
NAMES = "X", "SKIP", "RES", "DY", "Y", "DRES"


def dense(p: Problem, arrays: Arrays) -> bool:
    """Whether none of the arrays has gaps between rows."""
    return all(array is None or p.gapless(array) for array in arrays)


def share_of(direction: str, p: Problem, layout: int, arrays: Arrays) -> dict[str, int]:
    """How the work on these arrays is shared out."""
    read = (p.x.itemsize,) if direction == "forward" else ()
    return shares(direction, layout, (p.N, p.C, p.G, p.S), p.result.itemsize, dense(p, arrays), *read)


def threads_for(nbytes: int) -> int:
    """How many threads a call over so many bytes may use; a small one does not ask, since that starts the threads."""
    return limit() if nbytes >= schedule.PARALLEL_BYTES else 1


def shares(
    direction: str, layout: int, sizes: schedule.Sizes, itemsize: int, dense: bool, *read: int
) -> dict[str, int]:
    """How work of these sizes is shared out."""
    threads = threads_for(schedule.work_bytes(direction, layout, sizes, itemsize))
    return _shares(direction, layout, sizes, itemsize, dense, threads, *read)


@lru_cache(maxsize=4096)
def _shares(direction: str, *sizes: Any) -> dict[str, int]:
    share: dict[str, int] = getattr(schedule, direction)(*sizes)
    return share


forget_shares = _shares.cache_clear


def launcher_of(parallel: int) -> int:
    """What kernels share out their tasks by; 0: by nothing, one thread runs them all."""
    return kernels("sharing").launcher() if parallel else 0


def target_of(arrays: Arrays, p: Problem, parameters: Parameters, *others: Array) -> tuple[np.ndarray, Parameters]:
    """What the kernel may write: y, or a new array in x's layout where y is laid out otherwise or in anything's way.

    So is a y of the other byte order. An operand that is y itself is no hindrance, since each element is read before
    it is written. Parameters are small: they step out of the way.
    """
    y = arrays.y

    def in_the_way(operand: Array | None) -> bool:
        if operand is None or not np.may_share_memory(y, operand):
            return False
        return p.steps(operand) != p.steps(y) or _start(operand) != _start(y) or operand.dtype != y.dtype

    if p.steps(y) is None or not y.flags.aligned or not y.dtype.isnative:
        return p.empty(p.result), parameters
    if any(map(in_the_way, arrays[:4])) or any(np.may_share_memory(y, other) for other in others):
        return p.empty(p.result), parameters
    weight, bias = (v.copy() if v is not None and np.may_share_memory(y, v) else v for v in parameters)
    return y, (weight, bias)


def _start(array: Array) -> int:
    start: int = array.__array_interface__["data"][0]
    return start


def kind_of(array: Array | None) -> int:
    """The number kernels know the array's dtype by; -1: no array."""
    return -1 if array is None else STORED.index(array.dtype.name)


def values_of(array: Array | None, p: Problem, default: float) -> Array:
    """A parameter's values, or the one value that stands for it where it is None."""
    if array is None:
        return np.array([default], p.dtype.accumulator)
    return flat(array, p.dtype.accumulator)


def dims_of(p: Problem, share: dict[str, int], parameters: Parameters, arrays: Arrays) -> Array:
    """The kernels' integers, in the order of `geometry.FIELDS`."""
    values = {"N": p.N, "C": p.C, "G": p.G, "D": p.C // p.G, "S": p.S, "BATCH": p.N, "VALID": p.S} | share
    for name, array in zip(NAMES, arrays, strict=True):
        steps = (0, 0) if array is None else p.steps(array)
        assert steps is not None
        values[f"{name}_N"], values[f"{name}_R"] = steps
    for name, array in zip(("W", "B"), parameters, strict=True):
        values[f"{name}_N"] = p.C if array is not None and array.ndim == 2 else 0
        values[f"{name}_C"] = int(array is not None)
    others = (*arrays[:4], arrays.dresidual)
    if any(array is not None and np.may_share_memory(array, arrays.y) for array in others):
        values["PAST"] = 0  # in place: its lines are in the cache already
    return np.array([[values.get(field, 0) for field in FIELDS]], np.int64)
