"""`python -m numbagn warmup`: `numbagn.warmup` in a process of its own, for what it leaves in the cache on disk."""

import argparse
import os
import sys
import time
import warnings

from .failing import fail
from .warmup import LAYOUTS, OPS, warmup

HELP = "compile kernels before they are needed"
DESCRIPTION = """\
Compile kernels and keep them in the cache on disk (NUMBA_CACHE_DIR, else beside the package, else in the user's folder
for caches), so that no later process has to: for the image of a container, or before a server starts. Each
combination of the options below is made ready, for small arrays (one thread) and for large ones (several).
The cache holds for one processor, one Python and one Numba.
"""
EPILOG = """\
examples:
  python -m numbagn warmup
      float32, forward, both memory layouts, lengths and masks: about twenty seconds; --no-padded, ten
  python -m numbagn warmup --dtypes float16 --activations silu --layouts channels_last
  python -m numbagn warmup --dtypes float32 float64 --ops forward backward
"""
# name of the option: its default, and what it may be of
SEVERAL = {
    "dtypes": (["float32"], "float16, bfloat16, float32, float64, uint8, int8, uint16, int16"),
    "ops": (["forward"], ", ".join(OPS)),
    "layouts": (list(LAYOUTS), ", ".join(LAYOUTS)),
    "activations": (["none"], "none, relu, silu, gelu, gelu_tanh"),
}


def add_options(parser: argparse.ArgumentParser) -> None:
    """Give the parser of this command its arguments."""
    for name, (default, allowed) in SEVERAL.items():
        text = f"of {allowed} (default {' '.join(default)})"
        parser.add_argument(f"--{name}", nargs="+", default=default, metavar=name[0].upper(), help=text)
    parser.add_argument("--skip", action="store_true", help="for calls with skip")
    parser.add_argument("--residual", action="store_true", help="for calls with residual")
    parser.add_argument("--no-padded", action="store_true", help="no lengths, no mask: less than half the time")
    parser.add_argument("--quiet", action="store_true", help="no progress lines")


def run(options: argparse.Namespace) -> int:
    """Compile what the options say; gives the exit code."""
    if os.environ.get("NUMBAGN_CACHE") == "0":
        return fail("NUMBAGN_CACHE is 0, so there is no cache to fill")

    def show(done: int, total: int, text: str) -> None:
        print(f"[{done}/{total}] {text}", file=sys.stderr, flush=True)

    started = time.perf_counter()
    with warnings.catch_warnings(record=True) as caught:
        done = warmup(
            options.dtypes,
            options.ops,
            layouts=options.layouts,
            activations=[None if name == "none" else name for name in options.activations],
            skip=options.skip,
            residual=options.residual,
            padded=not options.no_padded,
            progress=None if options.quiet else show,
        )
    for warning in caught:  # that what was compiled could not be kept
        return fail(str(warning.message).removeprefix("numbagn: "), 1)
    print(f"{len(done)} kernels ready in {time.perf_counter() - started:.1f} s")
    return 0
