"""What the kernels of a call are made for and given: the same for both passes."""

from typing import NamedTuple

from ...kernels.cuda.kinds import Kinds, Options
from ...kernels.cuda.operands import Arrays, Lengths, Parameters, Statistics
from ..checks import ACTIVATIONS, Problem
from .buffers import Buffer, Way, count_of, operand_of, parameter_of
from .drafts import Draft
from .grids import layout_is_last
from .operands import Operands

__all__ = ["Work", "work_of"]


class Work(NamedTuple):
    """A call as its kernels see it."""

    p: Problem
    way: Way
    options: Options
    arrays: Arrays
    parameters: Parameters
    lengths: Lengths | None
    statistics: Statistics | None  # those that the backward pass is given
    target: Buffer  # `out`, or what then is copied there


def work_of(draft: Draft, given: Operands, dresidual: Buffer | None = None) -> Work:
    """Lay the operands out for kernels and choose how those walk over them."""
    p, x, weight, bias = given.p, given.x, given.weight, given.bias
    same, others = (x, given.skip, given.residual, given.dy), (weight, bias, given.mean, given.rstd)
    target = draft.target(given.out, p, same, others)
    skip, residual, dy = (buffer and draft.walkable(buffer, p) for buffer in same[1:])

    last, backward = layout_is_last(p.layout, p.S), dy is not None
    own = any(buffer is not None and buffer.shape != p.parameter_shapes[0] for buffer in (weight, bias))
    way = Way(last, p.S == 1 and not last and not (backward and own), given.lengths is not None)
    count = count_of(p, way, (x, skip, residual, dy, dresidual), (weight, bias))
    if count_of(p, way, (target,)) < count:  # where the result lies must not change the order of sums
        target = draft.beside(given.out, p)
    arrays = Arrays(*(operand_of(buffer, p) for buffer in (x, skip, residual, dy, target, dresidual)))
    parameters = Parameters(parameter_of(weight, p), parameter_of(bias, p))
    statistics = Statistics(given.mean.name, given.rstd.name, 0) if given.mean and given.rstd else None
    options = Options(_kinds(given), ACTIVATIONS[p.activation], count, way.lanewise and count > 1, way.padded)
    return Work(p, way, options, arrays, parameters, given.lengths, statistics, target)


def _kinds(given: Operands) -> Kinds:
    """Kernels for weights and biases that are not given are those for the accumulator's kind."""
    acc = given.p.dtype.accumulator.name
    kinds = {"weight": acc, "bias": acc}
    for name in Kinds._fields[1:]:
        buffer = getattr(given, name)
        if buffer is not None:
            kinds[name] = buffer.kind
    return Kinds(given.p.dtype.name, **kinds)
