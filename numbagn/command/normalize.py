"""`python -m numbagn normalize`: a file normalized into another, with a progress bar."""

import argparse
import signal
import sys

from .. import _weights
from .failing import fail
from .files import ProgressBar, Stopped, normalize_file

HELP = "normalise an .npy file into another"
DESCRIPTION = """\
Apply group normalization to the array in IN and write the result to OUT.

IN is an array of shape (N, C, ...) written by numpy.save: N samples, C channels. The files may be larger than
memory. OUT appears whole or not at all: the work goes to a temporary file in OUT's folder, which takes OUT's
place at the end, so that an error, Ctrl-C or SIGTERM leaves an old OUT as it was. IN and OUT may be the same.
"""
EPILOG = """\
examples:
  python -m numbagn normalize features.npy normalized.npy --num-groups 32
      (N, C, H, W) in, the same shape and dtype out
  python -m numbagn normalize photos.npy out.npy --num-groups 1 --channel-axis -1
      (N, H, W, 3) bytes in, float32 out
  python -m numbagn normalize photo.npy out.npy --num-groups 3 --channel-axis -1 --add-batch-axis
      one photograph, (H, W, 3)
  python -m numbagn normalize features.npy out.npy --num-groups 32 --activation silu \\
          --weights unet.safetensors --prefix down.0.norm1.
      with the layer's own weight and bias, then SiLU

exit code: 0 written; 2 bad usage or input, one line on stderr says what; 130 Ctrl-C; 143 SIGTERM
"""


def add_options(parser: argparse.ArgumentParser) -> None:
    """Give the parser of this command its arguments."""
    add = parser.add_argument
    add("source", metavar="IN", help="an .npy file: float16, float32, float64 or integers")
    add("target", metavar="OUT", help="the .npy file to write; may be IN")
    groups = "number of groups; divides the number of channels"
    add("--num-groups", type=int, required=True, metavar="G", help=groups)
    add("--eps", type=float, default=1e-5, metavar="E", help="added to the variance (default %(default)s)")
    weights = "an .npz or .safetensors file with weight/bias, scale/bias or gamma/beta"
    add("--weights", metavar="FILE", help=weights)
    prefix = "what stands before those names in FILE, with its dot: down.0.norm1."
    add("--prefix", metavar="P", help=prefix)
    axis = "the axis of the channels (default 1; -1 = last)"
    add("--channel-axis", type=int, default=1, metavar="A", help=axis)
    add("--activation", metavar="NAME", help="applied last: relu, silu, gelu or gelu_tanh")
    dtype = "dtype of OUT (default: that of IN, float32 for integers)"
    add("--dtype", choices=("float16", "float32", "float64"), help=dtype)
    batch = "IN is one sample, (C, ...); A counts with the batch axis put in front, and OUT has IN's shape"
    add("--add-batch-axis", action="store_true", help=batch)
    bar = parser.add_mutually_exclusive_group()
    bar.add_argument("--progress", action="store_true", help="draw the progress bar on stderr even if not a terminal")
    bar.add_argument("--quiet", action="store_true", help="no progress bar")


def run(options: argparse.Namespace) -> int:
    """Normalize as the options say, and print what was written; gives the exit code."""
    if options.prefix is not None and options.weights is None:
        raise ValueError("--prefix is given without --weights (see python -m numbagn normalize --help)")
    if not options.target.endswith(".npy"):
        raise ValueError(f"OUT is {options.target}; allowed: a name that ends in .npy")
    given = {name: getattr(options, name) for name in ("eps", "channel_axis", "activation", "dtype", "add_batch_axis")}
    if options.weights is not None:
        given |= _weights.read_weights(options.weights, options.prefix or "")
    on_terminal = sys.stderr is not None and sys.stderr.isatty()
    wanted = options.progress or (on_terminal and not options.quiet)
    try:
        with ProgressBar(sys.stderr) as bar:
            given["progress"] = bar if wanted else None
            report = normalize_file(options.source, options.target, options.num_groups, **given)
    except Stopped as stop:
        reason = "interrupted" if stop.signum == signal.SIGINT else f"ended by {signal.Signals(stop.signum).name}"
        return fail(reason, 128 + stop.signum)
    speed = report.nbytes / report.seconds / 1e9
    groups = "1 group" if options.num_groups == 1 else f"{options.num_groups} groups"
    print(f"wrote {options.target}: {report.shape} {report.dtype}, {groups}, {report.seconds:.2f} s, {speed:.2f} GB/s")
    return 0
