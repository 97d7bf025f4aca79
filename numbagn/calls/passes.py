"""How a call runs: check, share out, allocate, run the kernel, give back what came in.

The first three steps of a call give the same for all arguments of the same kinds (shapes, strides, dtypes, options): a
`Plan` keeps that, so that the next such call is a lookup, the allocations and the kernel.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from numpy import ndarray

from .._process import at_fork
from ..arrays.dtypes import STORED
from ..arrays.families import flat, in_kind, view
from ..arrays.recycling import LEAST_BYTES, array_like
from ..shapes.geometry import CHANNELS_FIRST, CHANNELS_LAST, SINGLE_POSITION
from .arguments import Backward, Forward
from .checks import Problem, operand, output, parameter, problem, statistics
from .loading import kernels
from .operands import (
    dims_of,
    flat_of,
    forget_shares,
    kind_of,
    launcher_of,
    parameter_gradients,
    runner,
    scratch_of,
    share_of,
    statistics_of,
    target_of,
    values_of,
)  # fmt: skip
from .padding import Lengths, Masks, Problems, padding_of
from .positions import NOTHING, Valid, valid_positions
from .rows import ROWS, rows
from .valid import backward_valid, forward_valid

__all__ = ["backward", "forget_plans", "forward"]

Array = np.ndarray[Any, np.dtype[Any]]

# Plans kept; a service of more kinds of calls than that forgets all and begins anew.
MOST_PLANS = 1024


class Plan(NamedTuple):
    """What is the same for all calls of one kind."""

    kernel: Callable[..., None]
    array_like: Callable[[Array], Array]  # makes the result where none is given
    dims: Array
    eps: float
    N: int
    statistics: tuple[int, ...]  # shapes: of mean and rstd, and of a parameter that all samples share
    shared: tuple[int, ...]
    storage: np.dtype[Any]  # of x
    y_storage: np.dtype[Any]  # of y and dx
    plain: bool  # x and the result lie in memory in the order of their axes
    direct: bool  # the kernel takes the parameters as they are
    weight: Array  # stand for parameters that are not given
    bias: Array
    work: int  # sizes of what is allocated for each call
    scratch: int
    gradients: int
    launcher: int
    padding: Lengths | Masks | None = None


_plans: dict[tuple[Any, ...], Plan] = {}


def forget_plans() -> None:
    """Forget all plans, for those who change a threshold."""
    _plans.clear()
    forget_shares()


at_fork(after_in_child=forget_plans)  # there the number of threads may be another


def forward(given: tuple[Any, ...], with_statistics: bool) -> tuple[Any, Any, Any]:
    """(y, mean, rstd) of a `Forward`; mean and rstd are None unless asked for."""
    x, num_groups, weight, bias, eps, channel_axis, activation, skip, residual, lengths, mask, out = given
    if type(x) is not ndarray or (out is not None and type(out) is not ndarray):
        return in_kind(forward, Forward._make(given), with_statistics)
    key = None
    ordinary = skip is None and residual is None and (lengths is None or mask is None)
    if ordinary and type(eps) is float:
        key = _key((eps, lengths is None, mask is None), x, num_groups, weight, bias, channel_axis, activation, out)
        plan = _plans.get(key) if key is not None else None
        if plan is not None:
            y = plan.array_like(x) if out is None else out
            problems: Problems = plan.dims, NOTHING
            work = np.empty(plan.work)
            target = y.reshape(-1) if plan.plain else flat(y, plan.y_storage)
            if plan.padding is not None:
                problems = plan.padding.problems(plan.dims, lengths, mask, target, work, plan.launcher)
            if problems is not None:
                dims, flags = problems
                plan.kernel(
                    dims, plan.eps,
                    (x.reshape(-1) if plan.plain else flat(x, plan.storage), None, None, None, target, None, flags),
                    (plan.weight if weight is None else weight if plan.direct else _given(weight, plan.weight),
                    plan.bias if bias is None else bias if plan.direct else _given(bias, plan.bias)),
                    (work, None, np.empty(plan.scratch, plan.weight.dtype) if plan.scratch else plan.weight),
                    plan.launcher,
                )  # fmt: skip
                return (y, *statistics_of(work, plan.statistics)) if with_statistics else (y, None, None)

    p = (rows if channel_axis is ROWS else problem)(x, num_groups, eps, channel_axis, activation)
    w, b = parameter("weight", weight, p), parameter("bias", bias, p)
    s, r = operand("skip", skip, p), operand("residual", residual, p)
    valid = None if lengths is None and mask is None else valid_positions(lengths, mask, p, x)
    y = array_like(x, p.result) if out is None else output(out, p)
    if p.size == 0:
        return (y if out is None else out), np.zeros(p.statistics_shape), np.zeros(p.statistics_shape)
    target, w, b = target_of(y, p, w, b, (p.x, s, r))
    if valid is not None:
        mean, rstd = forward_valid(p, valid, w, b, s, r, target, forward)
        if target is not y:
            np.copyto(y, target)
        elif key is not None and p.x is x and (valid.mask is None) == (mask is None):
            _remember_padded(key, "forward", p, valid, y, weight, bias, X=x)
        return (y if out is None else out), mean, rstd

    kernel_of = kernels("forward").forward_kernel
    share = share_of("forward", p, p.layout, X=p.x, SKIP=s, RES=r, Y=target)
    dims = dims_of(p, share, w, b, X=p.x, SKIP=s, RES=r, Y=target)
    groups_in_unit = p.G if p.layout == CHANNELS_LAST else 1
    work = np.empty(2 * p.N * p.G + 2 * share["UNITS"] * share["PARTS"] * groups_in_unit)
    kernel_arguments = (
        dims, p.eps, (flat_of(p.x, p), flat_of(s, p), flat_of(r, p), None, flat_of(target, p), None, NOTHING),
        (values_of(w, p, 1.0), values_of(b, p, 0.0)), (work, None, scratch_of(p, share)), launcher_of(share["PARALLEL"]),
    )  # fmt: skip
    kinds = (p.layout, STORED.index(p.dtype.name), kind_of(s), kind_of(r), 0, p.activation)
    kernel = runner(kernel_of(kernel_arguments, *kinds), p, share["PARALLEL"])
    kernel(*kernel_arguments)
    mean, rstd = (p.in_shape(values) for values in work[: 2 * p.N * p.G].reshape(2, -1))
    if target is not y:
        np.copyto(y, target)
    elif key is not None and p.x is x and mean.flags.c_contiguous:
        _remember(key, _plan(kernel, p, share, dims, work.size, y, weight, bias))
    return (y if out is None else out), mean.copy(), rstd.copy()


def backward(given: tuple[Any, ...]) -> tuple[Any, ...]:
    """(dx, dweight, dbias) of a `Backward`, and dresidual if there is a residual."""
    dy, x, mean, rstd, num_groups, weight, bias, channel_axis, activation, skip, residual, lengths, mask, out = given
    if type(x) is not ndarray or (out is not None and type(out) is not ndarray):
        return in_kind(backward, Backward._make(given), public="group_norm_backward and the backward of layers")
    key = None
    ordinary = skip is None and residual is None and (lengths is None or mask is None)
    if ordinary and _ordinary(mean) and _ordinary(rstd) and type(dy) is ndarray:
        kind = mean.shape, mean.dtype, rstd.shape, rstd.dtype, lengths is None, mask is None
        key = _key(kind, x, num_groups, weight, bias, channel_axis, activation, out, dy, mean, rstd)
        if key is not None and (dy.shape, dy.strides, dy.dtype, dy.flags.aligned) != (*key[1:4], True):
            key = None
        plan = _plans.get(key) if key is not None else None
        if plan is not None:
            dx = plan.array_like(x) if out is None else out
            work, gradients = np.empty(plan.work), np.empty(plan.gradients, plan.weight.dtype)
            problems: Problems = plan.dims, NOTHING
            target = dx.reshape(-1) if plan.plain else flat(dx, plan.y_storage)
            if plan.padding is not None:
                problems = plan.padding.problems(plan.dims, lengths, mask, target, work, plan.launcher)
            if problems is not None:
                dims, flags = problems
                plan.kernel(
                    dims, (mean.reshape(-1), rstd.reshape(-1)),
                    (x.reshape(-1) if plan.plain else flat(x, plan.storage), None, None,
                    dy.reshape(-1) if plan.plain else flat(dy, plan.storage), target, None, flags),
                    (plan.weight if weight is None else weight if plan.direct else _given(weight, plan.weight),
                    plan.bias if bias is None else bias if plan.direct else _given(bias, plan.bias)),
                    (work, gradients, np.empty(plan.scratch, plan.weight.dtype) if plan.scratch else plan.weight),
                    plan.launcher,
                )  # fmt: skip
                if plan.direct:
                    return dx, gradients[plan.gradients // 2 :], gradients[: plan.gradients // 2]
                return dx, *parameter_gradients(work, gradients, plan.N, plan.shared, weight, bias)

    p = (rows if channel_axis is ROWS else problem)(x, num_groups, 0.0, channel_axis, activation)
    weight, bias, residual = (  # whose shapes and dtypes their gradients have
        None if value is None else view(name, value)
        for name, value in (("weight", weight), ("bias", bias), ("residual", residual))
    )
    w, b = parameter("weight", weight, p), parameter("bias", bias, p)
    s, r = operand("skip", skip, p), operand("residual", residual, p)
    g = operand("dy", dy, p)
    if g is None:
        raise TypeError("dy must be a numpy.ndarray, got None")
    m, rs = statistics("mean", mean, p), statistics("rstd", rstd, p)
    valid = None if lengths is None and mask is None else valid_positions(lengths, mask, p, x)
    dx = array_like(x, p.result) if out is None else output(out, p)
    dr = None if r is None else p.empty(r.dtype)
    work, gradients = np.zeros(2 * (p.N + 1) * p.C), np.zeros(2 * p.C, p.dtype.accumulator)
    if p.size:
        target, w, b = target_of(dx, p, w, b, (p.x, g, s, r), m, rs)
        arrays = {"X": p.x, "SKIP": s, "RES": r, "Y": target, "DY": g, "DRES": dr}
    if any(a is not b for a, b in ((p.x, x), (g, dy), (m, mean), (rs, rstd))):
        key = None
    if p.size and valid is not None:
        work, gradients = backward_valid(p, valid, w, b, m, rs, arrays, backward)
        if target is not dx:
            np.copyto(dx, target)
        elif key is not None and all(
            v is None or v.ndim == 1 for v in (w, b)
        ):  # gradients of samples would lie elsewhere
            _remember_padded(key, "backward", p, valid, dx, weight, bias, X=x, DY=g)
    elif p.size:
        kernel_of = kernels("backward").backward_kernel
        layout = p.layout
        if layout == CHANNELS_FIRST and p.S == 1 and _shared(w, b):
            layout = SINGLE_POSITION
        share = share_of("backward", p, layout, **arrays)
        dims = dims_of(p, share, w, b, **arrays)
        work = np.empty(share["WORK"])
        kernel_arguments = (
            dims, (m.reshape(-1), rs.reshape(-1)), (*(flat_of(a, p) for a in (p.x, s, r, g, target, dr)), NOTHING),
            (values_of(w, p, 1.0), values_of(b, p, 0.0)), (work, gradients, scratch_of(p, share)),
            launcher_of(share["PARALLEL"]),
        )  # fmt: skip
        kinds = layout, STORED.index(p.dtype.name), kind_of(g), kind_of(s), kind_of(r), 0, p.activation
        kernel = runner(kernel_of(kernel_arguments, *kinds), p, share["PARALLEL"])
        kernel(*kernel_arguments)
        if target is not dx:
            np.copyto(dx, target)
        elif key is not None:
            _remember(key, _plan(kernel, p, share, dims, work.size, dx, weight, bias))
    shared = p.parameter_shapes[0]
    results = (dx if out is None else out, *parameter_gradients(work, gradients, p.N, shared, weight, bias))
    if dr is None:
        return results
    with np.errstate(all="ignore"):
        return (*results, dr.astype(residual.dtype.newbyteorder("="), copy=False))


# --------------------------------------------------------------------------------------------------------------- plans


def _shared(*parameters: Array | None) -> bool:
    """Whether all samples share the parameters; gradients of others lie elsewhere."""
    return all(v is None or v.ndim == 1 for v in parameters)


def _ordinary(array: Any) -> bool:
    """Whether the array is a plain one whose memory is aligned, writable and in order."""
    return type(array) is ndarray and array.flags.carray


def _key(
    kind: Any, x: Any, num_groups: Any, weight: Any, bias: Any, channel_axis: Any, activation: Any, out: Any,
    dy: Any = None, *others: Any,
) -> tuple[Any, ...] | None:  # fmt: skip
    """What a plan depends on, or None where there can be none.

    Types are checked where values of another type would be equal (4.0, True).
    """
    if type(x) is not ndarray or not x.flags.aligned:
        return None
    if type(num_groups) is not int or type(channel_axis) is not int:
        sizes = num_groups if type(num_groups) is tuple else (num_groups,)
        if channel_axis is not ROWS or any(type(n) is not int for n in sizes):
            return None
    if activation is not None and type(activation) is not str:
        return None
    w_shape = w_dtype = b_shape = b_dtype = target = None
    if weight is not None:
        if type(weight) is not ndarray or not weight.flags.carray:
            return None
        w_shape, w_dtype = weight.shape, weight.dtype
    if bias is not None:
        if type(bias) is not ndarray or not bias.flags.carray:
            return None
        b_shape, b_dtype = bias.shape, bias.dtype
    if out is not None:
        if type(out) is not ndarray:
            return None
        flags = out.flags
        if not flags.behaved:
            return None
        owned = flags.owndata
        for other in (x, dy, weight, bias, *others):
            # two arrays that own their memory share none: cheaper to know than `may_share_memory`. (That there is no
            # base does not say so: extension types wrap memory without one.)
            alone = other is None or (owned and other is not out and other.flags.owndata)
            if not (alone or ((other is x or other is dy) and other is out)) and np.may_share_memory(out, other):
                return None
        target = out.shape, out.strides, out.dtype, out is x, out is dy
    return (
        kind, x.shape, x.strides, x.dtype, num_groups, channel_axis, activation, w_shape, w_dtype, b_shape, b_dtype,
        target,
    )  # fmt: skip


def _given(parameter: Any, default: Array) -> Array:
    """A parameter's values in the dtype of `default`, or `default` where it is not given."""
    if parameter is None:
        return default
    if parameter.dtype != default.dtype:
        with np.errstate(all="ignore"):
            parameter = parameter.astype(default.dtype)
    values: Array = parameter.reshape(-1)
    return values


def _plan(
    kernel: Callable[..., None], p: Problem, share: dict[str, int], dims: Array, work: int, y: Array,
    *parameters: Array | None,
) -> Plan:  # fmt: skip
    given, shared = [v for v in parameters if v is not None], p.parameter_shapes[0]
    return Plan(
        kernel, _maker(p), dims, p.eps, p.N, p.statistics_shape, shared, p.dtype.storage,
        p.dtype.storage if p.result == p.x.dtype else p.result,
        bool(p.x.flags.c_contiguous and y.flags.c_contiguous),
        len(shared) == 1 and all(v.ndim == 1 and v.dtype == p.dtype.accumulator for v in given),
        values_of(None, p, 1.0), values_of(None, p, 0.0), work, share["SLOTS"] * share["SLOT"], 2 * p.C,
        launcher_of(share["PARALLEL"]),
    )  # fmt: skip


def _maker(p: Problem) -> Callable[[Array], Array]:
    """What makes a new result for arrays like p.x."""
    make: Callable[..., Array] = np.empty_like if p.size * p.result.itemsize < LEAST_BYTES else array_like
    return make if p.result == p.x.dtype else partial(make, dtype=p.result)


def _remember_padded(
    key: tuple[Any, ...], direction: str, p: Problem, valid: Valid, y: Array, weight: Array | None, bias: Array | None,
    **arrays: Array,
) -> None:  # fmt: skip
    """Remember a call with lengths or a mask, where a kernel can make its problems."""
    made = padding_of(direction, p, valid, weight, bias, y, **arrays)
    if made is not None:
        kernel, share, dims, work, padding = made
        _remember(key, _plan(kernel, p, share, dims, work, y, weight, bias)._replace(padding=padding))


def _remember(key: tuple[Any, ...], plan: Plan) -> None:
    if len(_plans) >= MOST_PLANS:
        _plans.clear()
    _plans[key] = plan
