"""The backward pass where a channel is one element (layer norm of rows) and all samples share the parameters.

Memory is walked sample after sample, each channel after channel. A unit is a stretch of PART samples with sums per
channel of its own, so that they need no memory for each sample. They are gathered in the accumulator's type, in the
task's scratch, for SAMPLES_TOGETHER samples before float64 takes over. A group of a sample is walked in pieces of RUN
elements, each with its share of m1 and m2.
"""

from collections import namedtuple

from ...shapes.geometry import SUM, WHOLE, WRITE
from ..callees import device, inlined
from .backward_first import means_of
from .forward_first import block_of
from .memory import accumulate, lanes, load, load_one, offset, prefetch, splat, store, store_fence, store_one
from .moments import CHUNK, coefficients, in_lanes
from .operands import CentreAndMeans, at_sample, for_dz_of
from .phases import steps_of_unit
from .results import dz_and_d
from .tables import Elements, clear, parameters_along
from .vectors import doubles, fma, lane_sum
from .walk_first import write_pieces

# As many additions as a lane of a chunk of the statistics has.
SAMPLES_TOGETHER = 16

# What the vectors of a group of a sample are read with: its arrays, x and dy of the sample whose memory is asked for
# meanwhile, whether there is one, and the coefficients of x_hat in every lane.
Sample = namedtuple("Sample", "arrays next_x next_dy asks centre")
# Channels start .. stop - 1 of which sums are taken; `at` is the first of those that the task's two tables hold.
Piece = namedtuple("Piece", "start stop at")


@device
def sample_of(work, call, n, g):
    """Group g of sample n.

    Memory is asked for two samples further on, if there is one and dx is so large that it goes past the caches:
    (4096, 768) takes 0.87 of the time by it, but (1024, 1024) 1.1.
    """
    px, u, ahead = call.arrays.x, n * work.G + g, n
    if n + 2 < work.N and work.past != 0:
        ahead = n + 2
    centre = coefficients(call.arrays, call.statistics.mean[u], 0.0, call.statistics.rstd[u])
    next_x, next_dy = offset(px, ahead * work.x_n), offset(call.arrays.dy, ahead * work.dy_n)
    return Sample(at_sample(call.arrays, work, n), next_x, next_dy, ahead != n, in_lanes(px, centre))


@device
def add_sample(one, i, count, parameters, sums, act):
    """Add what one sample's vector of channels from i on gives to each of the four sums."""
    (w, b), (dbias, dweight, m1, m2) = parameters, sums
    if one.asks:
        prefetch(one.next_dy, i)
        prefetch(one.next_x, i)
    dz, d = dz_and_d(one.arrays, i, count, for_dz_of(one.centre, w, b), act)
    x_hat, g = d + one.centre.lack, w * dz
    return dbias + dz, fma(dz, x_hat, dweight), m1 + g, fma(g, x_hat, m2)


@device
def add_vectors(work, call, one, two, i, count, at, sums):
    """A vector of channels from i on, of one sample or two; its sums stand in the slot, where channel `at` is first."""
    a0, a1, b0, b1 = sums
    slot, place = call.slot, i - at
    elements = Elements(call.parameters.weight, work.w_c, call.parameters.bias, work.b_c)
    parameters = parameters_along(elements, i, count)
    dbias, dweight = load(slot, place, count), load(slot, work.pitch + place, count)
    dbias, dweight, a0, a1 = add_sample(one, i, count, parameters, (dbias, dweight, a0, a1), call.act)
    if two is not None:
        dbias, dweight, b0, b1 = add_sample(two, i, count, parameters, (dbias, dweight, b0, b1), call.act)
    store(slot, place, dbias, count)
    store(slot, work.pitch + place, dweight, count)
    return a0, a1, b0, b1


@device
def sum_piece(work, call, one, two, piece):
    """Sums of weight * dz and of weight * dz * x_hat over the channels of a piece of one sample, then of another.

    dz and dz * x_hat are added to the two tables of the slot. Two samples together load and store them half as often;
    the order of additions is that of one after the other.
    """
    px = call.arrays.x
    width, zero, i = lanes(px), splat(px, 0.0), piece.start
    a0_total = doubles(zero)
    a1_total, b0_total, b1_total = a0_total, a0_total, a0_total
    while i < piece.stop:
        end = min(i + CHUNK // 2, piece.stop)
        sums = zero, zero, zero, zero
        while i + width <= end:
            sums = add_vectors(work, call, one, two, i, None, piece.at, sums)
            i += width
        if i < end:
            sums = add_vectors(work, call, one, two, i, end - i, piece.at, sums)
            i = end
        a0_total, a1_total = a0_total + doubles(sums[0]), a1_total + doubles(sums[1])
        b0_total, b1_total = b0_total + doubles(sums[2]), b1_total + doubles(sums[3])
    return lane_sum(a0_total), lane_sum(a1_total), lane_sum(b0_total), lane_sum(b1_total)


@device
def keep_sums(work, call, k, first, start, stop):
    """Add the slot's tables to channels start .. stop - 1 of unit k's sums, or begin them with it."""
    slot, sums = call.slot, call.sums
    width = lanes(slot)
    for row in range(2):
        table, into = row * work.pitch - start, (row * work.units + k) * work.C
        i = start
        while i + width <= stop:
            value = load(slot, table + i, None)
            if first:
                store(sums, into + i, value, None)
            else:
                accumulate(sums, into + i, value)
            i += width
        for c in range(i, stop):
            store_one(sums, into + c, load_one(slot, table + c) + (0.0 if first else load_one(sums, into + c)))


@device
def shares_of(work, call, n):
    """Where the shares of m1 and m2 stand that the pieces of sample n have."""
    return offset(call.statistics.means, 2 * work.N * work.G + 2 * n * work.pieces)


@inlined
def sum_pieces(work, call, n, both, g, low, high, at):
    """Pieces low .. high - 1 of group g of sample n, and of the next one if `both`."""
    per_group = work.pieces // work.G
    one, two = sample_of(work, call, n, g), sample_of(work, call, n + both, g)
    shares, following, to = shares_of(work, call, n), shares_of(work, call, n + both), 2 * (g * per_group + low)
    for number in range(low, high):
        start = g * work.D + number * work.run
        piece = Piece(start, min(start + work.run, (g + 1) * work.D), at)
        if both:
            a0, a1, b0, b1 = sum_piece(work, call, one, two, piece)
            following[to], following[to + 1] = b0, b1
        else:
            a0, a1, _, _ = sum_piece(work, call, one, None, piece)
        shares[to], shares[to + 1] = a0, a1
        to += 2


@device
def finalize_means(work, call, n, g):
    """m1 and m2 of one group of a sample."""
    per_group, shares, m1, m2 = work.pieces // work.G, shares_of(work, call, n), 0.0, 0.0
    for at in range(2 * g * per_group, 2 * (g + 1) * per_group, 2):
        m1 += shares[at]
        m2 += shares[at + 1]
    means = offset(call.statistics.means, 2 * n * work.G)
    means[2 * g], means[2 * g + 1] = m1 / work.D, m2 / work.D


@device
def write_group(work, call, n, g, low, high):
    """dx of pieces low .. high - 1 of one group of a sample."""
    u = n * work.G + g
    rstd = call.statistics.rstd[u]
    centre = coefficients(call.arrays, call.statistics.mean[u], 0.0, rstd)
    means = means_of(call.arrays.x, rstd, centre.lack, offset(call.statistics.means, 2 * n * work.G), g)
    write_pieces(work, block_of(work, call, n, g), low, high, CentreAndMeans(centre, means))


@inlined
def walk_unit(whole, work, call, k, g, number):
    """Sum one piece over the samples of unit k, or if `whole` all of them, and write each sample while it is near."""
    per_group, low = work.pieces // work.G, k * work.part
    high, until_g, until = min(low + work.part, work.N), g + 1, number + 1
    start = g * work.D + number * work.run
    stop = min(start + work.run, (g + 1) * work.D)
    if whole:
        until_g, until, stop = work.G, per_group, work.C
    n = low
    while n < high:
        if (n - low) % SAMPLES_TOGETHER == 0:
            clear(call.slot, 0, 2 * work.pitch)
        both = int(n + 1 < high)
        for h in range(g, until_g):
            sum_pieces(work, call, n, both, h, number, until, start)
            if whole:
                for m in range(n, n + 1 + both):
                    finalize_means(work, call, m, h)
                    write_group(work, call, m, h, 0, per_group)
        n += 1 + both
        if (n - low) % SAMPLES_TOGETHER == 0 or n == high:
            keep_sums(work, call, k, n - low <= SAMPLES_TOGETHER, start, stop)


@device
def steps_rows(phase, low, high, work, call):
    """Single positions: steps low .. high - 1 of a phase; a step of SUM or WRITE is one piece of a unit's samples."""
    per_unit, per_group = steps_of_unit(phase, work), work.pieces // work.G
    for step in range(low, high):
        k, g, number = step // per_unit, step % per_unit // per_group, step % per_unit % per_group
        if phase in (WHOLE, SUM):
            walk_unit(phase == WHOLE, work, call, k, g, number)
            continue
        for n in range(k * work.part, min((k + 1) * work.part, work.N)):
            if phase == WRITE:
                write_group(work, call, n, g, number, number + 1)
            else:
                for h in range(work.G):
                    finalize_means(work, call, n, h)
    if work.past != 0:
        store_fence()
