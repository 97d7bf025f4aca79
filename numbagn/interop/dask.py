"""Dask arrays: checked at once, computed chunk by chunk when asked for.

Where no group (or row of a layer norm) is cut, as chunks split the batch and the channels between groups only, each
chunk is a call of its own.
Where positions are split too, the moments of all chunks of a group are merged, in the order of the chunks, and each
chunk is normalized by them.
"""

import math
from functools import partial
from itertools import accumulate
from typing import Any, NamedTuple

import dask.array as da
import numpy as np

from ..arrays.families import as_array, float_row
from ..calls import passes
from ..calls.arguments import Forward
from ..calls.checks import Problem, problem, shown
from ..calls.rows import ROWS, normalized, rows
from ..moments import Moments, Part, group_moments, moments_of
from ..moments import normalize as normalize_block

__all__ = ["forward", "normalize"]

Axes = tuple[int, ...]


class Call(NamedTuple):
    """What is the same for all chunks."""

    sizes: tuple[int, ...]  # of a row, or the channels of a group
    channel_axis: int | None  # None: rows
    eps: float
    activation: str | None
    dtype: np.dtype  # of y
    names: tuple[str, ...]  # of the operands

    def groups(self, x: np.ndarray) -> tuple[Any, Any]:
        """What a call takes as number of groups and channel axis of a chunk."""
        if self.channel_axis is None:
            return self.sizes, ROWS
        return x.shape[self.channel_axis] // self.sizes[0], self.channel_axis


def forward(given: Forward, with_statistics: bool) -> tuple[Any, Any, Any]:
    """(y, mean, rstd) of `passes.forward` as Dask arrays."""
    x, num_groups, weight, bias, eps, channel_axis, activation, skip, residual, lengths, mask, out = given
    _check_none("x", out=out, lengths=lengths, mask=mask)
    _check_chunks("x", x)
    axes = tuple(range(x.ndim))
    C_axis: int | None = None
    kept: Axes
    shapes: tuple[Axes, ...]  # of parameters
    # all checks but those of leading sizes, on an array of no samples
    if channel_axis is ROWS:
        sizes = normalized(num_groups)
        lead = max(0, x.ndim - len(sizes))
        _check_known("x", x, lead)
        p: Problem = rows(np.empty((0,) * lead + x.shape[lead:], x.dtype), sizes, eps, ROWS, activation)
        kept, shapes = axes[:lead], (axes[lead:],)
        x = x.rechunk(dict.fromkeys(axes[lead:], -1))
        groups = {}
    else:
        _check_known("x", x, 1)
        p = problem(np.empty((0, *x.shape[1:]), x.dtype), num_groups, eps, channel_axis, activation)
        if p.C * p.S == 0:
            zeros = da.zeros((x.shape[0], p.G), chunks=(x.chunks[0], p.G))
            return da.empty(x.shape, p.result, chunks=x.chunks), zeros, zeros
        C_axis, sizes = p.channel_axis, (p.C // p.G,)
        kept, shapes = (0, C_axis), ((C_axis,), (0, C_axis))
        x, of_groups = _whole_groups(x, C_axis, *sizes)
        groups = {C_axis: of_groups}
    operands = _operands(x, shapes, weight=weight, bias=bias) | _operands(x, (axes,), skip=skip, residual=residual)
    beside = [part for pair in operands.values() for part in pair]
    call = Call(sizes, C_axis, p.eps, activation, p.result, tuple(operands))

    summed = [axis for axis in axes if axis not in kept]
    if all(x.numblocks[axis] == 1 for axis in summed):
        # each block holds y, mean and rstd, taken apart in what follows; put together it would be copied
        results = _blocks(_results, call, axes, x, axes, *beside, dtype=object)
        y = _blocks(_item, 0, axes, results, axes, dtype=p.result)
        if not with_statistics:
            return y, None, None
        options = {"dtype": np.float64, "adjust_chunks": groups, "concatenate": False}
        return y, *(_blocks(_item, i, kept, results, axes, **options) for i in (1, 2))

    field = x.ndim  # the axis of count, mean and M2
    of_x = x, axes, *operands.get("skip", ())
    sizes_made = {"new_axes": {field: 3}, "adjust_chunks": groups | dict.fromkeys(summed, 1)}
    moments = _blocks(_moments, call, (*axes, field), *of_x, dtype=np.float64, **sizes_made)
    moments = _blocks(_merged, C_axis, (*kept, field), moments, (*axes, field), dtype=np.float64)
    y = _blocks(_normalized, call, axes, x, axes, moments, (*kept, field), *beside, dtype=p.result)
    if not with_statistics:
        return y, None, None
    return y, moments[..., 1], _blocks(_rstd, call, kept, moments, (*kept, field), dtype=np.float64)


def normalize(given: Part) -> Any:
    """What `numbagn.normalize` makes of a Dask array: each chunk by its part of the moments."""
    chunk, m, weight, bias, eps, channel_axis, activation, out = given
    _check_none("chunk", out=out)
    _check_chunks("chunk", chunk)
    _check_known("chunk", chunk, 0)
    p = problem(np.empty((0, *chunk.shape[1:]), chunk.dtype), 1, eps, channel_axis, activation, "chunk")
    moments = moments_of(m, chunk.shape[0], p.C)
    if chunk.size == 0:
        return da.empty(chunk.shape, p.result, chunks=chunk.chunks)
    axis, group_size, axes = p.channel_axis, p.C // moments.mean.shape[1], tuple(range(chunk.ndim))
    chunk, of_groups = _whole_groups(chunk, axis, group_size)
    both = _operands(chunk, ((axis,), (0, axis)), weight=weight, bias=bias)
    call = Call((group_size,), axis, p.eps, activation, p.result, tuple(both))
    stacked = da.from_array(np.stack(moments, axis=-1), (chunk.chunks[0], of_groups, 3))
    beside = [part for pair in both.values() for part in pair]
    return _blocks(_normalized, call, axes, chunk, axes, stacked, (0, axis, chunk.ndim), *beside, dtype=p.result)


def _blocks(function: Any, first: Any, axes: Axes, *arrays: Any, dtype: Any, **options: Any) -> Any:
    """`function(first, *blocks)` for each block of an array with these axes; axes it lacks are put together before."""
    kind = {"dtype": dtype, "meta": np.empty((0,) * len(axes), dtype)}
    options = {"concatenate": True, "align_arrays": False, **kind, **options}
    return da.blockwise(partial(function, first), axes, *arrays, **options)


def _check_chunks(name: str, array: Any) -> None:
    """Refuse chunks that are of another kind than NumPy's."""
    kind = type(array._meta)
    if kind is not np.ndarray:
        raise TypeError(f"{name} must have chunks of numpy.ndarray, got {kind.__module__}.{kind.__qualname__}")


def _check_none(lead: str, **options: Any) -> None:
    """Refuse options that are not taken here."""
    for name, value in options.items():
        if value is not None:
            raise TypeError(f"{name} must be None where {lead} is a Dask array, got {shown(value)}")


def _check_known(name: str, x: Any, lead: int) -> None:
    if any(math.isnan(size) for size in x.shape[lead:]):
        where = f" after axis {lead - 1}" if lead else ""
        raise ValueError(f"{name} must have known sizes{where}, got {x.shape}; use compute_chunk_sizes()")


def _whole_groups(x: Any, axis: int, group_size: int) -> tuple[Any, tuple[int, ...]]:
    """x in chunks that cut no group of channels, and the chunks along the axis of an array of its groups."""
    x = x.rechunk({axis: _between_groups(x.chunks[axis], group_size)})
    return x, tuple(size // group_size for size in x.chunks[axis])


def _between_groups(chunks: tuple[int, ...], group_size: int) -> tuple[int, ...]:
    """Chunks of channels whose ends are moved up to where groups end."""
    ends = sorted({-(-end // group_size) * group_size for end in accumulate(chunks)})
    return tuple(end - start for start, end in zip([0, *ends[:-1]], ends, strict=True))


def _operands(x: Any, kinds: tuple[Axes, ...], **values: Any) -> dict[str, tuple[Any, Axes]]:
    """Those of the arrays beside x that are given, by name: each in the chunks of x, with which axes of x it has."""
    return {name: _operand(name, value, x, kinds) for name, value in values.items() if value is not None}


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


def _results(call: Call, x: np.ndarray, *operands: np.ndarray) -> Any:
    """(y, mean, rstd) of a chunk of whole groups or rows."""
    given, (groups, axis) = dict(zip(call.names, operands, strict=True)), call.groups(x)
    return passes.forward(
        Forward(x, groups, eps=call.eps, channel_axis=axis, activation=call.activation, **given), True
    )


def _item(i: int, results: Any) -> np.ndarray:
    while isinstance(results, list):  # one for each axis of a single block
        (results,) = results
    item: np.ndarray = results[i]
    return item


def _moments(call: Call, x: np.ndarray, skip: np.ndarray | None = None) -> np.ndarray:
    """(N, ..., G, ..., 3): the moments of a chunk, with axes of size 1 for its positions."""
    groups, axis = call.groups(x)
    shape = [x.shape[0]] + [1] * x.ndim
    shape[axis], shape[-1] = groups, 3
    m = group_moments(_sum(x, skip), groups, channel_axis=axis)
    return np.stack(m, axis=-1).reshape(shape)


def _merged(channel_axis: int, moments: np.ndarray) -> np.ndarray:
    """(N, G, 3): the moments of all chunks, (N, ..., G, ..., 3), merged in the order of the chunks."""
    parts = np.moveaxis(moments, (0, channel_axis, -1), (-3, -2, -1))
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
    given, m, (_, axis) = dict(zip(call.names, operands, strict=True)), _unstacked(moments), call.groups(x)
    weight, bias, residual = given.get("weight"), given.get("bias"), given.get("residual")
    x = _sum(x, given.get("skip"))
    y: np.ndarray
    if residual is None:
        y = normalize_block(x, m, weight, bias, call.eps, channel_axis=axis, activation=call.activation)
    else:
        y = normalize_block(x.astype(np.float64), m, weight, bias, call.eps, channel_axis=axis)
        as_it_is = Moments(np.ones_like(m.mean), np.zeros_like(m.mean), np.ones_like(m.mean))
        y = normalize_block(_sum(y, residual), as_it_is, eps=0.0, channel_axis=axis, activation=call.activation)
    with np.errstate(all="ignore"):
        return y.astype(call.dtype, copy=False)


def _sum(x: np.ndarray, added: np.ndarray | None) -> np.ndarray:
    """x, or what it is with something added, in float64: float32 would lose digits to an offset."""
    return x if added is None else x.astype(np.float64) + added.astype(np.float64)
