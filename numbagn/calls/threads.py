"""How many threads a kernel may use: one wherever Numba's threading layers cannot bear more.

Under `workqueue` the process is aborted when a second thread enters a parallel kernel, ours or anybody's, while one
runs. Under GNU OpenMP a child forked after its parent's pool had started is killed when it enters one; under TBB one
forked from another than the main thread is not sure to work. In all these places the serial kernels run, which give the
same bits. OpenMP's threads also wait for each other spinning, until the system takes their core away: where a container
may use less processor time than it sees cores, that was measured to cost twenty times the call, and where other
programs keep a core busy, a call of 14 us took 8 ms every so often and 0.5 ms on average.
"""

import sys
import threading
from collections import deque
from collections.abc import Callable
from contextlib import nullcontext, suppress
from functools import lru_cache
from pathlib import Path
from time import perf_counter
from typing import Any

from .._process import at_fork

__all__ = ["limit", "patient"]

# A call of several threads has stalled if it takes longer than this, and than its bytes at a rate that the slowest
# kernels exceed on one thread. So many stalls in so many seconds are no accident, such as the first call after a rest,
# whose threads the system may wake on one core.
STALL_SECONDS, SLOWEST_RATE = 2e-3, 5e8
STALLS, STALLS_SECONDS = 3, 1.0
# After them calls use one thread, for so many times as long as the last stall: a twentieth of the time is lost at most.
RESPITE = 20

_serial = False  # in this process, as it was forked
_forks_from_main = True


def _give_lock() -> None:
    """Give Numba the lock between processes under which it starts its threads.

    It would make one by multiprocessing's start method, and so fix that method, which is the user's to choose. This
    lock is of the method that would be fixed, by its name.
    """
    import multiprocessing

    from ..kernels.numba_names import parallel

    with parallel._backend_init_thread_lock:
        if parallel._backend_init_process_lock:
            return
        method = multiprocessing.get_start_method(allow_none=True) or multiprocessing.get_all_start_methods()[0]
        lock: Any = nullcontext()
        if method != "spawn" or sys.platform == "win32":  # as Numba does
            with suppress(ImportError, OSError):  # no semaphores here: Numba does without, too
                lock = multiprocessing.get_context(method).RLock()
        parallel._backend_init_process_lock = lock


@lru_cache(maxsize=1)
def limit() -> int:
    """The most threads a kernel of this process may use; the first call starts Numba's threads."""
    import numba

    visible = int(numba.config.NUMBA_NUM_THREADS)
    if visible == 1 or _serial:
        return 1
    _give_lock()
    numba.get_num_threads()
    layer = numba.threading_layer()
    if layer == "workqueue" or (layer == "omp" and _allowance() < visible):
        return 1
    return visible


_stalls: deque[float] = deque(maxlen=STALLS)
_alone_until = 0.0


def patient(kernel: Callable[..., Any], nbytes: int) -> Callable[..., Any]:
    """A kernel of several threads over so many bytes that uses one for a while where others keep the cores busy.

    Only under OpenMP: the threads of the other layers do not wait for each other spinning.
    """
    import numba

    if numba.threading_layer() != "omp":
        return kernel
    allowed = STALL_SECONDS + nbytes / SLOWEST_RATE

    def run(*arguments: Any) -> Any:
        global _alone_until
        started = perf_counter()
        if started < _alone_until:
            threads = numba.get_num_threads()  # of this Python thread: nobody else sees the change
            try:
                numba.set_num_threads(1)
                return kernel(*arguments)
            finally:
                numba.set_num_threads(threads)
        result = kernel(*arguments)
        spent = perf_counter() - started
        if spent > allowed:
            _stalls.append(started)
            if len(_stalls) == STALLS and started - _stalls[0] < STALLS_SECONDS:
                _alone_until = started + spent * (1 + RESPITE)
        return result

    return run


def _allowance() -> float:
    """The processors' time a container may use, in processors; infinity where nothing limits it."""
    try:  # version 2 of Linux' control groups, then version 1
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text(encoding="ascii").split()
    except (OSError, ValueError):
        folder = Path("/sys/fs/cgroup/cpu")
        try:
            quota = (folder / "cpu.cfs_quota_us").read_text(encoding="ascii")
            period = (folder / "cpu.cfs_period_us").read_text(encoding="ascii")
        except (OSError, ValueError):
            return float("inf")
    try:
        share = int(quota) / int(period)
    except (ValueError, ZeroDivisionError):
        return float("inf")
    return share if share > 0 else float("inf")


def _layer() -> str | None:
    """Numba's threading layer, None where its threads have not started; nothing is imported for that."""
    ask = getattr(sys.modules.get("numba"), "threading_layer", None)  # None while it is being imported
    if ask is None:
        return None
    try:
        return str(ask())
    except ValueError:
        return None


def _before_fork() -> None:
    global _forks_from_main
    _forks_from_main = threading.current_thread() is threading.main_thread()


def _in_child() -> None:
    global _serial
    layer = _layer()
    _serial = _serial or layer == "omp" or (layer == "tbb" and not _forks_from_main)
    limit.cache_clear()


at_fork(before=_before_fork, after_in_child=_in_child)
