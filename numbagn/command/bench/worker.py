"""One start: a fresh process that measures its list of tasks with one number of threads, one JSON line a result."""

import json
import os
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any, TextIO

import numpy as np

from .cases import case_named, variant_named
from .limits import limit_calls
from .peers import PEERS, entries_of
from .rounds import Turns, calibrated, measure
from .starts import show
from .task import TOLERANCE, Entry, Skip, Task, make_task, one_line

# Of the ways to reach a limit only those near the fastest go into the rounds.
LIMIT_CANDIDATES = 2


def work(orders: dict[str, Any], results: TextIO) -> None:
    """Measure orders["pairs"]; stop between two of them when orders["deadline"] has passed."""
    if orders["realtime"]:
        # Before any pool exists: threads inherit the class.
        os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(1))
    for number, (variant_name, case_name) in enumerate(orders["pairs"], 1):
        if time.time() > orders["deadline"]:
            show(f"{orders['label']} out of time before {number}/{len(orders['pairs'])}", orders["rewrite"])
            return
        place = f"{orders['label']} {number}/{len(orders['pairs'])} {variant_name} {case_name}"
        if orders["rewrite"]:
            show(f"[{time.time() - orders['begin']:4.0f} s] {place}: compiling, checking, measuring ...", True)
        variant, case = variant_named(variant_name), case_named(case_name)
        try:
            task = make_task(case, variant)
        except ImportError as error:
            results.write(json.dumps({"skip": "every peer", "variant": variant_name, "reason": one_line(error)}) + "\n")
            continue
        rows = measure_task(task, orders, results)
        for row in rows:
            results.write(json.dumps(row) + "\n")
        results.flush()
        shown = {f"{row['peer']} {row['output']}": row["ratio_to_copy"] for row in rows if row["peer"] != "copy"}
        ratios = ", ".join(f"{name} {ratio:.2f}" for name, ratio in shown.items())
        show(f"[{time.time() - orders['begin']:4.0f} s] {place}: x copy: {ratios}", orders["rewrite"])


def measure_task(task: Task, orders: dict[str, Any], results: TextIO) -> list[dict[str, Any]]:
    """The rows of one task: its limits and every peer that takes part."""
    threads = orders["threads"]
    entries, errors = _checked_entries(task, orders, results)
    limits = {name: _fastest(calls) for name, calls in limit_calls(task, threads).items()}
    contestants = {entry: calibrated(entry.call) for entry in entries}
    everyone = [*contestants.values(), *(turns for candidates in limits.values() for turns in candidates)]
    measure(everyone, threads, orders["budget"], orders["fewest_rounds"], orders["seed"])

    best = {name: min(candidates, key=lambda turns: turns.median) for name, candidates in limits.items()}
    copy, read_copy = best["copy"].median, best["read+copy"].median
    rows = []
    for name, turns in best.items():
        rows.append({"peer": name, "peer_version": "", "output": "out", "max_error": 0.0} | _times(turns, task))
    for entry, turns in contestants.items():
        who = {"peer": entry.peer, "peer_version": entry.version, "output": entry.output}
        rows.append(who | {"max_error": errors[entry]} | _times(turns, task))
    common = {"variant": task.variant.name, "case": task.case.name, "threads": threads}
    for row in rows:
        row |= common | {"ratio_to_copy": row["median_us"] / copy / 1e6}
        row["ratio_to_read_copy"] = row["median_us"] / read_copy / 1e6
        row["status"] = "ok" if row["max_error"] <= TOLERANCE[task.variant.dtype] else "wrong"
    return rows


def _checked_entries(task: Task, orders: dict[str, Any], results: TextIO) -> tuple[list[Entry], dict[Entry, float]]:
    """Every peer's calls, each run once (which compiles it) and compared with the float64 answer."""
    entries, errors = [], {}
    for name, peer in PEERS.items():
        if orders["peers"] and name not in orders["peers"]:
            continue
        try:
            offered = entries_of(peer, task, orders["threads"])
        except Skip as reason:
            refusal = {"skip": name, "variant": task.variant.name, "case": task.case.name, "reason": str(reason)}
            results.write(json.dumps(refusal) + "\n")
            continue
        for entry in offered:
            task.out.fill(0)  # no result of the peer before may pass for this one's
            try:
                errors[entry] = task.errors(entry.arrays(entry.call()))
            except Exception as error:
                refusal = {"skip": f"{entry.peer} {entry.output}", "variant": task.variant.name, "case": task.case.name}
                results.write(json.dumps(refusal | {"reason": one_line(error)}) + "\n")
            else:
                entries.append(entry)
    return entries, errors


def _fastest(calls: list[partial]) -> list[Turns]:
    for call in calls:
        call()  # compiles
    return sorted(map(calibrated, calls), key=lambda turns: turns.estimate)[:LIMIT_CANDIDATES]


def _times(turns: Turns, task: Task) -> dict[str, float]:
    first, middle, third = np.percentile(turns.kept(), (25, 50, 75)) * 1e6
    return {
        "median_us": middle,
        "q1_us": first,
        "q3_us": third,
        "bytes": task.bytes,
        "turns": len(turns.seconds),
        "undisturbed": turns.undisturbed,
        "cores": float(np.median(turns.cores)),
    }


if __name__ == "__main__":  # as `starts` runs it
    try:
        with Path(sys.argv[2]).open("a") as file:
            work(json.loads(sys.argv[1]), file)
    except KeyboardInterrupt:  # the process that started this one has been told as well, and says so
        sys.exit(130)
