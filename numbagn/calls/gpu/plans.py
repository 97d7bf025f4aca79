"""Plans of calls for arrays on a GPU: all launches, made before the first one runs, on buffers that have names.

A plan is the same for all calls of one kind (shapes, strides, dtypes, alignment, options), and making it takes longer
than its launches: so it is kept.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from ...arrays.device import DeviceArray, overlap
from ..checks import Problem
from ..plans import Kept
from ..rows import ROWS

__all__ = ["Came", "Launch", "Made", "Plan", "forget", "key_of", "plan_of"]

# What came with a call, by the names of arguments: arrays on the device, or what is wrong with one.
Came = dict[str, DeviceArray | Exception | None]


class Made(NamedTuple):
    """A buffer that a call makes: a result, a copy, scratch."""

    shape: tuple[int, ...]
    strides: tuple[int, ...]
    dtype: np.dtype[Any]


class Launch(NamedTuple):
    """A kernel with its arguments, the addresses among which are names of buffers."""

    kernel: Any
    blocks: int
    numbers: tuple[Any, ...]


class Plan(NamedTuple):
    """What is the same for all calls of one kind."""

    problem: Problem
    made: dict[str, Made]
    launches: tuple[Launch, ...]
    results: tuple[str, ...]  # names of buffers


_plans = Kept()
forget: Callable[[], None] = _plans.clear


def plan_of(key: Any, make: Callable[[], Plan]) -> Plan:
    """The plan that is kept for the key, else a new one; without a key it is used once."""
    plan: Plan | None = _plans.get(key)
    if plan is None:
        plan = make()
        _plans.keep(key, plan)
    return plan


def key_of(came: Came, *options: Any) -> Any:
    """What a plan depends on, or None where checks have to tell what is wrong.

    Types are looked at where values of another type would be equal (4.0, True).
    """
    if not all(isinstance(v, (int, float, str, np.number, type(None))) or v is ROWS or _shape(v) for v in options):
        return None
    if any(isinstance(device, Exception) for device in came.values()):
        return None
    return (*map(_kind, came.values()), *_around_out(came), *options, *map(type, options))


def _kind(device: Any) -> Any:
    return None if device is None else (device.array.shape, device.array.strides, device.array.dtype, device.first % 16)


def _shape(value: Any) -> bool:
    return type(value) is tuple and all(type(size) is int for size in value)


def _around_out(came: Came) -> list[Any]:
    """Whether `out` may be written to, and of each array whether it overlaps it: from the same address on, or else."""
    out = came.get("out")
    if not isinstance(out, DeviceArray):
        return []
    others = (device for name, device in came.items() if name != "out" and isinstance(device, DeviceArray))
    return [out.read_only, *(overlap(out, other) and (2 if other.first == out.first else 1) for other in others)]
