"""What every test needs: a cache of compiled kernels of its own, enough threads, fixed seeds."""

import os
import sys
from pathlib import Path

# Before Numba is imported, here or in a subprocess: kernels compiled for the tests are kept beside the sources, and the
# tests of equal bits use up to four threads whatever the machine has.
os.environ.setdefault("NUMBA_CACHE_DIR", str(Path(__file__).parents[1] / ".numba_cache"))
os.environ.setdefault("NUMBA_NUM_THREADS", "4")

# At the end, so that an installed numbagn is what is tested; benchmarks/ is in the clone alone.
sys.path.append(str(Path(__file__).parents[1]))

import numpy as np
import pytest
from hypothesis import settings

from numbagn.calls import passes
from numbagn.shapes import schedule

settings.register_profile("numbagn", deadline=None, derandomize=True, max_examples=40)
settings.load_profile("numbagn")


@pytest.fixture
def rng():
    """The same random numbers in every run."""
    return np.random.default_rng(20180322)


@pytest.fixture
def one_thread(monkeypatch):
    """One thread at any size: what else runs disturbs it less. `test_bits` shows that several give the same bits."""
    monkeypatch.setattr(schedule, "PARALLEL_BYTES", 1 << 62)
    passes.forget_plans()
    yield
    passes.forget_plans()


@pytest.fixture
def x(tmp_path):
    """Samples of four kinds of scale in `in.npy`, beside an old `out.npy`: for tests of the command line."""
    x = np.random.default_rng(0).normal(3, 2, (5, 6, 4, 3)).astype(np.float32)
    np.save(tmp_path / "in.npy", x)
    (tmp_path / "out.npy").write_bytes(b"an old file")
    return x
