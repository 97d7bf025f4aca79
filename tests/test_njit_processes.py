"""`group_norm` inside compiled functions, in processes of their own: threading layers, the cache, what is imported."""

import hashlib
import json
import shutil
import tomllib
from pathlib import Path

import numpy as np
import pytest
from command_line import ROOT, shell
from test_threads import LAYERS, run

import numbagn


@pytest.mark.parametrize("options", [{"fastmath": True}, {"nogil": True, "inline": "always", "error_model": "numpy"}])
def test_options_of_the_caller_change_no_bit(options):
    """Not even where its function is the first that needs the kernel."""
    code = f"""
import hashlib
import numpy as np, numba, numbagn, numbagn._njit
@numba.njit(**{options})
def f(x):
    return numbagn.group_norm(x, 4, activation="gelu")
@numba.njit
def g(x):
    return f(x)
x = np.random.default_rng(0).normal(size=(2, 8, 25, 7)).astype(np.float32)
print(hashlib.sha256(g(x).tobytes()).hexdigest())
"""
    done = shell(code=code, NUMBAGN_CACHE="0")
    x = np.random.default_rng(0).normal(size=(2, 8, 25, 7)).astype(np.float32)
    want = hashlib.sha256(numbagn.group_norm(x, 4, activation="gelu").tobytes()).hexdigest()
    assert (done.returncode, done.stderr, done.stdout) == (0, "", f"{want}\n")


@pytest.mark.parametrize("layer", LAYERS)
def test_in_parallel_loops_of_any_threading_layer(layer):
    code = """
import numbagn._njit
@numba.njit(parallel=True)
def samples(x):
    y = np.empty_like(x)
    for n in numba.prange(x.shape[0]):
        y[n] = numbagn.group_norm(x[n : n + 1], 4)[0]
    return y
print(all(samples(x).tobytes() == want.tobytes() for _ in range(50)), right(), numba.threading_layer())
"""
    assert run(code, layer) == ["True", "True", layer]


FUNCTION = """
import numba, numbagn
@numba.njit(cache=True)
def {0}(x):
    return numbagn.group_norm(x, 2, activation="{0}")
"""
# Import the modules named and call their functions; say what was compiled and what came out.
PROGRAM = """
import sys
sys.path[:0] = {paths!r}
import importlib, json
import numpy as np, numbagn
from numba.core.event import install_recorder
x = np.linspace(-3, 3, 64, dtype=np.float32).reshape(1, 8, 8) ** 3
right, hits = [], []
with install_recorder("numba:compile") as compilations:
    for name in {names!r}:
        f = getattr(importlib.import_module(name), name)
        want = numbagn.reference.group_norm(x, 2, activation=name)[0]
        right.append(bool(abs(f(x) - want).max() < 3e-6))
        hits.append(sum(f.stats.cache_hits.values()))
print(json.dumps([right, hits, len(compilations.buffer) > 0]))
"""


@pytest.fixture
def process(tmp_path):
    """Call users' cached functions `relu` and `silu` in a process of their own, as if numbagn were installed."""
    metadata = tmp_path / "numbagn-0.dist-info"
    metadata.mkdir()
    points = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]["entry-points"]
    lines = [f"[{group}]\n" + "".join(f"{k} = {v}\n" for k, v in named.items()) for group, named in points.items()]
    (metadata / "entry_points.txt").write_text("".join(lines))
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: numbagn\nVersion: 0\n")
    for name in ("relu", "silu"):
        (tmp_path / f"{name}.py").write_text(FUNCTION.format(name))

    def run(*names, paths=(), **variables):
        code = PROGRAM.format(names=names, paths=[*map(str, paths), str(tmp_path)])
        done = shell(code=code, NUMBA_CACHE_DIR=str(tmp_path / "cache"), **variables)
        assert (done.returncode, done.stderr) == (0, ""), done.stderr
        return json.loads(done.stdout)

    return run


def test_second_process_compiles_nothing(process):
    assert process("relu") == [[True], [0], True]
    assert process("relu") == [[True], [1], False]


def test_functions_cached_by_different_processes_keep_their_kernels(process):
    process("relu")
    process("silu")
    for names in (("relu", "silu"), ("silu", "relu")):
        assert process(*names) == [[True, True], [1, 1], False]


def test_a_lost_kernel_is_compiled_again(process, tmp_path):
    process("relu")
    for path in (tmp_path / "cache").rglob("*forward*"):
        path.unlink()
    assert process("relu") == [[True], [1], True]
    assert process("relu", NUMBAGN_CACHE="0") == [[True], [1], True]


def test_functions_in_the_cache_are_compiled_anew_when_sources_change(process, tmp_path):
    process("relu")
    changed = tmp_path / "changed"
    shutil.copytree(ROOT / "numbagn", changed / "numbagn", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("shapes/schedule", "kernels/cpu/inside"):
        with (changed / "numbagn" / f"{name}.py").open("a") as file:
            file.write("# changed\n")
        assert process("relu", paths=[changed]) == [[True], [0], True], name
        assert process("relu", paths=[changed]) == [[True], [1], False], name


def test_numba_loads_the_overload_and_no_kernel_until_it_is_called(process, tmp_path):
    (tmp_path / "relu.py").write_text("""
import sys
from numba import njit
@njit
def other(x):
    return x + 1
def relu(x):
    assert "numbagn._njit" not in sys.modules
    other(1)
    assert "numbagn._njit" in sys.modules
    assert "numbagn.kernels.compiled" not in sys.modules
    return numbagn.group_norm(x, 2, activation="relu")
import numbagn
relu.stats = other.stats
""")
    assert process("relu")[0] == [True]


def test_what_depends_on_the_machine_is_asked_for_where_code_from_disk_runs(tmp_path):
    """A function compiled beside a cache of 64 MiB stores results past one of 32 MiB from its share on."""
    (tmp_path / "share.py").write_text("""
import numba
from numba import types
from numbagn.kernels.cpu.inside import past_bytes, past_bytes_here
from numbagn.kernels.cpu.links import linked
past_from = linked(past_bytes, (), past_bytes_here)
@numba.njit(cache=True)
def share():
    return past_from(())
""")
    program = """
import sys
sys.path.insert(0, {0!r})
from numbagn.shapes import schedule
schedule.cache_bytes = lambda: {1} << 20
from share import share
print(share() / 2**20, sum(share.stats.cache_hits.values()))
"""
    said = [
        shell(code=program.format(str(tmp_path), size), NUMBA_CACHE_DIR=str(tmp_path / "cache")).stdout.split()
        for size in (64, 32)
    ]
    assert said == [["18.0", "0"], ["9.0", "1"]]
