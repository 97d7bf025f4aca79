"""What is loaded from the cache is what was asked for: whole files in another's place are no more than a warning."""

import itertools
import logging
import warnings

import numba
import numpy as np
import pytest

from numbagn.kernels import cache as kernel_cache
from numbagn.kernels import compiled


def factor_kernel(factor, sources):
    def scale(x):
        for i in range(x.size):
            x[i] = factor * x[i] + (sources > 0)

    return scale


# Two kernels that Numba's key for the cache does not tell apart: constants are no part of it.


def double_kernel(sources):
    def scale(x):
        for i in range(x.size):
            x[i] = 2 * x[i] + (sources > 0)

    return scale


def treble_kernel(sources):
    def scale(x):
        for i in range(x.size):
            x[i] = 3 * x[i] + (sources > 0)

    return scale


@pytest.fixture
def call(tmp_path, monkeypatch, caplog):
    """Run a kernel as a new process would, with the cache at `tmp_path`; give what was done and how many warnings."""
    monkeypatch.setattr(numba.config, "CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(kernel_cache._Implementation, "_locator_classes", (kernel_cache.Chosen,))
    caplog.set_level(logging.INFO, "numbagn")

    def once(make, *key, dtype=np.float64, factor=2):
        monkeypatch.setattr(compiled, "_told", [])
        caplog.clear()
        x = np.arange(3).astype(dtype)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            compiled.entry(make)((x,), *key)(x)
        assert x.tolist() == [1, factor + 1, 2 * factor + 1]
        assert {w.category for w in caught} <= {RuntimeWarning}
        (record,) = [r.getMessage() for r in caplog.records if r.levelname == "INFO"]
        return record.split()[0], len(caught)

    return once


def swap(one, other):
    content = one.read_bytes()
    one.write_bytes(other.read_bytes())
    other.write_bytes(content)


def files(folder, suffix):
    return sorted(folder.rglob(f"*{suffix}"))


def right_and_then_loaded(call, calls):
    """Each call gives the right numbers with a warning at most, and the next time it is loaded."""
    done = [call(*arguments, **options) for arguments, options in calls]
    assert {verb for verb, _ in done} <= {"compiled", "loaded"}
    assert [call(*arguments, **options) for arguments, options in calls] == [("loaded", 0)] * len(calls)
    return done


SAME_FACTORY = [((factor_kernel, 2), {"factor": 2}), ((factor_kernel, 3), {"factor": 3})]
SAME_KEY = [((double_kernel,), {"factor": 2}), ((treble_kernel,), {"factor": 3})]


@pytest.mark.parametrize("suffixes", [[".nbc"], [".nbi"], [".nbc", ".nbi"]], ids="+".join)
@pytest.mark.parametrize("calls", [SAME_FACTORY, SAME_KEY], ids=["other integers", "the same key"])
def test_files_of_two_kernels_that_changed_places(call, tmp_path, calls, suffixes):
    for arguments, options in calls:
        assert call(*arguments, **options) == ("compiled", 0)
    for suffix in suffixes:
        swap(*files(tmp_path, suffix))
    done = right_and_then_loaded(call, calls)
    if suffixes == [".nbc"]:
        assert done == [("compiled", 1)] * 2


def test_code_of_two_types_of_one_kernel_that_changed_places(call, tmp_path):
    calls = [((factor_kernel, 2), {"dtype": dtype}) for dtype in (np.float32, np.float64, np.int64)]
    for arguments, options in calls:
        assert call(*arguments, **options) == ("compiled", 0)
    found = files(tmp_path, ".nbc")
    assert len(found) == 3
    for one, other in itertools.combinations(found, 2):
        swap(one, other)
        assert call(*calls[found.index(one)][0], **calls[found.index(one)][1]) == ("compiled", 1)
        right_and_then_loaded(call, calls)


@pytest.mark.parametrize("what", ["sources", "Numba"])
def test_code_of_another_version_under_todays_index(call, tmp_path, monkeypatch, what):
    """As two versions leave it that share a cache and write at the same time."""
    with monkeypatch.context() as patch:
        if what == "Numba":
            patch.setattr(numba, "__version__", "0.0")
        else:
            patch.setattr(kernel_cache.InTree, "get_source_stamp", lambda self: "old", raising=False)
            patch.setattr(kernel_cache.Chosen, "get_source_stamp", lambda self: "old", raising=False)
        assert call(factor_kernel, 2) == ("compiled", 0)
    (data,) = files(tmp_path, ".nbc")
    old = data.read_bytes()
    assert call(factor_kernel, 2) == ("compiled", 0)
    assert files(tmp_path, ".nbc") == [data]
    data.write_bytes(old)
    assert call(factor_kernel, 2) == ("compiled", 1)
    assert call(factor_kernel, 2) == ("loaded", 0)


def test_code_of_other_sources_in_todays_place(call, tmp_path, monkeypatch):
    assert call(factor_kernel, 2) == ("compiled", 0)
    monkeypatch.setattr(compiled, "sources_digest", lambda: 4711)
    assert call(factor_kernel, 2) == ("compiled", 0)
    swap(*files(tmp_path, ".nbc"))
    assert call(factor_kernel, 2) == ("compiled", 1)
    assert call(factor_kernel, 2) == ("loaded", 0)


def test_code_for_another_processor_in_todays_place(call, tmp_path, monkeypatch):
    """The key has the processor, which no name of a file has."""
    real = kernel_cache.KernelCache._index_key
    with monkeypatch.context() as patch:
        patch.setattr(
            kernel_cache.KernelCache, "_index_key", lambda self, *given: (*real(self, *given), "another"), raising=False
        )
        assert call(factor_kernel, 2) == ("compiled", 0)
    assert call(factor_kernel, 2) == ("compiled", 0)
    swap(*files(tmp_path, ".nbc"))
    assert call(factor_kernel, 2) == ("compiled", 1)
    assert call(factor_kernel, 2) == ("loaded", 0)
