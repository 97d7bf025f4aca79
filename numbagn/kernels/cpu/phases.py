"""The phases' steps: what a unit (a block, or channels last a sample) is shared out in."""

from ...shapes.geometry import SUM, WRITE
from ..callees import device


@device
def steps_of_unit(phase, work):
    """How many steps a phase has for one unit."""
    if phase == SUM:
        return work.sums
    if phase == WRITE:
        return work.pieces
    return 1
