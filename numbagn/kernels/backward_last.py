"""The backward pass, channels last: a block is one sample, its groups side by side in each row."""

from .backward_first import settle_block
from .callees import device
from .geometry import (
    B_C, B_N, C, D, DENSE, DRES_N, DRES_R, DY_N, DY_R, G, MASK_C, MASK_N, MASK_R, N, PART, PARTS, PAST,
    PIECES, PITCH, RES_N, RES_R, ROW, RUN, S, SETTLE, SKIP_N, SKIP_R, SUM, WHOLE, WRITE, W_C, W_N, X_N, X_R, Y_N, Y_R,
)  # fmt: skip
from .masks import of_rows, run_of_rows, within_rows
from .memory import accumulate, doubles_at, lanes, load, load_one, offset, splat, store_one, streamed
from .moments import coefficients
from .phases import steps_of_unit
from .results import aligned_from, clear_line, upstream, write_gradient
from .tables import ROWS_IN_REGISTERS, clear, common_unit, fold, repeat, unit_at
from .vectors import fma

# Tables of a task's scratch, each one value for each value of a row; BIAS has what d lacks to x_hat in it.
ORIGIN, UNIT, FACTOR, WEIGHT, BIAS, SCALE, BY_D, CONSTANT = range(8)
# While summing, the float64 sums of dz and of dz * d stand where SCALE and what follows will.
SUMS_AT = SCALE


@device
def spread(dims, n, g, px, slot, weight, bias, mean, rstd):
    """Fill the tables ORIGIN .. BIAS for group g of sample n, and give its unit and what d lacks to x_hat."""
    d_count, u, pitch = dims[D], n * dims[G] + g, dims[PITCH]
    unit, origin, factor, lack = coefficients(px, mean[u], 0.0, rstd[u])
    for c in range(g * d_count, (g + 1) * d_count):
        w = weight[n * dims[W_N] + c * dims[W_C]]
        store_one(slot, ORIGIN * pitch + c, origin)
        store_one(slot, UNIT * pitch + c, unit)
        store_one(slot, FACTOR * pitch + c, factor)
        store_one(slot, WEIGHT * pitch + c, w)
        store_one(slot, BIAS * pitch + c, bias[n * dims[B_N] + c * dims[B_C]] + lack * w)
    return unit, lack


@device
def upstream_last(idy, ix, i_skip, ir, im, c, pdy, px, ps, pr, pm, slot, pitch, common, count, act):
    """(dz, d) of the vector at these indices, whose coefficients stand at c of the tables."""
    return upstream(
        pdy, px, ps, pr, pm, idy, ix, i_skip, ir, im, count,
        unit_at(slot, UNIT * pitch + c, common), load(slot, ORIGIN * pitch + c, None),
        load(slot, FACTOR * pitch + c, None),
        load(slot, WEIGHT * pitch + c, None), load(slot, BIAS * pitch + c, None), act,
    )  # fmt: skip


@device
def sum_column(
    dims, idy, ix, i_skip, ir, im, rows, positions, c, pdy, px, ps, pr, pm, slot, by_channel, common, count, act
):
    """Add `rows` rows, each `positions` positions, of the vector at c to that column's sums."""
    a = splat(px, 0.0)
    b = a
    pitch = dims[PITCH]
    dy_step, x_step = positions * dims[DY_R], positions * dims[X_R]
    skip_step, residual_step = positions * dims[SKIP_R], positions * dims[RES_R]
    mask_step, m_step = positions * dims[MASK_R], dims[MASK_C]
    for _ in range(rows):
        dz, d = upstream_last(
            idy + c, ix + c, i_skip + c, ir + c, im + c * m_step, c, pdy, px, ps, pr, pm, slot, pitch, common, count,
            act,
        )  # fmt: skip
        a, b = a + dz, fma(dz, d, b)
        idy, ix, i_skip, ir = idy + dy_step, ix + x_step, i_skip + skip_step, ir + residual_step
        im += mask_step
    accumulate(by_channel, c, a)
    accumulate(by_channel, pitch + c, b)


@device
def sum_columns(dims, idy, ix, i_skip, ir, im, rows, positions, c, pdy, px, ps, pr, pm, slot, by_channel, common, act):
    """`sum_column` for two whole vectors side by side."""
    a0 = splat(px, 0.0)
    b0, a1, b1 = a0, a0, a0
    pitch, width = dims[PITCH], lanes(px)
    c1 = c + width
    dy_step, x_step = positions * dims[DY_R], positions * dims[X_R]
    skip_step, residual_step = positions * dims[SKIP_R], positions * dims[RES_R]
    mask_step, m_step = positions * dims[MASK_R], dims[MASK_C]
    for _ in range(rows):
        dz, d = upstream_last(
            idy + c, ix + c, i_skip + c, ir + c, im + c * m_step, c, pdy, px, ps, pr, pm, slot, pitch, common, None, act
        )
        a0, b0 = a0 + dz, fma(dz, d, b0)
        dz, d = upstream_last(
            idy + c1, ix + c1, i_skip + c1, ir + c1, im + c1 * m_step, c1, pdy, px, ps, pr, pm, slot, pitch, common,
            None, act,
        )  # fmt: skip
        a1, b1 = a1 + dz, fma(dz, d, b1)
        idy, ix, i_skip, ir = idy + dy_step, ix + x_step, i_skip + skip_step, ir + residual_step
        im += mask_step
    accumulate(by_channel, c, a0)
    accumulate(by_channel, pitch + c, b0)
    accumulate(by_channel, c1, a1)
    accumulate(by_channel, pitch + c1, b1)


@device
def sum_parts_last(dims, n, low, high, pdy, px, ps, pr, pm, slot, weight, bias, mean, rstd, sums, act):
    """Sums per channel over parts low .. high - 1 of sample n, each PART positions."""
    c_count, channels, row, pitch = dims[C], dims[N] * dims[C], dims[ROW], dims[PITCH]
    width, positions, common = lanes(px), row // c_count, 0.5
    for g in range(dims[G]):
        unit, _ = spread(dims, n, g, px, slot, weight, bias, mean, rstd)
        common = common_unit(common, unit)
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
            im, c = n * dims[MASK_N] + r * dims[MASK_R], 0
            while c + 2 * width <= length:
                sum_columns(
                    dims, idy, ix, i_skip, ir, im, rows, positions, c, pdy, px, ps, pr, pm, slot, by_channel, common,
                    act,
                )  # fmt: skip
                c += 2 * width
            while c + width <= length:
                sum_column(
                    dims, idy, ix, i_skip, ir, im, rows, positions, c, pdy, px, ps, pr, pm, slot, by_channel, common,
                    None, act,
                )  # fmt: skip
                c += width
            if c < length:
                count = length - c
                sum_column(
                    dims, idy, ix, i_skip, ir, im, rows, positions, c, pdy, px, ps, pr, pm, slot, by_channel, common,
                    count, act,
                )  # fmt: skip
            r += rows * positions
        fold(by_channel, c_count, row)
        fold(offset(by_channel, pitch), c_count, row)
        at = 2 * k * channels + n * c_count
        for c in range(c_count):
            sums[at + c], sums[at + channels + c] = load_one(by_channel, c), load_one(by_channel, pitch + c)


@device
def settle_sample_last(dims, n, px, weight, mean, rstd, sums, block):
    """`settle_block` for every group of sample n."""
    for g in range(dims[G]):
        settle_block(dims, n, g, px, weight, mean, rstd, sums, block)


@device
def write_pieces_last(dims, n, low, high, pdy, px, ps, pr, pdx, pdr, pm, slot, weight, bias, mean, rstd, block, act):
    """Pieces low .. high - 1 of sample n, each RUN positions, the last first."""
    c_count, d_count, pitch, common = dims[C], dims[D], dims[PITCH], 0.5
    for g in range(dims[G]):
        u = n * dims[G] + g
        r, m1, m2 = rstd[u], block[2 * u], block[2 * u + 1]
        unit, lack = spread(dims, n, g, px, slot, weight, bias, mean, rstd)
        common = common_unit(common, unit)
        for c in range(g * d_count, (g + 1) * d_count):
            store_one(slot, SCALE * pitch + c, weight[n * dims[W_N] + c * dims[W_C]] * r)
            store_one(slot, BY_D * pitch + c, -r * m2)
            store_one(slot, CONSTANT * pitch + c, -r * (m1 + lack * m2))
    for table in range(CONSTANT + 1):
        repeat(offset(slot, table * pitch), c_count, dims[ROW] + lanes(px))
    for piece in range(high - 1, low - 1, -1):
        start, stop = piece * dims[RUN], min((piece + 1) * dims[RUN], dims[S])
        r = start
        while r < stop:
            end, valid = stop, True
            if of_rows(pm):
                end, valid = run_of_rows(pm, n * dims[MASK_N], dims[MASK_R], r, stop)
            rows, length = 1, (end - r) * c_count
            if dims[DENSE] == 0:
                rows, length = end - r, c_count
            for row in range(r, r + rows):
                idy, ix = n * dims[DY_N] + row * dims[DY_R], n * dims[X_N] + row * dims[X_R]
                i_skip, ir = n * dims[SKIP_N] + row * dims[SKIP_R], n * dims[RES_N] + row * dims[RES_R]
                idx, idr = n * dims[Y_N] + row * dims[Y_R], n * dims[DRES_N] + row * dims[DRES_R]
                im = n * dims[MASK_N] + row * dims[MASK_R]
                if valid:
                    write_span(
                        dims, idy, ix, i_skip, ir, idx, idr, im, length, pdy, px, ps, pr, pdx, pdr, within_rows(pm),
                        slot, common, act,
                    )  # fmt: skip
                else:
                    clear_line(dims, pdx, idx, length)
                    clear_line(dims, pdr, idr, length)
            r = end


@device
def write_span(dims, idy, ix, i_skip, ir, idx, idr, im, length, pdy, px, ps, pr, pdx, pdr, pm, slot, common, act):
    """dx and dresidual for `length` consecutive values, as `forward_last.write_span`."""
    width, row, pitch, m_step = lanes(px), dims[ROW], dims[PITCH], dims[MASK_C]
    i, c = 0, 0
    aligned, past = aligned_from(dims, pdx, idx, 0, length)
    while i < length:
        if i >= aligned:
            last = min(length - width, i + row - 1 - c)
            while i <= last:
                write_column(
                    idy + i, ix + i, i_skip + i, ir + i, idx + i, idr + i, im + i * m_step, c, pdy, px, ps, pr, pdx,
                    pdr, pm, slot, pitch, common, None, act, past,
                )  # fmt: skip
                i, c = i + width, c + width
            if c >= row:
                c -= row
                continue
        count = (aligned if i < aligned else length) - i
        if count > 0:
            write_column(
                idy + i, ix + i, i_skip + i, ir + i, idx + i, idr + i, im + i * m_step, c, pdy, px, ps, pr, pdx, pdr,
                pm, slot, pitch, common, count, act, 0,
            )  # fmt: skip
            i, c = i + count, c + count


@device
def write_column(
    idy, ix, i_skip, ir, idx, idr, im, c, pdy, px, ps, pr, pdx, pdr, pm, slot, pitch, common, count, act, past
):
    """dx and dresidual of one vector whose coefficients stand at c of the tables."""
    dz, d = upstream_last(idy, ix, i_skip, ir, im, c, pdy, px, ps, pr, pm, slot, pitch, common, count, act)
    scale, by_d = load(slot, SCALE * pitch + c, None), load(slot, BY_D * pitch + c, None)
    constant = load(slot, CONSTANT * pitch + c, None)
    write_gradient(dz, d, pdx, pdr, pm, idx, idr, im, count, scale, by_d, constant, past)


@device
def steps_last(phase, low, high, dims, pdy, px, ps, pr, pdx, pdr, pm, slot, weight, bias, mean, rstd, sums, block, act):
    """Channels last: steps low .. high - 1 of a phase, taken together as far as they are of one sample."""
    parts, pieces, per_sample = dims[PARTS], dims[PIECES], steps_of_unit(phase, dims)
    while low < high:
        n, first = low // per_sample, low % per_sample
        count = min(high - low, per_sample - first)
        if phase in (WHOLE, SUM):
            until = parts if phase == WHOLE else first + count
            sum_parts_last(dims, n, first, until, pdy, px, ps, pr, pm, slot, weight, bias, mean, rstd, sums, act)
        if phase in (WHOLE, SETTLE):
            settle_sample_last(dims, n, px, weight, mean, rstd, sums, block)
        if phase in (WHOLE, WRITE):
            until = pieces if phase == WHOLE else first + count
            write_pieces_last(
                dims, n, first, until, pdy, px, ps, pr, pdx, pdr, pm, slot, weight, bias, mean, rstd, block, act
            )
        low += count
    if dims[PAST] != 0:
        streamed()
