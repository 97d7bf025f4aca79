"""What the documents show runs, and gives what they say."""

import doctest
import re
from pathlib import Path

import numpy as np
import pytest

import numbagn
from numbagn import derivatives, functional, layers, moments

ROOT = Path(__file__).parents[1]


MODULES = (derivatives, functional, layers, moments)


@pytest.mark.parametrize("module", MODULES, ids=lambda module: module.__name__)
def test_examples_in_docstrings(module):
    result = doctest.testmod(module)
    assert result.attempted > 0
    assert result.failed == 0


BLOCKS = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)


@pytest.mark.parametrize("block", BLOCKS, ids=lambda block: block.splitlines()[0].removeprefix(">>> "))
def test_examples_in_the_readme(block):
    """Each by itself, with NumPy and the package as the first imports them."""
    for library in re.findall(r"^>>> (?:import|from) (\w+)", block, re.MULTILINE):
        pytest.importorskip(library)
    names = {"np": np, "numbagn": numbagn}
    example = doctest.DocTestParser().get_doctest(block, names, "README.md", "README.md", 0)
    assert example.examples
    assert doctest.DocTestRunner().run(example).failed == 0


def test_files_the_readme_shows_are_there():
    page = (ROOT / "README.md").read_text(encoding="utf-8")
    named = re.findall(r"\]\(([^):]+)\)|`((?:benchmarks|numbagn|tests)/[\w/.]+|\w+\.py)`", page)
    assert named
    for link, path in named:
        name = link or path
        assert (ROOT / name).exists() or (ROOT / "numbagn" / name).exists(), name


def test_changelog_names_this_version():
    assert numbagn.__version__ in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
