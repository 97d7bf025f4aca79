"""Kernels are compiled once, not for another array nor in another process; a damaged cache costs at most a warning."""

import json
import logging
import os
import pickle
import shutil
import subprocess
import tempfile
import warnings
from pathlib import Path

import numba
import numpy as np
import pytest
from cases import in_layout, normal
from command_line import command, shell
from numba.core.event import install_recorder

import numbagn
from numbagn.kernels import cache as kernel_cache
from numbagn.kernels import compiled

# One forward kernel, and the backward one of the same kind if told so; says what happened as JSON.
PROGRAM = """
import hashlib, json, logging, os, sys, warnings
import numpy as np
import numbagn
logs = []
class Keep(logging.Handler):
    def emit(self, record):
        logs.append(record.getMessage().split()[0])
logging.getLogger("numbagn").addHandler(Keep())
logging.getLogger("numbagn").setLevel(logging.INFO)
from numba.core.event import install_recorder
x = np.linspace(-1, 2, 2 * 4 * 30, dtype=np.float32).reshape(2, 4, 30) ** 3
with warnings.catch_warnings(record=True) as caught, install_recorder("numba:compile") as compilations:
    warnings.simplefilter("always")
    y, mean, rstd = numbagn.group_norm_forward(x, 2, activation="relu")
    if "backward" in sys.argv:
        y, _, _ = numbagn.group_norm_backward(x, x, mean, rstd, 2, activation="relu")
print(json.dumps({
    "bits": hashlib.sha256(y.tobytes()).hexdigest(),
    "logs": logs,
    "compilations": len(compilations.buffer) > 0,
    "warnings": [[w.category.__name__, str(w.message)] for w in caught],
    "files": sorted(f for _, _, files in os.walk(os.environ.get("NUMBA_CACHE_DIR", "")) for f in files),
}))
"""


def run(cache, *args, code=PROGRAM, **variables):
    done = shell(*args, code=code, NUMBA_CACHE_DIR=str(cache), **variables)
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def filled(tmp_path_factory):
    """A cache as two runs leave it, and what the first said."""
    cache = tmp_path_factory.mktemp("cache")
    return cache, run(cache, "backward")


def test_first_process_compiles_and_says_so(filled):
    first = filled[1]
    assert first["logs"] == ["compiled", "compiled"]
    assert first["compilations"]
    assert first["warnings"] == []
    assert len(first["files"]) == 4  # an index and the code of two kernels


def test_second_process_compiles_nothing(filled):
    cache, first = filled
    stamps = {path: path.stat().st_mtime_ns for path in cache.rglob("*") if path.is_file()}
    second = run(cache, "backward")
    assert second["logs"] == ["loaded", "loaded"]
    assert not second["compilations"]
    assert second["warnings"] == []
    assert second["bits"] == first["bits"]
    assert {path: path.stat().st_mtime_ns for path in cache.rglob("*") if path.is_file()} == stamps


def test_optimized_python_on_one_thread_shares_the_cache(filled):
    other = run(filled[0], "backward", PYTHONOPTIMIZE="2", NUMBA_NUM_THREADS="1")
    assert other["logs"] == ["loaded", "loaded"]
    assert not other["compilations"]
    assert other["bits"] == filled[1]["bits"]


def test_one_warning_for_any_number_of_damaged_kernels(filled, tmp_path):
    cache = shutil.copytree(filled[0], tmp_path / "cache")
    damage_all(cache, ".nbi", DAMAGES["text"])
    after = run(cache, "backward")
    assert after["bits"] == filled[1]["bits"]
    assert [category for category, _ in after["warnings"]] == ["RuntimeWarning"]


@pytest.mark.skipif(os.name != "posix", reason="limits of POSIX")
def test_full_disk(filled, tmp_path):
    limit = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (0, resource.RLIM_INFINITY))\n"
    after = run(tmp_path, "backward", code=limit + PROGRAM)
    assert after["bits"] == filled[1]["bits"]
    assert [category for category, _ in after["warnings"]] == ["RuntimeWarning"]


def test_processes_that_race_on_an_empty_cache(filled, tmp_path):
    arguments = command("backward", code=PROGRAM, NUMBA_CACHE_DIR=str(tmp_path))
    programs = [subprocess.Popen(**arguments, stdout=subprocess.PIPE) for _ in range(2)]
    for program in programs:
        with program:
            assert json.loads(program.communicate(timeout=120)[0])["bits"] == filled[1]["bits"]
    assert run(tmp_path, "backward")["logs"] == ["loaded", "loaded"]


# -------------------------------------------------------------------------------- the same machinery on a small kernel


def make(factor, parallel, digest):
    def small(x):
        for i in range(x.size):
            x[i] = factor * x[i] + (digest > 0)

    return small


@pytest.fixture
def use(tmp_path, monkeypatch, caplog):
    """Run the small kernel as a new process would, in a cache at `tmp_path / "cache"` and nowhere else.

    Gives what was done for it (compiled or loaded) and the warnings.
    """
    monkeypatch.setattr(numba.config, "CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(kernel_cache._Implementation, "_locator_classes", (kernel_cache.Chosen, kernel_cache.ReadOnly))
    monkeypatch.setattr(compiled, "_told", [])
    caplog.set_level(logging.INFO, "numbagn")

    def once():
        caplog.clear()
        x = np.arange(3.0)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            compiled.entry(make)((x,), 2, 0)(x)
        assert x.tolist() == [1.0, 3.0, 5.0]
        (record,) = [r.getMessage() for r in caplog.records if r.levelname == "INFO"]
        return record.split()[0], [(w.category, str(w.message)) for w in caught]

    return once


def damage_all(cache, suffix, how):
    for path in [path for path in cache.rglob("*") if path.suffix == suffix]:
        content = path.read_bytes()
        path.unlink()
        how(path, content)


def flipped(content):
    """One bit of the middle changed: in the data, of the machine code."""
    changed = bytearray(content)
    changed[len(changed) // 2] ^= 4
    return bytes(changed)


DAMAGES = {
    "empty": lambda path, content: path.write_bytes(b""),
    "cut": lambda path, content: path.write_bytes(content[: len(content) // 2]),
    "cut short": lambda path, content: path.write_bytes(content[:3]),
    "all but its end": lambda path, content: path.write_bytes(content[:-1]),
    "text": lambda path, content: path.write_bytes(b"hello " * 99),
    "zeros": lambda path, content: path.write_bytes(bytes(len(content))),
    "a flipped bit": lambda path, content: path.write_bytes(flipped(content)),
    "another pickle": lambda path, content: path.write_bytes(pickle.dumps(["hello"])),
    "the pickle of None": lambda path, content: path.write_bytes(pickle.dumps(None)),
    "a class that is gone": lambda path, content: path.write_bytes(b"cnumba.core.caching\nGone\n."),
    "a module that is gone": lambda path, content: path.write_bytes(b"cnumba.gone\nGone\n."),
    "a folder": lambda path, content: path.mkdir(),
    "gone": lambda path, content: None,
}


@pytest.mark.parametrize(("suffix", "damage"), [(s, d) for s in (".nbi", ".nbc") for d in DAMAGES])
def test_damaged_cache(use, tmp_path, suffix, damage):
    assert use() == ("compiled", [])
    assert use() == ("loaded", [])
    damage_all(tmp_path / "cache", suffix, DAMAGES[damage])
    verb, caught = use()
    assert verb == "compiled"
    assert len(caught) <= 1
    for category, message in caught:
        assert category is RuntimeWarning
        assert message.startswith("numbagn: the cache of compiled kernels cannot be used (")
        assert "\n" not in message
    # what is damaged is written anew; a folder stands in the way for good
    assert use()[0] == ("compiled" if damage == "a folder" else "loaded")


@pytest.mark.parametrize("place", ["a file", "below a file", "a dangling link", "read-only"])
def test_cache_that_cannot_be_written(use, tmp_path, monkeypatch, place):
    cache = tmp_path / "cache"
    if place == "read-only":
        cache.mkdir(mode=0o500)
        if os.access(cache, os.W_OK):
            pytest.skip("this user may write everywhere")
    elif place == "a dangling link":
        cache.symlink_to(tmp_path / "gone" / "cache")
    else:
        cache.write_bytes(b"")
        if place == "below a file":
            monkeypatch.setattr(numba.config, "CACHE_DIR", str(cache / "folder"))
    verb, caught = use()
    assert verb == "compiled"
    assert len(caught) <= 1
    assert all(category is RuntimeWarning for category, _ in caught)


def test_no_place_for_a_cache_is_told_once(use, monkeypatch):
    monkeypatch.setattr(kernel_cache._Implementation, "_locator_classes", ())
    verb, [(category, message)] = use()
    assert (verb, category) == ("compiled", RuntimeWarning)
    assert message.startswith("numbagn: there is no folder to keep compiled kernels in")
    assert "NUMBA_CACHE_DIR" in message
    assert use() == ("compiled", [])


def test_a_cache_that_is_read_only_is_read(use, monkeypatch):
    def read_only(*args, **kwargs):
        raise PermissionError("read only")

    assert use() == ("compiled", [])
    monkeypatch.setattr(tempfile, "TemporaryFile", read_only)  # how Numba tries a folder
    assert use() == ("loaded", [])


def test_a_warmed_place_that_is_read_only_is_read_beside_a_writable_one(use, monkeypatch, tmp_path):
    assert use() == ("compiled", [])
    kind = type("Elsewhere", (kernel_cache.Chosen,), {"get_cache_path": lambda self: str(tmp_path / "elsewhere" / "x")})
    monkeypatch.setattr(kernel_cache._Implementation, "_locator_classes", (kind,))
    assert use() == ("loaded", [])
    assert list((tmp_path / "elsewhere").rglob("*.nbc")) == []


posix = pytest.mark.skipif(os.name != "posix", reason="owners and modes of POSIX")


@posix
@pytest.mark.parametrize("umask", [0o000, 0o002, 0o022, 0o077])
def test_nothing_others_may_change_is_made(use, tmp_path, umask):
    before = os.umask(umask)
    try:
        assert use() == ("compiled", [])
    finally:
        os.umask(before)
    made = [tmp_path / "cache", *(tmp_path / "cache").rglob("*")]
    assert len(made) == 4
    assert [path for path in made if path.stat().st_mode & 0o022] == []


@posix
def test_a_folder_that_others_may_change_is_not_used(use, tmp_path):
    assert use() == ("compiled", [])
    (tmp_path / "cache").chmod(0o777)
    verb, [(category, message)] = use()
    assert (verb, category) == ("compiled", RuntimeWarning)
    assert message.startswith("numbagn: there is no folder")
    (tmp_path / "cache").chmod(0o1777)  # as /tmp: what is another's stays another's
    assert use() == ("loaded", [])


@posix
def test_a_folder_of_another_user_is_not_used(use, tmp_path, monkeypatch):
    assert use() == ("compiled", [])
    monkeypatch.setattr(os, "geteuid", lambda: 12345)
    if os.getuid() == 0:  # what belongs to root is trusted
        for path in (tmp_path / "cache").iterdir():
            os.chown(path, 54321, -1)
    assert use()[0] == "compiled"
    assert kernel_cache.distrust(str(next((tmp_path / "cache").iterdir()))).endswith("belongs to another user")


def test_cache_can_be_turned_off(use, tmp_path, monkeypatch):
    monkeypatch.setenv("NUMBAGN_CACHE", "0")
    assert use() == ("compiled", [])
    assert use() == ("compiled", [])
    assert not (tmp_path / "cache").exists()


def test_changed_sources_are_compiled_anew(use, monkeypatch):
    assert use() == ("compiled", [])
    monkeypatch.setattr(compiled, "sources_digest", lambda: 4711)
    assert use() == ("compiled", [])
    assert use() == ("loaded", [])


def test_the_digest_is_of_all_sources_of_kernels(tmp_path, monkeypatch):
    package = Path(numbagn.__file__).parent
    folders = "kernels", "kernels/cpu", "shapes"
    names = {str(path.relative_to(package)) for folder in folders for path in (package / folder).glob("*.py")}
    names = {name for name in names if not name.endswith("__init__.py")} | {"arrays/dtypes.py"}
    shutil.copytree(Path(numbagn.__file__).parent, tmp_path / "numbagn", ignore=shutil.ignore_patterns("__pycache__"))
    done = shell(
        code=f"""
import sys
sys.path.insert(0, {str(tmp_path)!r})
from numbagn.kernels.compiled import sources_digest
digests = [sources_digest()]
for name in {sorted(names)}:
    with open(f"{tmp_path}/numbagn/{{name}}", "a") as file:
        file.write("# changed")
    sources_digest.cache_clear()
    digests.append(sources_digest())
print(len(set(digests)))
"""
    )
    assert (done.stderr, done.stdout) == ("", f"{len(names) + 1}\n")


# ------------------------------------------------------------------------------------------------------ specialisations


def read_only(a):
    a.flags.writeable = False
    return a


def variants(rng):
    """Arguments of float32 calls, channels first, with weight or not, that one kernel is enough for."""
    for shape, groups in (((1, 1, 1), 1), ((2, 6, 5, 7), 3), ((4, 30), 5), ((3, 8, 2, 3, 4), 8), ((1, 2, 61, 149), 1)):
        x = normal(rng, shape, np.float32)
        yield x, groups, {}
        yield read_only(x.copy()), groups, {}
        yield x[::-1], groups, {"eps": 0}
        yield x[..., ::-1], groups, {}
        yield np.repeat(x, 2, axis=-1)[..., ::2], groups, {"eps": np.float32(0.1)}
        yield x.astype(">f4"), np.int8(groups), {}
        yield x, groups, {"weight": normal(rng, shape[1], np.float32)}
        yield x, groups, {"weight": normal(rng, shape[:2], np.float64), "bias": normal(rng, shape[1], np.float16)}
        yield x, groups, {"bias": read_only(normal(rng, shape[1], np.float32))}
        yield x, groups, {"out": np.empty(shape, np.float32)}
        yield x, groups, {"out": x.copy().astype(np.float32)[..., ::-1]}
        yield x, groups, {"channel_axis": 1 - x.ndim}


def test_one_kernel_for_all_arrays_of_a_layout(rng, one_thread, tmp_path):
    numbagn.group_norm(normal(rng, (2, 4, 5), np.float32), 2)
    mapped = np.memmap(tmp_path / "x", np.float32, "w+", shape=(2, 4, 5))
    with install_recorder("numba:compile") as compilations:
        for x, groups, options in [*variants(rng), (mapped, 2, {"out": mapped})]:
            numbagn.group_norm(x, groups, **options)
    assert compilations.buffer == []


def test_one_kernel_for_all_arrays_of_channels_last(rng, one_thread):
    numbagn.group_norm(in_layout(normal(rng, (2, 4, 5, 3), np.float32), "channels_last"), 2)
    with install_recorder("numba:compile") as compilations:
        for shape, groups in (((2, 6, 5, 7), 3), ((4, 30, 2), 5), ((3, 8, 2, 3, 4), 8), ((1, 2, 61, 149), 1)):
            x = in_layout(normal(rng, shape, np.float32), "channels_last")
            numbagn.group_norm(x, groups)
            numbagn.group_norm(np.moveaxis(x, 1, -1), groups, channel_axis=-1)
            numbagn.group_norm(read_only(x.copy("K")), groups, normal(rng, shape[1], np.float64))
            numbagn.group_norm(in_layout(np.concatenate([x, x], 1), "channels_last")[:, : shape[1]], groups)
            numbagn.group_norm(x, groups, out=x)
    assert compilations.buffer == []


def test_one_backward_kernel(rng, one_thread):
    def backward(x, groups, **options):
        _, mean, rstd = numbagn.group_norm_forward(x, groups)
        for statistics in ((mean, rstd), (read_only(mean), read_only(rstd)), (mean.astype(np.float32), rstd[::-1])):
            numbagn.group_norm_backward(x, x, *statistics, groups, **options)

    backward(normal(rng, (2, 4, 5), np.float32), 2)
    backward(normal(rng, (2, 4), np.float32), 2)  # single positions have a kernel of their own
    with install_recorder("numba:compile") as compilations:
        for x, groups, options in variants(rng):
            backward(x, groups, **{k: v for k, v in options.items() if k not in ("eps", "channel_axis")})
    assert compilations.buffer == []


def test_one_kernel_for_any_number_of_threads(rng):
    x = normal(rng, (8, 32, 24, 25), np.float32)
    numbagn.group_norm(x, 8)
    before = numba.get_num_threads()
    try:
        with install_recorder("numba:compile") as compilations:
            for threads in range(1, numba.config.NUMBA_NUM_THREADS + 1):
                numba.set_num_threads(threads)
                for groups in (1, 8, 32):
                    numbagn.group_norm(x, groups)
                    numbagn.group_norm(x[:1], groups)
    finally:
        numba.set_num_threads(before)
    assert compilations.buffer == []
