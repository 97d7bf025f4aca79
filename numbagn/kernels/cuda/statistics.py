"""From sums to statistics, and from statistics to what an element is normalized with; a few float64 steps a group.

Sums are made twice over the same registers: first of x, for a mean m near the true one, then of ``d = x - m`` and d**2,
from which mean and variance follow without cancellation ("corrected two-pass"). Values whose squares leave the range of
the accumulator are scaled by a power of two and summed again.
"""

import math
from collections import namedtuple
from functools import cache

import numpy as np

from .target import ACC, device, fma, lanes_in

# accumulator: (scale down, scale up, a sum of squares below this may have lost digits, means above this need no scaling
# up: what differs from them at all differs by enough)
RANGES = {
    "float32": (2.0**-100, 2.0**100, 2.0**-70, 2.0**20),
    "float64": (2.0**-800, 2.0**800, 2.0**-500, 2.0**200),
}
# accumulator: (1 / std below which x is scaled down before it is shifted, by how much; above which, by how much)
EXTREMES = {
    "float32": (2.0**-60, 2.0**-64, 2.0**60, 2.0**64),
    "float64": (2.0**-500, 2.0**-512, 2.0**500, 2.0**512),
}
# accumulator: (a mean above which a group with so large a 1 / std is constant, so that nothing need be scaled; the
# largest factor of differences, which leaves room for large weights and is passed in constant groups alone)
MOST = {"float32": (2.0**60, 2.0**96), "float64": (2.0**500, 2.0**900)}
# With an eps from this on, variances too small for float32 sums do not matter.
EPS_COVERS = {"float32": 1e-12, "float64": 1e-200}
# What a block keeps for each group or channel: -mean and what it lacks, scaled; 1 / std; the scale.
SHIFT, LACK, RSTD, SCALE, FIELDS = range(5)
# The same as one value: x_hat is (x * scale + shift - lack) * rstd.
Centre = namedtuple("Centre", "shift lack rstd scale")


@cache
def scale_for(acc):
    """A function (sum of d**2, m, scale so far, eps): the scale to sum again with, or the same where all is well."""
    scalar = ACC[acc]
    down, up, least, high = (scalar(v) for v in RANGES[acc])
    covers, one = EPS_COVERS[acc], scalar(1.0)
    infinity = scalar(np.inf)

    @device
    def scale(squares, m, so_far, eps):
        if so_far != one:
            return so_far
        if not squares < infinity:
            return down
        if squares < least and eps < covers and abs(m) < high:
            return up
        return one

    return scale


@device
def inverse_std(variance, eps, scale):
    """1 / sqrt(var + eps) in float64, given var * scale**2; 0 only for a constant group without eps."""
    if variance < 0.0:
        variance = 0.0
    scaled_eps = eps * scale * scale
    if scaled_eps == math.inf:
        return 1.0 / math.sqrt(eps)
    v = variance + scaled_eps
    if v <= 0.0:
        return 0.0
    if v == math.inf:
        return math.nan
    return scale / math.sqrt(v)


@cache
def write_coefficients(acc):
    """A function (shared array, place, mean, what mean lacks, rstd) that leaves there what `centred` takes."""
    scalar = ACC[acc]
    low, down, high, up = EXTREMES[acc]
    most_mean, most_factor = MOST[acc]

    @device
    def write(shared, place, mean, low_mean, rstd):
        scale = 1.0
        if 0.0 < rstd < low:
            scale = down
        elif rstd > high and abs(mean) < most_mean:
            scale = up
        near, factor = scalar(mean), rstd / scale
        if most_factor < factor < math.inf:
            factor = most_factor
        shared[place + SHIFT] = scalar(-near * scale)
        shared[place + LACK] = scalar(((mean - near) + low_mean) * scale)
        shared[place + RSTD] = scalar(factor)
        shared[place + SCALE] = scalar(scale)

    return write


@device
def centre_at(table, at):
    """What `write_coefficients` left there."""
    return Centre(table[at + SHIFT], table[at + LACK], table[at + RSTD], table[at + SCALE])


@cache
def centre_in_lanes(acc, count):
    """A function (table, columns, column): the same of the channels of one column, where each field has a row."""
    in_lanes = lanes_in(acc, count)

    @device
    def of_column(table, columns, column):
        return Centre(
            in_lanes(table, SHIFT * columns + column), in_lanes(table, LACK * columns + column),
            in_lanes(table, RSTD * columns + column), in_lanes(table, SCALE * columns + column),
        )  # fmt: skip

    return of_column


@device
def centred(x, centre):
    """(x - mean) * scale: the difference from the rounded mean is exact or nearly so."""
    return fma(x, centre.scale, centre.shift) - centre.lack
