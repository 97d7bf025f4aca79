"""What padded batches need besides their kernel: the table of each sample's problem, and zeros in the padding."""

from ...arrays.dtypes import STORED
from ...shapes.geometry import CHANNELS_FIRST, FEW_POSITIONS, FIELD_COUNT, SPOT_0
from ...shapes.schedule import backward_first_work, backward_last_work, first_work, last_work
from ..callees import device, inlined
from ..compiled import entry
from .masks import is_valid, mask_pointer
from .memory import offset, pointer, values
from .results import clear_line
from .scheduled import take_shares
from .sharing import run_tasks
from .work import field, set_field, work_at


@device
def clear_rows_first(work, py, n, valid):
    """Channels first: zeros in sample n where no problem will fill its rows up: it has no gaps, or nothing is valid."""
    if valid > 0 and work.C > 1:
        return
    for c in range(work.C):
        clear_line(work, offset(py, n * work.y_n + c * work.y_r + valid), work.S - valid)


@device
def clear_rows_last(work, py, n, valid):
    """Channels last: zeros at the positions behind the valid ones of sample n."""
    rows, count = work.S - valid, work.C
    if work.y_r == count:
        rows, count = min(rows, 1), rows * count
    for r in range(valid, valid + rows):
        clear_line(work, offset(py, n * work.y_n + r * work.y_r), count)


@inlined
def clear_task(t, clear_rows, tasks, work, lengths, per, py):
    """Task t: the samples of a stretch."""
    for n in range(t * work.N // tasks, (t + 1) * work.N // tasks):
        clear_rows(work, py, n, lengths[n] * per)


@device
def begun(tables, q, model):
    """Problem q of the tables, with all that `model` has."""
    work = work_at(tables, q)
    for place in range(FIELD_COUNT):
        set_field(work, place, field(model, place))
    return work


@entry
def lengths_kernel(layout, itemsize, sources):
    """Make the kernel that prepares a call of the forward or the backward kernel with `lengths`.

    Of `per` positions for each of a length, those behind a sample's become zero in y, whose elements have `itemsize`
    bytes. For the others `tables` gets a problem for each sample that has any, from the problem of the whole batch in
    `dims`. It gives the number of problems, or -1 where a length is out of range or a sample too short to be read where
    it lies: then nothing is done.
    """
    kind = STORED.index({2: "float16", 4: "float32", 8: "float64"}[itemsize])
    first = layout == CHANNELS_FIRST
    few = FEW_POSITIONS if first else 2

    def padding(dims, lengths, per, backward, tables, y, launcher):
        if sources == 0:
            return -1
        batch, size, result = work_at(values(dims), 0), values(lengths), pointer(y, kind)
        for n in range(batch.N):
            valid = size[n] * per
            if size[n] < 0 or valid > batch.S or valid == 1 or (batch.C > 1 and 0 < valid < min(few, batch.S)):
                return -1
        problems, at = 0, 0
        for n in range(batch.N):
            valid = size[n] * per
            if valid > 0:
                own = begun(values(tables), problems, batch)
                dense = batch.dense != 0
                if first:
                    dense = dense and (valid == batch.S or batch.C == 1)
                    if backward:
                        shares = backward_first_work(1, batch.C, batch.G, valid, itemsize, dense)
                    else:
                        shares = first_work(1, batch.C, batch.G, valid, itemsize, dense)
                elif backward:
                    shares = backward_last_work(1, batch.C, valid, itemsize, dense)
                else:
                    shares = last_work(1, batch.C, valid, itemsize, dense)
                take_shares(own, shares)
                own.slot = batch.slot
                own.N, own.S, own.valid, own.sample, own.at = 1, valid, valid, n, at
                own.room = batch.S if first and batch.C > 1 else 0
                at += 2 * own.parts * (batch.C if backward else batch.G)
                problems += 1
        if batch.keep_m2:  # only statistics are asked for: there is no y
            return problems
        tasks = 1 if launcher == 0 else min(batch.N, batch.slots)
        given = tasks, batch, size, per, result
        if first:
            run_tasks(launcher, tasks, clear_task, clear_rows_first, given)
        else:
            run_tasks(launcher, tasks, clear_task, clear_rows_last, given)
        return problems

    return padding


@entry
def masks_kernel(sources):
    """Make the kernel that prepares a call with a mask, of which `flags` has position after position of each sample.

    `tables` gets a problem for each sample that has a valid position, from that of any of them in `model`; a problem
    has `sums` sums a part. It gives the number of problems.
    """

    def masks(model, flags, step, sums, tables):
        if sources == 0:
            return 0
        one, mask, problems = work_at(values(model), 0), mask_pointer(flags, 1), 0
        for n in range(one.batch):
            first, valid = n * one.mask_n, 0
            for i in range(first, first + one.S * step, step):
                valid += is_valid(mask, i)
            if valid == 0:
                continue
            own = begun(values(tables), problems, one)
            own.sample, own.at, own.valid = n, problems * sums * one.parts, valid
            # four positions spread over the sample, each the next that is valid
            for i in range(4):
                position = one.S * (2 * i + 1) // 8
                while not is_valid(mask, first + position * step):
                    position = position + 1 if position + 1 < one.S else 0
                set_field(own, SPOT_0 + i, position)
            problems += 1
        return problems

    return masks
