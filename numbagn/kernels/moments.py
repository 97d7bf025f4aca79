"""Mean and rstd of a block: shifted sums on vectors, checked, and done again where the check fails.

Channels first a block is one line of D * S elements, in D rows with gaps between them or none; channels last it is S
rows of D elements. The sums are of x - K and (x - K)**2 with one K near the block's mean, in the accumulator's type for
CHUNK elements at a time and in float64 beyond: the rounding errors of a chunk's lanes are independent and average out,
and what K is off costs (mean - K)**2 / variance times the error of the squares. WORST bounds that factor.

Sums of single bytes are exact: of x itself, in integers, and K comes in when they are settled.

With `skip` the block is x + skip. The sum is rounded, and what that lost is added again once K is gone: so nothing is
lost where both are large and cancel, nor where the sum is large against its deviation.
"""

import math

from .callees import device, inlined
from .formulas import sum_and_loss, sum_difference
from .geometry import CHANNELS_FIRST, CHANNELS_LAST, SPOT_0
from .masks import is_valid, only_valid
from .memory import exact, is_exact, lanes, load, load_from, load_one, present, rounded, splat
from .vectors import doubles, fma, join, keep, lane_sum, shifted
from .work import field

# Elements summed in accumulator precision before float64 takes over, two vectors side by side: 16 additions of float32.
CHUNK = 512
# The same of exact sums: 2**14 additions of squares of bytes stay below 2**31.
EXACT_CHUNK = 1 << 19
# Largest (mean - K)**2 / variance accepted.
WORST = 16.0
# Below this eps, squares that float32 cannot hold (differences under 1e-19) would be missed in the result; loops in
# float64 miss none that `careful_moments` would find.
TINY_EPS, TINY_SQUARE = 1e-30, 1e-30
# What float64 differences are multiplied by whose squares would overflow.
SCALE_DOWN = 2.0**-512
# The largest factor that differences are multiplied by, which leaves room for weights of 1e9 in float32.
MOST_FACTOR = 2.0**96


@device
def spot(work, layout, stride, i):
    """Where the i-th eighth of a block begins, counted from its first element."""
    if work.valid < work.S:
        position, channel = field(work, SPOT_0 + i // 2), work.D * i // 8
        return channel * stride + position if layout == CHANNELS_FIRST else position * stride + channel
    if layout == CHANNELS_LAST:
        return work.S * i // 8 * stride + work.D * i // 8
    at = work.D * work.S * i // 8
    return at // work.S * stride + at % work.S


@device
def scattered_location(work, layout, px, ps, x_base, skip_base):
    """`location` wherever the elements lie."""
    total = 0.0
    for i in range(1, 8, 2):
        at, skip_at = x_base + spot(work, layout, work.x_r, i), skip_base + spot(work, layout, work.skip_r, i)
        total += 0.25 * (load_one(px, at) + load_one(ps, skip_at))
    return rounded(px, total)


@inlined
def location(work, layout, px, ps, x_base, skip_base):
    """K before the mean is known: the mean of four of the block's valid elements, rounded to the accumulator's type.

    It equals the mean exactly where all elements are equal.
    """
    if layout != CHANNELS_FIRST or work.dense == 0 or work.valid < work.S:
        return scattered_location(work, layout, px, ps, x_base, skip_base)
    size = work.D * work.S  # as `spot` says, without divisions: they were a fifth of the time of small blocks
    total = 0.0
    for i in range(1, 8, 2):
        at = size * i // 8
        total += 0.25 * (load_one(px, x_base + at) + load_one(ps, skip_base + at))
    return rounded(px, total)


@device
def difference(px, ps, pm, ix, i_skip, im, k, count):
    """x + skip - K, with zeros where x is not valid and from lane `count` on; x itself through `exact` pointers."""
    if present(ps):
        total, lost = sum_and_loss(load(px, ix, count), load(ps, i_skip, count))
        d = shifted(total, k) + lost
    else:
        d = shifted(load(px, ix, count), k)
    return keep(only_valid(pm, im, d), count)


@device
def joined_difference(px, ps, pm, ix, i_skip, im, first, x_gap, skip_gap, mask_gap, k, count):
    """The same where lanes from `first` on belong to the next row, which begins after a gap."""
    before = difference(px, ps, pm, ix, i_skip, im, k, first)
    if present(ps):
        total, lost = sum_and_loss(
            load_from(px, ix + x_gap, first, count), load_from(ps, i_skip + skip_gap, first, count)
        )
        d = shifted(total, k) + lost
    else:
        d = shifted(load_from(px, ix + x_gap, first, count), k)
    return join(before, keep(only_valid(pm, im + mask_gap, d), count), first)


@inlined
def add_fours(px, ps, pm, ix, i_skip, im, i, last, k, s0, q0):
    """Add elements from i on to the sums, four vectors at a time, as long as the second two begin at `last` at most.

    Gives where it stopped and the sums. For exact sums, which may be added in any order: 0.25 ns a vector instead of
    0.44 with two at a time, as the sums of squares wait for each other.
    """
    width = lanes(px)
    s1 = splat(px, 0.0)
    q1, s2, q2, s3, q3 = s1, s1, s1, s1, s1
    while i + 2 * width <= last:
        j = i + width
        d0 = difference(px, ps, pm, ix + i, i_skip + i, im + i, k, None)
        d1 = difference(px, ps, pm, ix + j, i_skip + j, im + j, k, None)
        i, j = i + 2 * width, j + 2 * width
        d2 = difference(px, ps, pm, ix + i, i_skip + i, im + i, k, None)
        d3 = difference(px, ps, pm, ix + j, i_skip + j, im + j, k, None)
        s0, q0 = s0 + d0, fma(d0, d0, q0)
        s1, q1 = s1 + d1, fma(d1, d1, q1)
        s2, q2 = s2 + d2, fma(d2, d2, q2)
        s3, q3 = s3 + d3, fma(d3, d3, q3)
        i += 2 * width
    return i, s0 + s1 + (s2 + s3), q0 + q1 + (q2 + q3)


@device
def shifted_sums(px, ps, pm, ix, i_skip, im, n, end, row, x_gap, skip_gap, mask_gap, k):
    """(sum of x - K, sum of (x - K)**2), in float64, over n elements in rows of `row` with gaps between them.

    The first row ends after `end` elements. What is added to what does not depend on the rows.
    """
    width, chunk = lanes(px), EXACT_CHUNK if is_exact(px, ps) else CHUNK
    k, px, ps = splat(px, k), exact(px, ps), exact(ps, ps)
    total = doubles(splat(px, 0.0))
    squares = total
    i = 0
    while i < n:
        stop = min(i + chunk, n)
        # two accumulators each: with one the additions wait for each other
        s0 = splat(px, 0.0)
        s1, q0, q1 = s0, s0, s0
        pairs = i + (stop - i) // (2 * width) * (2 * width)
        while i < stop:
            last = min(pairs, end) - 2 * width
            if is_exact(px, ps):
                i, s0, q0 = add_fours(px, ps, pm, ix, i_skip, im, i, last, k, s0, q0)
            while i <= last:
                j = i + width
                d0 = difference(px, ps, pm, ix + i, i_skip + i, im + i, k, None)
                d1 = difference(px, ps, pm, ix + j, i_skip + j, im + j, k, None)
                s0, q0 = s0 + d0, fma(d0, d0, q0)
                s1, q1 = s1 + d1, fma(d1, d1, q1)
                i += 2 * width
            # a pair that is not all in one row, or what is less than a pair
            paired, second = i < pairs, False
            until = i + 2 * width if paired else stop
            while i < until:
                count = min(width, until - i)
                if end - i >= count:
                    d0 = difference(px, ps, pm, ix + i, i_skip + i, im + i, k, count)
                else:
                    d0 = joined_difference(
                        px, ps, pm, ix + i, i_skip + i, im + i, end - i, x_gap, skip_gap, mask_gap, k, count
                    )
                    ix, i_skip, im, end = ix + x_gap, i_skip + skip_gap, im + mask_gap, end + row
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
def line_sums(work, px, ps, pm, x_base, skip_base, m_base, start, n, k):
    """Channels first: `shifted_sums` over elements start .. start + n - 1 of a block."""
    c, s, end, row = 0, start, n, n
    if work.dense == 0:
        row = work.S
        c, s = start // row, start % row
        end = row - s
    return shifted_sums(
        px, ps, pm, x_base + c * work.x_r + s, skip_base + c * work.skip_r + s, m_base + c * work.mask_r + s, n, end,
        row, work.x_r - row, work.skip_r - row, work.mask_r - row, k,
    )  # fmt: skip


@device
def block_sums(work, layout, px, ps, pm, x_base, skip_base, m_base, k):
    """(sum of x - K, sum of (x - K)**2) over a whole block: channels first one line, channels last row by row."""
    lines, n, row = 1, work.D * work.S, work.S
    if layout == CHANNELS_LAST:
        lines, n, row = work.S, work.D, work.D
    elif work.dense != 0:
        row = n
    total, squares = 0.0, 0.0
    for r in range(lines):
        ix, i_skip, im = x_base + r * work.x_r, skip_base + r * work.skip_r, m_base + r * work.mask_r
        if layout == CHANNELS_FIRST or is_valid(pm, im):
            t, q = shifted_sums(
                px, ps, pm, ix, i_skip, im, n, row, row, work.x_r - row, work.skip_r - row, work.mask_r - row, k,
            )  # fmt: skip
            total += t
            squares += q
    return total, squares


@device
def careful_moments(work, layout, px, ps, pm, x_base, skip_base, m_base):
    """(mean, M2, variance) by two passes in float64, one element at a time, where the loops miss squares.

    In float32 those of differences below 1e-19 and above 1e19, in float64 those above 1e154, which are scaled.
    """
    rows, n = (work.D, work.S) if layout == CHANNELS_FIRST else (work.S, work.D)
    size, scale = work.D * work.valid, 1.0 if lanes(px) > 8 else SCALE_DOWN
    mean = 0.0
    for r in range(rows):
        ix, i_skip, im = x_base + r * work.x_r, skip_base + r * work.skip_r, m_base + r * work.mask_r
        for i in range(n):
            if is_valid(pm, im + i * work.mask_c):
                mean += load_one(px, ix + i) + load_one(ps, i_skip + i)
    mean /= size
    total, squares = 0.0, 0.0
    for r in range(rows):
        ix, i_skip, im = x_base + r * work.x_r, skip_base + r * work.skip_r, m_base + r * work.mask_r
        for i in range(n):
            if is_valid(pm, im + i * work.mask_c):
                d = (load_one(px, ix + i) + load_one(ps, i_skip + i) - mean) * scale
                total += d
                squares += d * d
    m2 = max(squares - total * (total / size), 0.0)
    return mean + total / scale / size, m2 / scale / scale, m2 / size / scale / scale


@device
def summed_again(work, layout, px, ps, pm, x_base, skip_base, m_base, mean):
    """(K, sum of x - K, sum of (x - K)**2) of a block with K near its mean, which is roughly known."""
    k = rounded(px, mean)
    total, squares = block_sums(work, layout, px, ps, pm, x_base, skip_base, m_base, k)
    return k, total, squares


@inlined
def settle(work, layout, px, ps, pm, x_base, skip_base, m_base, k, total, squares, eps):
    """(mean, what its rounding to float64 lost, M2, variance) of a block from its sums about K.

    Sums that cannot be trusted are made again. Always the same decision for the same block, whatever thread or batch it
    is in.
    """
    size = work.D * work.valid
    if is_exact(px, ps):  # the whole number next to the mean: nothing is rounded, nor is K ever far off
        k = math.floor(total / size + 0.5)
        total, squares = total - size * k, squares - k * (2.0 * total - size * k)
    excess = total * (total / size)
    if excess > WORST * (squares - excess):  # K was no member of the crowd
        k, total, squares = summed_again(work, layout, px, ps, pm, x_base, skip_base, m_base, k + total / size)
        excess = total * (total / size)
    mean, m2 = k + total / size, max(squares - excess, 0.0)
    lost, variance = total / size - (mean - k), m2 / size
    tiny = lanes(px) > 8 and eps < TINY_EPS and squares < TINY_SQUARE * size
    if tiny or not math.isfinite(squares):
        mean, m2, variance = careful_moments(work, layout, px, ps, pm, x_base, skip_base, m_base)
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


@device
def centred(px, ps, ix, i_skip, count, unit, origin):
    """(x + skip - K) * unit, where origin is -K * unit."""
    if present(ps):
        return sum_difference(load(px, ix, count), load(ps, i_skip, count), unit, origin)
    return fma(load(px, ix, count), unit, origin)


@device
def large_unit(k, rstd):
    """The unit of differences so small that their rstd is no number of float32: a larger power of two.

    Where K itself is too large for that the group is constant, or rstd would not be so large.
    """
    unit = 0.5
    while rstd > MOST_FACTOR * unit and abs(k) * unit < MOST_FACTOR:
        unit *= 2.0
    return unit


@inlined
def coefficients(px, mean, lost, rstd):
    """(unit, -K * unit, rstd / unit, (K - mean) * rstd), which x_hat is made with. The mean is mean + lost.

    K is the mean in the accumulator's type. The unit of differences is 1/2, so that they cannot overflow while the
    result is finite, unless rstd is beyond float32.
    """
    k, unit = rounded(px, mean), 0.5
    if lanes(px) > 8 and MOST_FACTOR * unit < rstd < math.inf:
        unit = large_unit(k, rstd)
        return unit, -k * unit, min(rstd / unit, MOST_FACTOR), (k - mean - lost) * rstd
    return unit, -0.5 * k, 2.0 * rstd, (k - mean - lost) * rstd
