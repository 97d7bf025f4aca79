"""How the work of a call is shared out: shapes in, numbers for `kernels.geometry` out.

Every threshold of sharing stands here, those of accuracy in `kernels.moments`. The parts that statistics are summed in
follow from the shape alone, so that the bits of a result do; whether the blocks are walked by one thread or several,
whole or in phases, changes only the time.
"""

from functools import lru_cache

from .kernels.geometry import CHANNELS_FIRST, CHANNELS_LAST

__all__ = ["backward", "forward", "threads"]

# Elements of one part: enough that its own cost is hidden (a call and a few float64 operations), few enough that a
# block of some MiB feeds all threads. 16384 to 65536 measured the same.
PART_ELEMENTS = 32768
# Channels last: rows of a part, so many that filling the per-channel scratch is a small part of the work.
PART_ROWS = 64
# Bytes read from which a second thread pays: entering a parallel region costs about 5 us (omp).
PARALLEL_BYTES = 1 << 17
# Bytes of a result from which it is stored past the caches, which saves reading its lines first (but is no faster with
# more threads, where memory is the limit). With 32 MiB of last-level cache, out=, time against ordinary stores:
#   forward, 1 thread:   5 MiB 1.6   8 MiB 1.1   10 MiB 0.78  15 MiB 0.85  32 MiB 0.82
#   forward, 2 threads:  5 MiB 2.0   10 MiB 1.2  15 MiB 1.02  25 MiB 0.91  32 MiB 0.83
#   backward, 1 and 2:   5 MiB 1.1 and 1.3       8 MiB 0.75 and 0.87       15 MiB 0.72 and 0.76
FORWARD_PAST_BYTES, FORWARD_PAST_BYTES_PARALLEL, BACKWARD_PAST_BYTES = 9 << 20, 20 << 20, 7 << 20
# Channels first, between these sizes, stored through the caches, a forward pass is faster if it first sums all blocks
# and then writes all: 0.77 of the time at 10 MiB, 0.93 at 8 MiB, 1.05 at 15 MiB, 1.0 at 5 MiB. Not understood.
PHASES_FROM_BYTES, PHASES_TO_BYTES = 6 << 20, 12 << 20
# Tasks for each thread: where the layer shares them out as threads become free, the last to finish waits less.
TASKS_PER_THREAD = 4


@lru_cache(maxsize=1)
def threads() -> int:
    """The most threads Numba may use in this process."""
    from numba import config

    return int(config.NUMBA_NUM_THREADS)


def _parts(total: int, part: int) -> tuple[int, int]:
    """(elements of a part, number of parts) with parts as even as their number allows."""
    count = max(1, -(-total // part))
    return max(1, -(-total // count)), count


def _shared(units: int, steps: int, nbytes: int, lanes: int) -> dict[str, int]:
    """Parallel or not, and if so over whole blocks or in phases over parts of them."""
    parallel = nbytes >= PARALLEL_BYTES and lanes > 1 and steps > 1
    # whole blocks keep a block in its thread's cache; phases share out what is too few or uneven in blocks
    whole = not parallel or (units >= lanes and (units % lanes == 0 or units >= 4 * lanes))
    return {
        "PARALLEL": int(parallel),
        "FIRST": 0 if whole else 1,
        "LAST": 1 if whole else 4,
        "SLOTS": TASKS_PER_THREAD * lanes if parallel else 1,
    }


def forward(layout: int, N: int, C: int, G: int, S: int, itemsize: int, lanes: int) -> dict[str, int]:
    """Shares of the forward pass; `lanes` is the number of threads."""
    D = C // G
    if layout == CHANNELS_LAST:
        rows, parts = _parts(S, max(PART_ROWS, PART_ELEMENTS // C))
        work = {"UNITS": N, "PART": rows, "PARTS": parts, "SUMS": parts, "RUN": rows, "PIECES": parts}
    else:
        part, parts = _parts(D * S, PART_ELEMENTS)
        run, runs = _parts(S, PART_ELEMENTS)
        pieces = 1 if S == 1 else D * runs
        work = {"UNITS": N * G, "PART": part, "PARTS": parts, "SUMS": parts, "RUN": run, "PIECES": pieces}
    nbytes = N * C * S * itemsize
    share = _shared(work["UNITS"], work["UNITS"] * parts, nbytes, lanes)
    past = nbytes >= (FORWARD_PAST_BYTES_PARALLEL if share["PARALLEL"] else FORWARD_PAST_BYTES)
    if layout == CHANNELS_FIRST and not past and PHASES_FROM_BYTES <= nbytes < PHASES_TO_BYTES:
        share |= {"FIRST": 1, "LAST": 4}
    return work | share | {"PAST": int(past)}


def backward(layout: int, N: int, C: int, G: int, S: int, itemsize: int, lanes: int) -> dict[str, int]:
    """Shares of the backward pass."""
    D = C // G
    if layout == CHANNELS_LAST:
        # more rows than forward: the sums of a part are C pairs of float64, not G
        rows, parts = _parts(S, max(4 * PART_ROWS, PART_ELEMENTS // C))
        work = {"UNITS": N, "PART": rows, "PARTS": parts, "SUMS": parts, "RUN": rows, "PIECES": parts}
    else:
        run, parts = _parts(S, PART_ELEMENTS)
        steps = 1 if S == 1 else D * parts
        work = {"UNITS": N * G, "PART": run, "PARTS": parts, "SUMS": steps, "RUN": run, "PIECES": steps}
    nbytes = N * C * S * itemsize
    share = _shared(work["UNITS"], work["UNITS"] * work["SUMS"], 2 * nbytes, lanes)
    return work | share | {"PAST": int(nbytes >= BACKWARD_PAST_BYTES)}
