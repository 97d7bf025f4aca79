"""Memory for large results: that of earlier ones, once nobody holds them.

The pages of a new array are given by the system when they are first written to, zeroed. Beyond some MiB, 32 at most,
the C library gives what is freed back to the system, and every result pays for its pages: a norm of 64 MiB took 6.9 ms
into an existing array and 24 ms into a new one. So the memory of large results is kept and used again as soon as no
array refers to it: at most NUMBAGN_RECYCLE_BYTES (environment, read at import; default 256 MiB, 0 turns recycling off),
free and in use together. A result is then a view of a buffer: its `base` is not None.
"""

import os
import sys
import threading
from typing import Any

import numpy as np

from ._threads import at_fork

__all__ = ["LEAST_BYTES", "array_like"]

# Smaller results the C library recycles by itself, as a rule (10 MiB were seen both ways: 0.82 and 1.43 ms).
LEAST_BYTES = 2 << 20
# Buffers, so that it takes no time to look for a free one.
MOST_BUFFERS = 16
# Results begin where a vector does; NumPy's own would begin 16 bytes after.
ALIGNMENT = 64


def _most_bytes() -> int:
    """How much memory may be kept; 0 where counts of references tell nothing, without the interpreter's lock."""
    if not getattr(sys, "_is_gil_enabled", lambda: True)():
        return 0
    text = os.environ.get("NUMBAGN_RECYCLE_BYTES", "")
    return int(text) if text.isdecimal() else 256 << 20


MOST_BYTES = _most_bytes()

Buffer = np.ndarray[Any, np.dtype[np.uint8]]
_buffers: list[Buffer] = []
_lock = threading.Lock()


def _in_child() -> None:
    """Another thread may have held the lock when the process was forked."""
    global _lock
    _lock = threading.Lock()


at_fork(after_in_child=_in_child)


def array_like(x: np.ndarray, dtype: np.dtype | None = None) -> np.ndarray:
    """Like `numpy.empty_like(x, dtype, subok=False)`."""
    empty = np.empty_like(x, dtype, subok=False)
    if not LEAST_BYTES <= empty.nbytes <= MOST_BYTES:
        return empty
    # the empty one has told its strides; its pages were never touched
    buffer = _taken(empty.nbytes + ALIGNMENT)
    start = -buffer.__array_interface__["data"][0] % ALIGNMENT
    return np.ndarray(empty.shape, empty.dtype, buffer, start, empty.strides)


def _references(buffers: list[Any], i: int) -> int:
    return sys.getrefcount(buffers[i])


# What the function counts where nothing but the list refers to a buffer.
_NOBODY = _references([np.empty(1)], 0)


def _taken(size: int) -> Buffer:
    """A buffer of `size` bytes that nobody uses, kept for later too; ordinary memory while another call looks for one.

    Nobody waits here: a signal handler or a finalizer that came in between would wait for its own thread.
    """
    if not _lock.acquire(blocking=False):
        return np.empty(size, np.uint8)
    try:
        for i in range(len(_buffers)):
            if _buffers[i].size == size and _references(_buffers, i) == _NOBODY:
                return _buffers[i]
        # room is made by letting go of free ones, then of the oldest in use, which then are ordinary memory
        order = sorted(range(len(_buffers)), key=lambda i: _references(_buffers, i) != _NOBODY)
        kept = sum(_buffers[i].size for i in order)
        gone = []
        while order and (kept + size > MOST_BYTES + 2 * ALIGNMENT or len(order) >= MOST_BUFFERS):
            gone.append(order.pop(0))
            kept -= _buffers[gone[-1]].size
        for i in sorted(gone, reverse=True):
            del _buffers[i]
        buffer = np.empty(size, np.uint8)
        _buffers.append(buffer)
        return buffer
    finally:
        _lock.release()
