"""The forward pass on the CPU: y = activation((x + skip - mean) * rstd * weight + bias + residual).

Per memory layout (`..._first`, `..._last`) three steps on a block: sum its parts, settle its statistics, write its
pieces; `forward_kernel`, at the end, runs them over all blocks, in parallel or not. All bounds come from shapes alone
and every step writes only what is its own, so the bits do not depend on how the steps are shared out.
"""

from numba import prange

from .compiled import activate, device, entry
from .geometry import (
    B_C, B_N, C, CHANNELS_FIRST, D, FIRST, G, LAST, N, PART, PARTS, PAST, PIECES, RES_N, RES_R, RUN, S, SETTLE, SKIP_N,
    SKIP_R, SLOT, SLOTS, SUM, SUMS, UNITS, W_C, W_N, WHOLE, WRITE, X_N, X_R, Y_N, Y_R,
)  # fmt: skip
from .memory import (
    accumulate, doubles_at, lanes, load, load_one, offset, pointer, present, splat, store, store_one, stream, streamed,
    until_aligned, values,
)  # fmt: skip
from .moments import centred, difference, final_shift, settle, shifted_sums, shifts, skip_shift
from .vectors import code, fma, lane_sum

# Channels last: rows of one column summed in the accumulator's type, in registers, before float64 takes over.
ROWS_IN_REGISTERS = 16
# Channels first: vectors of a run from which a first, partial one pays that lets the others be aligned. NumPy aligns
# large arrays to 16 bytes, and stores across two cache lines are slow.
ALIGN_FROM = 16


@device
def write_vector(px, ps, pr, py, ix, i_skip, ir, iy, count, half_shift, half_shift_skip, scale, shift, act, past):
    """One vector of y. Each index is read before its own is written: y may be x, skip or residual itself."""
    z = fma(centred(px, ps, ix, i_skip, count, half_shift, half_shift_skip), scale, shift)
    if present(pr):
        z = z + load(pr, ir, count)
    store_result(py, iy, activate(z, act), count, past)


@device
def store_result(ptr, index, value, count, past):
    """Store whole vectors past the caches if asked to; ptr[index] must be aligned then."""
    if count is None and past:
        stream(ptr, index, value)
    else:
        store(ptr, index, value, count)


@device
def coefficients(px, ps, k, mean, lost, rstd):
    """(-K / 2, the same of skip, 2 * rstd, (K - mean) * rstd): x_hat from half differences. The mean is mean + lost."""
    k_skip = skip_shift(px, ps, k, mean)
    return -0.5 * k, -0.5 * k_skip, 2.0 * rstd, (k - mean + k_skip - lost) * rstd


# ------------------------------------------------------------------------------------------------------ channels first


@device
def sum_part_first(dims, u, k, px, ps, partial):
    """Sums over part k of block u, PART consecutive elements."""
    n, g = u // dims[G], u % dims[G]
    size = dims[D] * dims[S]
    x_base, skip_base = n * dims[X_N] + g * size, n * dims[SKIP_N] + g * size
    start = k * dims[PART]
    shift, shift_skip = shifts(px, ps, x_base, skip_base, 1, 0, 0, size)
    total, squares = shifted_sums(
        px, ps, x_base + start, skip_base + start, min(dims[PART], size - start), shift, shift_skip
    )
    at = 2 * (u * dims[PARTS] + k)
    partial[at], partial[at + 1] = total, squares


@device
def settle_block_first(dims, u, px, ps, partial, mean, rstd, eps):
    """Mean and rstd of block u from its partial sums, added in order."""
    n, g = u // dims[G], u % dims[G]
    size = dims[D] * dims[S]
    x_base, skip_base = n * dims[X_N] + g * size, n * dims[SKIP_N] + g * size
    shift, shift_skip = shifts(px, ps, x_base, skip_base, 1, 0, 0, size)
    total, squares = 0.0, 0.0
    for at in range(2 * u * dims[PARTS], 2 * (u + 1) * dims[PARTS], 2):
        total += partial[at]
        squares += partial[at + 1]
    at = 2 * u * dims[PARTS]
    mean[u], partial[at + 1], rstd[u] = settle(
        px, ps, x_base, skip_base, 1, 0, 0, size, shift, shift_skip, total, squares, eps
    )
    partial[at] = final_shift(px, ps, x_base, 1, 0, size, mean[u])


@device
def write_pieces_first(dims, u, low, high, px, ps, pr, py, weight, bias, mean, rstd, partial, act):
    """Pieces low .. high - 1 of block u, each RUN positions of a channel, channel after channel."""
    n, g = u // dims[G], u % dims[G]
    d_count, s_count = dims[D], dims[S]
    at = 2 * u * dims[PARTS]
    half_shift, half_shift_skip, rstd_2, lack = coefficients(px, ps, partial[at], mean[u], partial[at + 1], rstd[u])
    if s_count == 1:
        write_elements_first(dims, n, g, px, ps, pr, py, weight, bias, half_shift, half_shift_skip, rstd_2, lack, act)
        return
    h, h_skip = splat(px, half_shift), splat(px, half_shift_skip)
    width = lanes(px)
    ix, i_skip, ir, iy = n * dims[X_N], n * dims[SKIP_N], n * dims[RES_N], n * dims[Y_N]
    runs = dims[PIECES] // d_count
    c, run = g * d_count + low // runs, low % runs
    for _ in range(low, high):
        w, b = weight[n * dims[W_N] + c * dims[W_C]], bias[n * dims[B_N] + c * dims[B_C]]
        scale, shift = splat(px, rstd_2 * w), splat(px, lack * w + b)
        i = c * s_count + run * dims[RUN]
        end = min(i + dims[RUN], (c + 1) * s_count)
        aligned, past = i, 0
        if end - i >= ALIGN_FROM * width:
            aligned, past = i + until_aligned(py, iy + i), dims[PAST]
        while i < end:
            if i >= aligned:
                while i + width <= end:
                    write_vector(
                        px, ps, pr, py, ix + i, i_skip + i, ir + i, iy + i, None, h, h_skip, scale, shift, act, past
                    )
                    i += width
            count = (aligned if i < aligned else end) - i
            write_vector(px, ps, pr, py, ix + i, i_skip + i, ir + i, iy + i, count, h, h_skip, scale, shift, act, 0)
            i += count
        run += 1
        if run == runs:
            c, run = c + 1, 0


@device
def write_elements_first(dims, n, g, px, ps, pr, py, weight, bias, half_shift, half_shift_skip, rstd_2, lack, act):
    """Group g of sample n where S = 1: each channel is one element."""
    d_count = dims[D]
    h, h_skip = splat(px, half_shift), splat(px, half_shift_skip)
    pw, pb = values(weight), values(bias)
    c = g * d_count
    wi, bi = n * dims[W_N] + c * dims[W_C], n * dims[B_N] + c * dims[B_C]
    ix, i_skip, ir, iy = n * dims[X_N] + c, n * dims[SKIP_N] + c, n * dims[RES_N] + c, n * dims[Y_N] + c
    width = lanes(px)
    d = 0
    while d + width <= d_count:
        w, b = along(pw, wi, d, dims[W_C], None), along(pb, bi, d, dims[B_C], None)
        write_vector(
            px, ps, pr, py, ix + d, i_skip + d, ir + d, iy + d, None, h, h_skip, w * rstd_2, fma(w, lack, b), act, 0
        )
        d += width
    if d < d_count:
        count = d_count - d
        w, b = along(pw, wi, d, dims[W_C], count), along(pb, bi, d, dims[B_C], count)
        write_vector(
            px, ps, pr, py, ix + d, i_skip + d, ir + d, iy + d, count, h, h_skip, w * rstd_2, fma(w, lack, b), act, 0
        )


@device
def along(ptr, base, d, stride, count):
    """A parameter's values for a vector of channels from d on; stride 0: one value for all."""
    if stride == 0:
        return splat(ptr, load_one(ptr, base))
    return load(ptr, base + d, count)


# ------------------------------------------------------------------------------------------------------- channels last


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


@device
def sum_column(px, ps, ix, i_skip, rows, x_stride, skip_stride, slot, sums, c, pitch, count):
    """Add `rows` rows of the vector of channels at c to that column's sums."""
    k, k_skip = load(slot, c, None), load(slot, pitch + c, None)
    s = splat(px, 0.0)
    q = s
    for r in range(rows):
        d = difference(px, ps, ix + r * x_stride + c, i_skip + r * skip_stride + c, k, k_skip, count)
        s, q = s + d, fma(d, d, q)
    accumulate(sums, c, s)
    accumulate(sums, pitch + c, q)


@device
def clear(ptr, start, stop):
    """Zeros in whole vectors from start to stop."""
    for i in range(start, stop, lanes(ptr)):
        store(ptr, i, splat(ptr, 0.0), None)


@device
def sum_part_last(dims, n, k, px, ps, slot, partial):
    """Sums per group over part k of sample n, PART rows. Scratch: K, K of skip, then float64 sums by channel."""
    c_count, g_count, d_count, s_count = dims[C], dims[G], dims[D], dims[S]
    x_base, skip_base = n * dims[X_N], n * dims[SKIP_N]
    width = lanes(px)
    pitch = pitch_of(c_count, width)
    sums = doubles_at(offset(slot, 2 * pitch))
    clear(sums, 0, 2 * pitch)
    for g in range(g_count):
        start = g * d_count
        shift, shift_skip = shifts(px, ps, x_base + start, skip_base + start, s_count, dims[X_R], dims[SKIP_R], d_count)
        for c in range(start, start + d_count):
            store_one(slot, c, shift)
            store_one(slot, pitch + c, shift_skip)
    end = min((k + 1) * dims[PART], s_count)
    full = c_count // width * width
    for r in range(k * dims[PART], end, ROWS_IN_REGISTERS):
        rows = min(ROWS_IN_REGISTERS, end - r)
        ix, i_skip = x_base + r * dims[X_R], skip_base + r * dims[SKIP_R]
        for c in range(0, full, width):
            sum_column(px, ps, ix, i_skip, rows, dims[X_R], dims[SKIP_R], slot, sums, c, pitch, None)
        if full < c_count:
            sum_column(px, ps, ix, i_skip, rows, dims[X_R], dims[SKIP_R], slot, sums, full, pitch, c_count - full)
    at = 2 * (n * dims[PARTS] + k) * g_count
    for g in range(g_count):
        partial[at + 2 * g] = group_sum(sums, g * d_count, d_count)
        partial[at + 2 * g + 1] = group_sum(sums, pitch + g * d_count, d_count)


@device
def pitch_of(c_count, width):
    """Values from one row of scratch to the next: C rounded up to whole vectors."""
    return (c_count + width - 1) // width * width


@device
def settle_block_last(dims, n, px, ps, partial, mean, rstd, eps):
    """Mean and rstd of every group of sample n from the partial sums, added in order."""
    g_count, d_count, s_count = dims[G], dims[D], dims[S]
    for g in range(g_count):
        x_base, skip_base = n * dims[X_N] + g * d_count, n * dims[SKIP_N] + g * d_count
        shift, shift_skip = shifts(px, ps, x_base, skip_base, s_count, dims[X_R], dims[SKIP_R], d_count)
        total, squares = 0.0, 0.0
        for k in range(dims[PARTS]):
            at = 2 * ((n * dims[PARTS] + k) * g_count + g)
            total += partial[at]
            squares += partial[at + 1]
        u, at = n * g_count + g, 2 * (n * dims[PARTS] * g_count + g)
        mean[u], partial[at + 1], rstd[u] = settle(
            px, ps, x_base, skip_base, s_count, dims[X_R], dims[SKIP_R], d_count, shift, shift_skip, total, squares, eps
        )
        partial[at] = final_shift(px, ps, x_base, s_count, dims[X_R], d_count, mean[u])


@device
def write_piece_last(dims, n, piece, px, ps, pr, py, slot, weight, bias, mean, rstd, partial, act):
    """RUN rows of sample n. Scratch: both half shifts, scale and shift by channel."""
    c_count, g_count, d_count, s_count = dims[C], dims[G], dims[D], dims[S]
    width = lanes(px)
    pitch = pitch_of(c_count, width)
    for g in range(g_count):
        u = n * g_count + g
        at = 2 * (n * dims[PARTS] * g_count + g)
        half_shift, half_shift_skip, rstd_2, lack = coefficients(px, ps, partial[at], mean[u], partial[at + 1], rstd[u])
        for c in range(g * d_count, (g + 1) * d_count):
            w = weight[n * dims[W_N] + c * dims[W_C]]
            store_one(slot, c, half_shift)
            store_one(slot, pitch + c, half_shift_skip)
            store_one(slot, 2 * pitch + c, rstd_2 * w)
            store_one(slot, 3 * pitch + c, lack * w + bias[n * dims[B_N] + c * dims[B_C]])
    full = c_count // width * width
    for r in range(piece * dims[RUN], min((piece + 1) * dims[RUN], s_count)):
        ix, i_skip = n * dims[X_N] + r * dims[X_R], n * dims[SKIP_N] + r * dims[SKIP_R]
        ir, iy = n * dims[RES_N] + r * dims[RES_R], n * dims[Y_N] + r * dims[Y_R]
        for c in range(0, full, width):
            write_column(px, ps, pr, py, ix, i_skip, ir, iy, slot, c, pitch, None, act)
        if full < c_count:
            write_column(px, ps, pr, py, ix, i_skip, ir, iy, slot, full, pitch, c_count - full, act)


@device
def write_column(px, ps, pr, py, ix, i_skip, ir, iy, slot, c, pitch, count, act):
    """y for the vector of channels at c of a row."""
    h, h_skip = load(slot, c, None), load(slot, pitch + c, None)
    scale, shift = load(slot, 2 * pitch + c, None), load(slot, 3 * pitch + c, None)
    write_vector(px, ps, pr, py, ix + c, i_skip + c, ir + c, iy + c, count, h, h_skip, scale, shift, act, 0)


# ------------------------------------------------------------------------------------------------------ all the blocks


@device
def steps_first(phase, low, high, dims, eps, px, ps, pr, py, weight, bias, mean, rstd, partial, act):
    """Channels first: steps low .. high - 1 of a phase, taken together as far as they are of one block."""
    parts, pieces = dims[PARTS], dims[PIECES]
    per_block = parts if phase == SUM else (pieces if phase == WRITE else 1)
    while low < high:
        u, first = low // per_block, low % per_block
        count = min(high - low, per_block - first)
        if phase in (WHOLE, SUM):
            for k in range(first, parts if phase == WHOLE else first + count):
                sum_part_first(dims, u, k, px, ps, partial)
        if phase in (WHOLE, SETTLE):
            settle_block_first(dims, u, px, ps, partial, mean, rstd, eps)
        if phase in (WHOLE, WRITE):
            until = pieces if phase == WHOLE else first + count
            write_pieces_first(dims, u, first, until, px, ps, pr, py, weight, bias, mean, rstd, partial, act)
        low += count
    if dims[PAST] != 0:
        streamed()


@device
def steps_last(phase, low, high, dims, eps, px, ps, pr, py, weight, bias, mean, rstd, partial, slot, act):
    """Channels last: steps low .. high - 1 of a phase."""
    parts, pieces = dims[PARTS], dims[PIECES]
    for i in range(low, high):
        if phase == WHOLE:
            for k in range(parts):
                sum_part_last(dims, i, k, px, ps, slot, partial)
            settle_block_last(dims, i, px, ps, partial, mean, rstd, eps)
            for piece in range(pieces):
                write_piece_last(dims, i, piece, px, ps, pr, py, slot, weight, bias, mean, rstd, partial, act)
        elif phase == SUM:
            sum_part_last(dims, i // parts, i % parts, px, ps, slot, partial)
        elif phase == SETTLE:
            settle_block_last(dims, i, px, ps, partial, mean, rstd, eps)
        else:
            n, piece = i // pieces, i % pieces
            write_piece_last(dims, n, piece, px, ps, pr, py, slot, weight, bias, mean, rstd, partial, act)


@device
def steps_in(phase, dims):
    """How many steps a phase has."""
    if phase == SUM:
        return dims[UNITS] * dims[SUMS]
    if phase == WRITE:
        return dims[UNITS] * dims[PIECES]
    return dims[UNITS]


@entry
def forward_kernel(layout, x_kind, skip_kind, residual_kind, activation, parallel, sources):
    """Make the forward kernel of one specialisation; all arguments are integers, so that it can be cached.

    The kernel reads flat arrays (storage kinds as given, parameters and scratch in the accumulator's type, statistics
    and partial sums in float64) by the strides in `dims`, and fills y and `work`: mean, rstd, partial sums.
    """

    def forward(dims, eps, x, skip, residual, y, weight, bias, work, scratch):
        if sources == 0:
            return
        count = dims[N] * dims[G]
        mean, rstd, partial = work[:count], work[count : 2 * count], work[2 * count :]
        for phase in range(dims[FIRST], dims[LAST]):
            steps = steps_in(phase, dims)
            tasks = min(steps, dims[SLOTS]) if parallel else 1
            # over the (n, g) blocks or parts of them, a stretch of neighbours to each task
            for t in prange(tasks):
                low, high = t * steps // tasks, (t + 1) * steps // tasks
                px, ps = pointer(x, x_kind), pointer(skip, skip_kind)
                pr, py = pointer(residual, residual_kind), pointer(y, x_kind)
                if layout == CHANNELS_FIRST:
                    steps_first(
                        phase, low, high, dims, eps, px, ps, pr, py, weight, bias, mean, rstd, partial, code(activation)
                    )
                else:
                    slot = offset(values(scratch), t * dims[SLOT])
                    steps_last(
                        phase, low, high, dims, eps, px, ps, pr, py, weight, bias, mean, rstd, partial, slot,
                        code(activation),
                    )  # fmt: skip

    return forward
