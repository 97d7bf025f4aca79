"""The backward pass on the CPU, two sweeps over each block.

With dz = dy * activation'(x_hat * weight + bias + residual):

    dbias = sum of dz over n and s               dweight = sum of dz * x_hat over n and s
    dx = rstd * (weight * dz - m1 - x_hat * m2)  dresidual = dz

where m1 and m2 are the group's means of weight * dz and of weight * dz * x_hat (Wu & He 2018, by the chain rule). x_hat
is made from x - K as in the forward pass, so nothing is lost where the mean is large against the deviation.

Sums per channel go to `sums`, laid out (PARTS, 2, N, C): first dz, then dz * x_hat; settling adds the parts in order
into the first, which is what the caller reads.
"""

from numba import prange

from .compiled import device, entry, slope
from .forward import ALIGN_FROM, ROWS_IN_REGISTERS, along, clear, coefficients, pitch_of, steps_in, store_result
from .geometry import (
    B_C, B_N, C, CHANNELS_FIRST, D, DRES_N, DRES_R, DY_N, DY_R, FIRST, G, LAST, N, PART, PARTS, PAST, PIECES, RES_N,
    RES_R, RUN, S, SETTLE, SKIP_N, SKIP_R, SLOT, SLOTS, SUM, SUMS, W_C, W_N, WHOLE, WRITE, X_N, X_R, Y_N, Y_R,
)  # fmt: skip
from .memory import (
    accumulate, doubles_at, lanes, load, load_one, offset, pointer, present, splat, store, store_one, streamed,
    until_aligned, values,
)  # fmt: skip
from .moments import CHUNK, centred, final_shift
from .vectors import code, doubles, fma, keep, lane_sum


@device
def upstream(pdy, px, ps, pr, idy, ix, i_skip, ir, count, half_shift, half_shift_skip, rstd_2, lack, w, b, act):
    """(dz, x_hat) of one vector; both are zero from lane `count` on."""
    x_hat = fma(centred(px, ps, ix, i_skip, count, half_shift, half_shift_skip), rstd_2, lack)
    z = fma(x_hat, w, b)
    if present(pr):
        z = z + load(pr, ir, count)
    return keep(load(pdy, idy, count) * slope(z, act), count), keep(x_hat, count)


@device
def write_gradient(dz, x_hat, pdx, pdr, idx, idr, count, scale, by_x_hat, constant, past):
    """One vector of dx and dresidual."""
    store_result(pdx, idx, fma(dz, scale, fma(x_hat, by_x_hat, constant)), count, past)
    store(pdr, idr, dz, count)


# ------------------------------------------------------------------------------------------------------ channels first


@device
def sum_steps_first(dims, u, low, high, pdy, px, ps, pr, weight, bias, mean, rstd, sums, act):
    """Steps low .. high - 1 of block u, each part k, PART positions, of a channel, channel after channel."""
    n, g, d_count, s_count = u // dims[G], u % dims[G], dims[D], dims[S]
    block_shift = final_shift(px, ps, n * dims[X_N] + g * d_count * s_count, 1, 0, d_count * s_count, mean[u])
    half_shift, half_shift_skip, rstd_2, lack = coefficients(px, ps, block_shift, mean[u], 0.0, rstd[u])
    h, h_skip, rstd_2, lack = splat(px, half_shift), splat(px, half_shift_skip), splat(px, rstd_2), splat(px, lack)
    idy, ix, i_skip, ir = n * dims[DY_N], n * dims[X_N], n * dims[SKIP_N], n * dims[RES_N]
    at, products_at, width = n * dims[C], dims[N] * dims[C], lanes(px)
    if s_count == 1:  # each channel of the block is one element and its own sum
        pw, pb, to = values(weight), values(bias), values(sums)
        i, end = g * d_count, (g + 1) * d_count
        while i < end:
            count = min(width, end - i)
            w = along(pw, n * dims[W_N], i * dims[W_C], dims[W_C], count)
            b = along(pb, n * dims[B_N], i * dims[B_C], dims[B_C], count)
            dz, x_hat = upstream(
                pdy, px, ps, pr, idy + i, ix + i, i_skip + i, ir + i, count, h, h_skip, rstd_2, lack, w, b, act
            )
            store(to, at + i, dz, count)
            store(to, at + products_at + i, dz * x_hat, count)
            i += count
        return
    c, k = g * d_count + low // dims[PARTS], low % dims[PARTS]
    for _ in range(low, high):
        w = splat(px, weight[n * dims[W_N] + c * dims[W_C]])
        b = splat(px, bias[n * dims[B_N] + c * dims[B_C]])
        i = c * s_count + k * dims[PART]
        end = min(i + dims[PART], (c + 1) * s_count)
        sum_dz = doubles(splat(px, 0.0))
        sum_dz_x_hat = sum_dz
        while i < end:
            stop = min(i + CHUNK // 2, end)
            a0 = splat(px, 0.0)
            b0 = a0
            while i + width <= stop:
                dz, x_hat = upstream(
                    pdy, px, ps, pr, idy + i, ix + i, i_skip + i, ir + i, None, h, h_skip, rstd_2, lack, w, b, act
                )
                a0, b0 = a0 + dz, fma(dz, x_hat, b0)
                i += width
            if i < stop:
                dz, x_hat = upstream(
                    pdy, px, ps, pr, idy + i, ix + i, i_skip + i, ir + i, stop - i, h, h_skip, rstd_2, lack, w, b, act
                )
                a0, b0 = a0 + dz, fma(dz, x_hat, b0)
                i = stop
            sum_dz = sum_dz + doubles(a0)
            sum_dz_x_hat = sum_dz_x_hat + doubles(b0)
        to = 2 * k * products_at + at + c
        sums[to], sums[to + products_at] = lane_sum(sum_dz), lane_sum(sum_dz_x_hat)
        k += 1
        if k == dims[PARTS]:
            c, k = c + 1, 0


@device
def settle_block(dims, n, g, x_base, rows, x_stride, length, px, ps, weight, mean, sums, block):
    """Add the parts of each channel of block (n, g); keep m1, m2 and the shift of x."""
    d_count, channels = dims[D], dims[N] * dims[C]
    m1, m2 = 0.0, 0.0
    for c in range(g * d_count, (g + 1) * d_count):
        at = n * dims[C] + c
        for k in range(1, dims[PARTS]):
            sums[at] += sums[at + 2 * k * channels]
            sums[at + channels] += sums[at + (2 * k + 1) * channels]
        w = weight[n * dims[W_N] + c * dims[W_C]]
        m1 += w * sums[at]
        m2 += w * sums[at + channels]
    u = n * dims[G] + g
    size = d_count * dims[S]
    block[3 * u], block[3 * u + 1] = m1 / size, m2 / size
    block[3 * u + 2] = final_shift(px, ps, x_base, rows, x_stride, length, mean[u])


@device
def settle_block_first(dims, u, px, ps, weight, mean, sums, block):
    """`settle_block` where a block is one row."""
    n, g, size = u // dims[G], u % dims[G], dims[D] * dims[S]
    settle_block(dims, n, g, n * dims[X_N] + g * size, 1, 0, size, px, ps, weight, mean, sums, block)


@device
def settle_sample_last(dims, n, px, ps, weight, mean, sums, block):
    """`settle_block` for every group of sample n."""
    for g in range(dims[G]):
        x_base = n * dims[X_N] + g * dims[D]
        settle_block(dims, n, g, x_base, dims[S], dims[X_R], dims[D], px, ps, weight, mean, sums, block)


@device
def write_pieces_first(dims, u, low, high, pdy, px, ps, pr, pdx, pdr, weight, bias, mean, rstd, block, act):
    """Pieces low .. high - 1 of block u, each RUN positions of a channel, channel after channel."""
    n, g, d_count, s_count = u // dims[G], u % dims[G], dims[D], dims[S]
    r = rstd[u]
    half_shift, half_shift_skip, rstd_2, lack = coefficients(px, ps, block[3 * u + 2], mean[u], 0.0, r)
    h, h_skip, rstd_2, lack = splat(px, half_shift), splat(px, half_shift_skip), splat(px, rstd_2), splat(px, lack)
    constant, by_x_hat = splat(px, -r * block[3 * u]), splat(px, -r * block[3 * u + 1])
    width = lanes(px)
    idy, ix, i_skip, ir = n * dims[DY_N], n * dims[X_N], n * dims[SKIP_N], n * dims[RES_N]
    idx, idr = n * dims[Y_N], n * dims[DRES_N]
    if s_count == 1:
        pw, pb = values(weight), values(bias)
        i, end = g * d_count, (g + 1) * d_count
        while i < end:
            count = min(width, end - i)
            w = along(pw, n * dims[W_N], i * dims[W_C], dims[W_C], count)
            b = along(pb, n * dims[B_N], i * dims[B_C], dims[B_C], count)
            dz, x_hat = upstream(
                pdy, px, ps, pr, idy + i, ix + i, i_skip + i, ir + i, count, h, h_skip, rstd_2, lack, w, b, act
            )
            write_gradient(dz, x_hat, pdx, pdr, idx + i, idr + i, count, w * r, by_x_hat, constant, 0)
            i += count
        return
    runs = dims[PIECES] // d_count
    c, run = g * d_count + low // runs, low % runs
    for _ in range(low, high):
        w = splat(px, weight[n * dims[W_N] + c * dims[W_C]])
        b = splat(px, bias[n * dims[B_N] + c * dims[B_C]])
        scale = splat(px, weight[n * dims[W_N] + c * dims[W_C]] * r)
        i = c * s_count + run * dims[RUN]
        end = min(i + dims[RUN], (c + 1) * s_count)
        aligned, past = i, 0
        if end - i >= ALIGN_FROM * width:
            aligned, past = i + until_aligned(pdx, idx + i), dims[PAST]
        while i < end:
            if i >= aligned:
                while i + width <= end:
                    dz, x_hat = upstream(
                        pdy, px, ps, pr, idy + i, ix + i, i_skip + i, ir + i, None, h, h_skip, rstd_2, lack, w, b, act
                    )
                    write_gradient(dz, x_hat, pdx, pdr, idx + i, idr + i, None, scale, by_x_hat, constant, past)
                    i += width
            count = (aligned if i < aligned else end) - i
            dz, x_hat = upstream(
                pdy, px, ps, pr, idy + i, ix + i, i_skip + i, ir + i, count, h, h_skip, rstd_2, lack, w, b, act
            )
            write_gradient(dz, x_hat, pdx, pdr, idx + i, idr + i, count, scale, by_x_hat, constant, 0)
            i += count
        run += 1
        if run == runs:
            c, run = c + 1, 0


# ------------------------------------------------------------------------------------------------------- channels last

# Rows of a task's scratch, each one value a channel.
H, H_SKIP, RSTD_2, LACK, WEIGHT, BIAS, SCALE, BY_X_HAT, CONSTANT = range(9)
# While summing, the float64 sums of dz and of dz * x_hat stand where SCALE and what follows will.
SUMS_AT = SCALE


@device
def spread(dims, n, g, block_shift, px, ps, slot, pitch, weight, bias, mean, rstd):
    """Fill the scratch rows H .. BIAS for group g of sample n."""
    d_count, u = dims[D], n * dims[G] + g
    half_shift, half_shift_skip, rstd_2, lack = coefficients(px, ps, block_shift, mean[u], 0.0, rstd[u])
    for c in range(g * d_count, (g + 1) * d_count):
        store_one(slot, H * pitch + c, half_shift)
        store_one(slot, H_SKIP * pitch + c, half_shift_skip)
        store_one(slot, RSTD_2 * pitch + c, rstd_2)
        store_one(slot, LACK * pitch + c, lack)
        store_one(slot, WEIGHT * pitch + c, weight[n * dims[W_N] + c * dims[W_C]])
        store_one(slot, BIAS * pitch + c, bias[n * dims[B_N] + c * dims[B_C]])


@device
def upstream_last(idy, ix, i_skip, ir, c, pdy, px, ps, pr, slot, pitch, count, act):
    """(dz, x_hat) of the vector of channels at c in the row that begins at these indices."""
    return upstream(
        pdy, px, ps, pr, idy + c, ix + c, i_skip + c, ir + c, count,
        load(slot, H * pitch + c, None), load(slot, H_SKIP * pitch + c, None), load(slot, RSTD_2 * pitch + c, None),
        load(slot, LACK * pitch + c, None), load(slot, WEIGHT * pitch + c, None), load(slot, BIAS * pitch + c, None),
        act,
    )  # fmt: skip


@device
def sum_column(dims, idy, ix, i_skip, ir, rows, c, pdy, px, ps, pr, slot, by_channel, pitch, count, act):
    """Add `rows` rows of the vector of channels at c to that column's sums."""
    a = splat(px, 0.0)
    b = a
    dy_step, x_step, skip_step, residual_step = dims[DY_R], dims[X_R], dims[SKIP_R], dims[RES_R]
    for _ in range(rows):
        dz, x_hat = upstream_last(idy, ix, i_skip, ir, c, pdy, px, ps, pr, slot, pitch, count, act)
        a, b = a + dz, fma(dz, x_hat, b)
        idy, ix, i_skip, ir = idy + dy_step, ix + x_step, i_skip + skip_step, ir + residual_step
    accumulate(by_channel, c, a)
    accumulate(by_channel, pitch + c, b)


@device
def sum_part_last(dims, n, k, pdy, px, ps, pr, slot, weight, bias, mean, rstd, sums, act):
    """Sums per channel over part k of sample n, PART rows."""
    c_count, channels = dims[C], dims[N] * dims[C]
    width = lanes(px)
    pitch = pitch_of(c_count, width)
    for g in range(dims[G]):
        block_shift = final_shift(
            px, ps, n * dims[X_N] + g * dims[D], dims[S], dims[X_R], dims[D], mean[n * dims[G] + g]
        )
        spread(dims, n, g, block_shift, px, ps, slot, pitch, weight, bias, mean, rstd)
    by_channel = doubles_at(offset(slot, SUMS_AT * pitch))
    clear(by_channel, 0, 2 * pitch)
    full = c_count // width * width
    end = min((k + 1) * dims[PART], dims[S])
    for r in range(k * dims[PART], end, ROWS_IN_REGISTERS):
        rows = min(ROWS_IN_REGISTERS, end - r)
        idy, ix = n * dims[DY_N] + r * dims[DY_R], n * dims[X_N] + r * dims[X_R]
        i_skip, ir = n * dims[SKIP_N] + r * dims[SKIP_R], n * dims[RES_N] + r * dims[RES_R]
        for c in range(0, full, width):
            sum_column(dims, idy, ix, i_skip, ir, rows, c, pdy, px, ps, pr, slot, by_channel, pitch, None, act)
        if full < c_count:
            count = c_count - full
            sum_column(dims, idy, ix, i_skip, ir, rows, full, pdy, px, ps, pr, slot, by_channel, pitch, count, act)
    at = 2 * k * channels + n * c_count
    for c in range(c_count):
        sums[at + c], sums[at + channels + c] = load_one(by_channel, c), load_one(by_channel, pitch + c)


@device
def write_piece_last(dims, n, piece, pdy, px, ps, pr, pdx, pdr, slot, weight, bias, mean, rstd, block, act):
    """RUN rows of sample n."""
    c_count, g_count, d_count = dims[C], dims[G], dims[D]
    width = lanes(px)
    pitch = pitch_of(c_count, width)
    for g in range(g_count):
        u = n * g_count + g
        spread(dims, n, g, block[3 * u + 2], px, ps, slot, pitch, weight, bias, mean, rstd)
        for c in range(g * d_count, (g + 1) * d_count):
            store_one(slot, SCALE * pitch + c, weight[n * dims[W_N] + c * dims[W_C]] * rstd[u])
            store_one(slot, BY_X_HAT * pitch + c, -rstd[u] * block[3 * u + 1])
            store_one(slot, CONSTANT * pitch + c, -rstd[u] * block[3 * u])
    full = c_count // width * width
    for r in range(piece * dims[RUN], min((piece + 1) * dims[RUN], dims[S])):
        idy, ix = n * dims[DY_N] + r * dims[DY_R], n * dims[X_N] + r * dims[X_R]
        i_skip, ir = n * dims[SKIP_N] + r * dims[SKIP_R], n * dims[RES_N] + r * dims[RES_R]
        idx, idr = n * dims[Y_N] + r * dims[Y_R], n * dims[DRES_N] + r * dims[DRES_R]
        for c in range(0, full, width):
            write_column(idy, ix, i_skip, ir, idx, idr, c, pdy, px, ps, pr, pdx, pdr, slot, pitch, None, act)
        if full < c_count:
            count = c_count - full
            write_column(idy, ix, i_skip, ir, idx, idr, full, pdy, px, ps, pr, pdx, pdr, slot, pitch, count, act)


@device
def write_column(idy, ix, i_skip, ir, idx, idr, c, pdy, px, ps, pr, pdx, pdr, slot, pitch, count, act):
    """dx and dresidual of the vector of channels at c in the row that begins at these indices."""
    dz, x_hat = upstream_last(idy, ix, i_skip, ir, c, pdy, px, ps, pr, slot, pitch, count, act)
    scale, by_x_hat = load(slot, SCALE * pitch + c, None), load(slot, BY_X_HAT * pitch + c, None)
    constant = load(slot, CONSTANT * pitch + c, None)
    write_gradient(dz, x_hat, pdx, pdr, idx + c, idr + c, count, scale, by_x_hat, constant, 0)


# ------------------------------------------------------------------------------------------------------ all the blocks


@device
def steps_first(phase, low, high, dims, pdy, px, ps, pr, pdx, pdr, weight, bias, mean, rstd, sums, block, act):
    """Channels first: steps low .. high - 1 of a phase, taken together as far as they are of one block."""
    steps, pieces = dims[SUMS], dims[PIECES]
    per_block = steps if phase == SUM else (pieces if phase == WRITE else 1)
    while low < high:
        u, first = low // per_block, low % per_block
        count = min(high - low, per_block - first)
        if phase in (WHOLE, SUM):
            until = steps if phase == WHOLE else first + count
            sum_steps_first(dims, u, first, until, pdy, px, ps, pr, weight, bias, mean, rstd, sums, act)
        if phase in (WHOLE, SETTLE):
            settle_block_first(dims, u, px, ps, weight, mean, sums, block)
        if phase in (WHOLE, WRITE):
            until = pieces if phase == WHOLE else first + count
            write_pieces_first(dims, u, first, until, pdy, px, ps, pr, pdx, pdr, weight, bias, mean, rstd, block, act)
        low += count
    if dims[PAST] != 0:
        streamed()


@device
def steps_last(phase, low, high, dims, pdy, px, ps, pr, pdx, pdr, slot, weight, bias, mean, rstd, sums, block, act):
    """Channels last: steps low .. high - 1 of a phase."""
    parts, pieces = dims[PARTS], dims[PIECES]
    for i in range(low, high):
        if phase == WHOLE:
            for k in range(parts):
                sum_part_last(dims, i, k, pdy, px, ps, pr, slot, weight, bias, mean, rstd, sums, act)
            settle_sample_last(dims, i, px, ps, weight, mean, sums, block)
            for piece in range(pieces):
                write_piece_last(dims, i, piece, pdy, px, ps, pr, pdx, pdr, slot, weight, bias, mean, rstd, block, act)
        elif phase == SUM:
            sum_part_last(dims, i // parts, i % parts, pdy, px, ps, pr, slot, weight, bias, mean, rstd, sums, act)
        elif phase == SETTLE:
            settle_sample_last(dims, i, px, ps, weight, mean, sums, block)
        else:
            write_piece_last(
                dims, i // pieces, i % pieces, pdy, px, ps, pr, pdx, pdr, slot, weight, bias, mean, rstd, block, act
            )


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
                if layout == CHANNELS_FIRST:
                    steps_first(
                        phase, low, high, dims, pdy, px, ps, pr, pdx, pdr, weight, bias, mean, rstd, sums, block,
                        code(activation),
                    )  # fmt: skip
                else:
                    slot = offset(values(scratch), t * dims[SLOT])
                    steps_last(
                        phase, low, high, dims, pdy, px, ps, pr, pdx, pdr, slot, weight, bias, mean, rstd, sums,
                        block, code(activation),
                    )  # fmt: skip

    return backward
