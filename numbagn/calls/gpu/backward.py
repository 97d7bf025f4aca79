"""The launches of the backward pass for arrays on a GPU."""

from typing import Any, NamedTuple

from ...kernels.cuda import backward as one_pass
from ...kernels.cuda import backward_split as split
from ...kernels.cuda.operands import Columns, Divisor, Gradients, Parameters, Partials, Sizes, Slices, Walk
from ..arguments import Backward
from ..checks import Problem
from . import grids
from .buffers import Buffer
from .drafts import Draft
from .grids import Channels, Whole, by
from .operands import operands_of
from .plans import Came, Plan
from .work import Work, work_of

__all__ = ["plan_backward"]


class Summed(NamedTuple):
    """The sums of each channel that a pass leaves."""

    partials: Partials
    columns: Columns
    slices: int  # of each sample, where parameters are its own


def plan_backward(given: Backward, came: Came) -> Plan:
    """A plan whose results are dx, dweight and dbias, and dresidual if there is a residual."""
    draft = Draft()
    operands = operands_of(draft, given, came)
    p, residual, dx = operands.p, operands.residual, operands.out
    dresidual = None if residual is None else draft.laid_out("dresidual", p, residual.array.dtype)
    dweight = _gradient(draft, "dweight", operands.weight, p)
    dbias = _gradient(draft, "dbias", operands.bias, p)
    results = (dx, dweight, dbias) if dresidual is None else (dx, dweight, dbias, dresidual)
    if p.size == 0:
        draft.clear(dweight)
        draft.clear(dbias)
        return draft.plan(p, results)
    work = work_of(draft, operands, dresidual)
    _sum_parameters(draft, p, _pass(draft, work), (dweight, dbias))
    draft.copy_if_other(work.target, dx)
    return draft.plan(p, results)


def _gradient(draft: Draft, name: str, parameter: Buffer | None, p: Problem) -> Buffer:
    """Memory for the gradient of a weight or bias, given or not."""
    if parameter is None:
        return draft.dense(name, p.parameter_shapes[0], p.dtype.accumulator)
    return draft.dense(name, parameter.shape, parameter.array.dtype)


def _pass(draft: Draft, work: Work) -> Summed:
    """The launches that make dx."""
    p, way, options = work.p, work.way, work.options
    D, wide = p.C // p.G, p.dtype.accumulator.itemsize * options.count > 16
    held = grids.rows_of(D, options.count, wide) if way.lanewise and not way.padded else None
    if held is not None:
        return _rows(draft, work, held)
    channels = None if way.last else grids.channels_of(D, p.S, options.count, wide)
    if channels is not None and not (way.lanewise and D > 64):
        return _in_one_pass(draft, work, channels)
    if way.lanewise:
        work = work._replace(options=options._replace(count=1, lanewise=False))
    return _channels_last(draft, work) if way.last else _channels_first(draft, work)


def _rows(draft: Draft, work: Work, held: Whole) -> Summed:
    p = work.p
    walked = max(1, -(-p.N // 512))  # rows a team walks over: from the batch, for the sums over it
    parts = -(-p.N // walked)
    partials = Partials(draft.scratch("partials", 2 * parts * p.C, p.dtype.accumulator), parts * p.C)
    sizes = Sizes(N=p.N, G=by(p.G), D=Divisor(p.C // p.G))
    blocks = -(-parts * p.G // (held.threads // held.team))
    kernel = one_pass.rows(work.options, held)
    draft.launch(kernel, blocks, work.arrays, work.parameters, work.statistics, partials, Walk(parts, walked), sizes)
    return Summed(partials, Columns(parts, p.C, by(p.C), 0, p.C), 1)


def _in_one_pass(draft: Draft, work: Work, channels: Channels) -> Summed:
    p = work.p
    partials = Partials(draft.scratch("partials", 2 * p.N * p.C, p.dtype.accumulator), p.N * p.C)
    sizes = Sizes(groups=p.N * p.G, G=by(p.G), D=by(p.C // p.G), S=Divisor(p.S))
    kernel, blocks = one_pass.whole(work.options, channels, grids.THREADS), -(-sizes.groups // channels.groups)
    draft.launch(kernel, blocks, *_given(work), partials, sizes)
    return Summed(partials, Columns(p.N, p.C, by(p.C), p.C, p.C), 1)


def _channels_last(draft: Draft, work: Work) -> Summed:
    p, options = work.p, work.options
    columns, tiles, sums = grids.columns_of(p.C, p.S, options.count)
    blocks = p.N * sums.slices * tiles
    slices = Slices(by(sums.slices), sums.size, by(tiles))
    sizes = Sizes(groups=p.N * p.G, G=Divisor(p.G), D=by(p.C // p.G), C=Divisor(p.C), S=Divisor(p.S))
    summed, means = _sums(draft, p, sums.slices)

    kernel = split.sums_last(options, columns, grids.THREADS)
    draft.launch(kernel, blocks, *_only_read(work), summed.partials, slices, sizes)
    _settle(draft, work, summed, means)
    kernel = split.apply_last(options, columns, grids.VECTORS, grids.THREADS)
    draft.launch(kernel, blocks, *_given(work), means, slices, sizes)
    return summed


def _channels_first(draft: Draft, work: Work) -> Summed:
    p, options = work.p, work.options
    D, count = p.C // p.G, options.count
    team = 32 if 1024 * count >= p.S else grids.THREADS
    number = max(1, -(-p.S // (16 * grids.THREADS * grids.VECTORS)))
    size = -(-p.S // (number * count)) * count
    summed, means = _sums(draft, p, number)

    sizes = Sizes(G=Divisor(p.G), D=by(D), C=by(p.C), S=Divisor(p.S))
    kernel = split.sums_first(options, team, grids.THREADS)
    blocks = -(-summed.partials.number // (grids.THREADS // team))
    draft.launch(kernel, blocks, *_only_read(work), summed.partials, Slices(by(number), size), sizes)
    _settle(draft, work, summed, means)
    stretches = -(-D * p.S // (count * grids.VECTORS * grids.THREADS))
    sizes = Sizes(groups=p.N * p.G, G=by(p.G), D=Divisor(D), S=by(p.S))
    kernel = split.apply_first(options, grids.VECTORS, grids.THREADS)
    draft.launch(kernel, sizes.groups * stretches, *_given(work), means, Slices(by(stretches)), sizes)
    return summed


def _sums(draft: Draft, p: Problem, slices: int) -> tuple[Summed, str]:
    """Memory for the sums of each channel and slice, and for the means of each group."""
    number = p.N * slices * p.C
    partials = Partials(draft.scratch("partials", 2 * number, p.dtype.accumulator), number)
    columns = Columns(p.N * slices, p.C, by(p.C), slices * p.C, p.C)
    return Summed(partials, columns, slices), draft.scratch("means", 2 * p.N * p.G)


def _given(work: Work) -> tuple[Any, ...]:
    """What kernels that write dx are given."""
    return work.arrays, work.parameters, work.lengths, work.statistics


def _only_read(work: Work) -> tuple[Any, ...]:
    """What kernels that sum are given."""
    return _given(work._replace(arrays=work.arrays._replace(y=None, dresidual=None)))


def _settle(draft: Draft, work: Work, summed: Summed, means: str) -> None:
    """The means of each group from the sums of its channels."""
    p, D = work.p, work.p.C // work.p.G
    sizes = Sizes(groups=p.N * p.G, G=by(p.G), D=by(D), C=Divisor(p.C), S=Divisor(p.S))
    kernel = split.settle(p.dtype.accumulator.name, work.options.kinds.weight, grids.THREADS)
    slices, parameters = Slices(Divisor(summed.slices)), Parameters(work.parameters.weight, None)
    draft.launch(kernel, sizes.groups, summed.partials, means, parameters, work.lengths, slices, sizes)


def _sum_parameters(draft: Draft, p: Problem, summed: Summed, gradients: tuple[Buffer, Buffer]) -> None:
    """Dweight and dbias from the sums of each channel: of all samples, or of each where parameters are its own."""
    dweight, dbias = gradients
    kernel = one_pass.parameters(p.dtype.accumulator.name, dweight.kind, dbias.kind, grids.THREADS)
    alike = dweight.shape == dbias.shape
    for result, flags in ((dweight, (1, 1)),) if alike else ((dweight, (1, 0)), (dbias, (0, 1))):
        shared, size = result.shape == p.parameter_shapes[0], result.array.size
        columns = summed.columns._replace(rows=summed.columns.rows if shared else summed.slices, columns=size)
        draft.launch(kernel, -(-size // 32), summed.partials, columns, Gradients(dweight.name, dbias.name, *flags))
