"""Where other programs keep the cores busy, kernels of several threads step back."""

from collections import deque

import numba
import pytest

from numbagn.calls import threads


@pytest.fixture
def clock(monkeypatch):
    """A clock that the kernel below moves, under OpenMP."""
    now = [100.0]
    monkeypatch.setattr(threads, "perf_counter", lambda: now[0])
    monkeypatch.setattr(threads, "_stalls", deque(maxlen=threads.STALLS))
    monkeypatch.setattr(threads, "_alone_until", 0.0)
    monkeypatch.setattr(numba, "threading_layer", lambda: "omp")
    return now


def test_stalls_make_calls_use_one_thread_for_a_while(clock):
    seen = []

    def kernel(seconds):
        seen.append(numba.get_num_threads())
        clock[0] += seconds

    before = numba.get_num_threads()
    assert before > 1
    run = threads.patient(kernel, 1000)
    for seconds in (0.0001, 0.008, 0.0001, 0.008, 0.0001, 0.008, 0.0001, 0.0001):
        run(seconds)
    assert seen == [before] * 6 + [1, 1]
    assert numba.get_num_threads() == before
    clock[0] += 0.15  # within the respite
    run(0.0001)
    clock[0] += 0.02  # after it, but the cores are still busy: one stall is enough now
    run(0.008)
    run(0.0001)
    assert seen[8:] == [1, before, 1]
    clock[0] += 2.0
    run(0.008)  # long ago
    run(0.0001)
    assert seen[11:] == [before, before]


def test_long_calls_are_no_stalls(clock):
    seen = []

    def kernel():
        seen.append(numba.get_num_threads())
        clock[0] += 0.1

    run = threads.patient(kernel, 64 << 20)
    for _ in range(6):
        run()
    assert len(set(seen)) == 1


def test_the_mask_is_put_back_where_a_kernel_raises(clock, monkeypatch):
    def kernel():
        raise KeyboardInterrupt

    monkeypatch.setattr(threads, "_alone_until", 200.0)
    before = numba.get_num_threads()
    with pytest.raises(KeyboardInterrupt):
        threads.patient(kernel, 1)()
    assert numba.get_num_threads() == before


def test_other_layers_do_not_spin(clock, monkeypatch):
    monkeypatch.setattr(numba, "threading_layer", lambda: "tbb")
    assert threads.patient(print, 1) is print
