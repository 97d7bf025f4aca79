"""The backward pass, channels last: a block is one sample, its groups side by side in each row.

For the sums the parts of a sample are read from the first to the last, and for the results its pieces from the last to
the first, both as `walk_last` says.
"""

from collections import namedtuple

from ...shapes.geometry import SETTLE, SUM, WHOLE, WRITE
from ..callees import device, implements, inlined
from .backward_first import finalize_sums, means_of
from .memory import accumulate, doubles_at, lanes, load_one, offset, splat, store_fence, store_one
from .moments import coefficients, usual_unit
from .operands import ForDx, ForDz, Gradients, at_row, at_sample, parameters_at, parameters_of, statistics_at
from .phases import steps_of_unit
from .results import dz_and_d
from .tables import ROWS_IN_REGISTERS, common_unit, repeat, table_at, unit_at
from .vectors import fma
from .walk_last import coefficients_at, sum_column, sum_columns, sum_part, write_pieces

# A task's tables in scratch, `pitch` apart, and the unit that all groups have in common or 0.
GradientTables = namedtuple("GradientTables", "slot pitch unit")
# What they hold for each value of a row; BIAS is bias + weight * (x_hat - d).
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
    return GradientTables(slot, pitch, common)


@inlined
def fill_gradient_tables(work, arrays, parameters, statistics, slot):
    """The tables SCALE .. CONSTANT for a sample whose m1 and m2 are known."""
    for g in range(work.G):
        rstd = statistics.rstd[g]
        lack = coefficients(arrays, statistics.mean[g], 0.0, rstd).lack
        means = means_of(arrays.x, rstd, lack, statistics.means, g)
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


@inlined
def for_dz_at(tables, c):
    """What dz and d are made with whose channels begin at value c of a row."""
    unit, origin, factor = unit_at(tables, UNIT, c), table_at(tables, ORIGIN, c), table_at(tables, FACTOR, c)
    return ForDz(unit, origin, factor, table_at(tables, WEIGHT, c), table_at(tables, BIAS, c))


@implements(coefficients_at, 0, GradientTables)
def gradients_at(tables, c):
    for_dx = ForDx(table_at(tables, SCALE, c), table_at(tables, BY_D, c), table_at(tables, CONSTANT, c))
    return Gradients(for_dz_at(tables, c), for_dx)


@implements(sum_column, 3, GradientTables)
def sum_dz_column(work, row, rows, tables, sums, c, count, act):
    """Of dz and of dz * d."""
    positions, a = work.row // work.C, splat(row.x, 0.0)
    b = a
    for _ in range(rows):
        dz, d = dz_and_d(row, c, count, for_dz_at(tables, c), act)
        a, b = a + dz, fma(dz, d, b)
        row = at_row(row, work, positions)
    accumulate(sums, c, a)
    accumulate(sums, work.pitch + c, b)


@implements(sum_columns, 3, GradientTables)
def sum_dz_columns(work, row, rows, tables, sums, c, act):
    positions, a0, c1 = work.row // work.C, splat(row.x, 0.0), c + lanes(row.x)
    b0, a1, b1 = a0, a0, a0
    for _ in range(rows):
        dz, d = dz_and_d(row, c, None, for_dz_at(tables, c), act)
        a0, b0 = a0 + dz, fma(dz, d, b0)
        dz, d = dz_and_d(row, c1, None, for_dz_at(tables, c1), act)
        a1, b1 = a1 + dz, fma(dz, d, b1)
        row = at_row(row, work, positions)
    accumulate(sums, c, a0)
    accumulate(sums, work.pitch + c, b0)
    accumulate(sums, c1, a1)
    accumulate(sums, work.pitch + c1, b1)


@device
def sum_parts(work, sample, low, high, tables, channel_sums, act):
    """Sums per channel over parts low .. high - 1 of a sample, each PART positions."""
    sums, channels = doubles_at(offset(tables.slot, SUMS_AT * work.pitch)), work.N * work.C
    for part in range(low, high):
        sum_part(work, sample, part, ROWS_IN_REGISTERS, tables, sums, act)
        at = 2 * part * channels
        for c in range(work.C):
            channel_sums[at + c] = load_one(sums, c)
            channel_sums[at + channels + c] = load_one(sums, work.pitch + c)


@device
def steps_last(phase, low, high, work, call):
    """Channels last: steps low .. high - 1 of a phase, taken together as far as they are of one sample."""
    parts, pieces, per_sample, slot = work.parts, work.pieces, steps_of_unit(phase, work), call.slot
    while low < high:
        n, first = low // per_sample, low % per_sample
        count = min(high - low, per_sample - first)
        sample, parameters = at_sample(call.arrays, work, n), parameters_at(call.parameters, work, n)
        statistics = statistics_at(call.statistics, work, n)
        sums = offset(call.sums, n * work.C)
        tables = GradientTables(slot, work.pitch, usual_unit(sample))
        if phase != SETTLE:
            tables = fill_tables(work, sample, parameters, statistics, slot)
            repeat_tables(work, slot, SUMS_AT, work.row)
        if phase in (WHOLE, SUM):
            sum_parts(work, sample, first, parts if phase == WHOLE else first + count, tables, sums, call.act)
        if phase in (WHOLE, SETTLE):
            for g in range(work.G):
                lack = coefficients(sample, statistics.mean[g], 0.0, statistics.rstd[g]).lack
                finalize_sums(work, parameters, g, lack, sums, statistics.means)
        if phase in (WHOLE, WRITE):
            fill_gradient_tables(work, sample, parameters, statistics, slot)
            repeat_tables(work, slot, CONSTANT + 1, work.row + lanes(sample.x))
            write_pieces(work, sample, first, pieces if phase == WHOLE else first + count, tables, call.act)
        low += count
    if work.past != 0:
        store_fence()
