"""One vector of results: y in the forward pass, dx and dresidual in the backward pass."""

from ..callees import device, implements, inlined
from ..compiled import activate, slope
from .masks import only_valid
from .memory import lanes, load, present, splat, store, store_nontemporal, until_aligned
from .moments import centred
from .operands import Affine, Gradients
from .vectors import fma, keep

# Vectors of a run from which a first, partial one pays that lets the others be aligned. NumPy aligns large arrays to 16
# bytes, and stores across two cache lines are slow.
ALIGN_FROM = 16


@device
def aligned_from(work, ptr, start, stop):
    """(first element of start .. stop - 1 from which whole vectors are aligned, whether they go past the caches)."""
    if stop - start < ALIGN_FROM * lanes(ptr):
        return start, 0
    return start + until_aligned(ptr, start), work.past


@device
def store_result(ptr, index, value, count, past):
    """Store whole vectors past the caches if asked to; ptr[index] must be aligned then."""
    if count is None and past:
        store_nontemporal(ptr, index, value)
    else:
        store(ptr, index, value, count)


@device
def clear_run(ptr, start, count, past):
    """Zeros in `count` values from `start` on, which must be aligned if they go past the caches."""
    width, zero, i = lanes(ptr), splat(ptr, 0.0), 0
    while i + width <= count:
        store_result(ptr, start + i, zero, None, past)
        i += width
    if i < count:
        store(ptr, start + i, zero, count - i)


@device
def clear_line(work, ptr, count):
    """Zeros in the first `count` values."""
    aligned, past = aligned_from(work, ptr, 0, count)
    if aligned > 0:
        store(ptr, 0, splat(ptr, 0.0), aligned)
    clear_run(ptr, aligned, count - aligned, past)


@device
def dz_and_d(row, i, count, by, act):
    """dz and d = (x + skip - K) * rstd of one vector; both are zero where x is not valid and from lane `count` on.

    x_hat is d and one small number more, the same for a whole group: that is in the coefficients.
    """
    d = centred(row, i, count, by.unit, by.origin) * by.factor
    z = fma(d, by.weight, by.bias)
    if present(row.residual):
        z = z + load(row.residual, i, count)
    dz = only_valid(row.mask, i, load(row.dy, i, count) * slope(z, act))
    return keep(dz, count), keep(only_valid(row.mask, i, d), count)


@inlined
def gradient_of(dz, d, by):
    """One vector of dx, where x is valid."""
    return fma(dz, by.scale, fma(d, by.by_d, by.constant))


@device
def y_of(row, i, count, by, act):
    """One vector of y, where x is valid."""
    z = fma(centred(row, i, count, by.unit, by.origin), by.scale, by.shift)
    if present(row.residual):
        z = z + load(row.residual, i, count)
    return activate(z, act)


def write_vector(row, i, count, by, act, past):
    """One vector of y, by an Affine, or of dx and dresidual, by Gradients; zeros where x is not valid.

    Each index is read before it is written: y may be x, skip or residual itself.
    """


@implements(write_vector, 3, Affine)
def write_y(row, i, count, by, act, past):
    store_result(row.y, i, only_valid(row.mask, i, y_of(row, i, count, by, act)), count, past)


@implements(write_vector, 3, Gradients)
def write_dx(row, i, count, by, act, past):
    dz, d = dz_and_d(row, i, count, by.for_dz, act)
    store_result(row.y, i, only_valid(row.mask, i, gradient_of(dz, d, by.for_dx)), count, past)
    store(row.dresidual, i, dz, count)


def write_end(row, i, own, by, act, past):
    """One vector of y or dx, of which the first `own` lanes are results and the others zero, where there is no mask."""


@implements(write_end, 3, Affine)
def end_y(row, i, own, by, act, past):
    store_result(row.y, i, keep(y_of(row, i, own, by, act), own), None, past)


@implements(write_end, 3, Gradients)
def end_dx(row, i, own, by, act, past):
    dz, d = dz_and_d(row, i, own, by.for_dz, act)
    store_result(row.y, i, keep(gradient_of(dz, d, by.for_dx), own), None, past)
    store(row.dresidual, i, dz, own)
