"""The GPU path: in Numba's simulator on any machine, and on a GPU where there is one, each in a process of its own."""

import itertools
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import numbagn

HERE = Path(__file__).parent


def run_device_tests(*options, file="device_tests.py", **variables):
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-n", "0", *options, HERE / file],
        env=os.environ | variables, cwd=HERE.parent, capture_output=True, text=True, timeout=580, check=False,
    )  # fmt: skip


@pytest.mark.parametrize("part", ["every_dtype", "not every_dtype"])
def test_every_kernel_in_the_simulator(part):
    done = run_device_tests("-k", part, NUMBA_ENABLE_CUDASIM="1")
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]
    assert " passed" in done.stdout
    assert "skipped" not in done.stdout.splitlines()[-1]


def test_arrays_of_other_libraries_on_a_stand_in_for_a_gpu():
    done = run_device_tests(file="device_foreign_tests.py", NUMBA_ENABLE_CUDASIM="1")
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]
    assert " passed" in done.stdout
    assert "skipped" not in done.stdout.splitlines()[-1]


def test_every_kernel_on_a_gpu():
    code = "from numba import cuda; print(getattr(cuda, 'implementation', '') == 'NVIDIA' and cuda.is_available())"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False).stdout.strip()
    if found != "True":
        pytest.skip("no GPU, or no numba-cuda with its driver")
    done = run_device_tests()
    assert done.returncode == 0, done.stdout[-8000:]


def fails(code, **variables):
    """The last line that a program without a GPU ends with."""
    done = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | variables, capture_output=True, text=True, timeout=120,
        check=False,
    )  # fmt: skip
    assert done.returncode != 0
    return done.stderr.strip().splitlines()[-1]


FOREIGN = """
import numpy as np, numbagn
class Foreign:
    __cuda_array_interface__ = {"shape": (2, 4, 3), "typestr": "<f4", "data": (512, False), "version": 3}
numbagn.group_norm(Foreign(), 2)
"""


def test_without_a_gpu_the_error_says_what_is_missing():
    code = "from numba import cuda; print(getattr(cuda, 'implementation', '') == 'NVIDIA' and cuda.is_available())"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False).stdout.strip()
    if found == "True":
        pytest.skip("there is a GPU")
    line = fails(FOREIGN)
    assert "numbagn[cuda13]" in line or "CUDA driver" in line


def test_nothing_of_cuda_is_imported_for_arrays_of_the_cpu():
    code = (
        "import sys, numpy as np, numbagn; numbagn.group_norm(np.ones((1, 4, 3), np.float32), 2);"
        "sys.exit(any(name.startswith(('numbagn.arrays.device', 'numbagn.calls.gpu', 'numbagn.kernels.cuda')) or "
        "name == 'numba.cuda.cudadrv.driver' for name in sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr


def test_a_team_is_in_one_warp_or_a_whole_block():
    from numbagn.calls.gpu.grids import rows_of, whole_of

    for count, elements in itertools.product((1, 2, 4, 8), range(1, 40000, 31)):
        for plan in (whole_of(elements, count), rows_of(elements, count, False), rows_of(elements, count, True)):
            assert plan is None or plan.threads == plan.team > 32 or plan.threads % plan.team == 0 < plan.team <= 32
            assert plan is None or plan.vectors * plan.team * count >= elements


@pytest.mark.parametrize("divisor", [1, 2, 3, 5, 7, 10, 49, 320, 2047, 65537, 2**31 - 1])
def test_division_by_multiplication_is_exact(divisor):
    from numbagn.calls.gpu.grids import MOST
    from numbagn.calls.gpu.grids import divisor as plan

    multiplier, shift = plan(divisor)
    assert multiplier * MOST < 2**63
    values = {0, 1, divisor - 1, divisor, divisor + 1, MOST - 1, MOST}
    values |= {k * divisor + d for k in (1, 2, MOST // divisor - 1, MOST // divisor) for d in (-1, 0, 1)}
    rng = np.random.default_rng(divisor)
    values |= set(rng.integers(0, MOST, 2000).tolist())
    for value in values:
        if 0 <= value <= MOST:
            assert (value * multiplier) >> shift == value // divisor, value


def test_a_torch_like_array_on_the_cpu_is_not_taken_for_a_device_array():
    torch = pytest.importorskip("torch")
    assert type(numbagn.group_norm(torch.ones(1, 4, 3), 2)) is torch.Tensor
