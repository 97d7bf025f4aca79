"""Calls for arrays on a GPU: what came, its plan, which is kept or made, and a run of it."""

from operator import attrgetter
from typing import Any

from ...arrays.device import cuda_module, described
from ..arguments import Backward, Forward
from ..positions import lengths_of
from .plans import Came, Plan, key_of, plan_of
from .running import Call, current

__all__ = ["backward", "forward"]


# The arguments of a call that are arrays, and those that are not.
ARRAYS = {
    Forward: ("x", "weight", "bias", "skip", "residual", "out", "lengths"),
    Backward: ("x", "dy", "mean", "rstd", "weight", "bias", "skip", "residual", "out", "lengths"),
}
OPTIONS = {
    Forward: attrgetter("num_groups", "eps", "channel_axis", "activation"),
    Backward: attrgetter("num_groups", "channel_axis", "activation"),
}


def forward(given: Forward, with_statistics: bool) -> tuple[Any, Any, Any]:
    """(y, mean, rstd) of `numbagn.group_norm_forward`."""
    call, (y, stats) = _run(given)
    y = y.owner if given.out is None else given.out
    if stats.array.ndim == 1:  # one row in all: Numba would copy an indexed number to the host
        return y, *(call.as_number(stats.owner[i : i + 1]) for i in range(2))
    return y, stats.owner[0], stats.owner[1]


def backward(given: Backward) -> tuple[Any, ...]:
    """(dx, dweight, dbias) of `numbagn.group_norm_backward`, and dresidual if there is a residual."""
    _, (dx, *more) = _run(given)
    return (dx.owner if given.out is None else given.out, *(result.owner for result in more))


def _run(given: Forward | Backward) -> tuple[Call, list[Any]]:
    """A call and its results."""
    x = described("x", given.x)
    cuda_module()  # or an error that says what is missing, before kernels are imported
    kind = type(given)
    with current(x), Call(x) as call:
        came = call.came(given, ARRAYS[kind])
        key = key_of(came, given.lengths is None, *OPTIONS[kind](given)) if given.mask is None else None
        plan = plan_of(key, lambda: _planned(given, came))
        if given.lengths is not None and came["lengths"] is None:
            came["lengths"] = call.uploaded("lengths", lengths_of(given.lengths, plan.problem))
        buffers = call.run(plan, came)
    return call, [buffers[name] for name in plan.results]


def _planned(given: Any, came: Came) -> Plan:
    from .backward import plan_backward
    from .forward import plan_forward

    return plan_forward(given, came) if type(given) is Forward else plan_backward(given, came)
