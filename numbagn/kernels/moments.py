"""Mean and rstd of a block: shifted sums on vectors, checked, and done again where the check fails.

A block is `rows` rows of `n` consecutive elements each, `stride` apart (channels first: one row). The sums are of
x - K and (x - K)**2 with one K near the block's mean, in the accumulator's type for CHUNK elements at a time and in
float64 beyond: the rounding errors of a chunk's lanes are independent and average out, and what K is off costs
(mean - K)**2 / variance times the error of the squares. WORST bounds that factor.

With `skip` the block is x + skip, each shifted by a number of its own before they are added, so that two large offsets
of opposite sign lose nothing.
"""

import math

from .compiled import device
from .formulas import half_difference
from .memory import lanes, load, load_one, present, rounded, splat
from .vectors import doubles, fma, keep, lane_sum

# Elements summed in accumulator precision before float64 takes over, two vectors side by side: 16 additions of float32.
CHUNK = 512
# Largest (mean - K)**2 / variance accepted.
WORST = 16.0
# Below this eps, squares that float32 cannot hold (differences under 1e-19) would be missed in the result; loops in
# float64 miss none that `careful_moments` would find.
TINY_EPS, TINY_SQUARE = 1e-30, 1e-30


@device
def location(ptr, base, rows, stride, n):
    """A number near the block's mean that the accumulator's type can hold: the mean of four of its elements.

    It equals the mean exactly where all elements are equal.
    """
    total = 0.0
    for i in range(1, 8, 2):
        total += 0.25 * load_one(ptr, base + rows * i // 8 * stride + n * i // 8)
    return rounded(ptr, total)


@device
def shifts(px, ps, x_base, skip_base, rows, x_stride, skip_stride, n):
    """The K of x and of skip, before the mean is known."""
    k = location(px, x_base, rows, x_stride, n)
    k_skip = 0.0
    if present(ps):
        k_skip = location(ps, skip_base, rows, skip_stride, n)
    return k, k_skip


@device
def final_shift(px, ps, x_base, rows, x_stride, n, mean):
    """The K of x once the mean is known: the mean itself, or with skip, which has its share, a number near x's own.

    To be kept before the block is written to: y may be x.
    """
    if present(ps):
        return location(px, x_base, rows, x_stride, n)
    return rounded(px, mean)


@device
def skip_shift(px, ps, k, mean):
    """The K of skip that goes with the K of x: together they are the mean, as nearly as the accumulator's type can."""
    return rounded(px, mean - k) if present(ps) else 0.0


@device
def difference(px, ps, ix, i_skip, k, k_skip, count):
    """x + skip - K, with zeros from lane `count` on."""
    d = load(px, ix, count) - k
    if present(ps):
        d = d + (load(ps, i_skip, count) - k_skip)
    return keep(d, count)


@device
def shifted_sums(px, ps, ix, i_skip, n, k, k_skip):
    """(sum of x - K, sum of (x - K)**2) over n consecutive elements, in float64."""
    width = lanes(px)
    k, k_skip = splat(px, k), splat(px, k_skip)
    total = doubles(splat(px, 0.0))
    squares = total
    end = ix + n
    i_skip -= ix
    while ix < end:
        stop = min(ix + CHUNK, end)
        # two accumulators each: with one the additions wait for each other
        s0 = splat(px, 0.0)
        s1, q0, q1 = s0, s0, s0
        pairs = ix + (stop - ix) // (2 * width) * (2 * width)
        while ix < pairs:
            d0 = difference(px, ps, ix, ix + i_skip, k, k_skip, None)
            d1 = difference(px, ps, ix + width, ix + width + i_skip, k, k_skip, None)
            s0, q0 = s0 + d0, fma(d0, d0, q0)
            s1, q1 = s1 + d1, fma(d1, d1, q1)
            ix += 2 * width
        while ix < stop:
            count = min(width, stop - ix)
            d0 = difference(px, ps, ix, ix + i_skip, k, k_skip, count)
            s0, q0 = s0 + d0, fma(d0, d0, q0)
            ix += count
        total = total + doubles(s0 + s1)
        squares = squares + doubles(q0 + q1)
    return lane_sum(total), lane_sum(squares)


@device
def careful_moments(px, ps, x_base, skip_base, rows, x_stride, skip_stride, n):
    """(mean, M2) by two passes in float64, one element at a time: for magnitudes whose squares float32 cannot hold."""
    size = rows * n
    mean = 0.0
    for r in range(rows):
        for i in range(n):
            mean += load_one(px, x_base + r * x_stride + i) + load_one(ps, skip_base + r * skip_stride + i)
    mean /= size
    total, squares = 0.0, 0.0
    for r in range(rows):
        for i in range(n):
            d = load_one(px, x_base + r * x_stride + i) + load_one(ps, skip_base + r * skip_stride + i) - mean
            total += d
            squares += d * d
    return mean + total / size, max(squares - total * (total / size), 0.0)


@device
def settle(px, ps, x_base, skip_base, rows, x_stride, skip_stride, n, k, k_skip, total, squares, eps):
    """(mean, what its rounding to float64 lost, M2) of a block from its sums about K.

    Sums that cannot be trusted are made again. Always the same decision for the same block, whatever thread or batch it
    is in.
    """
    size = rows * n
    excess = total * (total / size)
    if excess > WORST * (squares - excess):
        # K was no member of the crowd: the mean, however roughly known by now, is
        mean = k + k_skip + total / size
        k = final_shift(px, ps, x_base, rows, x_stride, n, mean)
        k_skip = skip_shift(px, ps, k, mean)
        total, squares = 0.0, 0.0
        for r in range(rows):
            t, q = shifted_sums(px, ps, x_base + r * x_stride, skip_base + r * skip_stride, n, k, k_skip)
            total += t
            squares += q
        excess = total * (total / size)
    mean, m2 = k + k_skip + total / size, max(squares - excess, 0.0)
    lost = total / size - (mean - k - k_skip)
    tiny = lanes(px) > 8 and eps < TINY_EPS and squares < TINY_SQUARE * size
    if tiny or not math.isfinite(squares):
        mean, m2 = careful_moments(px, ps, x_base, skip_base, rows, x_stride, skip_stride, n)
        lost = 0.0
    return mean, lost, m2


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
def centred(px, ps, ix, i_skip, count, half_shift, half_shift_skip):
    """(x + skip - K) / 2."""
    d = half_difference(load(px, ix, count), half_shift)
    if present(ps):
        d = d + half_difference(load(ps, i_skip, count), half_shift_skip)
    return d


@device
def coefficients(px, ps, k, mean, lost, rstd):
    """(-K / 2, the same of skip, 2 * rstd, (K - mean) * rstd): x_hat from half differences. The mean is mean + lost."""
    k_skip = skip_shift(px, ps, k, mean)
    return -0.5 * k, -0.5 * k_skip, 2.0 * rstd, (k - mean + k_skip - lost) * rstd
