"""How tests run the command line: in this process or another, on files of their own."""

import io
import os
import subprocess
import sys
from pathlib import Path

import numpy as np

import numbagn
from numbagn import reference
from numbagn.command.main import main

ROOT = Path(numbagn.__file__).parents[1]


def command(*args, code=None, **variables):
    """Give the subprocess arguments of `python -m numbagn ...`, or of a program in `code`, wherever pytest started."""
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    start = ["-m", "numbagn"] if code is None else ["-c", code]
    argv = [sys.executable, *start, *map(str, args)]
    return {"args": argv, "env": os.environ | {"PYTHONPATH": path} | variables, "text": True}


def shell(*args, code=None, timeout=120, **variables):
    arguments = command(*args, code=code, **variables)
    return subprocess.run(**arguments, capture_output=True, timeout=timeout, check=False)


def normalize(*args):
    return main(["normalize", *map(str, args)])


def definition(x, num_groups, weight=None, bias=None, eps=1e-5, **options):
    """What the file written should hold, in float64."""
    return reference.group_norm(x, num_groups, weight, bias, eps, **options)[0]


def error_line(err):
    """Check that stderr is the one line it should be, and give it."""
    assert err.startswith("numbagn: error: "), err
    assert err.count("\n") == 1, err
    assert err.endswith("\n"), err
    return err.removeprefix("numbagn: error: ").rstrip("\n")


def leftovers(folder):
    return sorted(path.name for path in folder.iterdir() if path.name.endswith(".tmp"))


class Bomb:
    """What a hostile pickle looks like: opening it would write a file."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


def write_npy(x):
    buffer = io.BytesIO()
    np.save(buffer, x, allow_pickle=True)
    return buffer.getvalue()


def write_npz(**arrays):
    buffer = io.BytesIO()
    np.savez(buffer, allow_pickle=True, **arrays)
    return buffer.getvalue()


GOOD = write_npy(np.arange(96, dtype=np.float32).reshape(2, 6, 8))
G2 = ("--num-groups", 2)
