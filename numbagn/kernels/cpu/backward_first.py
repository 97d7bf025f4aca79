"""The backward pass, channels first: a block is one group of one sample.

For the sums a block is read channel after channel, each in parts of PART positions from the first to the last (where a
channel is one element, as one line); for the results it is read again, and dx and dresidual written, as `walk_first`
says.
"""

from ...shapes.geometry import SETTLE, SUM, WHOLE, WRITE
from ..callees import device, inlined
from .forward_first import block_of
from .memory import lanes, offset, splat, store, store_fence
from .moments import CHUNK, coefficients, in_lanes
from .operands import CentreAndMeans, Means, at_row, for_dz_of, parameters_of
from .phases import steps_of_unit
from .results import dz_and_d
from .tables import element_parameters, expand, parameters_along
from .vectors import doubles, fma, lane_sum
from .walk_first import for_dz_of_channel, write_pieces

# The largest rstd that float32 has room for in products with means and weights of some size.
MOST_RSTD = 2.0**126


@device
def sum_elements(work, block, centre, sums):
    """The sums of a block whose channels are one element each: of dz, and behind all channels' of dz * d."""
    arrays, act, width, centre = block.arrays, block.act, lanes(block.arrays.x), in_lanes(block.arrays.x, centre)
    elements = element_parameters(work, block.parameters, block.channel, block.slot)
    products, i = offset(sums, work.N * work.C), 0
    while i < work.D:
        count = min(width, work.D - i)
        w, b = parameters_along(elements, i, count)
        dz, d = dz_and_d(arrays, i, count, for_dz_of(centre, w, b), act)
        store(sums, i, dz, count)
        store(products, i, dz * d, count)
        i += count


@device
def sum_steps(work, block, centre, low, high, sums):
    """Steps low .. high - 1 of a block, each part k, PART positions, of a channel, channel after channel."""
    if work.S == 1:
        sum_elements(work, block, centre, sums)
        return
    act, width, channels, px = block.act, lanes(block.arrays.x), work.N * work.C, block.arrays.x
    of_lanes = in_lanes(px, centre)
    c, k = low // work.parts, low % work.parts
    for _ in range(low, high):
        row = at_row(block.arrays, work, c)
        w, b = parameters_of(block.parameters, work, block.channel + c)
        by = for_dz_of_channel(px, centre, of_lanes, w, b)
        i = k * work.part
        end = min(i + work.part, work.S)
        sum_dz = doubles(splat(px, 0.0))
        sum_dz_d = sum_dz
        while i < end:
            stop = min(i + CHUNK // 2, end)
            a0 = splat(px, 0.0)
            b0 = a0
            while i + width <= stop:
                dz, d = dz_and_d(row, i, None, by, act)
                a0, b0 = a0 + dz, fma(dz, d, b0)
                i += width
            if i < stop:
                dz, d = dz_and_d(row, i, stop - i, by, act)
                a0, b0 = a0 + dz, fma(dz, d, b0)
                i = stop
            sum_dz = sum_dz + doubles(a0)
            sum_dz_d = sum_dz_d + doubles(b0)
        to = 2 * k * channels + c
        sums[to], sums[to + channels] = lane_sum(sum_dz), lane_sum(sum_dz_d)
        k += 1
        if k == work.parts:
            c, k = c + 1, 0


@device
def finalize_sums(work, parameters, g, lack, sums, means):
    """Add up the parts of each channel's sums in group g of a sample, make x_hat of d in them; keep m1 and m2.

    `lack` is x_hat - d, the same for the whole group.
    """
    channels = work.N * work.C
    m1, m2 = 0.0, 0.0
    for c in range(g * work.D, (g + 1) * work.D):
        for k in range(1, work.parts):
            sums[c] += sums[c + 2 * k * channels]
            sums[c + channels] += sums[c + (2 * k + 1) * channels]
        sums[c + channels] += lack * sums[c]
        w, _ = parameters_of(parameters, work, c)
        m1 += w * sums[c]
        m2 += w * sums[c + channels]
    size = work.D * work.valid
    means[2 * g], means[2 * g + 1] = m1 / size, m2 / size


@inlined
def means_of(px, rstd, lack, means, g):
    """What dx of group g of a sample is made with, from m1 and m2.

    Of float32 and what is narrower rstd has an end: in a constant group with next to no eps, what cancels still cancels
    then, where infinities would make NaN.
    """
    m1, m2 = means[2 * g], means[2 * g + 1]
    most = MOST_RSTD / (1.0 + abs(m1) + abs(m2))
    if lanes(px) > 8 and rstd > most:
        rstd = most
    return Means(rstd, -rstd * m2, -rstd * (m1 + lack * m2))


@device
def steps_first(phase, low, high, work, call):
    """Channels first: steps low .. high - 1 of a phase, taken together as far as they are of one block."""
    px, statistics = call.arrays.x, call.statistics
    steps, pieces, per_block = work.sums, work.pieces, steps_of_unit(phase, work)
    u, first, expanded = low // per_block, low % per_block, -1
    n, g = u // work.G, u % work.G
    while low < high:
        count = min(high - low, per_block - first)
        block, rstd = block_of(work, call, n, g), statistics.rstd[u]
        centre = coefficients(call.arrays, statistics.mean[u], 0.0, rstd)
        sums, means = offset(call.sums, n * work.C), offset(statistics.means, 2 * n * work.G)
        if phase in (WHOLE, SUM):
            until = steps if phase == WHOLE else first + count
            sum_steps(work, block, centre, first, until, offset(sums, block.channel))
        if phase in (WHOLE, SETTLE):
            finalize_sums(work, block.parameters, g, centre.lack, sums, means)
        if phase in (WHOLE, WRITE):
            expanded = expand(work, call.parameters, n, expanded, lanes(px), call.slot)
            until = pieces if phase == WHOLE else first + count
            group = CentreAndMeans(centre, means_of(px, rstd, centre.lack, means, g))
            write_pieces(work, block, first, until, group)
        low, first, u, g = low + count, 0, u + 1, g + 1
        if g == work.G:
            n, g = n + 1, 0
    if work.past != 0:
        store_fence()
