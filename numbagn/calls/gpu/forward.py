"""The launches of the forward pass for arrays on a GPU."""

from typing import NamedTuple

import numpy as np

from ...kernels.cuda import forward as one_pass
from ...kernels.cuda import split
from ...kernels.cuda.kinds import Kinds, Options
from ...kernels.cuda.operands import Arrays, Divisor, Lengths, Merged, Parameters, Partials, Sizes, Slices
from ..arguments import Forward
from ..checks import ACTIVATIONS, Problem
from . import grids
from .buffers import Way, count_of, operand_of, parameter_of
from .drafts import Draft
from .grids import Whole, by
from .operands import Arguments
from .plans import Came, Plan

__all__ = ["plan_forward"]


class Work(NamedTuple):
    """What the kernels of a call are made for and given."""

    p: Problem
    options: Options
    arrays: Arrays
    parameters: Parameters
    lengths: Lengths | None
    stats: str  # the buffer of both statistics


def plan_forward(given: Forward, came: Came) -> Plan:
    """A plan whose results are y and both statistics."""
    draft = Draft()
    arguments = Arguments(draft, given, came)
    p, x = arguments.problem(given.eps)
    weight, bias = (arguments.parameter(name, p) for name in ("weight", "bias"))
    skip, residual = (arguments.operand(name, p) for name in ("skip", "residual"))
    wanted = arguments.output(p)
    lengths = arguments.lengths(p)
    y = wanted or arguments.result("y", p)
    stats = draft.dense("stats", (2, *p.statistics_shape), np.float64)
    if p.size == 0:
        draft.clear(stats)
        return draft.plan(p, (y, stats))
    target = draft.target(y, p, same=(x, skip, residual), others=(weight, bias))
    skip, residual = (buffer and draft.walkable(buffer, p) for buffer in (skip, residual))

    last = grids.layout_is_last(p.layout, p.S)
    way = Way(last, p.S == 1 and not last, lengths is not None)
    count = count_of(p, way, (x, skip, residual), (weight, bias))
    if count_of(p, way, (target,)) < count:  # where y lies must not change the order of sums
        target = draft.beside(y, p)
    acc = p.dtype.accumulator.name
    kinds = Kinds(
        p.dtype.name,
        skip=skip.kind if skip else "",
        residual=residual.kind if residual else "",
        weight=weight.kind if weight else acc,
        bias=bias.kind if bias else acc,
    )
    options = Options(kinds, ACTIVATIONS[p.activation], count, way.lanewise and count > 1, way.padded)
    arrays = Arrays(*(operand_of(buffer, p) for buffer in (x, skip, residual, None, target)))
    parameters = Parameters(parameter_of(weight, p), parameter_of(bias, p))
    work = Work(p, options, arrays, parameters, lengths, stats.name)
    held = None if last else grids.whole_of(p.C // p.G * p.S, count)
    if held is not None:
        _in_one_pass(draft, work, held)
    elif last:
        _channels_last(draft, work)
    else:
        _channels_first(draft, work)
    if target is not y:
        draft.copy(target, y)
    return draft.plan(p, (y, stats))


def _in_one_pass(draft: Draft, work: Work, held: Whole) -> None:
    p = work.p
    sizes = Sizes(groups=p.N * p.G, G=by(p.G), D=Divisor(p.C // p.G), S=by(p.S))
    blocks = -(-sizes.groups // (held.threads // held.team))
    kernel = one_pass.whole(work.options, held)
    draft.launch(kernel, blocks, work.arrays, work.parameters, work.lengths, work.stats, sizes, p.eps)


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
    draft.launch(
        sum_up, blocks, work.arrays._replace(residual=None, y=None), work.lengths, partials, slices, sizes, p.eps
    )
    draft.launch(split.settle(grids.THREADS), sizes.groups, partials, work.stats, merged, sizes, p.eps)
    apply = split.apply_last(options, columns, grids.VECTORS, grids.THREADS)
    draft.launch(apply, blocks, work.arrays, work.parameters, work.lengths, work.stats, slices, sizes)


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
    draft.launch(
        sum_up, number, work.arrays._replace(residual=None, y=None), work.lengths, partials, slices, sizes, p.eps
    )
    draft.launch(split.settle(grids.THREADS), sizes.groups, partials, work.stats, merged, sizes, p.eps)
    stretches = -(-D * p.S // (options.count * grids.VECTORS * grids.THREADS))
    apply = split.apply_first(options, grids.VECTORS, grids.THREADS)
    blocks = sizes.groups * stretches
    draft.launch(apply, blocks, work.arrays, work.parameters, work.lengths, work.stats, Slices(by(stretches)), sizes)
