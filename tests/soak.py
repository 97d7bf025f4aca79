"""Many threads, random calls, every result verified, memory flat: `python tests/soak.py --seconds 60`.

In each round every thread draws cases and makes each call several times; all must give the same bits, also while other
results are held. Then one thread alone makes the calls again on serial kernels, which must give those bits too, and
small cases are held against the definition. The first wrong result ends the run with status 1 and the case's number,
which `--case` repeats.
"""

import argparse
import ctypes
import gc
import hashlib
import math
import os
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

os.environ.setdefault("NUMBA_NUM_THREADS", "4")  # as the tests: parallel kernels whatever the machine has

import numpy as np
from cases import DTYPES, close, in_layout, normal
from test_backward import TOLERANCE, check

import numbagn
from numbagn import reference
from numbagn.arrays import recycling
from numbagn.arrays.dtypes import dtype_row
from numbagn.calls import passes
from numbagn.shapes import schedule

CASES, TIMES = 4, 3  # of each thread in a round; calls of each case
GROWTH = 16  # MiB that memory may grow by after a third of the time; 1 to 3 were seen
LARGE_ODDS = 0.25


class Kind(NamedTuple):
    """What a kernel is compiled for: two kernels each, forward and backward, and two more for several threads."""

    dtype: str
    layout: str
    activation: str | None = None
    skip: str | None = None  # the operand's dtype
    residual: str | None = None
    several: bool = False  # large arrays too
    single: bool = False  # one position, and parameters for all samples


KINDS = (
    Kind("float32", "channels_first", several=True),
    Kind("float32", "channels_last", several=True),
    Kind("bfloat16", "channels_first", several=True),
    Kind("float32", "channels_first", several=True, single=True),
    Kind("float32", "channels_first", "silu", skip="float32"),
    Kind("float64", "channels_last", "gelu", residual="float64"),
    Kind("float16", "channels_last", "silu", residual="float32"),
    Kind("float64", "channels_first"),
    Kind("bfloat16", "channels_last", "gelu_tanh", skip="bfloat16", residual="bfloat16"),
)
# How an array lies in memory: each has the same values, and needs the same kernel.
MANNERS = ("dense", "read-only", "every other", "reversed", "among other samples")
OUTS = (None, None, "new", "x", "reversed")


class Case(NamedTuple):
    """A forward and a backward call, drawn from the numbers of the run, the round, the thread and the case."""

    number: tuple[int, ...]
    kind: Kind
    shape: tuple[int, ...]
    groups: int
    channel_axis: int
    manners: tuple[str, ...]  # of x, skip, residual, dy
    weight: str | None
    bias: str | None
    out: str | None

    def __str__(self) -> str:
        options = " ".join(f"{k}={v}" for k, v in self._asdict().items() if k != "number")
        return f"seed {self.number[0]}, case {'.'.join(map(str, self.number[1:]))}: {options}"


def draw(number: tuple[int, ...], kinds: int = len(KINDS), kind: Kind | None = None, large: bool | None = None) -> Case:
    """The case of this number, of one of the first kinds; of a kind and size that is asked for."""
    rng = np.random.default_rng(number)
    kind = kind or KINDS[rng.integers(kinds)]
    if large is None:
        large = kind.several and rng.random() < LARGE_ODDS
    groups, n = int(rng.integers(1, 5)), int(rng.integers(1, 5))
    if kind.single:
        n = int(rng.integers(8000, 40000)) if large else n
        channels, positions = groups * int(rng.integers(4, 9)), (1,) * int(rng.integers(0, 3))
    elif large:  # from about 0.4 to 4 MiB
        channels = groups * int(rng.integers(4, 9))
        positions = (int(rng.integers(150, 400)) * 160 // (n * channels) + 1, int(rng.integers(8, 17)))
    else:
        channels = groups * int(rng.integers(1, 6))
        positions = tuple(int(v) for v in rng.integers(1, 5, rng.integers(0, 4)))
    if not kind.single and (channels == 1 or math.prod(positions) == 1):  # that is in either layout
        channels, positions = 2 * groups, (3, *positions)
    ndim = 2 + len(positions)
    manners = tuple(MANNERS[i] for i in rng.integers(len(MANNERS), size=4))
    weight, bias = (rng.choice(np.array([None, "(C,)", "(N, C)"][: 3 - kind.single], object)) for _ in range(2))
    out = OUTS[rng.integers(len(OUTS))]
    axis = int(rng.choice([*range(1, ndim), *range(1 - ndim, 0)]))
    return Case(number, kind, (n, channels, *positions), groups, axis, manners, weight, bias, out)


def place(values: np.ndarray, layout: str, axis: int, manner: str) -> np.ndarray:
    """The values (N, C, ...) in memory of their own, with the channels at `axis`."""
    array = in_layout(values, layout)
    if array is values:
        array = values.copy()
    if manner == "read-only":
        array.flags.writeable = False
    elif manner == "every other":
        step = (*(slice(None),) * (array.ndim - 1), slice(None, None, 2))
        wide = in_layout(np.zeros((*array.shape[:-1], 2 * array.shape[-1]), array.dtype), layout)[step]
        wide[...] = array
        array = wide
    elif manner == "reversed":
        back = (slice(None, None, -1),) * array.ndim
        array = array[back].copy("K")[back]
    elif manner == "among other samples":
        more = in_layout(np.zeros((2 * array.shape[0] + 1, *array.shape[1:]), array.dtype), layout)[1::2]
        more[...] = array
        array = more
    return np.moveaxis(array, 1, axis)


class Arrays:
    """The arrays of a case, and its calls."""

    def __init__(self, case: Case):
        rng = np.random.default_rng((*case.number, 1))
        kind, self.case = case.kind, case
        self.values = normal(rng, case.shape, DTYPES[kind.dtype], offset=0.3)
        dy, *operands = (
            None if dtype is None else normal(rng, case.shape, DTYPES[dtype])
            for dtype in (kind.dtype, kind.skip, kind.residual)
        )
        sizes = {"(C,)": case.shape[1:2], "(N, C)": case.shape[:2]}
        wide = np.float64 if kind.dtype == "float64" else np.float32
        w, b = (None if p is None else normal(rng, sizes[p], wide, offset=0.5) for p in (case.weight, case.bias))
        self.options = {"weight": w, "bias": b, "channel_axis": case.channel_axis, "activation": kind.activation}
        for name, value, manner in zip(("skip", "residual"), operands, case.manners[1:3], strict=True):
            if value is not None:
                self.options[name] = self.placed(value, manner)
        self.dy = self.placed(dy, case.manners[3])

    def placed(self, values: np.ndarray, manner: str) -> np.ndarray:
        return place(values, self.case.kind.layout, self.case.channel_axis, manner)

    def out(self, x: np.ndarray) -> np.ndarray | None:
        if self.case.out in (None, "x"):
            return x if self.case.out else None
        return self.placed(self.values, "dense" if self.case.out == "new" else "reversed")

    def call(self) -> list[np.ndarray]:
        """(y, mean, rstd, dx, dweight, dbias[, dresidual])."""
        # read-only memory cannot be the result's
        manner = "dense" if (self.case.out, self.case.manners[0]) == ("x", "read-only") else self.case.manners[0]
        x = self.placed(self.values, manner)
        y, mean, rstd = numbagn.group_norm_forward(x, self.case.groups, **self.options, out=self.out(x))
        if y is x:
            x = self.placed(self.values, manner)
        gradients = numbagn.group_norm_backward(
            self.dy, x, mean, rstd, self.case.groups, **self.options, out=self.out(x)
        )
        return [y, mean, rstd, *gradients]

    def check(self, got: list[np.ndarray]) -> None:
        """Hold results against the definition."""
        x, name = self.placed(self.values, "dense"), self.case.kind.dtype
        want, mean, rstd = reference.group_norm(x, self.case.groups, **self.options)
        # what rounding leaves of values that all but cancel: of x and skip, and in the definition's own float64
        scale = max(1.0, rstd.max()) if self.case.kind.skip or name == "float64" else 1.0
        close(got[0] / scale, want / scale, dtype_row(x.dtype).tolerance)
        exact = 1e-13 if name == "float64" else 4e-7
        close(got[1], mean, exact)
        np.testing.assert_allclose(got[2], rstd, rtol=exact * scale * scale)
        gradients = reference.group_norm_backward(self.dy, x, self.case.groups, **self.options)
        check(got[3:], gradients, TOLERANCE[name], scale * (1e-12 if name == "float64" else 2e-6), rstd)


class Wrong(Exception):
    """A result that is not right, or an error where there should be none."""


def digest(arrays: list[np.ndarray]) -> str:
    """The bits of arrays, their dtypes and shapes."""
    bits = hashlib.sha256()
    for array in arrays:
        bits.update(f"{array.dtype} {array.shape}".encode())
        bits.update(np.ascontiguousarray(array).view(np.uint8))
    return bits.hexdigest()


@contextmanager
def blamed(case: Case) -> Iterator[None]:
    try:
        yield
    except Exception as fault:
        raise Wrong(f"{case}: {type(fault).__name__}: {' '.join(str(fault).split())}") from fault


def repeatedly(case: Case) -> str:
    """The digest of a case's results, the same each time, also after the later calls."""
    with blamed(case):
        arrays = Arrays(case)
        first = arrays.call()
        bits = digest(first)
        for time_ in range(1, TIMES):
            if digest(arrays.call()) != bits:
                raise ValueError(f"other bits at call {time_ + 1}")
        if digest(first) != bits:
            raise ValueError("the first results were overwritten")
        return bits


@contextmanager
def serial_kernels() -> Iterator[None]:
    before, schedule.PARALLEL_BYTES = schedule.PARALLEL_BYTES, 1 << 62
    passes.forget_plans()
    try:
        yield
    finally:
        schedule.PARALLEL_BYTES = before
        passes.forget_plans()


def verify(case: Case, bits: str) -> None:
    """Alone: the same bits, and if the case is small the definition's values. Call it under `serial_kernels`."""
    with blamed(case):
        arrays = Arrays(case)
        results = arrays.call()
        if digest(results) != bits:
            raise ValueError("other bits than alone on a serial kernel")
        if math.prod(case.shape) < 10_000:
            arrays.check(results)


def keep_nothing_free() -> None:
    """Have the GNU C library give free memory back: what it keeps for each thread changed by 60 MiB between rounds."""
    with suppress(AttributeError):
        arena_max, mmap_threshold = -8, -3
        library = ctypes.CDLL(None)
        library.mallopt(arena_max, 1)
        library.mallopt(mmap_threshold, 1 << 17)


def memory() -> float:
    """MiB this process holds, without free results; NaN where the system does not tell."""
    recycling._buffers.clear()
    gc.collect()
    with suppress(AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
    try:
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    except OSError:
        return math.nan
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def prepare(kinds: tuple[Kind, ...]) -> int:
    """Compile, or load, all kernels there will be; their number at most."""
    kernels = 0
    for number, kind in enumerate(kinds):
        for large in (False, True) if kind.several else (False,):
            repeatedly(draw((0, number), kind=kind, large=large))
            kernels += 2
    return kernels


def soak(seconds: float, threads: int, seed: int, kinds: int, growth: float, say) -> str:
    """Run the rounds; the closing line, or Wrong."""
    keep_nothing_free()
    started = time.perf_counter()
    kernels = prepare(KINDS[:kinds])
    compiling = time.perf_counter() - started
    from numba.core.event import install_recorder

    started, spent, base, cases, rounds = time.perf_counter(), 0.0, math.nan, 0, 0
    barrier = threading.Barrier(threads)

    def work(thread: int) -> list[tuple[Case, str]]:
        barrier.wait(60)
        return [(case, repeatedly(case)) for case in (draw((seed, rounds, thread, i), kinds) for i in range(CASES))]

    with ThreadPoolExecutor(threads) as pool, install_recorder("numba:compile") as compilations:
        while spent < seconds:
            done = [pair for pairs in pool.map(work, range(threads)) for pair in pairs]
            with serial_kernels():
                for case, bits in done:
                    verify(case, bits)
            cases, rounds, spent = cases + len(done), rounds + 1, time.perf_counter() - started
            if math.isnan(base) and spent > seconds / 3:
                base = memory()
            say(f"{spent:.0f} of {seconds:g} s: {cases} cases")
        if compilations.buffer:
            raise Wrong(f"seed {seed}: {len(compilations.buffer)} compilations after all kernels were ready")
    grown = memory() - base
    if grown > growth:
        raise Wrong(f"seed {seed}: memory grew by {grown:.0f} MiB from {base:.0f} MiB after a third of the time")
    return (
        f"soak: {cases} cases, {cases * (2 * TIMES + 2)} calls verified in {spent:.0f} s, {rounds} rounds of {threads} "
        f"threads, seed {seed}; {kernels} kernels ready in {compiling:.0f} s; memory {base:.0f} {grown:+.0f} MiB"
    )


def main(argv: list[str] | None = None) -> int:
    """Run the command; the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=60, help="how long, compiling aside")
    parser.add_argument("--threads", type=int, default=8)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kinds", type=int, default=len(KINDS), help="the first so many kinds of calls only")
    parser.add_argument("--growth", type=float, default=GROWTH, help="MiB that memory may grow by")
    parser.add_argument("--case", help="repeat one case, ROUND.THREAD.NUMBER, alone")
    options = parser.parse_args(argv)
    terminal = sys.stderr.isatty()

    def say(line: str) -> None:
        if terminal:
            print(f"\r{line:<60}", end="", file=sys.stderr, flush=True)

    try:
        if options.case:
            case = draw((options.seed, *map(int, options.case.split("."))), options.kinds)
            bits = repeatedly(case)
            with serial_kernels():
                verify(case, bits)
            closing = f"soak: {case}: all right"
        else:
            closing = soak(options.seconds, options.threads, options.seed, options.kinds, options.growth, say)
    except Wrong as wrong:
        say("")
        print(f"{chr(13) if terminal else ''}soak: wrong: {wrong}", file=sys.stderr)
        return 1
    say("")
    print(f"{chr(13) if terminal else ''}{closing}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
