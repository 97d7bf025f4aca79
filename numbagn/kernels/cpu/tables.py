"""What stands for each element or channel: parameters, and tables in a task's scratch."""

from collections import namedtuple

from ..callees import device, inlined
from .memory import accumulate, lanes, load, load_one, offset, splat, store, store_one
from .operands import parameters_at, parameters_of
from .vectors import lane_sum

# Channels last: rows of one column summed in the accumulator's type, in registers, before float64 takes over.
ROWS_IN_REGISTERS = 16
# The same of exact sums, which need no float64: so many rows are in the first cache still when the next column comes.
EXACT_ROWS = 64


# Where weight and bias stand for each element, and the step from one to the next: 0 where one value is for all.
Elements = namedtuple("Elements", "weight w_step bias b_step")


@device
def along(ptr, i, step, count):
    """A parameter's values for a vector of elements from i on."""
    if step == 0:
        return splat(ptr, load_one(ptr, 0))
    return load(ptr, i, count)


@device
def parameters_along(elements, i, count):
    """(weight, bias) for a vector of elements from i on."""
    return along(elements.weight, i, elements.w_step, count), along(elements.bias, i, elements.b_step, count)


@inlined
def expand(work, parameters, n, expanded, width, slot):
    """Where channels are short, but not single elements: weight and bias of sample n for each element, in `slot`.

    `expanded` is the sample whose parameters stand there before, -1 for none; that of afterwards is given back.
    """
    s_count = work.S
    if s_count == 1 or s_count >= width or expanded == n or (expanded >= 0 and work.w_n == 0 and work.b_n == 0):
        return expanded
    own = parameters_at(parameters, work, n)
    for c in range(work.C):
        w, b = parameters_of(own, work, c)
        for i in range(c * s_count, (c + 1) * s_count):
            store_one(slot, i, w)
            store_one(slot, work.pitch + i, b)
    return n


@device
def element_parameters(work, parameters, first, slot):
    """The parameters of a sample for each element from `first` on, where its channels are short."""
    if work.S == 1:
        return Elements(
            offset(parameters.weight, first * work.w_c), work.w_c, offset(parameters.bias, first * work.b_c), work.b_c
        )
    return Elements(offset(slot, first), 1, offset(slot, work.pitch + first), 1)


@device
def repeat(ptr, count, end):
    """Continue the first `count` values periodically up to `end`."""
    for i in range(count, end):
        store_one(ptr, i, load_one(ptr, i - count))


@inlined
def common_unit(common, unit):
    """The unit of differences of all groups so far, `unit` being that of one more; 0 where they are not the same."""
    return common if unit == common else 0.0


@inlined
def unit_at(tables, table, c):
    """The unit of differences for a vector of values of a row from c on: the common one, or what a table has.

    A load for each vector would cost what the others do, and hardly any call needs it.
    """
    if tables.unit == 0.0:
        return table_at(tables, table, c)
    return splat(tables.slot, tables.unit)


@inlined
def table_at(tables, table, c):
    """What a table has for a vector of values of a row from c on."""
    return load(tables.slot, table * tables.pitch + c, None)


@device
def clear(ptr, start, stop):
    """Zeros in whole vectors from start to stop."""
    for i in range(start, stop, lanes(ptr)):
        store(ptr, i, splat(ptr, 0.0), None)


@device
def fold(sums, count, row):
    """Add to the first `count` sums those that a row repeats."""
    width = lanes(sums)
    for start in range(count, row, count):
        for c in range(0, count, width):
            accumulate(sums, c, load(sums, start + c, min(width, count - c)))


@device
def group_sum(ptr, start, n):
    """The sum of n float64."""
    width, i = lanes(ptr), 0
    total = splat(ptr, 0.0)
    while i + width <= n:
        total = total + load(ptr, start + i, None)
        i += width
    if i < n:
        total = total + load(ptr, start + i, n - i)
    return lane_sum(total)
