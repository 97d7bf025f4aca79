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
from .geometry import (
    AT, BATCH, B_N, CHANNELS_FIRST, FIELD_COUNT, FIRST, G, LAST, MASK_N, RES_N, SAMPLE, SKIP_N, SLOT, SLOTS, UNITS, W_N,
    X_N, Y_N,
)  # fmt: skip
from .masks import mask_pointer
from .memory import absent, offset, pointer, values
from .phases import steps_of_unit
from .sharing import run_tasks
from .vectors import code


@inlined
def forward_task(t, run, phase, steps, tasks, problems, dims, eps, px, ps, pr, py, pm, slots, weight, bias, work, act):
    """Task t of a phase: over the (n, g) blocks or parts of them, or over problems, a stretch of neighbours to each."""
    low, high = t * steps // tasks, (t + 1) * steps // tasks
    slot, count = offset(slots, t * dims[SLOT]), dims[BATCH] * dims[G]
    for q in range(low if problems > 1 else 0, high if problems > 1 else 1):
        own = offset(dims, q * FIELD_COUNT)
        n = own[SAMPLE]
        mean = offset(work, n * own[G])
        first, last = (low, high) if problems == 1 else (0, own[UNITS] * steps_of_unit(phase, own))
        run(
            phase, first, last, own, eps, offset(px, n * own[X_N]), offset(ps, n * own[SKIP_N]),
            offset(pr, n * own[RES_N]), offset(py, n * own[Y_N]), offset(pm, n * own[MASK_N]), slot,
            offset(weight, n * own[W_N]), offset(bias, n * own[B_N]), mean, offset(mean, count),
            offset(work, 2 * count + own[AT]), act,
        )  # fmt: skip


@entry
def forward_kernel(layout, x_kind, skip_kind, residual_kind, mask_kind, activation, sources):
    """Make the forward kernel of one specialisation; all arguments are integers, so that it can be cached.

    The kernel reads flat arrays (storage kinds as given, parameters and scratch in the accumulator's type, statistics
    and partial sums in float64) by the strides in `dims`, and fills y and `work`: mean, rstd, partial sums. `launcher`:
    as for `run_tasks`.
    """
    y_kind = RESULT_KINDS[x_kind]

    def forward(dims, eps, x, skip, residual, y, weight, bias, mask, work, scratch, launcher):
        if sources == 0:
            return
        problems, table = dims.shape[0], values(dims)
        px, py, pm = pointer(x, x_kind), pointer(y, y_kind), mask_pointer(mask, mask_kind)
        ps = absent(px) if skip_kind < 0 else pointer(skip, skip_kind)
        pr = absent(px) if residual_kind < 0 else pointer(residual, residual_kind)
        for phase in range(table[FIRST], table[LAST]):
            steps = table[UNITS] * steps_of_unit(phase, table) if problems == 1 else problems
            tasks = 1 if launcher == 0 else min(steps, table[SLOTS])
            given = (
                phase, steps, tasks, problems, table, eps, px, ps, pr, py, pm, values(scratch), values(weight),
                values(bias), values(work), code(activation),
            )  # fmt: skip
            if layout == CHANNELS_FIRST:
                run_tasks(launcher, tasks, forward_task, steps_first, given)
            else:
                run_tasks(launcher, tasks, forward_task, steps_last, given)

    return forward
