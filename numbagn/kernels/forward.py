"""The forward pass on the CPU: y = activation((x + skip - mean) * rstd * weight + bias + residual).

Per memory layout (`forward_first`, `forward_last`) three steps on a block: sum its parts, settle its statistics, write
its pieces; `forward_kernel` runs them over all blocks, in parallel or not. All bounds come from shapes alone
and every step writes only what is its own, so the bits do not depend on how the steps are shared out.
"""

from numba import prange

from .._dtypes import RESULT_KINDS
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
from .vectors import code


@entry
def forward_kernel(layout, x_kind, skip_kind, residual_kind, mask_kind, activation, parallel, sources):
    """Make the forward kernel of one specialisation; all arguments are integers, so that it can be cached.

    The kernel reads flat arrays (storage kinds as given, parameters and scratch in the accumulator's type, statistics
    and partial sums in float64) by the strides in `dims`, and fills y and `work`: mean, rstd, partial sums.
    """
    y_kind = RESULT_KINDS[x_kind]

    def forward(dims, eps, x, skip, residual, y, weight, bias, mask, work, scratch):
        if sources == 0:
            return
        problems, table = dims.shape[0], values(dims)
        common = table
        count = common[BATCH] * common[G]
        for phase in range(common[FIRST], common[LAST]):
            steps = common[UNITS] * steps_of_unit(phase, common) if problems == 1 else problems
            tasks = min(steps, common[SLOTS]) if parallel else 1
            # over the (n, g) blocks or parts of them, or over problems, a stretch of neighbours to each task
            for t in prange(tasks):
                low, high = t * steps // tasks, (t + 1) * steps // tasks
                slot = offset(values(scratch), t * common[SLOT])
                px, py = pointer(x, x_kind), pointer(y, y_kind)
                ps = absent(px) if skip_kind < 0 else pointer(skip, skip_kind)
                pr = absent(px) if residual_kind < 0 else pointer(residual, residual_kind)
                pm = mask_pointer(mask, mask_kind)
                for q in range(low if problems > 1 else 0, high if problems > 1 else 1):
                    own = offset(table, q * FIELD_COUNT)
                    n = own[SAMPLE]
                    mean = offset(values(work), n * own[G])
                    rstd = offset(mean, count)
                    first, last = (low, high) if problems == 1 else (0, own[UNITS] * steps_of_unit(phase, own))
                    ox, os, om = offset(px, n * own[X_N]), offset(ps, n * own[SKIP_N]), offset(pm, n * own[MASK_N])
                    ores, oy = offset(pr, n * own[RES_N]), offset(py, n * own[Y_N])
                    w, b = offset(values(weight), n * own[W_N]), offset(values(bias), n * own[B_N])
                    partial = offset(values(work), 2 * count + own[AT])
                    if layout == CHANNELS_FIRST:
                        steps_first(
                            phase, first, last, own, eps, ox, os, ores, oy, om, slot, w, b, mean, rstd, partial,
                            code(activation),
                        )  # fmt: skip
                    else:
                        steps_last(
                            phase, first, last, own, eps, ox, os, ores, oy, om, slot, w, b, mean, rstd, partial,
                            code(activation),
                        )  # fmt: skip

    return forward
