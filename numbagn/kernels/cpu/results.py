"""One vector of results: y in the forward pass, dx and dresidual in the backward pass."""

from ..callees import device, inlined
from ..compiled import activate, slope
from .masks import only_valid
from .memory import lanes, load, present, splat, store, stream, until_aligned
from .moments import centred
from .vectors import fma, keep

# Vectors of a run from which a first, partial one pays that lets the others be aligned. NumPy aligns large arrays to 16
# bytes, and stores across two cache lines are slow.
ALIGN_FROM = 16


# While a small block is written from the cache, memory is idle: then the block this many further on is asked for.
# One thread, float32: forward (1024, 4096) took 0.65 ms without and 0.55 with it, backward 2.6 and 2.1, (4096, 768) 1.8
# and 1.3. One block on was too late, four no better. Blocks of more than AHEAD_MOST elements gained nothing.
BLOCKS_AHEAD, AHEAD_MOST = 2, 1 << 12


@device
def elements_ahead(work, n, sample_step):
    """How far ahead of what is written to ask for memory: 0 where blocks are large, or none follows."""
    size = work.D * work.S
    if size > AHEAD_MOST or n + BLOCKS_AHEAD >= work.N:
        return 0
    return BLOCKS_AHEAD * (sample_step if work.G == 1 else size)


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
        stream(ptr, index, value)
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
def result_of(row, i, count, affine, act):
    """One vector of y, where x is valid."""
    z = fma(centred(row, i, count, affine.unit, affine.origin), affine.scale, affine.shift)
    if present(row.residual):
        z = z + load(row.residual, i, count)
    return activate(z, act)


@device
def write_end(row, i, own, affine, act, past):
    """One vector of y, of which the first `own` lanes are results and the others zero."""
    store_result(row.y, i, keep(result_of(row, i, own, affine, act), own), None, past)


@device
def write_vector(row, i, count, affine, act, past):
    """One vector of y, zeros where x is not valid.

    Each index is read before it is written: y may be x, skip or residual itself.
    """
    store_result(row.y, i, only_valid(row.mask, i, result_of(row, i, count, affine, act)), count, past)


@device
def upstream(row, i, count, by, act):
    """(dz, d) of one vector, d = (x + skip - K) * rstd; both are zero where x is not valid and from lane `count` on.

    What d lacks to x_hat is the same for a whole block: the coefficients have it.
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
def write_gradient(row, i, count, dz, d, by, past):
    """One vector of dx and dresidual."""
    store_result(row.y, i, only_valid(row.mask, i, gradient_of(dz, d, by)), count, past)
    store(row.dresidual, i, dz, count)
