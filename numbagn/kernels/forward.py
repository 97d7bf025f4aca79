"""The forward pass on the CPU: y = activation((x + skip - mean) * rstd * weight + bias + residual).

Per memory layout (`forward_first`, `forward_last`) three steps on a block: sum its parts, settle its statistics, write
its pieces; `forward_kernel` runs them over all blocks, in parallel or not. All bounds come from shapes alone
and every step writes only what is its own, so the bits do not depend on how the steps are shared out.
"""

from .._dtypes import RESULT_KINDS
from .callees import inlined
from .compiled import entry
from .forward_first import steps_first
from .forward_last import steps_last
from .geometry import CHANNELS_FIRST
from .masks import mask_pointer
from .memory import absent, offset, pointer, values
from .phases import steps_of_unit
from .sharing import run_tasks
from .vectors import code
from .work import work_at


@inlined
def forward_task(
    t, run, phase, steps, tasks, problems, dims, eps, px, ps, pr, py, pm, slots, weight, bias, statistics, act
):
    """Task t of a phase: over the (n, g) blocks or parts of them, or over problems, a stretch of neighbours to each."""
    low, high, all_work = t * steps // tasks, (t + 1) * steps // tasks, work_at(dims, 0)
    slot, count = offset(slots, t * all_work.slot), all_work.batch * all_work.G
    for q in range(low if problems > 1 else 0, high if problems > 1 else 1):
        own = work_at(dims, q)
        n = own.sample
        mean = offset(statistics, n * own.G)
        first, last = (low, high) if problems == 1 else (0, own.units * steps_of_unit(phase, own))
        run(
            phase, first, last, own, eps, offset(px, n * own.x_n), offset(ps, n * own.skip_n),
            offset(pr, n * own.res_n), offset(py, n * own.y_n), offset(pm, n * own.mask_n), slot,
            offset(weight, n * own.w_n), offset(bias, n * own.b_n), mean, offset(mean, count),
            offset(statistics, 2 * count + own.at), act,
        )  # fmt: skip


@entry
def forward_kernel(layout, x_kind, skip_kind, residual_kind, mask_kind, activation, sources):
    """Make the forward kernel of one specialisation; all arguments are integers, so that it can be cached.

    The kernel reads flat arrays (storage kinds as given, parameters and scratch in the accumulator's type) by the
    strides in `dims`, and fills y and `statistics`: mean, rstd and partial sums, in float64. `launcher`: as for
    `run_tasks`.
    """
    y_kind = RESULT_KINDS[x_kind]

    def forward(dims, eps, x, skip, residual, y, weight, bias, mask, statistics, scratch, launcher):
        if sources == 0:
            return
        problems, table = dims.shape[0], values(dims)
        work = work_at(table, 0)
        px, py, pm = pointer(x, x_kind), pointer(y, y_kind), mask_pointer(mask, mask_kind)
        ps = absent(px) if skip_kind < 0 else pointer(skip, skip_kind)
        pr = absent(px) if residual_kind < 0 else pointer(residual, residual_kind)
        for phase in range(work.first, work.last):
            steps = work.units * steps_of_unit(phase, work) if problems == 1 else problems
            tasks = 1 if launcher == 0 else min(steps, work.slots)
            given = (
                phase, steps, tasks, problems, table, eps, px, ps, pr, py, pm, values(scratch), values(weight),
                values(bias), values(statistics), code(activation),
            )  # fmt: skip
            if layout == CHANNELS_FIRST:
                run_tasks(launcher, tasks, forward_task, steps_first, given)
            else:
                run_tasks(launcher, tasks, forward_task, steps_last, given)

    return forward
