"""Memory for large results: that of earlier ones, once nobody holds them.

The pages of a new array are given by the system when they are first written to, zeroed. Beyond some MiB, 32 at most,
the C library gives what is freed back to the system, and every result pays for its pages: a norm of 64 MiB took 6.9 ms
into an existing array and 24 ms into a new one. So the memory of large results is kept and used again as soon as no
array refers to it: at most NUMBAGN_RECYCLE_BYTES (environment, read at import; default 256 MiB, 0 turns recycling off),
free and in use together.

Who holds a result is told by a lease: an object that the result, and so each view and buffer of it, refers to by its
`base`, and that NumPy can reach the memory through alone. Memory is free when a weak reference to its lease is dead,
and not before: nothing counts references, whose number interpreters change to make code faster, and nothing of ours
runs at a result's end, which may come in a finalizer, a signal handler or while the interpreter shuts down. Arrays
are not among what the garbage collector looks at, so that no lease dies in a cycle that could still come back to life.
"""

import os
import threading
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np

from .._process import at_fork

__all__ = ["LEAST_BYTES", "array_like"]

# Smaller results the C library recycles by itself, as a rule (10 MiB were seen both ways: 0.82 and 1.43 ms).
LEAST_BYTES = 2 << 20
# Buffers, so that it takes no time to look for a free one.
MOST_BUFFERS = 16
# Results begin where a vector does; NumPy's own would begin 16 bytes after.
ALIGNMENT = 64


def _most_bytes() -> int:
    text = os.environ.get("NUMBAGN_RECYCLE_BYTES", "")
    return int(text) if text.isdecimal() else 256 << 20


MOST_BYTES = _most_bytes()


class Buffer:
    """Memory that is kept."""

    __slots__ = ("__array_interface__", "lease", "memory", "size")

    def __init__(self, nbytes: int) -> None:
        self.memory = np.empty(nbytes + ALIGNMENT, np.uint8)
        self.size = self.memory.size
        address = self.memory.__array_interface__["data"][0]
        place = address + -address % ALIGNMENT, False  # not read-only
        self.__array_interface__ = {"shape": (nbytes,), "typestr": "|u1", "data": place, "version": 3}
        self.lease: Callable[[], Any] = lambda: None  # the one that holds it; None: it is free

    def leased(self) -> np.ndarray:
        """Its memory from where it is aligned, in use until nothing refers to what is returned."""
        lease = _Lease(self)
        self.lease = weakref.ref(lease)
        return np.asarray(lease)


class _Lease:
    """What holds a buffer."""

    __slots__ = ("__array_interface__", "__weakref__", "buffer")

    def __init__(self, buffer: Buffer) -> None:
        self.buffer = buffer
        self.__array_interface__ = buffer.__array_interface__


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
    return np.ndarray(empty.shape, empty.dtype, _taken(empty.nbytes), 0, empty.strides)


def _taken(nbytes: int) -> np.ndarray:
    """So much memory that nobody uses, kept for later too; ordinary memory while another call looks for some.

    Nobody waits here: a signal handler or a finalizer that came in between would wait for its own thread.
    """
    if not _lock.acquire(blocking=False):
        return Buffer(nbytes).leased()
    try:
        size = nbytes + ALIGNMENT
        for buffer in _buffers:
            if buffer.size == size and buffer.lease() is None:
                return buffer.leased()
        # room is made by letting go of free ones, then of the oldest in use, which then are ordinary memory
        order = sorted(_buffers, key=lambda buffer: buffer.lease() is not None)
        kept = sum(buffer.size for buffer in order)
        while order and (kept + size > MOST_BYTES + 2 * ALIGNMENT or len(order) >= MOST_BUFFERS):
            gone = order.pop(0)
            _buffers.remove(gone)
            kept -= gone.size
        buffer = Buffer(nbytes)
        _buffers.append(buffer)
        return buffer.leased()
    finally:
        _lock.release()
