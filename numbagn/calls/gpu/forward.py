"""The launches of the forward pass for arrays on a GPU."""

import numpy as np

from ...kernels.cuda import forward as one_pass
from ...kernels.cuda import split
from ...kernels.cuda.operands import Arrays, Divisor, Merged, Partials, Sizes, Slices
from ..arguments import Forward
from . import grids
from .drafts import Draft
from .grids import Whole, by
from .operands import operands_of
from .plans import Came, Plan
from .work import Work, work_of

__all__ = ["plan_forward"]

STATS = "stats"  # the buffer of both statistics


def plan_forward(given: Forward, came: Came) -> Plan:
    """A plan whose results are y and both statistics."""
    draft = Draft()
    operands = operands_of(draft, given, came)
    p, y = operands.p, operands.out
    stats = draft.dense(STATS, (2, *p.statistics_shape), np.float64)
    if p.size == 0:
        draft.clear(stats)
        return draft.plan(p, (y, stats))
    work = work_of(draft, operands)
    held = None if work.way.last else grids.whole_of(p.C // p.G * p.S, work.options.count)
    if held is not None:
        _in_one_pass(draft, work, held)
    elif work.way.last:
        _channels_last(draft, work)
    else:
        _channels_first(draft, work)
    draft.copy_if_other(work.target, y)
    return draft.plan(p, (y, stats))


def _in_one_pass(draft: Draft, work: Work, held: Whole) -> None:
    p = work.p
    sizes = Sizes(groups=p.N * p.G, G=by(p.G), D=Divisor(p.C // p.G), S=by(p.S))
    blocks = -(-sizes.groups // (held.threads // held.team))
    kernel = one_pass.whole(work.options, held)
    draft.launch(kernel, blocks, work.arrays, work.parameters, work.lengths, STATS, sizes, p.eps)


def _summed(work: Work) -> Arrays:
    """The arrays that are summed."""
    return work.arrays._replace(residual=None, y=None)


def _channels_last(draft: Draft, work: Work) -> None:
    p, options = work.p, work.options
    D = p.C // p.G
    columns, tiles, sums = grids.columns_of(p.C, p.S, options.count)
    blocks = p.N * sums.slices * tiles
    number = p.N * sums.slices * p.C
    partials = Partials(draft.scratch("partials", 3 * number), number)
    slices = Slices(by(sums.slices), sums.size, by(tiles))
    sizes = Sizes(groups=p.N * p.G, G=by(p.G), D=by(D), C=Divisor(p.C), S=Divisor(p.S))
    merged = Merged(D * sums.slices, by(D), p.C, sums.slices * p.C, D)

    sum_up = split.sums_last(options.of_sums(), columns, grids.THREADS)
    draft.launch(sum_up, blocks, _summed(work), work.lengths, partials, slices, sizes, p.eps)
    draft.launch(split.settle(grids.THREADS), sizes.groups, partials, STATS, merged, sizes, p.eps)
    apply = split.apply_last(options, columns, grids.VECTORS, grids.THREADS)
    draft.launch(apply, blocks, work.arrays, work.parameters, work.lengths, STATS, slices, sizes)


def _channels_first(draft: Draft, work: Work) -> None:
    p, options = work.p, work.options
    D = p.C // p.G
    sums = grids.slices_of(D * p.S, options.count)
    sizes = Sizes(groups=p.N * p.G, G=by(p.G), D=Divisor(D), S=by(p.S))
    number = sizes.groups * sums.slices
    partials = Partials(draft.scratch("partials", 3 * number), number)
    slices = Slices(by(sums.slices), sums.size)
    merged = Merged(sums.slices, by(1), 1, p.G * sums.slices, sums.slices)

    sum_up = split.sums_first(options.of_sums(), grids.VECTORS, grids.THREADS)
    draft.launch(sum_up, number, _summed(work), work.lengths, partials, slices, sizes, p.eps)
    draft.launch(split.settle(grids.THREADS), sizes.groups, partials, STATS, merged, sizes, p.eps)
    stretches = -(-D * p.S // (options.count * grids.VECTORS * grids.THREADS))
    apply = split.apply_first(options, grids.VECTORS, grids.THREADS)
    blocks = sizes.groups * stretches
    draft.launch(apply, blocks, work.arrays, work.parameters, work.lengths, STATS, Slices(by(stretches)), sizes)
