"""The backward pass on the CPU, two sweeps over each block.

With dz = dy * activation'(x_hat * weight + bias + residual):

    dbias = sum of dz over n and s               dweight = sum of dz * x_hat over n and s
    dx = rstd * (weight * dz - m1 - x_hat * m2)  dresidual = dz

where m1 and m2 are the group's means of weight * dz and of weight * dz * x_hat (Wu & He 2018, by the chain rule). The
loops work on d = (x - K) * rstd, K as in the forward pass, so nothing is lost where the mean is large against the
deviation; x_hat - d is one small number for a block.

Sums per channel go to `sums`, laid out (PARTS, 2, N, C): first dz, then dz * x_hat; settling adds the parts in order
into the first, which is what the caller reads.
"""

from numba import prange

from .compiled import device, entry, slope
from .forward import (
    ALIGN_FROM, ROWS_IN_REGISTERS, along, clear, coefficients, element_parameters, expand, fold, repeat, steps_in,
    store_result,
)  # fmt: skip
from .geometry import (
    B_C, B_N, C, CHANNELS_FIRST, D, DENSE, DRES_N, DRES_R, DY_N, DY_R, FIRST, G, LAST, N, PART, PARTS, PAST, PIECES,
    PITCH, RES_N, RES_R, ROW, RUN, S, SETTLE, SKIP_N, SKIP_R, SLOT, SLOTS, SUM, SUMS, W_C, W_N, WHOLE, WRITE, X_N, X_R,
    Y_N, Y_R,
)  # fmt: skip
from .memory import (
    accumulate, doubles_at, lanes, load, load_one, offset, pointer, present, splat, store, store_one, streamed,
    until_aligned, values,
)  # fmt: skip
from .moments import CHUNK, centred, final_shift
from .vectors import code, doubles, fma, join, keep, lane_sum


@device
def upstream(pdy, px, ps, pr, idy, ix, i_skip, ir, count, half_shift, half_shift_skip, rstd_2, w, b, act):
    """(dz, d) of one vector, d = (x + skip - K) * rstd; both are zero from lane `count` on.

    What d lacks to x_hat is the same for a whole block: the coefficients have it.
    """
    d = centred(px, ps, ix, i_skip, count, half_shift, half_shift_skip) * rstd_2
    z = fma(d, w, b)
    if present(pr):
        z = z + load(pr, ir, count)
    return keep(load(pdy, idy, count) * slope(z, act), count), keep(d, count)


@device
def write_gradient(dz, d, pdx, pdr, idx, idr, count, scale, by_d, constant, past):
    """One vector of dx and dresidual."""
    store_result(pdx, idx, fma(dz, scale, fma(d, by_d, constant)), count, past)
    store(pdr, idr, dz, count)


# ------------------------------------------------------------------------------------------------------ channels first


@device
def sum_steps_first(dims, u, low, high, pdy, px, ps, pr, weight, bias, mean, rstd, sums, act):
    """Steps low .. high - 1 of block u, each part k, PART positions, of a channel, channel after channel."""
    n, g, d_count, s_count = u // dims[G], u % dims[G], dims[D], dims[S]
    block_shift = final_shift(px, ps, n * dims[X_N] + g * d_count * s_count, 1, 0, d_count * s_count, mean[u])
    half_shift, half_shift_skip, rstd_2, lack = coefficients(px, ps, block_shift, mean[u], 0.0, rstd[u])
    h, h_skip, rstd_2 = splat(px, half_shift), splat(px, half_shift_skip), splat(px, rstd_2)
    idy, ix, i_skip, ir = n * dims[DY_N], n * dims[X_N], n * dims[SKIP_N], n * dims[RES_N]
    at, products_at, width = n * dims[C], dims[N] * dims[C], lanes(px)
    if s_count == 1:  # each channel of the block is one element and its own sum
        pw, pb, to = values(weight), values(bias), values(sums)
        i, end = g * d_count, (g + 1) * d_count
        while i < end:
            count = min(width, end - i)
            w = along(pw, n * dims[W_N], i * dims[W_C], dims[W_C], count)
            b = along(pb, n * dims[B_N], i * dims[B_C], dims[B_C], count)
            dz, d = upstream(
                pdy, px, ps, pr, idy + i, ix + i, i_skip + i, ir + i, count, h, h_skip, rstd_2, w, fma(w, lack, b), act
            )
            store(to, at + i, dz, count)
            store(to, at + products_at + i, dz * d, count)
            i += count
        return
    c, k = g * d_count + low // dims[PARTS], low % dims[PARTS]
    for _ in range(low, high):
        weight_c = weight[n * dims[W_N] + c * dims[W_C]]
        w, b = splat(px, weight_c), splat(px, bias[n * dims[B_N] + c * dims[B_C]] + lack * weight_c)
        i = c * s_count + k * dims[PART]
        end = min(i + dims[PART], (c + 1) * s_count)
        sum_dz = doubles(splat(px, 0.0))
        sum_dz_d = sum_dz
        while i < end:
            stop = min(i + CHUNK // 2, end)
            a0 = splat(px, 0.0)
            b0 = a0
            while i + width <= stop:
                dz, d = upstream(
                    pdy, px, ps, pr, idy + i, ix + i, i_skip + i, ir + i, None, h, h_skip, rstd_2, w, b, act
                )
                a0, b0 = a0 + dz, fma(dz, d, b0)
                i += width
            if i < stop:
                dz, d = upstream(
                    pdy, px, ps, pr, idy + i, ix + i, i_skip + i, ir + i, stop - i, h, h_skip, rstd_2, w, b, act
                )
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
def settle_block(dims, n, g, x_base, rows, x_stride, length, px, ps, weight, mean, rstd, sums, block):
    """Add the parts of each channel of block (n, g), and what d lacks to x_hat; keep m1, m2 and the shift of x."""
    d_count, channels, u = dims[D], dims[N] * dims[C], n * dims[G] + g
    block_shift = final_shift(px, ps, x_base, rows, x_stride, length, mean[u])
    _, _, _, lack = coefficients(px, ps, block_shift, mean[u], 0.0, rstd[u])
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
    size = d_count * dims[S]
    block[3 * u], block[3 * u + 1], block[3 * u + 2] = m1 / size, m2 / size, block_shift


@device
def settle_block_first(dims, u, px, ps, weight, mean, rstd, sums, block):
    """`settle_block` where a block is one row."""
    n, g, size = u // dims[G], u % dims[G], dims[D] * dims[S]
    settle_block(dims, n, g, n * dims[X_N] + g * size, 1, 0, size, px, ps, weight, mean, rstd, sums, block)


@device
def settle_sample_last(dims, n, px, ps, weight, mean, rstd, sums, block):
    """`settle_block` for every group of sample n."""
    for g in range(dims[G]):
        x_base = n * dims[X_N] + g * dims[D]
        settle_block(dims, n, g, x_base, dims[S], dims[X_R], dims[D], px, ps, weight, mean, rstd, sums, block)


@device
def write_pieces_first(dims, u, low, high, pdy, px, ps, pr, pdx, pdr, slot, weight, bias, mean, rstd, block, act):
    """Pieces low .. high - 1 of block u, each RUN consecutive elements, the last first as in the forward pass."""
    n, g, size, r = u // dims[G], u % dims[G], dims[D] * dims[S], rstd[u]
    half_shift, half_shift_skip, rstd_2, lack = coefficients(px, ps, block[3 * u + 2], mean[u], 0.0, r)
    h, h_skip, rstd_2 = splat(px, half_shift), splat(px, half_shift_skip), splat(px, rstd_2)
    by_d, constant = splat(px, -r * block[3 * u + 1]), splat(px, -r * (block[3 * u] + lack * block[3 * u + 1]))
    base = g * size
    idy, ix = n * dims[DY_N] + base, n * dims[X_N] + base
    i_skip, ir = n * dims[SKIP_N] + base, n * dims[RES_N] + base
    idx, idr = n * dims[Y_N] + base, n * dims[DRES_N] + base
    for piece in range(high - 1, low - 1, -1):
        start = piece * dims[RUN]
        stop = min(start + dims[RUN], size)
        if dims[S] < lanes(px):
            write_elements(
                dims, n, base, start, stop, idy, ix, i_skip, ir, idx, idr, pdy, px, ps, pr, pdx, pdr, slot, weight,
                bias, h, h_skip, rstd_2, lack, r, by_d, constant, act,
            )  # fmt: skip
        else:
            write_channels(
                dims, n, g, start, stop, idy, ix, i_skip, ir, idx, idr, pdy, px, ps, pr, pdx, pdr, weight, bias, h,
                h_skip, rstd_2, lack, r, by_d, constant, act,
            )  # fmt: skip


@device
def write_one(
    idy, ix, i_skip, ir, idx, idr, count, pdy, px, ps, pr, pdx, pdr, h, h_skip, rstd_2, w, b, scale, by_d, constant,
    act, past,
):  # fmt: skip
    """One vector of dx and dresidual from its inputs."""
    dz, d = upstream(pdy, px, ps, pr, idy, ix, i_skip, ir, count, h, h_skip, rstd_2, w, b, act)
    write_gradient(dz, d, pdx, pdr, idx, idr, count, scale, by_d, constant, past)


@device
def write_channels(
    dims, n, g, start, stop, idy, ix, i_skip, ir, idx, idr, pdy, px, ps, pr, pdx, pdr, weight, bias, h, h_skip, rstd_2,
    lack, r, by_d, constant, act,
):  # fmt: skip
    """Elements start .. stop - 1 of a block whose channels are a vector or longer, as `forward.write_channels`."""
    width, s_count = lanes(px), dims[S]
    i, aligned, past = start, start, 0
    if stop - start >= ALIGN_FROM * width:
        aligned, past = start + until_aligned(pdx, idx + start), dims[PAST]
    c = start // s_count
    end = (c + 1) * s_count
    wi, bi = n * dims[W_N] + g * dims[D] * dims[W_C], n * dims[B_N] + g * dims[D] * dims[B_C]
    weight_c = weight[wi + c * dims[W_C]]
    w, b, scale = splat(px, weight_c), splat(px, bias[bi + c * dims[B_C]] + lack * weight_c), splat(px, weight_c * r)
    while i < stop:
        if i >= aligned:
            last = min(stop, end) - width
            while i <= last:
                write_one(
                    idy + i, ix + i, i_skip + i, ir + i, idx + i, idr + i, None, pdy, px, ps, pr, pdx, pdr, h, h_skip,
                    rstd_2, w, b, scale, by_d, constant, act, past,
                )  # fmt: skip
                i += width
        count = min((aligned if i < aligned else stop) - i, width)
        own = end - i
        v_w, v_b, v_scale = w, b, scale
        if own < count or own == 0:
            c, end = c + 1, end + s_count
            if i + own < stop:
                weight_c = weight[wi + c * dims[W_C]]
                w, b = splat(px, weight_c), splat(px, bias[bi + c * dims[B_C]] + lack * weight_c)
                scale = splat(px, weight_c * r)
            if own == 0:
                continue
            v_w, v_b, v_scale = join(v_w, w, own), join(v_b, b, own), join(v_scale, scale, own)
        if count == width:
            write_one(
                idy + i, ix + i, i_skip + i, ir + i, idx + i, idr + i, None, pdy, px, ps, pr, pdx, pdr, h, h_skip,
                rstd_2, v_w, v_b, v_scale, by_d, constant, act, past,
            )  # fmt: skip
        else:
            write_one(
                idy + i, ix + i, i_skip + i, ir + i, idx + i, idr + i, count, pdy, px, ps, pr, pdx, pdr, h, h_skip,
                rstd_2, v_w, v_b, v_scale, by_d, constant, act, 0,
            )  # fmt: skip
        i += count


@device
def write_elements(
    dims, n, base, start, stop, idy, ix, i_skip, ir, idx, idr, pdy, px, ps, pr, pdx, pdr, slot, weight, bias, h,
    h_skip, rstd_2, lack, r, by_d, constant, act,
):  # fmt: skip
    """Elements start .. stop - 1 of a block whose channels are shorter than a vector; `slot` as `expand` left it."""
    width = lanes(px)
    pw, wi, w_step, pb, bi, b_step = element_parameters(dims, n, base, weight, bias, slot)
    i, aligned, past = start, start, 0
    if stop - start >= ALIGN_FROM * width:
        aligned, past = start + until_aligned(pdx, idx + start), dims[PAST]
    while i < stop:
        if i >= aligned:
            while i + width <= stop:
                w, b = along(pw, wi, i, w_step, None), along(pb, bi, i, b_step, None)
                write_one(
                    idy + i, ix + i, i_skip + i, ir + i, idx + i, idr + i, None, pdy, px, ps, pr, pdx, pdr, h, h_skip,
                    rstd_2, w, fma(w, lack, b), w * r, by_d, constant, act, past,
                )  # fmt: skip
                i += width
        count = (aligned if i < aligned else stop) - i
        if count > 0:
            w, b = along(pw, wi, i, w_step, count), along(pb, bi, i, b_step, count)
            write_one(
                idy + i, ix + i, i_skip + i, ir + i, idx + i, idr + i, count, pdy, px, ps, pr, pdx, pdr, h, h_skip,
                rstd_2, w, fma(w, lack, b), w * r, by_d, constant, act, 0,
            )  # fmt: skip
            i += count


# ------------------------------------------------------------------------------------------------------- channels last

# Tables of a task's scratch, each one value for each value of a row; BIAS has what d lacks to x_hat in it.
H, H_SKIP, RSTD_2, WEIGHT, BIAS, SCALE, BY_D, CONSTANT = range(8)
# While summing, the float64 sums of dz and of dz * d stand where SCALE and what follows will.
SUMS_AT = SCALE


@device
def spread(dims, n, g, block_shift, px, ps, slot, weight, bias, mean, rstd):
    """Fill the tables H .. BIAS for group g of sample n, and give what d lacks to x_hat."""
    d_count, u, pitch = dims[D], n * dims[G] + g, dims[PITCH]
    half_shift, half_shift_skip, rstd_2, lack = coefficients(px, ps, block_shift, mean[u], 0.0, rstd[u])
    for c in range(g * d_count, (g + 1) * d_count):
        w = weight[n * dims[W_N] + c * dims[W_C]]
        store_one(slot, H * pitch + c, half_shift)
        store_one(slot, H_SKIP * pitch + c, half_shift_skip)
        store_one(slot, RSTD_2 * pitch + c, rstd_2)
        store_one(slot, WEIGHT * pitch + c, w)
        store_one(slot, BIAS * pitch + c, bias[n * dims[B_N] + c * dims[B_C]] + lack * w)
    return lack


@device
def upstream_last(idy, ix, i_skip, ir, c, pdy, px, ps, pr, slot, pitch, count, act):
    """(dz, d) of the vector at these indices, whose coefficients stand at c of the tables."""
    return upstream(
        pdy, px, ps, pr, idy, ix, i_skip, ir, count,
        load(slot, H * pitch + c, None), load(slot, H_SKIP * pitch + c, None), load(slot, RSTD_2 * pitch + c, None),
        load(slot, WEIGHT * pitch + c, None), load(slot, BIAS * pitch + c, None), act,
    )  # fmt: skip


@device
def sum_column(dims, idy, ix, i_skip, ir, rows, positions, c, pdy, px, ps, pr, slot, by_channel, count, act):
    """Add `rows` rows, each `positions` positions, of the vector at c to that column's sums."""
    a = splat(px, 0.0)
    b = a
    pitch = dims[PITCH]
    dy_step, x_step = positions * dims[DY_R], positions * dims[X_R]
    skip_step, residual_step = positions * dims[SKIP_R], positions * dims[RES_R]
    for _ in range(rows):
        dz, d = upstream_last(idy + c, ix + c, i_skip + c, ir + c, c, pdy, px, ps, pr, slot, pitch, count, act)
        a, b = a + dz, fma(dz, d, b)
        idy, ix, i_skip, ir = idy + dy_step, ix + x_step, i_skip + skip_step, ir + residual_step
    accumulate(by_channel, c, a)
    accumulate(by_channel, pitch + c, b)


@device
def sum_columns(dims, idy, ix, i_skip, ir, rows, positions, c, pdy, px, ps, pr, slot, by_channel, act):
    """`sum_column` for two whole vectors side by side."""
    a0 = splat(px, 0.0)
    b0, a1, b1 = a0, a0, a0
    pitch, width = dims[PITCH], lanes(px)
    c1 = c + width
    dy_step, x_step = positions * dims[DY_R], positions * dims[X_R]
    skip_step, residual_step = positions * dims[SKIP_R], positions * dims[RES_R]
    for _ in range(rows):
        dz, d = upstream_last(idy + c, ix + c, i_skip + c, ir + c, c, pdy, px, ps, pr, slot, pitch, None, act)
        a0, b0 = a0 + dz, fma(dz, d, b0)
        dz, d = upstream_last(idy + c1, ix + c1, i_skip + c1, ir + c1, c1, pdy, px, ps, pr, slot, pitch, None, act)
        a1, b1 = a1 + dz, fma(dz, d, b1)
        idy, ix, i_skip, ir = idy + dy_step, ix + x_step, i_skip + skip_step, ir + residual_step
    accumulate(by_channel, c, a0)
    accumulate(by_channel, pitch + c, b0)
    accumulate(by_channel, c1, a1)
    accumulate(by_channel, pitch + c1, b1)


@device
def sum_parts_last(dims, n, low, high, pdy, px, ps, pr, slot, weight, bias, mean, rstd, sums, act):
    """Sums per channel over parts low .. high - 1 of sample n, each PART positions."""
    c_count, d_count, channels, row, pitch = dims[C], dims[D], dims[N] * dims[C], dims[ROW], dims[PITCH]
    width, positions = lanes(px), row // c_count
    for g in range(dims[G]):
        x_base, u = n * dims[X_N] + g * d_count, n * dims[G] + g
        block_shift = final_shift(px, ps, x_base, dims[S], dims[X_R], d_count, mean[u])
        spread(dims, n, g, block_shift, px, ps, slot, weight, bias, mean, rstd)
    for table in range(SUMS_AT):
        repeat(offset(slot, table * pitch), c_count, row)
    by_channel = doubles_at(offset(slot, SUMS_AT * pitch))
    for k in range(low, high):
        clear(by_channel, 0, 2 * pitch)
        r, end = k * dims[PART], min((k + 1) * dims[PART], dims[S])
        while r < end:
            rows, length = min(ROWS_IN_REGISTERS, (end - r) // positions), row
            if rows == 0:  # the last positions do not fill a row
                rows, length = 1, (end - r) * c_count
            idy, ix = n * dims[DY_N] + r * dims[DY_R], n * dims[X_N] + r * dims[X_R]
            i_skip, ir = n * dims[SKIP_N] + r * dims[SKIP_R], n * dims[RES_N] + r * dims[RES_R]
            c = 0
            while c + 2 * width <= length:
                sum_columns(dims, idy, ix, i_skip, ir, rows, positions, c, pdy, px, ps, pr, slot, by_channel, act)
                c += 2 * width
            while c + width <= length:
                sum_column(dims, idy, ix, i_skip, ir, rows, positions, c, pdy, px, ps, pr, slot, by_channel, None, act)
                c += width
            if c < length:
                count = length - c
                sum_column(dims, idy, ix, i_skip, ir, rows, positions, c, pdy, px, ps, pr, slot, by_channel, count, act)
            r += rows * positions
        fold(by_channel, c_count, row)
        fold(offset(by_channel, pitch), c_count, row)
        at = 2 * k * channels + n * c_count
        for c in range(c_count):
            sums[at + c], sums[at + channels + c] = load_one(by_channel, c), load_one(by_channel, pitch + c)


@device
def write_pieces_last(dims, n, low, high, pdy, px, ps, pr, pdx, pdr, slot, weight, bias, mean, rstd, block, act):
    """Pieces low .. high - 1 of sample n, each RUN positions, the last first."""
    c_count, d_count, pitch = dims[C], dims[D], dims[PITCH]
    for g in range(dims[G]):
        u = n * dims[G] + g
        r, m1, m2 = rstd[u], block[3 * u], block[3 * u + 1]
        lack = spread(dims, n, g, block[3 * u + 2], px, ps, slot, weight, bias, mean, rstd)
        for c in range(g * d_count, (g + 1) * d_count):
            store_one(slot, SCALE * pitch + c, weight[n * dims[W_N] + c * dims[W_C]] * r)
            store_one(slot, BY_D * pitch + c, -r * m2)
            store_one(slot, CONSTANT * pitch + c, -r * (m1 + lack * m2))
    for table in range(CONSTANT + 1):
        repeat(offset(slot, table * pitch), c_count, dims[ROW] + lanes(px))
    for piece in range(high - 1, low - 1, -1):
        start, stop = piece * dims[RUN], min((piece + 1) * dims[RUN], dims[S])
        rows, length = stop - start, c_count
        if dims[DENSE] != 0:
            rows, length = 1, rows * c_count
        for r in range(start, start + rows):
            idy, ix = n * dims[DY_N] + r * dims[DY_R], n * dims[X_N] + r * dims[X_R]
            i_skip, ir = n * dims[SKIP_N] + r * dims[SKIP_R], n * dims[RES_N] + r * dims[RES_R]
            idx, idr = n * dims[Y_N] + r * dims[Y_R], n * dims[DRES_N] + r * dims[DRES_R]
            write_span(dims, idy, ix, i_skip, ir, idx, idr, length, pdy, px, ps, pr, pdx, pdr, slot, act)


@device
def write_span(dims, idy, ix, i_skip, ir, idx, idr, length, pdy, px, ps, pr, pdx, pdr, slot, act):
    """dx and dresidual for `length` consecutive values, as `forward.write_span`."""
    width, row, pitch = lanes(px), dims[ROW], dims[PITCH]
    i, c, aligned, past = 0, 0, 0, 0
    if length >= ALIGN_FROM * width:
        aligned, past = until_aligned(pdx, idx), dims[PAST]
    while i < length:
        if i >= aligned:
            last = min(length - width, i + row - 1 - c)
            while i <= last:
                write_column(
                    idy + i, ix + i, i_skip + i, ir + i, idx + i, idr + i, c, pdy, px, ps, pr, pdx, pdr, slot, pitch,
                    None, act, past,
                )  # fmt: skip
                i, c = i + width, c + width
            if c >= row:
                c -= row
                continue
        count = (aligned if i < aligned else length) - i
        if count > 0:
            write_column(
                idy + i, ix + i, i_skip + i, ir + i, idx + i, idr + i, c, pdy, px, ps, pr, pdx, pdr, slot, pitch,
                count, act, 0,
            )  # fmt: skip
            i, c = i + count, c + count


@device
def write_column(idy, ix, i_skip, ir, idx, idr, c, pdy, px, ps, pr, pdx, pdr, slot, pitch, count, act, past):
    """dx and dresidual of one vector whose coefficients stand at c of the tables."""
    dz, d = upstream_last(idy, ix, i_skip, ir, c, pdy, px, ps, pr, slot, pitch, count, act)
    scale, by_d = load(slot, SCALE * pitch + c, None), load(slot, BY_D * pitch + c, None)
    constant = load(slot, CONSTANT * pitch + c, None)
    write_gradient(dz, d, pdx, pdr, idx, idr, count, scale, by_d, constant, past)


# ------------------------------------------------------------------------------------------------------ all the blocks


@device
def steps_first(phase, low, high, dims, pdy, px, ps, pr, pdx, pdr, slot, weight, bias, mean, rstd, sums, block, act):
    """Channels first: steps low .. high - 1 of a phase, taken together as far as they are of one block."""
    steps, pieces = dims[SUMS], dims[PIECES]
    per_block = steps if phase == SUM else (pieces if phase == WRITE else 1)
    expanded = -1
    while low < high:
        u, first = low // per_block, low % per_block
        count = min(high - low, per_block - first)
        if phase in (WHOLE, SUM):
            until = steps if phase == WHOLE else first + count
            sum_steps_first(dims, u, first, until, pdy, px, ps, pr, weight, bias, mean, rstd, sums, act)
        if phase in (WHOLE, SETTLE):
            settle_block_first(dims, u, px, ps, weight, mean, rstd, sums, block)
        if phase in (WHOLE, WRITE):
            until = pieces if phase == WHOLE else first + count
            expanded = expand(dims, u // dims[G], expanded, lanes(px), weight, bias, slot)
            write_pieces_first(
                dims, u, first, until, pdy, px, ps, pr, pdx, pdr, slot, weight, bias, mean, rstd, block, act
            )
        low += count
    if dims[PAST] != 0:
        streamed()


@device
def steps_last(phase, low, high, dims, pdy, px, ps, pr, pdx, pdr, slot, weight, bias, mean, rstd, sums, block, act):
    """Channels last: steps low .. high - 1 of a phase, taken together as far as they are of one sample."""
    parts, pieces = dims[PARTS], dims[PIECES]
    per_sample = parts if phase == SUM else (pieces if phase == WRITE else 1)
    while low < high:
        n, first = low // per_sample, low % per_sample
        count = min(high - low, per_sample - first)
        if phase in (WHOLE, SUM):
            until = parts if phase == WHOLE else first + count
            sum_parts_last(dims, n, first, until, pdy, px, ps, pr, slot, weight, bias, mean, rstd, sums, act)
        if phase in (WHOLE, SETTLE):
            settle_sample_last(dims, n, px, ps, weight, mean, rstd, sums, block)
        if phase in (WHOLE, WRITE):
            until = pieces if phase == WHOLE else first + count
            write_pieces_last(
                dims, n, first, until, pdy, px, ps, pr, pdx, pdr, slot, weight, bias, mean, rstd, block, act
            )
        low += count
    if dims[PAST] != 0:
        streamed()


@entry
def backward_kernel(layout, x_kind, dy_kind, skip_kind, residual_kind, dresidual_kind, activation, parallel, sources):
    """Make the backward kernel of one specialisation, as `forward_kernel` does; it fills dx, dresidual and sums."""

    def backward(dims, dy, x, skip, residual, dx, dresidual, weight, bias, mean, rstd, sums, block, scratch):
        if sources == 0:
            return
        for phase in range(dims[FIRST], dims[LAST]):
            steps = steps_in(phase, dims)
            tasks = min(steps, dims[SLOTS]) if parallel else 1
            # over the (n, g) blocks or parts of them, a stretch of neighbours to each task
            for t in prange(tasks):
                low, high = t * steps // tasks, (t + 1) * steps // tasks
                pdy, px, ps = pointer(dy, dy_kind), pointer(x, x_kind), pointer(skip, skip_kind)
                pr, pdx, pdr = pointer(residual, residual_kind), pointer(dx, x_kind), pointer(dresidual, dresidual_kind)
                slot = offset(values(scratch), t * dims[SLOT])
                if layout == CHANNELS_FIRST:
                    steps_first(
                        phase, low, high, dims, pdy, px, ps, pr, pdx, pdr, slot, weight, bias, mean, rstd, sums, block,
                        code(activation),
                    )  # fmt: skip
                else:
                    steps_last(
                        phase, low, high, dims, pdy, px, ps, pr, pdx, pdr, slot, weight, bias, mean, rstd, sums, block,
                        code(activation),
                    )  # fmt: skip

    return backward
