"""Dask arrays: checked at once, computed chunk by chunk when asked for.

Where no group is cut, as chunks split the batch and the channels between groups only, each chunk is a call of its own.
Where positions are split too, the moments of all chunks of a group are merged, in the order of the chunks, and each
chunk is normalized by them.
"""

import math
from functools import partial
from itertools import accumulate
from typing import Any, NamedTuple

import dask.array as da
import numpy as np

from .._arrays import as_array, float_row
from .._problem import problem, shown
from ..functional import group_norm, group_norm_forward
from ..moments import Moments, group_moments, normalize

__all__ = ["forward"]

Axes = tuple[int, ...]


class Call(NamedTuple):
    """What is the same for all chunks."""

    group_size: int
    channel_axis: int
    eps: float
    activation: str | None
    dtype: np.dtype  # of y
    names: tuple[str, ...]  # of the operands


def forward(
    x: Any, num_groups: Any, weight: Any, bias: Any, eps: Any, channel_axis: Any, activation: Any, skip: Any,
    residual: Any, out: Any, with_statistics: bool, **others: Any,
) -> tuple[Any, Any, Any]:  # fmt: skip
    """(y, mean, rstd) of `numbagn.group_norm_forward` as Dask arrays. `others` are options that are not taken here."""
    for name, value in {"out": out, **others}.items():
        if value is not None:
            raise TypeError(f"{name} must be None where x is a Dask array, got {shown(value)}")
    _check_chunks("x", x)
    if any(math.isnan(size) for size in x.shape[1:]):
        raise ValueError(f"x must have known sizes but for the batch, got shape {x.shape}; use compute_chunk_sizes()")
    # all checks but those of N, on an array of no samples
    p = problem(np.empty((0, *x.shape[1:]), x.dtype), num_groups, eps, channel_axis, activation)
    if p.C * p.S == 0:
        zeros = da.zeros((x.shape[0], p.G), chunks=(x.chunks[0], p.G))
        return da.empty(x.shape, p.result, chunks=x.chunks), zeros, zeros
    axes, C_axis, group_size = tuple(range(x.ndim)), p.channel_axis, p.C // p.G
    x = x.rechunk({C_axis: _between_groups(x.chunks[C_axis], group_size)})
    operands: dict[str, tuple[Any, Axes]] = {}
    for name, value, kinds in (
        ("weight", weight, ((C_axis,), (0, C_axis))), ("bias", bias, ((C_axis,), (0, C_axis))), ("skip", skip, (axes,)),
        ("residual", residual, (axes,)),
    ):  # fmt: skip
        if value is not None:
            operands[name] = _operand(name, value, x, kinds)
    beside = [part for pair in operands.values() for part in pair]
    call = Call(group_size, C_axis, p.eps, activation, p.result, tuple(operands))

    positions = [axis for axis in axes if axis not in (0, C_axis)]
    groups = {C_axis: tuple(size // group_size for size in x.chunks[C_axis])}  # the chunks of an array of groups
    if all(x.numblocks[axis] == 1 for axis in positions):
        if not with_statistics:
            return _blocks(_y, call, axes, x, axes, *beside, dtype=p.result), None, None
        # each block holds y, mean and rstd, taken apart in what follows
        results = _blocks(_results, call, (0, C_axis), x, axes, *beside, dtype=object)
        sizes = {axis: x.shape[axis] for axis in positions}
        return (
            _blocks(_item, 0, axes, results, (0, C_axis), dtype=p.result, new_axes=sizes),
            _blocks(_item, 1, (0, C_axis), results, (0, C_axis), dtype=np.float64, adjust_chunks=groups),
            _blocks(_item, 2, (0, C_axis), results, (0, C_axis), dtype=np.float64, adjust_chunks=groups),
        )

    field = x.ndim  # the axis of count, mean and M2
    moments = _blocks(
        _moments, call, (*axes, field), x, axes, *operands.get("skip", ()), dtype=np.float64, new_axes={field: 3},
        adjust_chunks=groups | dict.fromkeys(positions, 1),
    )  # fmt: skip
    moments = _blocks(_merged, call, (0, C_axis, field), moments, (*axes, field), dtype=np.float64)
    y = _blocks(_normalized, call, axes, x, axes, moments, (0, C_axis, field), *beside, dtype=p.result)
    if not with_statistics:
        return y, None, None
    return y, moments[..., 1], _blocks(_rstd, call, (0, C_axis), moments, (0, C_axis, field), dtype=np.float64)


def _blocks(function: Any, first: Any, axes: Axes, *arrays: Any, dtype: Any, **options: Any) -> Any:
    """`function(first, *blocks)` for each block of an array with these axes; axes it lacks are put together before."""
    return da.blockwise(
        partial(function, first), axes, *arrays, dtype=dtype, meta=np.empty((0,) * len(axes), dtype), concatenate=True,
        align_arrays=False, **options,
    )  # fmt: skip


def _check_chunks(name: str, array: Any) -> None:
    """Refuse chunks that are of another kind than NumPy's."""
    kind = type(array._meta)
    if kind is not np.ndarray:
        raise TypeError(f"{name} must have chunks of numpy.ndarray, got {kind.__module__}.{kind.__qualname__}")


def _between_groups(chunks: tuple[int, ...], group_size: int) -> tuple[int, ...]:
    """Chunks of channels whose ends are moved up to where groups end."""
    ends = sorted({-(-end // group_size) * group_size for end in accumulate(chunks)})
    return tuple(end - start for start, end in zip([0, *ends[:-1]], ends, strict=True))


def _operand(name: str, value: Any, x: Any, kinds: tuple[Axes, ...]) -> tuple[Any, Axes]:
    """An array beside x, in the chunks of x, and the axes of x that it has: one of `kinds`."""
    array = value if isinstance(value, da.Array) else da.asarray(as_array(name, value))
    _check_chunks(name, array)
    float_row(name, array)
    for axes in kinds:
        if array.shape == tuple(x.shape[axis] for axis in axes):
            return array.rechunk(tuple(x.chunks[axis] for axis in axes)), axes
    allowed = " or ".join(str(tuple(x.shape[axis] for axis in axes)) for axes in kinds)
    raise ValueError(f"{name} must have shape {allowed}, got {array.shape}")


# ----------------------------------------------------------------------------------------------------- of single chunks


def _results(call: Call, x: np.ndarray, *operands: np.ndarray, function: Any = group_norm_forward) -> Any:
    """What the function gives for a chunk of whole groups."""
    return function(
        x, x.shape[call.channel_axis] // call.group_size, **dict(zip(call.names, operands, strict=True)), eps=call.eps,
        channel_axis=call.channel_axis, activation=call.activation,
    )  # fmt: skip


def _y(call: Call, *arrays: np.ndarray) -> np.ndarray:
    y: np.ndarray = _results(call, *arrays, function=group_norm)
    return y


def _item(i: int, results: tuple[np.ndarray, ...]) -> np.ndarray:
    return results[i]


def _moments(call: Call, x: np.ndarray, skip: np.ndarray | None = None) -> np.ndarray:
    """(N, ..., G, ..., 3): the moments of a chunk, with axes of size 1 for its positions."""
    groups = x.shape[call.channel_axis] // call.group_size
    shape = [x.shape[0]] + [1] * x.ndim
    shape[call.channel_axis], shape[-1] = groups, 3
    m = group_moments(_sum(x, skip), groups, channel_axis=call.channel_axis)
    return np.stack(m, axis=-1).reshape(shape)


def _merged(call: Call, moments: np.ndarray) -> np.ndarray:
    """(N, G, 3): the moments of all chunks, (N, ..., G, ..., 3), merged in the order of the chunks."""
    parts = np.moveaxis(moments, (0, call.channel_axis, -1), (-3, -2, -1))
    first, *others = parts.reshape(math.prod(parts.shape[:-3]), *parts.shape[-3:])
    m = _unstacked(first)
    for other in others:
        m = m.merge(_unstacked(other))
    return np.stack(m, axis=-1)


def _unstacked(moments: np.ndarray) -> Moments:
    return Moments(*np.moveaxis(moments, -1, 0))


def _rstd(call: Call, moments: np.ndarray) -> np.ndarray:
    return _unstacked(moments).rstd(call.eps)


def _normalized(call: Call, x: np.ndarray, moments: np.ndarray, *operands: np.ndarray) -> np.ndarray:
    """A chunk, by the moments of all."""
    given, m = dict(zip(call.names, operands, strict=True)), _unstacked(moments)
    weight, bias, residual = given.get("weight"), given.get("bias"), given.get("residual")
    x = _sum(x, given.get("skip"))
    y: np.ndarray
    if residual is None:
        y = normalize(x, m, weight, bias, call.eps, channel_axis=call.channel_axis, activation=call.activation)
    else:
        y = normalize(x.astype(np.float64), m, weight, bias, call.eps, channel_axis=call.channel_axis)
        as_it_is = Moments(np.ones_like(m.mean), np.zeros_like(m.mean), np.ones_like(m.mean))
        y = normalize(_sum(y, residual), as_it_is, eps=0.0, channel_axis=call.channel_axis, activation=call.activation)
    with np.errstate(all="ignore"):
        return y.astype(call.dtype, copy=False)


def _sum(x: np.ndarray, added: np.ndarray | None) -> np.ndarray:
    """x, or what it is with something added, in float64: float32 would lose digits to an offset."""
    return x if added is None else x.astype(np.float64) + added.astype(np.float64)
