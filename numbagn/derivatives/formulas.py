"""How derivatives beyond the gradient are computed: tangents on the kernels, second derivatives in NumPy float64.

In one group of M elements let r = rstd, let m(.) be the mean over the group, and J the derivative of x_hat by x:

    J v = r * (v - m(v) - x_hat * m(v * x_hat))

J is symmetric, so the backward pass without weight computes it. With z = x_hat * weight + bias + residual, u = J v, and
p, q, s the directions of weight, bias and residual, the tangents are

    t = weight * u + p * x_hat + q + s  (of z)        activation'(z) * t  (of y)

The gradients (dx, dweight, dbias, dresidual) are linear in dy. What they make with (v, p, q, s) is sum(dy *
activation'(z) * t): its own gradient with respect to dy is the tangent of y, the others follow from

    J'[v1] v2 = -r * (m(v1 * x_hat) * J v2 + m(v2 * x_hat) * J v1 + x_hat * m(v2 * J v1))

which comes from r' = -r**2 * m(v1 * x_hat) and x_hat' = J v1, and which summed against a third vector does not change
if the three change places.
"""

import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np

from ..arrays.families import in_kind
from ..arrays.recycling import array_like
from ..calls.arguments import Backward, Forward
from ..calls.checks import Problem, operand, parameter, problem, statistics
from ..calls.passes import backward, forward
from ..reference import ACTIVATIONS

__all__ = ["Direction", "double_backward", "second_tangent", "tangent"]

Array = np.ndarray[Any, np.dtype[Any]]

# Elements worked on at a time, whole samples: there are a few temporary arrays of them for tangents, a dozen in float64
# for second derivatives, which then stay in the cache.
TANGENT_ELEMENTS, SECOND_ELEMENTS = 1 << 20, 1 << 16
# Where activations are straight lines to the last digit; beyond, the formulas for their slopes would overflow.
STRAIGHT = 800.0


class Direction(NamedTuple):
    """How x (and skip), weight, bias and residual change together; None stands for zeros."""

    x: Any = None
    weight: Any = None
    bias: Any = None
    residual: Any = None


# ------------------------------------------------------------------------------------------------------------- tangents


def tangent(call: Forward, along: Direction) -> tuple[Any, Any]:
    """(y, dy) of `numbagn.group_norm_jvp`, with a residual and its tangent if given."""
    x, num_groups, weight, bias, eps, channel_axis, activation, _, residual, *_ = call
    if type(x) is not np.ndarray:
        return in_kind(tangent, call, along, public="group_norm_jvp")
    p = problem(x, num_groups, eps, channel_axis, activation)
    w, b, r = parameter("weight", weight, p), parameter("bias", bias, p), operand("residual", residual, p)
    _required("dx", along.x)
    v, dw, db, dr = _direction(p, (w, b, r), along, "d")
    y, mean, rstd = forward(call._replace(num_groups=p.G, eps=p.eps, channel_axis=p.channel_axis), True)
    dy, wide, axis = array_like(x, p.result), p.dtype.accumulator, p.channel_axis
    for part in _stretches(p, TANGENT_ELEMENTS):
        xs, m, rs = p.x[part].astype(wide, copy=False), mean[part], rstd[part]
        ws, bs, dws, dbs = (_of_samples(a, part) for a in (w, b, dw, db))
        with np.errstate(all="ignore"):
            t = v[part].astype(wide)
            # J does not see a constant, and sees the rest better without it: the direction may lie as far off as x
            grouped = _grouped(t, p)
            grouped -= grouped.mean(axis=tuple(range(2, grouped.ndim)), dtype=np.float64, keepdims=True)
            t = backward(Backward(t, xs, m, rs, p.G, channel_axis=axis, out=t))[0]
            if ws is not None:
                t *= _along_channels(ws, p)
            if dws is not None:
                t = forward(Forward(xs, p.G, dws, None, p.eps, axis, residual=t, out=t), False)[0]
            if dbs is not None:
                t += _along_channels(dbs, p)
            if dr is not None:
                t += dr[part]
            if activation is not None:
                given = np.zeros_like(xs) if r is None else r[part].astype(wide, copy=False)
                # the gradient of the residual is what is asked for: t * activation'(z)
                t = backward(Backward(t, xs, m, rs, p.G, ws, bs, axis, activation, residual=given))[3]
            dy[part] = t
    return y, dy


def _required(name: str, value: Any) -> None:
    if value is None:
        raise TypeError(f"{name} must be a numpy.ndarray, got None")


def _direction(p: Problem, given: tuple[Array | None, ...], along: Direction, prefix: str) -> Direction:
    """A direction, checked against the (weight, bias, residual) given; its arrays are named with a prefix."""
    *parameters, residual = given
    if along.residual is not None and residual is None:
        raise ValueError(f"{prefix}residual must be None where residual is")
    checked = {}
    for name, value, of in zip(("weight", "bias"), along[1:3], parameters, strict=True):
        array = checked[name] = parameter(f"{prefix}{name}", value, p)
        if array is not None and of is not None and array.shape != of.shape:
            raise ValueError(f"{prefix}{name} must have {name}'s shape {of.shape}, got {array.shape}")
    x, residual = operand(f"{prefix}x", along.x, p), operand(f"{prefix}residual", along.residual, p)
    return Direction(x, **checked, residual=residual)


def _stretches(p: Problem, elements: int) -> Iterator[slice]:
    """Slices of the batch of about so many elements, none where x is empty."""
    step = max(1, elements // max(1, p.C * p.S))
    return (slice(n, min(n + step, p.N)) for n in range(0, p.N if p.size else 0, step))


def _of_samples(given: Array | None, part: slice) -> Array | None:
    return given[part] if given is not None and given.ndim == 2 else given


def _along_channels(given: Array, p: Problem) -> Array:
    """A parameter so shaped that it broadcasts against x."""
    shape = [1] * len(p.shape)
    shape[0], shape[p.channel_axis] = (given.shape[0] if given.ndim == 2 else 1), p.C
    return given.reshape(shape)


def _grouped(array: Array, p: Problem) -> Array:
    """The same memory as (N, G, D, ...)."""
    first = np.moveaxis(array, p.channel_axis, 1)
    return first.reshape(first.shape[0], p.G, p.C // p.G, *first.shape[2:])


# --------------------------------------------------------------------------------------------------- second derivatives


def _sigmoid_product_curvature(z: Array, u: Array, du: Any, ddu: Any) -> Array:
    """The second derivative of z * sigmoid(u) by z, with du and ddu those of u."""
    s = 0.5 * (1.0 + np.tanh(0.5 * u))
    curvature: Array = s * (1.0 - s) * (2.0 * du + z * (ddu + (1.0 - 2.0 * s) * du * du))
    return curvature


def _gelu_tanh_curvature(z: Array) -> Array:
    # gelu_tanh is z * sigmoid(u) with u = a * (z + c * z**3)
    a, c = math.sqrt(8.0 / math.pi), 0.044715
    return _sigmoid_product_curvature(z, a * (z + c * z**3), a * (1.0 + 3.0 * c * z * z), 6.0 * a * c * z)


# name: second derivative; relu has none but 0, its bend at 0 included
CURVATURES: dict[str | None, Callable[[Array], Array]] = {
    None: np.zeros_like,
    "relu": np.zeros_like,
    "silu": lambda z: _sigmoid_product_curvature(z, z, 1.0, 0.0),
    "gelu": lambda z: np.exp(-0.5 * z * z) * (2.0 - z * z) / math.sqrt(2.0 * math.pi),
    "gelu_tanh": _gelu_tanh_curvature,
}


def _mean(v: Array) -> Array:
    mean: Array = v.mean(axis=(2, 3), keepdims=True)
    return mean


class _Point(NamedTuple):
    """What is known of some samples in float64, (n, G, D, S), and the activation's first two derivatives there."""

    x_hat: Array
    rstd: Array
    weight: Any
    slope: Array
    curvature: Array

    def project(self, v: Array) -> tuple[Array, Array]:
        """(J v, the mean of v * x_hat)."""
        v = v - _mean(v)
        along = _mean(v * self.x_hat)
        return self.rstd * (v - self.x_hat * along), along


class _Inputs(NamedTuple):
    """The arguments of `numbagn.group_norm_backward` but dy, checked."""

    p: Problem
    activation: str | None
    mean: Array
    rstd: Array
    weight: Array | None
    bias: Array | None
    skip: Array | None
    residual: Array | None

    def like_x(self, array: Array | None, part: slice) -> Any:
        """Some samples as (n, G, D, S) float64; 0 for None."""
        if array is None:
            return 0.0
        samples = np.moveaxis(array[part], self.p.channel_axis, 1).astype(np.float64, order="C")
        return samples.reshape(samples.shape[0], self.p.G, self.p.C // self.p.G, self.p.S)

    def like_weight(self, array: Array | None, part: slice, default: float = 0.0) -> Any:
        """A parameter of some samples, to broadcast against (n, G, D, S)."""
        of_samples = _of_samples(array, part)
        if of_samples is None:
            return default
        return of_samples.astype(np.float64).reshape(-1, self.p.G, self.p.C // self.p.G, 1)

    def point(self, part: slice) -> _Point:
        rstd = self.rstd[part, :, None, None]
        v = self.like_x(self.p.x, part) + self.like_x(self.skip, part)
        x_hat, w = (v - self.mean[part, :, None, None]) * rstd, self.like_weight(self.weight, part, 1.0)
        z = x_hat * w + self.like_weight(self.bias, part) + self.like_x(self.residual, part)
        z = np.clip(z, -STRAIGHT, STRAIGHT)
        slope: Any = ACTIVATIONS[self.activation][1]
        return _Point(x_hat, rstd, w, slope(z), CURVATURES[self.activation](z))

    def checked(self, along: Direction, prefix: str) -> Direction:
        return _direction(self.p, (self.weight, self.bias, self.residual), along, prefix)

    def direction(self, to: Direction, part: slice) -> tuple[Array, Any, Any]:
        """Of some samples: the directions of x and weight, and those of bias and residual together."""
        v = np.zeros((part.stop - part.start, self.p.G, self.p.C // self.p.G, self.p.S)) + self.like_x(to.x, part)
        rest = self.like_weight(to.bias, part) + self.like_x(to.residual, part)
        return v, self.like_weight(to.weight, part), rest

    def write(self, result: Array, part: slice, values: Array) -> None:
        """Write (n, G, D, S) values to the same samples of a result of x's shape."""
        samples = np.moveaxis(result[part], self.p.channel_axis, 1)
        samples[...] = values.reshape(samples.shape)


def _inputs(call: Backward) -> _Inputs:
    p = problem(call.x, call.num_groups, 0.0, call.channel_axis, call.activation)
    mean, rstd = statistics("mean", call.mean, p), statistics("rstd", call.rstd, p)
    weight, bias = parameter("weight", call.weight, p), parameter("bias", call.bias, p)
    skip, residual = operand("skip", call.skip, p), operand("residual", call.residual, p)
    return _Inputs(p, call.activation, mean, rstd, weight, bias, skip, residual)


def double_backward(call: Backward, along: Direction) -> tuple[Any, ...]:
    """(grad_dy, grad_x, grad_weight, grad_bias) of `numbagn.group_norm_double_backward`, and grad_residual."""
    if type(call.x) is not np.ndarray:
        return in_kind(double_backward, call, along, public="group_norm_double_backward")
    dy, x, weight, bias, residual = call.dy, call.x, call.weight, call.bias, call.residual
    inputs = _inputs(call)
    p = inputs.p
    _required("dy", dy)
    upstream, to = operand("dy", dy, p), inputs.checked(along, "dd")
    results = [array_like(a, a.dtype.newbyteorder("=")) for a in (dy, x, *([] if residual is None else [residual]))]
    sums = np.zeros((2, p.N, p.C))
    for part in _stretches(p, SECOND_ELEMENTS):
        with np.errstate(all="ignore"):
            at = inputs.point(part)
            x_hat, w = at.x_hat, at.weight
            g, (v, pw, rest) = inputs.like_x(upstream, part), inputs.direction(to, part)
            dz = g * at.slope
            dx, along_dz = at.project(w * dz)
            u, along_v = at.project(v)
            t = w * u + pw * x_hat + rest
            by_z = g * at.curvature * t
            by_x = at.project(w * by_z + pw * dz)[0]
            by_x -= at.rstd * (x_hat * _mean(w * dz * u) + along_v * dx + along_dz * u)
            for result, values in zip(results, (at.slope * t, by_x, by_z), strict=False):
                inputs.write(result, part, values)
            sums[0, part] = (by_z * x_hat + dz * u).sum(axis=3).reshape(-1, p.C)
            sums[1, part] = by_z.sum(axis=3).reshape(-1, p.C)
    gradients = []
    for per_sample, given in zip(sums, (weight, bias), strict=True):
        kind = p.dtype.accumulator if given is None else given.dtype.newbyteorder("=")
        with np.errstate(all="ignore"):
            gradients.append((per_sample if np.ndim(given) == 2 else per_sample.sum(axis=0)).astype(kind))
    return *results[:2], *gradients, *results[2:]


def second_tangent(one: Direction, two: Direction, call: Backward) -> Any:
    """How the tangent of y in one direction changes along another: what forward mode over forward mode asks for."""
    inputs = _inputs(call)
    directions = [inputs.checked(along, "d") for along in (one, two)]
    result = array_like(call.x, inputs.p.x.dtype)
    for part in _stretches(inputs.p, SECOND_ELEMENTS):
        with np.errstate(all="ignore"):
            at = inputs.point(part)
            (v1, p1, s1), (v2, p2, s2) = (inputs.direction(d, part) for d in directions)
            (u1, along1), (u2, along2) = at.project(v1), at.project(v2)
            x_hat_bend = -at.rstd * (along1 * u2 + along2 * u1 + at.x_hat * _mean(v2 * u1))
            z_bend = at.weight * x_hat_bend + p1 * u2 + p2 * u1
            both = (at.weight * u1 + p1 * at.x_hat + s1) * (at.weight * u2 + p2 * at.x_hat + s2)
            inputs.write(result, part, at.curvature * both + at.slope * z_bend)
    return result
