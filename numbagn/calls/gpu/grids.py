"""How work is shared out on a GPU: ints in, kernels and grids out.

Everything follows from the sizes of one sample, never from the batch or the machine: so a sample has the same bits
alone, in any batch and on any GPU.
"""

from functools import lru_cache
from typing import NamedTuple

from ...kernels.cuda.operands import Divisor
from ...shapes.geometry import CHANNELS_LAST

__all__ = [
    "MOST", "Channels", "Sums", "Whole", "by", "channels_of", "columns_of", "divisor", "lanes_that_fit",
    "layout_is_last", "rows_of", "slices_of", "whole_of",
]  # fmt: skip

# Elements of a group, and blocks of a grid: beyond, divisions by multiplication would be wrong.
MOST = 2**31 - 1
# Threads of a block where nothing else decides: eight warps give a multiprocessor enough loads to wait for.
THREADS = 256
# Packed values a thread holds in a loop that is unrolled: so many loads are under way at once.
VECTORS = 4
# Elements that one block sums around one shift: more would let the first tile's mean be too far from the others'.
MOST_TILES = 32
# Positions that each row of threads sums, channels last, and how many parts of a sample there are at most.
POSITIONS, MOST_SLICES = 16, 256


class Whole(NamedTuple):
    """A kernel that keeps a group in registers."""

    vectors: int  # a thread
    team: int  # threads a group
    threads: int  # a block


class Channels(NamedTuple):
    """A kernel that keeps the channels of some groups in registers."""

    each: int  # channels a team
    vectors: int  # a channel and thread
    team: int  # threads a channel
    groups: int  # a block


class Sums(NamedTuple):
    """A kernel that sums a stretch of each group or channel in each block."""

    slices: int
    size: int


def divisor(d: int) -> tuple[int, int]:
    """(multiplier, shift) with which `kernels.cuda.target.divide` divides by d."""
    bits = max(d - 1, 0).bit_length()
    return -(-(1 << (31 + bits)) // max(d, 1)), 31 + bits


def lanes_that_fit(lanes: int, sizes: tuple[int, ...], addresses: tuple[tuple[int, int], ...]) -> int:
    """`lanes` where all sizes and steps are multiples of them and all (address, itemsize) are aligned, else 1."""
    whole = all(size % lanes == 0 for size in sizes)
    aligned = all(address % min(16, lanes * itemsize) == 0 for address, itemsize in addresses)
    return lanes if whole and aligned else 1


@lru_cache(maxsize=4096)
def whole_of(elements: int, count: int) -> Whole | None:
    """How a block holds a group of so many elements, or None where it cannot.

    With 512 threads a thread has 128 registers, which 16 packed values of four words nearly fill (of halves, which need
    more to be unpacked, 8); with 1024 threads and half of that ptxas spilled.
    """
    vectors, small, most = -(-elements // count), max(32, THREADS // 2), 2 * THREADS
    if vectors <= 32:
        return Whole(1, 1 << (vectors - 1).bit_length(), small)
    for each, team in ((4, 32), (4, THREADS), (4, most), (8, most), (16, most)):
        if vectors <= each * team and each * count <= 64:
            return Whole(each, team, max(team, small))
    return None


@lru_cache(maxsize=4096)
def rows_of(elements: int, count: int, wide: bool) -> Whole | None:
    """How a team holds a row in the backward pass of layer norm: x_hat, dz and two sums for each element."""
    vectors, small, most = -(-elements // count), max(32, THREADS // 2), 2 * THREADS
    if vectors <= 32:
        return Whole(1, 1 << (vectors - 1).bit_length(), small)
    for each, team in ((1, 64), (1, small), (1, THREADS), (1, most), (2, most)):
        if vectors <= each * team and team % 32 == 0 and (each == 1 or not wide):
            return Whole(each, team, team)
    return Whole(4, most, most) if count == 1 and vectors <= 4 * most else None


@lru_cache(maxsize=4096)
def channels_of(D: int, S: int, count: int, wide: bool) -> Channels | None:
    """How a block of the backward pass holds the channels of groups, or None where it cannot."""
    vectors = -(-S // count)
    team = min(32, 1 << (vectors - 1).bit_length())
    teams = THREADS // team
    for values in (1, 2, 4, 8):
        if vectors <= values * team:
            break
    else:
        return None
    for each in (1, 2, 4, 8):
        if each * teams >= D and each * values <= (4 if wide else 8):
            return Channels(each, values, team, max(1, each * teams // D))
    return None


@lru_cache(maxsize=4096)
def slices_of(elements: int, count: int) -> Sums:
    """The slices of a group, their size in packed values."""
    tile = VECTORS * THREADS
    vectors = -(-elements // count)
    tiles = -(-vectors // tile)
    size = min(MOST_TILES, max(4, tiles // 64)) * tile
    return Sums(-(-vectors // size), size)


@lru_cache(maxsize=4096)
def columns_of(C: int, S: int, count: int) -> tuple[int, int, Sums]:
    """(vectors of channels side by side in a block, such blocks for all channels, the slices of positions)."""
    vectors = -(-C // count)
    columns = min(32, 1 << (vectors - 1).bit_length())
    rows = THREADS // columns
    size = max(rows * POSITIONS, -(-S // MOST_SLICES))
    return columns, -(-vectors // columns), Sums(-(-S // size), size)


def layout_is_last(layout: int, S: int) -> bool:
    """Whether the kernels of channels-last apply: what has one position is a row in either layout."""
    return layout == CHANNELS_LAST and S > 1


@lru_cache(maxsize=4096)
def by(d: int) -> Divisor:
    """What kernels are given to divide by d."""
    return Divisor(d, *divisor(d))
