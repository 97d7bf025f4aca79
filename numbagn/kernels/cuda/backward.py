"""The backward pass on GPUs: in one pass over x and dy where a group fits the registers of a block.

With dz = dy * activation'(z) and x_hat, a channel's sums of dz and of dz * x_hat give the group's means of g = dz *
weight and of g * x_hat, and over the samples dbias and dweight. All are summed in a fixed order, without atomics.
"""

from functools import cache

import numpy as np
from numba import cuda

from .forward import parameter, summand
from .kinds import ITEMSIZE, accumulator_of
from .statistics import FIELDS, LACK, RSTD, SCALE, SHIFT, centred, write_coefficients
from .target import (
    ACC,
    device,
    divide,
    fma,
    keep,
    kernel,
    lane_sum,
    lanes_in,
    load,
    load_one,
    pack,
    slope_of,
    splat,
    store,
    store_one,
    team_sums,
    unpack,
    valid_positions,
)  # fmt: skip


@cache
def gradient_in(kind, skip_kind, dy_kind, res_kind, act, count):
    """A function that reads one x and dy and gives (dz, x_hat)."""
    read, _ = summand(kind, skip_kind, count)
    slope, acc = slope_of(act), accumulator_of(kind)

    @device
    def both(x, index, skip, skip_index, dy, dy_index, res, res_index, scale, shift, lack, r, w, b):
        x_hat = centred(unpack(read(x, index, skip, skip_index), acc), scale, shift, lack) * r
        dz = unpack(load(dy, dy_index, dy_kind, count), acc)
        if act is not None:
            z = fma(x_hat, w, b)
            if res_kind:
                z = z + unpack(load(res, res_index, res_kind, count), acc)
            dz = dz * slope(z)
        return dz, x_hat

    return both


@cache
def gradient_out(kind, res_kind, count):
    """A function that writes dx, and dresidual where there is a residual."""

    @device
    def write(dz, x_hat, dx, dx_index, dres, dres_index, r, w, mean_g, mean_gx):
        store(dx, dx_index, kind, (dz * w - mean_g - x_hat * mean_gx) * r)
        if res_kind:
            store(dres, dres_index, res_kind, dz)

    return write


@cache
def zeros_out(kind, res_kind, count):
    """A function that writes zeros where nothing is valid."""

    @device
    def write(dx, dx_index, dres, dres_index):
        store(dx, dx_index, kind, splat(0.0, kind, count))
        if res_kind:
            store(dres, dres_index, res_kind, splat(0.0, res_kind, count))

    return write


@cache
def whole(
    kind, skip_kind, dy_kind, res_kind, w_kind, b_kind, m_kind, r_kind, act, count, each, vectors, team, groups_in,
    threads, padded,
):  # fmt: skip
    """One pass, channels first: a team of a warp's threads for each channel, `each` channels a team.

    A block has `groups_in` groups; a thread holds `each * vectors` packed dz and x_hat in registers.
    """
    acc = accumulator_of(kind)
    scalar, teams, in_lanes = ACC[acc], threads // team, lanes_in(acc, count)
    per_channel = vectors * max(1, ITEMSIZE[acc] * count // 4)
    read, write = gradient_in(kind, skip_kind, dy_kind, res_kind, act, count), gradient_out(kind, res_kind, count)
    clear = zeros_out(kind, res_kind, count)
    weight, bias = parameter(w_kind, acc, count, False, 1.0), parameter(b_kind, acc, count, False, 0.0)
    sums, coefficients = team_sums(team, acc), write_coefficients(acc)
    get_mean, get_rstd, put = load_one(m_kind), load_one(r_kind), store_one(acc)
    words, most = each * per_channel, each * teams
    fields = FIELDS + 2
    table_size = groups_in * fields

    @kernel(threads)
    def backward_whole(
        x, skip, dy, res, dx, dres, w, b, lengths, mean, rstd, partial, groups, G, G_mul, G_shift, D, D_mul, D_shift, S,
        inner, NC, x_n, x_r, skip_n, skip_r, dy_n, dy_r, res_n, res_r, dx_n, dx_r, dres_n, dres_r, w_n, w_c, b_n, b_c,
    ):  # fmt: skip
        held_dz = cuda.local.array(words, np.uint32)
        held_x = cuda.local.array(words, np.uint32)
        table = cuda.shared.array(table_size, scalar)
        of_dz = cuda.shared.array(most, scalar)
        of_x = cuda.shared.array(most, scalar)
        first_group = cuda.blockIdx.x * groups_in
        here = min(groups_in, groups - first_group)
        for i in range(cuda.threadIdx.x, here, threads):
            coefficients(
                table, i * fields, np.float64(get_mean(mean, first_group + i)), 0.0,
                np.float64(get_rstd(rstd, first_group + i)),
            )  # fmt: skip
        cuda.syncthreads()
        t = cuda.threadIdx.x % team
        which = cuda.threadIdx.x // team

        for k in range(each):
            channel = which + k * teams
            sum_dz, sum_x = splat(0.0, acc, count), splat(0.0, acc, count)
            if channel < here * D:
                g = divide(channel, D_mul, D_shift)
                n = divide(first_group + g, G_mul, G_shift)
                c = (first_group + g - n * G) * D + (channel - g * D)
                at = g * fields
                shift, lack, r, scale = table[at + SHIFT], table[at + LACK], table[at + RSTD], table[at + SCALE]
                a, bb = weight(w, n * w_n + c, w_c), bias(b, n * b_n + c, b_c)
                valid = valid_positions(lengths, n, inner, S) if padded else S
                for j in range(vectors):
                    s = (t + j * team) * count
                    if s < valid:
                        dz, x_hat = read(
                            x, n * x_n + c * x_r + s, skip, n * skip_n + c * skip_r + s, dy, n * dy_n + c * dy_r + s,
                            res, n * res_n + c * res_r + s, scale, shift, lack, r, a, bb,
                        )  # fmt: skip
                        sum_dz = sum_dz + dz
                        sum_x = fma(dz, x_hat, sum_x)
                        keep(held_dz, k * vectors + j, pack(dz, acc))
                        keep(held_x, k * vectors + j, pack(x_hat, acc))
            one, two = sums(lane_sum(sum_dz), lane_sum(sum_x))
            if t == 0 and channel < here * D:
                place = first_group * D + channel
                put(partial, place, one)
                put(partial, NC + place, two)
                g = divide(channel, D_mul, D_shift)
                n = divide(first_group + g, G_mul, G_shift)
                a = weight(w, n * w_n + (first_group + g - n * G) * D + (channel - g * D), w_c)
                of_dz[channel] = one * a
                of_x[channel] = two * a
        cuda.syncthreads()
        for g in range(which, here, teams):
            one, two = scalar(0.0), scalar(0.0)
            if t == 0:
                for d in range(g * D, g * D + D):
                    one += of_dz[d]
                    two += of_x[d]
                sample = divide(first_group + g, G_mul, G_shift)
                valid = valid_positions(lengths, sample, inner, S) if padded else S
                elements = scalar(max(D * valid, 1))
                table[g * fields + FIELDS] = one / elements
                table[g * fields + FIELDS + 1] = two / elements
        cuda.syncthreads()

        for k in range(each):
            channel = which + k * teams
            if channel < here * D:
                g = divide(channel, D_mul, D_shift)
                n = divide(first_group + g, G_mul, G_shift)
                c = (first_group + g - n * G) * D + (channel - g * D)
                at = g * fields
                a = weight(w, n * w_n + c, w_c)
                mean_g, mean_gx = table[at + FIELDS], table[at + FIELDS + 1]
                r = table[at + RSTD] * table[at + SCALE]
                valid = valid_positions(lengths, n, inner, S) if padded else S
                for j in range(vectors):
                    s = (t + j * team) * count
                    if s < valid:
                        write(
                            in_lanes(held_dz, k * vectors + j),
                            in_lanes(held_x, k * vectors + j), dx, n * dx_n + c * dx_r + s, dres,
                            n * dres_n + c * dres_r + s, r, a, mean_g, mean_gx,
                        )  # fmt: skip
                    elif s < S:
                        clear(dx, n * dx_n + c * dx_r + s, dres, n * dres_n + c * dres_r + s)

    return backward_whole


@cache
def rows(
    kind, skip_kind, dy_kind, res_kind, w_kind, b_kind, m_kind, r_kind, act, count, vectors, team, threads
):  # fmt: skip
    """One pass where each channel has one position and all samples one weight: layer norm.

    A team of threads walks over rows (one group of one sample each), `rows_step` apart, and keeps the sums of its
    channels; each team's go to `partial`.
    """
    acc = accumulator_of(kind)
    scalar, teams, in_lanes = ACC[acc], threads // team, lanes_in(acc, count)
    read, write = gradient_in(kind, skip_kind, dy_kind, res_kind, act, count), gradient_out(kind, res_kind, count)
    weight, bias = parameter(w_kind, acc, count, True, 1.0), parameter(b_kind, acc, count, True, 0.0)
    sums, coefficients = team_sums(team, acc), write_coefficients(acc)
    get_mean, get_rstd = load_one(m_kind), load_one(r_kind)
    words, table_size = vectors * max(1, ITEMSIZE[acc] * count // 4), teams * FIELDS

    @kernel(threads)
    def backward_rows(
        x, skip, dy, res, dx, dres, w, b, mean, rstd, partial, N, G, D, parts, walked, x_n, skip_n, dy_n, res_n, dx_n,
        dres_n, w_c, b_c, G_mul, G_shift,
    ):  # fmt: skip
        # one block or team for each part of the samples and each group
        total_dz = cuda.local.array(words, np.uint32)
        total_x = cuda.local.array(words, np.uint32)
        held_dz = cuda.local.array(words, np.uint32)
        held_x = cuda.local.array(words, np.uint32)
        table = cuda.shared.array(table_size, scalar)
        place = cuda.threadIdx.x // team
        t = cuda.threadIdx.x % team
        item = cuda.blockIdx.x * teams + place
        part = divide(item, G_mul, G_shift)
        g = item - part * G
        zero = splat(0.0, acc, count)
        for j in range(vectors):
            keep(total_dz, j, pack(zero, acc))
            keep(total_x, j, pack(zero, acc))
        for step in range(walked):
            n = part + step * parts
            live = n < N and part < parts
            cuda.syncthreads()
            if t == 0 and live:
                coefficients(
                    table, place * FIELDS, np.float64(get_mean(mean, n * G + g)), 0.0,
                    np.float64(get_rstd(rstd, n * G + g)),
                )  # fmt: skip
            cuda.syncthreads()
            at = place * FIELDS
            shift, lack, r, scale = scalar(0.0), scalar(0.0), scalar(0.0), scalar(1.0)
            if live:
                shift, lack, r, scale = table[at + SHIFT], table[at + LACK], table[at + RSTD], table[at + SCALE]
            sum_g, sum_gx = zero, zero
            for j in range(vectors):
                d = (t + j * team) * count
                if d < D and live:
                    c = g * D + d
                    a = weight(w, c, w_c)
                    dz, x_hat = read(
                        x, n * x_n + c, skip, n * skip_n + c, dy, n * dy_n + c, res, n * res_n + c, scale, shift, lack,
                        r, a, bias(b, c, b_c),
                    )  # fmt: skip
                    sum_g = fma(dz, a, sum_g)
                    sum_gx = fma(dz * a, x_hat, sum_gx)
                    keep(held_dz, j, pack(dz, acc))
                    keep(held_x, j, pack(x_hat, acc))
                    keep(total_dz, j, pack(in_lanes(total_dz, j) + dz, acc))
                    keep(total_x, j, pack(fma(dz, x_hat, in_lanes(total_x, j)), acc))
            mean_g, mean_gx = sums(lane_sum(sum_g), lane_sum(sum_gx))
            mean_g, mean_gx = mean_g / scalar(D), mean_gx / scalar(D)
            for j in range(vectors):
                d = (t + j * team) * count
                if d < D and live:
                    c = g * D + d
                    write(
                        in_lanes(held_dz, j), in_lanes(held_x, j), dx, n * dx_n + c,
                        dres, n * dres_n + c, r * scale, weight(w, c, w_c), mean_g, mean_gx,
                    )  # fmt: skip
        for j in range(vectors):
            d = (t + j * team) * count
            if d < D and part < parts:
                place = part * (G * D) + g * D + d
                store(partial, place, acc, in_lanes(total_dz, j))
                store(partial, parts * G * D + place, acc, in_lanes(total_x, j))

    return backward_rows


@cache
def parameters(acc, w_kind, b_kind, threads):
    """Dweight and dbias from partial sums: 32 results a block, for each a column of threads over the rows.

    Result i is the sum of `rows` partial sums, `stride` apart from i // C * pitch + i % C on.
    """
    get, put_w, put_b = load_one(acc), store_one(w_kind), store_one(b_kind)
    heights = threads // 32

    @kernel(threads)
    def backward_parameters(
        partial, dweight, dbias, rows, columns, C, C_mul, C_shift, pitch, stride, second, with_weight, with_bias
    ):  # fmt: skip
        of_dz = cuda.shared.array(threads, np.float64)
        of_x = cuda.shared.array(threads, np.float64)
        t = cuda.threadIdx.x
        i = cuda.blockIdx.x * 32 + t % 32
        one, two = 0.0, 0.0
        if i < columns:
            outer = divide(i, C_mul, C_shift)
            first = outer * pitch + (i - outer * C)
            for k in range(t // 32, rows, heights):
                one += np.float64(get(partial, first + k * stride))
                two += np.float64(get(partial, second + first + k * stride))
        of_dz[t] = one
        of_x[t] = two
        cuda.syncthreads()
        if t < 32 and i < columns:
            for k in range(1, heights):
                one += of_dz[t + 32 * k]
                two += of_x[t + 32 * k]
            if with_bias:
                put_b(dbias, i, one)
            if with_weight:
                put_w(dweight, i, two)

    return backward_parameters
