"""The command line as a whole: `python -m numbagn`, its self-check, its refusals, its progress bar."""

import io
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from command_line import G2, GOOD, command, error_line, leftovers, normalize, shell, write_npy, write_npz

import numbagn
from numbagn.command import files, selfcheck
from numbagn.command.main import main

README = Path(__file__).parents[1] / "README.md"

# The self-check and the program as a whole


def test_self_check_says_all_is_well():
    done = shell(timeout=300)  # compiles all dtypes on a fresh machine
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stderr == ""
    assert done.stdout.startswith(f"numbagn {numbagn.__version__}, Python {sys.version.split()[0]}")
    assert f"numpy {np.__version__}" in done.stdout
    assert re.search(r"^threads: +\d+, threading layer ", done.stdout, re.MULTILINE)
    assert done.stdout.endswith("All is well: every check holds.\n")

    rows = re.findall(r"^  (\w+) +(\d+) +(\S+) +(\S+)  ok$", done.stdout, re.MULTILINE)
    expected = {("float16", "0"), ("float32", "0"), ("float32", "10000"), ("float64", "0")}
    assert expected <= {(dtype, mean) for dtype, mean, _, _ in rows}
    for dtype, _, error, allowed in rows:
        assert float(error) <= float(allowed) <= {"float32": 2e-6, "float64": 1e-12}.get(dtype, 0.1)
    times = re.findall(r"^  (numbagn|NumPy \w+) +(\d+\.\d+) ms +(\d+\.\d) GB/s$", done.stdout, re.MULTILINE)
    assert [name for name, _, _ in times] == ["numbagn", "NumPy copy", "NumPy definition"]
    for _, milliseconds, speed in times:  # 21 MB, so MB/ms = GB/s
        assert 20.97 / float(milliseconds) == pytest.approx(float(speed), rel=0.1)

    # the README shows these lines; numbers and the machine's own lines differ
    shown = re.search(r"^```text\n(numbagn .*?)\n```$", README.read_text("utf-8"), re.MULTILINE | re.DOTALL)[1]
    machine = re.compile(r"(numbagn \d|packages|CPU|GPU|threads|  slower than|  the environment variable).*\n")
    masked = (re.sub(r" *\d\S*", " #", machine.sub("", text.rstrip() + "\n")) for text in (shown, done.stdout))
    assert next(masked) == next(masked)


def test_self_check_finds_wrong_numbers(monkeypatch, capsys):
    right = numbagn.group_norm

    def wrong(x, *args, **options):
        y = right(x, *args, **options)
        y[-1] += y.dtype.type(len(x) / 64)
        return y

    monkeypatch.setattr(numbagn, "group_norm", wrong)
    monkeypatch.setattr(selfcheck, "SPEED_ROUNDS", 1)
    assert main([]) == 1
    out = capsys.readouterr().out
    assert re.search(r"^  float64 .* WRONG$", out, re.MULTILINE)
    assert re.search(r"^FAULT: float32 at mean 10000 is off by 3\.1e-02, allowed 2\.0e-06$", out, re.MULTILINE)
    assert "FAULT: a sample gets other bits alone than in a batch" in out
    assert out.endswith("Something is wrong, see above.\n")


def test_self_check_survives_a_broken_installation(monkeypatch, capsys):
    def broken(*args, **options):
        raise ValueError("No threading layer\ncould be loaded.")

    monkeypatch.setattr(numbagn, "group_norm", broken)
    assert main([]) == 1
    out = capsys.readouterr().out
    assert f"numbagn {numbagn.__version__}" in out
    assert "FAULT: ValueError: No threading layer could be loaded.\n" in out


def test_help_and_version_do_not_load_numba():
    code = (
        "import sys\nfrom numbagn.__main__ import main\n"
        "codes = [main(a) for a in (['--help'], ['normalize', '--help'], ['--version'], ['nonsense'])]\n"
        "print(codes, [name for name in ('numba', 'llvmlite') if name in sys.modules])"
    )
    done = shell(code=code)
    *text, last = done.stdout.splitlines()
    assert last == "[0, 0, 0, 2] []"
    assert text[-1] == f"numbagn {numbagn.__version__}"
    assert "python -m numbagn normalize features.npy normalized.npy --num-groups 32" in done.stdout
    assert error_line(done.stderr).startswith("argument COMMAND: invalid choice: 'nonsense'")


@pytest.mark.skipif(os.name != "posix", reason="pipes of POSIX")
def test_a_reader_that_leaves_is_no_traceback():
    with subprocess.Popen(**command("--version"), stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        process.stdout.close()
        assert process.stderr.read() == ""
        assert process.wait(60) == 141


# Refusals


BAD_INPUTS = {
    "missing file": (None, G2, "in.npy: No such file or directory"),
    "text": (b"hello " * 99, G2, "in.npy is not an .npy file; allowed: one array written by numpy.save"),
    "nothing": (b"", G2, "in.npy is not an .npy file"),
    "npz": (write_npz(a=np.ones(3)), G2, "in.npy is an .npz or other zip archive"),
    "cut header": (GOOD[:40], G2, "in.npy cannot be read as an .npy array: EOF"),
    "cut data": (GOOD[:-1], G2, "in.npy cannot be read as an .npy array: mmap length is greater than file size"),
    "bool": (write_npy(np.ones((2, 6), bool)), G2, "in.npy has dtype bool; allowed: float16, float32, float64 and int"),
    "complex": (write_npy(np.ones((2, 6), complex)), G2, "in.npy has dtype complex128"),
    "records": (write_npy(np.ones((2, 6), "f4,i2")), G2, "in.npy has dtype [('f0'"),
    "text array": (write_npy(np.array([["a"]])), G2, "in.npy has dtype <U1"),
    "one number": (write_npy(np.ones(())), G2, "in.npy holds an array of shape (); allowed: at least (N, C)"),
    "one axis": (write_npy(np.ones(6)), G2, "(6,); allowed: at least (N, C); for one sample without a batch axis use"),
    "groups do not divide": (GOOD, ("--num-groups", 4), "num_groups"),
    "groups 0": (GOOD, ("--num-groups", 0), "num_groups"),
    "groups not a number": (GOOD, ("--num-groups", "two"), "argument --num-groups: invalid int value: 'two'"),
    "no groups": (GOOD, (), "the following arguments are required: --num-groups"),
    "batch axis": (GOOD, (*G2, "--channel-axis", 0), "channel_axis"),
    "axis too large": (GOOD, (*G2, "--channel-axis", 3), "channel_axis"),
    "activation": (GOOD, (*G2, "--activation", "tanh"), "activation"),
    "eps negative": (GOOD, (*G2, "--eps", "-1"), "eps"),
    "eps nan": (GOOD, (*G2, "--eps", "nan"), "eps"),
    "dtype": (GOOD, (*G2, "--dtype", "int8"), "argument --dtype: invalid choice: 'int8'"),
    "option": (GOOD, (*G2, "--groups", 2), "unrecognized arguments: --groups 2"),
    "abbreviation": (GOOD, ("--num", 2), "--num-groups"),
    "quiet progress": (GOOD, (*G2, "--quiet", "--progress"), "argument --progress: not allowed with argument --quiet"),
    "prefix alone": (GOOD, (*G2, "--prefix", "a."), "--prefix is given without --weights"),
}


@pytest.mark.parametrize("case", BAD_INPUTS)
def test_bad_input(tmp_path, capsys, case):
    content, options, message = BAD_INPUTS[case]
    if content is not None:
        (tmp_path / "in.npy").write_bytes(content)
    (tmp_path / "out.npy").write_bytes(b"an old file")
    assert normalize(tmp_path / "in.npy", tmp_path / "out.npy", *options) == 2
    out, err = capsys.readouterr()
    assert message in error_line(err)
    assert out == ""
    assert leftovers(tmp_path) == []
    assert (tmp_path / "out.npy").read_bytes() == b"an old file"


def test_bad_input_from_a_shell(tmp_path):
    (tmp_path / "in.npy").write_bytes(GOOD)
    done = shell("normalize", tmp_path / "in.npy", tmp_path / "out.npy", "--num-groups", 5)
    assert (done.returncode, done.stdout) == (2, "")
    line = error_line(done.stderr)
    assert "num_groups" in line
    assert re.search(r"\b5\b", line)  # what came
    assert "1, 2, 3, 6" in line  # what is allowed
    assert not (tmp_path / "out.npy").exists()


# The progress bar


class Terminal(io.StringIO):
    def isatty(self):
        return True


def screen(text):
    """Give what a terminal shows after `text`: carriage returns write over what stands there."""
    shown = []
    column = 0
    for letter in text:
        column = 0 if letter == "\r" else column
        if letter != "\r":
            shown[column : column + 1] = [letter]
            column += 1
    return "".join(shown).rstrip()


@pytest.mark.parametrize(
    ("stream", "options", "drawn"),
    [
        (Terminal, (), True),
        (Terminal, ("--quiet",), False),
        (io.StringIO, (), False),
        (io.StringIO, ("--progress",), True),
    ],
)
def test_progress_bar(tmp_path, monkeypatch, capsys, x, stream, options, drawn):
    monkeypatch.setattr(files, "BATCH_BYTES", 1)
    monkeypatch.setattr(files.ProgressBar, "INTERVAL", 0.0)
    monkeypatch.setattr(sys, "stderr", stream())
    assert normalize(tmp_path / "in.npy", tmp_path / "out.npy", "--num-groups", 2, *options) == 0
    text = sys.stderr.getvalue()
    if drawn:
        frames = [frame.rstrip() for frame in text.split("\r") if frame.strip()]
        assert frames[0].startswith("[..............................]   0% 0/5 samples")
        assert frames[3].startswith("[##################............]  60% 3/5 samples, ")
        assert frames[-1].startswith("[##############################] 100% 5/5 samples, 0 s left")
        assert screen(text) == ""
    else:
        assert text == ""
    np.testing.assert_array_equal(np.load(tmp_path / "out.npy"), numbagn.group_norm(x, 2))


def test_progress_bar_leaves_the_line_to_the_error(tmp_path, monkeypatch, x):
    def failing(chunk, *args, **options):
        if len(chunk):
            raise ValueError("no luck")

    monkeypatch.setattr(numbagn, "group_norm", failing)
    monkeypatch.setattr(sys, "stderr", Terminal())
    assert normalize(tmp_path / "in.npy", tmp_path / "out.npy", "--num-groups", 2) == 2
    bar, _, rest = sys.stderr.getvalue().rpartition("\r")
    assert "samples" in bar
    assert rest == "numbagn: error: no luck\n"
    assert screen(bar) == ""
