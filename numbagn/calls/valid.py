"""How a call runs where only some positions are valid."""

from collections.abc import Callable
from typing import Any

import numpy as np

from ..arrays.dtypes import STORED
from ..shapes.geometry import FIELDS
from .arguments import Backward, Forward
from .checks import ACTIVATIONS, Problem
from .loading import kernels
from .operands import dense, dims_of, flat_of, kind_of, launcher_of, runner, share_of, statistics_of, values_of
from .positions import Valid, clear_invalid, tables

__all__ = ["backward_valid", "forward_valid", "part_of"]

Array = np.ndarray[Any, np.dtype[Any]]


def forward_valid(
    p: Problem, v: Valid, w: Array | None, b: Array | None, s: Array | None, r: Array | None, y: Array,
    again: Callable[..., Any],
) -> tuple[Array, Array]:  # fmt: skip
    """Fill y, and give mean and rstd; both are 0 where nothing is valid. `again` is `_calls.forward`."""
    kernel_of = kernels("forward").forward_kernel
    arrays = {"X": p.x, "SKIP": s, "RES": r, "Y": y}
    common = dims_of(p, share_of("forward", p, p.layout, **arrays), w, b, **arrays)
    runs, size, kind, mask = tables("forward", p, v, common, dense(p, **arrays), 2 * p.G)
    count = p.N * p.G
    work = np.empty(2 * count + size)
    work[: 2 * count] = 0.0
    # what a kernel could not read goes first: y may be x
    parts = [(n, *part_of(p, v, n)) for n in v.apart]
    cuts = [[None if a is None else a[part].copy("K") for a in (v.x, s, r)] for _, part, _ in parts]
    for dims, parallel, scratch in runs:
        kernel_arrays = flat_of(p.x, p), flat_of(s, p), flat_of(r, p), None, flat_of(y, p), None, mask
        parameters = values_of(w, p, 1.0), values_of(b, p, 0.0)
        memory = work, None, np.empty(max(1, scratch), p.dtype.accumulator)
        arguments = dims, p.eps, kernel_arrays, parameters, memory, launcher_of(parallel)
        kinds = p.layout, STORED.index(p.dtype.name), kind_of(s), kind_of(r), kind, p.activation
        runner(kernel_of(arguments, *kinds), p, parallel)(*arguments)
    clear_invalid(y, p, v)
    mean, rstd = statistics_of(work, (p.N, p.G))
    for (n, part, own), (x, skip, residual) in zip(parts, cuts, strict=True):
        given = Forward(x, p.G, own(w), own(b), p.eps, p.channel_axis, ACTIVATIONS[p.activation], skip, residual)
        y[part], mean[n : n + 1], rstd[n : n + 1] = again(given, True)
    return mean, rstd


def backward_valid(
    p: Problem, v: Valid, w: Array | None, b: Array | None, m: Array, rs: Array, arrays: dict[str, Array | None],
    again: Callable[..., Any],
) -> tuple[Array, Array]:  # fmt: skip
    """Fill dx and dresidual, and give what `parameter_gradients` takes. `again` is `_calls.backward`."""
    kernel_of = kernels("backward").backward_kernel
    dy, s, r, dx, dr = (arrays[name] for name in ("DY", "SKIP", "RES", "Y", "DRES"))
    assert dx is not None
    assert dy is not None
    common = dims_of(p, share_of("backward", p, p.layout, **arrays), w, b, **arrays)
    runs, size, kind, mask = tables("backward", p, v, common, dense(p, **arrays), 2 * p.C)
    work = np.empty(size + 2 * p.N * p.G + 2 * p.C)
    gradients = np.empty(2 * p.C, p.dtype.accumulator)
    parts = [(n, *part_of(p, v, n)) for n in v.apart]
    cuts = [[None if a is None else a[part].copy("K") for a in (v.x, s, r, dy)] for _, part, _ in parts]
    sums = np.zeros((2, p.N, p.C))
    at, sample = FIELDS.index("AT"), FIELDS.index("SAMPLE")
    for dims, parallel, scratch in runs:
        kernel_arrays = *(flat_of(a, p) for a in (p.x, s, r, dy, dx, dr)), mask
        parameters = values_of(w, p, 1.0), values_of(b, p, 0.0)
        memory = work, gradients, np.empty(max(1, scratch), p.dtype.accumulator)
        arguments = dims, (m.reshape(-1), rs.reshape(-1)), kernel_arrays, parameters, memory, launcher_of(parallel)
        kinds = p.layout, STORED.index(p.dtype.name), kind_of(dy), kind_of(s), kind_of(r), kind, p.activation
        runner(kernel_of(arguments, *kinds), p, parallel)(*arguments)
        for problem_dims in dims:
            begin = problem_dims[at]
            sums[:, problem_dims[sample]] = work[begin : begin + 2 * p.C].reshape(2, p.C)
    clear_invalid(dx, p, v)
    if dr is not None:
        clear_invalid(dr, p, v)
    for (n, part, own), (x, skip, residual, upstream) in zip(parts, cuts, strict=True):
        ones = np.ones(p.C) if w is None else own(w).astype(float)
        zeros = np.zeros(p.C) if b is None else own(b).astype(float)
        dx[part], dweight, dbias, *more = again(
            Backward(
                upstream, x, m[n : n + 1], rs[n : n + 1], p.G, ones, zeros, p.channel_axis, ACTIVATIONS[p.activation],
                skip, residual,
            )
        )  # fmt: skip
        sums[1, n], sums[0, n] = dweight.reshape(-1), dbias.reshape(-1)
        if dr is not None:
            (dr[part],) = more
    totals = sums.sum(axis=1).reshape(-1)
    gradients[:] = totals
    return np.concatenate([sums.reshape(-1), totals]), gradients


def part_of(p: Problem, v: Valid, n: int) -> tuple[tuple[slice, ...], Callable[[Any], Any]]:
    """The index of what is valid of sample n, and what gives its own of a parameter."""
    assert v.lengths is not None
    axis = next(a for a in range(1, len(p.shape)) if a != p.channel_axis)
    part = [slice(None)] * len(p.shape)
    part[0], part[axis] = slice(n, n + 1), slice(0, int(v.lengths[n]))
    return tuple(part), lambda values: values if values is None or values.ndim == 1 else values[n : n + 1]
