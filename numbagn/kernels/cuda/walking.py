"""How CUDA kernels walk over what they are given: along lines of all arrays at once, block by block."""

from collections import namedtuple

from .operands import Arrays, Statistics
from .target import device, divided, load_integer

# Elements of an array that stand evenly spaced, from `start` on: of a row or, in one sample, of a column.
Line = namedtuple("Line", "address start step")
# An element.
Place = namedtuple("Place", "address i")


def _of_all(change):
    """A function that changes all arrays of a call alike."""

    @device
    def changed(arrays, *where):
        return Arrays(
            change(arrays.x, *where),
            change(arrays.skip, *where),
            change(arrays.residual, *where),
            change(arrays.dy, *where),
            change(arrays.y, *where),
            change(arrays.dresidual, *where),
        )

    return changed


@device
def _row(operand, n, r):
    if operand is None:
        return None
    return Line(operand.address, n * operand.n + r * operand.r, 1)


@device
def _column(operand, n, i):
    if operand is None:
        return None
    return Line(operand.address, n * operand.n + i, operand.r)


@device
def _element(line, k):
    if line is None:
        return None
    return Place(line.address, line.start + k * line.step)


# (arrays, sample, row) and (arrays, sample, element of all rows): the lines there. (lines, k): the elements at k.
rows_at, columns_at, elements_at = _of_all(_row), _of_all(_column), _of_all(_element)


@device
def statistics_in(address, sizes):
    """The statistics that the forward pass writes: rstd lies behind all means."""
    return Statistics(address, address, sizes.groups)


@device
def block_last(block, slices):
    """(sample, slice of its positions, tile of its channels) of a block, channels last."""
    rest, tile = divided(block, slices.tiles)
    n, part = divided(rest, slices.number)
    return n, part, tile


@device
def valid_positions(lengths, n, S):
    """How many of S positions of sample n are valid; lengths in a GPU's memory nobody has checked."""
    if lengths is None:
        return S
    return min(min(max(load_integer(lengths.address, n), 0), S) * lengths.inner, S)
