"""The backward pass on the CPU.

Each block is walked twice, by `backward_first`, `backward_last` or `backward_rows`: once for its sums, part after part,
and once for dx and dresidual, piece after piece.

With dz = dy * activation'(x_hat * weight + bias + residual):

    dbias = sum of dz over n and s               dweight = sum of dz * x_hat over n and s
    dx = rstd * (weight * dz - m1 - x_hat * m2)  dresidual = dz

where m1 and m2 are the group's means of weight * dz and of weight * dz * x_hat (Wu & He 2018, by the chain rule). The
loops sum d = (x - K) * rstd, K as in the forward pass, so nothing is lost where the mean is large against the
deviation; x_hat - d is one small number for a group.

Sums per channel go to `sums`, laid out (PARTS, 2, N, C): first dz, then dz * d; in the end the parts are added, in
order, into the first, and dz * x_hat made of dz * d. Where a channel is one element and the samples share the
parameters, they are summed over stretches of samples at once (`backward_rows`): (2, UNITS, C), of dz and dz * x_hat.
"""

from ...arrays.dtypes import RESULT_KINDS
from ...shapes.geometry import CHANNELS_FIRST, CHANNELS_LAST, SINGLE_POSITION
from ..compiled import entry
from .backward_first import steps_first
from .backward_last import steps_last
from .backward_rows import steps_rows
from .memory import offset, values
from .operands import Call, Parameters, Statistics, pointers
from .phases import phase_task, share_out
from .sharing import run_tasks
from .vectors import code
from .work import work_at


@entry
def backward_kernel(layout, x_kind, dy_kind, skip_kind, residual_kind, mask_kind, activation, sources):
    """Make the backward kernel of one specialisation, as `forward_kernel` does.

    It is given mean and rstd, and fills dx, dresidual, and of `memory` (sums, gradients, scratch) the first two: sums
    of each problem, m1 and m2 of each block, float64 totals of the sums over the samples; and dbias and dweight.
    """
    dx_kind = RESULT_KINDS[x_kind]
    skip_kind, residual_kind = (x_kind if kind < 0 else kind for kind in (skip_kind, residual_kind))

    def backward(dims, statistics, arrays, parameters, memory, launcher):
        if sources == 0:
            return
        problems, table = dims.shape[0], values(dims)
        all_sums, gradients, scratch = memory
        work, sums = work_at(table, 0), values(all_sums)
        channels = work.C
        totals_at = all_sums.size - 2 * channels
        means_at = totals_at - 2 * work.batch * work.G
        if layout == SINGLE_POSITION:
            means_at = 2 * work.units * channels
        x, skip, residual = code(x_kind), code(skip_kind), code(residual_kind)
        operands = pointers(arrays, x, skip, residual, code(dy_kind), code(dx_kind), code(mask_kind))
        weight, bias = parameters
        of_channels = Parameters(values(weight), values(bias))
        mean, rstd = statistics
        of_batch = Statistics(values(mean), values(rstd), offset(sums, means_at))
        call = Call(operands, of_channels, of_batch, sums, values(scratch), 0.0, code(activation))
        for phase in range(work.first, work.last):
            tasks, given = share_out(phase, launcher, problems, table, call)
            if layout == CHANNELS_FIRST:
                run_tasks(launcher, tasks, phase_task, steps_first, given)
            elif layout == CHANNELS_LAST:
                run_tasks(launcher, tasks, phase_task, steps_last, given)
            else:
                run_tasks(launcher, tasks, phase_task, steps_rows, given)

        totals = offset(sums, totals_at)
        for i in range(2 * channels):
            totals[i] = 0.0
        for q in range(problems):
            own = work_at(table, q)
            rows = own.units if layout == SINGLE_POSITION else own.N
            for n in range(rows):
                for row in range(2):
                    at = own.at + (row * rows + n) * channels
                    for c in range(channels):
                        totals[row * channels + c] += sums[at + c]
        for i in range(2 * channels):
            gradients[i] = totals[i]

    return backward
