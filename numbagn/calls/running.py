"""Plans made and run: the one place that packs a kernel's arguments, and that allocates what it works on.

`plan_of` makes a plan for checked arrays (layout, shares of the work, the kernel) and runs nothing; `run` runs it, on
these arrays or on others like them.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from ..arrays.dtypes import STORED
from ..arrays.families import flat
from ..arrays.recycling import LEAST_BYTES, array_like
from ..shapes.geometry import CHANNELS_FIRST, FIELDS, SINGLE_POSITION
from .checks import Problem
from .loading import kernels
from .operands import Arrays, Parameters, dense, dims_of, kind_of, launcher_of, share_of, values_of
from .padding import NO_MASK, padding_of
from .plans import Plan, Way
from .positions import Valid
from .threads import patient

__all__ = ["Done", "plan_of", "run"]

Array = np.ndarray[Any, np.dtype[Any]]
# What a run leaves: the kernel's work, sums for gradients of parameters, the integers of each problem.
Done = tuple[Array, Any, Array]

AT, SAMPLE, KEEP_M2 = map(FIELDS.index, ("AT", "SAMPLE", "KEEP_M2"))


def plan_of(
    direction: str, p: Problem, arrays: Arrays, parameters: Parameters, valid: Valid | None = None, **fields: int
) -> Plan:
    """Make the plan of a forward or backward pass over arrays that a kernel can read as they are.

    fields: integers of the kernel that are to have other values than the schedule gives them.
    """
    forward, per_sample = direction == "forward", any(v is not None and v.ndim == 2 for v in parameters)
    layout, padding = p.layout, None
    if not forward and layout == CHANNELS_FIRST and p.S == 1 and valid is None and not per_sample:
        layout = SINGLE_POSITION
    share = share_of(direction, p, layout, arrays)
    work = 2 * p.N * p.G * (1 + share["PARTS"]) if forward else share["WORK"]
    if valid is not None:
        padding, share = padding_of(direction, p, valid, dense(p, arrays), share)
    dims, mask_kind = dims_of(p, share | fields, parameters, arrays), padding.mask_kind if padding else NO_MASK

    storages = tuple(None if a is None else p.dtype.storage if a.dtype == p.x.dtype else a.dtype for a in arrays)
    types = [None if storage is None else np.empty(1, storage) for storage in storages]
    types.append(np.empty(1, np.uint8) if mask_kind != NO_MASK else None)
    sums, values = np.empty(1), np.empty(1, p.dtype.accumulator)
    statistics, gradients = (p.eps, None) if forward else ((sums, sums), values)
    operands = (arrays.skip, arrays.residual) if forward else (arrays.dy, arrays.skip, arrays.residual)
    kernel = getattr(kernels(direction), f"{direction}_kernel")(
        (dims, statistics, tuple(types), (values, values), (sums, gradients, values), 0),
        *(layout, STORED.index(p.dtype.name), *map(kind_of, operands), mask_kind, p.activation),
    )
    if share["PARALLEL"]:
        kernel = patient(kernel, p.x.nbytes)
    make: Callable[..., Array] = np.empty_like if p.size * p.result.itemsize < LEAST_BYTES else array_like
    return Plan(
        way=Way(kernel, dims, launcher_of(share["PARALLEL"]), share["SLOTS"] * share["SLOT"]),
        frame=p._replace(x=np.empty(0, p.x.dtype)),
        like=make if p.result == p.x.dtype else partial(make, dtype=p.result),
        storages=storages,
        plain=all(a is None or a.flags.c_contiguous for a in arrays),
        direct=False,
        weight=values_of(None, p, 1.0),
        bias=values_of(None, p, 0.0),
        eps=p.eps,
        work=work,
        gradients=0 if forward else 2 * p.C,
        groups=p.groups,
        per_sample=per_sample,
        padding=padding,
    )


def run(
    plan: Plan,
    arrays: tuple[Any, ...],
    parameters: tuple[Any, Any],
    statistics: Any,
    positions: Any = None,
    work: Array | None = None,
) -> Done | None:
    """Run a plan: it fills y or dx, and dresidual. None where the lengths or the mask must be looked at first.

    arrays: those of `Arrays`. statistics: eps, or in the backward pass mean and rstd. positions: lengths or a mask.
    work: what the kernel works on, where it is to find something there.
    """
    (kernel, dims, launcher, scratch), plain, direct, no_weight, no_bias, size, sums, padding, _, _, _, _, _, _ = plan
    x, skip, residual, dy, y, dresidual = arrays
    if plain:  # views, as all of them are contiguous; ravel takes 55 ns, reshape 200
        x, y = x.ravel(), y.ravel()
        if dy is not None:
            dy = dy.ravel()
        if skip is not None:
            skip = skip.ravel()
        if residual is not None:
            residual = residual.ravel()
        if dresidual is not None:
            dresidual = dresidual.ravel()
    else:
        flats = [None if s is None else flat(a, s) for a, s in zip(arrays, plan.storages, strict=True)]
        x, skip, residual, dy, y, dresidual = flats
    weight, bias = parameters
    weight = no_weight if weight is None else weight if direct else _converted(weight, no_weight)
    bias = no_bias if bias is None else bias if direct else _converted(bias, no_bias)
    work = np.empty(size) if work is None else work
    gradients = np.empty(sums, no_weight.dtype) if sums else None
    if padding is None:
        slots = np.empty(scratch, no_weight.dtype) if scratch else no_weight
        lines = x, skip, residual, dy, y, dresidual, None
        kernel(dims, statistics, lines, (weight, bias), (work, gradients, slots), launcher)
        return work, gradients, dims
    found = padding.problems(dims, positions, y, work, launcher)
    if found is None:
        return None
    problems, mask = found
    runs = padding.together.runs(problems, launcher, scratch)
    for some, share, size in runs:
        slots = np.empty(size, no_weight.dtype) if size else no_weight
        masked = x, skip, residual, dy, y, dresidual, mask
        kernel(some, statistics, masked, (weight, bias), (work, gradients, slots), share)
    if not dims[0, KEEP_M2]:  # else there are only statistics
        padding.clear(arrays[4], arrays[5], problems, positions)
    if gradients is not None and (plan.per_sample or len(runs) != 1):
        work, gradients = _gathered(plan, work, problems)
    return work, gradients, problems


def _converted(parameter: Array, like: Array) -> Array:
    """A parameter's values in one line and in the dtype of `like`."""
    if parameter.dtype != like.dtype:
        with np.errstate(all="ignore"):
            parameter = parameter.astype(like.dtype)
    values: Array = parameter.reshape(-1)
    return values


def _gathered(plan: Plan, work: Array, problems: Array) -> tuple[Array, Array]:
    """The sums of dz and of dz * x_hat, which lie problem by problem, as the kernel leaves those of a whole batch."""
    C, sums = plan.frame.C, np.zeros((2, plan.frame.N, plan.frame.C))
    sums[:, problems[:, SAMPLE]] = work[problems[:, AT, None] + np.arange(2 * C)].reshape(-1, 2, C).swapaxes(0, 1)
    return in_batch(sums, plan.weight.dtype)


def in_batch(sums: Array, accumulator: np.dtype[Any]) -> tuple[Array, Array]:
    """Sums of each sample (2, N, C), and behind them those over all; these in the accumulator's dtype, too."""
    totals = sums.sum(axis=1).reshape(-1)
    return np.concatenate([sums.reshape(-1), totals]), totals.astype(accumulator)
