"""Copies between memory layouts, for arrays whose own no kernel can walk."""

from functools import cache

from numba import cuda

from .kinds import accumulator_of
from .target import kernel, load, store, unpack


@cache
def copy(from_kind, to_kind, axes, threads):
    """An element for each thread; shape and strides, in elements, are tuples."""
    acc = accumulator_of(from_kind)

    @kernel(threads)
    def copy_strided(source, target, size, shape, source_strides, target_strides):
        i = cuda.blockIdx.x * threads + cuda.threadIdx.x
        if i < size:
            from_index, to_index = 0, 0
            for axis in range(axes - 1, -1, -1):
                rest = i // shape[axis]
                place = i - rest * shape[axis]
                from_index += place * source_strides[axis]
                to_index += place * target_strides[axis]
                i = rest
            store(target, to_index, to_kind, unpack(load(source, from_index, from_kind, 1), acc))

    return copy_strided
