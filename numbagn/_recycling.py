"""Memory for large results: that of earlier ones, once nobody holds them.

The pages of a new array are given by the system when they are first written to, zeroed. Up to some 30 MiB the C library
keeps what is freed and hands it out again; beyond, every result pays for its pages: writing 64 MiB of float32 took 6.9
ms into an existing array and 24 ms into a new one. So the memory of large results is kept and used again as soon as no
array refers to it: at most NUMBAGN_RECYCLE_BYTES (environment; default 256 MiB, 0 turns recycling off), free and in use
together. A result is then a view of a buffer: its `base` is not None.
"""

import os
import sys
import threading
from typing import Any

import numpy as np

__all__ = ["LEAST_BYTES", "array_like", "most_bytes"]

# Smaller results the C library recycles by itself.
LEAST_BYTES = 16 << 20
MOST_BYTES = 256 << 20
# Results begin where a vector does; NumPy's own would begin 16 bytes after.
ALIGNMENT = 64

_buffers: list[np.ndarray[Any, np.dtype[np.uint8]]] = []
_lock = threading.Lock()


def array_like(x: np.ndarray, dtype: np.dtype | None = None) -> np.ndarray:
    """Like `numpy.empty_like(x, dtype, subok=False)`."""
    empty = np.empty_like(x, dtype, subok=False)
    if not LEAST_BYTES <= empty.nbytes <= most_bytes():
        return empty
    # the empty one has told its strides; its pages were never touched
    buffer = _taken(empty.nbytes + ALIGNMENT)
    start = -buffer.__array_interface__["data"][0] % ALIGNMENT
    return np.ndarray(empty.shape, empty.dtype, buffer, start, empty.strides)


def most_bytes() -> int:
    """How much memory may be kept; 0 where counts of references tell nothing, without the interpreter's lock."""
    if not getattr(sys, "_is_gil_enabled", lambda: True)():
        return 0
    text = os.environ.get("NUMBAGN_RECYCLE_BYTES", "")
    return int(text) if text.isdecimal() else MOST_BYTES


def _references(buffers: list[Any], i: int) -> int:
    return sys.getrefcount(buffers[i])


# What the function counts where nothing but the list refers to a buffer.
_NOBODY = _references([np.empty(1)], 0)


def _taken(size: int) -> np.ndarray:
    """A buffer of `size` bytes that nobody uses, kept for later too if there is room."""
    with _lock:
        free = [i for i in range(len(_buffers)) if _references(_buffers, i) == _NOBODY]
        for i in free:
            if _buffers[i].size == size:
                return _buffers[i]
        # room is made by letting go of free ones first, then of the oldest, which then are ordinary memory
        order = [*free, *(i for i in range(len(_buffers)) if i not in free)]
        kept = sum(buffer.size for buffer in _buffers)
        gone = set()
        for i in order:
            if kept + size <= most_bytes() + 2 * ALIGNMENT:
                break
            gone.add(i)
            kept -= _buffers[i].size
        _buffers[:] = [buffer for i, buffer in enumerate(_buffers) if i not in gone]
        buffer = np.empty(size, np.uint8)
        _buffers.append(buffer)
        return buffer
