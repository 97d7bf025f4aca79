"""The forward pass, channels first: a block is one group of one sample, consecutive in memory."""

from .callees import device, inlined
from .geometry import CHANNELS_FIRST, SETTLE, SUM, WHOLE, WRITE
from .memory import exact, lanes, prefetch, present, splat, streamed
from .moments import coefficients, difference, line_sums, location, rstd_of, settle
from .phases import steps_of_unit
from .results import aligned_from, clear_run, elements_ahead, write_end, write_vector
from .tables import along, element_parameters, expand
from .vectors import doubles, fma, join, lane_sum


@inlined
def sum_part_first(work, n, g, k, px, ps, pm, partial):
    """Sums over part k of block (n, g), PART elements of its line."""
    c, start = g * work.D, k * work.part
    x_base, skip_base = n * work.x_n + c * work.x_r, n * work.skip_n + c * work.skip_r
    m_base = n * work.mask_n + c * work.mask_r
    k_near = location(work, CHANNELS_FIRST, px, ps, x_base, skip_base)
    count = min(work.part, work.D * work.S - start)
    total, squares = line_sums(work, px, ps, pm, x_base, skip_base, m_base, start, count, k_near)
    at = 2 * ((n * work.G + g) * work.parts + k)
    partial[at], partial[at + 1] = total, squares


@inlined
def settle_block_first(work, n, g, px, ps, pm, partial, mean, rstd, eps):
    """Mean and rstd (or M2) of block (n, g) from its partial sums, added in order.

    What the mean lost comes first there.
    """
    u, c = n * work.G + g, g * work.D
    x_base, skip_base = n * work.x_n + c * work.x_r, n * work.skip_n + c * work.skip_r
    m_base = n * work.mask_n + c * work.mask_r
    k = location(work, CHANNELS_FIRST, px, ps, x_base, skip_base)
    total, squares = 0.0, 0.0
    for at in range(2 * u * work.parts, 2 * (u + 1) * work.parts, 2):
        total += partial[at]
        squares += partial[at + 1]
    mean[u], partial[2 * u * work.parts], m2, variance = settle(
        work, CHANNELS_FIRST, px, ps, pm, x_base, skip_base, m_base, k, total, squares, eps
    )
    rstd[u] = m2 if work.keep_m2 != 0 else rstd_of(variance, eps)


@device
def one_vector_blocks(work, low, high, eps, px, ps, pr, py, pm, slot, weight, bias, mean, rstd, act):
    """Blocks low .. high - 1 whole, where each is at most one vector and its channels are shorter than that.

    Three times as fast as step by step: (64, 48, 5) in groups of three channels took 74 us. There is no mask here, so
    any index stands for its own; a literal one would have its callees compiled again.
    """
    size, n, g, expanded = work.D * work.S, low // work.G, low % work.G, -1
    for u in range(low, high):
        expanded = expand(work, n, expanded, lanes(px), weight, bias, slot)
        block = g * size
        ix, i_skip = n * work.x_n + block, n * work.skip_n + block
        k = location(work, CHANNELS_FIRST, px, ps, ix, i_skip)
        d = difference(exact(px, ps), exact(ps, ps), pm, ix, i_skip, ix, splat(px, k), size)
        total, squares = lane_sum(doubles(d)), lane_sum(doubles(d * d))
        mean[u], lost, _, variance = settle(work, CHANNELS_FIRST, px, ps, pm, ix, i_skip, ix, k, total, squares, eps)
        rstd[u] = rstd_of(variance, eps)
        unit, origin, factor, lack = coefficients(px, mean[u], lost, rstd[u])
        pw, wi, w_step, pb, bi, b_step = element_parameters(work, n, block, weight, bias, slot)
        w, b = along(pw, wi, 0, w_step, size), along(pb, bi, 0, b_step, size)
        write_vector(
            px, ps, pr, py, pm, ix, i_skip, n * work.res_n + block, n * work.y_n + block, ix, size,
            splat(px, unit), splat(px, origin), w * factor, fma(w, lack, b), act, 0,
        )  # fmt: skip
        g += 1
        if g == work.G:
            n, g = n + 1, 0


@inlined
def write_pieces_first(work, n, g, low, high, px, ps, pr, py, pm, weight, bias, slot, mean, rstd, partial, act):
    """Pieces low .. high - 1 of block (n, g), each RUN elements of its line.

    The last comes first: of a block larger than a cache, what was summed last is still there.
    """
    u, size, c = n * work.G + g, work.D * work.S, g * work.D
    unit, origin, factor, lack = coefficients(px, mean[u], partial[2 * u * work.parts], rstd[u])
    ix, i_skip = n * work.x_n + c * work.x_r, n * work.skip_n + c * work.skip_r
    ir, iy = n * work.res_n + c * work.res_r, n * work.y_n + c * work.y_r
    im = n * work.mask_n + c * work.mask_r
    for piece in range(high - 1, low - 1, -1):
        start = piece * work.run
        stop = min(start + work.run, size)
        if work.S < lanes(px):
            write_elements(
                work, n, g * size, start, stop, ix, i_skip, ir, iy, im, px, ps, pr, py, pm, weight, bias, slot,
                unit, origin, factor, lack, act,
            )  # fmt: skip
        elif work.dense != 0:
            write_channels(
                work, n, g, start, stop, ix, i_skip, ir, iy, im, px, ps, pr, py, pm, weight, bias, unit, origin, factor,
                lack, act,
            )  # fmt: skip
        else:
            write_rows(
                work, n, g, start, stop, ix, i_skip, ir, iy, im, px, ps, pr, py, pm, weight, bias, unit, origin, factor,
                lack, act,
            )  # fmt: skip


@device
def write_channels(
    work, n, g, start, stop, ix, i_skip, ir, iy, im, px, ps, pr, py, pm, weight, bias, unit, origin,
    factor, lack, act,
):  # fmt: skip
    """Elements start .. stop - 1 of a block whose channels are a vector or longer, in whole aligned vectors."""
    width, s_count = lanes(px), work.S
    unit, origin = splat(px, unit), splat(px, origin)
    i = start
    aligned, past = aligned_from(work, py, iy, start, stop)
    c = start // s_count
    end = (c + 1) * s_count
    wi, bi = n * work.w_n + g * work.D * work.w_c, n * work.b_n + g * work.D * work.b_c
    w, b = weight[wi + c * work.w_c], bias[bi + c * work.b_c]
    scale, shift = splat(px, factor * w), splat(px, lack * w + b)
    while i < stop:
        whole = i >= aligned and i + width <= stop
        count = width if whole else min((aligned if i < aligned else stop) - i, width)
        v_scale, v_shift, last = scale, shift, min(stop, end) - width
        own = end - i
        if own <= count:
            c, end = c + 1, end + s_count
            if i + own < stop:
                w, b = weight[wi + c * work.w_c], bias[bi + c * work.b_c]
                scale, shift = splat(px, factor * w), splat(px, lack * w + b)
            if own < count:  # a vector that belongs to two channels
                v_scale, v_shift, last = join(v_scale, scale, own), join(v_shift, shift, own), i
        if whole:
            while i <= last:
                write_vector(
                    px, ps, pr, py, pm, ix + i, i_skip + i, ir + i, iy + i, im + i, None, unit, origin, v_scale,
                    v_shift, act, past,
                )  # fmt: skip
                i += width
        else:
            write_vector(
                px, ps, pr, py, pm, ix + i, i_skip + i, ir + i, iy + i, im + i, count, unit, origin, v_scale, v_shift,
                act, 0,
            )  # fmt: skip
            i += count


@device
def write_rows(
    work, n, g, start, stop, ix, i_skip, ir, iy, im, px, ps, pr, py, pm, weight, bias, unit, origin,
    factor, lack, act,
):  # fmt: skip
    """The same where there are gaps from channel to channel, or a mask that is the same for all of them.

    Apart from `write_channels`, which took half as long again on rows of 100 elements. A row's room is filled up with
    zeros: on their own, later, they took a third of the time of large arrays.
    """
    width, s_count = lanes(px), work.S
    unit, origin = splat(px, unit), splat(px, origin)
    c = start // s_count
    s = start - c * s_count
    ix, i_skip, ir = ix + c * work.x_r + s, i_skip + c * work.skip_r + s, ir + c * work.res_r + s
    iy, im = iy + c * work.y_r + s, im + c * work.mask_r + s
    wi, bi = n * work.w_n + (g * work.D + c) * work.w_c, n * work.b_n + (g * work.D + c) * work.b_c
    while start < stop:
        count, w = min(s_count - s, stop - start), weight[wi]
        room = max(count, work.room - s) if s + count == s_count else count
        scale, shift = splat(px, factor * w), splat(px, lack * w + bias[bi])
        i, past = aligned_from(work, py, iy, 0, count)
        if i > 0:
            write_vector(px, ps, pr, py, pm, ix, i_skip, ir, iy, im, i, unit, origin, scale, shift, act, 0)
        while i + width <= count:
            write_vector(
                px, ps, pr, py, pm, ix + i, i_skip + i, ir + i, iy + i, im + i, None, unit, origin, scale, shift, act,
                past,
            )  # fmt: skip
            i += width
        if i + width <= room:
            write_end(
                px, ps, pr, py, ix + i, i_skip + i, ir + i, iy + i, count - i, unit, origin, scale, shift, act, past
            )
            i += width
        elif i < count:
            write_vector(
                px, ps, pr, py, pm, ix + i, i_skip + i, ir + i, iy + i, im + i, count - i, unit, origin, scale, shift,
                act, 0,
            )  # fmt: skip
            i = count
        clear_run(py, iy + i, room - i, past)
        start, wi, bi = start + count, wi + work.w_c, bi + work.b_c
        ix, i_skip, ir = ix + work.x_r - s, i_skip + work.skip_r - s, ir + work.res_r - s
        iy, im, s = iy + work.y_r - s, im + work.mask_r - s, 0


@inlined
def write_elements(
    work, n, block, start, stop, ix, i_skip, ir, iy, im, px, ps, pr, py, pm, weight, bias, slot, unit, origin, factor,
    lack, act,
):  # fmt: skip
    """Elements start .. stop - 1 of a block whose channels are shorter than a vector; `slot` as `expand` left it."""
    unit, origin = splat(px, unit), splat(px, origin)
    width = lanes(px)
    pw, wi, w_step, pb, bi, b_step = element_parameters(work, n, block, weight, bias, slot)
    i = start
    aligned, past = aligned_from(work, py, iy, start, stop)
    ahead = ix + elements_ahead(work, n, work.x_n)
    while i < stop:
        if i >= aligned:
            while i + width <= stop:
                prefetch(px, ahead + i)
                w, b = along(pw, wi, i, w_step, None), along(pb, bi, i, b_step, None)
                write_vector(
                    px, ps, pr, py, pm, ix + i, i_skip + i, ir + i, iy + i, im + i, None, unit, origin, w * factor,
                    fma(w, lack, b), act, past,
                )  # fmt: skip
                i += width
        count = (aligned if i < aligned else stop) - i
        if count > 0:
            w, b = along(pw, wi, i, w_step, count), along(pb, bi, i, b_step, count)
            write_vector(
                px, ps, pr, py, pm, ix + i, i_skip + i, ir + i, iy + i, im + i, count, unit, origin, w * factor,
                fma(w, lack, b), act, 0,
            )  # fmt: skip
            i += count


@device
def steps_first(phase, low, high, work, eps, px, ps, pr, py, pm, slot, weight, bias, mean, rstd, partial, act):
    """Channels first: steps low .. high - 1 of a phase, taken together as far as they are of one block."""
    if phase == WHOLE and work.S < lanes(px) and work.D * work.S <= lanes(px) and not present(pm):
        one_vector_blocks(work, low, high, eps, px, ps, pr, py, pm, slot, weight, bias, mean, rstd, act)
        return
    parts, pieces, per_block = work.parts, work.pieces, steps_of_unit(phase, work)
    u, first, expanded = low // per_block, low % per_block, -1
    n, g = u // work.G, u % work.G
    while low < high:  # without divisions, which are slow: with blocks of 15 elements they took an eighth of the time
        count = min(high - low, per_block - first)
        if phase in (WHOLE, SUM):
            for k in range(first, parts if phase == WHOLE else first + count):
                sum_part_first(work, n, g, k, px, ps, pm, partial)
        if phase in (WHOLE, SETTLE):
            settle_block_first(work, n, g, px, ps, pm, partial, mean, rstd, eps)
        if phase in (WHOLE, WRITE):
            until = pieces if phase == WHOLE else first + count
            expanded = expand(work, n, expanded, lanes(px), weight, bias, slot)
            write_pieces_first(
                work, n, g, first, until, px, ps, pr, py, pm, weight, bias, slot, mean, rstd, partial, act
            )
        low, first, g = low + count, 0, g + 1
        if g == work.G:
            n, g = n + 1, 0
    if work.past != 0:
        streamed()
