"""The kinds of array that CUDA kernels read and write, by the names of dtypes."""

ITEMSIZE = {"float16": 2, "bfloat16": 2, "float32": 4, "float64": 8}


def accumulator_of(kind):
    """The kind that sums of values of `kind` are made in."""
    return "float64" if kind == "float64" else "float32"


def lanes_of(kind):
    """Values in 16 bytes, the most that one instruction moves."""
    return 16 // ITEMSIZE[kind]
