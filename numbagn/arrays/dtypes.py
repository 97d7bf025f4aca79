"""The dtypes of x, one row each. How the kernels read and write them stands in `kernels.cpu.kinds.KINDS`, by name."""

from typing import NamedTuple

import numpy as np

__all__ = ["DTYPES", "RESULT_KINDS", "STORED", "Dtype", "dtype_named", "dtype_row", "supported"]


class Dtype(NamedTuple):
    """One dtype of x."""

    name: str
    storage: np.dtype  # what the kernels' arrays are typed as: Numba has no half types
    accumulator: np.dtype  # what parameters are converted to, and the lanes of the kernels' vectors
    tolerance: float  # largest |y - reference| of the tests for results of unit scale: rounding of y to the dtype
    result: str  # the name of y's dtype

    @property
    def wide(self) -> "Dtype":
        """The row of the same memory read in float64, if that makes sums more precise: those of bytes are exact."""
        if self.accumulator == np.float64 or self.storage.itemsize == 1:
            return self
        return self._replace(name=f"wide {self.name}", accumulator=np.dtype(np.float64), result="float64")


DTYPES = (
    Dtype("float16", np.dtype(np.uint16), np.dtype(np.float32), 2.0e-3, "float16"),
    Dtype("bfloat16", np.dtype(np.uint16), np.dtype(np.float32), 1.6e-2, "bfloat16"),
    Dtype("float32", np.dtype(np.float32), np.dtype(np.float32), 2.0e-6, "float32"),
    Dtype("float64", np.dtype(np.float64), np.dtype(np.float64), 2.0e-14, "float64"),
    # integers that float32 holds exactly
    Dtype("uint8", np.dtype(np.uint8), np.dtype(np.float32), 2.0e-6, "float32"),
    Dtype("int8", np.dtype(np.int8), np.dtype(np.float32), 2.0e-6, "float32"),
    Dtype("uint16", np.dtype(np.uint16), np.dtype(np.float32), 2.0e-6, "float32"),
    Dtype("int16", np.dtype(np.int16), np.dtype(np.float32), 2.0e-6, "float32"),
)
_KINDS = DTYPES + tuple(row.wide for row in DTYPES if row.wide is not row)
# The position of a name here is the number kernels know the dtype by; the second is the number of its results' dtype.
STORED = tuple(row.name for row in _KINDS)
RESULT_KINDS = tuple(STORED.index(row.result) for row in _KINDS)
_BY_DTYPE = {np.dtype(row.name): row for row in DTYPES if row.name != "bfloat16"}


def dtype_row(dtype: np.dtype, integers: bool = False) -> Dtype | None:
    """The row of a native dtype, or None: one of the floats', or of the integers' too.

    ml_dtypes' bfloat16 is known by its name; ml_dtypes is not imported for it.
    """
    row = _BY_DTYPE.get(dtype)
    if row is None and dtype.name == "bfloat16" and dtype.itemsize == 2:
        row = _BY_DTYPE[dtype] = DTYPES[STORED.index("bfloat16")]
    return row if integers or row is None or row.result == row.name else None


def dtype_named(name: str) -> np.dtype:
    """NumPy's dtype of this name; ImportError for bfloat16 where ml_dtypes, which has it, is not installed."""
    if name != "bfloat16":
        return np.dtype(name)
    import ml_dtypes

    dtype: np.dtype = np.dtype(ml_dtypes.bfloat16)
    return dtype


def supported(integers: bool = False) -> str:
    """The names of these rows, for messages."""
    return ", ".join(row.name for row in DTYPES if integers or row.result == row.name)
