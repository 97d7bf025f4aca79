"""The backward pass, channels last: a block is one sample, its groups side by side in each row."""

from .backward_first import settle_block
from .callees import device
from .geometry import SETTLE, SUM, WHOLE, WRITE
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
def spread(work, n, g, px, slot, weight, bias, mean, rstd):
    """Fill the tables ORIGIN .. BIAS for group g of sample n, and give its unit and what d lacks to x_hat."""
    d_count, u, pitch = work.D, n * work.G + g, work.pitch
    unit, origin, factor, lack = coefficients(px, mean[u], 0.0, rstd[u])
    for c in range(g * d_count, (g + 1) * d_count):
        w = weight[n * work.w_n + c * work.w_c]
        store_one(slot, ORIGIN * pitch + c, origin)
        store_one(slot, UNIT * pitch + c, unit)
        store_one(slot, FACTOR * pitch + c, factor)
        store_one(slot, WEIGHT * pitch + c, w)
        store_one(slot, BIAS * pitch + c, bias[n * work.b_n + c * work.b_c] + lack * w)
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
    work, idy, ix, i_skip, ir, im, rows, positions, c, pdy, px, ps, pr, pm, slot, by_channel, common, count, act
):
    """Add `rows` rows, each `positions` positions, of the vector at c to that column's sums."""
    a = splat(px, 0.0)
    b = a
    pitch = work.pitch
    dy_step, x_step = positions * work.dy_r, positions * work.x_r
    skip_step, residual_step = positions * work.skip_r, positions * work.res_r
    mask_step, m_step = positions * work.mask_r, work.mask_c
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
def sum_columns(work, idy, ix, i_skip, ir, im, rows, positions, c, pdy, px, ps, pr, pm, slot, by_channel, common, act):
    """`sum_column` for two whole vectors side by side."""
    a0 = splat(px, 0.0)
    b0, a1, b1 = a0, a0, a0
    pitch, width = work.pitch, lanes(px)
    c1 = c + width
    dy_step, x_step = positions * work.dy_r, positions * work.x_r
    skip_step, residual_step = positions * work.skip_r, positions * work.res_r
    mask_step, m_step = positions * work.mask_r, work.mask_c
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
def sum_parts_last(work, n, low, high, pdy, px, ps, pr, pm, slot, weight, bias, mean, rstd, sums, act):
    """Sums per channel over parts low .. high - 1 of sample n, each PART positions."""
    c_count, channels, row, pitch = work.C, work.N * work.C, work.row, work.pitch
    width, positions, common = lanes(px), row // c_count, 0.5
    for g in range(work.G):
        unit, _ = spread(work, n, g, px, slot, weight, bias, mean, rstd)
        common = common_unit(common, unit)
    for table in range(SUMS_AT):
        repeat(offset(slot, table * pitch), c_count, row)
    by_channel = doubles_at(offset(slot, SUMS_AT * pitch))
    for k in range(low, high):
        clear(by_channel, 0, 2 * pitch)
        r, end = k * work.part, min((k + 1) * work.part, work.S)
        while r < end:
            rows, length = min(ROWS_IN_REGISTERS, (end - r) // positions), row
            if rows == 0:  # the last positions do not fill a row
                rows, length = 1, (end - r) * c_count
            idy, ix = n * work.dy_n + r * work.dy_r, n * work.x_n + r * work.x_r
            i_skip, ir = n * work.skip_n + r * work.skip_r, n * work.res_n + r * work.res_r
            im, c = n * work.mask_n + r * work.mask_r, 0
            while c + 2 * width <= length:
                sum_columns(
                    work, idy, ix, i_skip, ir, im, rows, positions, c, pdy, px, ps, pr, pm, slot, by_channel, common,
                    act,
                )  # fmt: skip
                c += 2 * width
            while c + width <= length:
                sum_column(
                    work, idy, ix, i_skip, ir, im, rows, positions, c, pdy, px, ps, pr, pm, slot, by_channel, common,
                    None, act,
                )  # fmt: skip
                c += width
            if c < length:
                count = length - c
                sum_column(
                    work, idy, ix, i_skip, ir, im, rows, positions, c, pdy, px, ps, pr, pm, slot, by_channel, common,
                    count, act,
                )  # fmt: skip
            r += rows * positions
        fold(by_channel, c_count, row)
        fold(offset(by_channel, pitch), c_count, row)
        at = 2 * k * channels + n * c_count
        for c in range(c_count):
            sums[at + c], sums[at + channels + c] = load_one(by_channel, c), load_one(by_channel, pitch + c)


@device
def settle_sample_last(work, n, px, weight, mean, rstd, sums, block):
    """`settle_block` for every group of sample n."""
    for g in range(work.G):
        settle_block(work, n, g, px, weight, mean, rstd, sums, block)


@device
def write_pieces_last(work, n, low, high, pdy, px, ps, pr, pdx, pdr, pm, slot, weight, bias, mean, rstd, block, act):
    """Pieces low .. high - 1 of sample n, each RUN positions, the last first."""
    c_count, d_count, pitch, common = work.C, work.D, work.pitch, 0.5
    for g in range(work.G):
        u = n * work.G + g
        r, m1, m2 = rstd[u], block[2 * u], block[2 * u + 1]
        unit, lack = spread(work, n, g, px, slot, weight, bias, mean, rstd)
        common = common_unit(common, unit)
        for c in range(g * d_count, (g + 1) * d_count):
            store_one(slot, SCALE * pitch + c, weight[n * work.w_n + c * work.w_c] * r)
            store_one(slot, BY_D * pitch + c, -r * m2)
            store_one(slot, CONSTANT * pitch + c, -r * (m1 + lack * m2))
    for table in range(CONSTANT + 1):
        repeat(offset(slot, table * pitch), c_count, work.row + lanes(px))
    for piece in range(high - 1, low - 1, -1):
        start, stop = piece * work.run, min((piece + 1) * work.run, work.S)
        r = start
        while r < stop:
            end, valid = stop, True
            if of_rows(pm):
                end, valid = run_of_rows(pm, n * work.mask_n, work.mask_r, r, stop)
            rows, length = 1, (end - r) * c_count
            if work.dense == 0:
                rows, length = end - r, c_count
            for row in range(r, r + rows):
                idy, ix = n * work.dy_n + row * work.dy_r, n * work.x_n + row * work.x_r
                i_skip, ir = n * work.skip_n + row * work.skip_r, n * work.res_n + row * work.res_r
                idx, idr = n * work.y_n + row * work.y_r, n * work.dres_n + row * work.dres_r
                im = n * work.mask_n + row * work.mask_r
                if valid:
                    write_span(
                        work, idy, ix, i_skip, ir, idx, idr, im, length, pdy, px, ps, pr, pdx, pdr, within_rows(pm),
                        slot, common, act,
                    )  # fmt: skip
                else:
                    clear_line(work, pdx, idx, length)
                    clear_line(work, pdr, idr, length)
            r = end


@device
def write_span(work, idy, ix, i_skip, ir, idx, idr, im, length, pdy, px, ps, pr, pdx, pdr, pm, slot, common, act):
    """dx and dresidual for `length` consecutive values, as `forward_last.write_span`."""
    width, row, pitch, m_step = lanes(px), work.row, work.pitch, work.mask_c
    i, c = 0, 0
    aligned, past = aligned_from(work, pdx, idx, 0, length)
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
def steps_last(phase, low, high, work, pdy, px, ps, pr, pdx, pdr, pm, slot, weight, bias, mean, rstd, sums, block, act):
    """Channels last: steps low .. high - 1 of a phase, taken together as far as they are of one sample."""
    parts, pieces, per_sample = work.parts, work.pieces, steps_of_unit(phase, work)
    while low < high:
        n, first = low // per_sample, low % per_sample
        count = min(high - low, per_sample - first)
        if phase in (WHOLE, SUM):
            until = parts if phase == WHOLE else first + count
            sum_parts_last(work, n, first, until, pdy, px, ps, pr, pm, slot, weight, bias, mean, rstd, sums, act)
        if phase in (WHOLE, SETTLE):
            settle_sample_last(work, n, px, weight, mean, rstd, sums, block)
        if phase in (WHOLE, WRITE):
            until = pieces if phase == WHOLE else first + count
            write_pieces_last(
                work, n, first, until, pdy, px, ps, pr, pdx, pdr, pm, slot, weight, bias, mean, rstd, block, act
            )
        low += count
    if work.past != 0:
        streamed()
