"""What importing and calling load, what is public, and that all of it is documented."""

import inspect
import re
import subprocess
import sys

import pytest
from command_line import shell

import numbagn
import numbagn.reference

# Libraries whose arrays may come in or whose dtypes are known, and the compiler.
COMPILER = ("numba", "llvmlite")
FOREIGN = ("numba.cuda", "torch", "cupy", "ml_dtypes", "jax", "dask", "tensorflow", "onnxruntime", "safetensors")
FOREIGN += ("autograd", "onnx")

# name: (program, what it must not load)
USES = {
    "import": ("", COMPILER + FOREIGN),
    "every public name": ("for name in numbagn.__all__: getattr(numbagn, name)", COMPILER + FOREIGN),
    "the definition": ("numbagn.reference.group_norm(x, 2)", COMPILER + FOREIGN),
    "a layer and its state": ("a = numbagn.GroupNorm(2, 4); a.load_state_dict(a.state_dict())", COMPILER + FOREIGN),
    "a refused call": ("try: numbagn.group_norm(x, 3)\nexcept ValueError: pass", COMPILER + FOREIGN),
    "an empty batch": ("numbagn.group_norm(x[:0], 2)", COMPILER + FOREIGN),
    "forward": ("numbagn.group_norm(x, 2)", FOREIGN),
    "backward": (
        "y, mean, rstd = numbagn.group_norm_forward(x, 2); numbagn.group_norm_backward(y, x, mean, rstd, 2)", FOREIGN,
    ),
}  # fmt: skip


@pytest.mark.parametrize("use", USES)
def test_nothing_is_loaded_that_is_not_needed(use):
    code, unwanted = USES[use]
    done = shell(
        code=f"""
import sys
import numpy as np
import numbagn
x = np.arange(16, dtype=np.float32).reshape(1, 4, 4)
{code}
print([name for name in {unwanted} if name in sys.modules])
"""
    )
    assert (done.returncode, done.stderr, done.stdout) == (0, "", "[]\n")


def test_import_writes_nothing_and_starts_no_thread():
    done = shell(code="import threading, numbagn; print(threading.active_count())")
    assert (done.returncode, done.stderr, done.stdout) == (0, "", "1\n")


@pytest.mark.parametrize("flags", [("-O",), ("-OO",), ("-W", "error"), ("-X", "dev", "-W", "error"), ("-I",)])
def test_import_under_any_flags(flags):
    code = "import sys; sys.path[:0] = sys.argv[1:]; import numbagn, numbagn.__main__; print(numbagn.GroupNorm(2, 4))"
    argv = [sys.executable, *flags, "-c", code, *sys.path]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr, done.stdout) == (0, "", "GroupNorm(2, 4)\n")


# ------------------------------------------------------------------------------------------------------- documentation


def public():
    """Every public function, class and method: (name, object), the definition's functions as well."""
    found = {name: getattr(numbagn, name) for name in numbagn.__all__}
    found |= {f"reference.{name}": getattr(numbagn.reference, name) for name in ("group_norm", "group_norm_backward")}
    del found["reference"]
    for name, value in list(found.items()):
        if inspect.isclass(value):
            ours = lambda f: inspect.isfunction(f) and f.__module__.startswith("numbagn.")  # noqa: E731
            methods = inspect.getmembers(value, ours)
            found |= {f"{name}.{m}": f for m, f in methods if not m.startswith("_") or m in ("__call__", "__repr__")}
    return found


PUBLIC = public()


def sections(text):
    """The sections of a docstring in NumPy's format, by name; the summary is ""."""
    parts = re.split(r"^(\w[\w ]*)\n-{3,}\n", inspect.cleandoc(text), flags=re.MULTILINE)
    return dict(zip(["", *parts[1::2]], parts[::2], strict=True))


def described(section):
    """The names a section describes: "a, b : type" gives a and b, each with a text below."""
    names = []
    for head, body in re.findall(r"^(\w[^\n]*)\n((?: +[^\n]*\n?|\n)*)", section + "\n", flags=re.MULTILINE):
        assert body.strip(), f"{head} has no description"
        names += [name.strip() for name in head.split(" : ")[0].split(",")]
    return names


@pytest.mark.parametrize("name", PUBLIC)
def test_public_names_are_documented(name):
    text = PUBLIC[name].__doc__
    assert text, f"{name} has no docstring"
    summary = inspect.cleandoc(text).split("\n\n")[0]
    assert summary.endswith(".")


@pytest.mark.parametrize("name", PUBLIC)
def test_all_parameters_results_and_errors_are_documented(name):
    value = PUBLIC[name]
    found = sections(value.__doc__)
    parameters = [p for p in inspect.signature(value).parameters if p != "self"]
    if not parameters:
        return
    assert described(found["Parameters"]) == [p for p in described(found["Parameters"]) if p in parameters]
    assert sorted(described(found["Parameters"])) == sorted(parameters)
    assert described(found["Raises"])
    if not inspect.isclass(value) and inspect.signature(value).return_annotation not in (None, "None"):
        assert described(found["Returns"])


@pytest.mark.parametrize("name", PUBLIC)
def test_shapes_of_all_arrays_are_documented(name):
    """In the type, "(N, G) ndarray", or in the text, also by naming what the array is like."""
    found = sections(PUBLIC[name].__doc__)
    for section in ("Parameters", "Returns", "Attributes"):
        for entry in re.findall(r"^\w[^\n]*\n(?: +[^\n]*\n?|\n)*", found.get(section, "") + "\n", flags=re.MULTILINE):
            if "ndarray" in entry.split("\n")[0]:
                assert re.search(r"\([\w.*]*, |\(C,\)|shape|As (from|for)", entry), entry
