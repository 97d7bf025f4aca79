"""The forward and the backward pass: look the plan up, or check the arguments and make it; run it; give the results.

What came is what runs where a plan is found. Else arrays that no kernel can read as they are become copies, samples
that are no problem of the batch's kernel become calls of their own, and what needed neither is remembered.
"""

from collections.abc import Iterator
from math import prod
from typing import Any

import numpy as np
from numpy import ndarray

from ..arrays.families import in_kind, view
from ..arrays.recycling import array_like
from .arguments import Backward, Forward
from .checks import ACTIVATIONS, Problem, operand, output, parameter, problem, statistics
from .operands import Arrays, Parameters, target_of
from .plans import Plan, forget_plans, key_of, planned, remember
from .positions import Valid, valid_positions
from .rows import ROWS, rows
from .running import in_batch, plan_of, run

__all__ = ["backward", "forget_plans", "forward", "samples_apart"]

Array = np.ndarray[Any, np.dtype[Any]]


# -------------------------------------------------------------------------------------------------------------- forward


def forward(given: tuple[Any, ...], with_statistics: bool) -> tuple[Any, Any, Any]:
    """(y, mean, rstd) of a `Forward`; mean and rstd are None unless asked for."""
    x, num_groups, weight, bias, eps, channel_axis, activation, skip, residual, lengths, mask, out = given
    if type(x) is not ndarray or (out is not None and type(out) is not ndarray):
        return in_kind(forward, Forward._make(given), with_statistics)
    kind: Any = eps if type(eps) is float else _number(eps)
    if lengths is not None or mask is not None:
        kind = _padded(kind, lengths, mask)
    operands = () if skip is None and residual is None else (skip, residual)
    parameters = weight, bias
    key = key_of(kind, (num_groups, channel_axis, activation), x, operands, parameters, out)
    plan = planned(key)
    if plan is not None:
        y = plan.like(x) if out is None else out
        positions = mask if lengths is None else lengths
        done = run(plan, (x, skip, residual, None, y, None), parameters, plan.eps, positions)
        if done is not None:
            return (y, *_statistics(plan, done[0])) if with_statistics else (y, None, None)
    return _first_forward(Forward._make(given), key)


def _first_forward(given: Forward, key: Any) -> tuple[Any, Any, Any]:
    """A forward pass without a plan, or with lengths that have to be looked at before it runs."""
    x, num_groups, weight, bias, eps, channel_axis, activation, skip, residual, lengths, mask, out = given
    p = (rows if channel_axis is ROWS else problem)(x, num_groups, eps, channel_axis, activation)
    parameters = parameter("weight", weight, p), parameter("bias", bias, p)
    s, r = operand("skip", skip, p), operand("residual", residual, p)
    valid = None if lengths is None and mask is None else valid_positions(lengths, mask, p, x)
    y = array_like(x, p.result) if out is None else output(out, p)
    if p.size == 0:
        return (y if out is None else out), np.zeros(p.statistics_shape), np.zeros(p.statistics_shape)
    target, parameters = target_of(Arrays(p.x, s, r, None, y), p, parameters)
    arrays = Arrays(p.x, s, r, None, target)
    plan = planned(key) or plan_of("forward", p, arrays, parameters, valid)
    samples = list(samples_apart(p, valid, (x, s, r), parameters))
    done = run(plan, arrays, parameters, p.eps, valid and valid.positions)
    assert done is not None
    mean, rstd = _statistics(plan, done[0])
    for n, part, (x_n, skip_n, residual_n), (w, b) in samples:
        one = Forward(x_n, p.G, w, b, p.eps, p.channel_axis, ACTIVATIONS[p.activation], skip_n, residual_n)
        target[part], mean[n : n + 1], rstd[n : n + 1] = forward(one, True)
    if target is not y:
        np.copyto(y, target)
    elif p.x is x and s is skip and r is residual:
        _remember(key, plan, valid, weight, bias)
    return (y if out is None else out), mean, rstd


# ------------------------------------------------------------------------------------------------------------- backward


def backward(given: tuple[Any, ...]) -> tuple[Any, ...]:
    """(dx, dweight, dbias) of a `Backward`, and dresidual if there is a residual."""
    dy, x, mean, rstd, num_groups, weight, bias, channel_axis, activation, skip, residual, lengths, mask, out = given
    if type(x) is not ndarray or (out is not None and type(out) is not ndarray):
        return in_kind(backward, Backward._make(given), public="group_norm_backward and the backward of layers")
    kind: Any = "backward"
    if lengths is not None or mask is not None:
        kind = _padded(kind, lengths, mask)
    operands = (dy,) if skip is None and residual is None else (dy, skip, residual)
    parameters = weight, bias, mean, rstd
    key = key_of(kind, (num_groups, channel_axis, activation), x, operands, parameters, out)
    plan = planned(key)
    if plan is not None:
        dx, positions = plan.like(x) if out is None else out, mask if lengths is None else lengths
        dresidual = None if residual is None else plan.frame.empty(residual.dtype)
        statistics = mean.ravel(), rstd.ravel()
        done = run(plan, (x, skip, residual, dy, dx, dresidual), (weight, bias), statistics, positions)
        if done is not None:
            gradients = _gradients(plan, done, weight, bias)
            return (dx, *gradients) if dresidual is None else (dx, *gradients, dresidual)
    return _first_backward(Backward._make(given), key)


def _first_backward(given: Backward, key: Any) -> tuple[Any, ...]:
    """The backward pass, as `_first_forward`."""
    dy, x, mean, rstd, num_groups, weight, bias, channel_axis, activation, skip, residual, lengths, mask, out = given
    p = (rows if channel_axis is ROWS else problem)(x, num_groups, 0.0, channel_axis, activation)
    weight, bias, residual = (  # whose shapes and dtypes their gradients have
        None if value is None else view(name, value)
        for name, value in (("weight", weight), ("bias", bias), ("residual", residual))
    )
    parameters = parameter("weight", weight, p), parameter("bias", bias, p)
    s, r, g = operand("skip", skip, p), operand("residual", residual, p), operand("dy", dy, p)
    if g is None:
        raise TypeError("dy must be a numpy.ndarray, got None")
    m, rs = statistics("mean", mean, p), statistics("rstd", rstd, p)
    valid = None if lengths is None and mask is None else valid_positions(lengths, mask, p, x)
    dx = array_like(x, p.result) if out is None else output(out, p)
    dr = None if r is None else p.empty(r.dtype)
    if p.size == 0:
        sums = np.zeros(2 * (p.N + 1) * p.C), np.zeros(2 * p.C, p.dtype.accumulator)
        gradients = _in_shape(p, *sums, weight, bias)
    else:
        target, parameters = target_of(Arrays(p.x, s, r, g, dx), p, parameters, m, rs)
        arrays = Arrays(p.x, s, r, g, target, dr)
        plan = planned(key) or plan_of("backward", p, arrays, parameters, valid)
        samples = list(samples_apart(p, valid, (x, s, r, g), parameters))
        here = plan._replace(per_sample=True) if samples else plan
        done = run(here, arrays, parameters, (m.reshape(-1), rs.reshape(-1)), valid and valid.positions)
        assert done is not None
        if samples:
            done = _backward_apart(p, samples, arrays, (m, rs), done)
        gradients = _gradients(plan, done, weight, bias)
        if target is not dx:
            np.copyto(dx, target)
        elif p.x is x and s is skip and r is residual and g is dy and m is mean and rs is rstd:
            _remember(key, plan, valid, weight, bias)
    results = dx if out is None else out, *gradients
    if dr is None:
        return results
    assert residual is not None
    with np.errstate(all="ignore"):
        return (*results, dr.astype(residual.dtype.newbyteorder("="), copy=False))


def _backward_apart(p: Problem, samples: list[Any], arrays: Arrays, statistics: tuple[Array, Array], done: Any) -> Any:
    """Run the samples that are calls of their own, and put their sums among those of the others."""
    work, problems = done[0], done[2]
    sums, (mean, rstd) = work[: 2 * p.N * p.C].reshape(2, p.N, p.C), statistics
    for n, part, (x, skip, residual, dy), parameters in samples:
        # given, so that their gradients come in float64
        w, b = (np.full(p.C, d) if v is None else v.astype(float) for d, v in zip((1.0, 0.0), parameters, strict=True))
        one = Backward(dy, x, mean[n : n + 1], rstd[n : n + 1], p.G, w, b, p.channel_axis)
        one = one._replace(activation=ACTIVATIONS[p.activation], skip=skip, residual=residual)
        arrays.y[part], dweight, dbias, *more = backward(one)
        sums[1, n], sums[0, n] = dweight.reshape(-1), dbias.reshape(-1)
        if arrays.dresidual is not None:
            (arrays.dresidual[part],) = more
    return *in_batch(sums, p.dtype.accumulator), problems


# -------------------------------------------------------------------------------------------------------- before, after


def _number(eps: Any) -> float | None:
    """A number of another type as a float; None, which no plan has, for what must be looked at."""
    if isinstance(eps, (int, np.integer, np.floating)) and not isinstance(eps, bool):
        try:
            return float(eps)
        except OverflowError:
            return None
    return None


def _padded(kind: Any, lengths: Any, mask: Any) -> Any:
    """The kind of a call with lengths or a mask; None, which no plan has, for one with both."""
    return None if kind is None or (lengths is not None and mask is not None) else (kind, lengths is None)


def samples_apart(
    p: Problem, valid: Valid | None, arrays: tuple[Array | None, ...], parameters: Parameters = (None, None)
) -> Iterator[tuple[int, tuple[slice, ...], list[Array | None], list[Array | None]]]:
    """(n, the index of what is valid, copies of it, since y may be x, the parameters) of samples that are own calls."""
    if valid is None or valid.lengths is None:
        return
    for n in valid.apart:
        part = [slice(None)] * len(p.shape)
        part[0], part[valid.axis] = slice(n, n + 1), slice(0, int(valid.lengths[n]))
        cut = [None if a is None else a[tuple(part)].copy("K") for a in arrays]
        yield n, tuple(part), cut, [v if v is None or v.ndim == 1 else v[n : n + 1] for v in parameters]


def _remember(key: Any, plan: Plan, valid: Valid | None, *parameters: Array | None) -> None:
    """Keep a plan that ran on the arrays that came."""
    p = plan.frame
    if key is None or (valid is not None and valid.lengths is not None and valid.most == 0):
        return
    direct = all(v is None or (v.ndim == 1 and v.dtype == p.dtype.accumulator) for v in parameters)
    remember(key, plan._replace(direct=direct and len(p.parameter_shapes[0]) == 1))


def _statistics(plan: Plan, work: Array) -> tuple[Array, Array]:
    """Mean and rstd, which the forward kernel leaves at the beginning of its work, as arrays of their own."""
    shape = plan.groups
    if shape is None:
        p = plan.frame
        count = p.N * p.G
        return p.in_shape(work[:count]).copy(), p.in_shape(work[count : 2 * count]).copy()
    count = prod(shape)
    return work[:count].reshape(shape).copy(), work[count : 2 * count].reshape(shape).copy()


def _gradients(plan: Plan, done: Any, weight: Any, bias: Any) -> tuple[Array, ...]:
    """Dweight and dbias of a run."""
    work, gradients, _ = done
    if plan.direct:
        half = plan.gradients // 2
        return gradients[half:], gradients[:half]
    return _in_shape(plan.frame, work, gradients, weight, bias)


def _in_shape(p: Problem, work: Array, gradients: Array, weight: Any, bias: Any) -> tuple[Array, ...]:
    """Dweight and dbias in the parameters' shapes and dtypes.

    The kernel leaves the sums of dz and of dz * x_hat over all samples at the end of its work, and in the accumulator's
    dtype in `gradients`; where parameters are those of samples, the sums of each (N, C) at the beginning of its work.
    """
    N, C, shared = p.N, p.C, p.parameter_shapes[0]
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
    return tuple(results)
