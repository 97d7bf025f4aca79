"""How a sample is walked, channels last, in the forward and in the backward pass.

In memory it is position after position, each channel after channel. For sums it is read a column at a time, a vector of
channels (where channels are few, of some positions together), down some rows before the next column; for results a row
at a time, from its beginning to its end, in pieces of RUN positions, the last piece first. What is summed and what is
written the class of `tables` says: what stands for each channel in a task's scratch.
"""

from ..callees import device
from .masks import of_rows, run_of_rows
from .memory import lanes, offset, present
from .operands import at_row, only_within_rows
from .results import aligned_from, clear_line, write_vector
from .tables import clear, fold


def sum_column(work, row, rows, tables, sums, c, count, act):
    """Add `rows` rows of the vector at c, or of its first `count` lanes, to that column's sums in the two tables."""


def sum_columns(work, row, rows, tables, sums, c, act):
    """`sum_column` for two whole vectors side by side."""


def coefficients_at(tables, c):
    """What a vector of results is made with whose channels begin at value c of a row."""


@device
def sum_part(work, sample, part, most, tables, sums, act):
    """The two sums of each channel over one part of a sample, PART positions, `most` rows at a time.

    They come to stand at the beginnings of the two tables of `sums`.
    """
    width, positions = lanes(sample.x), work.row // work.C
    clear(sums, 0, 2 * work.pitch)
    r, end = part * work.part, min((part + 1) * work.part, work.S)
    while r < end:
        rows, values = min(most, (end - r) // positions), work.row
        if rows == 0:  # the last positions do not fill a row
            rows, values = 1, (end - r) * work.C
        row, c = at_row(sample, work, r), 0
        while c + 2 * width <= values:
            sum_columns(work, row, rows, tables, sums, c, act)
            c += 2 * width
        while c + width <= values:
            sum_column(work, row, rows, tables, sums, c, None, act)
            c += width
        if c < values:
            sum_column(work, row, rows, tables, sums, c, values - c, act)
        r += rows * positions
    fold(sums, work.C, work.row)
    fold(offset(sums, work.pitch), work.C, work.row)


@device
def write_pieces(work, sample, low, high, tables, act):
    """Pieces low .. high - 1 of a sample, each RUN positions, the last first."""
    for piece in range(high - 1, low - 1, -1):
        r, stop = piece * work.run, min((piece + 1) * work.run, work.S)
        while r < stop:
            end, valid = stop, True
            if of_rows(sample.mask):
                end, valid = run_of_rows(sample.mask, work.mask_r, r, stop)
            rows, length = 1, (end - r) * work.C
            if work.dense == 0:
                rows, length = end - r, work.C
            for at in range(r, r + rows):
                row = at_row(sample, work, at)
                if valid:
                    write_span(work, only_within_rows(row), length, tables, act)
                else:
                    clear_line(work, row.y, length)
                    if present(row.dresidual):
                        clear_line(work, row.dresidual, length)
            r = end


@device
def write_span(work, row, length, tables, act):
    """Results for `length` consecutive values, the first at the beginning of a row, in whole aligned vectors."""
    width, period = lanes(row.x), work.row
    i, c = 0, 0
    aligned, past = aligned_from(work, row.y, 0, length)
    while i < length:
        if i >= aligned:
            last = min(length - width, i + period - 1 - c)
            while i <= last:
                write_column(row, i, None, tables, c, act, past)
                i, c = i + width, c + width
            if c >= period:
                c -= period
                continue
        count = (aligned if i < aligned else length) - i
        if count > 0:
            write_column(row, i, count, tables, c, act, 0)
            i, c = i + count, c + count


@device
def write_column(row, i, count, tables, c, act, past):
    """Results for the vector at i, whose coefficients stand at c of the tables."""
    write_vector(row, i, count, coefficients_at(tables, c), act, past)
