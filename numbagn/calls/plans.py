"""Plans: what is the same for all calls of one kind, kept by what decides it (shapes, strides, dtypes, options)."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numpy import ndarray

from .._process import at_fork
from .checks import Problem
from .operands import forget_shares
from .padding import Lengths, Masks
from .rows import ROWS

__all__ = ["Kept", "Plan", "Way", "forget_plans", "key_of", "planned", "remember"]

Array = np.ndarray[Any, np.dtype[Any]]

# Plans kept; a service of more kinds of calls than that forgets all and begins anew.
MOST_PLANS = 1024


class Way(NamedTuple):
    """One way to run a plan: it decides how long that takes, and no bit of what it gives."""

    kernel: Callable[..., None]
    dims: Array  # the kernel's integers, those of `geometry.FIELDS` for each problem
    launcher: int  # what kernels share out their tasks by; 0: by nothing, one thread runs them all
    scratch: int  # values that tasks work on


class Plan(NamedTuple):
    """What is the same for all calls of one kind."""

    way: Way
    plain: bool  # all arrays lie in memory in the order of their axes
    direct: bool  # the kernel takes the parameters as they are
    weight: Array  # stand for parameters that are not given
    bias: Array
    work: int  # sizes of what is allocated for each call
    gradients: int
    padding: Lengths | Masks | None
    storages: tuple[np.dtype[Any] | None, ...]  # of the arrays, as the kernel takes them
    like: Callable[..., Array]  # makes a result like x
    eps: float
    groups: tuple[int, ...] | None  # the shape of mean and rstd, if they lie in memory in the order of their axes
    per_sample: bool  # whether a gradient of a parameter is asked for of each sample
    frame: Problem  # what is normalized, without x: a plan keeps no array that came


# -------------------------------------------------------------------------------------------------- those that are kept


class Kept(dict[Any, Any]):
    """Plans by their keys; None, which is no key, has no plan."""

    def keep(self, key: Any, plan: Any) -> None:
        """Keep a plan for the next calls of that key."""
        if key is not None:
            if len(self) >= MOST_PLANS:
                self.clear()
            self[key] = plan


_plans = Kept()
planned, remember = _plans.get, _plans.keep


def forget_plans() -> None:
    """Forget all plans, for those who change a threshold."""
    _plans.clear()
    forget_shares()


at_fork(after_in_child=forget_plans)  # there the number of threads may be another


def key_of(
    kind: Any,
    options: tuple[Any, Any, Any],
    x: Array,
    operands: tuple[Any, ...],
    parameters: tuple[Any, ...],
    out: Array | None,
) -> tuple[Any, ...] | None:
    """What a plan depends on, or None where arrays must be looked at first.

    kind: what tells directions and eps apart, and what is padded; None where that must be looked at. options: number of
    groups, channel axis, activation. operands: what is of x's shape beside it. parameters: weight, bias, and statistics
    that are given. Types are checked where values of another type would be equal (4.0, True).
    """
    if kind is None or not x.flags.aligned:
        return None
    num_groups, channel_axis, activation = options
    if type(num_groups) is not int or type(channel_axis) is not int:
        options = _plain_options(num_groups, channel_axis, activation)
        if options is None:
            return None
    if activation is not None and type(activation) is not str:
        return None
    owned = True
    if out is not None:
        flags = out.flags
        if not flags.behaved:
            return None
        owned = flags.owndata
        if out is not x and _meet(out, owned, x):
            return None
    shapes: tuple[Any, ...] = ()
    for value in operands:
        if value is None:
            shapes += _NOTHING
            continue
        if type(value) is not ndarray or not value.flags.aligned:
            return None
        if out is not None and value is not out and _meet(out, owned, value):
            return None
        shapes += value.shape, value.strides, value.dtype
    for value in parameters:
        if value is None:
            shapes += _NOTHING
            continue
        if type(value) is not ndarray or not value.flags.carray:
            return None
        if out is not None and (value is out or _meet(out, owned, value)):
            return None
        shapes += value.shape, value.dtype
    if out is None:
        return kind, options, x.shape, x.strides, x.dtype, shapes
    same: Any = out is x
    if operands:
        same = same, *[out is other for other in operands]
    return kind, options, x.shape, x.strides, x.dtype, shapes, out.shape, out.strides, out.dtype, same


def _meet(out: Array, owned: bool, other: Array) -> bool:
    """Whether an out, which owns its memory or not, may share it with another array.

    Two arrays that own their memory share none: cheaper to know than `may_share_memory`. (That there is no base does
    not say so: extension types wrap memory without one.)
    """
    return not (owned and other.flags.owndata) and np.may_share_memory(out, other)


_NOTHING: tuple[Any, ...] = (None,)


def _plain_options(num_groups: Any, channel_axis: Any, activation: Any) -> Any:
    """The options with plain integers, or None where they are none, or need checks."""
    if channel_axis is ROWS:
        sizes = num_groups if type(num_groups) is tuple else (num_groups,)
        return None if any(type(n) is not int for n in sizes) else (num_groups, ROWS, activation)
    if all(type(n) is int or isinstance(n, np.integer) for n in (num_groups, channel_axis)):
        return int(num_groups), int(channel_axis), activation
    return None
