"""The self-check behind `python -m numbagn`: what is installed, is it right, is it fast."""

import os
import platform
import statistics
import time
from collections.abc import Callable
from functools import partial
from importlib import metadata
from typing import Any, NamedTuple

import numpy as np

import numbagn

from ..arrays.dtypes import dtype_named
from .bench.machine import processor_name

Array = Any

# (N, C, H, W) and the number of groups, for accuracy: so small that the float64 definition costs nothing, odd sizes.
SMALL = (2, 32, 33, 31), 8
LARGE = (2, 320, 64, 64), 32
SPEED_ROUNDS = 15
EPS = 1e-5


class Case(NamedTuple):
    """One accuracy check: a dtype, the mean of the input whose variance is 1, and the error allowed."""

    dtype: str
    offset: float
    # For the 16-bit dtypes half a unit in the last place of the largest output, for the others the library's promise.
    allowed: float | None


CASES = (
    Case("float16", 0.0, None),
    Case("bfloat16", 0.0, None),
    Case("float32", 0.0, 2e-6),
    Case("float32", 1e4, 2e-6),
    Case("float64", 0.0, 1e-12),
)


def run() -> int:
    """Print versions, accuracy and speed, and say in words whether all is well; gives 0 if it is, else 1."""
    faults: list[str] = []
    try:
        _print_versions()
        from numba import config

        if config.DISABLE_JIT:
            faults.append("NUMBA_DISABLE_JIT is set: nothing is compiled, so there is nothing to check")
        else:
            _compile()
            _print_threads()
            faults += _check_accuracy()
            faults += _check_bits()
            _show_speed()  # no fault: other programs may be using the cores
    except Exception as err:  # whatever is broken here, the user gets one line about it and not a traceback
        faults.append(f"{type(err).__name__}: {' '.join(str(err).split())}")
    print()
    for fault in faults:
        print("FAULT:", fault)
    print("Something is wrong, see above." if faults else "All is well: every check holds.")
    return 1 if faults else 0


def _print_versions() -> None:
    print(
        f"numbagn {numbagn.__version__}, Python {platform.python_version()}, {platform.system()} {platform.machine()}"
    )
    print("packages:", ", ".join(f"{name} {_version(name)}" for name in ("numba", "llvmlite", "numpy", "ml_dtypes")))
    print(f"CPU:      {processor_name()}, {os.cpu_count()} logical cores")
    print("GPU:     ", _gpu())


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


def _gpu() -> str:
    """What arrays on a GPU would run on, without loading a driver where the package for it is not installed."""
    if _version("numba-cuda") == "not installed":
        return "arrays on one need numba-cuda: pip install 'numbagn[cuda13]' (or [cuda12])"
    from numba import cuda

    try:
        return str(cuda.get_current_device().name)
    except Exception:  # no driver, no device, or one that is too old
        return f"none found by numba-cuda {_version('numba-cuda')}"


def _print_threads() -> None:
    import numba

    try:
        layer = f"threading layer {numba.threading_layer()}"
    except ValueError:
        layer = "threading layer not started (all calls ran serially)"
    print(f"threads:  {numba.get_num_threads()}, {layer}")


def _compile() -> None:
    """Make every call of this check once, so that none of the later timings holds a compilation."""
    print("compiling what is not in the cache yet (the first time up to a minute) ...", end=" ", flush=True)
    started = time.perf_counter()
    for case in CASES:
        dtype = _dtype(case.dtype)
        if dtype is not None:
            numbagn.group_norm(*_arguments(*SMALL, dtype, case.offset))
    numbagn.group_norm(*_arguments(*LARGE))
    print(f"{time.perf_counter() - started:.1f} s")


def _check_accuracy() -> list[str]:
    definition: Callable[..., tuple[Array, Array, Array]] = numbagn.reference.group_norm  # has no type hints itself
    print("\naccuracy, against the definition in float64")
    print(f"  {'dtype':<10}{'mean of x':>10}{'max error':>12}{'allowed':>12}")
    faults = []
    for case in CASES:
        dtype = _dtype(case.dtype)
        if dtype is None:
            print(f"  {case.dtype:<10}{'':>10}  not checked, ml_dtypes is not installed")
            continue
        arguments = _arguments(*SMALL, dtype, case.offset)
        expected, _, _ = definition(*arguments)
        error = float(np.max(np.abs(numbagn.group_norm(*arguments).astype(np.float64) - expected)))
        allowed = case.allowed or 0.51 * _spacing(dtype) * float(np.max(np.abs(expected)))
        good = error <= allowed  # False for NaN
        print(f"  {case.dtype:<10}{case.offset:>10g}{error:>12.1e}{allowed:>12.1e}  {'ok' if good else 'WRONG'}")
        if not good:
            faults.append(f"{case.dtype} at mean {case.offset:g} is off by {error:.1e}, allowed {allowed:.1e}")
    return faults


def _check_bits() -> list[str]:
    x, *others = _arguments(*LARGE)
    batch, alone = numbagn.group_norm(x, *others), numbagn.group_norm(x[1:], *others)
    same = np.array_equal(batch[1:].view(np.uint32), alone.view(np.uint32))
    print(f"  a sample alone and in a batch: {'the same bits' if same else 'DIFFERENT BITS'}")
    return [] if same else ["a sample gets other bits alone than in a batch"]


def _show_speed() -> None:
    arguments = _arguments(*LARGE)
    x, groups, *_ = arguments
    out, moved = np.empty_like(x), 2 * x.nbytes
    norm = partial(numbagn.group_norm, *arguments, out=out)
    times = _time((norm, partial(np.copyto, out, x), partial(_definition, *arguments)), SPEED_ROUNDS)
    medians = [statistics.median(seconds) for seconds in times]
    shape = "x".join(map(str, x.shape))
    print(f"\nspeed, {shape} float32, {groups} groups, {moved / 1e6:.0f} MB read and written")
    for name, median in zip(("numbagn", "NumPy copy", "NumPy definition"), medians, strict=True):
        print(f"  {name:<18}{median * 1e3:>8.2f} ms{moved / median / 1e9:>8.1f} GB/s")
    to_copy, to_definition = medians[0] / medians[1], medians[2] / medians[0]
    print(f"  numbagn takes {to_copy:.1f} times as long as the copy, and the definition {to_definition:.1f} times")
    print("  as long as numbagn")
    if to_copy > 4:
        print("  slower than usual: are other programs using the cores? With the omp layer,")
        print("  the environment variable OMP_WAIT_POLICY=passive helps then")


def _time(functions: tuple[Callable[[], object], ...], rounds: int) -> list[list[float]]:
    """Time functions in turn, so that a change of the machine's mood meets all of them."""
    times: list[list[float]] = [[] for _ in functions]
    for _ in range(rounds + 1):
        for function, seconds in zip(functions, times, strict=True):
            started = time.perf_counter()
            function()
            seconds.append(time.perf_counter() - started)
    return [seconds[1:] for seconds in times]  # the first round warms up


def _definition(x: Array, num_groups: int, weight: Array, bias: Array, eps: float) -> Array:
    """Write group normalization as one would in NumPy, in the dtype of `x`."""
    grouped = x.reshape(x.shape[0], num_groups, -1)
    normalized = (grouped - grouped.mean(2, keepdims=True)) / np.sqrt(grouped.var(2, keepdims=True) + eps)
    per_channel = (-1,) + (1,) * (x.ndim - 2)
    return normalized.reshape(x.shape) * weight.reshape(per_channel) + bias.reshape(per_channel)


def _arguments(shape: tuple[int, ...], groups: int, dtype: Any = np.float32, offset: float = 0.0) -> tuple[Any, ...]:
    """Give x, num_groups, weight, bias and eps, the same numbers on every machine.

    x has variance 1 around `offset`, no weight is above 1.
    """
    random = np.random.default_rng(20180322)
    x = (random.standard_normal(shape) + offset).astype(dtype)
    weight = random.uniform(0.5, 1.0, shape[1]).astype(np.float32)
    bias = random.uniform(-0.5, 0.5, shape[1]).astype(np.float32)
    return x, groups, weight, bias, EPS


def _dtype(name: str) -> Any:
    """Give a NumPy dtype, or None for bfloat16 where ml_dtypes is not installed."""
    try:
        return dtype_named(name)
    except ImportError:
        return None


def _spacing(dtype: Any) -> float:
    """Give the gap between 1 and the next number."""
    bits = np.ones(1, dtype).view(np.uint16) + np.uint16(1)
    return float(bits.view(dtype)[0]) - 1.0
