"""How the work of a call is shared out: shapes in, numbers for `geometry` out.

Every threshold of sharing stands here, those of accuracy in `kernels.cpu.moments`. The parts that statistics are summed
in follow from the shape alone, so that the bits of a result do; whether the blocks are walked by one thread or several,
whole or in phases, changes only the time.
"""

from contextlib import suppress
from functools import lru_cache
from math import gcd
from pathlib import Path

from .geometry import CHANNELS_LAST, FEW_CHANNELS, SINGLE_POSITION

__all__ = [
    "backward", "backward_first_work", "backward_last_work", "cache_bytes", "first_work", "forward",
    "forward_past_bytes", "last_work", "work_bytes",
]  # fmt: skip

# Samples N, channels C, groups G, positions S.
Sizes = tuple[int, int, int, int]

# Elements of one part: enough that its own cost is hidden (a call and a few float64 operations), few enough that a
# block of some MiB feeds all threads. 16384 to 65536 measured the same.
PART_ELEMENTS = 32768
# Channels last: positions of a part, so many that clearing and folding its sums is a small part of the work; backward
# more, since there the sums of a part are two of each channel, not of each group.
PART_POSITIONS, BACKWARD_PART_POSITIONS = 64, 256
# Channels last, values that a row of the loops has at least where channels are few: fewer cost in loop overhead.
ROW_VALUES = 128
# Bytes read from which a second thread pays, a block (the float64 work of its statistics) counted as UNIT_BYTES more. A
# second thread gains 4 % at 128 KiB, 15 % at 256 KiB, 35 % at 512 KiB (omp); but threads that have gone to sleep take 5
# to 60 us to wake, and milliseconds where the system wakes them on the caller's core.
PARALLEL_BYTES, UNIT_BYTES = 1 << 18, 1 << 9
# Bytes of a result, x having as many, from which it is stored past the caches, which saves reading its lines first but
# gives up what they could hold; as shares of the last-level cache. Time against ordinary stores, one array written
# again and again:
#   32 MiB cache   forward, 1 thread     5 MiB 1.6   8 MiB 1.1   10 MiB 0.78  15 MiB 0.85  32 MiB 0.82
#                  forward, 2 threads    5 MiB 2.0   10 MiB 1.2  15 MiB 1.02  16 MiB 0.86 25 MiB 0.91  32 MiB 0.83
#                  backward, 1 and 2     5 MiB 1.1 and 1.3       8 MiB 0.75 and 0.87       15 MiB 0.72 and 0.76
FORWARD_PAST_SHARE, FORWARD_PAST_SHARE_PARALLEL, BACKWARD_PAST_SHARE = 9 / 32, 16 / 32, 7 / 32
# A cache larger than the first number is one that a cloud machine shares with others, and whatever it holds of ours is
# soon gone; from the second number on, what goes past it is hardly slower and often twice as fast, with several threads
# from the third on:
#   480 MiB cache  forward, 1 thread, the same array    8 MiB 0.93   10 MiB 1.02  15 MiB 0.97  64 MiB 0.61
#                  ... an array last used 50 ms ago     8 MiB 0.81   10 MiB 0.53  15 MiB 0.59
#                  forward, 2 threads                   8 MiB 1.09   12 MiB 1.08  15 MiB 1.10  64 MiB 0.65
#                  backward, 1 and 2 threads            8 MiB 1.12 and 1.09       15 MiB 0.80 and 1.03
SHARED_CACHE_BYTES, SHARED_CACHE_PAST_BYTES, SHARED_CACHE_PAST_BYTES_PARALLEL = 128 << 20, 4 << 20, 16 << 20
# The last-level cache where the system does not tell.
USUAL_CACHE_BYTES = 32 << 20
# Tasks for each thread: where the layer shares them out as threads become free, the last to finish waits less.
TASKS_PER_THREAD = 4
# The backward pass of single positions: the most units its samples are shared out in, and the least samples of one.
# Each unit has 16 bytes of sums a channel to be written and added up: (512, 1024) took 0.12 ms in 64, 0.10 in 16.
SAMPLE_UNITS, SAMPLES_IN_UNIT = 32, 32
# Elements of a piece of a row there, and of the longest sample that is walked whole: the second look at x and dy finds
# them in a cache.
ROW_PIECE, WHOLE_SAMPLE = 4096, 32768
# What the shapes alone decide, as the four functions named `..._work` give it.
WORK = "UNITS", "PART", "PARTS", "SUMS", "RUN", "PIECES", "ROW", "DENSE", "PITCH", "SLOT"
# Tables of scratch, each PITCH values for a task: see the kernels.
FORWARD_TABLES_LAST, BACKWARD_TABLES_LAST, TABLES_FIRST = 5, 9, 2
# The most that those take, channels first, for samples shorter than a vector with a single channel.
SHORT_SLOT = TABLES_FIRST * 16


@lru_cache(maxsize=1)
def cache_bytes() -> int:
    """The size of the last-level cache; 0 where the system does not tell."""
    sizes = [0]
    for file in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size"):
        with suppress(OSError, ValueError):
            sizes.append(int(file.read_text().strip().removesuffix("K")) << 10)
    return max(sizes)


def past_bytes(share: float, shared: int) -> float:
    """Bytes of a result from which it is stored past the caches: a share of the last, or so many if others share it."""
    cache = cache_bytes() or USUAL_CACHE_BYTES
    return shared if cache > SHARED_CACHE_BYTES else share * cache


def _parts(total: int, part: int) -> tuple[int, int]:
    """(elements of a part, number of parts) with parts as even as their number allows."""
    count = max(1, -(-total // part))
    return max(1, -(-total // count)), count


def _width(itemsize: int) -> int:
    """Values of a vector: 64 bytes of float64, or of float32, which narrower ones are widened to."""
    return 8 if itemsize == 8 else 16


def _rows(C: int, S: int, width: int, positions: int) -> tuple[int, int, int, int]:
    """Channels last, (ROW, PITCH, PART, PARTS): rows of whole vectors where channels are few, parts of whole rows."""
    together = 1
    if C < FEW_CHANNELS:  # of more, the last vector of a row wastes little if it is not whole
        together = width // gcd(C, width)
        together *= max(1, ROW_VALUES // (together * C))
    rows, parts = _parts(-(-S // together), max(positions, PART_ELEMENTS // C) // together or 1)
    row = together * C
    return row, -(-row // width) * width + width, rows * together, parts


def _elements(C: int, S: int, width: int) -> int:
    """Channels first: values of a table with one for each element of a sample, where channels are short."""
    return -(-C * S // width) * width if 1 < S < width else 0


def work_bytes(direction: str, layout: int, sizes: Sizes, itemsize: int) -> int:
    """The bytes that a call reads, with what its blocks' own work costs: several threads pay from PARALLEL_BYTES on."""
    N, C, G, S = sizes
    nbytes = N * C * S * itemsize
    return (nbytes if direction == "forward" else 2 * nbytes) + UNIT_BYTES * (N if layout == CHANNELS_LAST else N * G)


def _shared(units: int, steps: int, threads: int, indivisible: bool = False) -> dict[str, int]:
    """Parallel or not, and if so over whole blocks or in phases over parts of them."""
    parallel = threads > 1 and steps > 1
    # whole blocks keep a block in its thread's cache; phases share out what is too few or uneven in blocks
    whole = not parallel or indivisible or (units >= threads and (units % threads == 0 or units >= 4 * threads))
    return {
        "PARALLEL": int(parallel),
        "FIRST": 0 if whole else 1,
        "LAST": 1 if whole else 4,
        "SLOTS": TASKS_PER_THREAD * threads if parallel else 1,
    }


def first_work(N: int, C: int, G: int, S: int, itemsize: int, dense: bool) -> tuple[int, ...]:
    """Channels first, the numbers named in WORK. Compiled, too, for callers that Numba compiles."""
    part, parts = _parts(C // G * S, PART_ELEMENTS)
    pitch = _elements(C, S, _width(itemsize))
    return N * G, part, parts, parts, part, parts, 0, int(dense), pitch, TABLES_FIRST * pitch


def last_work(N: int, C: int, S: int, itemsize: int, dense: bool) -> tuple[int, ...]:
    """Channels last, the same."""
    row, pitch, part, parts = _rows(C, S, _width(itemsize), PART_POSITIONS)
    return N, part, parts, parts, part, parts, row, int(dense), pitch, FORWARD_TABLES_LAST * pitch


def forward(
    layout: int,
    sizes: Sizes,
    itemsize: int,
    dense: bool,
    threads: int,
    x_itemsize: int | None = None,
) -> dict[str, int]:
    """Shares of the forward pass over N, C, G, S; `dense`: no array has gaps between positions.

    x's values may be smaller than y's.
    """
    N, C, G, S = sizes
    if layout == CHANNELS_LAST:
        numbers = last_work(N, C, S, itemsize, dense)
    else:
        numbers = first_work(N, C, G, S, itemsize, dense)
    work = dict(zip(WORK, numbers, strict=True))
    # blocks of one vector have a loop of their own
    indivisible = layout != CHANNELS_LAST and max(C // G * S, S + 1) <= _width(itemsize)
    share = _shared(work["UNITS"], work["UNITS"] * work["PARTS"], threads, indivisible)
    # what fits a cache is x and y: of bytes 13 MiB were stored past a cache of 32 MiB in 1.8 times the time
    both = N * C * S * (itemsize + (x_itemsize or itemsize)) // 2
    if share["PARALLEL"]:
        past = both >= past_bytes(FORWARD_PAST_SHARE_PARALLEL, SHARED_CACHE_PAST_BYTES_PARALLEL)
    else:
        past = both >= forward_past_bytes()
    return work | share | {"PAST": int(past)}


def forward_past_bytes() -> float:
    """Bytes of a result from which the serial forward pass stores it past the caches."""
    return past_bytes(FORWARD_PAST_SHARE, SHARED_CACHE_PAST_BYTES)


def backward_first_work(N: int, C: int, G: int, S: int, itemsize: int, dense: bool) -> tuple[int, ...]:
    """The backward pass, channels first, the numbers named in WORK."""
    part, parts = _parts(S, PART_ELEMENTS)
    run, pieces = _parts(C // G * S, PART_ELEMENTS)
    pitch = _elements(C, S, _width(itemsize))
    sums = 1 if S == 1 else C // G * parts
    return N * G, part, parts, sums, run, pieces, 0, int(dense), pitch, TABLES_FIRST * pitch


def backward_last_work(N: int, C: int, S: int, itemsize: int, dense: bool) -> tuple[int, ...]:
    """Channels last, the same."""
    row, pitch, part, parts = _rows(C, S, _width(itemsize), BACKWARD_PART_POSITIONS)
    return N, part, parts, parts, part, parts, row, int(dense), pitch, BACKWARD_TABLES_LAST * pitch


def backward(layout: int, sizes: Sizes, itemsize: int, dense: bool, threads: int) -> dict[str, int]:
    """Shares of the backward pass, and WORK, the float64 values its kernel works on."""
    N, C, G, S = sizes
    past = int(N * C * S * itemsize >= past_bytes(BACKWARD_PAST_SHARE, SHARED_CACHE_PAST_BYTES))
    if layout == SINGLE_POSITION:
        return _samples(N, C, G, _width(itemsize), threads) | {"PAST": past}
    if layout == CHANNELS_LAST:
        numbers = backward_last_work(N, C, S, itemsize, dense)
    else:
        numbers = backward_first_work(N, C, G, S, itemsize, dense)
    work = dict(zip(WORK, numbers, strict=True))
    work["WORK"] = 2 * work["PARTS"] * N * C + 2 * N * G + 2 * C
    share = _shared(work["UNITS"], work["UNITS"] * max(work["SUMS"], work["PIECES"]), threads)
    return work | share | {"PAST": past}


def _samples(N: int, C: int, G: int, width: int, threads: int) -> dict[str, int]:
    """The backward pass of single positions with parameters that all samples share: units are stretches of samples."""
    part, units = _parts(N, max(SAMPLES_IN_UNIT, -(-N // SAMPLE_UNITS)))
    run, pieces = _parts(C // G, ROW_PIECE)
    pieces *= G
    table = C if C <= WHOLE_SAMPLE else run
    pitch = -(-table // width) * width
    share = _shared(units, units * pieces, threads)
    if C > WHOLE_SAMPLE:
        share |= {"FIRST": 1, "LAST": 4}
    return share | {
        "UNITS": units, "PART": part, "PARTS": 1, "SUMS": pieces, "RUN": run, "PIECES": pieces, "DENSE": 1,
        "PITCH": pitch, "SLOT": TABLES_FIRST * pitch,
        "WORK": 2 * units * C + 2 * N * G + 2 * N * pieces + 2 * C,
    }  # fmt: skip
