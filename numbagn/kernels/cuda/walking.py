"""How CUDA kernels walk over what they are given: element by element of all arrays at once, block by block."""

from .operands import Arrays, Place, Statistics
from .target import device, divided, load_integer


@device
def at(operand, n, r, i):
    """Element i of row r of sample n."""
    if operand is None:
        return None
    return Place(operand.address, n * operand.n + r * operand.r + i)


@device
def at_element(arrays, n, r, i):
    """The same element of all arrays."""
    return Arrays(
        at(arrays.x, n, r, i),
        at(arrays.skip, n, r, i),
        at(arrays.residual, n, r, i),
        at(arrays.dy, n, r, i),
        at(arrays.y, n, r, i),
        at(arrays.dresidual, n, r, i),
    )


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
