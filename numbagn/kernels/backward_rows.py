"""The backward pass where a channel is one element (layer norm of rows) and all samples share the parameters.

A unit is a stretch of PART samples with sums per channel of its own, so that they need no memory for each sample. They
are gathered in the accumulator's type, in the task's scratch, for SAMPLES_TOGETHER samples before float64 takes over. A
group of a sample is walked in pieces of RUN elements, each with its share of m1 and m2.
"""

from .backward_first import write_pieces_first
from .callees import device, inlined
from .geometry import SUM, WHOLE, WRITE
from .memory import absent, accumulate, lanes, load, load_one, offset, prefetch, splat, store, store_one, streamed
from .moments import CHUNK, coefficients
from .phases import steps_of_unit
from .results import upstream
from .tables import along, clear
from .vectors import doubles, fma, lane_sum

# As many additions as a lane of a chunk of the statistics has.
SAMPLES_TOGETHER = 16


@device
def sample(work, n, g, px, mean, rstd):
    """What a vector of group g of sample n is read with: where the sample begins, and the coefficients of x_hat.

    First where the sample begins that is summed next, two further on, whose memory is asked for meanwhile; the sample
    itself where there is none, or dx is not so large that it goes past the caches: (4096, 768) takes 0.87 of the time
    by it, but (1024, 1024) 1.1.
    """
    u, ahead = n * work.G + g, n
    if n + 2 < work.N and work.past != 0:
        ahead = n + 2
    unit, origin, factor, lack = coefficients(px, mean[u], 0.0, rstd[u])
    return (
        ahead * work.dy_n, ahead * work.x_n, n * work.dy_n, n * work.x_n, n * work.skip_n, n * work.res_n,
        splat(px, unit), splat(px, origin), splat(px, factor), splat(px, lack),
    )  # fmt: skip


@device
def add_sample(one, i, count, pdy, px, ps, pr, w, b, dbias, dweight, m1, m2, act):
    """Add what one sample's vector of channels from i on gives to each of the four sums."""
    next_dy, next_x, idy, ix, i_skip, ir, unit, origin, factor, lack = one
    if next_x != ix:
        prefetch(pdy, next_dy + i)
        prefetch(px, next_x + i)
    dz, d = upstream(
        pdy, px, ps, pr, absent(px), idy + i, ix + i, i_skip + i, ir + i, ix, count, unit, origin, factor, w,
        fma(w, lack, b), act,
    )  # fmt: skip
    x_hat, g = d + lack, w * dz
    return dbias + dz, fma(dz, x_hat, dweight), m1 + g, fma(g, x_hat, m2)


@device
def add_vectors(
    one, two, i, j, second, count, pdy, px, ps, pr, slot, weight, w_step, bias, b_step, a0, a1, b0, b1, act
):
    """A vector of channels from i on, of one sample or two; its sums stand at slot[j] and slot[second + j]."""
    w, b = along(weight, 0, i, w_step, count), along(bias, 0, i, b_step, count)
    dbias, dweight = load(slot, j, count), load(slot, second + j, count)
    dbias, dweight, a0, a1 = add_sample(one, i, count, pdy, px, ps, pr, w, b, dbias, dweight, a0, a1, act)
    if two is not None:
        dbias, dweight, b0, b1 = add_sample(two, i, count, pdy, px, ps, pr, w, b, dbias, dweight, b0, b1, act)
    store(slot, j, dbias, count)
    store(slot, second + j, dweight, count)
    return a0, a1, b0, b1


@device
def sum_piece(work, one, two, start, stop, at, pdy, px, ps, pr, slot, weight, bias, act):
    """Sums of weight * dz and of weight * dz * x_hat over channels start .. stop - 1 of one sample, then of another.

    dz and dz * x_hat are added to the two tables of the slot, where channel `at` stands first. Two samples together
    load and store them half as often; the order of additions is that of one after the other.
    """
    width, second = lanes(px), work.pitch
    w_step, b_step = work.w_c, work.b_c
    zero = splat(px, 0.0)
    a0_total = doubles(zero)
    a1_total, b0_total, b1_total = a0_total, a0_total, a0_total
    i = start
    while i < stop:
        end = min(i + CHUNK // 2, stop)
        a0, a1, b0, b1 = zero, zero, zero, zero
        while i + width <= end:
            a0, a1, b0, b1 = add_vectors(
                one, two, i, i - at, second, None, pdy, px, ps, pr, slot, weight, w_step, bias, b_step, a0, a1, b0,
                b1, act,
            )  # fmt: skip
            i += width
        if i < end:
            a0, a1, b0, b1 = add_vectors(
                one, two, i, i - at, second, end - i, pdy, px, ps, pr, slot, weight, w_step, bias, b_step, a0, a1, b0,
                b1, act,
            )  # fmt: skip
            i = end
        a0_total, a1_total = a0_total + doubles(a0), a1_total + doubles(a1)
        b0_total, b1_total = b0_total + doubles(b0), b1_total + doubles(b1)
    return lane_sum(a0_total), lane_sum(a1_total), lane_sum(b0_total), lane_sum(b1_total)


@device
def keep_sums(work, k, first, start, stop, slot, sums):
    """Add the slot's tables to channels start .. stop - 1 of unit k's sums, or begin them with it."""
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


@inlined
def sum_pieces(work, n, both, g, low, high, at, pdy, px, ps, pr, slot, weight, bias, mean, rstd, shares, act):
    """Pieces low .. high - 1 of group g of sample n, and of the next one if `both`."""
    per_group = work.pieces // work.G
    to, following = 2 * (n * work.pieces + g * per_group + low), 2 * work.pieces
    one = sample(work, n, g, px, mean, rstd)
    two = sample(work, n + both, g, px, mean, rstd)
    for piece in range(low, high):
        start = g * work.D + piece * work.run
        stop = min(start + work.run, (g + 1) * work.D)
        if both:
            a0, a1, b0, b1 = sum_piece(work, one, two, start, stop, at, pdy, px, ps, pr, slot, weight, bias, act)
            shares[to + following], shares[to + following + 1] = b0, b1
        else:
            a0, a1, _, _ = sum_piece(work, one, None, start, stop, at, pdy, px, ps, pr, slot, weight, bias, act)
        shares[to], shares[to + 1] = a0, a1
        to += 2


@device
def settle_sample(work, n, g, block, shares):
    """m1 and m2 of one group of a sample."""
    u, per_group, m1, m2 = n * work.G + g, work.pieces // work.G, 0.0, 0.0
    for at in range(2 * u * per_group, 2 * (u + 1) * per_group, 2):
        m1 += shares[at]
        m2 += shares[at + 1]
    block[2 * u], block[2 * u + 1] = m1 / work.D, m2 / work.D


@inlined
def walk_unit(
    whole, work, k, g, piece, pdy, px, ps, pr, pdx, pdr, pm, slot, weight, bias, mean, rstd, sums, block, shares, act
):  # fmt: skip
    """Sum one piece over the samples of unit k, or if `whole` all of them, and write each sample while it is near."""
    per_group, low = work.pieces // work.G, k * work.part
    high, until_g, until = min(low + work.part, work.N), g + 1, piece + 1
    start = g * work.D + piece * work.run
    stop = min(start + work.run, (g + 1) * work.D)
    if whole:
        until_g, until, stop = work.G, per_group, work.C
    n = low
    while n < high:
        if (n - low) % SAMPLES_TOGETHER == 0:
            clear(slot, 0, 2 * work.pitch)
        both = int(n + 1 < high)
        for h in range(g, until_g):
            sum_pieces(
                work, n, both, h, piece, until, start, pdy, px, ps, pr, slot, weight, bias, mean, rstd, shares, act
            )
            if whole:
                for m in range(n, n + 1 + both):
                    settle_sample(work, m, h, block, shares)
                    write_pieces_first(
                        work, m, h, 0, per_group, pdy, px, ps, pr, pdx, pdr, pm, slot, weight, bias, mean, rstd, block,
                        act,
                    )  # fmt: skip
        n += 1 + both
        if (n - low) % SAMPLES_TOGETHER == 0 or n == high:
            keep_sums(work, k, n - low <= SAMPLES_TOGETHER, start, stop, slot, sums)


@device
def steps_rows(phase, low, high, work, pdy, px, ps, pr, pdx, pdr, pm, slot, weight, bias, mean, rstd, sums, block, act):
    """Single positions: steps low .. high - 1 of a phase; a step of SUM or WRITE is one piece of a unit's samples."""
    per_unit, per_group = steps_of_unit(phase, work), work.pieces // work.G
    shares = offset(block, 2 * work.N * work.G)
    for step in range(low, high):
        k, g, piece = step // per_unit, step % per_unit // per_group, step % per_unit % per_group
        if phase in (WHOLE, SUM):
            walk_unit(
                phase == WHOLE, work, k, g, piece, pdy, px, ps, pr, pdx, pdr, pm, slot, weight, bias, mean, rstd, sums,
                block, shares, act,
            )  # fmt: skip
            continue
        for n in range(k * work.part, min((k + 1) * work.part, work.N)):
            if phase == WRITE:
                write_pieces_first(
                    work, n, g, piece, piece + 1, pdy, px, ps, pr, pdx, pdr, pm, slot, weight, bias, mean, rstd, block,
                    act,
                )  # fmt: skip
            else:
                for h in range(work.G):
                    settle_sample(work, n, h, block, shares)
    if work.past != 0:
        streamed()
