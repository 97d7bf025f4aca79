"""The memory of large results: used again once nobody holds them, never before, and bounded."""

import gc
import os
import pickle
import signal
import subprocess
import sys
import threading

import numpy as np
import pytest
from cases import in_layout, normal, same_bits

import numbagn
from numbagn.arrays import recycling
from numbagn.calls import running

SHAPE = (2, 8, 16, 16)
LIMIT = 4 * (2 * 8 * 16 * 16 * 4 + 64)


@pytest.fixture(autouse=True)
def small_results_count_as_large(monkeypatch, one_thread):
    monkeypatch.setattr(recycling, "LEAST_BYTES", 1024)
    monkeypatch.setattr(running, "LEAST_BYTES", 1024)
    monkeypatch.setattr(recycling, "_buffers", [])
    monkeypatch.setattr(recycling, "MOST_BYTES", LIMIT)


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
        lambda y: y.__dlpack__(),
        lambda y: pickle.PickleBuffer(y),
        lambda y: pickle.loads(pickle.dumps(y, 5, buffer_callback=(parts := []).append), buffers=parts),
        lambda y: np.lib.stride_tricks.as_strided(y, (3,), (8,)),
        lambda y: y.view(np.recarray).view(np.ndarray),
        lambda y: y.base,
        lambda y: y.base[7:9],
        lambda y: np.ndarray((4,), np.float32, y, 64),
        lambda y: y.ctypes,
        lambda y: np.broadcast_to(y[0], y.shape),
        lambda y: y.flat,
    ],
    ids=[
        "slice", "element", "other dtype", "memoryview", "frombuffer", "iterator", "dlpack", "capsule", "pickle buffer",
        "unpickled", "as_strided", "subclass", "base", "slice of base", "array over it", "ctypes", "broadcast", "flat",
    ],
)  # fmt: skip
def test_whatever_refers_to_a_result_holds_its_memory(rng, hold):
    x = normal(rng, SHAPE, np.float32)
    y = numbagn.group_norm(x, 4)
    place, held = address(y), hold(y)
    del y
    assert all(address(numbagn.group_norm(x, 4)) != place for _ in range(6))
    del held
    assert place in {address(numbagn.group_norm(x, 4)) for _ in range(2)} or len(recycling._buffers) == 1


def test_a_tensor_over_a_result_holds_its_memory(rng):
    torch = pytest.importorskip("torch")
    x = normal(rng, SHAPE, np.float32)
    y = numbagn.group_norm(x, 4)
    place, held = address(y), torch.from_numpy(y)[1:]
    del y
    assert all(address(numbagn.group_norm(x, 4)) != place for _ in range(6))
    assert held.data_ptr() > place


def test_an_interpreter_that_counts_fewer_references_changes_nothing(rng, monkeypatch):
    x = normal(rng, SHAPE, np.float32)
    first = numbagn.group_norm(x, 4)
    want, count = first.copy(), sys.getrefcount
    for fewer in range(1, 4):
        monkeypatch.setattr(sys, "getrefcount", lambda held, fewer=fewer: count(held) - fewer)
        second = numbagn.group_norm(x + 1, 4)
        assert not np.may_share_memory(first, second)
    assert same_bits(first, want)


def test_a_result_in_a_cycle_holds_its_memory_until_the_cycle_is_gone(rng):
    """The finalizer of something in the cycle still reads it, and may bring it back."""
    x = normal(rng, SHAPE, np.float32)
    want, saved = numbagn.group_norm(x, 4).copy(), []

    class Node:
        def __del__(self):
            other = numbagn.group_norm(x + 1, 4)
            saved.append((self.y, np.may_share_memory(self.y, other)))

    node = Node()
    node.me, node.y = node, numbagn.group_norm(x, 4)
    assert not gc.is_tracked(node.y.base)  # or leases could be garbage before what uses them is
    del node
    gc.collect()
    ((y, shared),) = saved
    assert not shared
    assert all(not np.may_share_memory(y, numbagn.group_norm(x + 1, 4)) for _ in range(6))
    assert same_bits(y, want)


def test_a_result_cannot_be_resized_nor_its_copies_hold_it(rng):
    x = normal(rng, SHAPE, np.float32)
    y = numbagn.group_norm(x, 4)
    with pytest.raises(ValueError, match="own"):
        y.resize(3)
    place, copies = address(y), (pickle.loads(pickle.dumps(y)), y.copy(), y[0, 0, 0, 0])
    assert same_bits(copies[0], y)
    del y
    gc.collect()
    assert address(numbagn.group_norm(x, 4)) == place


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="no signals here")
def test_finalizers_and_signal_handlers_at_any_time(rng):
    """Calls from handlers and finalizers come in between those of the main thread, anywhere."""
    x = normal(rng, SHAPE, np.float32)
    want = numbagn.group_norm(x, 4).copy()
    wrong, held = [], []

    class Node:
        def __init__(self):
            self.me, self.y = self, numbagn.group_norm(x, 4)

        def __del__(self):
            wrong.extend(0 for y in (self.y, numbagn.group_norm(x, 4)) if not same_bits(y, want))

    def handler(*_):
        held.append(numbagn.group_norm(x, 4))
        del held[:-2]
        Node()

    thresholds, before = gc.get_threshold(), signal.signal(signal.SIGALRM, handler)
    gc.set_threshold(20)
    signal.setitimer(signal.ITIMER_REAL, 1e-3, 1e-3)
    try:
        for _ in range(1000):
            y, z = numbagn.group_norm(x, 4), numbagn.group_norm(x, 4)
            wrong.extend(1 for result in (y, z, *held) if not same_bits(result, want))
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        gc.set_threshold(*thresholds)
    assert not wrong


@pytest.mark.skipif(not hasattr(os, "fork"), reason="processes are not forked here")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of forks beside threads
def test_a_forked_process_uses_no_memory_that_its_results_have(rng):
    x = normal(rng, SHAPE, np.float32)
    y = numbagn.group_norm(x, 4)
    want = y.copy()
    child = os.fork()
    if child == 0:
        fine = False
        try:
            z = numbagn.group_norm(x + 1, 4)
            fine = not np.may_share_memory(y, z) and same_bits(y, want)
        finally:
            os._exit(0 if fine else 1)
    assert os.waitpid(child, 0)[1] == 0
    assert same_bits(y, want)


def test_results_that_live_until_the_interpreter_ends():
    code = (
        "import numpy as np, numbagn; from numbagn.arrays import recycling; from numbagn.calls import running\n"
        "recycling.LEAST_BYTES = running.LEAST_BYTES = 64\n"
        "x = np.ones((1, 4, 8, 8), np.float32)\n"
        "class Node:\n"
        "    def __init__(self): self.me, self.y = self, numbagn.group_norm(x, 2)\n"
        "    def __del__(self): self.y[0]\n"
        "kept = [Node(), Node(), numbagn.group_norm(x, 2)]; kept.append(kept)"
    )
    done = subprocess.run([sys.executable, "-X", "dev", "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0
    assert not done.stderr


def test_at_most_so_many_bytes_are_kept(rng):
    x = normal(rng, SHAPE, np.float32)
    results = [numbagn.group_norm(x, 4) for _ in range(12)]  # all in use: the oldest become ordinary memory
    assert sum(buffer.size for buffer in recycling._buffers) <= LIMIT + 128
    assert len({address(y) for y in results}) == 12
    assert all(same_bits(y, results[0]) for y in results)
    del results
    smaller = normal(rng, (1, 8, 16, 16), np.float32)
    kept = [numbagn.group_norm(smaller, 4) for _ in range(12)]
    assert sum(buffer.size for buffer in recycling._buffers) <= LIMIT + 128
    assert len({address(y) for y in kept}) == 12


def test_a_pause_between_buffers_of_many_sizes(rng):
    for channels in range(4, 100, 4):
        numbagn.group_norm(normal(rng, (1, channels, 16, 16), np.float32), 4)
        assert len(recycling._buffers) <= recycling.MOST_BUFFERS


@pytest.mark.parametrize(("text", "limit"), [("0", 0), ("8000", 8000), ("", 256 << 20), ("much", 256 << 20)])
def test_the_environment_says_how_much(monkeypatch, text, limit):
    monkeypatch.setenv("NUMBAGN_RECYCLE_BYTES", text)
    assert recycling._most_bytes() == limit


@pytest.mark.parametrize("limit", [0, 8000])
def test_off_or_too_small_a_limit(rng, monkeypatch, limit):
    monkeypatch.setattr(recycling, "MOST_BYTES", limit)
    y = numbagn.group_norm(normal(rng, SHAPE, np.float32), 4)
    assert y.base is None
    assert not recycling._buffers


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
    with recycling._lock:  # as a signal handler finds it that interrupts the search for a buffer
        y = numbagn.group_norm(x, 4)
    assert same_bits(y, want)
    assert not any(np.may_share_memory(y, buffer) for buffer in recycling._buffers)
