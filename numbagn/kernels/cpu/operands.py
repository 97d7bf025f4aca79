"""What kernels hand on as one value: arrays that are walked together, parameters, statistics, coefficients.

The arrays of a call are walked in step, by one and the same index within a row: so they are one tuple of pointers, all
standing at the same element of their arrays, which is moved as a whole.
"""

from collections import namedtuple

from ..callees import inlined
from .masks import within_rows
from .memory import exact, offset
from .vectors import fma

# Pointers of a call's operands, absent where there is none; y is dx in the backward pass, which alone has dy and
# dresidual.
Arrays = namedtuple("Arrays", "x skip residual dy y dresidual mask")
# Pointers to weight and bias.
Parameters = namedtuple("Parameters", "weight bias")
# Pointers to mean and rstd (or M2) of each group, and to what they come from: partial sums, or in the backward pass m1
# and m2.
Statistics = namedtuple("Statistics", "mean rstd sums")
# A task's share of a call: its arrays, parameters and statistics, memory of its own, eps, the activation's code.
Forward = namedtuple("Forward", "arrays parameters statistics slot eps act")
# The same in the backward pass, with the sums of each channel.
Backward = namedtuple("Backward", "arrays parameters statistics slot channel_sums act")
# A block: its arrays, at its first element; its sample and that one's parameters; its first channel; a task's memory.
Block = namedtuple("Block", "arrays n parameters channel slot act")
# x_hat = (x * unit + origin) * factor + lack, as `moments.coefficients` gives them.
Centre = namedtuple("Centre", "unit origin factor lack")
# y = (x * unit + origin) * scale + shift, for each lane of a vector.
Affine = namedtuple("Affine", "unit origin scale shift")
# What dz and d are made with, for each lane of a vector; the bias has in it what d lacks to x_hat.
Upstream = namedtuple("Upstream", "unit origin factor weight bias")
# What a group's dx is made with beside its channels' weights: rstd, and what d and 1 are multiplied by.
Means = namedtuple("Means", "rstd by_d constant")
# dx = dz * scale + d * by_d + constant, for each lane of a vector.
Gradient = namedtuple("Gradient", "scale by_d constant")
# Coefficients in tables, one value for each value of a row, `pitch` apart; and the unit that all groups have in common.
Tables = namedtuple("Tables", "slot pitch unit")


@inlined
def at_sample(arrays, work, n):
    """The arrays at their sample n."""
    return Arrays(
        offset(arrays.x, n * work.x_n), offset(arrays.skip, n * work.skip_n), offset(arrays.residual, n * work.res_n),
        offset(arrays.dy, n * work.dy_n), offset(arrays.y, n * work.y_n), offset(arrays.dresidual, n * work.dres_n),
        offset(arrays.mask, n * work.mask_n),
    )  # fmt: skip


@inlined
def at_row(arrays, work, r):
    """The arrays r rows further on."""
    return Arrays(
        offset(arrays.x, r * work.x_r), offset(arrays.skip, r * work.skip_r), offset(arrays.residual, r * work.res_r),
        offset(arrays.dy, r * work.dy_r), offset(arrays.y, r * work.y_r), offset(arrays.dresidual, r * work.dres_r),
        offset(arrays.mask, r * work.mask_r),
    )  # fmt: skip


@inlined
def at_element(arrays, work, i):
    """The arrays i elements further on in their row."""
    return Arrays(
        offset(arrays.x, i), offset(arrays.skip, i), offset(arrays.residual, i), offset(arrays.dy, i),
        offset(arrays.y, i), offset(arrays.dresidual, i), offset(arrays.mask, i * work.mask_c),
    )  # fmt: skip


@inlined
def past_gap(arrays, work, length):
    """What is read of the next row, by the indices of this one, whose rows have `length` elements and then a gap."""
    return Arrays(
        offset(arrays.x, work.x_r - length), offset(arrays.skip, work.skip_r - length), arrays.residual, arrays.dy,
        arrays.y, arrays.dresidual, offset(arrays.mask, work.mask_r - length),
    )  # fmt: skip


@inlined
def exactly(arrays):
    """The arrays as they are read for sums: see `memory.exact`."""
    return Arrays(
        exact(arrays.x, arrays.skip), exact(arrays.skip, arrays.skip), arrays.residual, arrays.dy, arrays.y,
        arrays.dresidual, arrays.mask,
    )  # fmt: skip


@inlined
def only_within_rows(arrays):
    """The arrays of a row that is valid, with what its mask says within it: see `masks.within_rows`."""
    return Arrays(
        arrays.x, arrays.skip, arrays.residual, arrays.dy, arrays.y, arrays.dresidual, within_rows(arrays.mask)
    )


@inlined
def affine_of(centre, w, b):
    """What y is made with where each lane has a weight and a bias of its own, as the centre has."""
    return Affine(centre.unit, centre.origin, w * centre.factor, fma(w, centre.lack, b))


@inlined
def upstream_of(centre, w, b):
    """What dz and d are made with there."""
    return Upstream(centre.unit, centre.origin, centre.factor, w, fma(w, centre.lack, b))


@inlined
def parameters_at(parameters, work, n):
    """The parameters of sample n."""
    return Parameters(offset(parameters.weight, n * work.w_n), offset(parameters.bias, n * work.b_n))


@inlined
def parameters_of(parameters, work, c):
    """(weight, bias) of channel c of a sample."""
    return parameters.weight[c * work.w_c], parameters.bias[c * work.b_c]


@inlined
def statistics_at(statistics, work, n, sums):
    """The statistics of sample n, which has so many values of sums."""
    return Statistics(
        offset(statistics.mean, n * work.G), offset(statistics.rstd, n * work.G), offset(statistics.sums, n * sums)
    )
