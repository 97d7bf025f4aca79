"""What a task of a phase does: its steps, of the units (blocks, or channels last samples) of one problem or several."""

from ...shapes.geometry import SUM, WRITE
from ..callees import device, inlined
from .memory import offset
from .operands import Call, at_sample, parameters_at, statistics_at
from .work import work_at


@device
def steps_of_unit(phase, work):
    """How many steps a phase has for one unit."""
    if phase == SUM:
        return work.sums
    if phase == WRITE:
        return work.pieces
    return 1


@inlined
def share_out(phase, launcher, problems, dims, call):
    """(number of tasks of a phase, what each of them is given): of the steps of one problem, or of several problems."""
    work = work_at(dims, 0)
    steps = work.units * steps_of_unit(phase, work) if problems == 1 else problems
    tasks = 1 if launcher == 0 else min(steps, work.slots)
    return tasks, (phase, steps, tasks, problems, dims, call)


@inlined
def phase_task(t, run, phase, steps, tasks, problems, dims, call):
    """Task t of a phase: `run` over a stretch of neighbouring steps of one problem, or over several problems."""
    low, high = t * steps // tasks, (t + 1) * steps // tasks
    slot = offset(call.slot, t * work_at(dims, 0).slot)
    for q in range(low if problems > 1 else 0, high if problems > 1 else 1):
        own = work_at(dims, q)
        n = own.sample
        first, last = (low, high) if problems == 1 else (0, own.units * steps_of_unit(phase, own))
        arrays, parameters = at_sample(call.arrays, own, n), parameters_at(call.parameters, own, n)
        statistics, sums = statistics_at(call.statistics, own, n), offset(call.sums, own.at)
        run(phase, first, last, own, Call(arrays, parameters, statistics, sums, slot, call.eps, call.act))
