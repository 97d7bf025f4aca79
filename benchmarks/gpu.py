"""Speed on a GPU, beside a copy of the same bytes and beside torch and CuPy, in interleaved rounds."""

import argparse
import statistics
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

import numbagn
from numbagn.arrays.dtypes import dtype_named
from numbagn.command.bench.cases import CASES, VARIANTS, Case, Variant
from numbagn.command.bench.results import provenance, write

from . import RESULTS

COLUMNS = (
    "gpu", "variant", "case", "shape", "G", "dtype", "layout", "peer", "peer_version", "microseconds",
    "host_microseconds", "of_copy", "max_error",
)  # fmt: skip
DESCRIPTION = """\
Measure group norm on the GPU: the median time of a call between two events, its share of the time of a copy of the
bytes it must move (1 read and 1 write forward, 2 reads and 1 write backward), the time the host spends in the call, and
the error against the definition in float64 for the smaller cases. Peers are torch and CuPy, where installed. Exits with
2 and a reason where there is no GPU."""
# Above, the definition in float64 on the host would take longer than the measurement.
MOST_CHECKED = 1 << 22


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description, parser.formatter_class = DESCRIPTION, argparse.RawDescriptionHelpFormatter
    parser.add_argument("--case", action="append", choices=[case.name for case in CASES], metavar="CASE")
    parser.add_argument("--variant", action="append", choices=[v.name for v in VARIANTS], metavar="VARIANT")
    parser.add_argument("--rounds", type=int, default=15, help="rounds of all entries, one after the other")
    parser.add_argument("--output", type=Path, default=RESULTS / "gpu.csv", help="CSV to write")


def main(options: argparse.Namespace) -> None:
    reason = why_not()
    if reason:
        print(f"no GPU benchmark: {reason}", file=sys.stderr)
        raise SystemExit(2)
    rows = []
    for variant in VARIANTS:
        for case in CASES:
            cases, variants = options.case or variant.cases, options.variant or (variant.name,)
            if case.name not in cases or variant.name not in variants:
                continue
            print(f"{variant.name} {case.name}", file=sys.stderr)
            rows += measured(case, variant, options.rounds)
    write(options.output, COLUMNS, rows)
    print(f"wrote {options.output}", file=sys.stderr)


def why_not() -> str:
    """Why nothing can be measured here, or nothing."""
    try:
        from numbagn.arrays.device import cuda_module

        cuda_module()
    except (ImportError, RuntimeError) as fault:
        return str(fault)
    return ""


def measured(case: Case, variant: Variant, rounds: int) -> Iterator[dict[str, Any]]:
    from numba import cuda

    x, dy = (made(case, variant, seed) for seed in (0, 1))
    entries = [*own(case, variant, x, dy), *torch_entries(case, variant, x, dy), *cupy_entries(case, variant, x)]
    passes = 3 if variant.direction == "backward" else 2
    source = cuda.to_device(np.empty(x.nbytes * passes // 2, np.uint8))
    target = cuda.device_array_like(source)
    timed = [("copy", "", lambda: target.copy_to_device(source), None), *entries]
    device: dict[str, list[float]] = {name: [] for name, *_ in timed}
    host: dict[str, list[float]] = {name: [] for name, *_ in timed}
    for turn in range(rounds + 2):  # the first two warm up: compilation, caches, clocks
        for name, _, call, _ in timed:
            on_device, on_host = one_call(cuda, call)
            if turn >= 2:
                device[name].append(on_device)
                host[name].append(on_host)
    copy = statistics.median(device["copy"])
    for name, version, call, back in timed:
        time = statistics.median(device[name])
        yield provenance() | {
            "gpu": cuda.get_current_device().name, "variant": variant.name, "case": case.name,
            "shape": "x".join(map(str, case.shape)), "G": case.groups, "dtype": variant.dtype, "layout": variant.layout,
            "peer": name, "peer_version": version, "microseconds": f"{time:.2f}",
            "host_microseconds": f"{statistics.median(host[name]):.2f}", "of_copy": f"{time / copy:.3f}",
            "max_error": "" if back is None else error(case, variant, x, dy, back(call())),
        }  # fmt: skip


def one_call(cuda: Any, call: Callable[[], Any], repeats: int = 10) -> tuple[float, float]:
    """Microseconds of a call on the device and on the host."""
    from time import perf_counter

    begin, end = cuda.event(), cuda.event()
    begin.record()
    start = perf_counter()
    for _ in range(repeats):
        call()
    spent = perf_counter() - start
    end.record()
    end.synchronize()
    return cuda.event_elapsed_time(begin, end) * 1e3 / repeats, spent * 1e6 / repeats


def made(case: Case, variant: Variant, seed: int) -> np.ndarray:
    """Data of the case on the host, channels at axis 1, in the memory layout of the variant."""
    dtype = dtype_named(variant.dtype)
    x = np.random.default_rng(seed).standard_normal(case.shape, np.float32).astype(dtype)
    return x if variant.layout == "NCHW" else np.ascontiguousarray(np.moveaxis(x, 1, -1))


def error(case: Case, variant: Variant, x: np.ndarray, dy: np.ndarray, got: np.ndarray) -> str:
    """The largest difference of y or dx from the definition's."""
    if x.size > MOST_CHECKED:
        return ""
    axis = 1 if variant.layout == "NCHW" else -1
    options = {"channel_axis": axis, "activation": variant.activation}
    if variant.direction == "backward":
        want = numbagn.reference.group_norm_backward(dy, x, case.groups, **options)[0]
    else:
        want = numbagn.reference.group_norm(x, case.groups, **options)[0]
    return f"{np.abs(got.astype(np.float64) - want).max():.2e}"


# -------------------------------------------------------------------------------------------------------------- entries


def own(case: Case, variant: Variant, x: np.ndarray, dy: np.ndarray) -> Iterator[tuple[str, str, Any, Any]]:
    """Ours, on memory of Numba's."""
    from numba import cuda

    axis = 1 if variant.layout == "NCHW" else -1
    on_device, upstream, out = (Raw(cuda, array) for array in (x, dy, np.zeros_like(x)))
    options = {"channel_axis": axis, "activation": variant.activation}

    def forward() -> Any:
        return numbagn.group_norm(on_device, case.groups, out=out, **options)

    _, mean, rstd = numbagn.group_norm_forward(on_device, case.groups, **options)

    def backward() -> Any:
        return numbagn.group_norm_backward(upstream, on_device, mean, rstd, case.groups, out=out, **options)[0]

    def back(result: Any) -> np.ndarray:
        bits: np.ndarray = cuda.from_cuda_array_interface(
            out.interface | {"typestr": out.bits}, owner=out
        ).copy_to_host()
        return bits.view(x.dtype)

    yield "numbagn", numbagn.__version__, backward if variant.direction == "backward" else forward, back


class Raw:
    """Device memory with the interface that arrays of any library have."""

    def __init__(self, cuda: Any, array: np.ndarray) -> None:
        half = array.dtype.name == "bfloat16"
        self.bits = "<u2" if half else array.dtype.str
        self.owner = cuda.to_device(array.view(self.bits))
        self.interface = {
            "shape": array.shape, "strides": None, "typestr": "<V2" if half else self.bits, "version": 3,
            "data": (self.owner.__cuda_array_interface__["data"][0], False), "stream": None,
        }  # fmt: skip

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        return self.interface


def torch_entries(case: Case, variant: Variant, x: np.ndarray, dy: np.ndarray) -> Iterator[tuple[str, str, Any, Any]]:
    try:
        import torch
    except ImportError:
        return
    if not torch.cuda.is_available():
        return
    kind = getattr(torch, variant.dtype)
    last = variant.layout == "NHWC"
    given, upstream = (torch.from_numpy(a.astype(np.float32)).to("cuda", kind) for a in (x, dy))
    if last:
        given, upstream = given.movedim(-1, 1), upstream.movedim(-1, 1)
    activation = {"silu": torch.nn.functional.silu, "relu": torch.relu}.get(variant.activation or "", lambda y: y)
    stream = torch.cuda.default_stream()

    def forward() -> Any:
        with torch.no_grad(), torch.cuda.stream(stream):
            return activation(torch.nn.functional.group_norm(given, case.groups))

    leaf = given.detach().requires_grad_(True)
    y = activation(torch.nn.functional.group_norm(leaf, case.groups))

    def backward() -> Any:
        with torch.cuda.stream(stream):
            return torch.autograd.grad(y, leaf, upstream, retain_graph=True)[0]

    def back(result: Any) -> np.ndarray:
        moved = result.detach().movedim(1, -1) if last else result.detach()
        values: np.ndarray = moved.float().cpu().numpy()
        return values

    yield "torch", torch.__version__, backward if variant.direction == "backward" else forward, back


def cupy_entries(case: Case, variant: Variant, x: np.ndarray) -> Iterator[tuple[str, str, Any, Any]]:
    """The definition, as one writes it with CuPy."""
    try:
        import cupy
    except ImportError:
        return
    if variant.direction == "backward" or variant.dtype == "bfloat16" or variant.activation or variant.layout != "NCHW":
        return
    given = cupy.asarray(x)

    def call() -> Any:
        groups = given.reshape(x.shape[0], case.groups, -1)
        mean, var = groups.mean(2, keepdims=True), groups.var(2, keepdims=True)
        return ((groups - mean) / cupy.sqrt(var + 1e-5)).reshape(x.shape)

    yield "cupy", cupy.__version__, call, cupy.asnumpy
