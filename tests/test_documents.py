"""What the documents show runs, and gives what they say."""

import doctest
import re
from argparse import Namespace
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import pytest

import numbagn
from benchmarks import FIGURES, RESULTS, plot

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
MODULES = (
    *("derivatives.public", "functional", "layers.norms", "layers.base", "moments", "reference", "command.warmup"),
    *("interop.autograd", "interop.mlx"),
)


@pytest.mark.parametrize("name", MODULES)
def test_examples_in_docstrings(name):
    if name == "interop.autograd":
        pytest.importorskip("autograd", reason="autograd is not installed")
    result = doctest.testmod(import_module(f"numbagn.{name}"))
    assert result.attempted > 0
    assert result.failed == 0


BLOCKS = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)


@pytest.mark.parametrize("block", BLOCKS, ids=lambda block: block.splitlines()[0].removeprefix(">>> "))
def test_examples_in_the_readme(block):
    """Each after the first, which imports NumPy and the package, and not after others."""
    for library in re.findall(r"^>>> (?:import|from) (\w+)", block, re.MULTILINE):
        pytest.importorskip(library)
    names: dict = {}
    for line in doctest.DocTestParser().get_examples(BLOCKS[0]) if block != BLOCKS[0] else ():
        exec(line.source, names)
    example = doctest.DocTestParser().get_doctest(block, names, "README.md", "README.md", 0)
    assert example.examples
    assert doctest.DocTestRunner().run(example).failed == 0


def test_files_the_readme_shows_are_there():
    named = re.findall(r"\]\(([^):]+)\)|`((?:benchmarks|numbagn|tests)/[\w/.]+|\w+\.py)`", README)
    assert named
    for link, path in named:
        name = link or path
        assert (ROOT / name).exists() or (ROOT / "numbagn" / name).exists(), name


def test_the_design_page_names_what_is_there():
    page = (ROOT / "numbagn" / "README.md").read_text(encoding="utf-8")
    for name in re.findall(r"`(test_\w+)`", page):
        assert (ROOT / "tests" / f"{name}.py").exists(), name
    table = page.split("## Where things live")[1].split("## How to add")[0]
    table += page.split("## The GPU path")[1].split("What decided it")[0]
    named = {name for row in re.findall(r"^\| (`.*?) \|", table, re.MULTILINE) for name in re.findall(r"`(.*?)`", row)}
    package = ROOT / "numbagn"
    folders = [package / name for name in ("", "kernels", "kernels/cpu", "kernels/cuda", "calls/gpu", "command")]
    for name in named:
        assert any(list(folder.glob(f"{name}.py")) or (folder / name).is_dir() for folder in folders), name
    modules = {
        path.stem
        for path in (ROOT / "numbagn").rglob("*.py")
        if "bench" not in path.parts and "interop" not in path.parts and "__main__" not in path.stem
    }
    told = {Path(name).name.rstrip("/*") for name in named} | {"__init__"}
    assert not {m for m in modules if not any(m == t or m.startswith(f"{t}_") for t in told)}


def test_changelog_names_this_version():
    assert numbagn.__version__ in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


def test_tables_and_figures_are_those_of_the_results(tmp_path):
    """`python -m benchmarks plot` changes nothing; the support table is made of calls."""
    page = tmp_path / "README.md"
    page.write_text(README, encoding="utf-8")
    plot.main(Namespace(results=RESULTS, figures=tmp_path, readme=page))
    assert page.read_text(encoding="utf-8") == README
    for name in ("support", *plot.PAGES):
        assert f"<!-- {name}:begin -->\n" in README
    for figure in FIGURES.glob("*.png"):
        assert (tmp_path / figure.name).exists() or find_spec("matplotlib") is None
        assert f"benchmarks/figures/{figure.name}" in README
