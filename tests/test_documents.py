"""What the documents show runs, and gives what they say."""

import doctest
import re
from importlib import import_module
from pathlib import Path

import pytest

import numbagn
from benchmarks import FIGURES, RESULTS, plot, support
from numbagn._bench.results import read

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
MODULES = (
    *("derivatives", "functional", "layers", "_layer", "moments", "reference", "_warmup"),
    *("interop.autograd", "interop.mlx"),
)


@pytest.mark.parametrize("name", MODULES)
def test_examples_in_docstrings(name):
    if name == "interop.autograd":
        pytest.importorskip("autograd", reason="autograd is not installed")
    result = doctest.testmod(import_module(f"numbagn.{name}"))
    assert result.attempted > 0
    assert result.failed == 0


def test_examples_in_the_readme():
    result = doctest.testfile(str(ROOT / "README.md"), module_relative=False)
    assert result.attempted > 0
    assert result.failed == 0


def test_files_the_readme_shows_are_there():
    named = re.findall(r"\]\(([^):]+)\)|`((?:benchmarks|numbagn|tests)/[\w/.]+|\w+\.py)`", README)
    assert named
    for link, path in named:
        name = link or path
        assert (ROOT / name).exists() or (ROOT / "numbagn" / name).exists(), name


def test_changelog_names_this_version():
    assert numbagn.__version__ in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


def test_the_readme_shows_what_is_supported():
    """`python -m benchmarks plot` writes it anew."""
    assert f"<!-- support:begin -->\n{support.table()}\n<!-- support:end -->" in README


def test_tables_of_the_readme_are_those_of_the_results():
    for name, (table, draw) in plot.PAGES.items():
        rows = read(RESULTS / f"{name}.csv")
        assert rows, f"{name}.csv is empty"
        assert f"<!-- {name}:begin -->\n{table(rows)}\n<!-- {name}:end -->" in README, name
        assert draw is None or (FIGURES / f"{name}.png").exists(), name
