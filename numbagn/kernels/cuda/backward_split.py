"""Backward kernels for what no block's registers hold: the sums of each channel, the means of each group, then dx.

Partial sums of dz stand at (n * slices + slice) * C + c, those of dz * x_hat after all of them.
"""

from functools import cache

import numpy as np
from numba import cuda

from .backward import gradient_in, gradient_out, zeros_out
from .forward import channel_coefficients, column_coefficients, parameter
from .kinds import accumulator_of
from .statistics import FIELDS, LACK, RSTD, SCALE, SHIFT, write_coefficients
from .target import (
    ACC,
    block_last,
    divide,
    fma,
    keep,
    kernel,
    lane_sum,
    lanes_in,
    load_one,
    pack,
    splat,
    store_one,
    team_sums,
    valid_positions,
)  # fmt: skip


@cache
def sums_first(
    kind, skip_kind, dy_kind, res_kind, w_kind, b_kind, m_kind, r_kind, act, count, team, threads, padded
):  # fmt: skip
    """The sums of one slice of one channel, channels first: a team of threads each."""
    acc = accumulator_of(kind)
    scalar, teams = ACC[acc], threads // team
    read = gradient_in(kind, skip_kind, dy_kind, res_kind, act, count)
    weight, bias = parameter(w_kind, acc, count, False, 1.0), parameter(b_kind, acc, count, False, 0.0)
    sums, coefficients = team_sums(team, acc), write_coefficients(acc)
    get_mean, get_rstd, put = load_one(m_kind), load_one(r_kind), store_one(acc)
    table_size = teams * FIELDS

    @kernel(threads)
    def backward_sums_first(
        x, skip, dy, res, w, b, lengths, mean, rstd, partial, items, slices, slices_mul, slices_shift, size, partials,
        C, C_mul, C_shift, G, D_mul, D_shift, S, inner, x_n, x_r, skip_n, skip_r, dy_n, dy_r, res_n, res_r, w_n, w_c,
        b_n, b_c,
    ):  # fmt: skip
        table = cuda.shared.array(table_size, scalar)
        place = cuda.threadIdx.x // team
        t = cuda.threadIdx.x % team
        item = cuda.blockIdx.x * teams + place  # (n, c, slice)
        row = divide(item, slices_mul, slices_shift)
        part = item - row * slices
        n = divide(row, C_mul, C_shift)
        c = row - n * C
        if t == 0 and item < items:
            group = n * G + divide(c, D_mul, D_shift)
            coefficients(
                table, place * FIELDS, np.float64(get_mean(mean, group)), 0.0, np.float64(get_rstd(rstd, group))
            )
        cuda.syncthreads()
        sum_dz, sum_x = splat(0.0, acc, count), splat(0.0, acc, count)
        if item < items:
            at = place * FIELDS
            shift, lack, r, scale = table[at + SHIFT], table[at + LACK], table[at + RSTD], table[at + SCALE]
            a, bb = weight(w, n * w_n + c, w_c), bias(b, n * b_n + c, b_c)
            valid = valid_positions(lengths, n, inner, S) if padded else S
            stop = min((part + 1) * size, valid)
            for s in range(part * size + t * count, stop, team * count):
                dz, x_hat = read(
                    x, n * x_n + c * x_r + s, skip, n * skip_n + c * skip_r + s, dy, n * dy_n + c * dy_r + s, res,
                    n * res_n + c * res_r + s, scale, shift, lack, r, a, bb,
                )  # fmt: skip
                sum_dz = sum_dz + dz
                sum_x = fma(dz, x_hat, sum_x)
        one, two = sums(lane_sum(sum_dz), lane_sum(sum_x))
        if t == 0 and item < items:
            out = (n * slices + part) * C + c
            put(partial, out, one)
            put(partial, partials + out, two)

    return backward_sums_first


@cache
def sums_last(
    kind, skip_kind, dy_kind, res_kind, w_kind, b_kind, m_kind, r_kind, act, count, columns, threads, padded
):  # fmt: skip
    """The sums of each channel over one slice of positions, channels last."""
    acc = accumulator_of(kind)
    scalar, rows, channels = ACC[acc], threads // columns, columns * count
    read, put = gradient_in(kind, skip_kind, dy_kind, res_kind, act, count), store_one(acc)
    fill = channel_coefficients(acc, w_kind, b_kind, m_kind, r_kind, channels, threads)
    in_column = column_coefficients(acc, count, columns)
    table_size, own_size, sums_size = channels * (FIELDS + 2), threads * FIELDS, channels * rows

    @kernel(threads)
    def backward_sums_last(
        x, skip, dy, res, w, b, lengths, mean, rstd, partial, slices, slices_mul, slices_shift, size, partials, tiles,
        tiles_mul, tiles_shift, C, G, D_mul, D_shift, S, inner, x_n, x_r, skip_n, skip_r, dy_n, dy_r, res_n, res_r, w_n,
        w_c, b_n, b_c,
    ):  # fmt: skip
        table = cuda.shared.array(table_size, scalar)
        own = cuda.shared.array(own_size, scalar)
        of_dz = cuda.shared.array(sums_size, scalar)
        of_x = cuda.shared.array(sums_size, scalar)
        n, part, tile = block_last(cuda.blockIdx.x, slices, slices_mul, slices_shift, tiles, tiles_mul, tiles_shift)
        valid = valid_positions(lengths, n, inner, S) if padded else S
        stop = min((part + 1) * size, valid)
        fill(
            table, own, cuda.threadIdx.x, tile * channels, C, n, G, D_mul, D_shift, mean, rstd, 0, w, n * w_n, w_c, b,
            n * b_n, b_c,
        )  # fmt: skip
        cuda.syncthreads()
        row = cuda.threadIdx.x // columns
        column = cuda.threadIdx.x - row * columns
        c = tile * channels + column * count
        sum_dz, sum_x = splat(0.0, acc, count), splat(0.0, acc, count)
        if c < C:
            shift, lack, r, scale, a, bb = in_column(table, column)
            for s in range(part * size + row, stop, rows):
                dz, x_hat = read(
                    x, n * x_n + s * x_r + c, skip, n * skip_n + s * skip_r + c, dy, n * dy_n + s * dy_r + c, res,
                    n * res_n + s * res_r + c, scale, shift, lack, r, a, bb,
                )  # fmt: skip
                sum_dz = sum_dz + dz
                sum_x = fma(dz, x_hat, sum_x)
        keep(of_dz, row * columns + column, pack(sum_dz, acc))
        keep(of_x, row * columns + column, pack(sum_x, acc))
        cuda.syncthreads()
        for i in range(cuda.threadIdx.x, channels, threads):
            if tile * channels + i < C:
                one, two = scalar(0.0), scalar(0.0)
                for k in range(rows):
                    one += of_dz[k * channels + i]
                    two += of_x[k * channels + i]
                out = (n * slices + part) * C + tile * channels + i
                put(partial, out, one)
                put(partial, partials + out, two)

    return backward_sums_last


@cache
def settle(acc, w_kind, threads):
    """The means of g and of g * x_hat of each group: a block each."""
    get, put, weight = load_one(acc), store_one("float64"), parameter(w_kind, acc, 1, False, 1.0)

    @kernel(threads)
    def backward_settle(
        partial, means, w, lengths, groups, G, G_mul, G_shift, C, D, D_mul, D_shift, S, inner, padded, slices, partials,
        w_n, w_c,
    ):  # fmt: skip
        of_g = cuda.shared.array(threads, np.float64)
        of_gx = cuda.shared.array(threads, np.float64)
        t = cuda.threadIdx.x
        group = cuda.blockIdx.x
        n = divide(group, G_mul, G_shift)
        first = (group - n * G) * D
        one, two = 0.0, 0.0
        for p in range(t, D * slices, threads):
            i = divide(p, D_mul, D_shift)
            c = first + p - i * D
            place = (n * slices + i) * C + c
            a = np.float64(weight(w, n * w_n + c, w_c))
            one += np.float64(get(partial, place)) * a
            two += np.float64(get(partial, partials + place)) * a
        of_g[t] = one
        of_gx[t] = two
        step = threads // 2
        while step > 0:
            cuda.syncthreads()
            if t < step:
                of_g[t] += of_g[t + step]
                of_gx[t] += of_gx[t + step]
            step //= 2
        if t == 0:
            valid = S
            if padded:
                valid = valid_positions(lengths, n, inner, S)
            elements = max(D * valid, 1)
            put(means, group, of_g[0] / elements)
            put(means, groups + group, of_gx[0] / elements)

    return backward_settle


@cache
def apply_first(
    kind, skip_kind, dy_kind, res_kind, w_kind, b_kind, m_kind, r_kind, act, count, vectors, threads, padded
):  # fmt: skip
    """Dx of one stretch of one group, channels first."""
    acc = accumulator_of(kind)
    scalar = ACC[acc]
    read, write = gradient_in(kind, skip_kind, dy_kind, res_kind, act, count), gradient_out(kind, res_kind, count)
    clear, coefficients = zeros_out(kind, res_kind, count), write_coefficients(acc)
    weight, bias = parameter(w_kind, acc, count, False, 1.0), parameter(b_kind, acc, count, False, 0.0)
    get_mean, get_rstd, get = load_one(m_kind), load_one(r_kind), load_one("float64")
    table_size = FIELDS + 2

    @kernel(threads)
    def backward_apply_first(
        x, skip, dy, res, dx, dres, w, b, lengths, mean, rstd, means, groups, slices, slices_mul, slices_shift, G,
        G_mul, G_shift, D, S, S_mul, S_shift, inner, x_n, x_r, skip_n, skip_r, dy_n, dy_r, res_n, res_r, dx_n, dx_r,
        dres_n, dres_r, w_n, w_c, b_n, b_c,
    ):  # fmt: skip
        table = cuda.shared.array(table_size, scalar)
        group = divide(cuda.blockIdx.x, slices_mul, slices_shift)
        start = (cuda.blockIdx.x - group * slices) * vectors * threads + cuda.threadIdx.x
        n = divide(group, G_mul, G_shift)
        first = (group - n * G) * D
        valid = valid_positions(lengths, n, inner, S) if padded else S
        if cuda.threadIdx.x == 0:
            coefficients(table, 0, np.float64(get_mean(mean, group)), 0.0, np.float64(get_rstd(rstd, group)))
            table[FIELDS] = scalar(get(means, group))
            table[FIELDS + 1] = scalar(get(means, groups + group))
        cuda.syncthreads()
        shift, lack, r, scale = table[SHIFT], table[LACK], table[RSTD], table[SCALE]
        for j in range(vectors):
            e = (start + j * threads) * count
            if e < D * S:
                d = divide(e, S_mul, S_shift)
                s = e - d * S
                c = first + d
                if s < valid:
                    a = weight(w, n * w_n + c, w_c)
                    dz, x_hat = read(
                        x, n * x_n + c * x_r + s, skip, n * skip_n + c * skip_r + s, dy, n * dy_n + c * dy_r + s, res,
                        n * res_n + c * res_r + s, scale, shift, lack, r, a, bias(b, n * b_n + c, b_c),
                    )  # fmt: skip
                    write(
                        dz, x_hat, dx, n * dx_n + c * dx_r + s, dres, n * dres_n + c * dres_r + s, r * scale, a,
                        table[FIELDS], table[FIELDS + 1],
                    )  # fmt: skip
                else:
                    clear(dx, n * dx_n + c * dx_r + s, dres, n * dres_n + c * dres_r + s)

    return backward_apply_first


@cache
def apply_last(
    kind, skip_kind, dy_kind, res_kind, w_kind, b_kind, m_kind, r_kind, act, count, columns, vectors, threads, padded
):  # fmt: skip
    """Dx of some positions, channels last."""
    acc = accumulator_of(kind)
    scalar, rows, channels, in_lanes = ACC[acc], threads // columns, columns * count, lanes_in(acc, count)
    read, write = gradient_in(kind, skip_kind, dy_kind, res_kind, act, count), gradient_out(kind, res_kind, count)
    clear, get = zeros_out(kind, res_kind, count), load_one("float64")
    fill = channel_coefficients(acc, w_kind, b_kind, m_kind, r_kind, channels, threads)
    in_column = column_coefficients(acc, count, columns)
    table_size, own_size, means_size = channels * (FIELDS + 2), threads * FIELDS, channels * 2

    @kernel(threads)
    def backward_apply_last(
        x, skip, dy, res, dx, dres, w, b, lengths, mean, rstd, means, groups, slices, slices_mul, slices_shift, size,
        tiles, tiles_mul, tiles_shift, C, G, D_mul, D_shift, S, inner, x_n, x_r, skip_n, skip_r, dy_n, dy_r, res_n,
        res_r, dx_n, dx_r, dres_n, dres_r, w_n, w_c, b_n, b_c,
    ):  # fmt: skip
        table = cuda.shared.array(table_size, scalar)
        own = cuda.shared.array(own_size, scalar)
        of_group = cuda.shared.array(means_size, scalar)
        n, part, tile = block_last(cuda.blockIdx.x, slices, slices_mul, slices_shift, tiles, tiles_mul, tiles_shift)
        start = part * size
        valid = valid_positions(lengths, n, inner, S) if padded else S
        stop = min(start + size, S)
        fill(
            table, own, cuda.threadIdx.x, tile * channels, C, n, G, D_mul, D_shift, mean, rstd, 0, w, n * w_n, w_c, b,
            n * b_n, b_c,
        )  # fmt: skip
        for i in range(cuda.threadIdx.x, channels, threads):
            if tile * channels + i < C:
                group = n * G + divide(tile * channels + i, D_mul, D_shift)
                of_group[i] = scalar(get(means, group))
                of_group[channels + i] = scalar(get(means, groups + group))
        cuda.syncthreads()
        row = cuda.threadIdx.x // columns
        column = cuda.threadIdx.x - row * columns
        c = tile * channels + column * count
        if c < C:
            shift, lack, r, scale, a, bb = in_column(table, column)
            mean_g = in_lanes(of_group, column)
            mean_gx = in_lanes(of_group, columns + column)
            for begin in range(start + row, stop, rows * vectors):
                for j in range(vectors):
                    s = begin + j * rows
                    if s < stop:
                        if s < valid:
                            dz, x_hat = read(
                                x, n * x_n + s * x_r + c, skip, n * skip_n + s * skip_r + c, dy,
                                n * dy_n + s * dy_r + c, res, n * res_n + s * res_r + c, scale, shift, lack, r, a, bb,
                            )  # fmt: skip
                            write(
                                dz, x_hat, dx, n * dx_n + s * dx_r + c, dres, n * dres_n + s * dres_r + c, r * scale, a,
                                mean_g, mean_gx,
                            )  # fmt: skip
                        else:
                            clear(dx, n * dx_n + s * dx_r + c, dres, n * dres_n + s * dres_r + c)

    return backward_apply_last
