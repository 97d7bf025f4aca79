"""A release of Numba that lacks something: one line names it, the versions that work, and the cure."""

import json
import re
import tomllib
from pathlib import Path

import numba
import pytest
from command_line import shell

from numbagn.kernels import numba_names

ROOT = Path(__file__).parents[1]
# A part of Numba goes; then a user's function without numbagn, two calls of ours, and one from a user's function.
PROGRAM = """
import json, warnings
import numba, numpy as np, numbagn
import numba.core.caching, numba.core.codegen, numba.core.options
{gone}
import numbagn._njit  # as Numba does by the entry point
x = np.linspace(-1, 2, 40, dtype=np.float32).reshape(2, 4, 5) ** 3
y = numbagn.reference.group_norm(x, 2)[0]
@numba.njit
def own(x):
    return x + 1
@numba.njit
def inside(x):
    return numbagn.group_norm(x, 2)
ours = lambda x: numbagn.group_norm(x, 2)
said = []
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    for function, want in ((own, x + 1), (ours, y), (ours, y), (inside, y), (inside, y)):
        try:
            said.append(bool(abs(function(x) - want).max() < 1e-6))
        except Exception as fault:
            said.append([type(fault).__name__, str(fault)])
print(json.dumps([said, [[w.category.__name__, str(w.message)] for w in caught]]))
"""


def run(gone):
    done = shell(code=PROGRAM.format(gone=gone))
    assert (done.returncode, done.stderr) == (0, "")
    return json.loads(done.stdout)


def refusal(what):
    return (
        f"numbagn cannot use Numba {numba.__version__}: {what}; it is tested with Numba 0.61 to 0.68: "
        "pip install 'numba>=0.61,<0.69'"
    )


@pytest.mark.parametrize(
    ("gone", "what"),
    [
        ("del numba.core.codegen.JITCodeLibrary", "cannot import name 'JITCodeLibrary' from 'numba.core.codegen'"),
        ("numba.core.codegen.JITCodeLibrary = object", "object has no '_optimize_functions'"),
        ("del numba.core.options.DefaultOptions._nrt", "DefaultOptions has no '_nrt'"),
    ],
)
def test_a_name_that_is_gone_is_told_in_one_line(gone, what):
    assert run(gone) == [[True] + [["Unfit", refusal(what)]] * 4, []]


@pytest.mark.parametrize("name", ["IndexDataCacheFile", "UserWideCacheLocator", "FunctionCache._impl_class"])
def test_without_what_the_cache_needs_kernels_are_compiled_and_one_warning_says_why(name):
    owner, _, attribute = name.rpartition(".")
    owner = f"numba.core.caching.{owner}".rstrip(".")
    gone = f"""
for owner in {owner}.__mro__ if isinstance({owner}, type) else [{owner}]:
    for name in ({attribute!r}, "_" + {attribute!r}):
        if name in vars(owner):
            delattr(owner, name)
"""
    said, [(category, message)] = run(gone)
    assert said == [True] * 5
    assert category == "RuntimeWarning"
    assert re.fullmatch(
        r"numbagn: compiled kernels are not kept, so each process compiles them anew\. numbagn cannot use Numba .*: "
        rf"\S+ has no '_*{attribute}'; it is tested with Numba .*",
        message,
    )


def test_versions_named_are_those_of_the_metadata():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert f"numba>={numba_names.OLDEST}" in project["dependencies"]
    newest, following = (tuple(map(int, v.split("."))) for v in (numba_names.NEWEST, numba_names.NEXT))
    assert following == (newest[0], newest[1] + 1)


def test_private_names_of_numba_stand_in_one_place():
    """Elsewhere the package imports what Numba documents: `numba`, `numba.extending`."""
    allowed = {"numba_names.py", "numba_caching.py"}
    for path in (ROOT / "numbagn").rglob("*.py"):
        if path.name not in allowed:
            found = re.findall(r"^\s*(?:from|import) (numba\.[\w.]+)", path.read_text(encoding="utf-8"), re.MULTILINE)
            assert set(found) <= {"numba.extending", "numba.cuda"}, (path, found)
