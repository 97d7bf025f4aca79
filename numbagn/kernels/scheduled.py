"""What `_schedule` shares out by the shapes alone, for compiled code."""

from numba.extending import register_jitable

from .. import _schedule
from .callees import CALLEE
from .geometry import FIELDS
from .work import set_field

for _function in (
    _schedule.first_work, _schedule.last_work, _schedule.backward_first_work, _schedule.backward_last_work,
    _schedule._parts, _schedule._width, _schedule._rows, _schedule._elements,
):  # fmt: skip
    register_jitable(**CALLEE)(_function)

WORK_FIELDS = tuple(map(FIELDS.index, _schedule.WORK))


@register_jitable(**CALLEE)
def take_shares(work, shares):
    """Write what one of those functions gave."""
    for i in range(len(WORK_FIELDS)):
        set_field(work, WORK_FIELDS[i], shares[i])
