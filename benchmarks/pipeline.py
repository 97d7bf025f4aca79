"""A residual block of a diffusion model in NumPy: what its two norms cost, in plain NumPy, in torch and in numbagn."""

import argparse
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

import numbagn
from numbagn.command.bench import textbook
from numbagn.command.bench.cases import case_named
from numbagn.command.bench.machine import core_count
from numbagn.command.bench.results import provenance, write
from numbagn.command.bench.task import EPS, TOLERANCE

from . import RESULTS
from .convolution import convolve
from .processes import in_fresh_process

CASES = ("diffusion-64", "diffusion-32", "diffusion-16")
COLUMNS = (
    *("case", "shape", "G", "threads", "norm", "version"),
    *("block_ms", "norms_ms", "norms_percent", "max_error", "rounds", "starts"),
)
DESCRIPTION = """\
Time a whole residual block of a diffusion model, float32, channels first:

    h = convolution(silu(norm(x)))
    h = convolution(silu(norm(h) * scale + shift))      scale and shift of each sample, (N, C): the time step
    y = x + h

The 3x3 convolutions are matrix products by NumPy's BLAS, the same for all; the norms are plain NumPy, torch's
group_norm on the same memory, or numbagn's. The three take turns in one process, in an order shuffled anew each
round, and a clock stands around their norms; every result is compared with the block in float64. Repeated in fresh
processes."""

Norm = Callable[[np.ndarray, int, np.ndarray, np.ndarray], np.ndarray]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    default = ",".join(map(str, sorted({1, core_count()})))
    parser.add_argument("--threads", default=default, help=f"numbers of threads, default {default}")
    parser.add_argument("--starts", type=int, default=3, help="fresh processes for each point, default %(default)s")
    parser.add_argument("--rounds", type=int, default=7, help="turns of each norm in a process, default %(default)s")
    parser.add_argument("--output", type=Path, default=RESULTS / "pipeline.csv", help="CSV to write")


def main(options: argparse.Namespace) -> None:
    rows = []
    for case_name in CASES:
        for threads in map(int, options.threads.split(",")):
            starts = []
            for seed in range(options.starts):
                starts.append(in_fresh_process(threads, measure_block, case_name, threads, options.rounds, seed))
                shown = ", ".join(
                    f"{name} {m['norms_ms']:.2f} of {m['block_ms']:.0f} ms" for name, m in starts[-1].items()
                )
                place = f"{case_name}, {threads} threads, start {seed + 1}/{options.starts}"
                print(f"{place}: norms {shown}", file=sys.stderr)
            rows += [_row(case_name, threads, name, [start[name] for start in starts]) for name in starts[0]]
            write(options.output, COLUMNS, rows)  # an interrupted run leaves what it has
    print(f"wrote {options.output}", file=sys.stderr)


@dataclass
class Block:
    """x and the parameters of one block."""

    x: np.ndarray
    groups: int
    kernels: tuple[np.ndarray, np.ndarray]
    weights: tuple[np.ndarray, np.ndarray]  # (C,), and (N, C) with the time step's scale in it
    biases: tuple[np.ndarray, np.ndarray]

    @classmethod
    def random(cls, shape: tuple[int, ...], groups: int) -> "Block":
        rng = np.random.default_rng(0)

        def normal(*shape: int) -> np.ndarray:
            return rng.standard_normal(shape, np.float32)

        samples, channels = shape[:2]
        width = np.float32(1 / np.sqrt(9 * channels))
        kernels = tuple(normal(channels, channels, 3, 3) * width for _ in range(2))
        parameters = [tuple(normal(*size) / 4 for size in ((channels,), (samples, channels))) for _ in range(2)]
        return cls(normal(*shape), groups, kernels, tuple(1 + weight for weight in parameters[0]), parameters[1])

    def astype(self, dtype: Any) -> "Block":
        pairs = (tuple(a.astype(dtype) for a in pair) for pair in (self.kernels, self.weights, self.biases))
        return Block(self.x.astype(dtype), self.groups, *pairs)

    def run(self, norm: Norm) -> tuple[np.ndarray, float]:
        """y, and the seconds that the norms took."""
        h, seconds = self.x, 0.0
        for kernel, weight, bias in zip(self.kernels, self.weights, self.biases, strict=True):
            begin = time.perf_counter()
            h = norm(h, self.groups, weight, bias)
            seconds += time.perf_counter() - begin
            h, _ = convolve(h, kernel)
        h += self.x
        return h, seconds


def numpy_norm(x: np.ndarray, groups: int, weight: np.ndarray, bias: np.ndarray) -> np.ndarray:
    return textbook.forward(np, x, weight, bias, groups, EPS, "NCHW", "silu")


def numbagn_norm(x: np.ndarray, groups: int, weight: np.ndarray, bias: np.ndarray) -> np.ndarray:
    return numbagn.group_norm(x, groups, weight, bias, EPS, activation="silu")


def torch_norm(torch: Any, x: np.ndarray, groups: int, weight: np.ndarray, bias: np.ndarray) -> np.ndarray:
    """torch.nn.functional on views of the arrays; it has no (N, C) parameters, so one pass more puts them on."""
    functional, (x, weight, bias) = torch.nn.functional, map(torch.from_numpy, (x, weight, bias))
    if weight.ndim == 1:
        y = functional.group_norm(x, groups, weight, bias, EPS)
    else:
        y = torch.addcmul(bias[..., None, None], functional.group_norm(x, groups, eps=EPS), weight[..., None, None])
    return functional.silu(y, inplace=True).numpy()


def norms(threads: int) -> dict[str, tuple[str, Norm]]:
    """Version and function of each norm that is installed."""
    found = {"numpy": (np.__version__, numpy_norm), "numbagn": (numbagn.__version__, numbagn_norm)}
    try:
        torch = import_module("torch")
    except ImportError as error:
        print(f"skipped torch: cannot be imported ({error})", file=sys.stderr)
        return found
    torch.set_num_threads(threads)
    return found | {"torch": (torch.__version__, partial(torch_norm, torch))}


def measure_block(case_name: str, threads: int, rounds: int, seed: int) -> dict[str, dict[str, Any]]:
    """For each norm the medians of its turns in milliseconds, and the largest error of the block's result."""
    case, contestants = case_named(case_name), norms(threads)
    block = Block.random(case.shape, case.groups)
    expected, _ = block.astype(np.float64).run(numpy_norm)
    errors = {name: textbook.max_difference(block.run(norm)[0], expected) for name, (_, norm) in contestants.items()}
    for name, error in errors.items():
        if not error <= TOLERANCE["float32"]:
            raise RuntimeError(f"{name} gives a wrong block, off by {error:.1e}")
    blocks, parts = ({name: [] for name in contestants} for _ in range(2))
    rng = np.random.default_rng(seed)
    for _ in range(rounds):
        for name in rng.permutation(list(contestants)):
            begin = time.perf_counter()
            _, seconds = block.run(contestants[name][1])
            blocks[name].append(time.perf_counter() - begin)
            parts[name].append(seconds)
    return {
        name: {
            "version": version,
            "block_ms": 1e3 * median(blocks[name]),
            "norms_ms": 1e3 * median(parts[name]),
            "max_error": errors[name],
            "rounds": rounds,
        }
        for name, (version, _) in contestants.items()
    }


def _row(case_name: str, threads: int, name: str, starts: list[dict[str, Any]]) -> dict[str, Any]:
    case = case_named(case_name)
    block_ms, norms_ms = (median(start[column] for start in starts) for column in ("block_ms", "norms_ms"))
    row = {
        "case": case_name,
        "shape": "x".join(map(str, case.shape)),
        "G": case.groups,
        "threads": threads,
        "norm": name,
        "version": starts[0]["version"],
        "block_ms": f"{block_ms:.4g}",
        "norms_ms": f"{norms_ms:.4g}",
        "norms_percent": f"{100 * norms_ms / block_ms:.3g}",
        "max_error": f"{max(start['max_error'] for start in starts):.2e}",
        "rounds": starts[0]["rounds"],
        "starts": len(starts),
    }
    return row | provenance()
