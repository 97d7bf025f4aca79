"""The backward pass, channels last: a block is one sample, its groups side by side in each row.

Memory is walked as in the forward pass: sums column by column, results row by row.
"""

from ...shapes.geometry import SETTLE, SUM, WHOLE, WRITE
from ..callees import device, inlined
from .backward_first import means_of, settle_block
from .masks import of_rows, run_of_rows
from .memory import accumulate, doubles_at, lanes, load_one, offset, splat, store_one, streamed
from .moments import coefficients, usual_unit
from .operands import (
    Gradient,
    Tables,
    Upstream,
    at_row,
    at_sample,
    only_within_rows,
    parameters_at,
    parameters_of,
    statistics_at,
)  # fmt: skip
from .phases import steps_of_unit
from .results import aligned_from, clear_line, upstream, write_gradient
from .tables import ROWS_IN_REGISTERS, clear, common_unit, fold, repeat, table_at, unit_at
from .vectors import fma

# Tables of a task's scratch, each one value for each value of a row; BIAS has what d lacks to x_hat in it.
ORIGIN, UNIT, FACTOR, WEIGHT, BIAS, SCALE, BY_D, CONSTANT = range(8)
# While summing, the float64 sums of dz and of dz * d stand where SCALE and what follows will.
SUMS_AT = SCALE


@inlined
def fill_tables(work, arrays, parameters, statistics, slot):
    """The tables ORIGIN .. BIAS for a sample."""
    pitch, common = work.pitch, usual_unit(arrays)
    for g in range(work.G):
        centre = coefficients(arrays, statistics.mean[g], 0.0, statistics.rstd[g])
        common = common_unit(common, centre.unit)
        for c in range(g * work.D, (g + 1) * work.D):
            w, b = parameters_of(parameters, work, c)
            store_one(slot, ORIGIN * pitch + c, centre.origin)
            store_one(slot, UNIT * pitch + c, centre.unit)
            store_one(slot, FACTOR * pitch + c, centre.factor)
            store_one(slot, WEIGHT * pitch + c, w)
            store_one(slot, BIAS * pitch + c, b + centre.lack * w)
    return Tables(slot, pitch, common)


@inlined
def fill_gradient_tables(work, arrays, parameters, statistics, slot):
    """The tables SCALE .. CONSTANT for a sample whose statistics are settled."""
    for g in range(work.G):
        rstd = statistics.rstd[g]
        lack = coefficients(arrays, statistics.mean[g], 0.0, rstd).lack
        means = means_of(arrays.x, rstd, lack, statistics.sums, g)
        for c in range(g * work.D, (g + 1) * work.D):
            w, _ = parameters_of(parameters, work, c)
            store_one(slot, SCALE * work.pitch + c, w * means.rstd)
            store_one(slot, BY_D * work.pitch + c, means.by_d)
            store_one(slot, CONSTANT * work.pitch + c, means.constant)


@inlined
def repeat_tables(work, slot, count, end):
    """Continue the first `count` tables to value `end` of a row."""
    for table in range(count):
        repeat(offset(slot, table * work.pitch), work.C, end)


@device
def upstream_last(row, i, count, tables, c, act):
    """(dz, d) of the vector at i, whose coefficients stand at c of the tables."""
    by = Upstream(
        unit_at(tables, UNIT, c), table_at(tables, ORIGIN, c), table_at(tables, FACTOR, c), table_at(tables, WEIGHT, c),
        table_at(tables, BIAS, c),
    )  # fmt: skip
    return upstream(row, i, count, by, act)


@device
def sum_column(work, row, rows, tables, c, count, act):
    """Add `rows` rows of the vector at c to that column's sums."""
    sums, positions, a = doubles_at(offset(tables.slot, SUMS_AT * tables.pitch)), work.row // work.C, splat(row.x, 0.0)
    b = a
    for _ in range(rows):
        dz, d = upstream_last(row, c, count, tables, c, act)
        a, b = a + dz, fma(dz, d, b)
        row = at_row(row, work, positions)
    accumulate(sums, c, a)
    accumulate(sums, tables.pitch + c, b)


@device
def sum_columns(work, row, rows, tables, c, act):
    """`sum_column` for two whole vectors side by side."""
    sums, positions, a0 = doubles_at(offset(tables.slot, SUMS_AT * tables.pitch)), work.row // work.C, splat(row.x, 0.0)
    b0, a1, b1, c1 = a0, a0, a0, c + lanes(row.x)
    for _ in range(rows):
        dz, d = upstream_last(row, c, None, tables, c, act)
        a0, b0 = a0 + dz, fma(dz, d, b0)
        dz, d = upstream_last(row, c1, None, tables, c1, act)
        a1, b1 = a1 + dz, fma(dz, d, b1)
        row = at_row(row, work, positions)
    accumulate(sums, c, a0)
    accumulate(sums, tables.pitch + c, b0)
    accumulate(sums, c1, a1)
    accumulate(sums, tables.pitch + c1, b1)


@device
def sum_parts(work, sample, low, high, tables, sums, act):
    """Sums per channel over parts low .. high - 1 of a sample, each PART positions."""
    width, positions, channels, pitch = lanes(sample.x), work.row // work.C, work.N * work.C, tables.pitch
    by_channel = doubles_at(offset(tables.slot, SUMS_AT * pitch))
    for k in range(low, high):
        clear(by_channel, 0, 2 * pitch)
        r, end = k * work.part, min((k + 1) * work.part, work.S)
        while r < end:
            rows, values = min(ROWS_IN_REGISTERS, (end - r) // positions), work.row
            if rows == 0:  # the last positions do not fill a row
                rows, values = 1, (end - r) * work.C
            row, c = at_row(sample, work, r), 0
            while c + 2 * width <= values:
                sum_columns(work, row, rows, tables, c, act)
                c += 2 * width
            while c + width <= values:
                sum_column(work, row, rows, tables, c, None, act)
                c += width
            if c < values:
                sum_column(work, row, rows, tables, c, values - c, act)
            r += rows * positions
        fold(by_channel, work.C, work.row)
        fold(offset(by_channel, pitch), work.C, work.row)
        at = 2 * k * channels
        for c in range(work.C):
            sums[at + c], sums[at + channels + c] = load_one(by_channel, c), load_one(by_channel, pitch + c)


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
                    clear_line(work, row.dresidual, length)
            r = end


@device
def write_span(work, row, length, tables, act):
    """dx and dresidual for `length` consecutive values, as `forward_last.write_span`."""
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
    """dx and dresidual of the vector at i, whose coefficients stand at c of the tables."""
    dz, d = upstream_last(row, i, count, tables, c, act)
    by = Gradient(table_at(tables, SCALE, c), table_at(tables, BY_D, c), table_at(tables, CONSTANT, c))
    write_gradient(row, i, count, dz, d, by, past)


@device
def steps_last(phase, low, high, work, call):
    """Channels last: steps low .. high - 1 of a phase, taken together as far as they are of one sample."""
    parts, pieces, per_sample, slot = work.parts, work.pieces, steps_of_unit(phase, work), call.slot
    while low < high:
        n, first = low // per_sample, low % per_sample
        count = min(high - low, per_sample - first)
        sample, parameters = at_sample(call.arrays, work, n), parameters_at(call.parameters, work, n)
        statistics = statistics_at(call.statistics, work, n, 2 * work.G)
        sums = offset(call.channel_sums, n * work.C)
        tables = Tables(slot, work.pitch, usual_unit(sample))
        if phase != SETTLE:
            tables = fill_tables(work, sample, parameters, statistics, slot)
            repeat_tables(work, slot, SUMS_AT, work.row)
        if phase in (WHOLE, SUM):
            sum_parts(work, sample, first, parts if phase == WHOLE else first + count, tables, sums, call.act)
        if phase in (WHOLE, SETTLE):
            for g in range(work.G):
                lack = coefficients(sample, statistics.mean[g], 0.0, statistics.rstd[g]).lack
                settle_block(work, parameters, g, lack, sums, statistics.sums)
        if phase in (WHOLE, WRITE):
            fill_gradient_tables(work, sample, parameters, statistics, slot)
            repeat_tables(work, slot, CONSTANT + 1, work.row + lanes(sample.x))
            write_pieces(work, sample, first, pieces if phase == WHOLE else first + count, tables, call.act)
        low += count
    if work.past != 0:
        streamed()
