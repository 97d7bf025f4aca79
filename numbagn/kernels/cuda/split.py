"""Forward kernels for what no block's registers hold: partial sums, their merging, then y in a pass of its own.

Partial sums are (mean, M2, count) in float64, merged in a fixed order (Chan, Golub and LeVeque 1979).

Memory: channels first a block reads one slice, a stretch of one group, row after row; channels last it reads a tile of
channels of some positions, neighbours in a row by neighbouring threads, one row of threads a position. Y is written in
the same order by blocks of their own.
"""

from functools import cache

import numpy as np
from numba import cuda

from .forward import Affine, Tile, channel_coefficients, column_coefficients, element, parameters_of, summand
from .kinds import ITEMSIZE, accumulator_of
from .statistics import FIELDS, centre_at, inverse_std, scale_for, write_coefficients
from .target import (
    ACC,
    device,
    divide,
    divided,
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
)
from .walking import block_last, columns_at, elements_at, rows_at, statistics_in, valid_positions

MEAN, M2, COUNT = range(3)


@cache
def put_sums(acc):
    """A function that leaves partial sums: of d = x * scale - m and d**2, over so many values."""
    put = store_one("float64")

    @device
    def leave(partials, place, m, total, squares, number, scale):
        correction = np.float64(total) / max(number, 1)
        deviations = np.float64(squares) - np.float64(total) * correction
        put(partials.address, MEAN * partials.number + place, (np.float64(m) + correction) / scale)
        put(partials.address, M2 * partials.number + place, deviations / scale / scale)
        put(partials.address, COUNT * partials.number + place, np.float64(number))

    return leave


@cache
def sums_first(options, vectors, threads):
    """The partial sums of one slice of one group, channels first: a block each."""
    kinds, count, padded = options.kinds, options.count, options.padded
    acc = accumulator_of(kinds.x)
    scalar = ACC[acc]
    read, held = summand(kinds.x, kinds.skip, count)
    sums, next_scale = team_sums(threads, acc), scale_for(acc)
    leave, words = put_sums(acc), vectors * max(1, ITEMSIZE[held] * count // 4)
    zero, one = scalar(0.0), scalar(1.0)

    @kernel(threads)
    def forward_sums_first(arrays, lengths, partials, slices, sizes, eps):
        registers = cuda.local.array(words, np.uint32)
        S = sizes.S
        group, part = divided(cuda.blockIdx.x, slices.number)
        n, g = divided(group, sizes.G)
        c = g * sizes.D.value
        valid = valid_positions(lengths, n, S.value)
        start = part * slices.size  # vectors
        stop = min(start + slices.size, sizes.D.value * S.value // count)
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
                    d, s = divided(v * count, S)
                    if s < valid:
                        packed = read(elements_at(rows_at(arrays, n, c + d), s))
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
                    s = v * count - divide(v * count, S) * S.value if padded else 0
                    if s < valid:
                        difference = fma(unpack(kept(registers, j, held, count), acc), scale, -m)
                        lanes = lanes + difference
                        lanes_2 = fma(difference, difference, lanes_2)
            for tile_start in range(start + thread + vectors * threads, stop, vectors * threads):
                for j in range(vectors):
                    v = tile_start + j * threads
                    if v < stop:
                        d, s = divided(v * count, S)
                        if s < valid:
                            difference = fma(unpack(read(elements_at(rows_at(arrays, n, c + d), s)), acc), scale, -m)
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
            leave(partials, cuda.blockIdx.x, m, total, squares, number, scale)

    return forward_sums_first


@cache
def sums_last(options, columns, threads):
    """The partial sums of each channel over one slice of positions, channels last.

    A block has `columns` vectors of channels beside each other, each with rows of threads over the positions.
    """
    kinds, count = options.kinds, options.count
    acc = accumulator_of(kinds.x)
    scalar = ACC[acc]
    (read, _), in_lanes = summand(kinds.x, kinds.skip, count), lanes_in(acc, count)
    rows, channels = threads // columns, columns * count
    next_scale, leave, anywhere = scale_for(acc), put_sums(acc), team_sums(threads, acc)
    zero, one, all_sums = scalar(0.0), scalar(1.0), channels * rows
    first_positions = 8  # whose mean is the shift

    @kernel(threads)
    def forward_sums_last(arrays, lengths, partials, slices, sizes, eps):
        shifts = cuda.shared.array(channels, scalar)
        scales = cuda.shared.array(channels, scalar)
        sums_1 = cuda.shared.array(all_sums, scalar)
        sums_2 = cuda.shared.array(all_sums, scalar)
        n, part, tile = block_last(cuda.blockIdx.x, slices)
        C = sizes.C.value
        start = part * slices.size
        stop = min(start + slices.size, valid_positions(lengths, n, sizes.S.value))
        row = cuda.threadIdx.x // columns
        column = cuda.threadIdx.x - row * columns
        c = tile * channels + column * count
        lines = columns_at(arrays, n, c)
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
                        lanes = fma(unpack(read(elements_at(lines, s)), acc), scale, lanes)
                keep(shifts, column, pack(lanes * (one / scalar(max(used, 1))), acc))
            cuda.syncthreads()
            m = in_lanes(shifts, column)
            lanes = splat(0.0, acc, count)
            lanes_2 = splat(0.0, acc, count)
            if c < C:
                for s in range(start + row, stop, rows):
                    difference = fma(unpack(read(elements_at(lines, s)), acc), scale, -m)
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
                    place = (n * slices.number.value + part) * C + tile * channels + i
                    leave(partials, place, shifts[i], total, squares, number, scales[i])
            of_all, _ = anywhere(scalar(bad), zero)
            bad = int(of_all)

    return forward_sums_last


@cache
def settle(threads):
    """Mean and rstd of each group from its partial sums: a block each."""
    get, put = load_one("float64"), store_one("float64")

    @kernel(threads)
    def forward_settle(partials, stats, merged, sizes, eps):
        means = cuda.shared.array(threads, np.float64)
        deviations = cuda.shared.array(threads, np.float64)
        counts = cuda.shared.array(threads, np.float64)
        group = cuda.blockIdx.x
        n, g = divided(group, sizes.G)
        first = n * merged.per_sample + g * merged.per_group
        t = cuda.threadIdx.x
        mean, m2, count = 0.0, 0.0, 0.0
        for p in range(t, merged.number, threads):
            outer, inner = divided(p, merged.width)
            place = first + outer * merged.pitch + inner
            more = get(partials.address, COUNT * partials.number + place)
            if more > 0.0:
                difference = get(partials.address, MEAN * partials.number + place) - mean
                share = more / (count + more)
                deviation = get(partials.address, M2 * partials.number + place)
                m2 += deviation + difference * difference * count * share
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
            put(stats, sizes.groups + group, rstd if counts[0] > 0.0 else 0.0)

    return forward_settle


@cache
def apply_first(options, vectors, threads):
    """Y of one stretch of one group, channels first."""
    kinds, count = options.kinds, options.count
    kind, acc = kinds.x, accumulator_of(kinds.x)
    read, _ = summand(kind, kinds.skip, count)
    weight, bias = parameters_of(kinds, count, options.lanewise)
    write, coefficients = element(kind, kinds.residual, options.activation, count), write_coefficients(acc)
    get = load_one("float64")
    scalar = ACC[acc]

    @kernel(threads)
    def forward_apply_first(arrays, parameters, lengths, stats, slices, sizes):
        shared = cuda.shared.array(FIELDS, scalar)
        group, part = divided(cuda.blockIdx.x, slices.number)
        start = part * vectors * threads + cuda.threadIdx.x
        n, g = divided(group, sizes.G)
        valid = valid_positions(lengths, n, sizes.S.value)
        if cuda.threadIdx.x == 0:
            coefficients(shared, 0, get(stats, group), 0.0, get(stats, sizes.groups + group))
        cuda.syncthreads()
        centre = centre_at(shared, 0)
        for j in range(vectors):
            e = (start + j * threads) * count
            if e < sizes.D.value * sizes.S.value:
                d, s = divided(e, sizes.S)
                c = g * sizes.D.value + d
                places = elements_at(rows_at(arrays, n, c), s)
                if s < valid:
                    a = weight(parameters.weight, n, c) * centre.rstd
                    write(read(places), places, Affine(centre, a, bias(parameters.bias, n, c)))
                else:
                    store(places.y.address, places.y.i, kind, splat(0.0, kind, count))

    return forward_apply_first


@cache
def apply_last(options, columns, vectors, threads):
    """Y of some positions, channels last: each thread has a column, whose coefficients it keeps."""
    kinds, count = options.kinds, options.count
    kind, acc = kinds.x, accumulator_of(kinds.x)
    scalar, rows, channels = ACC[acc], threads // columns, columns * count
    read, _ = summand(kind, kinds.skip, count)
    write, in_column = (
        element(kind, kinds.residual, options.activation, count),
        column_coefficients(acc, count, columns),
    )
    fill = channel_coefficients(kinds, channels, threads)
    table_size, own_size = channels * (FIELDS + 2), threads * FIELDS

    @kernel(threads)
    def forward_apply_last(arrays, parameters, lengths, stats, slices, sizes):
        table = cuda.shared.array(table_size, scalar)
        own = cuda.shared.array(own_size, scalar)
        n, part, tile = block_last(cuda.blockIdx.x, slices)
        start = part * slices.size
        valid = valid_positions(lengths, n, sizes.S.value)
        stop = min(start + slices.size, sizes.S.value)
        statistics = statistics_in(stats, sizes)
        fill(table, own, cuda.threadIdx.x, Tile(n, tile * channels), parameters, statistics, sizes)
        cuda.syncthreads()
        row = cuda.threadIdx.x // columns
        column = cuda.threadIdx.x - row * columns
        c = tile * channels + column * count
        if c < sizes.C.value:
            centre, a, bb = in_column(table, column)
            affine, lines = Affine(centre, centre.rstd * a, bb), columns_at(arrays, n, c)
            for first in range(start + row, stop, rows * vectors):
                for j in range(vectors):
                    s = first + j * rows
                    if s < stop:
                        places = elements_at(lines, s)
                        if s < valid:
                            write(read(places), places, affine)
                        else:
                            store(places.y.address, places.y.i, kind, splat(0.0, kind, count))

    return forward_apply_last
