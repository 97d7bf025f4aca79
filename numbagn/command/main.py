"""The command line: `python -m numbagn` checks the installation; `normalize` files, `bench` and `warmup` kernels.

Numba is loaded where a command runs, so that --help and a mistyped option answer at once.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

from numbagn import __version__

from . import fill_cache, normalize, selfcheck
from .bench import command as bench
from .failing import fail

DESCRIPTION = "Group normalization for NumPy arrays. Without a command: check this installation, in a few seconds."
EPILOG = """\
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
COMMANDS = {"normalize": normalize, "bench": bench, "warmup": fill_cache}


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """Raise, so that every error of the program leaves by the same door, as one line."""
        raise ValueError(f"{message} (see {self.prog} --help)")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line, by default that of the process; gives its exit code.

    0: all is well. 1: the self-check found a fault. 2: bad usage or input. 128 + n: ended by signal n.
    """
    try:
        code = _run(argv)
        if sys.stdout is not None:  # None where the caller closed it (`>&-`)
            sys.stdout.flush()
        return code
    except KeyboardInterrupt:
        return fail("interrupted", 130)
    except BrokenPipeError:
        # The reader has gone (`| head`). Python would flush once more at exit and complain there.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except OSError as err:
        return fail(f"{err.filename}: {err.strerror}" if err.filename and err.strerror else err.strerror or str(err))
    except MemoryError as err:
        return fail(f"out of memory: {err}" if str(err) else "out of memory")
    except (ValueError, TypeError, ImportError, RuntimeError) as err:
        return fail(str(err))
    except Exception as err:
        return fail(f"unexpected {type(err).__name__}: {err}")


def _run(argv: Sequence[str] | None) -> int:
    try:
        options = _build_parser().parse_args(argv)
    except SystemExit as end:  # --help and --version, already printed
        return int(end.code or 0)
    if options.version:  # not by argparse, which says nothing of a reader that has gone
        print("numbagn", __version__)
        return 0
    if options.command is None:
        return selfcheck.run()
    code: int = COMMANDS[options.command].run(options)
    return code


def _build_parser() -> _Parser:
    common: dict[str, Any] = {"formatter_class": argparse.RawDescriptionHelpFormatter, "allow_abbrev": False}
    parser = _Parser(prog="python -m numbagn", description=DESCRIPTION, epilog=EPILOG, **common)
    parser.add_argument("--version", action="store_true", help="print the version and exit")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    for name, module in COMMANDS.items():
        texts: dict[str, Any] = {"help": module.HELP, "description": module.DESCRIPTION, "epilog": module.EPILOG}
        module.add_options(commands.add_parser(name, **texts, **common))
    return parser


if __name__ == "__main__":
    sys.exit(main())
