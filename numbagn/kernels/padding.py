"""What padded batches need besides their kernel: the table of each sample's problem, and zeros in the padding."""

from .._dtypes import RESULT_KINDS
from .._schedule import backward_first_work, backward_last_work, first_work, last_work
from .callees import device, inlined
from .compiled import entry
from .geometry import (
    AT, C, CHANNELS_FIRST, DENSE, FEW_POSITIONS, FIELD_COUNT, G, MASK_N, N, PARTS, ROOM, S, SAMPLE, SLOTS, SPOT_0,
    VALID, Y_N, Y_R,
)  # fmt: skip
from .masks import is_valid, mask_pointer
from .memory import offset, pointer, values
from .results import clear_line
from .scheduled import WORK_FIELDS
from .sharing import run_tasks


@device
def clear_rows_first(dims, py, n, valid):
    """Channels first: zeros in sample n where no problem will fill its rows up: it has no gaps, or nothing is valid."""
    if valid > 0 and dims[C] > 1:
        return
    for c in range(dims[C]):
        clear_line(dims, py, n * dims[Y_N] + c * dims[Y_R] + valid, dims[S] - valid)


@device
def clear_rows_last(dims, py, n, valid):
    """Channels last: zeros at the positions behind the valid ones of sample n."""
    rows, count = dims[S] - valid, dims[C]
    if dims[Y_R] == count:
        rows, count = min(rows, 1), rows * count
    for r in range(valid, valid + rows):
        clear_line(dims, py, n * dims[Y_N] + r * dims[Y_R], count)


@inlined
def clear_task(t, clear_rows, tasks, dims, lengths, per, py):
    """Task t: the samples of a stretch."""
    for n in range(t * dims[N] // tasks, (t + 1) * dims[N] // tasks):
        clear_rows(dims, py, n, lengths[n] * per)


@entry
def lengths_kernel(backward, layout, itemsize, x_kind, sources):
    """Make the kernel that prepares a call of the forward or the backward kernel with `lengths`.

    Of `per` positions for each of a length, those behind a sample's become zero in y. For the others `tables` gets a
    problem for each sample that has any, from the problem of the whole batch in `dims`. It gives the number of
    problems, or -1 where a length is out of range or a sample too short to be read where it lies: then nothing is done.
    """
    y_kind = RESULT_KINDS[x_kind]
    first = layout == CHANNELS_FIRST
    few = FEW_POSITIONS if first else 2

    def padding(dims, lengths, per, tables, y, launcher):
        if sources == 0:
            return -1
        batch, size, result = values(dims), values(lengths), pointer(y, y_kind)
        for n in range(batch[N]):
            valid = size[n] * per
            if size[n] < 0 or valid > batch[S] or 0 < valid < min(few, batch[S]):
                return -1
        problems, at = 0, 0
        for n in range(batch[N]):
            valid = size[n] * per
            if valid > 0:
                table = offset(values(tables), problems * FIELD_COUNT)
                for field in range(FIELD_COUNT):
                    table[field] = batch[field]
                dense = batch[DENSE] != 0
                if first:
                    dense = dense and (valid == batch[S] or batch[C] == 1)
                    if backward:
                        work = backward_first_work(1, batch[C], batch[G], valid, itemsize, dense)
                    else:
                        work = first_work(1, batch[C], batch[G], valid, itemsize, dense)
                elif backward:
                    work = backward_last_work(1, batch[C], valid, itemsize, dense)
                else:
                    work = last_work(1, batch[C], valid, itemsize, dense)
                for i in range(len(WORK_FIELDS)):
                    table[WORK_FIELDS[i]] = work[i]
                table[N], table[S], table[VALID], table[SAMPLE], table[AT] = 1, valid, valid, n, at
                table[ROOM] = batch[S] if first and batch[C] > 1 else 0
                at += 2 * table[PARTS] * (batch[C] if backward else batch[G])
                problems += 1
        tasks = 1 if launcher == 0 else min(batch[N], batch[SLOTS])
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

    `tables` gets a problem for each sample, from that of any of them in `model`; a problem has `sums` sums a part. It
    gives the number of problems, or 0 if a sample has no valid position.
    """

    def masks(model, flags, step, sums, tables):
        if sources == 0:
            return 0
        one, mask = values(model), mask_pointer(flags, 1)
        for n in range(tables.shape[0]):
            table, first, valid = offset(values(tables), n * FIELD_COUNT), n * one[MASK_N], 0
            for field in range(FIELD_COUNT):
                table[field] = one[field]
            for i in range(first, first + one[S] * step, step):
                valid += is_valid(mask, i)
            if valid == 0:
                return 0
            table[SAMPLE], table[AT], table[VALID] = n, n * sums * one[PARTS], valid
            # four positions spread over the sample, each the next that is valid
            for i in range(4):
                position = one[S] * (2 * i + 1) // 8
                while not is_valid(mask, first + position * step):
                    position = position + 1 if position + 1 < one[S] else 0
                table[SPOT_0 + i] = position
        return tables.shape[0]

    return masks
