"""How kernels are compiled: entry points with `entry`, activations chosen by a `Code`."""

import functools
import hashlib
import importlib
import logging
import os
import pkgutil
import sys
import time
import warnings

from numba import njit, typeof
from numba.extending import overload

from .._process import at_fork, need_compiler
from .callees import CALLEE, OPTIONS
from .cpu.vectors import Code
from .formulas import ACTIVATIONS
from .numba_names import Unfit, code_of, entry_point, global_compiler_lock, set_cache

PACKAGE = __package__.partition(".")[0]
log = logging.getLogger(PACKAGE)

# ------------------------------------------------------------------------------------------------------- activations


def activate(z, activation):
    """The activation of z; z itself for code 0."""


def slope(z, activation):
    """The activation's derivative at z; 1 for code 0."""


def _chosen_by_code(column, without):
    def implementation(z, activation):
        if not isinstance(activation, Code):
            return None
        if activation.value == 0:
            return without
        formula = list(ACTIVATIONS.values())[activation.value - 1][column]
        return lambda z, activation: formula(z)

    return implementation


overload(activate, jit_options=CALLEE)(_chosen_by_code(0, lambda z, activation: z))
overload(slope, jit_options=CALLEE)(_chosen_by_code(1, lambda z, activation: 1.0))

# ------------------------------------------------------------------------------------------------------ entry points

# a child forked while another thread compiles would wait for ever for that thread to release Numba's lock
at_fork(
    before=global_compiler_lock.acquire,
    after_in_parent=global_compiler_lock.release,
    after_in_child=global_compiler_lock.release,
)

# Folders of the package whose modules decide what kernels are, and other files: the numbers that dtypes are known by.
FOLDERS, OTHERS = ("kernels", "kernels/cpu", "shapes"), ("arrays/dtypes.py",)


def _text(file):
    try:
        return pkgutil.get_data(PACKAGE, file) or b""
    except OSError:  # compiled modules without their sources, of which Numba keeps nothing
        return b""


def _modules(folder):
    """The modules of a folder of the package, also of one in an archive."""
    path = f"{importlib.import_module(PACKAGE).__path__[0]}/{folder}"
    return sorted(f"{folder}/{module.name}.py" for module in pkgutil.iter_modules([path]) if not module.ispkg)


@functools.cache
def sources_digest(*others):
    """A number that changes with the text of any kernel module, and of `others`, files of the package.

    Numba's cache notices a changed entry point but not a changed callee; the digest is part of each entry point's
    closure and so of its key in the cache. Never 0.
    """
    files = [file for folder in FOLDERS for file in _modules(folder)]
    text = b"".join(map(_text, [*files, *OTHERS, *others]))
    return int.from_bytes(hashlib.sha256(text).digest()[:7], "big") | 1


def entry(make=None, *, parallel=False):
    """Turn a factory of kernels, whose parameters are all integers, into `kernel(arguments, *key)`.

    It gives the compiled kernel for the types of `arguments`, from the on-disk cache where that works.
    `kernel.dispatcher(signature, *key)` gives Numba's dispatcher of it; `kernel.ready` has those that were asked for.
    """
    if make is None:
        return functools.partial(entry, parallel=parallel)
    ready, dispatchers = {}, {}

    def dispatcher(signature, *key):
        if (key, signature) not in dispatchers:
            function = make(*key, sources_digest())
            # Numba names machine code by this and the types, and calls one for the other where names are the same
            function.__qualname__ += "_".join(["", *map(str, key)])
            dispatchers[key, signature] = _compile(function, parallel, signature)
        return dispatchers[key, signature]

    @functools.wraps(make)  # its name, for pickles
    def kernel(arguments, *key):
        if key not in ready:
            # the compiled function itself: Numba's dispatcher would look at the types of all arguments at each call
            ready[key] = entry_point(code_of(dispatcher(tuple(map(typeof, arguments)), *key)))
        return ready[key]

    kernel.dispatcher, kernel.ready = dispatcher, ready
    return kernel


def _compile(function, parallel, signature):
    need_compiler()
    started = time.perf_counter()
    jitted = njit(function, parallel=parallel, **OPTIONS)
    if os.environ.get("NUMBAGN_CACHE", "1") == "0":
        jitted.compile(signature)
    else:
        faults = []
        try:
            from .cache import KernelCache  # here, since it is made of what Numba keeps to itself and may change

            set_cache(jitted, KernelCache(function, faults.append))
            jitted.compile(signature)
        except Exception as fault:  # a disk that is full or cannot be written, a file like no other
            faults.append(fault)
        if not jitted.overloads:  # where only the writing of a file failed, the kernel is there
            jitted = njit(function, parallel=parallel, **OPTIONS)
            jitted.compile(signature)
        if faults:  # and not one of the compilation itself, which would have come again
            _tell_fault(faults[0])
    verb = "loaded" if jitted.stats.cache_hits else "compiled"
    log.info("%s %s in %.2f s", verb, function.__qualname__.split(".")[0], time.perf_counter() - started)
    return jitted


_told = []


def _tell_fault(fault):
    """Say once in a process that the cache does not work."""
    if _told:
        return
    _told.append(fault)
    if isinstance(fault, RuntimeError):  # Numba found no folder to keep a cache in
        reason = "there is no folder to keep compiled kernels in, so each process compiles them anew"
        cure = "Set NUMBA_CACHE_DIR to a private writable folder, or NUMBAGN_CACHE=0."
    elif isinstance(fault, Unfit):  # this release of Numba has another cache
        reason, cure = "compiled kernels are not kept, so each process compiles them anew", f"{fault}."
    else:
        reason = f"the cache of compiled kernels cannot be used ({type(fault).__name__}: {fault})"
        cure = "Compiled anew; where this comes again, delete its files or set NUMBA_CACHE_DIR to a private folder."
    warnings.warn(f"numbagn: {reason}. {cure}", RuntimeWarning, stacklevel=_outside())


def _outside():
    """The stack level, for `warnings.warn` one function up, of the first caller outside this package."""
    frame, level = sys._getframe(1), 1
    while frame.f_back is not None and frame.f_globals.get("__name__", "").split(".")[0] == PACKAGE:
        frame, level = frame.f_back, level + 1
    return level
