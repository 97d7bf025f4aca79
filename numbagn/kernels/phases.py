"""The phases' steps: what a unit (a block, or channels last a sample) is shared out in."""

from .callees import device
from .geometry import PIECES, SUM, SUMS, WRITE


@device
def steps_of_unit(phase, dims):
    """How many steps a phase has for one unit."""
    if phase == SUM:
        return dims[SUMS]
    if phase == WRITE:
        return dims[PIECES]
    return 1
