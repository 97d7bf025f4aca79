"""What `python -m numbagn bench` does: measure here, print a Markdown table, write CSV and figure where asked for."""

import argparse
import os
import sys
import time
from importlib.util import find_spec

from ..._process import need_compiler
from . import figure, report
from .cases import CASE_NAMES, VARIANT_NAMES, selection
from .groups import groups_of
from .machine import core_count
from .peers import PEERS
from .results import write
from .starts import COLUMNS, run_starts

# What decides for most users, about two minutes on two cores; more by --variants and --cases.
VARIANTS = ["forward", "channels-last", "float16", "silu", "backward"]
CASES = ["pixel", "small-16", "diffusion-16", "diffusion-64", "vae-256"]
QUICK_VARIANTS = ["forward", "backward"]
QUICK_CASES = ["small-16", "diffusion-64"]
SECONDS_A_TASK, SECONDS_A_QUICK_TASK = 1.0, 0.4


def run(options: argparse.Namespace) -> int:
    """Measure as the options say; 0, or 1 where a result of numbagn was wrong."""
    pairs = selection(
        _names("--cases", options.cases, CASE_NAMES) or (QUICK_CASES if options.quick else CASES),
        _names("--variants", options.variants, VARIANT_NAMES) or (QUICK_VARIANTS if options.quick else VARIANTS),
        quick=False,
    )
    peers = _names("--peers", options.peers, tuple(peer.name for peer in PEERS))
    threads = _threads(options.threads)
    _check_places(options)
    need_compiler()
    begin = time.time()
    on_terminal = sys.stderr.isatty()
    rows = run_starts(
        pairs,
        threads,
        1,
        peers=["numbagn", *peers] if peers else [],
        budget=SECONDS_A_QUICK_TASK if options.quick else SECONDS_A_TASK,
        fewest_rounds=3,
        minutes=options.minutes,
        rewrite=on_terminal,
    )
    if on_terminal:
        print("\r\x1b[K", end="", file=sys.stderr)
    if not rows:
        raise ValueError("nothing was measured: no task began within --minutes, or the measuring process died")
    print(report.markdown(rows))
    print(f"measured in {time.time() - begin:.0f} s", file=sys.stderr)
    if options.csv:
        write(options.csv, COLUMNS, rows)
        print(f"wrote {options.csv}", file=sys.stderr)
    if options.plot:
        figure.draw(rows, options.plot)
        print(f"wrote {options.plot}", file=sys.stderr)
    return 1 if any(row["peer"].startswith("numbagn") for group in groups_of(rows) for row in group.wrong()) else 0


def _names(option: str, text: str, known: tuple[str, ...]) -> list[str]:
    names = [name for name in text.split(",") if name]
    unknown = [name for name in names if name not in known]
    if unknown:
        raise ValueError(f"{option} has {', '.join(unknown)}; allowed: {', '.join(known)}")
    return names


def _threads(text: str | None) -> list[int]:
    if text is None:
        return sorted({1, core_count()})
    numbers = text.split(",")
    if not all(number.isdigit() and 1 <= int(number) <= core_count() for number in numbers):
        raise ValueError(f"--threads has {text}; allowed: numbers from 1 to {core_count()}, comma-separated")
    return list(map(int, numbers))


def _check_places(options: argparse.Namespace) -> None:
    """Refuse before minutes of measuring what could not be written after them."""
    for option, path, ending in (("--csv", options.csv, ".csv"), ("--plot", options.plot, ".png")):
        if path is None:
            continue
        if path.suffix != ending:
            raise ValueError(f"{option} is {path}; allowed: a name that ends in {ending}")
        folder = path.parent
        if not folder.is_dir() or not os.access(folder, os.W_OK):
            raise ValueError(f"{option} is {path}, but {folder} is no folder that can be written to")
    if options.plot and find_spec("matplotlib") is None:
        raise ValueError("--plot needs matplotlib, which is not installed; --csv keeps the figures without it")
