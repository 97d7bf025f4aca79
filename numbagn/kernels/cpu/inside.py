"""The forward pass for callers that Numba compiles: what `calls` does, as code for them.

Serial, since what calls may be a user's parallel loop. The kernels are those that Python's calls run, and what decides
the bits (memory layout, parts) comes from the same functions. Numba tells machine code of one name apart by the types
of its arguments alone, also when several functions come from its cache: so no function here depends on anything else.
"""

import math
from collections import namedtuple

import numpy as np
from numba import types
from numba.extending import overload, register_jitable
from numpy.lib.stride_tricks import as_strided

from ...arrays.dtypes import STORED
from ...shapes import schedule
from ...shapes.geometry import CHANNELS_FIRST, CHANNELS_LAST, FIELD_COUNT, WHOLE
from ...shapes.schedule import first_work, last_work
from ...shapes.strides import spread, walk
from ..callees import CALLEE
from ..compiled import entry
from ..numba_names import tuple_setitem
from .forward import forward_kernel
from .links import line, linked
from .memory import values
from .scheduled import take_shares
from .vectors import code
from .work import work_at

jitable = register_jitable(**CALLEE)
jitable(spread)
jitable(walk)
# A stride larger than any.
OUTERMOST = 1 << 62

# An array that kernels can walk: all of its memory, and its steps from sample to sample and from row to row.
Walked = namedtuple("Walked", "memory sample row")
# The values of weight or bias, and their steps from sample to sample and from channel to channel.
Parameter = namedtuple("Parameter", "values sample channel")
# Samples, channels, groups, positions of a channel.
Sizes = namedtuple("Sizes", "N C G S")
# What is done to x, with the activation's code.
Norm = namedtuple("Norm", "activation sizes weight bias eps")


def past_bytes_here():
    """The key of `past_bytes` on this machine."""
    return (int(schedule.forward_past_bytes()),)


@entry
def past_bytes(value, sources):
    """Make a function that gives the bytes of a result from which it is stored past the caches."""

    def past_bytes():
        return np.int64(value if sources != 0 else 0)  # not a literal, which callers would have as a constant

    return past_bytes


# ------------------------------------------------------------------------------------------------------ memory layouts


@jitable
def outside(strides, a, b):
    """Whether axis `a` comes before axis `b` in memory."""
    sa, sb = abs(strides[a]), abs(strides[b])
    return sa > sb or (sa == sb and a < b)


@jitable
def dense_strides(shape, strides, itemsize):
    """The strides of `numpy.empty_like`: without gaps, the axes in the order in memory that `strides` has."""
    result = strides
    for a in range(len(shape)):
        step = itemsize
        for b in range(len(shape)):
            if outside(strides, a, b):
                step *= shape[b]
        result = tuple_setitem(result, a, step)
    return result


@jitable
def channels_first_strides(shape, strides, itemsize, axis):
    """Strides without gaps, the axes in the order samples, channels, positions."""
    order = strides
    for a in range(len(shape)):
        order = tuple_setitem(order, a, len(shape) - a)
    order = tuple_setitem(tuple_setitem(order, 0, len(shape) + 1), axis, len(shape))
    return dense_strides(shape, order, itemsize)


@jitable
def strides_in(shape, strides, itemsize, axis, layout):
    """Strides without gaps in a layout, samples outermost, the spatial axes in the order that `strides` has."""
    order = tuple_setitem(strides, 0, OUTERMOST)
    order = tuple_setitem(order, axis, OUTERMOST - 1 if layout == CHANNELS_FIRST else 0)
    return dense_strides(shape, order, itemsize)


@jitable
def steps_like(shape, strides, itemsize, axis, layout, model):
    """(whether there are any, sample step, row step) as of `walk`, spatial axes in the order of `model`."""
    # one axis more, of one position, so that there is one
    model = (*model, itemsize)
    order = model[2:]
    for a in range(1, len(model)):
        at = 0
        for b in range(1, len(model)):
            if b not in (a, axis) and outside(model, b, a):
                at += 1
        if a != axis:
            order = tuple_setitem(order, at, a)
    return walk((*shape, 1), (*strides, itemsize), itemsize, axis, order, layout)


@jitable
def described(shape, strides, itemsize, axis):
    """(layout, sample step, row step) as of Python's calls; layout -1 where no kernel can walk the memory."""
    for layout in (CHANNELS_FIRST, CHANNELS_LAST):
        fits, sample, row = steps_like(shape, strides, itemsize, axis, layout, strides)
        if fits:
            return layout, sample, row
    return -1, 0, 0


@jitable
def copy(to, array):
    """Copy element by element. ``to[...] = array`` took three seconds to compile, for its error message."""
    for index in np.ndindex(to.shape):
        to[index] = array[index]


@jitable
def walkable(x, axis):
    """(x walked, its strides, its layout), or those of a copy where no kernel can walk x's memory.

    Compiled code takes every array as aligned, so this does.
    """
    memory, strides = line(x), x.strides
    layout, sample, row = described(x.shape, strides, x.itemsize, axis)
    if layout < 0:
        # the orders that a Python call tries: x's own, the same but samples outermost, channels first
        strides = dense_strides(x.shape, x.strides, x.itemsize)
        layout, sample, row = described(x.shape, strides, x.itemsize, axis)
        if layout < 0:
            strides = dense_strides(x.shape, tuple_setitem(x.strides, 0, OUTERMOST), x.itemsize)
            layout, sample, row = described(x.shape, strides, x.itemsize, axis)
        if layout < 0:
            strides = channels_first_strides(x.shape, x.strides, x.itemsize, axis)
            layout, sample, row = described(x.shape, strides, x.itemsize, axis)
        memory = np.empty(x.size, x.dtype)
        copy(as_strided(memory, x.shape, strides), x)
    return Walked(memory, sample, row), strides, layout


# ----------------------------------------------------------------------------------------------------------- arguments


def misfit(value, samples, channels):
    """Whether a parameter has another shape than (C,) or (N, C)."""


@overload(misfit, jit_options=CALLEE)
def _misfit(value, samples, channels):
    if value == types.none:
        return lambda value, samples, channels: False
    if value.ndim == 1:
        return lambda value, samples, channels: value.size != channels
    return lambda value, samples, channels: value.shape != (samples, channels)


def parameter(value, default, x, channels, out):
    """A `Parameter` in x's dtype; copied where `out` may overlap."""


@overload(parameter, jit_options=CALLEE)
def _parameter(value, default, x, channels, out):
    if value == types.none:
        return lambda value, default, x, channels, out: Parameter(np.full(1, default, x.dtype), 0, 0)
    sample = int(value.ndim == 2)
    if value.dtype == x.dtype and value.layout == "C" and out == types.none:
        return lambda value, default, x, channels, out: Parameter(line(value), sample * channels, 1)

    def converted(value, default, x, channels, out):
        values = np.empty(value.shape, x.dtype)
        copy(values, value)
        return Parameter(line(values), sample * channels, 1)

    return converted


def result(x, out):
    """`out`, or a new array like x."""


@overload(result, jit_options=CALLEE)
def _result(x, out):
    if out == types.none:
        if x.layout in "CF":
            return lambda x, out: np.empty_like(x)
        return lambda x, out: as_strided(
            np.empty(x.size, x.dtype), x.shape, dense_strides(x.shape, x.strides, x.itemsize)
        )

    def checked(x, out):
        if out.shape != x.shape:
            raise ValueError("out must have x's shape")
        if out.size > 0 and not spread(out.shape, out.strides, out.itemsize):
            raise ValueError("out must have strides that keep its elements apart")
        return out

    return checked


def writable(x, out):
    """Whether a kernel may write to the result: it lies as a new one would, and in nothing's way but as x itself."""


@overload(writable, jit_options=CALLEE)
def _writable(x, out):
    if out == types.none:
        return lambda x, out: True

    def judged(x, out):
        start, x_start = out.ctypes.data, x.ctypes.data
        if start % x.itemsize or out.strides != dense_strides(x.shape, x.strides, x.itemsize):
            return False
        if start == x_start and out.strides == x.strides:
            return True
        x_end = x_start + x.itemsize
        for axis in range(x.ndim):
            reach = (x.shape[axis] - 1) * x.strides[axis]
            x_start, x_end = x_start + min(reach, 0), x_end + max(reach, 0)
        return x_end <= start or start + x.size * x.itemsize <= x_start

    return judged


# ------------------------------------------------------------------------------------------------------------ the call


def run(layout, norm, x, y):
    """Share out the work, allocate, run the kernel for x and y, both `Walked`."""


@overload(run, jit_options=CALLEE)
def _run(layout, norm, x, y):
    acc, *_ = x.types
    activation, *_ = norm.types
    table, sums = types.Array(types.int64, 2, "C"), types.Array(types.float64, 1, "C")
    absent = types.none
    arrays = types.Tuple((acc, absent, absent, absent, acc, absent, absent))
    parameters, memory = types.UniTuple(acc, 2), types.Tuple((sums, absent, acc))
    signature = table, types.float64, arrays, parameters, memory, types.int64
    channels_first = layout.value == CHANNELS_FIRST
    kind = STORED.index(str(acc.dtype))
    kernel = linked(forward_kernel, signature, layout.value, kind, -1, -1, 0, activation.value)
    past_from = linked(past_bytes, (), past_bytes_here)

    def shared_out(layout, norm, x, y):
        N, C, G, S = norm.sizes
        data, itemsize = x.memory, x.memory.itemsize
        if channels_first:
            shares = first_work(N, C, G, S, itemsize, C == 1 or x.row == y.row == S)
        else:
            shares = last_work(N, C, S, itemsize, S == 1 or x.row == y.row == C)
        table = np.zeros((1, FIELD_COUNT), np.int64)
        work = work_at(values(table), 0)  # `table` outlives it: the kernel gets that
        take_shares(work, shares)
        work.N, work.C, work.G, work.D, work.S = N, C, G, C // G, S
        work.batch, work.valid = N, S
        work.first, work.last, work.slots = WHOLE, WHOLE + 1, 1
        work.x_n, work.x_r, work.y_n, work.y_r = x.sample, x.row, y.sample, y.row
        work.w_n, work.w_c = norm.weight.sample, norm.weight.channel
        work.b_n, work.b_c = norm.bias.sample, norm.bias.channel
        in_place = data.ctypes.data == y.memory.ctypes.data
        work.past = int(data.size * itemsize >= past_from(()) and not in_place)
        sums = np.empty(2 * N * G * (1 + work.parts))
        scratch = np.empty(max(1, work.slot), data.dtype)
        arrays = data, None, None, None, y.memory, None, None
        kernel((table, norm.eps, arrays, (norm.weight.values, norm.bias.values), (sums, None, scratch), 0))

    return shared_out


def normalize(first, norm, x, y, axis, out):
    """Find the memory layout and run; `first` is not 0 where the type of x tells it."""


@overload(normalize, jit_options=CALLEE)
def _normalize(first, norm, x, y, axis, out):
    if first.value:

        def channels_first(first, norm, x, y, axis, out):
            _, C, _, S = norm.sizes
            run(code(CHANNELS_FIRST), norm, Walked(line(x), C * S, S), Walked(line(y), C * S, S))

        return channels_first

    def any_layout(first, norm, x, y, axis, out):
        _, C, _, S = norm.sizes
        walked, strides, layout = walkable(x, axis)
        fits, sample, row = steps_like(x.shape, y.strides, x.itemsize, axis, layout, strides)
        target = Walked(line(y), sample, row)
        direct = fits and writable(x, out)
        if not direct:  # what a new array in this layout has, which fits it
            target = Walked(np.empty(x.size, x.dtype), C * S, S if layout == CHANNELS_FIRST else C)
        if layout == CHANNELS_FIRST:
            run(code(CHANNELS_FIRST), norm, walked, target)
        else:
            run(code(CHANNELS_LAST), norm, walked, target)
        if not direct:
            copy(y, as_strided(target.memory, y.shape, strides_in(y.shape, strides, y.itemsize, axis, layout)))

    return any_layout


@entry
def forward_call(first, activation, sources):
    """Make what compiled functions call: check, allocate, normalize. `first`: as for `normalize`."""

    def group_norm(x, num_groups, weight, bias, eps, channel_axis, out):
        axis = channel_axis + x.ndim if channel_axis < 0 else channel_axis
        if not 1 <= axis < x.ndim:
            raise ValueError("channel_axis must be from 1 to x.ndim - 1 or negative, and not the batch axis 0")
        samples, channels = x.shape[0], x.shape[axis]
        if num_groups < 1 or channels % num_groups or sources == 0:
            raise ValueError("num_groups must divide the number of channels")
        if not (math.isfinite(eps) and eps >= 0.0):
            raise ValueError("eps must be finite and not negative")
        if misfit(weight, samples, channels):
            raise ValueError("weight must have shape (C,) or (N, C)")
        if misfit(bias, samples, channels):
            raise ValueError("bias must have shape (C,) or (N, C)")
        y = result(x, out)
        if x.size > 0:
            sizes = Sizes(samples, channels, num_groups, x.size // (samples * channels))
            w, b = parameter(weight, 1.0, x, channels, out), parameter(bias, 0.0, x, channels, out)
            normalize(code(first), Norm(code(activation), sizes, w, b, eps), x, y, axis, out)
        return y

    return group_norm
