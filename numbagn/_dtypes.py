"""The dtypes of x: one row each. How the kernels read and write them stands in `kernels.memory.KINDS`, by name."""

from typing import NamedTuple

import numpy as np

__all__ = ["STORED", "Dtype", "dtype_row", "supported"]


class Dtype(NamedTuple):
    """One dtype of x and y."""

    name: str
    storage: np.dtype  # what the kernels' arrays are typed as: Numba has no half types
    accumulator: np.dtype  # what parameters are converted to, and the lanes of the kernels' vectors
    tolerance: float  # largest |y - reference| of the tests for results of unit scale: rounding of y to the dtype


_ROWS = (
    Dtype("float16", np.dtype(np.uint16), np.dtype(np.float32), 2.0e-3),
    Dtype("bfloat16", np.dtype(np.uint16), np.dtype(np.float32), 1.6e-2),
    Dtype("float32", np.dtype(np.float32), np.dtype(np.float32), 2.0e-6),
    Dtype("float64", np.dtype(np.float64), np.dtype(np.float64), 2.0e-14),
)
# The position of a name here is the number kernels know the dtype by.
STORED = tuple(row.name for row in _ROWS)
_BY_DTYPE = {np.dtype(row.name): row for row in _ROWS if row.name != "bfloat16"}


def dtype_row(dtype: np.dtype) -> Dtype | None:
    """The row of a native dtype, or None. ml_dtypes' bfloat16 is known by its name; ml_dtypes is never imported."""
    row = _BY_DTYPE.get(dtype)
    if row is None and dtype.name == "bfloat16" and dtype.itemsize == 2:
        row = _BY_DTYPE[dtype] = _ROWS[STORED.index("bfloat16")]
    return row


def supported() -> str:
    """The names of all rows, for messages."""
    return ", ".join(STORED)
