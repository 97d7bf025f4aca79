"""The forward pass on GPUs: in one pass over x where a group fits the registers of a block, else sums, then y.

Grids are one-dimensional. What a kernel is made for (dtypes, threads, options) are constants of its closure: each
factory gives one kernel for one set of them. Sizes and strides count elements, addresses are integers.

Memory, of the kernel here: a team of threads reads its group of x (and skip) once, row after row from the first
channel on, neighbours in a row by neighbouring threads; from its registers it writes y (reading the residual) in the
same order.
"""

from collections import namedtuple
from functools import cache

import numpy as np
from numba import cuda

from .kinds import ITEMSIZE, accumulator_of
from .statistics import FIELDS, centre_at, centre_in_lanes, centred, inverse_std, scale_for, write_coefficients
from .target import (
    ACC,
    activation_of,
    device,
    divide,
    divided,
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
    warp_any,
)
from .walking import elements_at, rows_at, valid_positions

# What y is made with: what x is centred with, weight * rstd, bias.
Affine = namedtuple("Affine", "centre factor bias")
# A thread's place in the group that its team holds: sample, first channel, elements, valid positions.
Group = namedtuple("Group", "thread n c size valid")
# A block's place, channels last: sample, first channel.
Tile = namedtuple("Tile", "n first")


@cache
def summand(kind, skip_kind, count):
    """A function (places) that gives packed x, or packed x + skip in the accumulator's kind; and the kind."""
    acc = accumulator_of(kind)
    if not skip_kind:

        @device
        def plain(places):
            return load(places.x.address, places.x.i, kind, count)

        return plain, kind

    @device
    def both(places):
        x = unpack(load(places.x.address, places.x.i, kind, count), acc)
        return pack(x + unpack(load(places.skip.address, places.skip.i, skip_kind, count), acc), acc)

    return both, acc


@cache
def parameter(kind, acc, count, lanewise, default):
    """A function (parameter, sample, channel) that gives a weight or bias: lanes of it, or one number for all lanes."""
    one = load_one(kind)
    scalar = ACC[acc]
    if lanewise:

        @device
        def of_lanes(given, n, c):
            if given.c:
                return unpack(load(given.address, n * given.n + c, kind, count), acc)
            return splat(default, acc, count)

        return of_lanes

    @device
    def of_all(given, n, c):
        if given.c:
            return scalar(one(given.address, n * given.n + c))
        return scalar(default)

    return of_all


@cache
def parameters_of(kinds, count, lanewise):
    """The functions of `parameter` for weight and bias."""
    acc = accumulator_of(kinds.x)
    return (
        parameter(kinds.weight, acc, count, lanewise, 1.0),
        parameter(kinds.bias, acc, count, lanewise, 0.0),
    )


@cache
def element(kind, res_kind, act, count):
    """A function that normalizes and writes one packed x: the formula of y."""
    activate, acc = activation_of(act), accumulator_of(kind)

    @device
    def write(v, places, affine):
        z = fma(centred(unpack(v, acc), affine.centre), affine.factor, affine.bias)
        if res_kind:
            z = z + unpack(load(places.residual.address, places.residual.i, res_kind, count), acc)
        store(places.y.address, places.y.i, kind, activate(z))

    return write


@cache
def channel_coefficients(kinds, channels, threads):
    """A function that fills a block's table with what the channels of its tile are normalized by, channels last.

    Field f of channel i stands at f * channels + i: those of `write_coefficients`, then weight and bias. `own` is
    shared memory of FIELDS values a thread. The thread is an argument, since Numba's simulator lends `cuda` to the
    module of a running kernel only.
    """
    acc = accumulator_of(kinds.x)
    weight, bias = parameters_of(kinds, 1, False)
    coefficients, get_mean, get_rstd = write_coefficients(acc), load_one(kinds.mean), load_one(kinds.rstd)

    @device
    def fill(table, own, thread, tile, parameters, statistics, sizes):
        for i in range(thread, channels, threads):
            c = tile.first + i
            if c < sizes.C.value:
                group = tile.n * sizes.G.value + divide(c, sizes.D)
                r = np.float64(get_rstd(statistics.rstd, statistics.rstd_at + group))
                coefficients(own, thread * FIELDS, np.float64(get_mean(statistics.mean, group)), 0.0, r)
                for f in range(FIELDS):
                    table[f * channels + i] = own[thread * FIELDS + f]
                table[FIELDS * channels + i] = weight(parameters.weight, tile.n, c)
                table[(FIELDS + 1) * channels + i] = bias(parameters.bias, tile.n, c)

    return fill


@cache
def column_coefficients(acc, count, columns):
    """A function (table, column): centre, weight and bias for the channels of one column, as lanes."""
    in_lanes, centre = lanes_in(acc, count), centre_in_lanes(acc, count)

    @device
    def of_column(table, column):
        weight, bias = in_lanes(table, FIELDS * columns + column), in_lanes(table, (FIELDS + 1) * columns + column)
        return centre(table, columns, column), weight, bias

    return of_column


@cache
def whole(options, held_by):
    """One pass: a team of threads holds a group in registers, `held_by.vectors` packed values a thread."""
    kinds, count, padded = options.kinds, options.count, options.padded
    vectors, team, threads = held_by
    kind, acc = kinds.x, accumulator_of(kinds.x)
    scalar, teams = ACC[acc], threads // team
    read, held = summand(kind, kinds.skip, count)
    words = vectors * max(1, ITEMSIZE[held] * count // 4)
    sums, next_scale, coefficients = team_sums(team, acc), scale_for(acc), write_coefficients(acc)
    weight, bias = parameters_of(kinds, count, options.lanewise)
    write = element(kind, kinds.residual, options.activation, count)
    put, places_of_teams = store_one("float64"), teams * FIELDS
    zero, one = scalar(0.0), scalar(1.0)

    @device
    def finish(j, state, registers, group, arrays, parameters, S, centre):
        e = (group.thread + j * team) * count
        if e < group.size:
            d, s = divided(e, S)
            n, c = group.n, group.c + d
            places = elements_at(rows_at(arrays, n, c), s)
            if s < group.valid:
                a = weight(parameters.weight, n, c) * centre.rstd
                write(kept(registers, j, held, count), places, Affine(centre, a, bias(parameters.bias, n, c)))
            else:
                store(places.y.address, places.y.i, kind, splat(0.0, kind, count))
        return state

    @device
    def add(j, lanes, registers, scale):
        return fma(unpack(kept(registers, j, held, count), acc), scale, lanes)

    @device
    def add_differences(j, both, registers, scale, m, group, S):
        lanes, lanes_2 = both
        e = (group.thread + j * team) * count
        if e < group.size:
            s = e - divide(e, S) * S.value if padded else 0
            if s < group.valid:
                d = fma(unpack(kept(registers, j, held, count), acc), scale, -m)
                lanes = lanes + d
                lanes_2 = fma(d, d, lanes_2)
        return lanes, lanes_2

    finish_all, sum_all, sum_differences = (unrolled(body, vectors) for body in (finish, add, add_differences))

    @kernel(threads)
    def forward_whole(arrays, parameters, lengths, stats, sizes, eps):
        registers = cuda.local.array(words, np.uint32)
        shared = cuda.shared.array(places_of_teams, scalar)
        S = sizes.S
        thread = cuda.threadIdx.x % team
        place = cuda.threadIdx.x // team
        number = cuda.blockIdx.x * teams + place
        n, g = divided(number, sizes.G)
        c = g * sizes.D.value
        size = sizes.D.value * S.value
        valid = S.value
        if number >= sizes.groups:
            size = 0
        elif padded:
            valid = valid_positions(lengths, n, S.value)
        elements = sizes.D.value * valid
        group = Group(thread, n, c, size, valid)

        for j in range(vectors):
            e = (thread + j * team) * count
            v = pack(splat(0.0, held, count), held)
            if e < size:
                d, s = divided(e, S)
                if s < valid:
                    v = read(elements_at(rows_at(arrays, n, c + d), s))
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
            lanes, lanes_2 = sum_differences(0, nothing, registers, scale, m, group, S)
            total, squares = sums(lane_sum(lanes), lane_sum(lanes_2))
            wanted = next_scale(squares, m, scale, eps)
            again = wanted != scale
            if team <= 32:
                again = warp_any(again)
            scale = wanted

        if thread == 0 and number < sizes.groups:
            correction = np.float64(total) / max(elements, 1)
            variance = np.float64(squares) / max(elements, 1) - correction * correction
            mean = np.float64(m) / scale
            correction = correction / scale
            rstd = inverse_std(variance, eps, np.float64(scale)) if elements > 0 else 0.0
            exact = mean + correction
            put(stats, number, exact)
            put(stats, sizes.groups + number, rstd)
            coefficients(shared, place * FIELDS, exact, (mean - exact) + correction, rstd)
        cuda.syncthreads()
        if number < sizes.groups:
            finish_all(0, 0, registers, group, arrays, parameters, S, centre_at(shared, place * FIELDS))

    return forward_whole
