"""How results are written, channels first, in the forward and in the backward pass.

A block, one group of one sample, is walked as one line of D * S elements, channel after channel: in pieces of RUN
elements, the last piece first, each from its beginning to its end. y is written, or dx and dresidual: which, and by
what coefficients, the class of `group` says: Centre, or CentreAndMeans.
"""

from ..callees import device, implements, inlined
from .memory import lanes, prefetch, splat
from .moments import in_lanes
from .operands import (
    Affine,
    Centre,
    CentreAndMeans,
    ForDx,
    ForDz,
    Gradients,
    Means,
    affine_of,
    at_element,
    at_row,
    for_dz_of,
    parameters_of,
)
from .results import aligned_from, clear_run, write_end, write_vector
from .tables import element_parameters, parameters_along
from .vectors import join

# While a small block is written from the cache, memory is idle: then the block this many further on is asked for.
# One thread, float32: forward (1024, 4096) took 0.65 ms without and 0.55 with it, backward 2.6 and 2.1, (4096, 768) 1.8
# and 1.3. One block on was too late, four no better. Blocks of more than AHEAD_MOST elements gained nothing.
BLOCKS_AHEAD, AHEAD_MOST = 2, 1 << 12


@device
def elements_ahead(work, n, sample_step):
    """How far ahead of what is written to ask for memory: 0 where blocks are large, or none follows."""
    size = work.D * work.S
    if size > AHEAD_MOST or n + BLOCKS_AHEAD >= work.N:
        return 0
    return BLOCKS_AHEAD * (sample_step if work.G == 1 else size)


# -------------------------------------------------------------------------------- coefficients, by the class of `group`


def of_channel(px, group, of_lanes, w, b):
    """What results of a channel with weight w and bias b are made with, in every lane.

    `of_lanes` is the group's coefficients in every lane: the same for all channels, so that it is made only once.
    """


@implements(of_channel, 1, Centre)
def affine_of_channel(px, group, of_lanes, w, b):
    return Affine(of_lanes.unit, of_lanes.origin, splat(px, group.factor * w), splat(px, group.lack * w + b))


@implements(of_channel, 1, CentreAndMeans)
def gradients_of_channel(px, group, of_lanes, w, b):
    for_dz = for_dz_of_channel(px, group.centre, of_lanes.centre, w, b)
    return Gradients(for_dz, ForDx(splat(px, w * group.means.rstd), of_lanes.means.by_d, of_lanes.means.constant))


@inlined
def for_dz_of_channel(px, centre, of_lanes, w, b):
    """What dz and d of a channel are made with, in every lane."""
    return ForDz(of_lanes.unit, of_lanes.origin, of_lanes.factor, splat(px, w), splat(px, b + centre.lack * w))


def joined(a, b, count):
    """What results are made with of which the first `count` lanes are of one channel, the others of another."""


@implements(joined, 0, Affine)
def joined_affine(a, b, count):
    return Affine(a.unit, a.origin, join(a.scale, b.scale, count), join(a.shift, b.shift, count))


@implements(joined, 0, Gradients)
def joined_gradients(a, b, count):
    dz, dx = a.for_dz, a.for_dx
    weight, bias = join(dz.weight, b.for_dz.weight, count), join(dz.bias, b.for_dz.bias, count)
    for_dx = ForDx(join(dx.scale, b.for_dx.scale, count), dx.by_d, dx.constant)
    return Gradients(ForDz(dz.unit, dz.origin, dz.factor, weight, bias), for_dx)


def group_in_lanes(px, group):
    """The group's coefficients, in every lane."""


@implements(group_in_lanes, 1, Centre)
def centre_in_lanes(px, group):
    return in_lanes(px, group)


@implements(group_in_lanes, 1, CentreAndMeans)
def centre_and_means_in_lanes(px, group):
    rstd, by_d, constant = group.means
    return CentreAndMeans(in_lanes(px, group.centre), Means(splat(px, rstd), splat(px, by_d), splat(px, constant)))


def of_elements(group, w, b):
    """What a vector of results with weights and biases of their own is made with; `group` is in every lane."""


@implements(of_elements, 0, Centre)
def affine_of_elements(group, w, b):
    return affine_of(group, w, b)


@implements(of_elements, 0, CentreAndMeans)
def gradients_of_elements(group, w, b):
    means = group.means
    return Gradients(for_dz_of(group.centre, w, b), ForDx(w * means.rstd, means.by_d, means.constant))


# ------------------------------------------------------------------------------------------------------------ the walk


@inlined
def write_pieces(work, block, low, high, group):
    """Pieces low .. high - 1 of a block, each RUN elements of its line.

    The last comes first: of a block larger than a cache, what was summed last is still there.
    """
    for piece in range(high - 1, low - 1, -1):
        start = piece * work.run
        stop = min(start + work.run, work.D * work.S)
        if work.S < lanes(block.arrays.x):
            write_elements(work, block, start, stop, group)
        elif work.dense != 0:
            write_channels(work, block, start, stop, group)
        else:
            write_rows(work, block, start, stop, group)


@inlined
def coefficients_of(work, block, c, group, of_lanes):
    """What results of channel c of a block are made with."""
    w, b = parameters_of(block.parameters, work, block.channel + c)
    return of_channel(block.arrays.x, group, of_lanes, w, b)


@device
def write_channels(work, block, start, stop, group):
    """Elements start .. stop - 1 of a block whose channels are a vector or longer, in whole aligned vectors."""
    arrays, act, width, s_count = block.arrays, block.act, lanes(block.arrays.x), work.S
    of_lanes = group_in_lanes(arrays.x, group)
    i = start
    aligned, past = aligned_from(work, arrays.y, start, stop)
    c = start // s_count
    end = (c + 1) * s_count
    of_c = coefficients_of(work, block, c, group, of_lanes)
    while i < stop:
        whole = i >= aligned and i + width <= stop
        count = width if whole else min((aligned if i < aligned else stop) - i, width)
        by, last = of_c, min(stop, end) - width
        own = end - i
        if own <= count:
            c, end = c + 1, end + s_count
            if i + own < stop:
                of_c = coefficients_of(work, block, c, group, of_lanes)
            if own < count:  # a vector that belongs to two channels
                by, last = joined(by, of_c, own), i
        if whole:
            while i <= last:
                write_vector(arrays, i, None, by, act, past)
                i += width
        else:
            write_vector(arrays, i, count, by, act, 0)
            i += count


@device
def write_rows(work, block, start, stop, group):
    """The same where there are gaps from channel to channel, or a mask that is the same for all of them.

    Apart from `write_channels`, which took half as long again on rows of 100 elements. A row's room is filled up with
    zeros: on their own, later, they took a third of the time of large arrays.
    """
    act, width, s_count = block.act, lanes(block.arrays.x), work.S
    of_lanes = group_in_lanes(block.arrays.x, group)
    c = start // s_count
    s = start - c * s_count
    row = at_element(at_row(block.arrays, work, c), work, s)
    while start < stop:
        count = min(s_count - s, stop - start)
        room = max(count, work.room - s) if s + count == s_count else count
        by = coefficients_of(work, block, c, group, of_lanes)
        i, past = aligned_from(work, row.y, 0, count)
        if i > 0:
            write_vector(row, 0, i, by, act, 0)
        while i + width <= count:
            write_vector(row, i, None, by, act, past)
            i += width
        if i + width <= room:
            write_end(row, i, count - i, by, act, past)
            i += width
        elif i < count:
            write_vector(row, i, count - i, by, act, 0)
            i = count
        clear_run(row.y, i, room - i, past)
        start, c = start + count, c + 1
        row, s = at_element(at_row(row, work, 1), work, -s), 0


@inlined
def write_elements(work, block, start, stop, group):
    """Elements start .. stop - 1 of a block whose channels are shorter than a vector; `slot` as `expand` left it."""
    arrays, act, width, group = block.arrays, block.act, lanes(block.arrays.x), group_in_lanes(block.arrays.x, group)
    elements = element_parameters(work, block.parameters, block.channel * work.S, block.slot)
    i = start
    aligned, past = aligned_from(work, arrays.y, start, stop)
    ahead, ahead_dy = elements_ahead(work, block.n, work.x_n), elements_ahead(work, block.n, work.dy_n)
    while i < stop:
        if i >= aligned:
            while i + width <= stop:
                prefetch(arrays.x, ahead + i)
                prefetch(arrays.dy, ahead_dy + i)
                w, b = parameters_along(elements, i, None)
                write_vector(arrays, i, None, of_elements(group, w, b), act, past)
                i += width
        count = (aligned if i < aligned else stop) - i
        if count > 0:
            w, b = parameters_along(elements, i, count)
            write_vector(arrays, i, count, of_elements(group, w, b), act, 0)
            i += count
