"""The forward pass on the CPU: y = activation((x + skip - mean) * rstd * weight + bias + residual).

Per memory layout (`..._first`, `..._last`) three steps on a block: sum its parts, settle its statistics, write its
pieces; `forward_kernel`, at the end, runs them over all blocks, in parallel or not. All bounds come from shapes alone
and every step writes only what is its own, so the bits do not depend on how the steps are shared out.
"""

from numba import prange

from .compiled import activate, device, entry
from .geometry import (
    B_C, B_N, C, CHANNELS_FIRST, D, DENSE, FIRST, G, LAST, N, PART, PARTS, PAST, PIECES, PITCH, RES_N, RES_R, ROW, RUN,
    S, SETTLE, SKIP_N, SKIP_R, SLOT, SLOTS, SUM, SUMS, UNITS, W_C, W_N, WHOLE, WRITE, X_N, X_R, Y_N, Y_R,
)  # fmt: skip
from .memory import (
    accumulate, doubles_at, lanes, load, load_one, offset, pointer, present, splat, store, store_one, stream, streamed,
    until_aligned, values,
)  # fmt: skip
from .moments import centred, difference, final_shift, settle, shifted_sums, shifts, skip_shift
from .vectors import code, fma, join, lane_sum

# Channels last: rows of one column summed in the accumulator's type, in registers, before float64 takes over.
ROWS_IN_REGISTERS = 16
# Vectors of a run from which a first, partial one pays that lets the others be aligned. NumPy aligns large arrays to 16
# bytes, and stores across two cache lines are slow.
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
def write_pieces_first(dims, u, low, high, px, ps, pr, py, weight, bias, slot, mean, rstd, partial, act):
    """Pieces low .. high - 1 of block u, each RUN consecutive elements.

    The last comes first: of a block larger than a cache, what was summed last is still there.
    """
    n, g, size = u // dims[G], u % dims[G], dims[D] * dims[S]
    at, block = 2 * u * dims[PARTS], g * size
    half_shift, half_shift_skip, rstd_2, lack = coefficients(px, ps, partial[at], mean[u], partial[at + 1], rstd[u])
    ix, i_skip = n * dims[X_N] + block, n * dims[SKIP_N] + block
    ir, iy = n * dims[RES_N] + block, n * dims[Y_N] + block
    for piece in range(high - 1, low - 1, -1):
        start = piece * dims[RUN]
        stop = min(start + dims[RUN], size)
        if dims[S] < lanes(px):
            write_elements(
                dims, n, block, start, stop, ix, i_skip, ir, iy, px, ps, pr, py, weight, bias, slot, half_shift,
                half_shift_skip, rstd_2, lack, act,
            )  # fmt: skip
        else:
            write_channels(
                dims, n, g, start, stop, ix, i_skip, ir, iy, px, ps, pr, py, weight, bias, half_shift, half_shift_skip,
                rstd_2, lack, act,
            )  # fmt: skip


@device
def write_channels(
    dims, n, g, start, stop, ix, i_skip, ir, iy, px, ps, pr, py, weight, bias, half_shift, half_shift_skip, rstd_2,
    lack, act,
):  # fmt: skip
    """Elements start .. stop - 1 of a block whose channels are a vector or longer, in whole aligned vectors."""
    width, s_count = lanes(px), dims[S]
    h, h_skip = splat(px, half_shift), splat(px, half_shift_skip)
    i, aligned, past = start, start, 0
    if stop - start >= ALIGN_FROM * width:
        aligned, past = start + until_aligned(py, iy + start), dims[PAST]
    c = start // s_count
    end = (c + 1) * s_count
    wi, bi = n * dims[W_N] + g * dims[D] * dims[W_C], n * dims[B_N] + g * dims[D] * dims[B_C]
    w, b = weight[wi + c * dims[W_C]], bias[bi + c * dims[B_C]]
    scale, shift = splat(px, rstd_2 * w), splat(px, lack * w + b)
    while i < stop:
        if i >= aligned:
            last = min(stop, end) - width
            while i <= last:
                write_vector(
                    px, ps, pr, py, ix + i, i_skip + i, ir + i, iy + i, None, h, h_skip, scale, shift, act, past
                )
                i += width
        # then one that is not whole, or belongs to two channels
        count = min((aligned if i < aligned else stop) - i, width)
        own = end - i
        v_scale, v_shift = scale, shift
        if own < count or own == 0:
            c, end = c + 1, end + s_count
            if i + own < stop:
                w, b = weight[wi + c * dims[W_C]], bias[bi + c * dims[B_C]]
                scale, shift = splat(px, rstd_2 * w), splat(px, lack * w + b)
            if own == 0:
                continue
            v_scale, v_shift = join(v_scale, scale, own), join(v_shift, shift, own)
        if count == width:
            write_vector(
                px, ps, pr, py, ix + i, i_skip + i, ir + i, iy + i, None, h, h_skip, v_scale, v_shift, act, past
            )
        else:
            write_vector(px, ps, pr, py, ix + i, i_skip + i, ir + i, iy + i, count, h, h_skip, v_scale, v_shift, act, 0)
        i += count


@device
def write_elements(
    dims, n, block, start, stop, ix, i_skip, ir, iy, px, ps, pr, py, weight, bias, slot, half_shift, half_shift_skip,
    rstd_2, lack, act,
):  # fmt: skip
    """Elements start .. stop - 1 of a block whose channels are shorter than a vector; `slot` as `expand` left it."""
    h, h_skip = splat(px, half_shift), splat(px, half_shift_skip)
    width = lanes(px)
    pw, wi, w_step, pb, bi, b_step = element_parameters(dims, n, block, weight, bias, slot)
    i, aligned, past = start, start, 0
    if stop - start >= ALIGN_FROM * width:
        aligned, past = start + until_aligned(py, iy + start), dims[PAST]
    while i < stop:
        if i >= aligned:
            while i + width <= stop:
                w, b = along(pw, wi, i, w_step, None), along(pb, bi, i, b_step, None)
                write_vector(
                    px, ps, pr, py, ix + i, i_skip + i, ir + i, iy + i, None, h, h_skip, w * rstd_2, fma(w, lack, b),
                    act, past,
                )  # fmt: skip
                i += width
        count = (aligned if i < aligned else stop) - i
        if count > 0:
            w, b = along(pw, wi, i, w_step, count), along(pb, bi, i, b_step, count)
            write_vector(
                px, ps, pr, py, ix + i, i_skip + i, ir + i, iy + i, count, h, h_skip, w * rstd_2, fma(w, lack, b),
                act, 0,
            )  # fmt: skip
            i += count


@device
def along(ptr, base, i, stride, count):
    """A parameter's values for a vector of elements from i on; stride 0: one value for all."""
    if stride == 0:
        return splat(ptr, load_one(ptr, base))
    return load(ptr, base + i, count)


@device
def expand(dims, n, expanded, width, weight, bias, slot):
    """Where channels are short, but not single elements: weight and bias of sample n for each element, in `slot`.

    Gives the sample they now stand there for; `expanded` is the one they stood for before, -1 for none.
    """
    s_count = dims[S]
    if s_count == 1 or s_count >= width or expanded == n or (expanded >= 0 and dims[W_N] == 0 and dims[B_N] == 0):
        return expanded
    for c in range(dims[C]):
        w, b = weight[n * dims[W_N] + c * dims[W_C]], bias[n * dims[B_N] + c * dims[B_C]]
        for i in range(c * s_count, (c + 1) * s_count):
            store_one(slot, i, w)
            store_one(slot, dims[PITCH] + i, b)
    return n


@device
def element_parameters(dims, n, first, weight, bias, slot):
    """Where weight and bias stand for each element of a block whose channels are short, from element `first` on.

    (pointer, index, step) of both; a step of 0 means that one value is for all.
    """
    if dims[S] == 1:
        return (
            values(weight), n * dims[W_N] + first * dims[W_C], dims[W_C],
            values(bias), n * dims[B_N] + first * dims[B_C], dims[B_C],
        )  # fmt: skip
    return slot, first, 1, offset(slot, dims[PITCH]), first, 1


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
    """Add `rows` rows of the vector at c to that column's sums."""
    k, k_skip = load(slot, c, None), load(slot, pitch + c, None)
    s = splat(px, 0.0)
    q = s
    for r in range(rows):
        d = difference(px, ps, ix + r * x_stride + c, i_skip + r * skip_stride + c, k, k_skip, count)
        s, q = s + d, fma(d, d, q)
    accumulate(sums, c, s)
    accumulate(sums, pitch + c, q)


@device
def sum_columns(px, ps, ix, i_skip, rows, x_stride, skip_stride, slot, sums, c, pitch):
    """`sum_column` for two whole vectors side by side."""
    c1 = c + lanes(px)
    k0, k1, j0, j1 = (
        load(slot, c, None),
        load(slot, c1, None),
        load(slot, pitch + c, None),
        load(slot, pitch + c1, None),
    )
    s0 = splat(px, 0.0)
    q0, s1, q1 = s0, s0, s0
    for _ in range(rows):
        d0 = difference(px, ps, ix + c, i_skip + c, k0, j0, None)
        d1 = difference(px, ps, ix + c1, i_skip + c1, k1, j1, None)
        s0, q0 = s0 + d0, fma(d0, d0, q0)
        s1, q1 = s1 + d1, fma(d1, d1, q1)
        ix, i_skip = ix + x_stride, i_skip + skip_stride
    accumulate(sums, c, s0)
    accumulate(sums, pitch + c, q0)
    accumulate(sums, c1, s1)
    accumulate(sums, pitch + c1, q1)


@device
def clear(ptr, start, stop):
    """Zeros in whole vectors from start to stop."""
    for i in range(start, stop, lanes(ptr)):
        store(ptr, i, splat(ptr, 0.0), None)


@device
def repeat(ptr, count, end):
    """Continue the first `count` values periodically up to `end`."""
    for i in range(count, end):
        store_one(ptr, i, load_one(ptr, i - count))


@device
def sum_parts_last(dims, n, low, high, px, ps, slot, partial):
    """Sums per group over parts low .. high - 1 of sample n, each PART positions.

    Scratch: K and K of skip for each value of a row, then the float64 sums.
    """
    c_count, d_count, row, pitch, width = dims[C], dims[D], dims[ROW], dims[PITCH], lanes(px)
    x_base, skip_base = n * dims[X_N], n * dims[SKIP_N]
    for g in range(dims[G]):
        start = g * d_count
        shift, shift_skip = shifts(px, ps, x_base + start, skip_base + start, dims[S], dims[X_R], dims[SKIP_R], d_count)
        for c in range(start, start + d_count):
            store_one(slot, c, shift)
            store_one(slot, pitch + c, shift_skip)
    repeat(slot, c_count, row)
    repeat(offset(slot, pitch), c_count, row)
    sums = doubles_at(offset(slot, 2 * pitch))
    positions = row // c_count
    x_step, skip_step = positions * dims[X_R], positions * dims[SKIP_R]
    for k in range(low, high):
        clear(sums, 0, 2 * pitch)
        r, end = k * dims[PART], min((k + 1) * dims[PART], dims[S])
        while r < end:
            rows, length = min(ROWS_IN_REGISTERS, (end - r) // positions), row
            if rows == 0:  # the last positions do not fill a row
                rows, length = 1, (end - r) * c_count
            ix, i_skip = x_base + r * dims[X_R], skip_base + r * dims[SKIP_R]
            c = 0
            while c + 2 * width <= length:
                sum_columns(px, ps, ix, i_skip, rows, x_step, skip_step, slot, sums, c, pitch)
                c += 2 * width
            while c + width <= length:
                sum_column(px, ps, ix, i_skip, rows, x_step, skip_step, slot, sums, c, pitch, None)
                c += width
            if c < length:
                sum_column(px, ps, ix, i_skip, rows, x_step, skip_step, slot, sums, c, pitch, length - c)
            r += rows * positions
        fold(sums, c_count, row)
        fold(offset(sums, pitch), c_count, row)
        at = 2 * (n * dims[PARTS] + k) * dims[G]
        for g in range(dims[G]):
            partial[at + 2 * g] = group_sum(sums, g * d_count, d_count)
            partial[at + 2 * g + 1] = group_sum(sums, pitch + g * d_count, d_count)


@device
def fold(sums, count, row):
    """Add to the first `count` sums those that a row repeats."""
    width = lanes(sums)
    for start in range(count, row, count):
        for c in range(0, count, width):
            accumulate(sums, c, load(sums, start + c, min(width, count - c)))


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
def write_pieces_last(dims, n, low, high, px, ps, pr, py, slot, weight, bias, mean, rstd, partial, act):
    """Pieces low .. high - 1 of sample n, each RUN positions, the last first.

    Scratch: both half shifts, scale and shift for each value of a row, and again for the vector after it.
    """
    c_count, d_count, s_count, pitch = dims[C], dims[D], dims[S], dims[PITCH]
    for g in range(dims[G]):
        u = n * dims[G] + g
        at = 2 * (n * dims[PARTS] * dims[G] + g)
        half_shift, half_shift_skip, rstd_2, lack = coefficients(px, ps, partial[at], mean[u], partial[at + 1], rstd[u])
        for c in range(g * d_count, (g + 1) * d_count):
            w = weight[n * dims[W_N] + c * dims[W_C]]
            store_one(slot, c, half_shift)
            store_one(slot, pitch + c, half_shift_skip)
            store_one(slot, 2 * pitch + c, rstd_2 * w)
            store_one(slot, 3 * pitch + c, lack * w + bias[n * dims[B_N] + c * dims[B_C]])
    for table in range(4):
        repeat(offset(slot, table * pitch), c_count, dims[ROW] + lanes(px))
    for piece in range(high - 1, low - 1, -1):
        start, stop = piece * dims[RUN], min((piece + 1) * dims[RUN], s_count)
        rows, length = stop - start, c_count
        if dims[DENSE] != 0:
            rows, length = 1, rows * c_count
        for r in range(start, start + rows):
            ix, i_skip = n * dims[X_N] + r * dims[X_R], n * dims[SKIP_N] + r * dims[SKIP_R]
            ir, iy = n * dims[RES_N] + r * dims[RES_R], n * dims[Y_N] + r * dims[Y_R]
            write_span(dims, ix, i_skip, ir, iy, length, px, ps, pr, py, slot, act)


@device
def write_span(dims, ix, i_skip, ir, iy, length, px, ps, pr, py, slot, act):
    """y for `length` consecutive values, the first at the beginning of a row, in whole aligned vectors."""
    width, row, pitch = lanes(px), dims[ROW], dims[PITCH]
    i, c, aligned, past = 0, 0, 0, 0
    if length >= ALIGN_FROM * width:
        aligned, past = until_aligned(py, iy), dims[PAST]
    while i < length:
        if i >= aligned:
            last = min(length - width, i + row - 1 - c)
            while i <= last:
                write_column(px, ps, pr, py, ix + i, i_skip + i, ir + i, iy + i, slot, c, pitch, None, act, past)
                i, c = i + width, c + width
            if c >= row:
                c -= row
                continue
        count = (aligned if i < aligned else length) - i
        if count > 0:
            write_column(px, ps, pr, py, ix + i, i_skip + i, ir + i, iy + i, slot, c, pitch, count, act, 0)
            i, c = i + count, c + count


@device
def write_column(px, ps, pr, py, ix, i_skip, ir, iy, slot, c, pitch, count, act, past):
    """y for one vector whose coefficients stand at c of the tables."""
    h, h_skip = load(slot, c, None), load(slot, pitch + c, None)
    scale, shift = load(slot, 2 * pitch + c, None), load(slot, 3 * pitch + c, None)
    write_vector(px, ps, pr, py, ix, i_skip, ir, iy, count, h, h_skip, scale, shift, act, past)


# ------------------------------------------------------------------------------------------------------ all the blocks


@device
def steps_first(phase, low, high, dims, eps, px, ps, pr, py, slot, weight, bias, mean, rstd, partial, act):
    """Channels first: steps low .. high - 1 of a phase, taken together as far as they are of one block."""
    parts, pieces = dims[PARTS], dims[PIECES]
    per_block = parts if phase == SUM else (pieces if phase == WRITE else 1)
    expanded = -1
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
            expanded = expand(dims, u // dims[G], expanded, lanes(px), weight, bias, slot)
            write_pieces_first(dims, u, first, until, px, ps, pr, py, weight, bias, slot, mean, rstd, partial, act)
        low += count
    if dims[PAST] != 0:
        streamed()


@device
def steps_last(phase, low, high, dims, eps, px, ps, pr, py, slot, weight, bias, mean, rstd, partial, act):
    """Channels last: steps low .. high - 1 of a phase, taken together as far as they are of one sample."""
    parts, pieces = dims[PARTS], dims[PIECES]
    per_sample = parts if phase == SUM else (pieces if phase == WRITE else 1)
    while low < high:
        n, first = low // per_sample, low % per_sample
        count = min(high - low, per_sample - first)
        if phase in (WHOLE, SUM):
            until = parts if phase == WHOLE else first + count
            sum_parts_last(dims, n, first, until, px, ps, slot, partial)
        if phase in (WHOLE, SETTLE):
            settle_block_last(dims, n, px, ps, partial, mean, rstd, eps)
        if phase in (WHOLE, WRITE):
            until = pieces if phase == WHOLE else first + count
            write_pieces_last(dims, n, first, until, px, ps, pr, py, slot, weight, bias, mean, rstd, partial, act)
        low += count
    if dims[PAST] != 0:
        streamed()


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
                slot = offset(values(scratch), t * dims[SLOT])
                if layout == CHANNELS_FIRST:
                    steps_first(
                        phase, low, high, dims, eps, px, ps, pr, py, slot, weight, bias, mean, rstd, partial,
                        code(activation),
                    )  # fmt: skip
                else:
                    steps_last(
                        phase, low, high, dims, eps, px, ps, pr, py, slot, weight, bias, mean, rstd, partial,
                        code(activation),
                    )  # fmt: skip

    return forward
