"""What is taken, as a table: every cell is a call on an empty batch, which runs all checks and compiles nothing."""

from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np
from numba import from_dtype, types
from numba.core.errors import NumbaError

import numbagn
from numbagn import _njit
from numbagn.arrays.dtypes import DTYPES, Dtype
from numbagn.arrays.libraries import FAMILIES
from numbagn.calls.checks import ACTIVATIONS
from numbagn.kernels.cuda.kinds import ITEMSIZE

Array = np.ndarray
SHAPE, GROUPS = (0, 4, 3, 2), 2  # no samples: nothing to compute
STATISTICS = np.zeros((0, GROUPS))


def _everywhere(call: Callable[..., object]) -> Callable[[Array], None]:
    """The call channels first, channels last, and in strides that are neither."""

    def tried(x: Array) -> None:
        call(x)
        call(np.moveaxis(np.empty((0, 3, 2, 4), x.dtype), -1, 1))
        call(np.empty((0, 8, 3, 4), x.dtype)[:, ::2, :, ::-2])

    return tried


def _options(x: Array) -> None:
    for activation in ACTIVATIONS:
        numbagn.group_norm(x, GROUPS, activation=activation)
    same = np.empty(x.shape, np.float32)
    numbagn.group_norm(x, GROUPS, skip=same, residual=same)
    parameters = np.empty(SHAPE[:2], np.float32)
    numbagn.group_norm(x, GROUPS, parameters, parameters)


def _valid(x: Array) -> None:
    numbagn.group_norm(x, GROUPS, lengths=[])
    numbagn.group_norm(x, GROUPS, mask=np.empty((0, 1, 3, 2), bool))


def _backward(x: Array) -> None:
    dy = np.empty(x.shape, np.float32)
    numbagn.group_norm_backward(dy, x, STATISTICS, STATISTICS, GROUPS)


def _second(x: Array) -> None:
    dx = np.empty(x.shape, np.float32)
    numbagn.group_norm_jvp(x, dx, GROUPS)
    numbagn.group_norm_double_backward(dx, dx, x, STATISTICS, STATISTICS, GROUPS)


def _moments(x: Array) -> None:
    numbagn.normalize(x, numbagn.group_moments(x, GROUPS))


def _compiled(x: Array) -> None:
    _njit._array("x", types.Array(from_dtype(x.dtype), x.ndim, "C"))


COLUMNS: dict[str, Callable[[Array], object]] = {
    "forward, any strides": _everywhere(lambda x: numbagn.group_norm_forward(x, GROUPS)),
    "`activation`, `skip`, `residual`, (N, C) parameters": _options,
    "`lengths`, `mask`": _valid,
    "backward, any strides": _everywhere(_backward),
    "`layer_norm`": lambda x: numbagn.layer_norm(x, 2),
    "`group_moments`, `normalize`": _moments,
    "forward mode, second derivatives": _second,
    "in your `@njit` functions": _compiled,
}


def table() -> str:
    """The kinds of array in a sentence, and a line a dtype."""
    kinds = [kind.library.replace("dask.array", "dask (lazily)") for kind in FAMILIES if kind.library != "builtins"]
    lines = [
        f"Arrays of {', '.join(dict.fromkeys(kinds))} and of libraries that keep to the array API standard, in CPU "
        "memory; arrays with `__cuda_array_interface__` on a GPU.",
        "",
        "| dtype of x | of y | parameters applied in | " + " | ".join(COLUMNS) + " | on a GPU |",
        "|---" * (4 + len(COLUMNS)) + "|",
        *(
            f"| {row.name} | {row.result} | {row.accumulator} | "
            + " | ".join(_cell(row, t) for t in COLUMNS.values())
            + f" | {'yes' if row.name in ITEMSIZE else 'no'} |"
            for row in DTYPES
        ),
    ]
    return "\n".join(lines)


def _cell(row: Dtype, tried: Callable[[Array], Any]) -> str:
    dtype = np.dtype(ml_dtypes.bfloat16 if row.name == "bfloat16" else row.name)
    try:
        tried(np.empty(SHAPE, dtype))
    except (TypeError, ValueError, NotImplementedError, NumbaError):
        return "no"
    return "yes"
