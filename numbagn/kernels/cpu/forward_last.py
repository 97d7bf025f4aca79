"""The forward pass, channels last: a block is one sample, its groups side by side in each row.

For the statistics the parts of a sample are read from the first to the last, and for the results its pieces from the
last to the first, both as `walk_last` says.
"""

from collections import namedtuple

from ...shapes.geometry import CHANNELS_LAST, SETTLE, SUM, WHOLE, WRITE
from ..callees import device, implements, inlined
from .memory import accumulate, doubles_at, is_exact, lanes, load, offset, splat, store_fence, store_one
from .moments import coefficients, difference, estimated_mean, finalize_group, usual_unit
from .operands import Affine, at_element, at_row, at_sample, exactly, parameters_at, parameters_of, statistics_at
from .phases import steps_of_unit
from .tables import EXACT_ROWS, ROWS_IN_REGISTERS, common_unit, group_sum, repeat, table_at, unit_at
from .vectors import fma
from .walk_last import coefficients_at, sum_column, sum_columns, sum_part, write_pieces

# While a task sums: a pointer to the K of each value of a row.
Shifts = namedtuple("Shifts", "k")
# While it writes: its tables in scratch, `pitch` apart, and the unit that all groups have in common or 0.
Tables = namedtuple("Tables", "slot pitch unit")
# What the tables hold for each value of a row.
ORIGIN, UNIT, SCALE, SHIFT = range(4)
# Rows that a column is summed over at a time, as each second one has a sum of its own.
MOST_ROWS = 2 * ROWS_IN_REGISTERS


@implements(sum_column, 3, Shifts)
def sum_shifted_column(work, row, rows, tables, sums, c, count, act):
    """Of x - K and its square; every other row apart, as in `sum_shifted_columns`."""
    k, row, positions = load(tables.k, c, None), exactly(row), work.row // work.C
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


@implements(sum_columns, 3, Shifts)
def sum_shifted_columns(work, row, rows, tables, sums, c, act):
    """Every other row to sums of its own.

    With one sum each the additions wait for each other: (32, 56, 56, 64) took 1.96 ms, and 1.50 with two.
    """
    c1, pitch, row, positions = c + lanes(row.x), work.pitch, exactly(row), work.row // work.C
    k0, k1 = load(tables.k, c, None), load(tables.k, c1, None)
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
def sum_parts(work, sample, low, high, call, partial):
    """Sums per group over parts low .. high - 1 of a sample, each PART positions.

    Scratch: K for each value of a row, then the float64 sums.
    """
    slot, D = call.slot, work.D
    for g in range(work.G):
        k = estimated_mean(work, CHANNELS_LAST, at_element(sample, work, g * D))
        for c in range(g * D, (g + 1) * D):
            store_one(slot, c, k)
    repeat(slot, work.C, work.row)
    sums, most = doubles_at(offset(slot, work.pitch)), EXACT_ROWS if is_exact(sample.x, sample.skip) else MOST_ROWS
    for part in range(low, high):
        sum_part(work, sample, part, most, Shifts(slot), sums, call.act)
        at = 2 * part * work.G
        for g in range(work.G):
            partial[at + 2 * g] = group_sum(sums, g * D, D)
            partial[at + 2 * g + 1] = group_sum(sums, work.pitch + g * D, D)


@device
def finalize_sample(work, sample, statistics, partial, eps):
    """Mean and rstd (or M2) of every group of a sample."""
    for g in range(work.G):
        group = at_element(sample, work, g * work.D)
        finalize_group(work, CHANNELS_LAST, group, statistics, g, offset(partial, 2 * g), 2 * work.G, eps)


@inlined
def fill_tables(work, arrays, parameters, statistics, partial, slot):
    """Origin, unit, scale and shift for each value of a row, and again for the vector after it."""
    pitch, common = work.pitch, usual_unit(arrays)
    for g in range(work.G):
        centre = coefficients(arrays, statistics.mean[g], partial[2 * g], statistics.rstd[g])
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


@implements(coefficients_at, 0, Tables)
def affine_at(tables, c):
    unit, origin = unit_at(tables, UNIT, c), table_at(tables, ORIGIN, c)
    return Affine(unit, origin, table_at(tables, SCALE, c), table_at(tables, SHIFT, c))


@device
def steps_last(phase, low, high, work, call):
    """Channels last: steps low .. high - 1 of a phase, taken together as far as they are of one sample."""
    parts, pieces, per_sample = work.parts, work.pieces, steps_of_unit(phase, work)
    while low < high:
        n, first = low // per_sample, low % per_sample
        count = min(high - low, per_sample - first)
        sample = at_sample(call.arrays, work, n)
        statistics, partial = statistics_at(call.statistics, work, n), offset(call.sums, 2 * n * parts * work.G)
        if phase in (WHOLE, SUM):
            sum_parts(work, sample, first, parts if phase == WHOLE else first + count, call, partial)
        if phase in (WHOLE, SETTLE):
            finalize_sample(work, sample, statistics, partial, call.eps)
        if phase in (WHOLE, WRITE):
            parameters = parameters_at(call.parameters, work, n)
            tables = fill_tables(work, sample, parameters, statistics, partial, call.slot)
            write_pieces(work, sample, first, pieces if phase == WHOLE else first + count, tables, call.act)
        low += count
    if work.past != 0:
        store_fence()
