"""The soak of `soak.py` for seconds, and that it would tell."""

import itertools
from pathlib import Path

import pytest
import soak
from command_line import shell

TESTS = Path(__file__).parent


def test_three_seconds():
    code = f"import sys; sys.path.insert(0, {str(TESTS)!r}); import soak; sys.exit(soak.main(sys.argv[1:]))"
    done = shell("--seconds", 3, "--kinds", 3, code=code, timeout=240)
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    assert done.stdout.startswith("soak: ")
    assert done.stdout.count("\n") == 1


def test_one_case_can_be_repeated(capsys):
    assert soak.main(["--seed", "3", "--case", "0.1.2", "--kinds", "1"]) == 0
    assert capsys.readouterr().out.startswith("soak: seed 3, case 0.1.2: kind=Kind(dtype='float32'")


@pytest.mark.parametrize("wrong", ["bits", "values", "error"])
def test_a_wrong_result_is_told_with_the_seed_and_the_case(monkeypatch, capsys, wrong):
    if wrong == "bits":
        numbers = itertools.count()
        monkeypatch.setattr(soak, "digest", lambda arrays: str(next(numbers)))
    elif wrong == "values":
        monkeypatch.setattr(soak.reference, "group_norm", lambda x, *_, **__: (x + 1.0, x.mean(), x.mean()))
    else:
        monkeypatch.setattr(soak.numbagn, "group_norm_forward", lambda *_, **__: 1 / 0)
    assert soak.main(["--case", "0.0.1", "--kinds", "1"]) == 1
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith("soak: wrong: seed 0, case 0.0.1: kind=Kind(dtype='float32'")
    assert said.err.count("\n") == 1
