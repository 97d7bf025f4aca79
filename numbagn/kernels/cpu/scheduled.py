"""How the work of a call is shared out by its shapes, as `shapes.schedule` has it, for compiled code."""

from numba.extending import register_jitable

from ...shapes import schedule
from ...shapes.geometry import FIELDS
from ..callees import CALLEE
from .work import set_field

SHARED = "first_work last_work backward_first_work backward_last_work _parts _width _rows _elements"
for _name in SHARED.split():
    register_jitable(**CALLEE)(getattr(schedule, _name))

WORK_FIELDS = tuple(map(FIELDS.index, schedule.WORK))


@register_jitable(**CALLEE)
def take_shares(work, shares):
    """Write what one of the functions named `..._work` gave among the integers of a problem."""
    for i in range(len(WORK_FIELDS)):
        set_field(work, WORK_FIELDS[i], shares[i])
