"""Measure every case beside every peer, over several process starts, and write one CSV."""

import argparse
import sys
import time
from pathlib import Path
from typing import Any

from numbagn.command.bench.cases import CASE_NAMES, VARIANT_NAMES, VARIANTS, pairs_of
from numbagn.command.bench.machine import core_count, describe_machine
from numbagn.command.bench.results import read, write
from numbagn.command.bench.starts import COLUMNS, Settings, run_starts

from . import RESULTS

QUICK = ("pixel", "odd-7x7", "small-16", "diffusion-16", "diffusion-64")
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
    parser.epilog = EPILOG.format(cases=", ".join(CASE_NAMES), variants=", ".join(VARIANT_NAMES))
    default = ",".join(map(str, sorted({1, core_count()})))
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
    peers = [name for name in options.peers.split(",") if name]
    budget, fewest_rounds = options.budget or (0.4 if options.quick else 1.2), 3 if options.quick else 5
    settings = Settings(peers, budget, fewest_rounds, options.minutes, options.realtime)
    # written after every start, so that an interrupted run leaves what it has
    run_starts(pairs, threads, starts, settings, lambda rows: _write(output, kept + rows))
    print(f"wrote {output} after {time.time() - begin:.0f} s", file=sys.stderr)


def selection(case_names: list[str], variant_names: list[str], quick: bool) -> list[tuple[str, str]]:
    """The (variant, case) pairs to measure, in table order; no names means each variant's own cases.

    A case named outright is measured in every chosen variant, also where the table would leave it out.
    """
    pairs = []
    for variant in VARIANTS:
        if not variant_names or variant.name in variant_names:
            own = (QUICK if variant.name == "forward" else ("diffusion-16",)) if quick else variant.cases
            pairs += pairs_of([variant.name], case_names or own)
    return pairs


def _names(text: str, known: tuple[str, ...]) -> list[str]:
    names = [name for name in text.split(",") if name]
    unknown = [name for name in names if name not in known]
    if unknown:
        raise SystemExit(f"no such name: {', '.join(unknown)}; there are {', '.join(known)}")
    return names


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
