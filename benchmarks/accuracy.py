"""How far each peer is from float64 when the data are far from zero."""

import argparse
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np

from numbagn.command.bench.cases import CASE_NAMES, case_named, variant_named
from numbagn.command.bench.peers import PEERS, Peer, entries_of
from numbagn.command.bench.results import provenance, write
from numbagn.command.bench.task import EPS, Entry, Skip, Task, make_task

from . import RESULTS

OFFSETS = (0.0, 1e4, 1e6)
LAYOUTS = ("forward", "channels-last")
COLUMNS = ("peer", "peer_version", "layout", "offset", "max_error", "case", "shape", "G", "dtype")
DESCRIPTION = """\
Measure max |y - y in float64| for float32 data of unit variance around 0, 1e4 and 1e6, without weight and bias, in
channels-first and channels-last memory. The float64 answer is computed from the same rounded float32 inputs, so that
only the peer's own arithmetic is measured."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--case", default="diffusion-64", choices=CASE_NAMES, metavar="CASE", help="the shape")
    parser.add_argument("--output", type=Path, default=RESULTS / "accuracy.csv", help="CSV to write")


def main(options: argparse.Namespace) -> None:
    rows = []
    for variant_name in LAYOUTS:
        for offset in OFFSETS:
            task = make_task(case_named(options.case), variant_named(variant_name), offset, affine=False)
            for name, peer in (PEERS | {"numpy, one pass": one_pass_entries}).items():
                rows += _measured(name, peer, task, offset)
    write(options.output, COLUMNS, rows)
    print(f"wrote {options.output}", file=sys.stderr)


def one_pass_entries(task: Task, threads: int) -> list[Entry]:
    """The variance as the mean of squares less the squared mean: one pass, and the way to lose all digits."""
    samples, groups = task.case.shape[0], task.groups
    first = task.variant.layout == "NCHW"
    split, axes = ((samples, groups, -1), 2) if first else ((samples, -1, groups, task.case.shape[1] // groups), (1, 3))

    def call() -> np.ndarray:
        grouped = task.x.reshape(split)
        mean = grouped.mean(axis=axes, keepdims=True)
        variance = (grouped * grouped).mean(axis=axes, keepdims=True) - mean * mean
        with np.errstate(invalid="ignore"):  # the difference may be negative
            y = (grouped - mean) / np.sqrt(variance + np.float32(EPS))
        return y.reshape(task.x.shape)

    return [Entry("numpy, one pass", np.__version__, "fresh", call, lambda y: (y,))]


def _measured(name: str, peer: Peer, task: Task, offset: float) -> list[dict[str, Any]]:
    """One row with the worst of the peer's calls, or none and a line of reason."""
    try:
        entries = entries_of(peer, task, os.cpu_count() or 1)
        errors = []
        for entry in entries:
            task.out.fill(0)
            errors.append(task.errors(entry.arrays(entry.call())))
    except Skip as reason:
        print(f"skipped {name} in {task.variant.layout}: {reason}", file=sys.stderr)
        return []
    row = {
        "peer": name,
        "peer_version": entries[0].version,
        "layout": task.variant.layout,
        "offset": f"{offset:g}",
        "max_error": f"{np.max(errors):.2e}",
        "case": task.case.name,
        "shape": "x".join(map(str, task.case.shape)),
        "G": task.groups,
        "dtype": task.variant.dtype,
    }
    print(f"{row['layout']} offset {offset:g}: {name} {row['max_error']}", file=sys.stderr)
    return [row | provenance()]
