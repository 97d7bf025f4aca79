"""Wherever the package lies and whatever may be written: right answers, at most one warning, kept where there is room.

Each with a copy of the package of its own, in processes of its own with a time limit. A small kernel in the copy, made
as the others are, stands for them: it compiles in a tenth of their time.
"""

import compileall
import json
import os
import pickle
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import numba
import pytest
from command_line import shell

import numbagn

PACKAGE = Path(numbagn.__file__).parent
posix = pytest.mark.skipif(os.name != "posix", reason="owners and modes of POSIX")
# A path that can neither be read nor made, by root neither.
NOWHERE = "/dev/null/nowhere"
KERNEL = """
from .compiled import entry

@entry
def small(factor, parallel, sources):
    def kernel(x):
        for i in range(x.size):
            x[i] = factor * x[i] + (sources > 0)
    return kernel
"""
# Says as JSON what was done for the kernel, and the warnings.
PROGRAM = """
import json, logging, sys, warnings
import numpy as np
from numbagn.kernels.small import small
logs = []
class Keep(logging.Handler):
    def emit(self, record):
        logs.append(record.getMessage().split()[0])
logging.getLogger("numbagn").addHandler(Keep())
logging.getLogger("numbagn").setLevel(logging.INFO)
x = np.arange(3.0)
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    small((x,), 2, 0)(x)
assert x.tolist() == [1.0, 3.0, 5.0], x
print(json.dumps([logs, [[w.category.__name__, str(w.message)] for w in caught]]))
"""
COMPILED, LOADED = [["compiled"], []], [["loaded"], []]


def copy_package(site):
    copy = shutil.copytree(PACKAGE, site / "numbagn", ignore=shutil.ignore_patterns("__pycache__"))
    (copy / "kernels" / "small.py").write_text(KERNEL)
    return copy


def zip_package(folder):
    package = copy_package(folder / "unzipped")
    with zipfile.ZipFile(folder / "site.zip", "w") as archive:
        for path in package.rglob("*.py"):
            archive.write(path, path.relative_to(package.parent))
    return folder / "site.zip"


def run(site, home, *flags, code=PROGRAM, prefix=(), cwd="/", **variables):
    """Run the program with the package at `site`, and nowhere to keep anything but there, at `home`, or as told."""
    unset = ("NUMBA_CACHE_DIR", "XDG_CACHE_HOME", "NUMBAGN_CACHE")
    env = {k: v for k, v in os.environ.items() if k not in unset}
    env |= {"PYTHONPATH": str(site), "HOME": str(home), "PYTHONDONTWRITEBYTECODE": "1"} | variables
    argv = [*prefix, sys.executable, *flags, "-c", code]
    # not from here, where the package may be imported from
    done = subprocess.run(argv, env=env, cwd=cwd, capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    return json.loads(done.stdout)


def compiled_with_a_warning(done):
    logs, ((category, message),) = done
    return logs == ["compiled"] and category == "RuntimeWarning" and message.startswith("numbagn: ")


def kept(folder):
    return sorted(path.suffix for path in folder.rglob("*.nb?"))


@pytest.fixture
def site(tmp_path):
    """A place with a copy of the package, where nothing can be kept beside the sources."""
    folder = tmp_path / "site"
    (copy_package(folder) / "kernels" / "__pycache__").write_bytes(b"")
    return folder


@pytest.fixture
def home(tmp_path):
    folder = tmp_path / "home"
    folder.mkdir()
    return folder


def test_beside_the_sources(tmp_path):
    copy_package(tmp_path)
    assert run(tmp_path, NOWHERE) == COMPILED
    assert run(tmp_path, NOWHERE) == LOADED
    assert kept(tmp_path / "numbagn" / "kernels" / "__pycache__") == [".nbc", ".nbi"]


def test_read_only_install_keeps_kernels_in_the_home(site, home):
    assert run(site, home) == COMPILED
    assert run(site, home) == LOADED
    assert kept(home / ".cache") == [".nbc", ".nbi"]


@pytest.mark.parametrize("home", [NOWHERE, "/proc/nonexistent"])
def test_read_only_install_and_no_home_compiles_anew_and_says_so_once(site, home):
    assert compiled_with_a_warning(run(site, home))


def read_only_mounts():
    """The beginning of a command that mounts a folder read-only, or None where that cannot be done."""
    script = 'mount --bind "$0" "$0" && mount -o remount,ro,bind "$0" && exec "$@"'
    prefix = ["unshare", "--mount", "sh", "-c", script]
    trial = [*prefix, str(PACKAGE), "true"]
    try:
        tried = subprocess.run(trial, capture_output=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return prefix if tried.returncode == 0 else None


def test_a_file_system_that_is_read_only_cold_and_with_kernels_ready(tmp_path, home):
    """As in an image: made ready by one who could write there, used by one who cannot, with a home or without."""
    prefix = read_only_mounts()
    if prefix is None:
        pytest.skip("only who may mount file systems can make one read-only")
    image = tmp_path / "image"
    copy_package(image)
    mounted = [*prefix, str(image)]
    assert compiled_with_a_warning(run(image, image / "home", prefix=mounted))
    assert run(image, NOWHERE) == COMPILED
    assert run(image, image / "home", prefix=mounted) == LOADED
    assert run(image, home, prefix=mounted) == LOADED
    assert kept(home) == []


@posix
@pytest.mark.skipif(os.access("/", os.W_OK), reason="this user may write everywhere")
def test_folders_this_user_may_not_write(tmp_path, home):
    package = copy_package(tmp_path / "site")
    closed = [package, package / "kernels", home]
    for folder in closed:
        folder.chmod(0o555)
    try:
        done = run(tmp_path / "site", home)
    finally:
        for folder in closed:
            folder.chmod(0o755)
    assert compiled_with_a_warning(done)


@pytest.mark.parametrize("fault", ["a file", "below a file", "nowhere"])
def test_numba_cache_dir_that_cannot_be_written_falls_back_to_the_home(site, home, tmp_path, fault):
    (tmp_path / "file").write_bytes(b"")
    place = {"a file": tmp_path / "file", "below a file": tmp_path / "file" / "x", "nowhere": NOWHERE}[fault]
    assert run(site, home, NUMBA_CACHE_DIR=str(place)) == COMPILED
    assert run(site, home, NUMBA_CACHE_DIR=str(place)) == LOADED


def test_a_relative_numba_cache_dir(site, tmp_path):
    """It is made where the process is when it needs the first kernel, and stays there when the process goes on."""
    there, elsewhere = tmp_path / "there", tmp_path / "elsewhere"
    there.mkdir(), elsewhere.mkdir()
    code = PROGRAM + f"import os; os.chdir({str(elsewhere)!r}); small((x,), 3, 0)(x)\n"
    for folder in ("kc", "a/b/", "."):
        assert run(site, NOWHERE, code=code, cwd=there, NUMBA_CACHE_DIR=folder) == COMPILED
        assert kept(there / folder) == [".nbc", ".nbc", ".nbi", ".nbi"]
        assert run(site, NOWHERE, code=code, cwd=there, NUMBA_CACHE_DIR=folder) == LOADED
        shutil.rmtree(there), there.mkdir()
    assert list(elsewhere.iterdir()) == []


def test_a_relative_numba_cache_dir_where_there_is_no_folder_any_more(site, home, tmp_path):
    code = "import os; os.mkdir('gone'); os.chdir('gone'); os.rmdir('../gone')\n" + PROGRAM
    assert run(site, home) == COMPILED  # there Numba itself cannot compile
    assert run(site, home, code=code, cwd=tmp_path, NUMBA_CACHE_DIR="kc") == LOADED


# Users whose folder for caches is no folder: one without a home, as in a container run with an id that is nobody's.
HOMELESS = {
    "no entry": """
import os, pwd
del os.environ["HOME"]
def nobody(uid):
    raise KeyError(uid)
pwd.getpwuid = nobody
""",
    "a relative home": "import os; os.environ['HOME'] = 'here'\n",
    "a relative folder for caches": "import os; os.environ['XDG_CACHE_HOME'] = 'here'\n",
    "an empty folder for caches": "import os; os.environ['XDG_CACHE_HOME'] = ''\n",
}
# As where nothing can be written: this is how Numba tries a folder.
READ_ONLY = """
import tempfile
def refuse(*args, **kwargs):
    raise PermissionError(13, "Permission denied")
tempfile.TemporaryFile = refuse
"""


@posix
@pytest.mark.parametrize("user", HOMELESS)
@pytest.mark.parametrize("place", ["beside the sources", "NUMBA_CACHE_DIR", "zip"])
def test_a_user_without_a_home_reads_what_was_made_ready(tmp_path, site, user, place):
    """And where nothing is ready compiles with one warning, and makes no folder in whatever folder the process is."""
    if place == "beside the sources":
        (site / "numbagn" / "kernels" / "__pycache__").unlink()
    if place == "zip":
        site = zip_package(tmp_path)
    there = {"NUMBA_CACHE_DIR": str(tmp_path / "cache")} if place == "NUMBA_CACHE_DIR" else {}
    cwd = tmp_path / "cwd"
    cwd.mkdir()
    code = HOMELESS[user] + READ_ONLY + PROGRAM
    assert compiled_with_a_warning(run(site, NOWHERE, code=code, cwd=cwd, **there))
    if place != "zip":  # Numba keeps nothing beside an archive
        assert run(site, NOWHERE, **there) == COMPILED
        assert run(site, NOWHERE, code=code, cwd=cwd, **there) == LOADED
    assert list(cwd.iterdir()) == []


def test_zip_archive(tmp_path, home):
    archive = zip_package(tmp_path)
    assert run(archive, home) == COMPILED
    assert run(archive, home) == LOADED
    assert compiled_with_a_warning(run(archive, NOWHERE))


def test_compiled_modules_without_their_sources(tmp_path, home):
    """Nothing is kept, since nothing tells whether what was kept is of the same sources."""
    package = copy_package(tmp_path / "site")
    assert compileall.compile_dir(package, quiet=1, legacy=True)
    for path in package.rglob("*.py"):
        path.unlink()
    for place in (home, NOWHERE):
        assert compiled_with_a_warning(run(tmp_path / "site", place))


def test_optimized_python_shares_what_is_kept(tmp_path):
    copy_package(tmp_path)
    checked = PROGRAM.replace("assert", "x.tolist() == [1.0, 3.0, 5.0] or sys.exit(1) #")
    assert run(tmp_path, NOWHERE, "-O", code=checked) == COMPILED
    for flags in (["-O"], ["-OO"], []):
        assert run(tmp_path, NOWHERE, *flags, code=checked) == LOADED


def test_frozen_program(site, home):
    code = "import sys; sys.frozen = True\n" + PROGRAM
    assert run(site, home, code=code) == COMPILED
    assert run(site, home, code=code) == LOADED
    assert compiled_with_a_warning(run(site, NOWHERE, code=code))


@posix
@pytest.mark.parametrize("place", ["beside the sources", "home", "NUMBA_CACHE_DIR", "zip"])
def test_umask_000_makes_nothing_that_others_may_change(tmp_path, site, home, place):
    if place == "beside the sources":
        (site / "numbagn" / "kernels" / "__pycache__").unlink()
    if place == "zip":
        site = zip_package(tmp_path)
    there = {"NUMBA_CACHE_DIR": str(tmp_path / "own" / "cache")} if place == "NUMBA_CACHE_DIR" else {}
    before = set(tmp_path.rglob("*"))
    assert run(site, home, code="import os; os.umask(0)\n" + PROGRAM, **there) == COMPILED
    assert kept(tmp_path) == [".nbc", ".nbi"]
    assert [path for path in set(tmp_path.rglob("*")) - before if path.stat().st_mode & 0o022] == []


@posix
@pytest.mark.parametrize("whose", ["anybody's", "another user's"])
@pytest.mark.parametrize("place", ["home", "NUMBA_CACHE_DIR", "zip"])
def test_pickles_planted_where_others_may_write_are_not_opened(tmp_path, site, home, place, whose):
    if whose != "anybody's" and os.geteuid() != 0:
        pytest.skip("only root may give files away")
    if place == "zip":
        site = zip_package(tmp_path)
    there = {"NUMBA_CACHE_DIR": str(tmp_path / "cache")} if place == "NUMBA_CACHE_DIR" else {}
    assert run(site, home, **there) == COMPILED
    planted = tmp_path / "opened"
    (index,) = tmp_path.rglob("*.nbi")
    version = pickle.dumps(numba.__version__, protocol=-1)
    index.write_bytes(version + b"cos\nmkdir\n(V%s\ntR." % str(planted).encode())
    if whose == "anybody's":
        index.parent.chmod(0o777)
    else:
        os.chown(index.parent, 54321, -1)
    logs, warnings = run(site, home, **there)
    assert logs == ["compiled"]
    assert len(warnings) <= 1
    assert not planted.exists()


EVERY_FUNCTION = """
import json
import numpy as np, numbagn
from numba.core.event import install_recorder
with install_recorder("numba:compile") as compilations:
    for shape in ((2, 4, 30), (4, 8, 128, 129)):  # for one thread and for several
        for axis in (1, -1):
            x = np.moveaxis(np.ones(shape, np.float32), 1, axis)
            x = np.ascontiguousarray(x)
            numbagn.group_norm(x, 2, channel_axis=axis)
            y, mean, rstd = numbagn.group_norm_forward(x, 2, channel_axis=axis)
            numbagn.group_norm_backward(y, x, mean, rstd, 2, channel_axis=axis)
            layer = numbagn.GroupNorm(2, shape[1], channel_axis=axis)
            layer(x)
            layer.backward(*layer.forward(x))
print(json.dumps(len(compilations.buffer)))
"""


def test_the_second_process_compiles_nothing_for_any_public_function():
    assert shell(code=EVERY_FUNCTION, NUMBA_NUM_THREADS="4", timeout=240).returncode == 0
    for threads in ("4", "1"):
        second = shell(code=EVERY_FUNCTION, NUMBA_NUM_THREADS=threads)
        assert (second.returncode, second.stderr, second.stdout) == (0, "", "0\n")
