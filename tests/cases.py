"""The shapes, layouts and dtypes that tests are run over, and how to make and judge arrays of them."""

import ml_dtypes
import numpy as np

DTYPES = {
    "float16": np.dtype(np.float16),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
    "float32": np.dtype(np.float32),
    "float64": np.dtype(np.float64),
}

# (shape with channels at axis 1, groups): each has its reason
SHAPES = {
    "minimal": ((1, 1, 1), 1),
    "one_position": ((3, 12, 1), 4),
    "no_positions_axis": ((5, 24), 3),
    "wide_rows": ((4, 67), 1),  # S = 1, D beyond a vector, with a tail
    "one_channel_groups": ((2, 6, 5, 7), 6),  # instance norm, D = 1
    "one_group": ((2, 6, 5, 7), 1),
    "three_channels_a_group": ((2, 9, 7, 7), 3),
    "five_channels_a_group": ((2, 30, 13, 17), 6),
    "vector_multiples": ((2, 32, 8, 8), 4),
    "below_a_vector": ((3, 4, 3), 2),
    "three_dimensional": ((1, 4, 3, 5, 7), 2),
    "many_chunks": ((1, 2, 61, 149), 1),  # several accumulator chunks, odd ends
    "many_parts": ((1, 3, 211, 223), 3),  # more than one part a channel
}

LAYOUTS = ("channels_first", "channels_last")


def normal(rng, shape, dtype, offset=0.0, scale=1.0):
    """Normal numbers as an array of dtype, rounded once."""
    return (offset + scale * rng.standard_normal(shape)).astype(dtype)


def in_layout(array, layout):
    """The same values, channels at axis 1, in the memory layout named."""
    if layout == "channels_first":
        return np.ascontiguousarray(array)
    return np.moveaxis(np.ascontiguousarray(np.moveaxis(array, 1, -1)), -1, 1)


def error(got, want):
    """The largest difference, NaN if there is one."""
    if got.size == 0:
        return 0.0
    return float(np.max(np.abs(np.asarray(got).astype(np.float64) - want)))


def close(got, want, tolerance):
    """Assert that got is want to within tolerance * max(1, |want|), element by element."""
    got = np.asarray(got).astype(np.float64)
    assert got.shape == np.shape(want)
    bad = ~(np.abs(got - want) <= tolerance * np.maximum(1.0, np.abs(want)))
    assert not bad.any(), f"{bad.sum()} of {bad.size} beyond {tolerance}: worst {np.max(np.abs(got - want))}"


def same_bits(a, b):
    """Whether two arrays hold the same bits, NaN included."""
    return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()
