"""The backward pass, channels first: a block is one group of one sample, consecutive in memory."""

from .callees import device, inlined
from .geometry import (
    B_C, B_N, C, D, DENSE, DRES_N, DRES_R, DY_N, DY_R, G, MASK_N, MASK_R, N, PART, PARTS, PAST, PIECES,
    RES_N, RES_R, ROOM, RUN, S, SETTLE, SKIP_N, SKIP_R, SUM, SUMS, VALID, WHOLE, WRITE, W_C, W_N, X_N, X_R, Y_N, Y_R,
)  # fmt: skip
from .memory import lanes, prefetch, splat, store, streamed
from .moments import CHUNK, coefficients
from .phases import steps_of_unit
from .results import aligned_from, clear_run, elements_ahead, store_result, upstream, write_gradient
from .tables import along, element_parameters, expand
from .vectors import doubles, fma, join, keep, lane_sum


@device
def sum_steps_first(dims, n, g, low, high, pdy, px, ps, pr, pm, weight, bias, mean, rstd, sums, act):
    """Steps low .. high - 1 of block (n, g), each part k, PART positions, of a channel, channel after channel."""
    u, d_count, s_count = n * dims[G] + g, dims[D], dims[S]
    unit, origin, factor, lack = coefficients(px, mean[u], 0.0, rstd[u])
    unit, origin, factor = splat(px, unit), splat(px, origin), splat(px, factor)
    idy, ix, i_skip, ir, im = n * dims[DY_N], n * dims[X_N], n * dims[SKIP_N], n * dims[RES_N], n * dims[MASK_N]
    at, products_at, width = n * dims[C], dims[N] * dims[C], lanes(px)
    if s_count == 1:  # each channel of the block is one element and its own sum
        i, end = g * d_count, (g + 1) * d_count
        while i < end:
            count = min(width, end - i)
            w = along(weight, n * dims[W_N], i * dims[W_C], dims[W_C], count)
            b = along(bias, n * dims[B_N], i * dims[B_C], dims[B_C], count)
            dz, d = upstream(
                pdy, px, ps, pr, pm, idy + i, ix + i, i_skip + i, ir + i, im + i, count, unit, origin, factor, w,
                fma(w, lack, b), act,
            )  # fmt: skip
            store(sums, at + i, dz, count)
            store(sums, at + products_at + i, dz * d, count)
            i += count
        return
    c, k = g * d_count + low // dims[PARTS], low % dims[PARTS]
    for _ in range(low, high):
        weight_c = weight[n * dims[W_N] + c * dims[W_C]]
        w, b = splat(px, weight_c), splat(px, bias[n * dims[B_N] + c * dims[B_C]] + lack * weight_c)
        i = k * dims[PART]
        end = min(i + dims[PART], s_count)
        jdy, jx, j_skip = idy + c * dims[DY_R], ix + c * dims[X_R], i_skip + c * dims[SKIP_R]
        jr, jm = ir + c * dims[RES_R], im + c * dims[MASK_R]
        sum_dz = doubles(splat(px, 0.0))
        sum_dz_d = sum_dz
        while i < end:
            stop = min(i + CHUNK // 2, end)
            a0 = splat(px, 0.0)
            b0 = a0
            while i + width <= stop:
                dz, d = upstream(
                    pdy, px, ps, pr, pm, jdy + i, jx + i, j_skip + i, jr + i, jm + i, None, unit, origin, factor, w, b,
                    act,
                )  # fmt: skip
                a0, b0 = a0 + dz, fma(dz, d, b0)
                i += width
            if i < stop:
                dz, d = upstream(
                    pdy, px, ps, pr, pm, jdy + i, jx + i, j_skip + i, jr + i, jm + i, stop - i, unit, origin, factor, w,
                    b, act,
                )  # fmt: skip
                a0, b0 = a0 + dz, fma(dz, d, b0)
                i = stop
            sum_dz = sum_dz + doubles(a0)
            sum_dz_d = sum_dz_d + doubles(b0)
        to = 2 * k * products_at + at + c
        sums[to], sums[to + products_at] = lane_sum(sum_dz), lane_sum(sum_dz_d)
        k += 1
        if k == dims[PARTS]:
            c, k = c + 1, 0


@device
def settle_block(dims, n, g, px, weight, mean, rstd, sums, block):
    """Add the parts of each channel of block (n, g), and what d lacks to x_hat; keep m1 and m2."""
    d_count, channels, u = dims[D], dims[N] * dims[C], n * dims[G] + g
    _, _, _, lack = coefficients(px, mean[u], 0.0, rstd[u])
    m1, m2 = 0.0, 0.0
    for c in range(g * d_count, (g + 1) * d_count):
        at = n * dims[C] + c
        for k in range(1, dims[PARTS]):
            sums[at] += sums[at + 2 * k * channels]
            sums[at + channels] += sums[at + (2 * k + 1) * channels]
        sums[at + channels] += lack * sums[at]
        w = weight[n * dims[W_N] + c * dims[W_C]]
        m1 += w * sums[at]
        m2 += w * sums[at + channels]
    size = d_count * dims[VALID]
    block[2 * u], block[2 * u + 1] = m1 / size, m2 / size


@device
def write_pieces_first(
    dims, n, g, low, high, pdy, px, ps, pr, pdx, pdr, pm, slot, weight, bias, mean, rstd, block, act
):
    """Pieces low .. high - 1 of block (n, g), each RUN elements of its line, the last first as in the forward pass."""
    u, size, c = n * dims[G] + g, dims[D] * dims[S], g * dims[D]
    r, m1, m2 = rstd[u], block[2 * u], block[2 * u + 1]
    unit, origin, factor, lack = coefficients(px, mean[u], 0.0, r)
    unit, origin, factor = splat(px, unit), splat(px, origin), splat(px, factor)
    by_d, constant = splat(px, -r * m2), splat(px, -r * (m1 + lack * m2))
    idy, ix = n * dims[DY_N] + c * dims[DY_R], n * dims[X_N] + c * dims[X_R]
    i_skip, ir = n * dims[SKIP_N] + c * dims[SKIP_R], n * dims[RES_N] + c * dims[RES_R]
    idx, idr = n * dims[Y_N] + c * dims[Y_R], n * dims[DRES_N] + c * dims[DRES_R]
    im = n * dims[MASK_N] + c * dims[MASK_R]
    for piece in range(high - 1, low - 1, -1):
        start = piece * dims[RUN]
        stop = min(start + dims[RUN], size)
        if dims[S] < lanes(px):
            write_elements(
                dims, n, g * size, start, stop, idy, ix, i_skip, ir, idx, idr, im, pdy, px, ps, pr, pdx, pdr, pm, slot,
                weight, bias, unit, origin, factor, lack, r, by_d, constant, act,
            )  # fmt: skip
        elif dims[DENSE] != 0:
            write_channels(
                dims, n, g, start, stop, idy, ix, i_skip, ir, idx, idr, im, pdy, px, ps, pr, pdx, pdr, pm, weight,
                bias, unit, origin, factor, lack, r, by_d, constant, act,
            )  # fmt: skip
        else:
            write_rows(
                dims, n, g, start, stop, idy, ix, i_skip, ir, idx, idr, im, pdy, px, ps, pr, pdx, pdr, pm, weight,
                bias, unit, origin, factor, lack, r, by_d, constant, act,
            )  # fmt: skip


@device
def write_one(
    idy, ix, i_skip, ir, idx, idr, im, count, pdy, px, ps, pr, pdx, pdr, pm, unit, origin, factor, w, b, scale, by_d,
    constant, act, past,
):  # fmt: skip
    """One vector of dx and dresidual from its inputs."""
    dz, d = upstream(pdy, px, ps, pr, pm, idy, ix, i_skip, ir, im, count, unit, origin, factor, w, b, act)
    write_gradient(dz, d, pdx, pdr, pm, idx, idr, im, count, scale, by_d, constant, past)


@inlined
def write_channels(
    dims, n, g, start, stop, idy, ix, i_skip, ir, idx, idr, im, pdy, px, ps, pr, pdx, pdr, pm, weight, bias, unit,
    origin, factor, lack, r, by_d, constant, act,
):  # fmt: skip
    """Elements start .. stop - 1 of a block, its channels a vector or longer: see `forward_first.write_channels`."""
    width, s_count = lanes(px), dims[S]
    i = start
    aligned, past = aligned_from(dims, pdx, idx, start, stop)
    c = start // s_count
    end = (c + 1) * s_count
    wi, bi = n * dims[W_N] + g * dims[D] * dims[W_C], n * dims[B_N] + g * dims[D] * dims[B_C]
    weight_c = weight[wi + c * dims[W_C]]
    w, b, scale = splat(px, weight_c), splat(px, bias[bi + c * dims[B_C]] + lack * weight_c), splat(px, weight_c * r)
    while i < stop:
        whole = i >= aligned and i + width <= stop
        count = width if whole else min((aligned if i < aligned else stop) - i, width)
        v_w, v_b, v_scale, last = w, b, scale, min(stop, end) - width
        own = end - i
        if own <= count:
            c, end = c + 1, end + s_count
            if i + own < stop:
                weight_c = weight[wi + c * dims[W_C]]
                w, b = splat(px, weight_c), splat(px, bias[bi + c * dims[B_C]] + lack * weight_c)
                scale = splat(px, weight_c * r)
            if own < count:
                v_w, v_b, v_scale, last = join(v_w, w, own), join(v_b, b, own), join(v_scale, scale, own), i
        if whole:
            while i <= last:
                write_one(
                    idy + i, ix + i, i_skip + i, ir + i, idx + i, idr + i, im + i, None, pdy, px, ps, pr, pdx, pdr, pm,
                    unit, origin, factor, v_w, v_b, v_scale, by_d, constant, act, past,
                )  # fmt: skip
                i += width
        else:
            write_one(
                idy + i, ix + i, i_skip + i, ir + i, idx + i, idr + i, im + i, count, pdy, px, ps, pr, pdx, pdr, pm,
                unit, origin, factor, v_w, v_b, v_scale, by_d, constant, act, 0,
            )  # fmt: skip
            i += count


@device
def write_rows(
    dims, n, g, start, stop, idy, ix, i_skip, ir, idx, idr, im, pdy, px, ps, pr, pdx, pdr, pm, weight, bias, unit,
    origin, factor, lack, r, by_d, constant, act,
):  # fmt: skip
    """The same where there are gaps from channel to channel, or one mask for all: see `forward_first.write_rows`."""
    width, s_count = lanes(px), dims[S]
    c = start // s_count
    s = start - c * s_count
    idy, ix, i_skip = idy + c * dims[DY_R] + s, ix + c * dims[X_R] + s, i_skip + c * dims[SKIP_R] + s
    ir, idx, idr = ir + c * dims[RES_R] + s, idx + c * dims[Y_R] + s, idr + c * dims[DRES_R] + s
    im = im + c * dims[MASK_R] + s
    wi, bi = n * dims[W_N] + (g * dims[D] + c) * dims[W_C], n * dims[B_N] + (g * dims[D] + c) * dims[B_C]
    while start < stop:
        count, weight_c = min(s_count - s, stop - start), weight[wi]
        w, b, scale = splat(px, weight_c), splat(px, bias[bi] + lack * weight_c), splat(px, weight_c * r)
        room = max(count, dims[ROOM] - s) if s + count == s_count else count
        i, (aligned, past) = 0, aligned_from(dims, pdx, idx, 0, count)
        while i < count:
            whole = i >= aligned
            while whole and i + width <= count:
                write_one(
                    idy + i, ix + i, i_skip + i, ir + i, idx + i, idr + i, im + i, None, pdy, px, ps, pr, pdx, pdr, pm,
                    unit, origin, factor, w, b, scale, by_d, constant, act, past,
                )  # fmt: skip
                i += width
            if whole and room >= i + width:
                break
            own = (count if whole else aligned) - i
            if own > 0:
                write_one(
                    idy + i, ix + i, i_skip + i, ir + i, idx + i, idr + i, im + i, own, pdy, px, ps, pr, pdx, pdr, pm,
                    unit, origin, factor, w, b, scale, by_d, constant, act, 0,
                )  # fmt: skip
                i += own
        if room >= i + width:  # there is no residual then, and no mask
            dz, d = upstream(
                pdy, px, ps, pr, pm, idy + i, ix + i, i_skip + i, ir + i, im + i, count - i, unit, origin, factor, w, b,
                act,
            )  # fmt: skip
            gradient = keep(fma(dz, scale, fma(d, by_d, constant)), count - i)
            store_result(pdx, idx + i, gradient, None, past)
            i += width
        clear_run(pdx, idx + i, room - i, past)
        start, wi, bi = start + count, wi + dims[W_C], bi + dims[B_C]
        idy, ix, i_skip = idy + dims[DY_R] - s, ix + dims[X_R] - s, i_skip + dims[SKIP_R] - s
        ir, idx, idr = ir + dims[RES_R] - s, idx + dims[Y_R] - s, idr + dims[DRES_R] - s
        im, s = im + dims[MASK_R] - s, 0


@inlined
def write_elements(
    dims, n, base, start, stop, idy, ix, i_skip, ir, idx, idr, im, pdy, px, ps, pr, pdx, pdr, pm, slot, weight, bias,
    unit, origin, factor, lack, r, by_d, constant, act,
):  # fmt: skip
    """Elements start .. stop - 1 of a block whose channels are shorter than a vector; `slot` as `expand` left it."""
    width = lanes(px)
    pw, wi, w_step, pb, bi, b_step = element_parameters(dims, n, base, weight, bias, slot)
    i = start
    aligned, past = aligned_from(dims, pdx, idx, start, stop)
    ahead, ahead_dy = ix + elements_ahead(dims, n, dims[X_N]), idy + elements_ahead(dims, n, dims[DY_N])
    while i < stop:
        if i >= aligned:
            while i + width <= stop:
                prefetch(px, ahead + i)
                prefetch(pdy, ahead_dy + i)
                w, b = along(pw, wi, i, w_step, None), along(pb, bi, i, b_step, None)
                write_one(
                    idy + i, ix + i, i_skip + i, ir + i, idx + i, idr + i, im + i, None, pdy, px, ps, pr, pdx, pdr, pm,
                    unit, origin, factor, w, fma(w, lack, b), w * r, by_d, constant, act, past,
                )  # fmt: skip
                i += width
        count = (aligned if i < aligned else stop) - i
        if count > 0:
            w, b = along(pw, wi, i, w_step, count), along(pb, bi, i, b_step, count)
            write_one(
                idy + i, ix + i, i_skip + i, ir + i, idx + i, idr + i, im + i, count, pdy, px, ps, pr, pdx, pdr, pm,
                unit, origin, factor, w, fma(w, lack, b), w * r, by_d, constant, act, 0,
            )  # fmt: skip
            i += count


@device
def steps_first(
    phase, low, high, dims, pdy, px, ps, pr, pdx, pdr, pm, slot, weight, bias, mean, rstd, sums, block, act
):
    """Channels first: steps low .. high - 1 of a phase, taken together as far as they are of one block."""
    steps, pieces, per_block = dims[SUMS], dims[PIECES], steps_of_unit(phase, dims)
    u, first, expanded = low // per_block, low % per_block, -1
    n, g = u // dims[G], u % dims[G]
    while low < high:
        count = min(high - low, per_block - first)
        if phase in (WHOLE, SUM):
            until = steps if phase == WHOLE else first + count
            sum_steps_first(dims, n, g, first, until, pdy, px, ps, pr, pm, weight, bias, mean, rstd, sums, act)
        if phase in (WHOLE, SETTLE):
            settle_block(dims, n, g, px, weight, mean, rstd, sums, block)
        if phase in (WHOLE, WRITE):
            until = pieces if phase == WHOLE else first + count
            expanded = expand(dims, n, expanded, lanes(px), weight, bias, slot)
            write_pieces_first(
                dims, n, g, first, until, pdy, px, ps, pr, pdx, pdr, pm, slot, weight, bias, mean, rstd, block, act
            )
        low, first, g = low + count, 0, g + 1
        if g == dims[G]:
            n, g = n + 1, 0
    if dims[PAST] != 0:
        streamed()
