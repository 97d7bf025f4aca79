"""The memory of large results: used again once nobody holds them, never before, and bounded."""

import gc
import threading

import numpy as np
import pytest
from cases import in_layout, normal, same_bits

import numbagn
from numbagn import _calls, _recycling

SHAPE = (2, 8, 16, 16)
LIMIT = 4 * (2 * 8 * 16 * 16 * 4 + 64)


@pytest.fixture(autouse=True)
def small_results_count_as_large(monkeypatch, one_thread):
    monkeypatch.setattr(_recycling, "LEAST_BYTES", 1024)
    monkeypatch.setattr(_calls, "LEAST_BYTES", 1024)
    monkeypatch.setattr(_recycling, "_buffers", [])
    monkeypatch.setattr(_recycling, "MOST_BYTES", LIMIT)


def address(array):
    return array.__array_interface__["data"][0]


@pytest.mark.parametrize("layout", ["channels_first", "channels_last"])
def test_memory_is_used_again_once_nobody_holds_the_result(rng, layout):
    x = in_layout(normal(rng, SHAPE, np.float32), layout)
    want = numbagn.group_norm(x, 4, out=np.empty_like(x))
    gc.collect()
    first = numbagn.group_norm(x, 4)
    second = numbagn.group_norm(x, 4)
    assert same_bits(first, want)
    assert first.strides == np.empty_like(x).strides
    assert address(first) % 64 == 0
    assert not np.may_share_memory(first, second)
    place = address(first)
    del first
    third = numbagn.group_norm(x + 1, 4)
    assert address(third) == place
    assert same_bits(second, want)


def test_gradients_too(rng):
    x, dy = normal(rng, SHAPE, np.float32), normal(rng, SHAPE, np.float32)
    y, mean, rstd = numbagn.group_norm_forward(x, 4)
    numbagn.group_norm_backward(dy, x, mean, rstd, 4)
    gc.collect()  # where Numba has compiled, its garbage refers to the call that made it do so
    places = set()
    for _ in range(4):
        dx = numbagn.group_norm_backward(dy, x, mean, rstd, 4)[0]
        assert not np.may_share_memory(dx, y)
        places.add(address(dx))
        del dx
    assert len(places) == 1


@pytest.mark.parametrize(
    "hold",
    [
        lambda y: y[1:, :2],
        lambda y: y.reshape(-1)[5:6],
        lambda y: y.T.view(np.int32),
        memoryview,
        lambda y: np.frombuffer(y, np.uint8),
        lambda y: iter(y),
        lambda y: np.from_dlpack(y),
    ],
    ids=["slice", "element", "other dtype", "memoryview", "frombuffer", "iterator", "dlpack"],
)
def test_whatever_refers_to_a_result_holds_its_memory(rng, hold):
    x = normal(rng, SHAPE, np.float32)
    y = numbagn.group_norm(x, 4)
    place, held = address(y), hold(y)
    del y
    assert all(address(numbagn.group_norm(x, 4)) != place for _ in range(6))
    del held
    assert place in {address(numbagn.group_norm(x, 4)) for _ in range(2)} or len(_recycling._buffers) == 1


def test_at_most_so_many_bytes_are_kept(rng):
    x = normal(rng, SHAPE, np.float32)
    results = [numbagn.group_norm(x, 4) for _ in range(12)]  # all in use: the oldest become ordinary memory
    assert sum(buffer.size for buffer in _recycling._buffers) <= LIMIT + 128
    assert len({address(y) for y in results}) == 12
    assert all(same_bits(y, results[0]) for y in results)
    del results
    smaller = normal(rng, (1, 8, 16, 16), np.float32)
    kept = [numbagn.group_norm(smaller, 4) for _ in range(12)]
    assert sum(buffer.size for buffer in _recycling._buffers) <= LIMIT + 128
    assert len({address(y) for y in kept}) == 12


def test_a_pause_between_buffers_of_many_sizes(rng):
    for channels in range(4, 100, 4):
        numbagn.group_norm(normal(rng, (1, channels, 16, 16), np.float32), 4)
        assert len(_recycling._buffers) <= _recycling.MOST_BUFFERS


@pytest.mark.parametrize(("text", "limit"), [("0", 0), ("8000", 8000), ("", 256 << 20), ("much", 256 << 20)])
def test_the_environment_says_how_much(monkeypatch, text, limit):
    monkeypatch.setenv("NUMBAGN_RECYCLE_BYTES", text)
    assert _recycling._most_bytes() == limit


@pytest.mark.parametrize("limit", [0, 8000])
def test_off_or_too_small_a_limit(rng, monkeypatch, limit):
    monkeypatch.setattr(_recycling, "MOST_BYTES", limit)
    y = numbagn.group_norm(normal(rng, SHAPE, np.float32), 4)
    assert y.base is None
    assert not _recycling._buffers


def test_results_of_threads_never_share_memory(rng):
    inputs = [normal(rng, SHAPE, np.float32, offset=i) for i in range(8)]
    wanted = [numbagn.group_norm(x, 4, out=np.empty_like(x)) for x in inputs]
    wrong = []

    def work(x, want):
        for _ in range(200):
            y = numbagn.group_norm(x, 4)
            z = numbagn.group_norm(x, 4)
            if not (same_bits(y, want) and same_bits(z, want)):
                wrong.append(1)

    threads = [threading.Thread(target=work, args=pair) for pair in zip(inputs, wanted, strict=True)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_a_call_that_comes_in_between_does_not_wait(rng):
    x = normal(rng, SHAPE, np.float32)
    want = numbagn.group_norm(x, 4)
    with _recycling._lock:  # as a signal handler finds it that interrupts the search for a buffer
        y = numbagn.group_norm(x, 4)
    assert same_bits(y, want)
    assert not any(np.may_share_memory(y, buffer) for buffer in _recycling._buffers)
