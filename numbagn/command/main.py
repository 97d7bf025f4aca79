"""The command line: `python -m numbagn` checks the installation; `normalize` files, `bench` and `warmup` kernels."""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

# NumPy, numba and the library itself are imported inside the commands, so that --help and a mistyped option
# answer at once.

_DESCRIPTION = "Group normalization for NumPy arrays. Without a command: check this installation, in a few seconds."

_EPILOG = """\
examples:
  python -m numbagn
      versions, threads, accuracy by dtype and speed on this machine; exit code 0 if all is well, else 1
  python -m numbagn normalize features.npy normalized.npy --num-groups 32
      normalise an array file, larger than memory too
  python -m numbagn warmup --dtypes float32 float16
      compile now, so that no process has to wait for that later
  python -m numbagn bench
      speed on this machine, beside a copy and beside the libraries installed here
  python -m numbagn normalize --help
      all options, with examples
"""

_NORMALIZE_DESCRIPTION = """\
Apply group normalization to the array in IN and write the result to OUT.

IN is an array of shape (N, C, ...) written by numpy.save: N samples, C channels. The files may be larger than
memory. OUT appears whole or not at all: the work goes to a temporary file in OUT's folder, which takes OUT's
place at the end, so that an error, Ctrl-C or SIGTERM leaves an old OUT as it was. IN and OUT may be the same.
"""

_NORMALIZE_EPILOG = """\
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


_WARMUP_DESCRIPTION = """\
Compile kernels and keep them in the cache on disk (NUMBA_CACHE_DIR, else beside the package, else in the user's folder
for caches), so that no later process has to: for the image of a container, or before a server starts. Each
combination of the options below is made ready, for small arrays (one thread) and for large ones (several).
The cache holds for one processor, one Python and one Numba.
"""

_WARMUP_EPILOG = """\
examples:
  python -m numbagn warmup
      float32, forward, both memory layouts, lengths and masks: about twenty seconds; --no-padded, ten
  python -m numbagn warmup --dtypes float16 --activations silu --layouts channels_last
  python -m numbagn warmup --dtypes float32 float64 --ops forward backward
"""

_BENCH_DESCRIPTION = """\
Measure on this machine how long a group norm takes: numbagn, a copy of the same bytes (nothing can be much faster), and
those of torch, onnxruntime with onnx, openvino, jax and NumPy's textbook lines that are installed. All take turns in
one process, in an order shuffled anew each round; every result is compared with float64 first. A Markdown table goes
to stdout, progress to stderr. For steady figures leave the machine alone meanwhile.
"""

_BENCH_EPILOG = """\
examples:
  python -m numbagn bench
      five shapes, five kinds of call, one thread and all: a few minutes
  python -m numbagn bench --quick --threads 1
      a glance
  python -m numbagn bench --cases vae-256,audio-g1 --variants forward --peers torch --csv speed.csv --plot speed.png
      what you care about, kept

cases: {cases}
variants: {variants}

exit code: 0 measured; 1 measured, and a result of numbagn was wrong; 2 bad usage, one line on stderr says what;
130 Ctrl-C
"""


class _UsageError(ValueError):
    """What argparse found wrong."""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """Raise, so that every error of the program leaves by the same door, as one line."""
        raise _UsageError(f"{message} (see {self.prog} --help)")


def main(argv: Sequence[str] | None = None) -> int:
    """
    Run the command line.

    Parameters
    ----------
    argv : sequence of str, optional
        The arguments, by default those of the process.

    Returns
    -------
    int
        The exit code: 0 all well, 1 the self-check found a fault, 2 bad usage or input, 128 + n for signal n.
    """
    try:
        code = _run(argv)
        if sys.stdout is not None:  # None where the caller closed it (`>&-`)
            sys.stdout.flush()
        return code
    except KeyboardInterrupt:
        return _fail("interrupted", 130)
    except BrokenPipeError:
        # The reader has gone (`| head`). Python would flush once more at exit and complain there.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except OSError as err:
        return _fail(f"{err.filename}: {err.strerror}" if err.filename and err.strerror else err.strerror or str(err))
    except MemoryError as err:
        return _fail(f"out of memory: {err}" if str(err) else "out of memory")
    except (ValueError, TypeError, ImportError, RuntimeError) as err:
        return _fail(str(err))
    except Exception as err:
        return _fail(f"unexpected {type(err).__name__}: {err}")


def _fail(message: str, code: int = 2) -> int:
    print("numbagn: error:", " ".join(message.split()), file=sys.stderr)
    return code


def _run(argv: Sequence[str] | None) -> int:
    parser = _build_parser()
    try:
        options = parser.parse_args(argv)
    except SystemExit as end:  # --help and --version, already printed
        return int(end.code or 0)
    if options.version:
        from numbagn import __version__

        print("numbagn", __version__)
        return 0
    if options.command == "normalize":
        return _normalize(options)
    if options.command == "warmup":
        return _warm_up(options)
    if options.command == "bench":
        from numbagn.command.bench import command

        code: int = command.run(options)
        return code
    from numbagn.command import selfcheck

    return selfcheck.run()


def _build_parser() -> _Parser:
    formatter = argparse.RawDescriptionHelpFormatter
    parser = _Parser(
        prog="python -m numbagn",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=formatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="store_true", help="print the version and exit")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    normalize = commands.add_parser(
        "normalize",
        help="normalise an .npy file into another",
        description=_NORMALIZE_DESCRIPTION,
        epilog=_NORMALIZE_EPILOG,
        formatter_class=formatter,
        allow_abbrev=False,
    )
    normalize.add_argument("source", metavar="IN", help="an .npy file: float16, float32, float64 or integers")
    normalize.add_argument("target", metavar="OUT", help="the .npy file to write; may be IN")
    normalize.add_argument(
        "--num-groups", type=int, required=True, metavar="G", help="number of groups; divides the number of channels"
    )
    normalize.add_argument(
        "--eps", type=float, default=1e-5, metavar="E", help="added to the variance (default %(default)s)"
    )
    normalize.add_argument(
        "--weights", metavar="FILE", help="an .npz or .safetensors file with weight/bias, scale/bias or gamma/beta"
    )
    normalize.add_argument(
        "--prefix", metavar="P", help="what stands before those names in FILE, with its dot: down.0.norm1."
    )
    normalize.add_argument(
        "--channel-axis", type=int, default=1, metavar="A", help="the axis of the channels (default 1; -1 = last)"
    )
    normalize.add_argument("--activation", metavar="NAME", help="applied last: relu, silu, gelu or gelu_tanh")
    normalize.add_argument(
        "--dtype",
        choices=("float16", "float32", "float64"),
        help="dtype of OUT (default: that of IN, float32 for integers)",
    )
    normalize.add_argument(
        "--add-batch-axis",
        action="store_true",
        help="IN is one sample, (C, ...); A counts with the batch axis put in front, and OUT has IN's shape",
    )
    _add_bench(commands, formatter)
    _add_warmup(commands, formatter)
    bar = normalize.add_mutually_exclusive_group()
    bar.add_argument("--progress", action="store_true", help="draw the progress bar on stderr even if not a terminal")
    bar.add_argument("--quiet", action="store_true", help="no progress bar")
    return parser


def _add_bench(commands: Any, formatter: Any) -> None:
    from numbagn.command.bench.cases import CASE_NAMES, VARIANT_NAMES  # a table, it loads nothing else

    bench = commands.add_parser(
        "bench",
        help="measure the speed on this machine",
        description=_BENCH_DESCRIPTION,
        epilog=_BENCH_EPILOG.format(cases=", ".join(CASE_NAMES), variants=", ".join(VARIANT_NAMES)),
        formatter_class=formatter,
        allow_abbrev=False,
    )
    bench.add_argument("--quick", action="store_true", help="two shapes, forward and backward, few rounds")
    bench.add_argument("--threads", metavar="T", help="numbers of threads, comma-separated (default 1 and all cores)")
    bench.add_argument("--cases", default="", metavar="NAMES", help="shapes, comma-separated")
    bench.add_argument("--variants", default="", metavar="NAMES", help="kinds of call, comma-separated")
    bench.add_argument("--peers", default="", metavar="NAMES", help="libraries, comma-separated (default: all)")
    bench.add_argument("--minutes", type=float, default=10, help="no task begins after this (default %(default)s)")
    bench.add_argument("--csv", type=Path, metavar="FILE.csv", help="write all figures, with quartiles and errors")
    bench.add_argument("--plot", type=Path, metavar="FILE.png", help="draw them (needs matplotlib)")


def _add_warmup(commands: Any, formatter: Any) -> None:
    warmup = commands.add_parser(
        "warmup",
        help="compile kernels before they are needed",
        description=_WARMUP_DESCRIPTION,
        epilog=_WARMUP_EPILOG,
        formatter_class=formatter,
        allow_abbrev=False,
    )
    for name, default, text in (
        ("dtypes", ["float32"], "float16, bfloat16, float32, float64, uint8, int8, uint16, int16"),
        ("ops", ["forward"], "forward, backward"),
        ("layouts", ["channels_first", "channels_last"], "channels_first, channels_last"),
        ("activations", ["none"], "none, relu, silu, gelu, gelu_tanh"),
    ):
        warmup.add_argument(
            f"--{name}",
            nargs="+",
            default=default,
            metavar=name[0].upper(),
            help=f"of {text} (default {' '.join(default)})",
        )
    warmup.add_argument("--skip", action="store_true", help="for calls with skip")
    warmup.add_argument("--residual", action="store_true", help="for calls with residual")
    warmup.add_argument("--no-padded", action="store_true", help="no lengths, no mask: less than half the time")
    warmup.add_argument("--quiet", action="store_true", help="no progress lines")


def _warm_up(options: argparse.Namespace) -> int:
    import time
    import warnings

    from numbagn import warmup

    if os.environ.get("NUMBAGN_CACHE") == "0":
        return _fail("NUMBAGN_CACHE is 0, so there is no cache to fill")

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
        return _fail(str(warning.message).removeprefix("numbagn: "), 1)
    print(f"{len(done)} kernels ready in {time.perf_counter() - started:.1f} s")
    return 0


def _normalize(options: argparse.Namespace) -> int:
    if options.prefix is not None and options.weights is None:
        raise _UsageError("--prefix is given without --weights (see python -m numbagn normalize --help)")
    if not options.target.endswith(".npy"):
        raise _UsageError(f"OUT is {options.target}; allowed: a name that ends in .npy")

    from numbagn import _weights
    from numbagn.command import files

    parameters: dict[str, Any] = {}
    if options.weights is not None:
        parameters = _weights.read_weights(options.weights, options.prefix or "")
    on_terminal = sys.stderr is not None and sys.stderr.isatty()
    wanted = options.progress or (on_terminal and not options.quiet)
    try:
        with files.ProgressBar(sys.stderr) as bar:
            report = files.normalize_file(
                options.source,
                options.target,
                options.num_groups,
                **parameters,
                eps=options.eps,
                channel_axis=options.channel_axis,
                activation=options.activation,
                dtype=options.dtype,
                add_batch_axis=options.add_batch_axis,
                progress=bar if wanted else None,
            )
    except files.Stopped as stop:
        reason = "interrupted" if stop.signum == signal.SIGINT else f"ended by {signal.Signals(stop.signum).name}"
        return _fail(reason, 128 + stop.signum)
    speed = report.nbytes / report.seconds / 1e9
    groups = "1 group" if options.num_groups == 1 else f"{options.num_groups} groups"
    print(f"wrote {options.target}: {report.shape} {report.dtype}, {groups}, {report.seconds:.2f} s, {speed:.2f} GB/s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
