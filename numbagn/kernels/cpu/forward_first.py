"""The forward pass, channels first: a block is one group of one sample, consecutive in memory.

Memory is walked channel after channel, each position after position, or as one line where there are no gaps between
channels.
"""

import numpy as np

from ...shapes.geometry import CHANNELS_FIRST, SETTLE, SUM, WHOLE, WRITE
from ..callees import device, inlined
from .memory import lanes, offset, prefetch, present, splat, streamed
from .moments import coefficients, difference, in_lanes, line_sums, location, rstd_of, settle
from .operands import Affine, Block, affine_of, at_element, at_row, at_sample, exactly, parameters_at, parameters_of
from .phases import steps_of_unit
from .results import aligned_from, clear_run, elements_ahead, write_end, write_vector
from .tables import element_parameters, expand, parameters_along
from .vectors import doubles, join, lane_sum


@inlined
def block_of(work, call, n, g):
    """Group g of sample n."""
    arrays, channel = at_sample(call.arrays, work, n), g * work.D
    parameters = parameters_at(call.parameters, work, n)
    return Block(at_row(arrays, work, channel), n, parameters, channel, call.slot, call.act)


@inlined
def sum_part(work, block, k, sums):
    """Sums over part k of a block, PART elements of its line."""
    start = k * work.part
    near = location(work, CHANNELS_FIRST, block.arrays)
    count = min(work.part, work.D * work.S - start)
    sums[2 * k], sums[2 * k + 1] = line_sums(work, block.arrays, start, count, near)


@inlined
def settle_block(work, block, u, call, sums):
    """Mean and rstd (or M2) of block u from its partial sums, added in order; what the mean lost comes first there."""
    k = location(work, CHANNELS_FIRST, block.arrays)
    total, squares = 0.0, 0.0
    for part in range(work.parts):
        total += sums[2 * part]
        squares += sums[2 * part + 1]
    mean, sums[0], m2, variance = settle(work, CHANNELS_FIRST, block.arrays, k, total, squares, call.eps)
    call.statistics.mean[u] = mean
    call.statistics.rstd[u] = m2 if work.keep_m2 != 0 else rstd_of(variance, call.eps)


@device
def one_vector_blocks(work, low, high, call):
    """Blocks low .. high - 1 whole, where each is at most one vector and its channels are shorter than that.

    Three times as fast as step by step: (64, 48, 5) in groups of three channels took 74 us.
    """
    size, n, g, expanded = work.D * work.S, low // work.G, low % work.G, -1
    first = np.int64(0)  # no literal, for which callees would be compiled again
    px, statistics = call.arrays.x, call.statistics
    for u in range(low, high):
        expanded = expand(work, call.parameters, n, expanded, lanes(px), call.slot)
        arrays = at_element(at_sample(call.arrays, work, n), work, g * size)
        k = location(work, CHANNELS_FIRST, arrays)
        d = difference(exactly(arrays), first, splat(px, k), size)
        total, squares = lane_sum(doubles(d)), lane_sum(doubles(d * d))
        mean, lost, _, variance = settle(work, CHANNELS_FIRST, arrays, k, total, squares, call.eps)
        rstd = rstd_of(variance, call.eps)
        statistics.mean[u], statistics.rstd[u] = mean, rstd
        centre = coefficients(arrays, mean, lost, rstd)
        elements = element_parameters(work, parameters_at(call.parameters, work, n), g * size, call.slot)
        w, b = parameters_along(elements, first, size)
        write_vector(arrays, first, size, affine_of(in_lanes(px, centre), w, b), call.act, 0)
        g += 1
        if g == work.G:
            n, g = n + 1, 0


@inlined
def write_pieces(work, block, low, high, centre):
    """Pieces low .. high - 1 of a block, each RUN elements of its line.

    The last comes first: of a block larger than a cache, what was summed last is still there.
    """
    for piece in range(high - 1, low - 1, -1):
        start = piece * work.run
        stop = min(start + work.run, work.D * work.S)
        if work.S < lanes(block.arrays.x):
            write_elements(work, block, start, stop, centre)
        elif work.dense != 0:
            write_channels(work, block, start, stop, centre)
        else:
            write_rows(work, block, start, stop, centre)


@inlined
def scale_and_shift(work, block, c, centre):
    """Those of channel c of a block, in every lane."""
    w, b = parameters_of(block.parameters, work, block.channel + c)
    return splat(block.arrays.x, centre.factor * w), splat(block.arrays.x, centre.lack * w + b)


@device
def write_channels(work, block, start, stop, centre):
    """Elements start .. stop - 1 of a block whose channels are a vector or longer, in whole aligned vectors."""
    arrays, act, width, s_count = block.arrays, block.act, lanes(block.arrays.x), work.S
    unit, origin = splat(arrays.x, centre.unit), splat(arrays.x, centre.origin)
    i = start
    aligned, past = aligned_from(work, arrays.y, start, stop)
    c = start // s_count
    end = (c + 1) * s_count
    scale, shift = scale_and_shift(work, block, c, centre)
    while i < stop:
        whole = i >= aligned and i + width <= stop
        count = width if whole else min((aligned if i < aligned else stop) - i, width)
        v_scale, v_shift, last = scale, shift, min(stop, end) - width
        own = end - i
        if own <= count:
            c, end = c + 1, end + s_count
            if i + own < stop:
                scale, shift = scale_and_shift(work, block, c, centre)
            if own < count:  # a vector that belongs to two channels
                v_scale, v_shift, last = join(v_scale, scale, own), join(v_shift, shift, own), i
        affine = Affine(unit, origin, v_scale, v_shift)
        if whole:
            while i <= last:
                write_vector(arrays, i, None, affine, act, past)
                i += width
        else:
            write_vector(arrays, i, count, affine, act, 0)
            i += count


@device
def write_rows(work, block, start, stop, centre):
    """The same where there are gaps from channel to channel, or a mask that is the same for all of them.

    Apart from `write_channels`, which took half as long again on rows of 100 elements. A row's room is filled up with
    zeros: on their own, later, they took a third of the time of large arrays.
    """
    act, width, s_count = block.act, lanes(block.arrays.x), work.S
    unit, origin = splat(block.arrays.x, centre.unit), splat(block.arrays.x, centre.origin)
    c = start // s_count
    s = start - c * s_count
    row = at_element(at_row(block.arrays, work, c), work, s)
    while start < stop:
        count = min(s_count - s, stop - start)
        room = max(count, work.room - s) if s + count == s_count else count
        scale, shift = scale_and_shift(work, block, c, centre)
        affine = Affine(unit, origin, scale, shift)
        i, past = aligned_from(work, row.y, 0, count)
        if i > 0:
            write_vector(row, 0, i, affine, act, 0)
        while i + width <= count:
            write_vector(row, i, None, affine, act, past)
            i += width
        if i + width <= room:
            write_end(row, i, count - i, affine, act, past)
            i += width
        elif i < count:
            write_vector(row, i, count - i, affine, act, 0)
            i = count
        clear_run(row.y, i, room - i, past)
        start, c = start + count, c + 1
        row, s = at_element(at_row(row, work, 1), work, -s), 0


@inlined
def write_elements(work, block, start, stop, centre):
    """Elements start .. stop - 1 of a block whose channels are shorter than a vector; `slot` as `expand` left it."""
    arrays, act, width, centre = block.arrays, block.act, lanes(block.arrays.x), in_lanes(block.arrays.x, centre)
    elements = element_parameters(work, block.parameters, block.channel * work.S, block.slot)
    i = start
    aligned, past = aligned_from(work, arrays.y, start, stop)
    ahead = elements_ahead(work, block.n, work.x_n)
    while i < stop:
        if i >= aligned:
            while i + width <= stop:
                prefetch(arrays.x, ahead + i)
                w, b = parameters_along(elements, i, None)
                write_vector(arrays, i, None, affine_of(centre, w, b), act, past)
                i += width
        count = (aligned if i < aligned else stop) - i
        if count > 0:
            w, b = parameters_along(elements, i, count)
            write_vector(arrays, i, count, affine_of(centre, w, b), act, 0)
            i += count


@device
def steps_first(phase, low, high, work, call):
    """Channels first: steps low .. high - 1 of a phase, taken together as far as they are of one block."""
    arrays, statistics = call.arrays, call.statistics
    short = work.S < lanes(arrays.x) and work.D * work.S <= lanes(arrays.x)
    if phase == WHOLE and short and not present(arrays.mask):
        one_vector_blocks(work, low, high, call)
        return
    parts, pieces, per_block = work.parts, work.pieces, steps_of_unit(phase, work)
    u, first, expanded = low // per_block, low % per_block, -1
    n, g = u // work.G, u % work.G
    while low < high:  # without divisions, which are slow: with blocks of 15 elements they took an eighth of the time
        count = min(high - low, per_block - first)
        block, sums = block_of(work, call, n, g), offset(statistics.sums, 2 * u * parts)
        if phase in (WHOLE, SUM):
            for k in range(first, parts if phase == WHOLE else first + count):
                sum_part(work, block, k, sums)
        if phase in (WHOLE, SETTLE):
            settle_block(work, block, u, call, sums)
        if phase in (WHOLE, WRITE):
            until = pieces if phase == WHOLE else first + count
            expanded = expand(work, call.parameters, n, expanded, lanes(arrays.x), call.slot)
            centre = coefficients(arrays, statistics.mean[u], sums[0], statistics.rstd[u])
            write_pieces(work, block, first, until, centre)
        low, first, u, g = low + count, 0, u + 1, g + 1
        if g == work.G:
            n, g = n + 1, 0
    if work.past != 0:
        streamed()
