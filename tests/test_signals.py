"""Ctrl-C, the interpreter's lock and its end, each in a process of its own with a time limit."""

import os

import pytest
import test_threads
from command_line import shell
from test_threads import LAYERS

pytestmark = pytest.mark.skipif(os.name != "posix", reason="signals of POSIX")

BEGIN = """
import os, signal, sys, threading, time
import numpy as np, numbagn
from numbagn import reference
signal.alarm(100)
x = np.random.default_rng(0).standard_normal((2, 8, 30)).astype(np.float32)

def right(activation="silu"):
    want = reference.group_norm(x, 2, activation=activation)[0]
    return bool(abs(numbagn.group_norm(x, 2, activation=activation) - want).max() < 4e-6)

def interrupt():
    os.kill(os.getpid(), signal.SIGINT)
"""
# An array that kernels need some time for, and in which what is not written can be seen.
LARGE = """
big = np.random.default_rng(0).standard_normal((4, 8, 1 << 20))  # 256 MiB
out = np.full_like(big, np.nan)
options = {"activation": "gelu", "out": out}
started = time.perf_counter()
want = numbagn.group_norm(big, 2, activation="gelu")
started = time.perf_counter()
numbagn.group_norm(big, 2, **options)
usual = time.perf_counter() - started
"""
BEAT = """
beats, stop = [], threading.Event()
def beat():
    while not stop.wait(usual / 40):
        beats.append(time.perf_counter())
"""


def run(code, layer="omp", **variables):
    return test_threads.run(code, layer, BEGIN, **variables)


def test_ctrl_c_while_compiling():
    """At definite moments, in this order: what was compiled before an interruption is not compiled again."""
    code = """
from numba.core import event
from numba.core.compiler_lock import global_compiler_lock

class At(event.Listener):
    def __init__(self, count):
        self.left = count
    def on_start(self, event):
        self.left -= 1
        if self.left == 0:
            interrupt()
    def on_end(self, event):
        pass

def free():
    global_compiler_lock.acquire()
    global_compiler_lock.release()

for kind, count in (("compile", 1), ("run_pass", 2), ("llvm_lock", 1), ("compile", 4), ("run_pass", 150),
                    ("compiler_lock", 200)):
    try:
        with event.install_listener("numba:" + kind, At(count)):
            numbagn.group_norm(x, 2, activation="silu")
    except KeyboardInterrupt:
        pass
    else:
        print(kind, count, "was not interrupted")
    other = threading.Thread(target=free)
    other.start()
    other.join(20)
    if other.is_alive():
        print(kind, count, "left the compiler locked")
print(right(), right())
"""
    assert run(code, NUMBAGN_CACHE="0") == ["True", "True"]


def test_ctrl_c_while_the_cache_is_written(tmp_path):
    code = """
import warnings
warnings.simplefilter("error")
replace, left = os.replace, [2, 1]
def interrupted(*args):
    if left and left[0] == len(left):
        left.pop(0)
        interrupt()
    return replace(*args)
os.replace = interrupted
if sys.argv[1] == "interrupted":
    for _ in range(2):
        try:
            numbagn.group_norm(x, 2, activation="silu")
        except KeyboardInterrupt:
            print("interrupted")
from numba.core.event import install_recorder
with install_recorder("numba:compile") as compilations:
    print(right(), len(compilations.buffer) > 0)
"""
    shells = [shell(mode, code=BEGIN + code, NUMBA_CACHE_DIR=str(tmp_path)) for mode in ("interrupted", "later")]
    assert [(done.returncode, done.stderr) for done in shells] == [(0, "")] * 2
    assert shells[0].stdout.split()[-2:] == ["True", "True"]
    assert shells[0].stdout.count("interrupted") == 2
    assert shells[1].stdout.split() == ["True", "False"]


@pytest.mark.parametrize("moment", ["numba.core.typing.context", "numba.core.dispatcher", "refresh"])
def test_ctrl_c_while_numba_is_loaded_comes_after_it(moment):
    """Numba's import does not bear it, nor its first look at what functions there are."""
    code = f"""
import builtins
moment, came = {moment!r}, []
class Finder:
    def find_spec(self, name, path=None, target=None):
        if name == moment:
            came.append(name)
            interrupt()
        if name == "numba.core.codegen" and moment == "refresh":
            sys.setprofile(watch)
def watch(frame, event, argument):
    if event == "call" and frame.f_code.co_name == "insert_function":
        came.append(frame.f_code.co_name)
        if len(came) == 3:
            sys.setprofile(None)
            interrupt()
sys.meta_path.insert(0, Finder())
try:
    numbagn.group_norm(x, 2)
except KeyboardInterrupt:
    print("interrupted")
print(len(came) in (1, 3), right(None), signal.getsignal(signal.SIGINT) is signal.default_int_handler)
"""
    assert run(code, NUMBAGN_CACHE="0") == ["interrupted", "True", "True", "True"]


@pytest.mark.parametrize("handler", ["SIG_IGN", "SIG_DFL", "own", "none"])
def test_the_handler_of_ctrl_c_is_the_users(handler):
    code = f"""
handler, came = {handler!r}, []
def own(number, frame):
    came.append(number)
wanted = own if handler == "own" else getattr(signal, handler, signal.default_int_handler)
signal.signal(signal.SIGINT, wanted)
class Finder:
    def find_spec(self, name, path=None, target=None):
        if name == "numba.core.dispatcher" and handler in ("own", "SIG_IGN"):
            interrupt()
sys.meta_path.insert(0, Finder())
print(right(), signal.getsignal(signal.SIGINT) == wanted, len(came))
"""
    assert run(code) == ["True", "True", "1" if handler == "own" else "0"]


def test_a_first_call_in_another_thread_touches_no_handler():
    code = """
results = []
other = threading.Thread(target=lambda: results.append(right()))
signal.signal = None
other.start()
other.join()
print(results)
"""
    assert run(code) == ["[True]"]


@pytest.mark.parametrize("layer", LAYERS)
def test_ctrl_c_in_a_kernel_comes_after_it(layer):
    code = (
        LARGE
        + """
for attempt in range(5):
    out[:] = np.nan
    sent = []
    def later():
        time.sleep(usual / 3)
        sent.append(time.perf_counter())
        interrupt()
    threading.Thread(target=later).start()
    try:
        numbagn.group_norm(big, 2, **options)
        ended = time.perf_counter()
        time.sleep(60)
    except KeyboardInterrupt:
        during = "ended" not in globals()
        whole = out.tobytes() == want.tobytes()
        if during:
            break
        del ended
print(during, whole, right())
"""
    )
    assert run(code, layer) == ["True", "True", "True"]


@pytest.mark.parametrize("threads", [1, 4])
@pytest.mark.parametrize("layer", LAYERS)
def test_other_python_threads_run_during_kernels(layer, threads):
    code = (
        LARGE
        + BEAT
        + """
other = threading.Thread(target=beat)
other.start()
started = time.perf_counter()
numbagn.group_norm(big, 2, **options)
ended = time.perf_counter()
stop.set()
other.join()
inside = [b for b in beats if started + usual / 10 < b < ended - usual / 10]
print(len(inside) >= 3 or (len(inside), usual))
"""
    )
    assert run(code, layer, NUMBA_NUM_THREADS=str(threads)) == ["True"]


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("shape", [(2, 8, 40), (4, 8, 1 << 16)])
def test_the_interpreter_ends_while_daemon_threads_run_kernels(layer, shape):
    code = f"""
work = np.ones({shape}, np.float32)
_, mean, rstd = numbagn.group_norm_forward(work, 2)
numbagn.group_norm_backward(work, work, mean, rstd, 2)
begun = []
def forever():
    while True:
        numbagn.group_norm(work, 2)
        numbagn.group_norm_backward(work, work, mean, rstd, 2)
        begun.append(1)
threads = [threading.Thread(target=forever, daemon=True) for _ in range(4)]
for t in threads: t.start()
while len(begun) < 8: time.sleep(0.01)
print("end")
"""
    assert run(code, layer) == ["end"]


def test_one_out_for_several_threads_is_the_callers_business_but_harms_nobody():
    """What it holds afterwards is of the one or the other; inputs and the process are as they were."""
    code = """
first = np.random.default_rng(1).standard_normal((4, 8, 1 << 15)).astype(np.float32)
second = first[::-1].copy()
wants = [numbagn.group_norm(a, 2) for a in (first, second)]
before = first.tobytes(), second.tobytes()
out = np.empty_like(first)
def work(a):
    for _ in range(60):
        numbagn.group_norm(a, 2, out=out)
threads = [threading.Thread(target=work, args=(a,)) for a in (first, second)]
for t in threads: t.start()
for t in threads: t.join()
print(bool(((out == wants[0]) | (out == wants[1])).all()), (first.tobytes(), second.tobytes()) == before, right())
"""
    assert run(code) == ["True", "True", "True"]
