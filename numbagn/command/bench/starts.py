"""Fresh processes that measure, and their records put together: one row for each peer in each task."""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import numpy as np

from .cases import case_named, variant_named
from .groups import Row
from .machine import thread_environment
from .results import provenance

KEY = ("variant", "case", "threads", "peer", "output")
COLUMNS = (
    *("variant", "case", "shape", "G", "dtype", "layout", "direction", "activation", "output", "threads"),
    *("peer", "peer_version", "status", "median_us", "q1_us", "q3_us", "bytes", "gb_per_s"),
    *("ratio_to_copy", "ratio_to_read_copy", "max_error", "cores", "undisturbed", "turns", "starts"),
)


class Settings(NamedTuple):
    """How every task is measured."""

    peers: list[str]  # by name; none: all
    budget: float  # seconds of rounds for a task
    fewest_rounds: int
    minutes: float  # no task begins after these
    realtime: bool = False  # in the system's class of that name
    rewrite: bool = False  # keep progress on one line


def run_starts(
    pairs: list[tuple[str, str]],
    threads: list[int],
    starts: int,
    settings: Settings,
    after_start: Callable[[list[Row]], None] = lambda rows: None,
) -> list[Row]:
    """The rows of all (variant, case) `pairs`; after each start those that are known so far go to `after_start`."""
    begin, rewrite = time.time(), settings.rewrite
    orders = {"pairs": pairs, "begin": begin, "deadline": begin + 60 * settings.minutes, **settings._asdict()}
    told: set[tuple[str, str]] = set()
    measured = defaultdict(list)
    rows: list[Row] = []
    for start in range(starts):
        for number in threads:
            label = f"start {start + 1}/{starts}, {number} thread{'s' if number > 1 else ''}:"
            for record in _start(orders | {"threads": number, "seed": start, "label": label}):
                if "skip" in record:
                    _tell_once(told, record, rewrite)
                else:
                    measured[tuple(record[name] for name in KEY)].append(record)
        rows = [_combined(records) for records in measured.values()]
        after_start(rows)
    return rows


def _start(orders: dict[str, Any]) -> list[dict[str, Any]]:
    """Run one worker to its end; what it has measured counts even if it dies."""
    with tempfile.TemporaryDirectory() as folder:
        results = Path(folder) / "results.jsonl"
        results.touch()
        command = [sys.executable, "-m", "numbagn.command.bench.worker", json.dumps(orders), str(results)]
        environment = os.environ | thread_environment(orders["threads"])
        done = subprocess.run(command, env=environment, stdout=subprocess.DEVNULL)
        if done.returncode:
            print(f"{orders['label']} the process ended with code {done.returncode}", file=sys.stderr)
        return [json.loads(line) for line in results.read_text().splitlines()]


def show(text: str, rewrite: bool, stays: bool = False) -> None:
    """A line of progress; rewritten in place, unless it stays, it is cut to what a terminal's line holds."""
    if rewrite and not stays:
        text = f"\r\x1b[K{text[: shutil.get_terminal_size().columns - 1]}"
        print(text, end="", file=sys.stderr, flush=True)
    else:
        print("\r\x1b[K" * rewrite + text, file=sys.stderr, flush=True)


def _tell_once(told: set[tuple[str, str]], record: dict[str, Any], rewrite: bool) -> None:
    if (record["skip"], record["reason"]) not in told:
        told.add((record["skip"], record["reason"]))
        show(f"skipped {record['skip']} in {record['variant']}: {record['reason']}", rewrite, stays=True)


def _combined(records: list[dict[str, Any]]) -> dict[str, Any]:
    """One row from the starts: medians, the worst error, and the ratios as the medians of ratios inside a process."""
    first = records[0]
    case, variant = case_named(first["case"]), variant_named(first["variant"])
    row = {name: first[name] for name in (*KEY, "peer_version", "bytes")}
    for name in ("median_us", "q1_us", "q3_us", "ratio_to_copy", "ratio_to_read_copy", "cores", "undisturbed"):
        row[name] = f"{median(record[name] for record in records):.4g}"
    errors = np.array([record["max_error"] for record in records])
    row |= {
        "shape": "x".join(map(str, case.shape)),
        "G": case.groups,
        "dtype": variant.dtype,
        "layout": variant.layout,
        "direction": variant.direction,
        "activation": variant.activation or "",
        "status": "wrong" if any(record["status"] == "wrong" for record in records) else "ok",
        "gb_per_s": f"{first['bytes'] / float(row['median_us']) / 1e3:.4g}",
        "max_error": f"{errors.max():.2e}",
        "turns": sum(record["turns"] for record in records),
        "starts": len(records),
    }
    return row | provenance()
