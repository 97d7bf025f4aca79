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
from .geometry import CHANNELS_FIRST, FIRST, G, LAST, N, SLOT, SLOTS, UNITS
from .memory import absent, offset, pointer, values
from .phases import steps_of_unit
from .vectors import code


@entry
def forward_kernel(layout, x_kind, skip_kind, residual_kind, activation, parallel, sources):
    """Make the forward kernel of one specialisation; all arguments are integers, so that it can be cached.

    The kernel reads flat arrays (storage kinds as given, parameters and scratch in the accumulator's type, statistics
    and partial sums in float64) by the strides in `dims`, and fills y and `work`: mean, rstd, partial sums.
    """
    y_kind = RESULT_KINDS[x_kind]

    def forward(dims, eps, x, skip, residual, y, weight, bias, work, scratch):
        if sources == 0:
            return
        count = dims[N] * dims[G]
        mean, rstd, partial = work[:count], work[count : 2 * count], work[2 * count :]
        for phase in range(dims[FIRST], dims[LAST]):
            steps = dims[UNITS] * steps_of_unit(phase, dims)
            tasks = min(steps, dims[SLOTS]) if parallel else 1
            # over the (n, g) blocks or parts of them, a stretch of neighbours to each task
            for t in prange(tasks):
                low, high = t * steps // tasks, (t + 1) * steps // tasks
                px, py = pointer(x, x_kind), pointer(y, y_kind)
                ps = absent(px) if skip_kind < 0 else pointer(skip, skip_kind)
                pr = absent(px) if residual_kind < 0 else pointer(residual, residual_kind)
                slot = offset(values(scratch), t * dims[SLOT])
                if layout == CHANNELS_FIRST:
                    steps_first(
                        phase, low, high, dims, eps, px, ps, pr, py, slot, weight, bias, mean, rstd, partial,
                        code(activation),
                    )  # fmt: skip
                else:
                    steps_last(
                        phase, low, high, dims, eps, px, ps, pr, py, slot, weight, bias, mean, rstd, partial,
                        code(activation),
                    )  # fmt: skip

    return forward
