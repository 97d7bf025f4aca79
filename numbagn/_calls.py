"""How a call runs: check, share out, allocate, run the kernel, give back what came in.

The first three steps of a call give the same for all arguments of the same kinds (shapes, strides, dtypes, options): a
`Plan` keeps that, so that the next such call is a lookup, the allocations and the kernel.
"""

from collections.abc import Callable
from functools import lru_cache
from math import prod
from typing import Any, NamedTuple

import numpy as np
from numpy import ndarray

from . import _schedule
from ._arrays import flat
from ._dtypes import STORED
from ._problem import Problem, operand, output, parameter, problem, statistics
from ._recycling import LEAST_BYTES, array_like
from ._rows import ROWS, rows
from ._threads import at_fork
from .kernels.geometry import CHANNELS_FIRST, CHANNELS_LAST, FIELDS, SINGLE_POSITION

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
    storage: np.dtype[Any]
    plain: bool  # x and the result lie in memory in the order of their axes
    direct: bool  # the kernel takes the parameters as they are
    weight: Array  # stand for parameters that are not given
    bias: Array
    work: int  # sizes of what is allocated for each call
    scratch: int
    gradients: int


_plans: dict[tuple[Any, ...], Plan] = {}


def forget_plans() -> None:
    """Forget all plans, for those who change a threshold."""
    _plans.clear()
    _shares.cache_clear()


at_fork(after_in_child=forget_plans)  # there the number of threads may be another


def forward(
    x: Any, num_groups: Any, weight: Any, bias: Any, eps: Any, channel_axis: Any, activation: Any, skip: Any,
    residual: Any, out: Any, with_statistics: bool,
) -> tuple[Any, Any, Any]:  # fmt: skip
    """(y, mean, rstd) of `numbagn.group_norm_forward`; mean and rstd are None unless asked for."""
    key = None
    if skip is None and residual is None and type(eps) is float:
        key = _key(eps, x, num_groups, weight, bias, channel_axis, activation, out)
        plan = _plans.get(key) if key is not None else None
        if plan is not None:
            y = plan.array_like(x) if out is None else out
            work = np.empty(plan.work)
            plan.kernel(
                plan.dims, plan.eps, x.reshape(-1) if plan.plain else flat(x, plan.storage), None, None,
                y.reshape(-1) if plan.plain else flat(y, plan.storage),
                plan.weight if weight is None else weight if plan.direct else _given(weight, plan.weight),
                plan.bias if bias is None else bias if plan.direct else _given(bias, plan.bias), work,
                np.empty(plan.scratch, plan.weight.dtype) if plan.scratch else plan.weight,
            )  # fmt: skip
            return (y, *_statistics(work, plan.statistics)) if with_statistics else (y, None, None)

    p = (rows if channel_axis is ROWS else problem)(x, num_groups, eps, channel_axis, activation)
    w, b = parameter("weight", weight, p), parameter("bias", bias, p)
    s, r = operand("skip", skip, p), operand("residual", residual, p)
    y = array_like(x, p.x.dtype) if out is None else output(out, p)
    if p.size == 0:
        return (y if out is None else out), np.zeros(p.statistics_shape), np.zeros(p.statistics_shape)
    target, w, b = _target(y, p, w, b, (p.x, s, r))

    share = _share("forward", p, p.layout, X=p.x, SKIP=s, RES=r, Y=target)
    dims = _dims(p, share, w, b, X=p.x, SKIP=s, RES=r, Y=target)
    groups_in_unit = p.G if p.layout == CHANNELS_LAST else 1
    work = np.empty(2 * p.N * p.G + 2 * share["UNITS"] * share["PARTS"] * groups_in_unit)
    kernel_arguments = (
        dims, p.eps, _flat(p.x, p), _flat(s, p), _flat(r, p), _flat(target, p), _values(w, p, 1.0), _values(b, p, 0.0),
        work, _scratch(p, share),
    )  # fmt: skip
    from .kernels.forward import forward_kernel

    kinds = (p.layout, _kind(p.x), _kind(s), _kind(r), p.activation, share["PARALLEL"])
    kernel = forward_kernel(kernel_arguments, *kinds)
    kernel(*kernel_arguments)
    mean, rstd = (p.in_shape(values) for values in work[: 2 * p.N * p.G].reshape(2, -1))
    if target is not y:
        np.copyto(y, target)
    elif key is not None and p.x is x and mean.flags.c_contiguous:
        _remember(key, _plan(kernel, p, share, dims, work.size, y, weight, bias))
    return (y if out is None else out), mean.copy(), rstd.copy()


def backward(
    dy: Any, x: Any, mean: Any, rstd: Any, num_groups: Any, weight: Any, bias: Any, channel_axis: Any, activation: Any,
    skip: Any, residual: Any, out: Any,
) -> tuple[Any, ...]:  # fmt: skip
    """(dx, dweight, dbias) of `numbagn.group_norm_backward`, and dresidual if there is a residual."""
    key = None
    if skip is None and residual is None and _ordinary(mean) and _ordinary(rstd) and type(dy) is ndarray:
        kind = mean.shape, mean.dtype, rstd.shape, rstd.dtype
        key = _key(kind, x, num_groups, weight, bias, channel_axis, activation, out, dy, mean, rstd)
        if key is not None and (dy.shape, dy.strides, dy.dtype, dy.flags.aligned) != (*key[1:4], True):
            key = None
        plan = _plans.get(key) if key is not None else None
        if plan is not None:
            dx = plan.array_like(x) if out is None else out
            work, gradients = np.empty(plan.work), np.empty(plan.gradients, plan.weight.dtype)
            plan.kernel(
                plan.dims, dy.reshape(-1) if plan.plain else flat(dy, plan.storage),
                x.reshape(-1) if plan.plain else flat(x, plan.storage), None, None,
                dx.reshape(-1) if plan.plain else flat(dx, plan.storage), None,
                plan.weight if weight is None else weight if plan.direct else _given(weight, plan.weight),
                plan.bias if bias is None else bias if plan.direct else _given(bias, plan.bias),
                mean.reshape(-1), rstd.reshape(-1), work, gradients,
                np.empty(plan.scratch, plan.weight.dtype) if plan.scratch else plan.weight,
            )  # fmt: skip
            if plan.direct:
                return dx, gradients[plan.gradients // 2 :], gradients[: plan.gradients // 2]
            return dx, *_parameter_gradients(work, gradients, plan.N, plan.shared, weight, bias)

    p = (rows if channel_axis is ROWS else problem)(x, num_groups, 0.0, channel_axis, activation)
    w, b = parameter("weight", weight, p), parameter("bias", bias, p)
    s, r = operand("skip", skip, p), operand("residual", residual, p)
    g = operand("dy", dy, p)
    if g is None:
        raise TypeError("dy must be a numpy.ndarray, got None")
    m, rs = statistics("mean", mean, p), statistics("rstd", rstd, p)
    dx = array_like(x, p.x.dtype) if out is None else output(out, p)
    dr = None if r is None else p.empty(r.dtype)
    work, gradients = np.zeros(2 * (p.N + 1) * p.C), np.zeros(2 * p.C, p.dtype.accumulator)
    if p.size:
        target, w, b = _target(dx, p, w, b, (p.x, g, s, r), m, rs)
        arrays = {"X": p.x, "SKIP": s, "RES": r, "Y": target, "DY": g, "DRES": dr}
        layout = p.layout
        if layout == CHANNELS_FIRST and p.S == 1 and all(v is None or v.ndim == 1 for v in (w, b)):
            layout = SINGLE_POSITION
        share = _share("backward", p, layout, **arrays)
        dims = _dims(p, share, w, b, **arrays)
        work = np.empty(share["WORK"])
        kernel_arguments = (
            dims, _flat(g, p), _flat(p.x, p), _flat(s, p), _flat(r, p), _flat(target, p), _flat(dr, p),
            _values(w, p, 1.0), _values(b, p, 0.0), m.reshape(-1), rs.reshape(-1), work, gradients, _scratch(p, share),
        )  # fmt: skip
        from .kernels.backward import backward_kernel

        kinds = (
            layout, _kind(p.x), _kind(g), _kind(s), _kind(r), p.activation, share["PARALLEL"],
        )  # fmt: skip
        kernel = backward_kernel(kernel_arguments, *kinds)
        kernel(*kernel_arguments)
        if target is not dx:
            np.copyto(dx, target)
        elif key is not None and all(a is b for a, b in ((p.x, x), (g, dy), (m, mean), (rs, rstd))):
            _remember(key, _plan(kernel, p, share, dims, work.size, dx, weight, bias))
    shared = p.parameter_shapes[0]
    results = (dx if out is None else out, *_parameter_gradients(work, gradients, p.N, shared, weight, bias))
    if dr is None:
        return results
    with np.errstate(all="ignore"):
        return (*results, dr.astype(residual.dtype.newbyteorder("="), copy=False))


# --------------------------------------------------------------------------------------------------------------- plans


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
        if not _ordinary(out):
            return None
        for other in (x, dy, weight, bias, *others):
            # two arrays without a base have memory of their own: cheaper to know than `may_share_memory`
            alone = other is None or (out.base is None and other.base is None and other is not out)
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
        kernel, np.empty_like if p.x.nbytes < LEAST_BYTES else array_like, dims, p.eps, p.N, p.statistics_shape, shared,
        p.dtype.storage, bool(p.x.flags.c_contiguous and y.flags.c_contiguous),
        len(shared) == 1 and all(v.ndim == 1 and v.dtype == p.dtype.accumulator for v in given),
        _values(None, p, 1.0), _values(None, p, 0.0), work, share["SLOTS"] * share["SLOT"], 2 * p.C,
    )  # fmt: skip


def _remember(key: tuple[Any, ...], plan: Plan) -> None:
    if len(_plans) >= MOST_PLANS:
        _plans.clear()
    _plans[key] = plan


def _statistics(work: Array, shape: tuple[int, ...]) -> tuple[Array, Array]:
    """Mean and rstd, which the kernel leaves at the beginning of its work, as arrays of their own."""
    count = prod(shape)
    return work[:count].reshape(shape).copy(), work[count : 2 * count].reshape(shape).copy()


# ----------------------------------------------------------------------------------------------- from arrays to kernels


def _share(direction: str, p: Problem, layout: int, **arrays: Array | None) -> dict[str, int]:
    """How the work on these arrays is shared out."""
    dense = all(array is None or p.gapless(array) for array in arrays.values())
    return _shares(direction, layout, p.N, p.C, p.G, p.S, p.x.itemsize, dense)


@lru_cache(maxsize=4096)
def _shares(direction: str, *sizes: int) -> dict[str, int]:
    share: dict[str, int] = getattr(_schedule, direction)(*sizes)
    return share


def _target(
    y: Array,
    p: Problem,
    w: Array | None,
    b: Array | None,
    operands: tuple[Array | None, ...],
    *others: Array,
) -> tuple[np.ndarray, Array | None, Array | None]:
    """What the kernel may write: y, or a new array in x's layout where y is laid out otherwise or in anything's way.

    An operand that is y itself is no hindrance, since each element is read before it is written.
    """

    def in_the_way(operand: Array | None) -> bool:
        if operand is None or not np.may_share_memory(y, operand):
            return False
        return p.steps(operand) != p.steps(y) or _start(operand) != _start(y) or operand.dtype != y.dtype

    if p.steps(y) is None or not y.flags.aligned or p.overlaps_itself(y):
        return p.empty(p.x.dtype), w, b
    if any(map(in_the_way, operands)) or any(np.may_share_memory(y, other) for other in others):
        return p.empty(p.x.dtype), w, b
    # parameters are small: they step out of the way
    w, b = (v.copy() if v is not None and np.may_share_memory(y, v) else v for v in (w, b))
    return y, w, b


def _start(array: Array) -> int:
    start: int = array.__array_interface__["data"][0]
    return start


def _kind(array: Array | None) -> int:
    """The number kernels know the array's dtype by; -1: no array."""
    return -1 if array is None else STORED.index(array.dtype.name)


def _flat(array: Array | None, p: Problem) -> Array | None:
    if array is None:
        return None
    return flat(array, p.dtype.storage if array.dtype == p.x.dtype else array.dtype)


def _values(array: Array | None, p: Problem, default: float) -> Array:
    """A parameter's values, or the one value that stands for it where it is None."""
    if array is None:
        return np.array([default], p.dtype.accumulator)
    return flat(array, p.dtype.accumulator)


def _scratch(p: Problem, share: dict[str, int]) -> Array:
    """Tables for each task; at least one value, as there must be an array."""
    return np.empty(max(1, share["SLOTS"] * share["SLOT"]), p.dtype.accumulator)


def _dims(
    p: Problem,
    share: dict[str, int],
    w: Array | None,
    b: Array | None,
    **arrays: Array | None,
) -> Array:
    """The kernels' integers, in the order of `kernels.geometry.FIELDS`."""
    values = share | {"N": p.N, "C": p.C, "G": p.G, "D": p.C // p.G, "S": p.S}
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
    return np.array([values.get(field, 0) for field in FIELDS], np.int64)


def _parameter_gradients(
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
