"""The forward pass, channels last: a block is one sample, its groups side by side in each row.

Memory is walked position after position, each channel after channel: sums column by column (a vector of channels, or
where channels are few of some positions together) over some rows, results row by row.
"""

from ...shapes.geometry import CHANNELS_LAST, SETTLE, SUM, WHOLE, WRITE
from ..callees import device, inlined
from .masks import of_rows, run_of_rows
from .memory import accumulate, doubles_at, is_exact, lanes, load, offset, splat, store_one, streamed
from .moments import coefficients, difference, location, rstd_of, settle, usual_unit
from .operands import (
    Affine,
    Tables,
    at_element,
    at_row,
    at_sample,
    exactly,
    only_within_rows,
    parameters_at,
    parameters_of,
    statistics_at,
)  # fmt: skip
from .phases import steps_of_unit
from .results import aligned_from, clear_line, write_vector
from .tables import (
    EXACT_ROWS,
    ROWS_IN_REGISTERS,
    clear,
    common_unit,
    fold,
    group_sum,
    repeat,
    table_at,
    unit_at,
)  # fmt: skip
from .vectors import fma

# Tables of a task's scratch while it writes, each one value for each value of a row.
ORIGIN, UNIT, SCALE, SHIFT = range(4)


@device
def sum_column(work, row, rows, positions, slot, sums, c, count):
    """Add `rows` rows of the vector at c to that column's sums, every other row apart as in `sum_columns`."""
    k, row = load(slot, c, None), exactly(row)
    s0 = splat(row.x, 0.0)
    q0, s1, q1 = s0, s0, s0
    for _ in range(rows):
        d = difference(row, c, k, count)
        s0, q0, s1, q1 = s1, q1, s0 + d, fma(d, d, q0)
        row = at_row(row, work, positions)
    accumulate(sums, c, s0 + s1)
    accumulate(sums, work.pitch + c, q0 + q1)


@inlined
def add_row(row, c, k0, k1, s0, q0, s1, q1):
    """Add a row's two vectors from c on to the sums of theirs."""
    d0, d1 = difference(row, c, k0, None), difference(row, c + lanes(row.x), k1, None)
    return s0 + d0, fma(d0, d0, q0), s1 + d1, fma(d1, d1, q1)


@device
def sum_columns(work, row, rows, positions, slot, sums, c):
    """`sum_column` for two whole vectors side by side, every other row to sums of its own.

    With one sum each the additions wait for each other: (32, 56, 56, 64) took 1.96 ms, and 1.50 with two.
    """
    c1, pitch, row = c + lanes(row.x), work.pitch, exactly(row)
    k0, k1 = load(slot, c, None), load(slot, c1, None)
    s0 = splat(row.x, 0.0)
    q0, s1, q1, s2, q2, s3, q3 = s0, s0, s0, s0, s0, s0, s0
    for _ in range(rows // 2):
        s0, q0, s1, q1 = add_row(row, c, k0, k1, s0, q0, s1, q1)
        row = at_row(row, work, positions)
        s2, q2, s3, q3 = add_row(row, c, k0, k1, s2, q2, s3, q3)
        row = at_row(row, work, positions)
    if rows % 2 == 1:
        s0, q0, s1, q1 = add_row(row, c, k0, k1, s0, q0, s1, q1)
    accumulate(sums, c, s0 + s2)
    accumulate(sums, pitch + c, q0 + q2)
    accumulate(sums, c1, s1 + s3)
    accumulate(sums, pitch + c1, q1 + q3)


@device
def sum_parts(work, sample, low, high, slot, partial):
    """Sums per group over parts low .. high - 1 of a sample, each PART positions.

    Scratch: K for each value of a row, then the float64 sums.
    """
    c_count, d_count, length, pitch, width = work.C, work.D, work.row, work.pitch, lanes(sample.x)
    for g in range(work.G):
        k = location(work, CHANNELS_LAST, at_element(sample, work, g * d_count))
        for c in range(g * d_count, (g + 1) * d_count):
            store_one(slot, c, k)
    repeat(slot, c_count, length)
    sums = doubles_at(offset(slot, pitch))
    positions, most = length // c_count, EXACT_ROWS if is_exact(sample.x, sample.skip) else 2 * ROWS_IN_REGISTERS
    for part in range(low, high):
        clear(sums, 0, 2 * pitch)
        r, end = part * work.part, min((part + 1) * work.part, work.S)
        while r < end:
            rows, values = min(most, (end - r) // positions), length
            if rows == 0:  # the last positions do not fill a row
                rows, values = 1, (end - r) * c_count
            row, c = at_row(sample, work, r), 0
            while c + 2 * width <= values:
                sum_columns(work, row, rows, positions, slot, sums, c)
                c += 2 * width
            while c + width <= values:
                sum_column(work, row, rows, positions, slot, sums, c, None)
                c += width
            if c < values:
                sum_column(work, row, rows, positions, slot, sums, c, values - c)
            r += rows * positions
        fold(sums, c_count, length)
        fold(offset(sums, pitch), c_count, length)
        at = 2 * part * work.G
        for g in range(work.G):
            partial[at + 2 * g] = group_sum(sums, g * d_count, d_count)
            partial[at + 2 * g + 1] = group_sum(sums, pitch + g * d_count, d_count)


@device
def settle_sample(work, sample, statistics, eps):
    """Mean and rstd (or M2) of every group of a sample from the partial sums, added in order.

    What a mean lost comes first there.
    """
    partial = statistics.sums
    for g in range(work.G):
        group = at_element(sample, work, g * work.D)
        k = location(work, CHANNELS_LAST, group)
        total, squares = 0.0, 0.0
        for part in range(work.parts):
            at = 2 * (part * work.G + g)
            total += partial[at]
            squares += partial[at + 1]
        mean, partial[2 * g], m2, variance = settle(work, CHANNELS_LAST, group, k, total, squares, eps)
        statistics.mean[g] = mean
        statistics.rstd[g] = m2 if work.keep_m2 != 0 else rstd_of(variance, eps)


@inlined
def fill_tables(work, arrays, parameters, statistics, slot):
    """Origin, unit, scale and shift for each value of a row, and again for the vector after it."""
    pitch, common = work.pitch, usual_unit(arrays)
    for g in range(work.G):
        centre = coefficients(arrays, statistics.mean[g], statistics.sums[2 * g], statistics.rstd[g])
        common = common_unit(common, centre.unit)
        for c in range(g * work.D, (g + 1) * work.D):
            w, b = parameters_of(parameters, work, c)
            store_one(slot, ORIGIN * pitch + c, centre.origin)
            store_one(slot, UNIT * pitch + c, centre.unit)
            store_one(slot, SCALE * pitch + c, centre.factor * w)
            store_one(slot, SHIFT * pitch + c, centre.lack * w + b)
    for table in range(SHIFT + 1):
        repeat(offset(slot, table * pitch), work.C, work.row + lanes(arrays.x))
    return Tables(slot, pitch, common)


@device
def write_pieces(work, sample, low, high, tables, act):
    """Pieces low .. high - 1 of a sample, each RUN positions, the last first."""
    for piece in range(high - 1, low - 1, -1):
        r, stop = piece * work.run, min((piece + 1) * work.run, work.S)
        while r < stop:
            end, valid = stop, True
            if of_rows(sample.mask):
                end, valid = run_of_rows(sample.mask, work.mask_r, r, stop)
            rows, length = 1, (end - r) * work.C
            if work.dense == 0:
                rows, length = end - r, work.C
            for at in range(r, r + rows):
                row = at_row(sample, work, at)
                if valid:
                    write_span(work, only_within_rows(row), length, tables, act)
                else:
                    clear_line(work, row.y, length)
            r = end


@device
def write_span(work, row, length, tables, act):
    """y for `length` consecutive values, the first at the beginning of a row, in whole aligned vectors."""
    width, period = lanes(row.x), work.row
    i, c = 0, 0
    aligned, past = aligned_from(work, row.y, 0, length)
    while i < length:
        if i >= aligned:
            last = min(length - width, i + period - 1 - c)
            while i <= last:
                write_column(row, i, None, tables, c, act, past)
                i, c = i + width, c + width
            if c >= period:
                c -= period
                continue
        count = (aligned if i < aligned else length) - i
        if count > 0:
            write_column(row, i, count, tables, c, act, 0)
            i, c = i + count, c + count


@device
def write_column(row, i, count, tables, c, act, past):
    """y for the vector at i, whose coefficients stand at c of the tables."""
    affine = Affine(
        unit_at(tables, UNIT, c), table_at(tables, ORIGIN, c), table_at(tables, SCALE, c), table_at(tables, SHIFT, c)
    )
    write_vector(row, i, count, affine, act, past)


@device
def steps_last(phase, low, high, work, call):
    """Channels last: steps low .. high - 1 of a phase, taken together as far as they are of one sample."""
    parts, pieces, per_sample = work.parts, work.pieces, steps_of_unit(phase, work)
    while low < high:
        n, first = low // per_sample, low % per_sample
        count = min(high - low, per_sample - first)
        sample = at_sample(call.arrays, work, n)
        statistics = statistics_at(call.statistics, work, n, 2 * parts * work.G)
        if phase in (WHOLE, SUM):
            sum_parts(work, sample, first, parts if phase == WHOLE else first + count, call.slot, statistics.sums)
        if phase in (WHOLE, SETTLE):
            settle_sample(work, sample, statistics, call.eps)
        if phase in (WHOLE, WRITE):
            tables = fill_tables(work, sample, parameters_at(call.parameters, work, n), statistics, call.slot)
            write_pieces(work, sample, first, pieces if phase == WHOLE else first + count, tables, call.act)
        low += count
    if work.past != 0:
        streamed()
