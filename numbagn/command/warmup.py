"""Compiling before the first request: the kernels of the calls that will come."""

import itertools
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np

from ..arrays.dtypes import dtype_named, dtype_row, supported
from ..calls.checks import activation_code, shown
from ..calls.loading import kernels
from ..calls.threads import limit
from ..functional import group_norm_backward, group_norm_forward
from ..shapes.geometry import FEW_CHANNELS

__all__ = ["Warmed", "warmup"]

OPS = ("forward", "backward")
LAYOUTS = ("channels_first", "channels_last")
# An array that one thread works on, and one that several do.
N, C, G = 4, 8, 2
SMALL, LARGE = 16, 16384


class Warmed(NamedTuple):
    """One kernel that `warmup` made ready: what it is for, and how long that took in seconds."""

    op: str
    dtype: str
    layout: str
    activation: str | None
    parallel: bool
    seconds: float


def warmup(
    dtypes: Iterable[Any] = ("float32",),
    ops: Iterable[str] = ("forward",),
    *,
    layouts: Iterable[str] = LAYOUTS,
    activations: Iterable[str | None] = (None,),
    skip: bool = False,
    residual: bool = False,
    padded: bool = True,
    progress: Callable[[int, int, str], None] | None = None,
) -> list[Warmed]:
    """Compile kernels now, or load them from the cache, so that no later call waits for that.

    Each combination of the arguments is made ready, for small arrays (one thread) and for large ones (several).

    Parameters
    ----------
    dtypes : iterable of dtype, optional
        Of x: float16, bfloat16, float32, float64, uint8, int8, uint16, int16.
    ops : iterable of {"forward", "backward"}, optional
        The passes.
    layouts : iterable of {"channels_first", "channels_last"}, optional
        How x lies in memory, wherever its channel axis is. Layer norm's rows are channels first.
    activations : iterable of {None, "relu", "silu", "gelu", "gelu_tanh"}, optional
        What is applied last.
    skip, residual : bool, optional
        Whether the calls will have these operands.
    padded : bool, optional
        Whether calls may have `lengths` or a `mask`; without these it takes less than half the time.
    progress : callable, optional
        Called before each kernel with the number of those done, their total, and what the next is; and at the end.

    Returns
    -------
    list of Warmed
        What was made ready.

    Raises
    ------
    TypeError, ValueError
        If an argument names what there is not. Nothing is compiled then.

    Notes
    -----
    It starts Numba's threads, as the first large call would. A server that forks its workers should call it in each
    worker: a child forked after GNU OpenMP's threads were started uses one thread. The command ``python -m numbagn
    warmup`` fills the cache on disk instead, where later processes find it.

    Examples
    --------
    >>> import numbagn
    >>> [(w.op, w.parallel) for w in numbagn.warmup(layouts=["channels_first"])][0]
    ('forward', False)
    """
    rows = [_dtype(dtype) for dtype in _several("dtypes", dtypes)]
    passes = [_one_of("ops", op, OPS) for op in _several("ops", ops)]
    orders = [_one_of("layouts", layout, LAYOUTS) for layout in _several("layouts", layouts)]
    acts = _several("activations", activations)
    for act in acts:
        activation_code(act)
    for name, flag in (("skip", skip), ("residual", residual), ("padded", padded)):
        if not isinstance(flag, (bool, np.bool_)):
            raise TypeError(f"{name} must be True or False, got {shown(flag)}")
    kernels("forward")  # loads Numba, undisturbed
    sizes = (SMALL, LARGE) if limit() > 1 else (SMALL,)
    kinds = list(itertools.product(passes, rows, orders, acts, sizes))
    done = []
    for number, (op, dtype, layout, act, size) in enumerate(kinds):
        if progress is not None:
            threads = "several threads" if size == LARGE else "one thread"
            text = f"{op} {dtype.name} {layout.replace('_', ' ')}"
            progress(number, len(kinds), ", ".join([text, *([act] if act else []), threads]))
        started = time.perf_counter()
        operands = [name for name, on in (("skip", skip), ("residual", residual)) if on]
        for x, valid in _arrays_of(dtype, layout, size, padded):
            _call(op, x, {"activation": act, **valid}, operands)
        done.append(Warmed(op, dtype.name, layout, act, size == LARGE, time.perf_counter() - started))
    if progress is not None:
        progress(len(kinds), len(kinds), "done")
    return done


def _several(name: str, values: Any) -> list[Any]:
    """The values of an argument that takes several; one alone is an easy slip."""
    if isinstance(values, (str, bytes)) or not isinstance(values, Iterable):
        raise TypeError(f"{name} must be a list or another iterable, got {shown(values)}")
    return list(values)


def _dtype(value: Any) -> np.dtype[Any]:
    try:
        dtype: np.dtype[Any] | None = dtype_named(value) if value == "bfloat16" else np.dtype(value)
    except (TypeError, ValueError):
        dtype = None
    if dtype is None or value is None or dtype_row(dtype, integers=True) is None:
        raise TypeError(f"dtypes must be of {supported(integers=True)}, got {shown(value)}")
    return dtype


def _one_of(name: str, value: str, allowed: tuple[str, ...]) -> str:
    if value not in allowed:
        raise ValueError(f"{name} must be of {', '.join(map(repr, allowed))}, got {shown(value)}")
    return value


def _arrays_of(
    dtype: np.dtype[Any], layout: str, size: int, padded: bool
) -> Iterator[tuple[np.ndarray, dict[str, Any]]]:
    """The arrays whose calls need all kernels of a layout between them, each with which positions are valid."""

    def array(channels: int) -> np.ndarray:
        if layout == "channels_first":
            return np.zeros((N, channels, size), dtype)
        return np.zeros((N, size, channels), dtype).swapaxes(1, 2)

    yield array(C), {}
    if size == LARGE:  # the same kernels, and what shares out their tasks
        return
    yield np.zeros((N, C), dtype), {}
    if padded:
        yield array(C), {"lengths": [size] * N}
        for channels in (C,) if layout == "channels_first" else (C, FEW_CHANNELS):
            yield array(channels), {"mask": np.ones((N, 1, size), np.bool_)}


def _call(op: str, x: np.ndarray, options: dict[str, Any], operands: list[str]) -> None:
    """A call that needs the kernel; what it gives does not matter."""
    result = x if dtype_row(x.dtype) else np.zeros_like(x, np.float32)
    options |= dict.fromkeys(operands, result)
    if op == "forward":
        group_norm_forward(x, G, **options)
    else:
        group_norm_backward(result, x, np.zeros((N, G)), np.ones((N, G)), G, **options)
