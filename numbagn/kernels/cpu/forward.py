"""The forward pass on the CPU: y = activation((x + skip - mean) * rstd * weight + bias + residual).

Per memory layout (`forward_first`, `forward_last`) three steps on a block: sum its parts, settle its statistics, write
its pieces; `forward_kernel` runs them over all blocks, in parallel or not. All bounds come from shapes alone
and every step writes only what is its own, so the bits do not depend on how the steps are shared out.
"""

from ...arrays.dtypes import RESULT_KINDS
from ...shapes.geometry import CHANNELS_FIRST
from ..callees import inlined
from ..compiled import entry
from .forward_first import steps_first
from .forward_last import steps_last
from .masks import mask_pointer
from .memory import offset, pointer, values
from .operands import Arrays, Forward, Parameters, Statistics, at_sample, parameters_at
from .phases import steps_of_unit
from .sharing import run_tasks
from .vectors import code
from .work import work_at


@inlined
def forward_task(t, run, phase, steps, tasks, problems, dims, call):
    """Task t of a phase: over the (n, g) blocks or parts of them, or over problems, a stretch of neighbours to each."""
    low, high, batch = t * steps // tasks, (t + 1) * steps // tasks, work_at(dims, 0)
    slot, statistics = offset(call.slot, t * batch.slot), call.statistics
    for q in range(low if problems > 1 else 0, high if problems > 1 else 1):
        own = work_at(dims, q)
        n = own.sample
        first, last = (low, high) if problems == 1 else (0, own.units * steps_of_unit(phase, own))
        of_sample = Statistics(
            offset(statistics.mean, n * own.G), offset(statistics.rstd, n * own.G), offset(statistics.sums, own.at)
        )
        arrays, parameters = at_sample(call.arrays, own, n), parameters_at(call.parameters, own, n)
        run(phase, first, last, own, Forward(arrays, parameters, of_sample, slot, call.eps, call.act))


@entry
def forward_kernel(layout, x_kind, skip_kind, residual_kind, mask_kind, activation, sources):
    """Make the forward kernel of one specialisation; all arguments are integers, so that it can be cached.

    The kernel reads flat arrays by the strides in `dims`: `arrays` in the order of `operands.Arrays`, of the storage
    kinds given, None where there is none; `parameters`, weight and bias, in the accumulator's type. It fills y, and of
    `memory` (statistics, None, scratch) the first: mean, rstd and partial sums, in float64. `launcher`: as for
    `run_tasks`.
    """
    y_kind = RESULT_KINDS[x_kind]
    skip_kind, residual_kind = (x_kind if kind < 0 else kind for kind in (skip_kind, residual_kind))

    def forward(dims, eps, arrays, parameters, memory, launcher):
        if sources == 0:
            return
        problems, table = dims.shape[0], values(dims)
        x, skip, residual, dy, y, dresidual, mask = arrays
        statistics, _, scratch = memory
        work, sums = work_at(table, 0), values(statistics)
        groups = work.batch * work.G
        operands = Arrays(
            pointer(x, x_kind),
            pointer(skip, skip_kind),
            pointer(residual, residual_kind),
            pointer(dy, x_kind),
            pointer(y, y_kind),
            pointer(dresidual, x_kind),
            mask_pointer(mask, mask_kind),
        )
        of_batch = Statistics(sums, offset(sums, groups), offset(sums, 2 * groups))
        weight, bias = parameters
        given = Parameters(values(weight), values(bias))
        call = Forward(operands, given, of_batch, values(scratch), eps, code(activation))
        for phase in range(work.first, work.last):
            steps = work.units * steps_of_unit(phase, work) if problems == 1 else problems
            tasks = 1 if launcher == 0 else min(steps, work.slots)
            given = phase, steps, tasks, problems, table, call
            if layout == CHANNELS_FIRST:
                run_tasks(launcher, tasks, forward_task, steps_first, given)
            else:
                run_tasks(launcher, tasks, forward_task, steps_last, given)

    return forward
