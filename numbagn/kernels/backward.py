"""The backward pass on the CPU, two sweeps over each block.

With dz = dy * activation'(x_hat * weight + bias + residual):

    dbias = sum of dz over n and s               dweight = sum of dz * x_hat over n and s
    dx = rstd * (weight * dz - m1 - x_hat * m2)  dresidual = dz

where m1 and m2 are the group's means of weight * dz and of weight * dz * x_hat (Wu & He 2018, by the chain rule). The
loops work on d = (x - K) * rstd, K as in the forward pass, so nothing is lost where the mean is large against the
deviation; x_hat - d is one small number for a block.

Sums per channel go to `sums`, laid out (PARTS, 2, N, C): first dz, then dz * d; settling adds the parts in order into
the first and makes x_hat of d. Where a channel is one element and the samples share the parameters, they are summed
over stretches of samples at once (`backward_rows`): (2, UNITS, C), of dz and of dz * x_hat.
"""

from numba import prange

from .backward_first import steps_first
from .backward_last import steps_last
from .backward_rows import steps_rows
from .compiled import entry
from .geometry import C, CHANNELS_FIRST, CHANNELS_LAST, FIRST, LAST, N, PARTS, SLOT, SLOTS, UNITS
from .memory import absent, offset, pointer, values
from .phases import steps_of_unit
from .vectors import code


@entry
def backward_kernel(layout, x_kind, dy_kind, skip_kind, residual_kind, activation, parallel, sources):
    """Make the backward kernel of one specialisation, as `forward_kernel` does.

    It fills dx, dresidual, `work` (sums; m1, m2 and shift of each block; at its end float64 totals of the sums over the
    samples) and the parameters' gradients: dbias, dweight.
    """

    def backward(dims, dy, x, skip, residual, dx, dresidual, weight, bias, mean, rstd, work, gradients, scratch):
        if sources == 0:
            return
        tables = dims[N] if layout <= CHANNELS_LAST else dims[UNITS]
        channels = tables * dims[C]
        blocks_at, totals_at = 2 * dims[PARTS] * channels, len(work) - 2 * dims[C]
        sums, block, totals = work[:blocks_at], work[blocks_at:totals_at], work[totals_at:]
        for phase in range(dims[FIRST], dims[LAST]):
            steps = dims[UNITS] * steps_of_unit(phase, dims)
            tasks = min(steps, dims[SLOTS]) if parallel else 1
            # over the (n, g) blocks or parts of them, a stretch of neighbours to each task
            for t in prange(tasks):
                low, high = t * steps // tasks, (t + 1) * steps // tasks
                pdy, px, pdx = pointer(dy, dy_kind), pointer(x, x_kind), pointer(dx, x_kind)
                ps = absent(px) if skip_kind < 0 else pointer(skip, skip_kind)
                if residual_kind < 0:
                    pr, pdr = absent(px), absent(px)
                else:
                    pr, pdr = pointer(residual, residual_kind), pointer(dresidual, residual_kind)
                slot = offset(values(scratch), t * dims[SLOT])
                if layout == CHANNELS_FIRST:
                    steps_first(
                        phase, low, high, dims, pdy, px, ps, pr, pdx, pdr, slot, weight, bias, mean, rstd, sums, block,
                        code(activation),
                    )  # fmt: skip
                elif layout == CHANNELS_LAST:
                    steps_last(
                        phase, low, high, dims, pdy, px, ps, pr, pdx, pdr, slot, weight, bias, mean, rstd, sums, block,
                        code(activation),
                    )  # fmt: skip
                else:
                    steps_rows(
                        phase, low, high, dims, pdy, px, ps, pr, pdx, pdr, slot, weight, bias, mean, rstd, sums, block,
                        code(activation),
                    )  # fmt: skip

        totals[:] = 0.0
        for n in range(tables):
            for row in range(2):
                for c in range(dims[C]):
                    totals[row * dims[C] + c] += sums[row * channels + n * dims[C] + c]
        gradients[:] = totals

    return backward
