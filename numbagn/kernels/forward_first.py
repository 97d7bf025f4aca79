"""The forward pass, channels first: a block is one group of one sample, consecutive in memory."""

from .callees import device, inlined
from .geometry import (
    B_C, B_N, CHANNELS_FIRST, D, DENSE, G, KEEP_M2, MASK_N, MASK_R, PART, PARTS, PAST, PIECES, RES_N, RES_R, ROOM, RUN,
    S, SETTLE, SKIP_N, SKIP_R, SUM, WHOLE, WRITE, W_C, W_N, X_N, X_R, Y_N, Y_R,
)  # fmt: skip
from .memory import exact, lanes, prefetch, present, splat, streamed
from .moments import coefficients, difference, line_sums, location, rstd_of, settle
from .phases import steps_of_unit
from .results import aligned_from, clear_run, elements_ahead, write_end, write_vector
from .tables import along, element_parameters, expand
from .vectors import doubles, fma, join, lane_sum


@inlined
def sum_part_first(dims, n, g, k, px, ps, pm, partial):
    """Sums over part k of block (n, g), PART elements of its line."""
    c, start = g * dims[D], k * dims[PART]
    x_base, skip_base = n * dims[X_N] + c * dims[X_R], n * dims[SKIP_N] + c * dims[SKIP_R]
    m_base = n * dims[MASK_N] + c * dims[MASK_R]
    k_near = location(dims, CHANNELS_FIRST, px, ps, x_base, skip_base)
    count = min(dims[PART], dims[D] * dims[S] - start)
    total, squares = line_sums(dims, px, ps, pm, x_base, skip_base, m_base, start, count, k_near)
    at = 2 * ((n * dims[G] + g) * dims[PARTS] + k)
    partial[at], partial[at + 1] = total, squares


@inlined
def settle_block_first(dims, n, g, px, ps, pm, partial, mean, rstd, eps):
    """Mean and rstd (or M2) of block (n, g) from its partial sums, added in order.

    What the mean lost comes first there.
    """
    u, c = n * dims[G] + g, g * dims[D]
    x_base, skip_base = n * dims[X_N] + c * dims[X_R], n * dims[SKIP_N] + c * dims[SKIP_R]
    m_base = n * dims[MASK_N] + c * dims[MASK_R]
    k = location(dims, CHANNELS_FIRST, px, ps, x_base, skip_base)
    total, squares = 0.0, 0.0
    for at in range(2 * u * dims[PARTS], 2 * (u + 1) * dims[PARTS], 2):
        total += partial[at]
        squares += partial[at + 1]
    mean[u], partial[2 * u * dims[PARTS]], m2, variance = settle(
        dims, CHANNELS_FIRST, px, ps, pm, x_base, skip_base, m_base, k, total, squares, eps
    )
    rstd[u] = m2 if dims[KEEP_M2] != 0 else rstd_of(variance, eps)


@device
def one_vector_blocks(dims, low, high, eps, px, ps, pr, py, pm, slot, weight, bias, mean, rstd, act):
    """Blocks low .. high - 1 whole, where each is at most one vector and its channels are shorter than that.

    Three times as fast as step by step: (64, 48, 5) in groups of three channels took 74 us. There is no mask here, so
    any index stands for its own; a literal one would have its callees compiled again.
    """
    size, n, g, expanded = dims[D] * dims[S], low // dims[G], low % dims[G], -1
    for u in range(low, high):
        expanded = expand(dims, n, expanded, lanes(px), weight, bias, slot)
        block = g * size
        ix, i_skip = n * dims[X_N] + block, n * dims[SKIP_N] + block
        k = location(dims, CHANNELS_FIRST, px, ps, ix, i_skip)
        d = difference(exact(px, ps), exact(ps, ps), pm, ix, i_skip, ix, splat(px, k), size)
        total, squares = lane_sum(doubles(d)), lane_sum(doubles(d * d))
        mean[u], lost, _, variance = settle(dims, CHANNELS_FIRST, px, ps, pm, ix, i_skip, ix, k, total, squares, eps)
        rstd[u] = rstd_of(variance, eps)
        unit, origin, factor, lack = coefficients(px, mean[u], lost, rstd[u])
        pw, wi, w_step, pb, bi, b_step = element_parameters(dims, n, block, weight, bias, slot)
        w, b = along(pw, wi, 0, w_step, size), along(pb, bi, 0, b_step, size)
        write_vector(
            px, ps, pr, py, pm, ix, i_skip, n * dims[RES_N] + block, n * dims[Y_N] + block, ix, size,
            splat(px, unit), splat(px, origin), w * factor, fma(w, lack, b), act, 0,
        )  # fmt: skip
        g += 1
        if g == dims[G]:
            n, g = n + 1, 0


@inlined
def write_pieces_first(dims, n, g, low, high, px, ps, pr, py, pm, weight, bias, slot, mean, rstd, partial, act):
    """Pieces low .. high - 1 of block (n, g), each RUN elements of its line.

    The last comes first: of a block larger than a cache, what was summed last is still there.
    """
    u, size, c = n * dims[G] + g, dims[D] * dims[S], g * dims[D]
    unit, origin, factor, lack = coefficients(px, mean[u], partial[2 * u * dims[PARTS]], rstd[u])
    ix, i_skip = n * dims[X_N] + c * dims[X_R], n * dims[SKIP_N] + c * dims[SKIP_R]
    ir, iy = n * dims[RES_N] + c * dims[RES_R], n * dims[Y_N] + c * dims[Y_R]
    im = n * dims[MASK_N] + c * dims[MASK_R]
    for piece in range(high - 1, low - 1, -1):
        start = piece * dims[RUN]
        stop = min(start + dims[RUN], size)
        if dims[S] < lanes(px):
            write_elements(
                dims, n, g * size, start, stop, ix, i_skip, ir, iy, im, px, ps, pr, py, pm, weight, bias, slot,
                unit, origin, factor, lack, act,
            )  # fmt: skip
        elif dims[DENSE] != 0:
            write_channels(
                dims, n, g, start, stop, ix, i_skip, ir, iy, im, px, ps, pr, py, pm, weight, bias, unit, origin, factor,
                lack, act,
            )  # fmt: skip
        else:
            write_rows(
                dims, n, g, start, stop, ix, i_skip, ir, iy, im, px, ps, pr, py, pm, weight, bias, unit, origin, factor,
                lack, act,
            )  # fmt: skip


@device
def write_channels(
    dims, n, g, start, stop, ix, i_skip, ir, iy, im, px, ps, pr, py, pm, weight, bias, unit, origin,
    factor, lack, act,
):  # fmt: skip
    """Elements start .. stop - 1 of a block whose channels are a vector or longer, in whole aligned vectors."""
    width, s_count = lanes(px), dims[S]
    unit, origin = splat(px, unit), splat(px, origin)
    i = start
    aligned, past = aligned_from(dims, py, iy, start, stop)
    c = start // s_count
    end = (c + 1) * s_count
    wi, bi = n * dims[W_N] + g * dims[D] * dims[W_C], n * dims[B_N] + g * dims[D] * dims[B_C]
    w, b = weight[wi + c * dims[W_C]], bias[bi + c * dims[B_C]]
    scale, shift = splat(px, factor * w), splat(px, lack * w + b)
    while i < stop:
        whole = i >= aligned and i + width <= stop
        count = width if whole else min((aligned if i < aligned else stop) - i, width)
        v_scale, v_shift, last = scale, shift, min(stop, end) - width
        own = end - i
        if own <= count:
            c, end = c + 1, end + s_count
            if i + own < stop:
                w, b = weight[wi + c * dims[W_C]], bias[bi + c * dims[B_C]]
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
    dims, n, g, start, stop, ix, i_skip, ir, iy, im, px, ps, pr, py, pm, weight, bias, unit, origin,
    factor, lack, act,
):  # fmt: skip
    """The same where there are gaps from channel to channel, or a mask that is the same for all of them.

    Apart from `write_channels`, which took half as long again on rows of 100 elements. A row's room is filled up with
    zeros: on their own, later, they took a third of the time of large arrays.
    """
    width, s_count = lanes(px), dims[S]
    unit, origin = splat(px, unit), splat(px, origin)
    c = start // s_count
    s = start - c * s_count
    ix, i_skip, ir = ix + c * dims[X_R] + s, i_skip + c * dims[SKIP_R] + s, ir + c * dims[RES_R] + s
    iy, im = iy + c * dims[Y_R] + s, im + c * dims[MASK_R] + s
    wi, bi = n * dims[W_N] + (g * dims[D] + c) * dims[W_C], n * dims[B_N] + (g * dims[D] + c) * dims[B_C]
    while start < stop:
        count, w = min(s_count - s, stop - start), weight[wi]
        room = max(count, dims[ROOM] - s) if s + count == s_count else count
        scale, shift = splat(px, factor * w), splat(px, lack * w + bias[bi])
        i, past = aligned_from(dims, py, iy, 0, count)
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
        start, wi, bi = start + count, wi + dims[W_C], bi + dims[B_C]
        ix, i_skip, ir = ix + dims[X_R] - s, i_skip + dims[SKIP_R] - s, ir + dims[RES_R] - s
        iy, im, s = iy + dims[Y_R] - s, im + dims[MASK_R] - s, 0


@inlined
def write_elements(
    dims, n, block, start, stop, ix, i_skip, ir, iy, im, px, ps, pr, py, pm, weight, bias, slot, unit, origin, factor,
    lack, act,
):  # fmt: skip
    """Elements start .. stop - 1 of a block whose channels are shorter than a vector; `slot` as `expand` left it."""
    unit, origin = splat(px, unit), splat(px, origin)
    width = lanes(px)
    pw, wi, w_step, pb, bi, b_step = element_parameters(dims, n, block, weight, bias, slot)
    i = start
    aligned, past = aligned_from(dims, py, iy, start, stop)
    ahead = ix + elements_ahead(dims, n, dims[X_N])
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
def steps_first(phase, low, high, dims, eps, px, ps, pr, py, pm, slot, weight, bias, mean, rstd, partial, act):
    """Channels first: steps low .. high - 1 of a phase, taken together as far as they are of one block."""
    if phase == WHOLE and dims[S] < lanes(px) and dims[D] * dims[S] <= lanes(px) and not present(pm):
        one_vector_blocks(dims, low, high, eps, px, ps, pr, py, pm, slot, weight, bias, mean, rstd, act)
        return
    parts, pieces, per_block = dims[PARTS], dims[PIECES], steps_of_unit(phase, dims)
    u, first, expanded = low // per_block, low % per_block, -1
    n, g = u // dims[G], u % dims[G]
    while low < high:  # without divisions, which are slow: with blocks of 15 elements they took an eighth of the time
        count = min(high - low, per_block - first)
        if phase in (WHOLE, SUM):
            for k in range(first, parts if phase == WHOLE else first + count):
                sum_part_first(dims, n, g, k, px, ps, pm, partial)
        if phase in (WHOLE, SETTLE):
            settle_block_first(dims, n, g, px, ps, pm, partial, mean, rstd, eps)
        if phase in (WHOLE, WRITE):
            until = pieces if phase == WHOLE else first + count
            expanded = expand(dims, n, expanded, lanes(px), weight, bias, slot)
            write_pieces_first(
                dims, n, g, first, until, px, ps, pr, py, pm, weight, bias, slot, mean, rstd, partial, act
            )
        low, first, g = low + count, 0, g + 1
        if g == dims[G]:
            n, g = n + 1, 0
    if dims[PAST] != 0:
        streamed()
