"""Where Numba may compile nothing: one line that says so, the same each time, and the definition still works."""

import json

import numpy as np
import pytest
from command_line import error_line, shell

REFUSAL = (
    "numbagn cannot run with Numba's compiler disabled, since its kernels use vectors that only compiled code has: "
    "unset NUMBA_DISABLE_JIT (or numba.config.DISABLE_JIT), or use numbagn.reference, plain NumPy"
)
BEGIN = """
import json
import numba, numpy as np, numbagn
x = np.linspace(-1, 2, 40, dtype=np.float32).reshape(2, 4, 5) ** 3
y, mean, rstd = numbagn.reference.group_norm(x, 2)
said = []
def call(function):
    try:
        said.append(bool(abs(function() - y).max() < 1e-6))
    except Exception as fault:
        said.append([type(fault).__name__, str(fault)])
def forward():
    return numbagn.group_norm(x, 2)
"""
END = "print(json.dumps(said))"


def said(code, **variables):
    done = shell(code=BEGIN + code + END, NUMBAGN_CACHE="0", **variables)
    assert (done.returncode, done.stderr) == (0, "")
    return json.loads(done.stdout)


def test_every_call_is_refused_and_works_once_the_compiler_is_there():
    code = """
import numbagn._njit
inside = numba.njit(lambda x: numbagn.group_norm(x, 2))
calls = {
    "forward": forward,
    "inside": lambda: inside(x),
    "backward": lambda: numbagn.group_norm_backward(x, x, mean, rstd, 2)[0],
    "layer": lambda: numbagn.GroupNorm(2, 4)(x),
    "moments": lambda: numbagn.group_moments(x, 2).mean,
    "lengths": lambda: numbagn.group_norm(x, 2, lengths=[5, 3]),
    "warmup": numbagn.warmup,
}
for _ in range(2):
    for function in calls.values():
        call(function)
numba.config.DISABLE_JIT = False
call(forward)
"""
    assert said(code, NUMBA_DISABLE_JIT="1") == [["RuntimeError", REFUSAL]] * 14 + [True]


def test_the_compiler_disabled_at_run_time():
    """What is compiled already goes on; nothing more is, not for functions that users had made before either."""
    code = """
import numbagn._njit
inside = numba.njit(lambda x: numbagn.group_norm(x, 2))
silu = lambda: numbagn.group_norm(x, 2, activation="silu")
call(forward)
numba.config.DISABLE_JIT = True
call(forward), call(silu), call(lambda: inside(x)), call(silu)
numba.config.DISABLE_JIT = False
call(lambda: inside(x))
"""
    refused = ["RuntimeError", REFUSAL]
    assert said(code) == [True, True, refused, refused, refused, True]


@pytest.mark.parametrize("command", ["normalize", "warmup", "bench"])
def test_commands_say_it_in_one_line(tmp_path, command):
    np.save(tmp_path / "in.npy", np.ones((2, 4, 5), np.float32))
    options = [tmp_path / "in.npy", tmp_path / "out.npy", "--num-groups", 2] if command == "normalize" else []
    done = shell(command, *options, NUMBA_DISABLE_JIT="1")
    assert (done.returncode, done.stdout) == (2, "")
    assert error_line("".join(done.stderr.splitlines(keepends=True)[-1:])) == REFUSAL
    assert not (tmp_path / "out.npy").exists()


def test_the_self_check_says_it():
    done = shell(NUMBA_DISABLE_JIT="1")
    assert done.returncode == 1
    assert "FAULT: NUMBA_DISABLE_JIT is set" in done.stdout
