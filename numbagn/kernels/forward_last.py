"""The forward pass, channels last: a block is one sample, its groups side by side in each row."""

from .callees import device, inlined
from .geometry import CHANNELS_LAST, SETTLE, SUM, WHOLE, WRITE
from .masks import of_rows, run_of_rows, within_rows
from .memory import accumulate, doubles_at, exact, is_exact, lanes, load, offset, splat, store_one, streamed
from .moments import coefficients, difference, location, rstd_of, settle
from .phases import steps_of_unit
from .results import aligned_from, clear_line, write_vector
from .tables import EXACT_ROWS, ROWS_IN_REGISTERS, clear, common_unit, fold, group_sum, repeat, unit_at
from .vectors import fma


@device
def sum_column(work, px, ps, pm, ix, i_skip, im, rows, positions, slot, sums, c, count):
    """Add `rows` rows of the vector at c to that column's sums, every other row apart as in `sum_columns`."""
    pitch, x_step, skip_step = work.pitch, positions * work.x_r, positions * work.skip_r
    mask_step = positions * work.mask_r
    ix, i_skip, im = ix + c, i_skip + c, im + c * work.mask_c
    k = load(slot, c, None)
    px, ps = exact(px, ps), exact(ps, ps)
    s0 = splat(px, 0.0)
    q0, s1, q1 = s0, s0, s0
    for _ in range(rows):
        d = difference(px, ps, pm, ix, i_skip, im, k, count)
        s0, q0, s1, q1 = s1, q1, s0 + d, fma(d, d, q0)
        ix, i_skip, im = ix + x_step, i_skip + skip_step, im + mask_step
    accumulate(sums, c, s0 + s1)
    accumulate(sums, pitch + c, q0 + q1)


@inlined
def add_row(work, px, ps, pm, ix, i_skip, im, k0, k1, s0, q0, s1, q1):
    """Add a row's two vectors to the sums of theirs."""
    width, mask_width = lanes(px), lanes(px) * work.mask_c
    d0 = difference(px, ps, pm, ix, i_skip, im, k0, None)
    d1 = difference(px, ps, pm, ix + width, i_skip + width, im + mask_width, k1, None)
    return s0 + d0, fma(d0, d0, q0), s1 + d1, fma(d1, d1, q1)


@device
def sum_columns(work, px, ps, pm, ix, i_skip, im, rows, positions, slot, sums, c):
    """`sum_column` for two whole vectors side by side, every other row to sums of its own.

    With one sum each the additions wait for each other: (32, 56, 56, 64) took 1.96 ms, and 1.50 with two.
    """
    pitch, x_step, skip_step = work.pitch, positions * work.x_r, positions * work.skip_r
    mask_step, c1 = positions * work.mask_r, c + lanes(px)
    ix, i_skip, im = ix + c, i_skip + c, im + c * work.mask_c
    k0, k1 = load(slot, c, None), load(slot, c1, None)
    px, ps = exact(px, ps), exact(ps, ps)
    s0 = splat(px, 0.0)
    q0, s1, q1, s2, q2, s3, q3 = s0, s0, s0, s0, s0, s0, s0
    for _ in range(rows // 2):
        s0, q0, s1, q1 = add_row(work, px, ps, pm, ix, i_skip, im, k0, k1, s0, q0, s1, q1)
        ix, i_skip, im = ix + x_step, i_skip + skip_step, im + mask_step
        s2, q2, s3, q3 = add_row(work, px, ps, pm, ix, i_skip, im, k0, k1, s2, q2, s3, q3)
        ix, i_skip, im = ix + x_step, i_skip + skip_step, im + mask_step
    if rows % 2 == 1:
        s0, q0, s1, q1 = add_row(work, px, ps, pm, ix, i_skip, im, k0, k1, s0, q0, s1, q1)
    accumulate(sums, c, s0 + s2)
    accumulate(sums, pitch + c, q0 + q2)
    accumulate(sums, c1, s1 + s3)
    accumulate(sums, pitch + c1, q1 + q3)


@device
def sum_parts_last(work, n, low, high, px, ps, pm, slot, partial):
    """Sums per group over parts low .. high - 1 of sample n, each PART positions.

    Scratch: K for each value of a row, then the float64 sums.
    """
    c_count, d_count, row, pitch, width = work.C, work.D, work.row, work.pitch, lanes(px)
    x_base, skip_base, m_base = n * work.x_n, n * work.skip_n, n * work.mask_n
    for g in range(work.G):
        start = g * d_count
        k = location(work, CHANNELS_LAST, px, ps, x_base + start, skip_base + start)
        for c in range(start, start + d_count):
            store_one(slot, c, k)
    repeat(slot, c_count, row)
    sums = doubles_at(offset(slot, pitch))
    positions, most = row // c_count, EXACT_ROWS if is_exact(px, ps) else 2 * ROWS_IN_REGISTERS
    for k in range(low, high):
        clear(sums, 0, 2 * pitch)
        r, end = k * work.part, min((k + 1) * work.part, work.S)
        while r < end:
            rows, length = min(most, (end - r) // positions), row
            if rows == 0:  # the last positions do not fill a row
                rows, length = 1, (end - r) * c_count
            ix, i_skip, im = x_base + r * work.x_r, skip_base + r * work.skip_r, m_base + r * work.mask_r
            c = 0
            while c + 2 * width <= length:
                sum_columns(work, px, ps, pm, ix, i_skip, im, rows, positions, slot, sums, c)
                c += 2 * width
            while c + width <= length:
                sum_column(work, px, ps, pm, ix, i_skip, im, rows, positions, slot, sums, c, None)
                c += width
            if c < length:
                sum_column(work, px, ps, pm, ix, i_skip, im, rows, positions, slot, sums, c, length - c)
            r += rows * positions
        fold(sums, c_count, row)
        fold(offset(sums, pitch), c_count, row)
        at = 2 * (n * work.parts + k) * work.G
        for g in range(work.G):
            partial[at + 2 * g] = group_sum(sums, g * d_count, d_count)
            partial[at + 2 * g + 1] = group_sum(sums, pitch + g * d_count, d_count)


@device
def settle_block_last(work, n, px, ps, pm, partial, mean, rstd, eps):
    """Mean and rstd (or M2) of every group of sample n from the partial sums, added in order.

    What a mean lost comes first there.
    """
    g_count, d_count = work.G, work.D
    for g in range(g_count):
        x_base, skip_base = n * work.x_n + g * d_count, n * work.skip_n + g * d_count
        m_base = n * work.mask_n + g * d_count * work.mask_c
        k = location(work, CHANNELS_LAST, px, ps, x_base, skip_base)
        total, squares = 0.0, 0.0
        for part in range(work.parts):
            at = 2 * ((n * work.parts + part) * g_count + g)
            total += partial[at]
            squares += partial[at + 1]
        u, at = n * g_count + g, 2 * (n * work.parts * g_count + g)
        mean[u], partial[at], m2, variance = settle(
            work, CHANNELS_LAST, px, ps, pm, x_base, skip_base, m_base, k, total, squares, eps
        )
        rstd[u] = m2 if work.keep_m2 != 0 else rstd_of(variance, eps)


@device
def write_pieces_last(work, n, low, high, px, ps, pr, py, pm, slot, weight, bias, mean, rstd, partial, act):
    """Pieces low .. high - 1 of sample n, each RUN positions, the last first.

    Scratch: origin, unit, scale and shift for each value of a row, and again for the vector after it.
    """
    c_count, d_count, s_count, pitch, common = work.C, work.D, work.S, work.pitch, 0.5
    for g in range(work.G):
        u = n * work.G + g
        lost = partial[2 * (n * work.parts * work.G + g)]
        unit, origin, factor, lack = coefficients(px, mean[u], lost, rstd[u])
        common = common_unit(common, unit)
        for c in range(g * d_count, (g + 1) * d_count):
            w = weight[n * work.w_n + c * work.w_c]
            store_one(slot, c, origin)
            store_one(slot, pitch + c, unit)
            store_one(slot, 2 * pitch + c, factor * w)
            store_one(slot, 3 * pitch + c, lack * w + bias[n * work.b_n + c * work.b_c])
    for table in range(4):
        repeat(offset(slot, table * pitch), c_count, work.row + lanes(px))
    for piece in range(high - 1, low - 1, -1):
        start, stop = piece * work.run, min((piece + 1) * work.run, s_count)
        r = start
        while r < stop:
            end, valid = stop, True
            if of_rows(pm):
                end, valid = run_of_rows(pm, n * work.mask_n, work.mask_r, r, stop)
            rows, length = 1, (end - r) * c_count
            if work.dense == 0:
                rows, length = end - r, c_count
            for row in range(r, r + rows):
                ix, i_skip = n * work.x_n + row * work.x_r, n * work.skip_n + row * work.skip_r
                ir, iy = n * work.res_n + row * work.res_r, n * work.y_n + row * work.y_r
                im = n * work.mask_n + row * work.mask_r
                if valid:
                    write_span(work, ix, i_skip, ir, iy, im, length, px, ps, pr, py, within_rows(pm), slot, common, act)
                else:
                    clear_line(work, py, iy, length)
            r = end


@device
def write_span(work, ix, i_skip, ir, iy, im, length, px, ps, pr, py, pm, slot, common, act):
    """y for `length` consecutive values, the first at the beginning of a row, in whole aligned vectors."""
    width, row, pitch, m_step = lanes(px), work.row, work.pitch, work.mask_c
    i, c = 0, 0
    aligned, past = aligned_from(work, py, iy, 0, length)
    while i < length:
        if i >= aligned:
            last = min(length - width, i + row - 1 - c)
            while i <= last:
                write_column(
                    px, ps, pr, py, pm, ix + i, i_skip + i, ir + i, iy + i, im + i * m_step, slot, c, pitch, common,
                    None, act, past,
                )  # fmt: skip
                i, c = i + width, c + width
            if c >= row:
                c -= row
                continue
        count = (aligned if i < aligned else length) - i
        if count > 0:
            write_column(
                px, ps, pr, py, pm, ix + i, i_skip + i, ir + i, iy + i, im + i * m_step, slot, c, pitch, common, count,
                act, 0,
            )  # fmt: skip
            i, c = i + count, c + count


@device
def write_column(px, ps, pr, py, pm, ix, i_skip, ir, iy, im, slot, c, pitch, common, count, act, past):
    """y for one vector whose coefficients stand at c of the tables."""
    origin, unit = load(slot, c, None), unit_at(slot, pitch + c, common)
    scale, shift = load(slot, 2 * pitch + c, None), load(slot, 3 * pitch + c, None)
    write_vector(px, ps, pr, py, pm, ix, i_skip, ir, iy, im, count, unit, origin, scale, shift, act, past)


@device
def steps_last(phase, low, high, work, eps, px, ps, pr, py, pm, slot, weight, bias, mean, rstd, partial, act):
    """Channels last: steps low .. high - 1 of a phase, taken together as far as they are of one sample."""
    parts, pieces, per_sample = work.parts, work.pieces, steps_of_unit(phase, work)
    while low < high:
        n, first = low // per_sample, low % per_sample
        count = min(high - low, per_sample - first)
        if phase in (WHOLE, SUM):
            until = parts if phase == WHOLE else first + count
            sum_parts_last(work, n, first, until, px, ps, pm, slot, partial)
        if phase in (WHOLE, SETTLE):
            settle_block_last(work, n, px, ps, pm, partial, mean, rstd, eps)
        if phase in (WHOLE, WRITE):
            until = pieces if phase == WHOLE else first + count
            write_pieces_last(work, n, first, until, px, ps, pr, py, pm, slot, weight, bias, mean, rstd, partial, act)
        low += count
    if work.past != 0:
        streamed()
