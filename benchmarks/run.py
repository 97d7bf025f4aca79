"""Measure every case beside every peer, over several process starts, and write one CSV."""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from .cases import CASE_NAMES, VARIANT_NAMES, case_named, selection, variant_named
from .machine import describe_machine
from .results import RESULTS, provenance, read, write
from .worker import thread_environment

KEY = ("variant", "case", "threads", "peer", "output")
COLUMNS = (
    *("variant", "case", "shape", "G", "dtype", "layout", "direction", "activation", "output", "threads"),
    *("peer", "peer_version", "status", "median_us", "q1_us", "q3_us", "bytes", "gb_per_s"),
    *("ratio_to_copy", "ratio_to_read_copy", "max_error", "cores", "undisturbed", "turns", "starts"),
)
DESCRIPTION = """\
Time numbagn beside a copy of the same bytes and beside other libraries.

Every (case, variant) is measured with all peers in one process, in turns shuffled anew each round, each result first
compared with the textbook in float64. That is repeated in fresh processes (--starts), and the median start is reported.
A peer that is not installed, or cannot do a task, is named once with its reason.

Ratios are times divided by the time of a limit in the same rounds: `ratio_to_copy` by the best copy of the same bytes
(for a backward pass: dy + x into dx), `ratio_to_read_copy` by reading every group before copying it."""
EPILOG = """\
examples:
  python -m benchmarks run                                   everything, within --minutes
  python -m benchmarks run --quick                           a glance, under two minutes
  python -m benchmarks run --cases vae-256 --threads 1       one case in all variants
  python -m benchmarks run --variants silu,relu --starts 1
  python -m benchmarks run --peers numbagn,torch --cases pixel --variants forward

A run of some cases replaces their rows in the CSV and leaves the others.
cases: {cases}
variants: {variants}"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description, parser.formatter_class = DESCRIPTION, argparse.RawDescriptionHelpFormatter
    parser.epilog = EPILOG.format(cases=", ".join(CASE_NAMES), variants=", ".join(VARIANT_NAMES))
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    default = ",".join(map(str, sorted({1, cores})))
    parser.add_argument("--threads", default=default, help=f"numbers of threads, default {default}")
    parser.add_argument("--starts", type=int, help="fresh processes for each number of threads, default 3 (quick: 1)")
    parser.add_argument("--cases", default="", help="case names, comma-separated (default: each variant's own)")
    parser.add_argument("--variants", default="", help="variant names, comma-separated (default: all)")
    parser.add_argument("--peers", default="", help="peer names, comma-separated (default: all)")
    parser.add_argument("--quick", action="store_true", help="few cases, few rounds, one start; writes quick.csv")
    parser.add_argument("--budget", type=float, help="seconds of rounds for one task, default 1.2 (quick: 0.4)")
    parser.add_argument("--minutes", type=float, default=25, help="no task begins after this, default 25")
    parser.add_argument("--realtime", action="store_true", help="run in the SCHED_RR class (needs the right to)")
    parser.add_argument("--output", type=Path, help="CSV to write, default benchmarks/results/speed.csv")


def main(options: argparse.Namespace) -> None:
    case_names, variant_names = _names(options.cases, CASE_NAMES), _names(options.variants, VARIANT_NAMES)
    pairs = selection(case_names, variant_names, options.quick)
    threads = [int(number) for number in options.threads.split(",")]
    starts = options.starts or (1 if options.quick else 3)
    output = options.output or RESULTS / ("quick.csv" if options.quick else "speed.csv")
    kept = _rows_to_keep(output, {(variant, case, str(number)) for variant, case in pairs for number in threads})
    begin = time.time()
    orders = {
        "pairs": pairs,
        "peers": [name for name in options.peers.split(",") if name],
        "budget": options.budget or (0.4 if options.quick else 1.2),
        "fewest_rounds": 3 if options.quick else 5,
        "realtime": options.realtime,
        "begin": begin,
        "deadline": begin + 60 * options.minutes,
    }
    told: set[tuple[str, str]] = set()
    measured = defaultdict(list)
    for start in range(starts):
        for number in threads:
            label = f"start {start + 1}/{starts}, {number} threads:"
            for record in _start(orders | {"threads": number, "seed": start, "label": label}):
                if "skip" in record:
                    _tell_once(told, record)
                else:
                    measured[tuple(record[name] for name in KEY)].append(record)
        # After every start, so that an interrupted run leaves what it has.
        _write(output, kept + [_combined(records) for records in measured.values()])
    print(f"wrote {output} after {time.time() - begin:.0f} s", file=sys.stderr)


def _names(text: str, known: tuple[str, ...]) -> list[str]:
    names = [name for name in text.split(",") if name]
    unknown = [name for name in names if name not in known]
    if unknown:
        raise SystemExit(f"no such name: {', '.join(unknown)}; there are {', '.join(known)}")
    return names


def _start(orders: dict[str, Any]) -> list[dict[str, Any]]:
    """Run one worker to its end; what it has measured counts even if it dies."""
    with tempfile.TemporaryDirectory() as folder:
        results = Path(folder) / "results.jsonl"
        results.touch()
        command = [sys.executable, "-m", "benchmarks", "worker", json.dumps(orders), str(results)]
        environment = os.environ | thread_environment(orders["threads"])
        done = subprocess.run(command, env=environment, stdout=subprocess.DEVNULL)
        if done.returncode:
            print(f"{orders['label']} the process ended with code {done.returncode}", file=sys.stderr)
        return [json.loads(line) for line in results.read_text().splitlines()]


def _tell_once(told: set[tuple[str, str]], record: dict[str, Any]) -> None:
    if (record["skip"], record["reason"]) not in told:
        told.add((record["skip"], record["reason"]))
        print(f"skipped {record['skip']} in {record['variant']}: {record['reason']}", file=sys.stderr)


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


def _rows_to_keep(output: Path, replaced: set[tuple[str, str, str]]) -> list[dict[str, Any]]:
    kept = [row for row in read(output) if (row["variant"], row["case"], row["threads"]) not in replaced]
    elsewhere = {row["machine"] for row in kept} - {describe_machine()}
    if elsewhere:
        raise SystemExit(f"{output} holds rows of another machine ({elsewhere.pop()}): name another file by --output")
    return kept


def _write(output: Path, rows: list[dict[str, Any]]) -> None:
    variants, cases = list(VARIANT_NAMES), list(CASE_NAMES)
    rows.sort(key=lambda row: (variants.index(row["variant"]), cases.index(row["case"]), int(row["threads"])))
    write(output, COLUMNS, rows)
