"""What `_schedule` shares out by the shapes alone, for compiled code."""

from numba.extending import register_jitable

from ...shapes import schedule
from ...shapes.geometry import FIELDS
from ..callees import CALLEE
from .work import set_field

for _function in (
    schedule.first_work, schedule.last_work, schedule.backward_first_work, schedule.backward_last_work,
    schedule._parts, schedule._width, schedule._rows, schedule._elements,
):  # fmt: skip
    register_jitable(**CALLEE)(_function)

WORK_FIELDS = tuple(map(FIELDS.index, schedule.WORK))


@register_jitable(**CALLEE)
def take_shares(work, shares):
    """Write what one of those functions gave."""
    for i in range(len(WORK_FIELDS)):
        set_field(work, WORK_FIELDS[i], shares[i])
