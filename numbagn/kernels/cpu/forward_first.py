"""The forward pass, channels first: a block is one group of one sample.

For the statistics a block is read as one line of D * S elements, channel after channel, in parts of PART elements from
the first to the last; for the results it is read again, and y written, as `walk_first` says.
"""

import numpy as np

from ...shapes.geometry import CHANNELS_FIRST, SETTLE, SUM, WHOLE, WRITE
from ..callees import device, inlined
from . import moments
from .memory import lanes, offset, present, splat, store_fence
from .moments import coefficients, difference, estimated_mean, finalize_group, in_lanes
from .operands import Block, affine_of, at_element, at_row, at_sample, exactly, parameters_at
from .phases import steps_of_unit
from .results import write_vector
from .tables import element_parameters, expand, parameters_along
from .vectors import doubles, lane_sum
from .walk_first import write_pieces


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
    near = estimated_mean(work, CHANNELS_FIRST, block.arrays)
    count = min(work.part, work.D * work.S - start)
    sums[2 * k], sums[2 * k + 1] = moments.line_sums(work, block.arrays, start, count, near)


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
        k = estimated_mean(work, CHANNELS_FIRST, arrays)
        d = difference(exactly(arrays), first, splat(px, k), size)
        total, squares = lane_sum(doubles(d)), lane_sum(doubles(d * d))
        mean, lost, _, variance = moments.finalize_moments(work, CHANNELS_FIRST, arrays, k, total, squares, call.eps)
        rstd = moments.rstd_of(variance, call.eps)
        statistics.mean[u], statistics.rstd[u] = mean, rstd
        centre = coefficients(arrays, mean, lost, rstd)
        elements = element_parameters(work, parameters_at(call.parameters, work, n), g * size, call.slot)
        w, b = parameters_along(elements, first, size)
        write_vector(arrays, first, size, affine_of(in_lanes(px, centre), w, b), call.act, 0)
        g += 1
        if g == work.G:
            n, g = n + 1, 0


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
        block, sums = block_of(work, call, n, g), offset(call.sums, 2 * u * parts)
        if phase in (WHOLE, SUM):
            for k in range(first, parts if phase == WHOLE else first + count):
                sum_part(work, block, k, sums)
        if phase in (WHOLE, SETTLE):
            finalize_group(work, CHANNELS_FIRST, block.arrays, statistics, u, sums, 2, call.eps)
        if phase in (WHOLE, WRITE):
            until = pieces if phase == WHOLE else first + count
            expanded = expand(work, call.parameters, n, expanded, lanes(arrays.x), call.slot)
            centre = coefficients(arrays, statistics.mean[u], sums[0], statistics.rstd[u])
            write_pieces(work, block, first, until, centre)
        low, first, u, g = low + count, 0, u + 1, g + 1
        if g == work.G:
            n, g = n + 1, 0
    if work.past != 0:
        store_fence()
