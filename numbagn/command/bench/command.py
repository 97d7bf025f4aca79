"""`python -m numbagn bench`: measure here, print a Markdown table, write CSV and figure where asked for."""

import argparse
import os
import sys
import time
from importlib.util import find_spec
from pathlib import Path

from ..._process import need_compiler
from . import figure, report
from .cases import CASE_NAMES, VARIANT_NAMES, pairs_of
from .groups import groups_of
from .machine import core_count
from .peers import PEERS
from .results import write
from .starts import COLUMNS, Settings, run_starts

HELP = "measure the speed on this machine"
DESCRIPTION = """\
Measure on this machine how long a group norm takes: numbagn, a copy of the same bytes (nothing can be much faster), and
those of torch, onnxruntime with onnx, openvino, jax and NumPy's textbook lines that are installed. All take turns in
one process, in an order shuffled anew each round; every result is compared with float64 first. A Markdown table goes
to stdout, progress to stderr. For steady figures leave the machine alone meanwhile.
"""
EPILOG = f"""\
examples:
  python -m numbagn bench
      five shapes, five kinds of call, one thread and all: a few minutes
  python -m numbagn bench --quick --threads 1
      a glance
  python -m numbagn bench --cases vae-256,audio-g1 --variants forward --peers torch --csv speed.csv --plot speed.png
      what you care about, kept

cases: {", ".join(CASE_NAMES)}
variants: {", ".join(VARIANT_NAMES)}

exit code: 0 measured; 1 measured, and a result of numbagn was wrong; 2 bad usage, one line on stderr says what;
130 Ctrl-C
"""
# What decides for most users, about two minutes on two cores; more by --variants and --cases.
VARIANTS = ["forward", "channels-last", "float16", "silu", "backward"]
CASES = ["pixel", "small-16", "diffusion-16", "diffusion-64", "vae-256"]
QUICK_VARIANTS = ["forward", "backward"]
QUICK_CASES = ["small-16", "diffusion-64"]
SECONDS_A_TASK, SECONDS_A_QUICK_TASK = 1.0, 0.4


def add_options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--quick", action="store_true", help="two shapes, forward and backward, few rounds")
    add("--threads", metavar="T", help="numbers of threads, comma-separated (default 1 and all cores)")
    add("--cases", default="", metavar="NAMES", help="shapes, comma-separated")
    add("--variants", default="", metavar="NAMES", help="kinds of call, comma-separated")
    add("--peers", default="", metavar="NAMES", help="libraries, comma-separated (default: all)")
    add("--minutes", type=float, default=10, help="no task begins after this (default %(default)s)")
    add("--csv", type=Path, metavar="FILE.csv", help="write all figures, with quartiles and errors")
    add("--plot", type=Path, metavar="FILE.png", help="draw them (needs matplotlib)")


def run(options: argparse.Namespace) -> int:
    """Measure as the options say; 0, or 1 where a result of numbagn was wrong."""
    usual_cases, usual_variants = (QUICK_CASES, QUICK_VARIANTS) if options.quick else (CASES, VARIANTS)
    cases = _names("--cases", options.cases, CASE_NAMES) or usual_cases
    variants = _names("--variants", options.variants, VARIANT_NAMES) or usual_variants
    peers = _names("--peers", options.peers, tuple(PEERS))
    threads = _threads(options.threads)
    _check_places(options)
    need_compiler()
    begin = time.time()
    on_terminal = sys.stderr.isatty()
    budget = SECONDS_A_QUICK_TASK if options.quick else SECONDS_A_TASK
    settings = Settings(["numbagn", *peers] if peers else [], budget, 3, options.minutes, rewrite=on_terminal)
    rows = run_starts(pairs_of(variants, cases), threads, 1, settings)
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
