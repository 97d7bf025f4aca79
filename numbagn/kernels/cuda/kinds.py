"""The kinds of array that CUDA kernels read and write, by the names of dtypes."""

from typing import NamedTuple

ITEMSIZE = {"float16": 2, "bfloat16": 2, "float32": 4, "float64": 8}


def accumulator_of(kind):
    """The kind that sums of values of `kind` are made in."""
    return "float64" if kind == "float64" else "float32"


class Kinds(NamedTuple):
    """The kinds of the arrays of a call; "" where there is none. y is of x's kind, dresidual of the residual's."""

    x: str
    skip: str = ""
    residual: str = ""
    weight: str = ""
    bias: str = ""
    dy: str = ""
    mean: str = "float64"
    rstd: str = "float64"


class Options(NamedTuple):
    """What all kernels of a call are made for, each once for each set of options that it depends on."""

    kinds: Kinds
    activation: str | None
    count: int  # values that a thread moves at once
    lanewise: bool = False  # whether each of them has parameters of its own
    padded: bool = False  # whether positions may be invalid

    def of_sums(self) -> "Options":
        """Those that the forward pass's sums depend on."""
        return Options(Kinds(self.kinds.x, self.kinds.skip), None, self.count, False, self.padded)
