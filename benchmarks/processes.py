"""Fresh processes with a number of threads, in which functions are run that measure."""

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import get_context
from typing import Any

from numbagn.command.bench.machine import thread_environment


@contextmanager
def processes(threads: int, count: int | None = None) -> Iterator[ProcessPoolExecutor]:
    """So many processes (None: a core each) with so many threads each.

    They are spawned: a forked one would keep this process's idea of its threads.
    """
    before = dict(os.environ)
    os.environ.update(thread_environment(threads))
    try:
        with ProcessPoolExecutor(count, mp_context=get_context("spawn")) as pool:
            yield pool
    finally:
        os.environ.clear()
        os.environ.update(before)


def in_fresh_process(threads: int, function: Callable[..., Any], *arguments: Any) -> Any:
    with processes(threads, 1) as pool:
        return pool.submit(function, *arguments).result()
