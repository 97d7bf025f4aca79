"""The machine: its description for figures, and the number of threads that programs use on it."""

import os
import platform
from pathlib import Path

from ...shapes.schedule import cache_bytes


def describe_machine() -> str:
    """Such as "AMD EPYC (family 25 model 17), 2 cores, AVX-512, 32 MiB last-level cache"."""
    fields = _first_processor()
    name = processor_name()
    if "cpu family" in fields:
        name += f" (family {fields['cpu family']} model {fields['model']})"
    parts = [name, f"{core_count()} cores"]
    flags = fields.get("flags", "").split()
    parts += [label for flag, label in (("avx512f", "AVX-512"), ("avx2", "AVX2")) if flag in flags][:1]
    if cache_bytes():
        parts.append(f"{cache_bytes() >> 20} MiB last-level cache")
    return ", ".join(parts)


def processor_name() -> str:
    return _first_processor().get("model name") or platform.processor() or platform.machine()


def core_count() -> int:
    """Of those this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def thread_environment(threads: int) -> dict[str, str]:
    """Variables that must be set before the process starts, to give every peer the same number of threads."""
    names = ("OMP_NUM_THREADS", "NUMBA_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
    # XLA sizes its pool by NPROC.
    return {**{name: str(threads) for name in names}, "NPROC": str(threads), "JAX_PLATFORMS": "cpu"}


def _first_processor() -> dict[str, str]:
    try:
        lines = Path("/proc/cpuinfo").read_text(errors="replace").split("\n\n")[0].splitlines()
    except OSError:  # not Linux
        return {}
    return {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
