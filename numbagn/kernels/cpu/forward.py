"""The forward pass on the CPU: y = activation((x + skip - mean) * rstd * weight + bias + residual).

Each block is walked twice, by `forward_first` or `forward_last` as its memory lies: once for its sums, part after part,
and, when its statistics are finished, once for y, piece after piece. `forward_kernel` does that block after block, or
shares the parts and pieces of all blocks out to threads. All bounds come from shapes alone and every step writes only
what is its own, so the bits do not depend on how the steps are shared out.
"""

from ...arrays.dtypes import RESULT_KINDS
from ...shapes.geometry import CHANNELS_FIRST
from ..compiled import entry
from .forward_first import steps_first
from .forward_last import steps_last
from .memory import offset, values
from .operands import Call, Parameters, Statistics, pointers
from .phases import phase_task, share_out
from .sharing import run_tasks
from .vectors import code
from .work import work_at


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
        results, no_means, scratch = memory
        work, mean = work_at(table, 0), values(results)
        groups = work.batch * work.G
        x, skip, residual = code(x_kind), code(skip_kind), code(residual_kind)
        operands = pointers(arrays, x, skip, residual, x, code(y_kind), code(mask_kind))
        weight, bias = parameters
        of_channels = Parameters(values(weight), values(bias))
        statistics, sums = Statistics(mean, offset(mean, groups), values(no_means)), offset(mean, 2 * groups)
        call = Call(operands, of_channels, statistics, sums, values(scratch), eps, code(activation))
        for phase in range(work.first, work.last):
            tasks, given = share_out(phase, launcher, problems, table, call)
            if layout == CHANNELS_FIRST:
                run_tasks(launcher, tasks, phase_task, steps_first, given)
            else:
                run_tasks(launcher, tasks, phase_task, steps_last, given)

    return forward
