"""How Numba and the modules of kernels are loaded: at the first call that needs them, and never by half.

Numba cannot be used any more in a process where Ctrl-C came while it was being imported ("module 'numba' has no
attribute 'core'") or while it took in what it knows about functions, at the first compilation. Both happen within the
first call, where people do press Ctrl-C, and take some tenths of a second; so it waits for their end.
"""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from importlib import import_module
from types import FrameType, ModuleType

__all__ = ["kernels"]


@contextmanager
def _undisturbed() -> Iterator[None]:
    """Postpone what SIGINT does to the end; Python runs it in the main thread only."""
    handler = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or not callable(handler):
        yield
        return
    came: list[tuple[int, FrameType | None]] = []
    try:
        signal.signal(signal.SIGINT, lambda *event: came.append(event))
    except ValueError:  # in a subinterpreter, which gets no signals
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)
        if came:
            handler(*came[0])


@cache
def kernels(name: str) -> ModuleType:
    """The module of kernels of this name."""
    with _undisturbed():
        module = import_module(f"..kernels.cpu.{name}", __package__)
        from ..kernels.numba_names import cpu_target, global_compiler_lock

        with global_compiler_lock:
            cpu_target.target_context.refresh()
    return module
