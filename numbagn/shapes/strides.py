"""Where the elements of an array lie: which strides the kernels can walk, and in which steps.

`walk` and `spread` are compiled, too, for callers that Numba compiles.
"""

from functools import lru_cache

import numpy as np

from .geometry import CHANNELS_FIRST, CHANNELS_LAST, FEW_CHANNELS, FEW_POSITIONS

__all__ = ["dense", "empty_in", "laid_out", "layout_of", "merged", "spread", "steps_in", "walk"]


def empty_in(
    shape: tuple[int, ...], dtype: np.dtype, channel_axis: int, order: tuple[int, ...], layout: int
) -> np.ndarray:
    """A new array whose memory is densely laid out as asked."""
    return dense(shape, dtype, (0, channel_axis, *order) if layout == CHANNELS_FIRST else (0, *order, channel_axis))


def dense(shape: tuple[int, ...], dtype: np.dtype, axes: tuple[int, ...]) -> np.ndarray:
    """A new array without gaps, its axes in this order in memory, outermost first."""
    return np.empty([shape[a] for a in axes], dtype).transpose(np.argsort(axes))


def merged(shape: tuple[int, ...], strides: tuple[int, ...], axes: tuple[int, ...]) -> tuple[int, int] | None:
    """(length, stride) of the one axis that `axes`, outermost first, are together; None where they are not one."""
    length, stride = 1, 0
    for axis in reversed(axes):
        if shape[axis] == 1:
            continue
        if length == 1:
            stride = strides[axis]
        elif strides[axis] != stride * length:
            return None
        length *= shape[axis]
    return length, stride


@lru_cache(maxsize=4096)
def steps_in(
    shape: tuple[int, ...],
    strides: tuple[int, ...],
    itemsize: int,
    channel_axis: int,
    order: tuple[int, ...],
    layout: int,
) -> tuple[int, int] | None:
    """(sample step, row step) in elements, if the strides (bytes) are those of the layout.

    Channels first: positions next to each other, channels S apart, or more where positions are FEW_POSITIONS or more.
    Channels last: channels next to each other, positions C apart, or more where channels are FEW_CHANNELS or more.
    Samples lie anywhere.
    """
    fits, sample_step, row_step = walk(shape, strides, itemsize, channel_axis, order, layout)
    return (sample_step, row_step) if fits else None


def walk(
    shape: tuple[int, ...],
    strides: tuple[int, ...],
    itemsize: int,
    channel_axis: int,
    order: tuple[int, ...],
    layout: int,
) -> tuple[bool, int, int]:
    """(whether there are any, sample step, row step) of `steps_in`. Compiled, too, for callers that Numba compiles."""
    for stride in strides:
        if stride % itemsize:
            return False, 0, 0
    channels, channel_step = shape[channel_axis], strides[channel_axis] // itemsize
    positions, position_step = 1, 0
    for axis in order[::-1]:
        if shape[axis] == 1:
            continue
        step = strides[axis] // itemsize
        if positions == 1:
            position_step = step
        elif step != position_step * positions:
            return False, 0, 0
        positions *= shape[axis]
    sample_step = strides[0] // itemsize if shape[0] > 1 else 0
    if layout == CHANNELS_FIRST:
        gaps = channel_step >= positions >= FEW_POSITIONS
        fits = (positions == 1 or position_step == 1) and (channels == 1 or channel_step == positions or gaps)
        return fits, sample_step, (channel_step if channels > 1 else positions)
    gaps = position_step >= channels >= FEW_CHANNELS
    fits = (channels == 1 or channel_step == 1) and (positions == 1 or position_step == channels or gaps)
    return fits, sample_step, position_step


def spread(shape: tuple[int, ...], strides: tuple[int, ...], itemsize: int) -> bool:
    """Whether each stride is as long as all that shorter ones reach: then no elements share memory. Compiled, too."""
    for a in range(len(shape)):
        reach = itemsize
        for b in range(len(shape)):
            if b != a and abs(strides[b]) <= abs(strides[a]):
                reach += (shape[b] - 1) * abs(strides[b])
        if shape[a] > 1 and abs(strides[a]) < reach:
            return False
    return True


@lru_cache(maxsize=4096)
def layout_of(
    shape: tuple[int, ...], strides: tuple[int, ...], itemsize: int, channel_axis: int
) -> tuple[int, tuple[int, ...]] | None:
    """The layout and the order of spatial axes that describe these strides, or None."""
    spatial = [axis for axis in range(1, len(shape)) if axis != channel_axis]
    order = tuple(sorted(spatial, key=lambda axis: -abs(strides[axis])))
    for layout in (CHANNELS_FIRST, CHANNELS_LAST):
        if steps_in(shape, strides, itemsize, channel_axis, order, layout) is not None:
            return layout, order
    return None


@lru_cache(maxsize=4096)
def laid_out(
    shape: tuple[int, ...], strides: tuple[int, ...], itemsize: int, channel_axis: int, aligned: bool
) -> tuple[int, tuple[int, ...], tuple[int, ...]]:
    """(layout, order of the spatial axes, order of all axes in a copy, none where kernels can walk the memory itself).

    A copy has the same memory order if that helps (a crop, a step), or the same but for the samples (Fortran order: ten
    times as fast as channels first), else channels first.
    """
    known = layout_of(shape, strides, itemsize, channel_axis) if aligned else None
    if known is not None:
        return (*known, ())
    spatial = tuple(axis for axis in range(1, len(shape)) if axis != channel_axis)
    same = tuple(sorted(range(len(shape)), key=lambda axis: -abs(strides[axis])))  # as numpy.empty_like
    for axes in (same, (0, *(axis for axis in same if axis != 0)), (0, channel_axis, *spatial)):
        steps = [itemsize] * len(shape)
        for inner, axis in zip(axes[:0:-1], axes[-2::-1], strict=True):
            steps[axis] = steps[inner] * shape[inner]
        known = layout_of(shape, tuple(steps), itemsize, channel_axis)
        if known is not None:
            return (*known, axes)
    return CHANNELS_FIRST, spatial, ()  # there are no elements
