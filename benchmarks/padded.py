"""What lengths and masks cost: calls with them beside the plain call on the same arrays."""

import argparse
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median

import numpy as np

import numbagn
from numbagn.command.bench.machine import core_count
from numbagn.command.bench.results import provenance, write
from numbagn.command.bench.rounds import calibrated, measure

from . import RESULTS
from .processes import in_fresh_process

COLUMNS = (
    *("case", "shape", "G", "layout", "direction", "threads", "valid"),
    *("plain_us", "padded_us", "ratio", "max_error", "starts"),
)
DESCRIPTION = """\
Time calls with `lengths` and `mask`, float32 into `out=`, beside the plain call on the same arrays, which normalizes
the padding, too. Lengths are drawn from half of the room to all of it, or are all of it; a mask keeps an ellipsoid (of
a sequence the middle half), or each position with a chance of three quarters, the worst for what runs in vectors. Every
sample of a result is compared with the definition on its valid positions alone."""


Array = np.ndarray
Arrays = tuple[Array, ...]
Valid = dict[str, Array]  # `lengths` or `mask`


@dataclass(frozen=True)
class Case:
    name: str
    shape: tuple[int, ...]  # (N, C, ...)
    groups: int


CASES = (
    Case("speech", (16, 80, 500), 8),
    Case("speech encoder", (16, 512, 1000), 32),
    Case("short rows", (64, 64, 100), 8),
    Case("regions", (32, 64, 28, 28), 32),
    Case("images", (4, 128, 128, 128), 32),
)
VALID = ("lengths, half to all", "lengths, all", "mask, a region", "mask, no pattern")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    default = ",".join(map(str, sorted({1, core_count()})))
    parser.add_argument("--threads", default=default, help=f"numbers of threads, default {default}")
    parser.add_argument("--starts", type=int, default=3, help="fresh processes for each number of threads, default 3")
    parser.add_argument("--budget", type=float, default=1.5, help="seconds of rounds for each point, default 1.5")
    parser.add_argument("--output", type=Path, default=RESULTS / "padded.csv", help="CSV to write")


def main(options: argparse.Namespace) -> None:
    rows = []
    for threads in map(int, options.threads.split(",")):
        starts = []
        for seed in range(options.starts):
            print(f"{threads} threads, start {seed + 1}/{options.starts}", file=sys.stderr)
            starts.append(in_fresh_process(threads, measure_all, threads, options.budget, seed))
        rows += [_row(threads, [start[number] for start in starts]) for number in range(len(starts[0]))]
        write(options.output, COLUMNS, rows)
    print(f"wrote {options.output}", file=sys.stderr)


def measure_all(threads: int, budget: float, seed: int) -> list[dict[str, object]]:
    """The medians of every case, layout and direction, in seconds a call."""
    points = []
    for case in CASES:
        for layout in ("NCHW", "NHWC"):
            for direction in ("forward", "backward"):
                points += measure_point(case, layout, direction, threads, budget, seed)
    return points


def measure_point(
    case: Case, layout: str, direction: str, threads: int, budget: float, seed: int
) -> list[dict[str, object]]:
    """The plain call and those with each kind of what is valid, in turns."""
    rng = np.random.default_rng(0)
    samples, channels, *sizes = case.shape
    axis = 1 if layout == "NCHW" else len(case.shape) - 1
    shape = (samples, channels, *sizes) if axis == 1 else (samples, *sizes, channels)
    flags = (samples, 1, *sizes) if axis == 1 else (samples, *sizes, 1)
    offsets = np.meshgrid(*(np.linspace(-1, 1, size) for size in sizes), indexing="ij")
    region = sum(offset**2 for offset in offsets) < (0.25 if len(sizes) == 1 else 1)
    valid = (
        {"lengths": rng.integers(sizes[0] // 2, sizes[0] + 1, samples)},
        {"lengths": np.full(samples, sizes[0])},
        {"mask": np.broadcast_to(region.reshape(flags[1:]), flags)},
        {"mask": rng.random(flags) < 0.75},
    )
    options = dict(zip(VALID, valid, strict=True))
    x, dy = rng.standard_normal((2, *shape), dtype=np.float32)
    weight, bias = rng.standard_normal((2, channels), dtype=np.float32)
    out = np.empty_like(x)

    def call_with(valid: Valid) -> Callable[[], object]:
        given = {"channel_axis": axis, "out": out, **valid}
        if direction == "forward":
            return partial(numbagn.group_norm, x, case.groups, weight, bias, **given)
        _, mean, rstd = numbagn.group_norm_forward(x, case.groups, weight, bias, channel_axis=axis, **valid)
        return partial(numbagn.group_norm_backward, dy, x, mean, rstd, case.groups, weight, bias, **given)

    calls = {name: call_with(valid) for name, valid in options.items()}
    errors = {}
    for name, valid in options.items():
        calls[name]()  # compiles, and the second call is the one that is measured
        calls[name]()
        inputs = (x,) if direction == "forward" else (dy, x)
        errors[name] = _error(out, inputs, (case.groups, weight, bias), axis, valid)
        if not errors[name] <= 1e-4:
            raise RuntimeError(f"{case.name}, {layout}, {name}: off by {errors[name]:.1e}")
    plain = call_with({})
    plain()
    contestants = {name: calibrated(call) for name, call in {"plain": plain, **calls}.items()}
    measure(list(contestants.values()), threads, budget, 5, seed)
    medians = {name: turns.median for name, turns in contestants.items()}
    point = {"case": case.name, "shape": case.shape, "G": case.groups, "layout": layout, "direction": direction}
    return [
        point | {"valid": name, "plain": medians["plain"], "padded": medians[name], "error": errors[name]}
        for name in VALID
    ]


def _error(result: np.ndarray, inputs: Arrays, parameters: tuple[int, Array, Array], axis: int, valid: Valid) -> float:
    """The largest difference from the definition on each sample's valid positions alone, and from zero elsewhere.

    `inputs` are (x,) or (dy, x), `parameters` the number of groups, weight and bias.
    """
    worst = 0.0
    for n in range(len(result)):
        own, *given = (np.moveaxis(a[n], axis - 1, 0).astype(float) for a in (result, *inputs))
        if "mask" in valid:
            keep = np.moveaxis(valid["mask"][n], axis - 1, 0)[0]
        else:
            keep = np.zeros(own.shape[1:], bool)
            keep[: valid["lengths"][n]] = True
        given = [rows[:, keep][None] for rows in given]
        if len(given) == 1:
            expected = numbagn.reference.group_norm(*given, *parameters)
        else:
            expected = numbagn.reference.group_norm_backward(*given, *parameters)[0]
        worst = max(worst, np.abs(own[:, keep] - expected[0]).max(), np.abs(own[:, ~keep]).max(initial=0.0))
    return float(worst)


def _row(threads: int, starts: list[dict[str, object]]) -> dict[str, object]:
    first = starts[0]
    plain, padded = (median(start[name] for start in starts) * 1e6 for name in ("plain", "padded"))
    row = {
        **{name: first[name] for name in ("case", "G", "layout", "direction", "valid")},
        "shape": "x".join(map(str, first["shape"])),
        "threads": threads,
        "plain_us": f"{plain:.4g}",
        "padded_us": f"{padded:.4g}",
        "ratio": f"{median(start['padded'] / start['plain'] for start in starts):.3g}",
        "max_error": f"{max(start['error'] for start in starts):.2e}",
        "starts": len(starts),
    }
    return row | provenance()
