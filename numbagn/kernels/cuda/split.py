"""Forward kernels for what no block's registers hold: partial sums, their merging, then y in a pass of its own.

Channels first a slice is a stretch of one group, channels last some positions of all its channels. Partial sums are
(mean, M2, count) in float64, merged in a fixed order (Chan, Golub and LeVeque 1979).
"""

from functools import cache

import numpy as np
from numba import cuda

from .forward import channel_coefficients, column_coefficients, element, parameter, summand
from .kinds import ITEMSIZE, accumulator_of
from .statistics import FIELDS, LACK, RSTD, SCALE, SHIFT, inverse_std, scale_for, write_coefficients
from .target import (
    ACC,
    block_last,
    divide,
    fma,
    keep,
    kept,
    kernel,
    lane_sum,
    lanes_in,
    load_one,
    pack,
    splat,
    store,
    store_one,
    team_sums,
    unpack,
    valid_positions,
)  # fmt: skip

MEAN, M2, COUNT = range(3)


@cache
def sums_first(kind, skip_kind, count, vectors, threads, padded):
    """The partial sums of one slice of one group, channels first: a block each."""
    acc = accumulator_of(kind)
    scalar = ACC[acc]
    read, held = summand(kind, skip_kind, count)
    sums, next_scale = team_sums(threads, acc), scale_for(acc)
    put, words = store_one("float64"), vectors * max(1, ITEMSIZE[held] * count // 4)
    zero, one = scalar(0.0), scalar(1.0)

    @kernel(threads)
    def forward_sums_first(
        x, skip, lengths, partial, slices, slices_mul, slices_shift, size, partials, G, G_mul, G_shift, D, S, S_mul,
        S_shift, inner, x_n, x_r, skip_n, skip_r, eps,
    ):  # fmt: skip
        registers = cuda.local.array(words, np.uint32)
        group = divide(cuda.blockIdx.x, slices_mul, slices_shift)
        part = cuda.blockIdx.x - group * slices
        n = divide(group, G_mul, G_shift)
        c = (group - n * G) * D
        valid = valid_positions(lengths, n, inner, S) if padded else S
        start = part * size  # vectors
        stop = min(start + size, D * S // count)
        thread = cuda.threadIdx.x

        scale, m, total, squares = one, zero, zero, zero
        number = 0
        again = True
        while again:
            # m: the mean of the first tile, which stays in registers
            lanes = splat(0.0, held, count)
            number = 0
            for j in range(vectors):
                packed = pack(splat(0.0, held, count), held)
                v = start + thread + j * threads
                if v < stop:
                    d = divide(v * count, S_mul, S_shift)
                    s = v * count - d * S
                    if s < valid:
                        packed = read(x, n * x_n + (c + d) * x_r + s, skip, n * skip_n + (c + d) * skip_r + s)
                        lanes = fma(unpack(packed, acc), scale, lanes)
                        number += count
                keep(registers, j, packed)
            total, tile = sums(lane_sum(lanes), scalar(number))
            m = total / max(tile, one)
            lanes = splat(0.0, held, count)
            lanes_2 = splat(0.0, held, count)
            for j in range(vectors):
                v = start + thread + j * threads
                if v < stop:
                    s = v * count - divide(v * count, S_mul, S_shift) * S if padded else 0
                    if s < valid:
                        difference = fma(unpack(kept(registers, j, held, count), acc), scale, -m)
                        lanes = lanes + difference
                        lanes_2 = fma(difference, difference, lanes_2)
            for tile_start in range(start + thread + vectors * threads, stop, vectors * threads):
                for j in range(vectors):
                    v = tile_start + j * threads
                    if v < stop:
                        d = divide(v * count, S_mul, S_shift)
                        s = v * count - d * S
                        if s < valid:
                            packed = read(x, n * x_n + (c + d) * x_r + s, skip, n * skip_n + (c + d) * skip_r + s)
                            difference = fma(unpack(packed, acc), scale, -m)
                            lanes = lanes + difference
                            lanes_2 = fma(difference, difference, lanes_2)
                            number += count
            total, squares = sums(lane_sum(lanes), lane_sum(lanes_2))
            wanted = next_scale(squares, m, scale, eps)
            again = wanted != scale
            scale = wanted
        if padded:
            # below 2**24 a block, so exact
            held_by_all, _ = sums(scalar(number), zero)
            number = int(held_by_all)
        else:
            number = (stop - start) * count
        if thread == 0:
            correction = np.float64(total) / max(number, 1)
            deviations = np.float64(squares) - np.float64(total) * correction
            put(partial, MEAN * partials + cuda.blockIdx.x, (np.float64(m) + correction) / scale)
            put(partial, M2 * partials + cuda.blockIdx.x, deviations / scale / scale)
            put(partial, COUNT * partials + cuda.blockIdx.x, np.float64(number))

    return forward_sums_first


@cache
def sums_last(kind, skip_kind, count, columns, threads, padded):
    """The partial sums of each channel over one slice of positions, channels last.

    A block has `columns` vectors of channels beside each other, each with rows of threads over the positions.
    """
    acc = accumulator_of(kind)
    scalar = ACC[acc]
    (read, _), in_lanes = summand(kind, skip_kind, count), lanes_in(acc, count)
    rows, channels = threads // columns, columns * count
    next_scale, put, anywhere = scale_for(acc), store_one("float64"), team_sums(threads, acc)
    zero, one, all_sums = scalar(0.0), scalar(1.0), channels * rows
    first_positions = 8  # whose mean is the shift

    @kernel(threads)
    def forward_sums_last(
        x, skip, lengths, partial, slices, slices_mul, slices_shift, size, partials, tiles, tiles_mul, tiles_shift, C,
        S, inner, x_n, x_r, skip_n, skip_r, eps,
    ):  # fmt: skip
        shifts = cuda.shared.array(channels, scalar)
        scales = cuda.shared.array(channels, scalar)
        sums_1 = cuda.shared.array(all_sums, scalar)
        sums_2 = cuda.shared.array(all_sums, scalar)
        n, part, tile = block_last(cuda.blockIdx.x, slices, slices_mul, slices_shift, tiles, tiles_mul, tiles_shift)
        valid = valid_positions(lengths, n, inner, S) if padded else S
        start = part * size
        stop = min(start + size, valid)
        row = cuda.threadIdx.x // columns
        column = cuda.threadIdx.x - row * columns
        c = tile * channels + column * count
        at = n * x_n + c
        skip_at = n * skip_n + c
        for i in range(cuda.threadIdx.x, channels, threads):
            scales[i] = one
        cuda.syncthreads()
        bad = 1
        while bad:
            scale = in_lanes(scales, column)
            if row == 0:
                lanes = splat(0.0, acc, count)
                used = min(stop - start, first_positions)
                if c < C:
                    for s in range(start, start + used):
                        lanes = fma(unpack(read(x, at + s * x_r, skip, skip_at + s * skip_r), acc), scale, lanes)
                keep(shifts, column, pack(lanes * (one / scalar(max(used, 1))), acc))
            cuda.syncthreads()
            m = in_lanes(shifts, column)
            lanes = splat(0.0, acc, count)
            lanes_2 = splat(0.0, acc, count)
            if c < C:
                for s in range(start + row, stop, rows):
                    difference = fma(unpack(read(x, at + s * x_r, skip, skip_at + s * skip_r), acc), scale, -m)
                    lanes = lanes + difference
                    lanes_2 = fma(difference, difference, lanes_2)
            keep(sums_1, row * columns + column, pack(lanes, acc))
            keep(sums_2, row * columns + column, pack(lanes_2, acc))
            cuda.syncthreads()
            bad = 0
            for i in range(cuda.threadIdx.x, channels, threads):
                total, squares = zero, zero
                for k in range(rows):
                    total += sums_1[k * channels + i]
                    squares += sums_2[k * channels + i]
                number = max(stop - start, 0)
                wanted = next_scale(squares, shifts[i], scales[i], eps)
                if number > 0 and wanted != scales[i]:
                    scales[i] = wanted
                    bad = 1
                elif tile * channels + i < C:
                    place = (n * slices + part) * C + tile * channels + i
                    correction = np.float64(total) / max(number, 1)
                    deviations = np.float64(squares) - np.float64(total) * correction
                    put(partial, MEAN * partials + place, (np.float64(shifts[i]) + correction) / scales[i])
                    put(partial, M2 * partials + place, deviations / scales[i] / scales[i])
                    put(partial, COUNT * partials + place, np.float64(number))
            of_all, _ = anywhere(scalar(bad), zero)
            bad = int(of_all)

    return forward_sums_last


@cache
def settle(threads):
    """Mean and rstd of each group from its partial sums: a block each.

    Partial sum p of a group stands at first + p // width * pitch + p % width.
    """
    get, put = load_one("float64"), store_one("float64")

    @kernel(threads)
    def forward_settle(
        partial, stats, groups, number, width, width_mul, width_shift, pitch, partials, G, G_mul, G_shift, per_sample,
        per_group, eps,
    ):  # fmt: skip
        means = cuda.shared.array(threads, np.float64)
        deviations = cuda.shared.array(threads, np.float64)
        counts = cuda.shared.array(threads, np.float64)
        group = cuda.blockIdx.x
        n = divide(group, G_mul, G_shift)
        first = n * per_sample + (group - n * G) * per_group
        t = cuda.threadIdx.x
        mean, m2, count = 0.0, 0.0, 0.0
        for p in range(t, number, threads):
            outer = divide(p, width_mul, width_shift)
            place = first + outer * pitch + (p - outer * width)
            more = get(partial, COUNT * partials + place)
            if more > 0.0:
                difference = get(partial, MEAN * partials + place) - mean
                share = more / (count + more)
                m2 += get(partial, M2 * partials + place) + difference * difference * count * share
                mean += difference * share
                count += more
        means[t], deviations[t], counts[t] = mean, m2, count
        step = threads // 2
        while step > 0:
            cuda.syncthreads()
            if t < step and counts[t + step] > 0.0:
                more = counts[t + step]
                difference = means[t + step] - means[t]
                share = more / (counts[t] + more)
                deviations[t] += deviations[t + step] + difference * difference * counts[t] * share
                means[t] += difference * share
                counts[t] += more
            step //= 2
        if t == 0:
            rstd = inverse_std(deviations[0] / max(counts[0], 1.0), eps, 1.0)
            put(stats, group, means[0])
            put(stats, groups + group, rstd if counts[0] > 0.0 else 0.0)

    return forward_settle


@cache
def apply_first(kind, skip_kind, res_kind, w_kind, b_kind, act, count, lanewise, vectors, threads, padded):
    """Y of one stretch of one group, channels first."""
    acc = accumulator_of(kind)
    read, _ = summand(kind, skip_kind, count)
    weight, bias = parameter(w_kind, acc, count, lanewise, 1.0), parameter(b_kind, acc, count, lanewise, 0.0)
    write, coefficients = element(kind, res_kind, act, count), write_coefficients(acc)
    get = load_one("float64")
    scalar = ACC[acc]

    @kernel(threads)
    def forward_apply_first(
        x, skip, res, y, w, b, lengths, stats, groups, slices, slices_mul, slices_shift, G, G_mul, G_shift, D, S, S_mul,
        S_shift, inner, x_n, x_r, skip_n, skip_r, res_n, res_r, y_n, y_r, w_n, w_c, b_n, b_c,
    ):  # fmt: skip
        shared = cuda.shared.array(FIELDS, scalar)
        group = divide(cuda.blockIdx.x, slices_mul, slices_shift)
        start = (cuda.blockIdx.x - group * slices) * vectors * threads + cuda.threadIdx.x
        n = divide(group, G_mul, G_shift)
        c = (group - n * G) * D
        valid = valid_positions(lengths, n, inner, S) if padded else S
        if cuda.threadIdx.x == 0:
            coefficients(shared, 0, get(stats, group), 0.0, get(stats, groups + group))
        cuda.syncthreads()
        shift, lack, r, scale = shared[SHIFT], shared[LACK], shared[RSTD], shared[SCALE]
        for j in range(vectors):
            e = (start + j * threads) * count
            if e < D * S:
                d = divide(e, S_mul, S_shift)
                s = e - d * S
                if s < valid:
                    a = weight(w, n * w_n + (c + d), w_c) * r
                    write(
                        read(x, n * x_n + (c + d) * x_r + s, skip, n * skip_n + (c + d) * skip_r + s), res,
                        n * res_n + (c + d) * res_r + s, y, n * y_n + (c + d) * y_r + s, scale, shift, lack, a,
                        bias(b, n * b_n + (c + d), b_c),
                    )  # fmt: skip
                else:
                    store(y, n * y_n + (c + d) * y_r + s, kind, splat(0.0, kind, count))

    return forward_apply_first


@cache
def apply_last(kind, skip_kind, res_kind, w_kind, b_kind, act, count, columns, vectors, threads, padded):
    """Y of some positions, channels last: each thread has a column, whose coefficients it keeps."""
    acc = accumulator_of(kind)
    scalar, rows, channels = ACC[acc], threads // columns, columns * count
    read, _ = summand(kind, skip_kind, count)
    write, in_column = element(kind, res_kind, act, count), column_coefficients(acc, count, columns)
    fill = channel_coefficients(acc, w_kind, b_kind, "float64", "float64", channels, threads)
    table_size, own_size = channels * (FIELDS + 2), threads * FIELDS

    @kernel(threads)
    def forward_apply_last(
        x, skip, res, y, w, b, lengths, stats, groups, slices, slices_mul, slices_shift, size, tiles, tiles_mul,
        tiles_shift, C, G, D_mul, D_shift, S, inner, x_n, x_r, skip_n, skip_r, res_n, res_r, y_n, y_r, w_n, w_c, b_n,
        b_c,
    ):  # fmt: skip
        table = cuda.shared.array(table_size, scalar)
        own = cuda.shared.array(own_size, scalar)
        n, part, tile = block_last(cuda.blockIdx.x, slices, slices_mul, slices_shift, tiles, tiles_mul, tiles_shift)
        start = part * size
        valid = valid_positions(lengths, n, inner, S) if padded else S
        stop = min(start + size, S)
        fill(
            table, own, cuda.threadIdx.x, tile * channels, C, n, G, D_mul, D_shift, stats, stats, groups, w, n * w_n,
            w_c, b, n * b_n, b_c,
        )  # fmt: skip
        cuda.syncthreads()
        row = cuda.threadIdx.x // columns
        column = cuda.threadIdx.x - row * columns
        c = tile * channels + column * count
        if c < C:
            shift, lack, r, scale, a, bb = in_column(table, column)
            a = r * a
            for first in range(start + row, stop, rows * vectors):
                for j in range(vectors):
                    s = first + j * rows
                    if s < stop:
                        if s < valid:
                            write(
                                read(x, n * x_n + s * x_r + c, skip, n * skip_n + s * skip_r + c), res,
                                n * res_n + s * res_r + c, y, n * y_n + s * y_r + c, scale, shift, lack, a, bb,
                            )  # fmt: skip
                        else:
                            store(y, n * y_n + s * y_r + c, kind, splat(0.0, kind, count))

    return forward_apply_last
