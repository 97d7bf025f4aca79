"""From arrays to what kernels take, and from what they leave to results."""

from collections.abc import Callable
from functools import lru_cache
from math import prod
from typing import Any

import numpy as np

from ..arrays.dtypes import STORED
from ..arrays.families import flat
from ..shapes import schedule
from ..shapes.geometry import FIELDS
from .checks import Problem
from .loading import kernels
from .threads import limit, patient

__all__ = [
    "dense", "dims_of", "flat_of", "forget_shares", "kind_of", "launcher_of", "parameter_gradients", "runner",
    "scratch_of", "share_of", "shares", "statistics_of", "target_of", "threads_for", "values_of",
]  # fmt: skip

Array = np.ndarray[Any, np.dtype[Any]]


def dense(p: Problem, **arrays: Array | None) -> bool:
    """Whether none of the arrays has gaps between rows."""
    return all(array is None or p.gapless(array) for array in arrays.values())


def share_of(direction: str, p: Problem, layout: int, **arrays: Array | None) -> dict[str, int]:
    """How the work on these arrays is shared out."""
    read = (p.x.itemsize,) if direction == "forward" else ()
    return shares(direction, layout, (p.N, p.C, p.G, p.S), p.result.itemsize, dense(p, **arrays), *read)


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


def runner(kernel: Callable[..., Any], p: Problem, parallel: int) -> Callable[..., Any]:
    """What runs the kernel."""
    return patient(kernel, p.x.nbytes) if parallel else kernel


def launcher_of(parallel: int) -> int:
    """What kernels share out their tasks by; 0: by nothing, one thread runs them all."""
    return kernels("sharing").launcher() if parallel else 0


def target_of(
    y: Array,
    p: Problem,
    w: Array | None,
    b: Array | None,
    operands: tuple[Array | None, ...],
    *others: Array,
) -> tuple[np.ndarray, Array | None, Array | None]:
    """What the kernel may write: y, or a new array in x's layout where y is laid out otherwise or in anything's way.

    So is a y of the other byte order. An operand that is y itself is no hindrance, since each element is read before
    it is written.
    """

    def in_the_way(operand: Array | None) -> bool:
        if operand is None or not np.may_share_memory(y, operand):
            return False
        return p.steps(operand) != p.steps(y) or _start(operand) != _start(y) or operand.dtype != y.dtype

    if p.steps(y) is None or not y.flags.aligned or not y.dtype.isnative:
        return p.empty(p.result), w, b
    if any(map(in_the_way, operands)) or any(np.may_share_memory(y, other) for other in others):
        return p.empty(p.result), w, b
    # parameters are small: they step out of the way
    w, b = (v.copy() if v is not None and np.may_share_memory(y, v) else v for v in (w, b))
    return y, w, b


def _start(array: Array) -> int:
    start: int = array.__array_interface__["data"][0]
    return start


def kind_of(array: Array | None) -> int:
    """The number kernels know the array's dtype by; -1: no array."""
    return -1 if array is None else STORED.index(array.dtype.name)


def flat_of(array: Array | None, p: Problem) -> Array | None:
    if array is None:
        return None
    return flat(array, p.dtype.storage if array.dtype == p.x.dtype else array.dtype)


def values_of(array: Array | None, p: Problem, default: float) -> Array:
    """A parameter's values, or the one value that stands for it where it is None."""
    if array is None:
        return np.array([default], p.dtype.accumulator)
    return flat(array, p.dtype.accumulator)


def scratch_of(p: Problem, share: dict[str, int]) -> Array:
    """Tables for each task; at least one value, as there must be an array."""
    return np.empty(max(1, share["SLOTS"] * share["SLOT"]), p.dtype.accumulator)


def dims_of(
    p: Problem,
    share: dict[str, int],
    w: Array | None,
    b: Array | None,
    **arrays: Array | None,
) -> Array:
    """The kernels' integers, in the order of `kernels.geometry.FIELDS`."""
    values = share | {"N": p.N, "C": p.C, "G": p.G, "D": p.C // p.G, "S": p.S, "BATCH": p.N, "VALID": p.S}
    for name, array in arrays.items():
        steps = (0, 0) if array is None else p.steps(array)
        assert steps is not None
        values[f"{name}_N"], values[f"{name}_R"] = steps
    for name, array in (("W", w), ("B", b)):
        values[f"{name}_N"] = p.C if array is not None and array.ndim == 2 else 0
        values[f"{name}_C"] = int(array is not None)
    target = arrays.pop("Y")
    if any(array is not None and np.may_share_memory(array, target) for array in arrays.values()):
        values["PAST"] = 0  # in place: its lines are in the cache already
    return np.array([[values.get(field, 0) for field in FIELDS]], np.int64)


def parameter_gradients(
    work: Array, gradients: Array, N: int, shared: tuple[int, ...], weight: Any, bias: Any
) -> list[Array]:
    """dweight and dbias in the parameters' shapes and dtypes; `shared` is the shape of one that all samples share.

    The kernel leaves the sums of dz and of dz * x_hat over all samples at the end of its work, and in the accumulator's
    dtype in `gradients`; where parameters are those of samples, the sums of each (N, C) at the beginning of its work.
    """
    C = gradients.size // 2
    results = []
    for row, given in ((1, weight), (0, bias)):
        total = gradients[row * C : (row + 1) * C]
        if given is not None and (given.shape != shared or given.dtype != total.dtype):
            if given.shape != shared:
                total = work[row * N * C : (row + 1) * N * C]
            else:
                total = work[work.size - 2 * C :][row * C : (row + 1) * C]
            with np.errstate(all="ignore"):
                total = total.astype(given.dtype.newbyteorder("="))
        results.append(total.reshape(shared if given is None else given.shape))
    return results


def statistics_of(work: Array, shape: tuple[int, ...]) -> tuple[Array, Array]:
    """Mean and rstd, which the forward kernel leaves at the beginning of its work, as arrays of their own."""
    count = prod(shape)
    return work[:count].reshape(shape).copy(), work[count : 2 * count].reshape(shape).copy()
