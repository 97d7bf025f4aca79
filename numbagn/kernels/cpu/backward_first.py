"""The backward pass, channels first: a block is one group of one sample, consecutive in memory.

Memory is walked channel after channel, each position after position: for the sums channel by channel, for the results
as one line where there are no gaps.
"""

from ...shapes.geometry import SETTLE, SUM, WHOLE, WRITE
from ..callees import device, inlined
from .forward_first import block_of
from .memory import lanes, offset, prefetch, splat, store, streamed
from .moments import CHUNK, coefficients, in_lanes
from .operands import Gradient, Means, Upstream, at_element, at_row, parameters_of, upstream_of
from .phases import steps_of_unit
from .results import aligned_from, clear_run, elements_ahead, gradient_of, store_result, upstream, write_gradient
from .tables import element_parameters, expand, parameters_along
from .vectors import doubles, fma, join, keep, lane_sum

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
        dz, d = upstream(arrays, i, count, upstream_of(centre, w, b), act)
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
        by = Upstream(of_lanes.unit, of_lanes.origin, of_lanes.factor, splat(px, w), splat(px, b + centre.lack * w))
        i = k * work.part
        end = min(i + work.part, work.S)
        sum_dz = doubles(splat(px, 0.0))
        sum_dz_d = sum_dz
        while i < end:
            stop = min(i + CHUNK // 2, end)
            a0 = splat(px, 0.0)
            b0 = a0
            while i + width <= stop:
                dz, d = upstream(row, i, None, by, act)
                a0, b0 = a0 + dz, fma(dz, d, b0)
                i += width
            if i < stop:
                dz, d = upstream(row, i, stop - i, by, act)
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
def settle_block(work, parameters, g, lack, sums, means):
    """Add the parts of each channel of group g of a sample, and what d lacks to x_hat; keep m1 and m2."""
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
def write_pieces(work, block, low, high, centre, means):
    """Pieces low .. high - 1 of a block, each RUN elements of its line, the last first as in the forward pass."""
    for piece in range(high - 1, low - 1, -1):
        start = piece * work.run
        stop = min(start + work.run, work.D * work.S)
        if work.S < lanes(block.arrays.x):
            write_elements(work, block, start, stop, centre, means)
        elif work.dense != 0:
            write_channels(work, block, start, stop, centre, means)
        else:
            write_rows(work, block, start, stop, centre, means)


@device
def write_one(row, i, count, by, gradient, act, past):
    """One vector of dx and dresidual from its inputs."""
    dz, d = upstream(row, i, count, by, act)
    write_gradient(row, i, count, dz, d, gradient, past)


@inlined
def channel_coefficients(work, block, c, centre, rstd):
    """Weight, bias with what d lacks, and weight * rstd of channel c of a block, in every lane."""
    w, b = parameters_of(block.parameters, work, block.channel + c)
    px = block.arrays.x
    return splat(px, w), splat(px, b + centre.lack * w), splat(px, w * rstd)


@inlined
def write_channels(work, block, start, stop, centre, means):
    """Elements start .. stop - 1 of a block, its channels a vector or longer: see `forward_first.write_channels`."""
    arrays, act, width, s_count = block.arrays, block.act, lanes(block.arrays.x), work.S
    of_lanes = in_lanes(arrays.x, centre)
    i = start
    aligned, past = aligned_from(work, arrays.y, start, stop)
    c = start // s_count
    end = (c + 1) * s_count
    w, b, scale = channel_coefficients(work, block, c, centre, means.rstd)
    by_d, constant = splat(arrays.x, means.by_d), splat(arrays.x, means.constant)
    while i < stop:
        whole = i >= aligned and i + width <= stop
        count = width if whole else min((aligned if i < aligned else stop) - i, width)
        v_w, v_b, v_scale, last = w, b, scale, min(stop, end) - width
        own = end - i
        if own <= count:
            c, end = c + 1, end + s_count
            if i + own < stop:
                w, b, scale = channel_coefficients(work, block, c, centre, means.rstd)
            if own < count:
                v_w, v_b, v_scale, last = join(v_w, w, own), join(v_b, b, own), join(v_scale, scale, own), i
        up = Upstream(of_lanes.unit, of_lanes.origin, of_lanes.factor, v_w, v_b)
        gradient = Gradient(v_scale, by_d, constant)
        if whole:
            while i <= last:
                write_one(arrays, i, None, up, gradient, act, past)
                i += width
        else:
            write_one(arrays, i, count, up, gradient, act, 0)
            i += count


@device
def write_rows(work, block, start, stop, centre, means):
    """The same where there are gaps from channel to channel, or one mask for all: see `forward_first.write_rows`."""
    act, width, s_count, px = block.act, lanes(block.arrays.x), work.S, block.arrays.x
    of_lanes = in_lanes(px, centre)
    by_d, constant = splat(px, means.by_d), splat(px, means.constant)
    c = start // s_count
    s = start - c * s_count
    row = at_element(at_row(block.arrays, work, c), work, s)
    while start < stop:
        count = min(s_count - s, stop - start)
        w, b, scale = channel_coefficients(work, block, c, centre, means.rstd)
        up = Upstream(of_lanes.unit, of_lanes.origin, of_lanes.factor, w, b)
        gradient = Gradient(scale, by_d, constant)
        room = max(count, work.room - s) if s + count == s_count else count
        i, (aligned, past) = 0, aligned_from(work, row.y, 0, count)
        while i < count:
            whole = i >= aligned
            while whole and i + width <= count:
                write_one(row, i, None, up, gradient, act, past)
                i += width
            if whole and room >= i + width:
                break
            own = (count if whole else aligned) - i
            if own > 0:
                write_one(row, i, own, up, gradient, act, 0)
                i += own
        if room >= i + width:  # there is no mask then
            dz, d = upstream(row, i, count - i, up, act)
            store(row.dresidual, i, dz, count - i)
            store_result(row.y, i, keep(gradient_of(dz, d, gradient), count - i), None, past)
            i += width
        clear_run(row.y, i, room - i, past)
        start, c = start + count, c + 1
        row, s = at_element(at_row(row, work, 1), work, -s), 0


@inlined
def write_elements(work, block, start, stop, centre, means):
    """Elements start .. stop - 1 of a block whose channels are shorter than a vector; `slot` as `expand` left it."""
    arrays, act, width, centre = block.arrays, block.act, lanes(block.arrays.x), in_lanes(block.arrays.x, centre)
    by_d, constant = splat(arrays.x, means.by_d), splat(arrays.x, means.constant)
    elements = element_parameters(work, block.parameters, block.channel * work.S, block.slot)
    i = start
    aligned, past = aligned_from(work, arrays.y, start, stop)
    ahead, ahead_dy = elements_ahead(work, block.n, work.x_n), elements_ahead(work, block.n, work.dy_n)
    while i < stop:
        if i >= aligned:
            while i + width <= stop:
                prefetch(arrays.x, ahead + i)
                prefetch(arrays.dy, ahead_dy + i)
                w, b = parameters_along(elements, i, None)
                up = upstream_of(centre, w, b)
                write_one(arrays, i, None, up, Gradient(w * means.rstd, by_d, constant), act, past)
                i += width
        count = (aligned if i < aligned else stop) - i
        if count > 0:
            w, b = parameters_along(elements, i, count)
            up = upstream_of(centre, w, b)
            write_one(arrays, i, count, up, Gradient(w * means.rstd, by_d, constant), act, 0)
            i += count


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
        centre, means = (
            coefficients(call.arrays, statistics.mean[u], 0.0, rstd),
            offset(statistics.sums, 2 * n * work.G),
        )
        if phase in (WHOLE, SUM):
            sums = offset(call.channel_sums, n * work.C + block.channel)
            sum_steps(work, block, centre, first, steps if phase == WHOLE else first + count, sums)
        if phase in (WHOLE, SETTLE):
            settle_block(work, block.parameters, g, centre.lack, offset(call.channel_sums, n * work.C), means)
        if phase in (WHOLE, WRITE):
            expanded = expand(work, call.parameters, n, expanded, lanes(px), call.slot)
            until = pieces if phase == WHOLE else first + count
            write_pieces(work, block, first, until, centre, means_of(px, rstd, centre.lack, means, g))
        low, first, u, g = low + count, 0, u + 1, g + 1
        if g == work.G:
            n, g = n + 1, 0
    if work.past != 0:
        streamed()
