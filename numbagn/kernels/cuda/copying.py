"""Copies between memory layouts, for arrays whose own no kernel can walk.

Memory: each thread reads and writes one element; neighbouring threads have neighbours along the last axis.
"""

from functools import cache

from numba import cuda

from .kinds import accumulator_of
from .target import kernel, load, splat, store, unpack


@cache
def copy(from_kind, to_kind, axes, threads):
    """An element for each thread."""
    acc = accumulator_of(from_kind)

    @kernel(threads)
    def copy_strided(source, target, size, shape):
        i = cuda.blockIdx.x * threads + cuda.threadIdx.x
        if i < size:
            from_index, to_index = 0, 0
            for axis in range(axes - 1, -1, -1):
                rest = i // shape[axis]
                place = i - rest * shape[axis]
                from_index += place * source.strides[axis]
                to_index += place * target.strides[axis]
                i = rest
            store(target.address, to_index, to_kind, unpack(load(source.address, from_index, from_kind, 1), acc))

    return copy_strided


@cache
def clear(kind, threads):
    """A zero for each thread."""

    @kernel(threads)
    def clear_dense(target, size):
        i = cuda.blockIdx.x * threads + cuda.threadIdx.x
        if i < size:
            store(target, i, kind, splat(0.0, kind, 1))

    return clear_dense
