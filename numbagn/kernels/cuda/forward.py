"""The forward pass on GPUs: in one pass over x where a group fits the registers of a block, else sums, then y.

Grids are one-dimensional. What a kernel is made for (dtypes, threads, options) are constants of its closure: each
factory gives one kernel for one set of them. Sizes and strides count elements, addresses are integers.
"""

from functools import cache

import numpy as np
from numba import cuda

from .kinds import ITEMSIZE, accumulator_of
from .statistics import FIELDS, LACK, RSTD, SCALE, SHIFT, centred, inverse_std, scale_for, write_coefficients
from .target import (
    ACC,
    activation_of,
    device,
    divide,
    fma,
    keep,
    kept,
    kernel,
    lane_sum,
    lanes_in,
    load,
    load_one,
    pack,
    splat,
    store,
    store_one,
    team_sums,
    unpack,
    unrolled,
    valid_positions,
    warp_any,
)  # fmt: skip


@cache
def summand(kind, skip_kind, count):
    """A function (x, its index, skip, its index): packed x, or packed x + skip in the accumulator's kind."""
    acc = accumulator_of(kind)
    if not skip_kind:

        @device
        def plain(x, index, skip, skip_index):
            return load(x, index, kind, count)

        return plain, kind

    @device
    def both(x, index, skip, skip_index):
        return pack(
            unpack(load(x, index, kind, count), acc) + unpack(load(skip, skip_index, skip_kind, count), acc), acc
        )

    return both, acc


@cache
def parameter(kind, acc, count, lanewise, default):
    """A function (address, index, given) that gives a weight or bias: lanes of it, or one number for all lanes."""
    one = load_one(kind)
    scalar = ACC[acc]
    if lanewise:

        @device
        def of_lanes(address, index, given):
            if given:
                return unpack(load(address, index, kind, count), acc)
            return splat(default, acc, count)

        return of_lanes

    @device
    def of_all(address, index, given):
        if given:
            return scalar(one(address, index))
        return scalar(default)

    return of_all


@cache
def element(kind, res_kind, act, count):
    """A function that normalizes and writes one packed x: the formula of y."""
    activate, acc = activation_of(act), accumulator_of(kind)

    @device
    def write(v, res, res_index, y, y_index, scale, shift, lack, a, b):
        z = fma(centred(unpack(v, acc), scale, shift, lack), a, b)
        if res_kind:
            z = z + unpack(load(res, res_index, res_kind, count), acc)
        store(y, y_index, kind, activate(z))

    return write


@cache
def channel_coefficients(acc, w_kind, b_kind, m_kind, r_kind, channels, threads):
    """A function that fills a block's table with what its channels, from `first` on, are normalized by, channels last.

    Field f of channel i stands at f * channels + i: those of `write_coefficients`, then weight and bias. The rstd of
    group 0 stands at `rstd_at`; `own` is shared memory of FIELDS values a thread. The thread is an argument, since
    Numba's simulator lends `cuda` to the module of a running kernel only.
    """
    weight, bias = parameter(w_kind, acc, 1, False, 1.0), parameter(b_kind, acc, 1, False, 0.0)
    coefficients, get_mean, get_rstd = write_coefficients(acc), load_one(m_kind), load_one(r_kind)

    @device
    def fill(table, own, thread, first, C, n, G, D_mul, D_shift, mean, rstd, rstd_at, w, w_at, w_c, b, b_at, b_c):
        for i in range(thread, channels, threads):
            c = first + i
            if c < C:
                group = n * G + divide(c, D_mul, D_shift)
                r = np.float64(get_rstd(rstd, rstd_at + group))
                coefficients(own, thread * FIELDS, np.float64(get_mean(mean, group)), 0.0, r)
                for f in range(FIELDS):
                    table[f * channels + i] = own[thread * FIELDS + f]
                table[FIELDS * channels + i] = weight(w, w_at + c, w_c)
                table[(FIELDS + 1) * channels + i] = bias(b, b_at + c, b_c)

    return fill


@cache
def column_coefficients(acc, count, columns):
    """A function (table, column): the fields of that table for the channels of one column, as lanes."""
    in_lanes = lanes_in(acc, count)

    @device
    def of_column(table, column):
        return (
            in_lanes(table, SHIFT * columns + column), in_lanes(table, LACK * columns + column),
            in_lanes(table, RSTD * columns + column), in_lanes(table, SCALE * columns + column),
            in_lanes(table, FIELDS * columns + column), in_lanes(table, (FIELDS + 1) * columns + column),
        )  # fmt: skip

    return of_column


@cache
def whole(kind, skip_kind, res_kind, w_kind, b_kind, act, count, lanewise, vectors, team, threads, padded):
    """One pass: a team of threads holds a group in registers, `vectors` packed values a thread."""
    acc = accumulator_of(kind)
    scalar, teams = ACC[acc], threads // team
    read, held = summand(kind, skip_kind, count)
    words = vectors * max(1, ITEMSIZE[held] * count // 4)
    sums, next_scale, coefficients = team_sums(team, acc), scale_for(acc), write_coefficients(acc)
    weight, bias = parameter(w_kind, acc, count, lanewise, 1.0), parameter(b_kind, acc, count, lanewise, 0.0)
    write = element(kind, res_kind, act, count)
    put, places = store_one("float64"), teams * FIELDS
    zero, one = scalar(0.0), scalar(1.0)

    @device
    def finish(
        j, state, registers, thread, size, S, S_mul, S_shift, valid, n, c, res, res_n, res_r, y, y_n, y_r, w, w_n, w_c,
        b, b_n, b_c, scale, shift, lack, r,
    ):  # fmt: skip
        e = (thread + j * team) * count
        if e < size:
            d = divide(e, S_mul, S_shift)
            s = e - d * S
            if s < valid:
                a = weight(w, n * w_n + (c + d), w_c) * r
                write(
                    kept(registers, j, held, count), res, n * res_n + (c + d) * res_r + s, y,
                    n * y_n + (c + d) * y_r + s, scale, shift, lack, a, bias(b, n * b_n + (c + d), b_c),
                )  # fmt: skip
            else:
                store(y, n * y_n + (c + d) * y_r + s, kind, splat(0.0, kind, count))
        return state

    @device
    def add(j, lanes, registers, scale):
        return fma(unpack(kept(registers, j, held, count), acc), scale, lanes)

    @device
    def add_differences(j, both, registers, scale, m, thread, size, S, S_mul, S_shift, valid):
        lanes, lanes_2 = both
        e = (thread + j * team) * count
        if e < size:
            s = e - divide(e, S_mul, S_shift) * S if padded else 0
            if s < valid:
                d = fma(unpack(kept(registers, j, held, count), acc), scale, -m)
                lanes = lanes + d
                lanes_2 = fma(d, d, lanes_2)
        return lanes, lanes_2

    finish_all, sum_all, sum_differences = (unrolled(body, vectors) for body in (finish, add, add_differences))

    @kernel(threads)
    def forward_whole(
        x, skip, res, y, w, b, lengths, stats, groups, G, G_mul, G_shift, D, S, S_mul, S_shift, inner, x_n, x_r, skip_n,
        skip_r, res_n, res_r, y_n, y_r, w_n, w_c, b_n, b_c, eps,
    ):  # fmt: skip
        registers = cuda.local.array(words, np.uint32)
        shared = cuda.shared.array(places, scalar)
        thread = cuda.threadIdx.x % team
        place = cuda.threadIdx.x // team
        group = cuda.blockIdx.x * teams + place
        n = divide(group, G_mul, G_shift)
        c = (group - n * G) * D
        size = D * S
        valid = S
        if group >= groups:
            size = 0
        elif padded:
            valid = valid_positions(lengths, n, inner, S)
        elements = D * valid

        for j in range(vectors):
            e = (thread + j * team) * count
            v = pack(splat(0.0, held, count), held)
            if e < size:
                d = divide(e, S_mul, S_shift)
                s = e - d * S
                if s < valid:
                    v = read(x, n * x_n + (c + d) * x_r + s, skip, n * skip_n + (c + d) * skip_r + s)
            keep(registers, j, v)

        scale = one
        m = zero
        total = zero
        squares = zero
        again = True
        while again:
            total, _ = sums(lane_sum(sum_all(0, splat(0.0, held, count), registers, scale)), zero)
            m = total / scalar(max(elements, 1))
            nothing = splat(0.0, held, count), splat(0.0, held, count)
            lanes, lanes_2 = sum_differences(0, nothing, registers, scale, m, thread, size, S, S_mul, S_shift, valid)
            total, squares = sums(lane_sum(lanes), lane_sum(lanes_2))
            wanted = next_scale(squares, m, scale, eps)
            again = wanted != scale
            if team <= 32:
                again = warp_any(again)
            scale = wanted

        if thread == 0 and group < groups:
            correction = np.float64(total) / max(elements, 1)
            variance = np.float64(squares) / max(elements, 1) - correction * correction
            mean = np.float64(m) / scale
            correction = correction / scale
            rstd = inverse_std(variance, eps, np.float64(scale)) if elements > 0 else 0.0
            exact = mean + correction
            put(stats, group, exact)
            put(stats, groups + group, rstd)
            coefficients(shared, place * FIELDS, exact, (mean - exact) + correction, rstd)
        cuda.syncthreads()
        first = place * FIELDS
        shift, lack, r, scale = zero, zero, zero, one
        if group < groups:
            shift, lack = shared[first + SHIFT], shared[first + LACK]
            r, scale = shared[first + RSTD], shared[first + SCALE]

        finish_all(
            0, 0, registers, thread, size, S, S_mul, S_shift, valid, n, c, res, res_n, res_r, y, y_n, y_r, w, w_n, w_c,
            b, b_n, b_c, scale, shift, lack, r,
        )  # fmt: skip

    return forward_whole
