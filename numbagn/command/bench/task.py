"""One measurement: the same arrays for every peer, the float64 answer, and the calls that are to be timed."""

from collections.abc import Callable
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any

import numpy as np

from ...arrays.dtypes import dtype_named
from . import textbook
from .cases import Case, Variant

EPS = 1e-5


@dataclass
class Task:
    """x, dy and out lie in memory as the layout says: (N, C, ...) for NCHW, (N, ..., C) for NHWC, always contiguous.

    They have the variant's dtype, but for integers, of which every result is float32.
    """

    case: Case
    variant: Variant
    x: np.ndarray
    weight: np.ndarray
    bias: np.ndarray
    out: np.ndarray  # the buffer of every peer that can write to one, and of the copy
    dy: np.ndarray | None = None
    mean: np.ndarray | None = None  # float64 (N, G), for backward
    rstd: np.ndarray | None = None
    expected: tuple[np.ndarray, ...] = field(default=(), repr=False)

    @property
    def groups(self) -> int:
        return self.case.groups

    @property
    def channel_axis(self) -> int:
        return 1 if self.variant.layout == "NCHW" else self.x.ndim - 1

    @property
    def bytes(self) -> int:
        """What must move at least: x in and y out; dy and x in and dx out."""
        return self.x.nbytes + self.out.nbytes + (0 if self.dy is None else self.dy.nbytes)

    def errors(self, results: tuple[np.ndarray, ...]) -> float:
        """The largest difference from the float64 answer; of gradients, in units of each gradient's largest value."""
        worst = 0.0
        for result, expected in zip(results, self.expected, strict=True):
            scale = np.abs(expected).max() if self.variant.direction == "backward" else 1.0
            worst = np.maximum(worst, textbook.max_difference(result, expected) / scale)
        return float(worst)


class Skip(Exception):
    """Why a peer cannot take part in a task, in one line."""


@dataclass(frozen=True)
class Entry:
    """One call to be timed."""

    peer: str
    version: str
    output: str  # "out": writes to a buffer that exists; "fresh": allocates its result
    call: Callable[[], Any]
    arrays: Callable[[Any], tuple[np.ndarray, ...]]  # from what the call returns to arrays in x's memory order


def imported(name: str) -> Any:
    """A peer's module, or a Skip."""
    try:
        return import_module(name)
    except ImportError as error:
        raise Skip(f"cannot be imported ({one_line(error)})") from error


def one_line(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:160]}"


# Above these a result is called wrong. They allow for rounding of outputs up to about 8 and for float32 accumulation.
TOLERANCE = {"float64": 1e-9, "float32": 1e-3, "float16": 2e-2, "bfloat16": 1.5e-1, "uint8": 1e-3}


def make_task(case: Case, variant: Variant, offset: float = 0.5, affine: bool = True) -> Task:
    """Normal data of unit variance around `offset`, with the float64 answer computed from the rounded inputs.

    Integers are of the whole range of their dtype, each as likely as another.
    """
    rng = np.random.default_rng(0)
    dtype = dtype_named(variant.dtype)
    shape = case.shape if variant.layout == "NCHW" else (case.shape[0], *case.shape[2:], case.shape[1])

    wide = np.float64 if variant.dtype == "float64" else np.float32

    def normal() -> np.ndarray:
        return rng.standard_normal(shape, dtype=wide)

    if dtype.kind == "u":
        x = rng.integers(0, np.iinfo(dtype).max, shape, dtype, endpoint=True)
    else:
        x = (normal() + wide(offset)).astype(dtype, copy=False)
    # Multiples of 1/64 are exact in every dtype, so no peer is blamed for rounding its parameters.
    weight = (rng.integers(32, 97, case.shape[1]) / 64).astype(wide) if affine else np.ones(case.shape[1], wide)
    bias = (rng.integers(-64, 65, case.shape[1]) / 64).astype(wide) if affine else np.zeros(case.shape[1], wide)
    # Written to once, so that page faults of a buffer that "exists already" are not part of any time.
    task = Task(case, variant, x, weight, bias, np.zeros(shape, wide if dtype.kind == "u" else dtype))
    if variant.direction == "backward":
        task.dy = normal().astype(dtype, copy=False)
        task.mean, task.rstd = np.empty((2, case.shape[0], case.groups))
    _answer(task)
    return task


def _answer(task: Task) -> None:
    """Fill in the float64 answer, for backward the statistics too; by groups, as temporaries of x's size cost most."""
    variant, channels, groups = task.variant, task.case.shape[1], task.groups
    result, dweight, dbias = np.empty(task.x.shape), np.empty(channels), np.empty(channels)
    for group in range(groups):
        part = slice(group * channels // groups, (group + 1) * channels // groups)
        index = (slice(None), part) if variant.layout == "NCHW" else (..., part)
        x, weight, bias = (a.astype(np.float64) for a in (task.x[index], task.weight[part], task.bias[part]))
        if task.dy is None:
            result[index] = textbook.forward(np, x, weight, bias, 1, EPS, variant.layout, variant.activation)
            continue
        mean, rstd = textbook.statistics(x, 1, EPS, variant.layout)
        task.mean[:, group], task.rstd[:, group] = mean[:, 0], rstd[:, 0]
        gradients = textbook.backward(task.dy[index].astype(np.float64), x, mean, rstd, weight, 1, variant.layout)
        result[index], dweight[part], dbias[part] = gradients
    task.expected = (result,) if task.dy is None else (result, dweight, dbias)
