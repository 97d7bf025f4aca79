"""The backward pass on GPUs: in one pass over x and dy where a group fits the registers of a block.

With dz = dy * activation'(z) and x_hat, a channel's sums of dz and of dz * x_hat give the group's means of g = dz *
weight and of g * x_hat, and over the samples dbias and dweight. All are summed in a fixed order, without atomics.

Memory: a team of threads reads a row of x and dy (and skip and residual) at a time, neighbours in it by neighbouring
threads; from its registers it writes dx (and dresidual) in the same order. Partial sums of the parameters are read down
their columns, 32 columns beside each other.
"""

from collections import namedtuple
from functools import cache

import numpy as np
from numba import cuda

from .forward import parameters_of, summand
from .kinds import ITEMSIZE, accumulator_of
from .statistics import FIELDS, Centre, centre_at, centred, write_coefficients
from .target import (
    ACC,
    device,
    divided,
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
)
from .walking import elements_at, rows_at, valid_positions

# What dz and x_hat are made with: what x is centred with, weight, bias.
Upstream = namedtuple("Upstream", "centre weight bias")
# A channel's means of g and of g * x_hat.
Means = namedtuple("Means", "g gx")


@cache
def gradient_in(kinds, act, count):
    """A function that reads one x and dy and gives (dz, x_hat)."""
    read, _ = summand(kinds.x, kinds.skip, count)
    dy_kind, res_kind = kinds.dy, kinds.residual
    slope, acc = slope_of(act), accumulator_of(kinds.x)

    @device
    def both(places, upstream):
        centre = upstream.centre
        x_hat = centred(unpack(read(places), acc), centre) * centre.rstd
        dz = unpack(load(places.dy.address, places.dy.i, dy_kind, count), acc)
        if act is not None:
            z = fma(x_hat, upstream.weight, upstream.bias)
            if res_kind:
                z = z + unpack(load(places.residual.address, places.residual.i, res_kind, count), acc)
            dz = dz * slope(z)
        return dz, x_hat

    return both


@cache
def gradient_out(kind, res_kind, count):
    """A function that writes dx, and dresidual where there is a residual."""

    @device
    def write(dz, x_hat, places, r, w, means):
        store(places.y.address, places.y.i, kind, (dz * w - means.g - x_hat * means.gx) * r)
        if res_kind:
            store(places.dresidual.address, places.dresidual.i, res_kind, dz)

    return write


@cache
def zeros_out(kind, res_kind, count):
    """A function that writes zeros where nothing is valid."""

    @device
    def write(places):
        store(places.y.address, places.y.i, kind, splat(0.0, kind, count))
        if res_kind:
            store(places.dresidual.address, places.dresidual.i, res_kind, splat(0.0, res_kind, count))

    return write


@cache
def group_coefficients(kinds):
    """A function that leaves in a table what the elements of one group are centred with."""
    coefficients = write_coefficients(accumulator_of(kinds.x))
    get_mean, get_rstd = load_one(kinds.mean), load_one(kinds.rstd)

    @device
    def write(table, place, statistics, group):
        mean = np.float64(get_mean(statistics.mean, group))
        coefficients(table, place, mean, 0.0, np.float64(get_rstd(statistics.rstd, statistics.rstd_at + group)))

    return write


@device
def channel_of(channel, first_group, sizes):
    """(group of the block, sample, channel of it) of a block's channel, counted from its first group on."""
    g, d = divided(channel, sizes.D)
    n, group = divided(first_group + g, sizes.G)
    return g, n, group * sizes.D.value + d


@cache
def whole(options, channels, threads):
    """One pass, channels first: a team of a warp's threads for each channel, `channels.each` channels a team.

    A block has `channels.groups` groups; a thread holds `each * vectors` packed dz and x_hat in registers.
    """
    kinds, count, padded = options.kinds, options.count, options.padded
    each, vectors, team, groups_in = channels
    acc = accumulator_of(kinds.x)
    scalar, teams, in_lanes = ACC[acc], threads // team, lanes_in(acc, count)
    per_channel = vectors * max(1, ITEMSIZE[acc] * count // 4)
    read = gradient_in(kinds, options.activation, count)
    write, clear = gradient_out(kinds.x, kinds.residual, count), zeros_out(kinds.x, kinds.residual, count)
    weight, bias = parameters_of(kinds, count, False)
    sums, coefficients, put = team_sums(team, acc), group_coefficients(kinds), store_one(acc)
    words, most = each * per_channel, each * teams
    fields = FIELDS + 2
    table_size = groups_in * fields

    @kernel(threads)
    def backward_whole(arrays, parameters, lengths, statistics, partials, sizes):
        held_dz = cuda.local.array(words, np.uint32)
        held_x = cuda.local.array(words, np.uint32)
        table = cuda.shared.array(table_size, scalar)
        of_dz = cuda.shared.array(most, scalar)
        of_x = cuda.shared.array(most, scalar)
        D, S = sizes.D.value, sizes.S.value
        first_group = cuda.blockIdx.x * groups_in
        here = min(groups_in, sizes.groups - first_group)
        for i in range(cuda.threadIdx.x, here, threads):
            coefficients(table, i * fields, statistics, first_group + i)
        cuda.syncthreads()
        t = cuda.threadIdx.x % team
        which = cuda.threadIdx.x // team

        for k in range(each):
            channel = which + k * teams
            sum_dz, sum_x = splat(0.0, acc, count), splat(0.0, acc, count)
            if channel < here * D:
                g, n, c = channel_of(channel, first_group, sizes)
                a, bb = weight(parameters.weight, n, c), bias(parameters.bias, n, c)
                upstream = Upstream(centre_at(table, g * fields), a, bb)
                valid = valid_positions(lengths, n, S) if padded else S
                lines = rows_at(arrays, n, c)
                for j in range(vectors):
                    s = (t + j * team) * count
                    if s < valid:
                        dz, x_hat = read(elements_at(lines, s), upstream)
                        sum_dz = sum_dz + dz
                        sum_x = fma(dz, x_hat, sum_x)
                        keep(held_dz, k * vectors + j, pack(dz, acc))
                        keep(held_x, k * vectors + j, pack(x_hat, acc))
            one, two = sums(lane_sum(sum_dz), lane_sum(sum_x))
            if t == 0 and channel < here * D:
                place = first_group * D + channel
                put(partials.address, place, one)
                put(partials.address, partials.number + place, two)
                g, n, c = channel_of(channel, first_group, sizes)
                a = weight(parameters.weight, n, c)
                of_dz[channel] = one * a
                of_x[channel] = two * a
        cuda.syncthreads()
        for g in range(which, here, teams):
            one, two = scalar(0.0), scalar(0.0)
            if t == 0:
                for d in range(g * D, g * D + D):
                    one += of_dz[d]
                    two += of_x[d]
                sample, _ = divided(first_group + g, sizes.G)
                valid = valid_positions(lengths, sample, S) if padded else S
                elements = scalar(max(D * valid, 1))
                table[g * fields + FIELDS] = one / elements
                table[g * fields + FIELDS + 1] = two / elements
        cuda.syncthreads()

        for k in range(each):
            channel = which + k * teams
            if channel < here * D:
                g, n, c = channel_of(channel, first_group, sizes)
                a = weight(parameters.weight, n, c)
                at = g * fields
                centre, means = centre_at(table, at), Means(table[at + FIELDS], table[at + FIELDS + 1])
                r = centre.rstd * centre.scale
                valid = valid_positions(lengths, n, S) if padded else S
                lines = rows_at(arrays, n, c)
                for j in range(vectors):
                    s = (t + j * team) * count
                    if s < S:
                        places = elements_at(lines, s)
                        if s < valid:
                            dz, x_hat = in_lanes(held_dz, k * vectors + j), in_lanes(held_x, k * vectors + j)
                            write(dz, x_hat, places, r, a, means)
                        else:
                            clear(places)

    return backward_whole


@cache
def rows(options, held):
    """One pass where each channel has one position and all samples one weight: layer norm.

    A team of threads walks over rows (one group of one sample each), `parts` apart, and keeps the sums of its channels;
    each team's go to the partial sums.
    """
    kinds, count = options.kinds, options.count
    vectors, team, threads = held
    acc = accumulator_of(kinds.x)
    scalar, teams, in_lanes = ACC[acc], threads // team, lanes_in(acc, count)
    read, write = gradient_in(kinds, options.activation, count), gradient_out(kinds.x, kinds.residual, count)
    weight, bias = parameters_of(kinds, count, True)
    sums, coefficients = team_sums(team, acc), group_coefficients(kinds)
    words, table_size = vectors * max(1, ITEMSIZE[acc] * count // 4), teams * FIELDS

    @kernel(threads)
    def backward_rows(arrays, parameters, statistics, partials, walk, sizes):
        # one block or team for each part of the samples and each group
        total_dz = cuda.local.array(words, np.uint32)
        total_x = cuda.local.array(words, np.uint32)
        held_dz = cuda.local.array(words, np.uint32)
        held_x = cuda.local.array(words, np.uint32)
        table = cuda.shared.array(table_size, scalar)
        G, D, parts = sizes.G.value, sizes.D.value, walk.parts
        place = cuda.threadIdx.x // team
        t = cuda.threadIdx.x % team
        part, g = divided(cuda.blockIdx.x * teams + place, sizes.G)
        at = place * FIELDS
        zero = splat(0.0, acc, count)
        for j in range(vectors):
            keep(total_dz, j, pack(zero, acc))
            keep(total_x, j, pack(zero, acc))
        for step in range(walk.walked):
            n = part + step * parts
            live = n < sizes.N and part < parts
            lines = rows_at(arrays, n, 0)
            cuda.syncthreads()
            if t == 0 and live:
                coefficients(table, at, statistics, n * G + g)
            cuda.syncthreads()
            nothing = scalar(0.0)
            centre = centre_at(table, at) if live else Centre(nothing, nothing, nothing, nothing)
            sum_g, sum_gx = zero, zero
            for j in range(vectors):
                d = (t + j * team) * count
                if d < D and live:
                    c = g * D + d
                    a = weight(parameters.weight, 0, c)
                    upstream = Upstream(centre, a, bias(parameters.bias, 0, c))
                    dz, x_hat = read(elements_at(lines, c), upstream)
                    sum_g = fma(dz, a, sum_g)
                    sum_gx = fma(dz * a, x_hat, sum_gx)
                    keep(held_dz, j, pack(dz, acc))
                    keep(held_x, j, pack(x_hat, acc))
                    keep(total_dz, j, pack(in_lanes(total_dz, j) + dz, acc))
                    keep(total_x, j, pack(fma(dz, x_hat, in_lanes(total_x, j)), acc))
            mean_g, mean_gx = sums(lane_sum(sum_g), lane_sum(sum_gx))
            means = Means(mean_g / scalar(D), mean_gx / scalar(D))
            for j in range(vectors):
                d = (t + j * team) * count
                if d < D and live:
                    c = g * D + d
                    dz, x_hat, a = in_lanes(held_dz, j), in_lanes(held_x, j), weight(parameters.weight, 0, c)
                    write(dz, x_hat, elements_at(lines, c), centre.rstd * centre.scale, a, means)
        for j in range(vectors):
            d = (t + j * team) * count
            if d < D and part < parts:
                place = part * (G * D) + g * D + d
                store(partials.address, place, acc, in_lanes(total_dz, j))
                store(partials.address, partials.number + place, acc, in_lanes(total_x, j))

    return backward_rows


@cache
def parameters(acc, w_kind, b_kind, threads):
    """Dweight and dbias from partial sums: 32 results a block, for each a column of threads over the rows."""
    get, put_w, put_b = load_one(acc), store_one(w_kind), store_one(b_kind)
    heights = threads // 32

    @kernel(threads)
    def backward_parameters(partials, columns, gradients):
        of_dz = cuda.shared.array(threads, np.float64)
        of_x = cuda.shared.array(threads, np.float64)
        t = cuda.threadIdx.x
        i = cuda.blockIdx.x * 32 + t % 32
        one, two = 0.0, 0.0
        if i < columns.columns:
            outer, inner = divided(i, columns.C)
            first = outer * columns.pitch + inner
            for k in range(t // 32, columns.rows, heights):
                one += np.float64(get(partials.address, first + k * columns.stride))
                two += np.float64(get(partials.address, partials.number + first + k * columns.stride))
        of_dz[t] = one
        of_x[t] = two
        cuda.syncthreads()
        if t < 32 and i < columns.columns:
            for k in range(1, heights):
                one += of_dz[t + 32 * k]
                two += of_x[t + 32 * k]
            if gradients.with_bias:
                put_b(gradients.dbias, i, one)
            if gradients.with_weight:
                put_w(gradients.dweight, i, two)

    return backward_parameters
