"""The backward pass, channels first: a block is one group of one sample, consecutive in memory."""

from .callees import device, inlined
from .geometry import SETTLE, SUM, WHOLE, WRITE
from .memory import lanes, prefetch, splat, store, streamed
from .moments import CHUNK, coefficients
from .phases import steps_of_unit
from .results import aligned_from, clear_run, elements_ahead, store_result, upstream, write_gradient
from .tables import along, element_parameters, expand
from .vectors import doubles, fma, join, keep, lane_sum


@device
def sum_steps_first(work, n, g, low, high, pdy, px, ps, pr, pm, weight, bias, mean, rstd, sums, act):
    """Steps low .. high - 1 of block (n, g), each part k, PART positions, of a channel, channel after channel."""
    u, d_count, s_count = n * work.G + g, work.D, work.S
    unit, origin, factor, lack = coefficients(px, mean[u], 0.0, rstd[u])
    unit, origin, factor = splat(px, unit), splat(px, origin), splat(px, factor)
    idy, ix, i_skip, ir, im = n * work.dy_n, n * work.x_n, n * work.skip_n, n * work.res_n, n * work.mask_n
    at, products_at, width = n * work.C, work.N * work.C, lanes(px)
    if s_count == 1:  # each channel of the block is one element and its own sum
        i, end = g * d_count, (g + 1) * d_count
        while i < end:
            count = min(width, end - i)
            w = along(weight, n * work.w_n, i * work.w_c, work.w_c, count)
            b = along(bias, n * work.b_n, i * work.b_c, work.b_c, count)
            dz, d = upstream(
                pdy, px, ps, pr, pm, idy + i, ix + i, i_skip + i, ir + i, im + i, count, unit, origin, factor, w,
                fma(w, lack, b), act,
            )  # fmt: skip
            store(sums, at + i, dz, count)
            store(sums, at + products_at + i, dz * d, count)
            i += count
        return
    c, k = g * d_count + low // work.parts, low % work.parts
    for _ in range(low, high):
        weight_c = weight[n * work.w_n + c * work.w_c]
        w, b = splat(px, weight_c), splat(px, bias[n * work.b_n + c * work.b_c] + lack * weight_c)
        i = k * work.part
        end = min(i + work.part, s_count)
        jdy, jx, j_skip = idy + c * work.dy_r, ix + c * work.x_r, i_skip + c * work.skip_r
        jr, jm = ir + c * work.res_r, im + c * work.mask_r
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
        if k == work.parts:
            c, k = c + 1, 0


@device
def settle_block(work, n, g, px, weight, mean, rstd, sums, block):
    """Add the parts of each channel of block (n, g), and what d lacks to x_hat; keep m1 and m2."""
    d_count, channels, u = work.D, work.N * work.C, n * work.G + g
    _, _, _, lack = coefficients(px, mean[u], 0.0, rstd[u])
    m1, m2 = 0.0, 0.0
    for c in range(g * d_count, (g + 1) * d_count):
        at = n * work.C + c
        for k in range(1, work.parts):
            sums[at] += sums[at + 2 * k * channels]
            sums[at + channels] += sums[at + (2 * k + 1) * channels]
        sums[at + channels] += lack * sums[at]
        w = weight[n * work.w_n + c * work.w_c]
        m1 += w * sums[at]
        m2 += w * sums[at + channels]
    size = d_count * work.valid
    block[2 * u], block[2 * u + 1] = m1 / size, m2 / size


@device
def write_pieces_first(
    work, n, g, low, high, pdy, px, ps, pr, pdx, pdr, pm, slot, weight, bias, mean, rstd, block, act
):
    """Pieces low .. high - 1 of block (n, g), each RUN elements of its line, the last first as in the forward pass."""
    u, size, c = n * work.G + g, work.D * work.S, g * work.D
    r, m1, m2 = rstd[u], block[2 * u], block[2 * u + 1]
    unit, origin, factor, lack = coefficients(px, mean[u], 0.0, r)
    unit, origin, factor = splat(px, unit), splat(px, origin), splat(px, factor)
    by_d, constant = splat(px, -r * m2), splat(px, -r * (m1 + lack * m2))
    idy, ix = n * work.dy_n + c * work.dy_r, n * work.x_n + c * work.x_r
    i_skip, ir = n * work.skip_n + c * work.skip_r, n * work.res_n + c * work.res_r
    idx, idr = n * work.y_n + c * work.y_r, n * work.dres_n + c * work.dres_r
    im = n * work.mask_n + c * work.mask_r
    for piece in range(high - 1, low - 1, -1):
        start = piece * work.run
        stop = min(start + work.run, size)
        if work.S < lanes(px):
            write_elements(
                work, n, g * size, start, stop, idy, ix, i_skip, ir, idx, idr, im, pdy, px, ps, pr, pdx, pdr, pm, slot,
                weight, bias, unit, origin, factor, lack, r, by_d, constant, act,
            )  # fmt: skip
        elif work.dense != 0:
            write_channels(
                work, n, g, start, stop, idy, ix, i_skip, ir, idx, idr, im, pdy, px, ps, pr, pdx, pdr, pm, weight,
                bias, unit, origin, factor, lack, r, by_d, constant, act,
            )  # fmt: skip
        else:
            write_rows(
                work, n, g, start, stop, idy, ix, i_skip, ir, idx, idr, im, pdy, px, ps, pr, pdx, pdr, pm, weight,
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
    work, n, g, start, stop, idy, ix, i_skip, ir, idx, idr, im, pdy, px, ps, pr, pdx, pdr, pm, weight, bias, unit,
    origin, factor, lack, r, by_d, constant, act,
):  # fmt: skip
    """Elements start .. stop - 1 of a block, its channels a vector or longer: see `forward_first.write_channels`."""
    width, s_count = lanes(px), work.S
    i = start
    aligned, past = aligned_from(work, pdx, idx, start, stop)
    c = start // s_count
    end = (c + 1) * s_count
    wi, bi = n * work.w_n + g * work.D * work.w_c, n * work.b_n + g * work.D * work.b_c
    weight_c = weight[wi + c * work.w_c]
    w, b, scale = splat(px, weight_c), splat(px, bias[bi + c * work.b_c] + lack * weight_c), splat(px, weight_c * r)
    while i < stop:
        whole = i >= aligned and i + width <= stop
        count = width if whole else min((aligned if i < aligned else stop) - i, width)
        v_w, v_b, v_scale, last = w, b, scale, min(stop, end) - width
        own = end - i
        if own <= count:
            c, end = c + 1, end + s_count
            if i + own < stop:
                weight_c = weight[wi + c * work.w_c]
                w, b = splat(px, weight_c), splat(px, bias[bi + c * work.b_c] + lack * weight_c)
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
    work, n, g, start, stop, idy, ix, i_skip, ir, idx, idr, im, pdy, px, ps, pr, pdx, pdr, pm, weight, bias, unit,
    origin, factor, lack, r, by_d, constant, act,
):  # fmt: skip
    """The same where there are gaps from channel to channel, or one mask for all: see `forward_first.write_rows`."""
    width, s_count = lanes(px), work.S
    c = start // s_count
    s = start - c * s_count
    idy, ix, i_skip = idy + c * work.dy_r + s, ix + c * work.x_r + s, i_skip + c * work.skip_r + s
    ir, idx, idr = ir + c * work.res_r + s, idx + c * work.y_r + s, idr + c * work.dres_r + s
    im = im + c * work.mask_r + s
    wi, bi = n * work.w_n + (g * work.D + c) * work.w_c, n * work.b_n + (g * work.D + c) * work.b_c
    while start < stop:
        count, weight_c = min(s_count - s, stop - start), weight[wi]
        w, b, scale = splat(px, weight_c), splat(px, bias[bi] + lack * weight_c), splat(px, weight_c * r)
        room = max(count, work.room - s) if s + count == s_count else count
        i, (aligned, past) = 0, aligned_from(work, pdx, idx, 0, count)
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
        start, wi, bi = start + count, wi + work.w_c, bi + work.b_c
        idy, ix, i_skip = idy + work.dy_r - s, ix + work.x_r - s, i_skip + work.skip_r - s
        ir, idx, idr = ir + work.res_r - s, idx + work.y_r - s, idr + work.dres_r - s
        im, s = im + work.mask_r - s, 0


@inlined
def write_elements(
    work, n, base, start, stop, idy, ix, i_skip, ir, idx, idr, im, pdy, px, ps, pr, pdx, pdr, pm, slot, weight, bias,
    unit, origin, factor, lack, r, by_d, constant, act,
):  # fmt: skip
    """Elements start .. stop - 1 of a block whose channels are shorter than a vector; `slot` as `expand` left it."""
    width = lanes(px)
    pw, wi, w_step, pb, bi, b_step = element_parameters(work, n, base, weight, bias, slot)
    i = start
    aligned, past = aligned_from(work, pdx, idx, start, stop)
    ahead, ahead_dy = ix + elements_ahead(work, n, work.x_n), idy + elements_ahead(work, n, work.dy_n)
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
    phase, low, high, work, pdy, px, ps, pr, pdx, pdr, pm, slot, weight, bias, mean, rstd, sums, block, act
):
    """Channels first: steps low .. high - 1 of a phase, taken together as far as they are of one block."""
    steps, pieces, per_block = work.sums, work.pieces, steps_of_unit(phase, work)
    u, first, expanded = low // per_block, low % per_block, -1
    n, g = u // work.G, u % work.G
    while low < high:
        count = min(high - low, per_block - first)
        if phase in (WHOLE, SUM):
            until = steps if phase == WHOLE else first + count
            sum_steps_first(work, n, g, first, until, pdy, px, ps, pr, pm, weight, bias, mean, rstd, sums, act)
        if phase in (WHOLE, SETTLE):
            settle_block(work, n, g, px, weight, mean, rstd, sums, block)
        if phase in (WHOLE, WRITE):
            until = pieces if phase == WHOLE else first + count
            expanded = expand(work, n, expanded, lanes(px), weight, bias, slot)
            write_pieces_first(
                work, n, g, first, until, pdy, px, ps, pr, pdx, pdr, pm, slot, weight, bias, mean, rstd, block, act
            )
        low, first, g = low + count, 0, g + 1
        if g == work.G:
            n, g = n + 1, 0
    if work.past != 0:
        streamed()
