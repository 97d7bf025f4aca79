"""Backward kernels for what no block's registers hold: the sums of each channel, the means of each group, then dx.

Partial sums of dz stand at (n * slices + slice) * C + c, those of dz * x_hat after all of them.

Memory: channels first a team of threads reads one slice of one row of x and dy (and skip and residual), and blocks of
their own write dx (and dresidual) of a stretch of one group, row after row; channels last both read and write a tile of
channels of some positions, neighbours in a row by neighbouring threads, one row of threads a position.
"""

from functools import cache

import numpy as np
from numba import cuda

from .backward import Means, Upstream, gradient_in, gradient_out, group_coefficients, zeros_out
from .forward import Tile, channel_coefficients, column_coefficients, parameter, parameters_of
from .kinds import accumulator_of
from .statistics import FIELDS, centre_at
from .target import (
    ACC,
    divide,
    divided,
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
)
from .walking import block_last, columns_at, elements_at, rows_at, valid_positions


@cache
def sums_first(options, team, threads):
    """The sums of one slice of one channel, channels first: a team of threads each."""
    kinds, count = options.kinds, options.count
    acc = accumulator_of(kinds.x)
    scalar, teams = ACC[acc], threads // team
    read = gradient_in(kinds, options.activation, count)
    weight, bias = parameters_of(kinds, count, False)
    sums, coefficients, put = team_sums(team, acc), group_coefficients(kinds), store_one(acc)
    table_size = teams * FIELDS

    @kernel(threads)
    def backward_sums_first(arrays, parameters, lengths, statistics, partials, slices, sizes):
        table = cuda.shared.array(table_size, scalar)
        place = cuda.threadIdx.x // team
        t = cuda.threadIdx.x % team
        item = cuda.blockIdx.x * teams + place  # (n, c, slice)
        row, part = divided(item, slices.number)
        n, c = divided(row, sizes.C)
        if t == 0 and item < partials.number:
            coefficients(table, place * FIELDS, statistics, n * sizes.G.value + divide(c, sizes.D))
        cuda.syncthreads()
        sum_dz, sum_x = splat(0.0, acc, count), splat(0.0, acc, count)
        if item < partials.number:
            a, bb = weight(parameters.weight, n, c), bias(parameters.bias, n, c)
            upstream = Upstream(centre_at(table, place * FIELDS), a, bb)
            stop = min((part + 1) * slices.size, valid_positions(lengths, n, sizes.S.value))
            lines = rows_at(arrays, n, c)
            for s in range(part * slices.size + t * count, stop, team * count):
                dz, x_hat = read(elements_at(lines, s), upstream)
                sum_dz = sum_dz + dz
                sum_x = fma(dz, x_hat, sum_x)
        one, two = sums(lane_sum(sum_dz), lane_sum(sum_x))
        if t == 0 and item < partials.number:
            out = (n * slices.number.value + part) * sizes.C.value + c
            put(partials.address, out, one)
            put(partials.address, partials.number + out, two)

    return backward_sums_first


@cache
def sums_last(options, columns, threads):
    """The sums of each channel over one slice of positions, channels last."""
    kinds, count = options.kinds, options.count
    acc = accumulator_of(kinds.x)
    scalar, rows, channels = ACC[acc], threads // columns, columns * count
    read, put = gradient_in(kinds, options.activation, count), store_one(acc)
    fill, in_column = channel_coefficients(kinds, channels, threads), column_coefficients(acc, count, columns)
    table_size, own_size, sums_size = channels * (FIELDS + 2), threads * FIELDS, channels * rows

    @kernel(threads)
    def backward_sums_last(arrays, parameters, lengths, statistics, partials, slices, sizes):
        table = cuda.shared.array(table_size, scalar)
        own = cuda.shared.array(own_size, scalar)
        of_dz = cuda.shared.array(sums_size, scalar)
        of_x = cuda.shared.array(sums_size, scalar)
        n, part, tile = block_last(cuda.blockIdx.x, slices)
        C = sizes.C.value
        stop = min((part + 1) * slices.size, valid_positions(lengths, n, sizes.S.value))
        fill(table, own, cuda.threadIdx.x, Tile(n, tile * channels), parameters, statistics, sizes)
        cuda.syncthreads()
        row = cuda.threadIdx.x // columns
        column = cuda.threadIdx.x - row * columns
        c = tile * channels + column * count
        sum_dz, sum_x = splat(0.0, acc, count), splat(0.0, acc, count)
        if c < C:
            centre, a, bb = in_column(table, column)
            upstream, lines = Upstream(centre, a, bb), columns_at(arrays, n, c)
            for s in range(part * slices.size + row, stop, rows):
                dz, x_hat = read(elements_at(lines, s), upstream)
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
                out = (n * slices.number.value + part) * C + tile * channels + i
                put(partials.address, out, one)
                put(partials.address, partials.number + out, two)

    return backward_sums_last


@cache
def settle(acc, w_kind, threads):
    """The means of g and of g * x_hat of each group: a block each."""
    get, put, weight = load_one(acc), store_one("float64"), parameter(w_kind, acc, 1, False, 1.0)

    @kernel(threads)
    def backward_settle(partials, means, parameters, lengths, slices, sizes):
        of_g = cuda.shared.array(threads, np.float64)
        of_gx = cuda.shared.array(threads, np.float64)
        t = cuda.threadIdx.x
        group = cuda.blockIdx.x
        D = sizes.D.value
        n, g = divided(group, sizes.G)
        one, two = 0.0, 0.0
        for p in range(t, D * slices.number.value, threads):
            i, d = divided(p, sizes.D)
            c = g * D + d
            place = (n * slices.number.value + i) * sizes.C.value + c
            a = np.float64(weight(parameters.weight, n, c))
            one += np.float64(get(partials.address, place)) * a
            two += np.float64(get(partials.address, partials.number + place)) * a
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
            elements = max(D * valid_positions(lengths, n, sizes.S.value), 1)
            put(means, group, of_g[0] / elements)
            put(means, sizes.groups + group, of_gx[0] / elements)

    return backward_settle


@cache
def apply_first(options, vectors, threads):
    """Dx of one stretch of one group, channels first."""
    kinds, count = options.kinds, options.count
    acc = accumulator_of(kinds.x)
    scalar = ACC[acc]
    read, write = gradient_in(kinds, options.activation, count), gradient_out(kinds.x, kinds.residual, count)
    clear, coefficients = zeros_out(kinds.x, kinds.residual, count), group_coefficients(kinds)
    weight, bias = parameters_of(kinds, count, False)
    get, table_size = load_one("float64"), FIELDS + 2

    @kernel(threads)
    def backward_apply_first(arrays, parameters, lengths, statistics, means, slices, sizes):
        table = cuda.shared.array(table_size, scalar)
        D, S = sizes.D.value, sizes.S.value
        group, part = divided(cuda.blockIdx.x, slices.number)
        start = part * vectors * threads + cuda.threadIdx.x
        n, g = divided(group, sizes.G)
        valid = valid_positions(lengths, n, S)
        if cuda.threadIdx.x == 0:
            coefficients(table, 0, statistics, group)
            table[FIELDS] = scalar(get(means, group))
            table[FIELDS + 1] = scalar(get(means, sizes.groups + group))
        cuda.syncthreads()
        centre, of_group = centre_at(table, 0), Means(table[FIELDS], table[FIELDS + 1])
        r = centre.rstd * centre.scale
        for j in range(vectors):
            e = (start + j * threads) * count
            if e < D * S:
                d, s = divided(e, sizes.S)
                c = g * D + d
                places = elements_at(rows_at(arrays, n, c), s)
                if s < valid:
                    a = weight(parameters.weight, n, c)
                    dz, x_hat = read(places, Upstream(centre, a, bias(parameters.bias, n, c)))
                    write(dz, x_hat, places, r, a, of_group)
                else:
                    clear(places)

    return backward_apply_first


@cache
def apply_last(options, columns, vectors, threads):
    """Dx of some positions, channels last."""
    kinds, count = options.kinds, options.count
    acc = accumulator_of(kinds.x)
    scalar, rows, channels, in_lanes = ACC[acc], threads // columns, columns * count, lanes_in(acc, count)
    read, write = gradient_in(kinds, options.activation, count), gradient_out(kinds.x, kinds.residual, count)
    clear, get = zeros_out(kinds.x, kinds.residual, count), load_one("float64")
    fill, in_column = channel_coefficients(kinds, channels, threads), column_coefficients(acc, count, columns)
    table_size, own_size, means_size = channels * (FIELDS + 2), threads * FIELDS, channels * 2

    @kernel(threads)
    def backward_apply_last(arrays, parameters, lengths, statistics, means, slices, sizes):
        table = cuda.shared.array(table_size, scalar)
        own = cuda.shared.array(own_size, scalar)
        of_groups = cuda.shared.array(means_size, scalar)
        n, part, tile = block_last(cuda.blockIdx.x, slices)
        C, S = sizes.C.value, sizes.S.value
        start = part * slices.size
        valid = valid_positions(lengths, n, S)
        stop = min(start + slices.size, S)
        fill(table, own, cuda.threadIdx.x, Tile(n, tile * channels), parameters, statistics, sizes)
        for i in range(cuda.threadIdx.x, channels, threads):
            if tile * channels + i < C:
                group = n * sizes.G.value + divide(tile * channels + i, sizes.D)
                of_groups[i] = scalar(get(means, group))
                of_groups[channels + i] = scalar(get(means, sizes.groups + group))
        cuda.syncthreads()
        row = cuda.threadIdx.x // columns
        column = cuda.threadIdx.x - row * columns
        c = tile * channels + column * count
        if c < C:
            centre, a, bb = in_column(table, column)
            upstream, r = Upstream(centre, a, bb), centre.rstd * centre.scale
            lines = columns_at(arrays, n, c)
            of_channels = Means(in_lanes(of_groups, column), in_lanes(of_groups, columns + column))
            for begin in range(start + row, stop, rows * vectors):
                for j in range(vectors):
                    s = begin + j * rows
                    if s < stop:
                        places = elements_at(lines, s)
                        if s < valid:
                            dz, x_hat = read(places, upstream)
                            write(dz, x_hat, places, r, a, of_channels)
                        else:
                            clear(places)

    return backward_apply_last
