"""Threads and forks, each in a process of its own with a time limit: right bits, no abort, no hang."""

import math
import multiprocessing
import os
import sys
from pathlib import Path

import pytest
from command_line import shell

from numbagn.calls import threads

BEGIN = """
import os, signal, sys, threading
import numpy as np, numba, numbagn
signal.alarm(100)
x = np.random.default_rng(0).standard_normal((8, 16, 48, 50)).astype(np.float32)
want = np.concatenate([numbagn.group_norm(x[i : i + 1], 4) for i in range(8)])  # too small for several threads

def right():
    return numbagn.group_norm(x, 4).tobytes() == want.tobytes()

def in_child(check=right):
    pid = os.fork()
    if pid == 0:
        os._exit(0 if check() else 1)
    return os.waitpid(pid, 0)[1]

@numba.njit(parallel=True, cache=False)
def foreign(a):
    for i in numba.prange(a.size):
        a[i] += 1
"""
# where pip puts it, which is not where the system looks for it
TBB = Path(sys.prefix) / "lib" / "libtbb.so.12"
LAYERS = [
    "omp",
    "workqueue",
    pytest.param("tbb", marks=pytest.mark.skipif(not TBB.exists(), reason="tbb is not installed by pip")),
]
forks = pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")


def run(code, layer="omp", begin=BEGIN, **variables):
    if layer == "tbb":
        variables["LD_LIBRARY_PATH"] = str(TBB.parent)
    done = shell(code=begin + code, **{"NUMBA_THREADING_LAYER": layer, "NUMBA_NUM_THREADS": "4"} | variables)
    # ended processes of a pool leave Numba's semaphore to the tracker, which says so, as Numba does of forks under TBB
    usual = ("resource_tracker", "warnings.warn", "Attempted to fork from a non-main thread")
    said = [line for line in done.stderr.splitlines() if not any(words in line for words in usual)]
    assert (done.returncode, said) == (0, []), (done.returncode, done.stderr)
    return done.stdout.split()


@pytest.mark.parametrize("layer", LAYERS)
def test_many_python_threads_at_once_and_a_foreign_kernel(layer):
    code = """
assert right()
ok = []
def work():
    ok.append(all(right() for _ in range(40)))
def other():
    a = np.zeros(1000)
    for _ in range(300):
        foreign(a)
    ok.append((a == 300).all())
threads = [threading.Thread(target=work) for _ in range(8)] + [threading.Thread(target=other)]
for t in threads: t.start()
for t in threads: t.join()
print(len(ok), all(ok), numba.threading_layer())
"""
    assert run(code, layer) == ["9", "True", layer]


@pytest.mark.parametrize("cache", ["0", "1"])
@pytest.mark.parametrize("layer", LAYERS)
def test_many_python_threads_race_on_the_first_call(layer, cache):
    """On the import of Numba, the start of its threads and the kernels, compiled or loaded."""
    begin = """
import signal, threading
import numpy as np, numbagn
signal.alarm(100)
"""
    code = """
x = np.random.default_rng(0).standard_normal((8, 16, 48, 50)).astype(np.float32)
barrier, results = threading.Barrier(8), []
def work(i):
    barrier.wait()
    results.append((i, numbagn.group_norm(x if i % 2 else x[i : i + 1], 4)))
threads = [threading.Thread(target=work, args=(i,)) for i in range(8)]
for t in threads: t.start()
for t in threads: t.join()
want = np.concatenate([numbagn.group_norm(x[i : i + 1], 4) for i in range(8)])
print(len(results), all((y == (want if i % 2 else want[i])).all() for i, y in results))
"""
    assert run(code, layer, begin, NUMBAGN_CACHE=cache) == ["8", "True"]


@pytest.mark.parametrize("layer", LAYERS)
def test_an_executor_of_asyncio(layer):
    code = """
import asyncio
async def main():
    loop = asyncio.get_running_loop()
    return await asyncio.gather(*(loop.run_in_executor(None, right) for _ in range(60)))
print(all(asyncio.run(main())))
"""
    assert run(code, layer) == ["True"]


@forks
@pytest.mark.parametrize("layer", LAYERS)
def test_fork_after_use(layer):
    code = """
assert right()
statuses = [in_child() for _ in range(3)]
def from_thread():
    statuses.append(in_child())
t = threading.Thread(target=from_thread); t.start(); t.join()
statuses.append(in_child(lambda: right() and in_child() == 0))
print(statuses, right())
"""
    assert run(code, layer) == ["[0,", "0,", "0,", "0,", "0]", "True"]


@forks
def test_fork_between_calls_of_a_padded_batch():
    """What the parent remembers of such calls names its threads, which the child has not."""
    code = """
def padded():
    _, mean, rstd = numbagn.group_norm_forward(x, 4, lengths=lengths)
    y = numbagn.group_norm(x, 4, lengths=lengths)
    return y.tobytes() + numbagn.group_norm_backward(x, x, mean, rstd, 4, lengths=lengths)[0].tobytes()
lengths = np.arange(len(x)) * 3 + 27
first = padded()
def same():
    return padded() == first and padded() == first
print(same(), in_child(same), in_child(lambda: same() and in_child(same) == 0), same(), numba.threading_layer())
"""
    assert run(code) == ["True", "0", "0", "True", "omp"]


@forks
@pytest.mark.parametrize("layer", LAYERS)
def test_fork_before_use(layer):
    assert run("print(in_child(), right(), in_child())", layer) == ["0", "True", "0"]


@forks
def test_fork_after_a_foreign_kernel_alone_started_the_threads():
    assert run("foreign(np.zeros(8)); print(in_child(), right())") == ["0", "True"]


@forks
@pytest.mark.parametrize("method", ["fork", "forkserver", "spawn"])
def test_multiprocessing(method):
    code = f"""
import multiprocessing
assert right()
with multiprocessing.get_context({method!r}).Pool(2) as pool:
    got = [pool.apply_async(numbagn.group_norm, (x, 4)) for _ in range(4)]
    print(all(g.get(80).tobytes() == want.tobytes() for g in got))
"""
    assert run(code) == ["True"]


@forks
def test_fork_while_another_thread_compiles():
    code = """
import time
assert right()
begun = threading.Event()
def compiles():
    begun.set()
    numbagn.group_norm(x.astype(np.float64), 4, activation="gelu_tanh")
t = threading.Thread(target=compiles); t.start()
begun.wait(); time.sleep(0.5)
print(in_child(lambda: right() and numbagn.group_norm(x[:1].astype(np.float16), 4) is not None))
t.join()
"""
    assert run(code, NUMBAGN_CACHE="0") == ["0"]


def test_the_start_method_is_still_the_users_to_choose():
    code = """
import multiprocessing
assert right()
multiprocessing.set_start_method("spawn")
print(multiprocessing.get_start_method())
"""
    assert run(code) == ["spawn"]


@pytest.mark.parametrize("moment", ["before", "after"])
def test_a_start_method_chosen_while_numba_starts_its_threads_is_kept(moment):
    """Before or after, as another thread comes to it."""
    code = f"""
import multiprocessing
from numbagn.calls import threads
start = numba.get_num_threads
def chosen(moment):
    if moment == {moment!r}:
        chooser = threading.Thread(target=multiprocessing.set_start_method, args=("spawn",))
        chooser.start()
        chooser.join()
def slowly():
    chosen("before")
    threads = start()
    chosen("after")
    return threads
numba.get_num_threads = slowly
threads.limit()
numba.get_num_threads = start
print(multiprocessing.get_start_method(allow_none=True), right())
"""
    assert run(code) == ["spawn", "True"]


@pytest.mark.parametrize("method", [None, *multiprocessing.get_all_start_methods()])
def test_the_start_of_the_threads_leaves_the_start_method_as_it_was(method):
    code = f"""
import multiprocessing
if {method!r}:
    multiprocessing.set_start_method({method!r})
assert right()
print(multiprocessing.get_start_method(allow_none=True), numba.threading_layer())
"""
    assert run(code) == [str(method), "omp"]


def test_threads_start_where_the_system_has_no_semaphores():
    """As in a container without /dev/shm."""
    code = """
import multiprocessing.synchronize
def refuse(*args, **kwargs):
    raise FileNotFoundError(2, "No such file or directory")
multiprocessing.synchronize.RLock = refuse
print(right(), multiprocessing.get_start_method(allow_none=True), numba.threading_layer())
"""
    assert run(code) == ["True", "None", "omp"]


def test_a_small_call_starts_no_threads():
    code = """
print("numba.np.ufunc.omppool" in sys.modules)
"""
    assert run(code) == ["False"]


@pytest.mark.parametrize(("text", "allowance"), [("max 100000", math.inf), ("150000 100000", 1.5), ("", math.inf)])
def test_what_a_container_may_use(monkeypatch, text, allowance):
    def read(path, encoding):
        if path.name == "cpu.max" and text:
            return text
        raise FileNotFoundError(path)

    monkeypatch.setattr(threads.Path, "read_text", read)
    assert threads._allowance() == allowance


def test_one_thread_where_a_container_may_use_less_than_it_sees(monkeypatch):
    monkeypatch.setattr(threads, "_allowance", lambda: 1.5)
    threads.limit.cache_clear()
    import numba

    try:
        expected = 1 if numba.threading_layer() in ("omp", "workqueue") else numba.config.NUMBA_NUM_THREADS
        assert threads.limit() == expected
    except ValueError:  # no layer loaded yet
        assert threads.limit() in (1, numba.config.NUMBA_NUM_THREADS)
    finally:
        threads.limit.cache_clear()
