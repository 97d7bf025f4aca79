"""What kernels hand on as one value: arrays that are walked together, parameters, statistics, coefficients.

The arrays of a call are walked in step, by one and the same index within a row: so they are one tuple of pointers, all
standing at the same element of their arrays, which is moved as a whole.
"""

from collections import namedtuple

from ..callees import inlined
from .masks import mask_pointer, within_rows
from .memory import exact, offset, pointer
from .vectors import fma

# Pointers of a call's operands, absent where there is none; y is dx in the backward pass, which alone has dy and
# dresidual.
Arrays = namedtuple("Arrays", "x skip residual dy y dresidual mask")
# Pointers to weight and bias.
Parameters = namedtuple("Parameters", "weight bias")
# Pointers to mean and rstd (or M2) of each group, and in the backward pass to m1 and m2.
Statistics = namedtuple("Statistics", "mean rstd means")
# A task's share of a call: its arrays, parameters and statistics, the sums of parts that those come from (in the
# backward pass of each channel), memory of its own, eps and the activation's code.
Call = namedtuple("Call", "arrays parameters statistics sums slot eps act")
# A block: its arrays, at its first element; its sample and that one's parameters; its first channel; a task's memory.
Block = namedtuple("Block", "arrays n parameters channel slot act")
# x_hat = (x * unit + origin) * factor + lack, as `moments.coefficients` gives them; what comes before `+ lack` is d.
Centre = namedtuple("Centre", "unit origin factor lack")
# What a group's dx is made with beside its channels' weights: rstd, and what d and 1 are multiplied by.
Means = namedtuple("Means", "rstd by_d constant")
# What the results of a group are made with: in the forward pass a Centre, in the backward pass both.
CentreAndMeans = namedtuple("CentreAndMeans", "centre means")
# y = (x * unit + origin) * scale + shift, for each lane of a vector.
Affine = namedtuple("Affine", "unit origin scale shift")
# What dz and d are made with, for each lane of a vector; the bias is bias + weight * (x_hat - d).
ForDz = namedtuple("ForDz", "unit origin factor weight bias")
# dx = dz * scale + d * by_d + constant, for each lane of a vector.
ForDx = namedtuple("ForDx", "scale by_d constant")
# What a vector of results is made with: in the forward pass an Affine, in the backward pass both.
Gradients = namedtuple("Gradients", "for_dz for_dx")


@inlined
def pointers(arrays, x_kind, skip_kind, residual_kind, dy_kind, y_kind, mask_kind):
    """The `Arrays` of a kernel's arrays, which come in the same order, by the codes of their storage kinds."""
    x, skip, residual, dy, y, dresidual, mask = arrays
    return Arrays(
        pointer(x, x_kind),
        pointer(skip, skip_kind),
        pointer(residual, residual_kind),
        pointer(dy, dy_kind),
        pointer(y, y_kind),
        pointer(dresidual, residual_kind),
        mask_pointer(mask, mask_kind),
    )


@inlined
def moved(arrays, steps):
    """The arrays, each by a number of elements of its own; `steps` are Arrays, too."""
    return Arrays(
        offset(arrays.x, steps.x),
        offset(arrays.skip, steps.skip),
        offset(arrays.residual, steps.residual),
        offset(arrays.dy, steps.dy),
        offset(arrays.y, steps.y),
        offset(arrays.dresidual, steps.dresidual),
        offset(arrays.mask, steps.mask),
    )


@inlined
def at_sample(arrays, work, n):
    """The arrays at their sample n."""
    steps = Arrays(
        n * work.x_n, n * work.skip_n, n * work.res_n, n * work.dy_n, n * work.y_n, n * work.dres_n, n * work.mask_n
    )
    return moved(arrays, steps)


@inlined
def at_row(arrays, work, r):
    """The arrays r rows further on."""
    steps = Arrays(
        r * work.x_r, r * work.skip_r, r * work.res_r, r * work.dy_r, r * work.y_r, r * work.dres_r, r * work.mask_r
    )
    return moved(arrays, steps)


@inlined
def at_element(arrays, work, i):
    """The arrays i elements further on in their row."""
    return moved(arrays, Arrays(i, i, i, i, i, i, i * work.mask_c))


@inlined
def past_gap(arrays, work, length):
    """What is read of the next row, by the indices of this one, whose rows have `length` elements and then a gap."""
    return at_element(at_row(arrays, work, 1), work, -length)


@inlined
def exactly(arrays):
    """The arrays as they are read for sums: see `memory.exact`."""
    x, skip, residual, dy, y, dresidual, mask = arrays
    return Arrays(exact(x, skip), exact(skip, skip), residual, dy, y, dresidual, mask)


@inlined
def only_within_rows(arrays):
    """The arrays of a row that is valid, with what its mask says within it: see `masks.within_rows`."""
    x, skip, residual, dy, y, dresidual, mask = arrays
    return Arrays(x, skip, residual, dy, y, dresidual, within_rows(mask))


@inlined
def affine_of(centre, w, b):
    """What y is made with where each lane has a weight and a bias of its own, as the centre has."""
    return Affine(centre.unit, centre.origin, w * centre.factor, fma(w, centre.lack, b))


@inlined
def for_dz_of(centre, w, b):
    """What dz and d are made with there."""
    return ForDz(centre.unit, centre.origin, centre.factor, w, fma(w, centre.lack, b))


@inlined
def parameters_at(parameters, work, n):
    """The parameters of sample n."""
    return Parameters(offset(parameters.weight, n * work.w_n), offset(parameters.bias, n * work.b_n))


@inlined
def parameters_of(parameters, work, c):
    """(weight, bias) of channel c of a sample."""
    return parameters.weight[c * work.w_c], parameters.bias[c * work.b_c]


@inlined
def statistics_at(statistics, work, n):
    """The statistics of sample n."""
    u = n * work.G
    return Statistics(offset(statistics.mean, u), offset(statistics.rstd, u), offset(statistics.means, 2 * u))
