"""Mean and rstd of a block: shifted sums on vectors, checked, and done again where the check fails.

Channels first a block is one line of D * S elements, in D rows with gaps between them or none; channels last it is S
rows of D elements, one for each position. It is read from its first row to its last, each from beginning to end (what
channels last sums as a rule, all groups at once, stands in `forward_last`).

The sums are of x - K and (x - K)**2 with one K near the block's mean, in the accumulator's type for CHUNK elements at a
time and in float64 beyond: the rounding errors of a chunk's lanes are independent and average out, and what K is off
costs (mean - K)**2 / variance times the error of the squares. WORST bounds that factor.

Sums of single bytes are exact: of x itself, in integers; K is subtracted in the end.

With `skip` the block is x + skip. The sum is rounded, and what that lost is added again once K is gone: so nothing is
lost where both are large and cancel, nor where the sum is large against its deviation.
"""

import math

from ...shapes.geometry import CHANNELS_FIRST, CHANNELS_LAST, SPOT_0
from ..callees import device, inlined
from ..formulas import sum_and_loss, sum_difference
from .masks import is_valid, only_valid
from .memory import is_exact, lanes, load, load_from, load_one, present, rounded, splat
from .operands import Centre, at_element, at_row, exactly, past_gap
from .vectors import doubles, fma, join, keep, lane_sum, shifted
from .work import field

# Elements summed in accumulator precision before float64 takes over, two vectors side by side: 16 additions of float32.
CHUNK = 512
# The same of exact sums: in a lane 2**15 additions of squares of bytes stay below 2**31.
EXACT_CHUNK = 1 << 19
# Largest (mean - K)**2 / variance accepted.
WORST = 16.0
# Below this eps, squares that float32 cannot hold (differences under 1e-19) would be missed in the result; loops in
# float64 miss none that `careful_moments` would find.
TINY_EPS, TINY_SQUARE = 1e-30, 1e-30
# What float64 differences are multiplied by whose squares would overflow.
SCALE_DOWN = 2.0**-512
# The largest factor that differences are multiplied by, which leaves room for weights of 1e9 in float32, and their
# largest unit, which lets a subnormal number of float32 be multiplied by that.
MOST_FACTOR, MOST_UNIT = 2.0**96, 2.0**100


@device
def probe(work, layout, stride, i):
    """Where the i-th eighth of a block begins, counted from its first element in steps of `stride` from row to row."""
    if work.valid < work.S:
        position, channel = field(work, SPOT_0 + i // 2), work.D * i // 8
        return channel * stride + position if layout == CHANNELS_FIRST else position * stride + channel
    if layout == CHANNELS_LAST:
        return work.S * i // 8 * stride + work.D * i // 8
    at = work.D * work.S * i // 8
    return at // work.S * stride + at % work.S


@inlined
def one_sum(arrays, i, skip_i):
    """x + skip of one element, in float64."""
    if present(arrays.skip):
        return load_one(arrays.x, i) + load_one(arrays.skip, skip_i)
    return load_one(arrays.x, i)


@device
def scattered_estimate(work, layout, block):
    """`estimated_mean` where rows have gaps, or not all positions are valid."""
    total = 0.0
    for i in range(1, 8, 2):
        total += 0.25 * one_sum(block, probe(work, layout, work.x_r, i), probe(work, layout, work.skip_r, i))
    return rounded(block.x, total)


@inlined
def estimated_mean(work, layout, block):
    """K before the mean is known: the mean of four of the block's valid elements, rounded to the accumulator's type.

    It equals the mean exactly where all elements are equal.
    """
    if layout != CHANNELS_FIRST or work.dense == 0 or work.valid < work.S:
        return scattered_estimate(work, layout, block)
    size = work.D * work.S  # as `probe` says, without divisions: they were a fifth of the time of small blocks
    total = 0.0
    for i in range(1, 8, 2):
        at = size * i // 8
        total += 0.25 * one_sum(block, at, at)
    return rounded(block.x, total)


@device
def difference(row, i, k, count):
    """x + skip - K of the vector at i, with zeros where x is not valid and from lane `count` on."""
    if present(row.skip):
        total, lost = sum_and_loss(load(row.x, i, count), load(row.skip, i, count))
        d = shifted(total, k) + lost
    else:
        d = shifted(load(row.x, i, count), k)
    return keep(only_valid(row.mask, i, d), count)


@device
def joined_difference(row, following, i, first, k, count):
    """The same where lanes from `first` on belong to the next row: `following`, which has the same indices."""
    before = difference(row, i, k, first)
    if present(row.skip):
        total, lost = sum_and_loss(load_from(following.x, i, first, count), load_from(following.skip, i, first, count))
        d = shifted(total, k) + lost
    else:
        d = shifted(load_from(following.x, i, first, count), k)
    return join(before, keep(only_valid(following.mask, i, d), count), first)


@inlined
def add_fours(line, i, last, k, s0, q0):
    """Add elements from i on to the sums, four vectors at a time, as long as the second two begin at `last` at most.

    Gives where it stopped and the sums. For exact sums, which may be added in any order: 0.25 ns a vector instead of
    0.44 with two at a time, as the sums of squares wait for each other.
    """
    width = lanes(line.x)
    s1 = splat(line.x, 0.0)
    q1, s2, q2, s3, q3 = s1, s1, s1, s1, s1
    while i + 2 * width <= last:
        d0, d1 = difference(line, i, k, None), difference(line, i + width, k, None)
        i += 2 * width
        d2, d3 = difference(line, i, k, None), difference(line, i + width, k, None)
        s0, q0 = s0 + d0, fma(d0, d0, q0)
        s1, q1 = s1 + d1, fma(d1, d1, q1)
        s2, q2 = s2 + d2, fma(d2, d2, q2)
        s3, q3 = s3 + d3, fma(d3, d3, q3)
        i += 2 * width
    return i, s0 + s1 + (s2 + s3), q0 + q1 + (q2 + q3)


@device
def shifted_sums(work, line, n, end, length, k):
    """(sum of x - K, sum of (x - K)**2), in float64, over n elements in rows of `length` with gaps between them.

    The first row ends after `end` elements. What is added to what does not depend on the rows.
    """
    width, of_bytes = lanes(line.x), is_exact(line.x, line.skip)
    chunk, k, line = EXACT_CHUNK if of_bytes else CHUNK, splat(line.x, k), exactly(line)
    total = doubles(splat(line.x, 0.0))
    squares = total
    i = 0
    while i < n:
        stop = min(i + chunk, n)
        # two accumulators each: with one the additions wait for each other
        s0 = splat(line.x, 0.0)
        s1, q0, q1 = s0, s0, s0
        pairs = i + (stop - i) // (2 * width) * (2 * width)
        while i < stop:
            last = min(pairs, end) - 2 * width
            if of_bytes:
                i, s0, q0 = add_fours(line, i, last, k, s0, q0)
            while i <= last:
                d0, d1 = difference(line, i, k, None), difference(line, i + width, k, None)
                s0, q0 = s0 + d0, fma(d0, d0, q0)
                s1, q1 = s1 + d1, fma(d1, d1, q1)
                i += 2 * width
            # a pair that is not all in one row, or what is less than a pair
            paired, second = i < pairs, False
            until = i + 2 * width if paired else stop
            while i < until:
                count = min(width, until - i)
                if end - i >= count:
                    d0 = difference(line, i, k, count)
                else:
                    following = past_gap(line, work, length)
                    d0 = joined_difference(line, following, i, end - i, k, count)
                    line, end = following, end + length
                if second:
                    s1, q1 = s1 + d0, fma(d0, d0, q1)
                else:
                    s0, q0 = s0 + d0, fma(d0, d0, q0)
                second = paired
                i += count
        total = total + doubles(s0 + s1)
        squares = squares + doubles(q0 + q1)
    return lane_sum(total), lane_sum(squares)


@inlined
def line_sums(work, block, start, n, k):
    """Channels first: `shifted_sums` over elements start .. start + n - 1 of a block."""
    c, s, end, length = 0, start, n, n
    if work.dense == 0:
        length = work.S
        c, s = start // length, start % length
        end = length - s
    return shifted_sums(work, at_element(at_row(block, work, c), work, s), n, end, length, k)


@device
def block_sums(work, layout, block, k):
    """(sum of x - K, sum of (x - K)**2) over a whole block: channels first one line, channels last row by row."""
    lines, n, length = 1, work.D * work.S, work.S
    if layout == CHANNELS_LAST:
        lines, n, length = work.S, work.D, work.D
    elif work.dense != 0:
        length = n
    total, squares = 0.0, 0.0
    for r in range(lines):
        line = at_row(block, work, r)
        if layout == CHANNELS_FIRST or is_valid(line.mask, 0):
            t, q = shifted_sums(work, line, n, length, length, k)
            total += t
            squares += q
    return total, squares


@device
def careful_moments(work, layout, block):
    """(mean, M2, variance) by two passes in float64, one element at a time, where the loops miss squares.

    In float32 those of differences below 1e-19 and above 1e19, in float64 those above 1e154, which are scaled.
    """
    rows, n = (work.D, work.S) if layout == CHANNELS_FIRST else (work.S, work.D)
    size, scale = work.D * work.valid, 1.0 if lanes(block.x) > 8 else SCALE_DOWN
    mean = 0.0
    for r in range(rows):
        row = at_row(block, work, r)
        for i in range(n):
            if is_valid(row.mask, i * work.mask_c):
                mean += one_sum(row, i, i)
    mean /= size
    total, squares = 0.0, 0.0
    for r in range(rows):
        row = at_row(block, work, r)
        for i in range(n):
            if is_valid(row.mask, i * work.mask_c):
                d = (one_sum(row, i, i) - mean) * scale
                total += d
                squares += d * d
    m2 = max(squares - total * (total / size), 0.0)
    return mean + total / scale / size, m2 / scale / scale, m2 / size / scale / scale


@device
def summed_again(work, layout, block, mean):
    """(K, sum of x - K, sum of (x - K)**2) of a block with K near its mean, which is roughly known."""
    k = rounded(block.x, mean)
    total, squares = block_sums(work, layout, block, k)
    return k, total, squares


@inlined
def finalize_moments(work, layout, block, k, total, squares, eps):
    """(mean, what its rounding to float64 lost, M2, variance) of a block from its sums about K.

    Sums that cannot be trusted are made again. Always the same decision for the same block, whatever thread or batch it
    is in.
    """
    size = work.D * work.valid
    if is_exact(block.x, block.skip):  # the whole number next to the mean: nothing is rounded, nor is K ever far off
        k = math.floor(total / size + 0.5)
        total, squares = total - size * k, squares - k * (2.0 * total - size * k)
    excess = total * (total / size)
    if excess > WORST * (squares - excess):  # K was far from the mean: one of the four was an outlier
        k, total, squares = summed_again(work, layout, block, k + total / size)
        excess = total * (total / size)
    mean, m2 = k + total / size, max(squares - excess, 0.0)
    lost, variance = total / size - (mean - k), m2 / size
    tiny = lanes(block.x) > 8 and eps < TINY_EPS and squares < TINY_SQUARE * size
    if tiny or not math.isfinite(squares):
        mean, m2, variance = careful_moments(work, layout, block)
        lost = 0.0
    return mean, lost, m2, variance


@device
def rstd_of(variance, eps):
    """1 / sqrt(variance + eps): 0 for a constant group with eps = 0, NaN where the variance overflowed."""
    v = variance + eps
    if v == 0.0:
        return 0.0
    if v == math.inf:
        return math.nan
    return 1.0 / math.sqrt(v)


@inlined
def finalize_group(work, layout, group, statistics, u, sums, apart, eps):
    """Mean and rstd (or M2) of a group, number u of the statistics, from its partial sums, added in order.

    These are two for each part, `apart` from one part to the next; what the mean lost comes first there.
    """
    k = estimated_mean(work, layout, group)
    total, squares = 0.0, 0.0
    for part in range(work.parts):
        total += sums[part * apart]
        squares += sums[part * apart + 1]
    mean, sums[0], m2, variance = finalize_moments(work, layout, group, k, total, squares, eps)
    statistics.mean[u] = mean
    statistics.rstd[u] = m2 if work.keep_m2 != 0 else rstd_of(variance, eps)


@device
def centred(row, i, count, unit, origin):
    """(x + skip - K) * unit of the vector at i, where origin is -K * unit."""
    if present(row.skip):
        return sum_difference(load(row.x, i, count), load(row.skip, i, count), unit, origin)
    return fma(load(row.x, i, count), unit, origin)


@inlined
def usual_unit(arrays):
    """The unit of differences in which they cannot overflow: x - K is up to twice, x + skip - K four times x's most."""
    return 0.25 if present(arrays.skip) else 0.5


@device
def large_unit(unit, mean, rstd):
    """The unit of differences so small that their rstd is no number of float32: a larger power of two.

    Where the mean is too large for that the group is constant, or rstd would not be so large.
    """
    while rstd > MOST_FACTOR * unit and abs(mean) * unit < MOST_FACTOR and unit < MOST_UNIT:
        unit *= 2.0
    return unit


@inlined
def coefficients(arrays, mean, lost, rstd):
    """What x_hat is made with; the mean is mean + lost. K is the mean in the accumulator's type."""
    px, unit = arrays.x, usual_unit(arrays)
    k = rounded(px, mean)
    if present(arrays.skip) and math.isinf(k):  # x + skip may be too large for it
        k = rounded(px, mean * unit) / unit
    factor = rstd / unit
    if lanes(px) > 8 and MOST_FACTOR < factor < math.inf:
        unit = large_unit(unit, mean, rstd)
        factor = min(rstd / unit, MOST_FACTOR)
    return Centre(unit, -k * unit, factor, (k - mean - lost) * rstd)


@inlined
def in_lanes(px, centre):
    """The same in every lane of a vector."""
    return Centre(splat(px, centre.unit), splat(px, centre.origin), splat(px, centre.factor), splat(px, centre.lack))
