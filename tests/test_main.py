"""The command line: `python -m numbagn`, and what it reads and writes."""

import contextlib
import errno
import io
import os
import pickle
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import numbagn
import numbagn.reference
from numbagn import _files, _selfcheck, _weights
from numbagn.__main__ import main

ROOT = Path(numbagn.__file__).parents[1]


def command(*args, code=None):
    """Give the subprocess arguments of `python -m numbagn ...`, or of a program in `code`, wherever pytest started."""
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    start = ["-m", "numbagn"] if code is None else ["-c", code]
    argv = [sys.executable, *start, *map(str, args)]
    return {"args": argv, "env": os.environ | {"PYTHONPATH": path}, "text": True}


def shell(*args, code=None, timeout=120):
    return subprocess.run(**command(*args, code=code), capture_output=True, timeout=timeout, check=False)


def normalize(*args):
    return main(["normalize", *map(str, args)])


def reference(x, num_groups, weight=None, bias=None, eps=1e-5, **options):
    return numbagn.reference.group_norm(x, num_groups, weight, bias, eps, **options)[0]


def error_line(err):
    """Check that stderr is the one line it should be, and give it."""
    assert err.startswith("numbagn: error: "), err
    assert err.count("\n") == 1, err
    assert err.endswith("\n"), err
    return err.removeprefix("numbagn: error: ").rstrip("\n")


def leftovers(folder):
    return sorted(path.name for path in folder.iterdir() if path.name.endswith(".tmp"))


@pytest.fixture
def x(tmp_path):
    """Samples of four kinds of scale in `in.npy`, beside an old `out.npy`."""
    x = np.random.default_rng(0).normal(3, 2, (5, 6, 4, 3)).astype(np.float32)
    np.save(tmp_path / "in.npy", x)
    (tmp_path / "out.npy").write_bytes(b"an old file")
    return x


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


def test_self_check_finds_wrong_numbers(monkeypatch, capsys):
    right = numbagn.group_norm

    def wrong(x, *args, **options):
        y = right(x, *args, **options)
        y[-1] += y.dtype.type(len(x) / 64)
        return y

    monkeypatch.setattr(numbagn, "group_norm", wrong)
    monkeypatch.setattr(_selfcheck, "SPEED_ROUNDS", 1)
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


# Real data


def test_photograph(tmp_path):
    datasets = pytest.importorskip("sklearn.datasets")
    pytest.importorskip("PIL")
    photo = datasets.load_sample_image("china.jpg")
    assert photo.dtype == np.uint8
    np.save(tmp_path / "china.npy", photo)

    options = ("--num-groups", 3, "--channel-axis", -1, "--add-batch-axis", "--dtype", "float32")
    done = shell("normalize", tmp_path / "china.npy", tmp_path / "out.npy", *options)

    assert (done.returncode, done.stderr) == (0, "")
    y = np.load(tmp_path / "out.npy")
    assert (y.shape, y.dtype) == (photo.shape, np.float32)
    np.testing.assert_allclose(y, reference(photo[None], 3, channel_axis=-1)[0], rtol=0, atol=5e-6)
    np.testing.assert_allclose(y.mean((0, 1), dtype=np.float64), 0, atol=1e-5)
    np.testing.assert_allclose(y.std((0, 1), dtype=np.float64), 1, atol=1e-5)
    line = re.escape(f"wrote {tmp_path / 'out.npy'}: (427, 640, 3) float32, 3 groups, ")
    assert re.fullmatch(line + r"\d+\.\d\d s, \d+\.\d\d GB/s", done.stdout.splitlines()[-1])


def test_photographs_channels_last_with_activation(tmp_path):
    datasets = pytest.importorskip("sklearn.datasets")
    pytest.importorskip("PIL")
    photos = np.stack(datasets.load_sample_images().images)
    np.save(tmp_path / "in.npy", photos)
    options = ("--num-groups", 1, "--channel-axis", -1, "--activation", "silu", "--eps", 1e-3)
    assert normalize(tmp_path / "in.npy", tmp_path / "out.npy", *options) == 0
    y = np.load(tmp_path / "out.npy")
    assert (y.shape, y.dtype) == ((2, 427, 640, 3), np.float32)
    expected = reference(photos, 1, eps=1e-3, channel_axis=-1, activation="silu")
    np.testing.assert_allclose(y, expected, rtol=0, atol=5e-6)


@pytest.mark.parametrize(("dtype", "atol"), [(None, 1e-12), ("float32", 2e-6), ("float16", 2e-3)])
def test_digits_as_a_volume(tmp_path, dtype, atol):
    digits = pytest.importorskip("sklearn.datasets").load_digits().images
    volume = digits[:1792].reshape(2, 16, 56, 8, 8)  # (N, C, D, H, W)
    np.save(tmp_path / "in.npy", volume)
    options = () if dtype is None else ("--dtype", dtype)
    assert normalize(tmp_path / "in.npy", tmp_path / "out.npy", "--num-groups", 4, *options) == 0
    y = np.load(tmp_path / "out.npy")
    assert (y.shape, y.dtype) == (volume.shape, np.dtype(dtype or np.float64))
    np.testing.assert_allclose(y, reference(volume, 4), rtol=0, atol=atol)


# Numbers: dtypes, orders, batches


@pytest.mark.parametrize("found", ["uint8", "int16", "int32", "int64", "uint64", ">f4", "<f2", ">f8", ">u2"])
def test_dtypes_read(tmp_path, found):
    random = np.random.default_rng(1)
    wide = np.dtype(found).kind in "iu" and np.dtype(found).itemsize >= 4
    # Near 1e9 a float32 copy of these integers would lose all that distinguishes them.
    x = (random.integers(0, 100, (3, 4, 5)) + (10**9 if wide else 0)).astype(found)
    np.save(tmp_path / "in.npy", x)
    assert normalize(tmp_path / "in.npy", tmp_path / "out.npy", "--num-groups", 2) == 0
    y = np.load(tmp_path / "out.npy")
    final = np.dtype(found).newbyteorder("=") if np.dtype(found).kind == "f" else np.dtype(np.float32)
    assert y.dtype == final
    atol = {2: 2e-3, 4: 2e-6, 8: 1e-12}[final.itemsize]
    np.testing.assert_allclose(y, reference(x, 2), rtol=0, atol=atol)


def test_narrowing_happens_after_the_work(tmp_path):
    x = np.random.default_rng(2).normal(1e6, 1, (2, 4, 50))  # beyond float16; float32 would round it to 1/16
    np.save(tmp_path / "in.npy", x)
    assert normalize(tmp_path / "in.npy", tmp_path / "out.npy", "--num-groups", 2, "--dtype", "float16") == 0
    y = np.load(tmp_path / "out.npy")
    np.testing.assert_array_equal(y, reference(x, 2).astype(np.float16))


@pytest.mark.parametrize("found", ["float32", "uint8", "float64"])
@pytest.mark.parametrize("add_batch_axis", [False, True])
def test_fortran_order_stays(tmp_path, monkeypatch, found, add_batch_axis):
    x = np.asfortranarray(np.random.default_rng(3).integers(0, 255, (6, 4, 7)).astype(found))
    np.save(tmp_path / "in.npy", x)
    monkeypatch.setattr(_files, "BATCH_BYTES", 256)
    options = ("--add-batch-axis", "--num-groups", 3) if add_batch_axis else ("--num-groups", 2)
    assert normalize(tmp_path / "in.npy", tmp_path / "out.npy", "--dtype", "float32", *options) == 0
    y = np.load(tmp_path / "out.npy")
    assert y.flags.f_contiguous
    assert not y.flags.c_contiguous
    expected = reference(x[None], 3)[0] if add_batch_axis else reference(x, 2)
    np.testing.assert_allclose(y, expected, rtol=0, atol=2e-6)


@pytest.mark.parametrize("batch_bytes", [1, 600, 1 << 20])
def test_batches_give_the_bits_of_one_call(tmp_path, monkeypatch, x, batch_bytes):
    calls = []
    monkeypatch.setattr(_files, "BATCH_BYTES", batch_bytes)
    report = _files.normalize_file(
        tmp_path / "in.npy", tmp_path / "out.npy", 3, progress=lambda done, total: calls.append((done, total))
    )
    whole = numbagn.group_norm(x, 3)
    np.testing.assert_array_equal(np.load(tmp_path / "out.npy").view(np.uint32), whole.view(np.uint32))
    samples = max(1, batch_bytes // (6 * 4 * 3 * 4))
    assert calls == [(done, 5) for done in range(0, 5, samples)] + [(5, 5)]
    assert (report.shape, report.dtype, report.nbytes) == (x.shape, np.float32, 2 * x.nbytes)


@pytest.mark.parametrize("shape", [(0, 8, 3), (2, 8, 0)])
def test_empty_arrays(tmp_path, shape):
    np.save(tmp_path / "in.npy", np.empty(shape, np.float32))
    assert normalize(tmp_path / "in.npy", tmp_path / "out.npy", "--num-groups", 4) == 0
    assert np.load(tmp_path / "out.npy").shape == shape


# Weights


@pytest.mark.parametrize("suffix", ["npz", "safetensors"])
@pytest.mark.parametrize("names", [("weight", "bias"), ("scale", "bias"), ("gamma", "beta")])
def test_weights_by_name(tmp_path, x, suffix, names):
    random = np.random.default_rng(4)
    weight, bias = random.normal(1, 1, (2, 6)).astype(np.float32)
    arrays = {"down.0.norm1." + name: value for name, value in zip(names, (weight, bias), strict=True)}
    arrays["down.0.norm2.weight"] = np.full(6, np.nan, np.float32)
    path = tmp_path / f"unet.{suffix}"
    if suffix == "npz":
        np.savez(path, **arrays)
    else:
        pytest.importorskip("safetensors.numpy").save_file(arrays, path)
    options = ("--num-groups", 2, "--weights", path, "--prefix", "down.0.norm1.")
    assert normalize(tmp_path / "in.npy", tmp_path / "out.npy", *options) == 0
    np.testing.assert_allclose(np.load(tmp_path / "out.npy"), reference(x, 2, weight, bias), rtol=0, atol=5e-6)


def test_weights_of_each_sample(tmp_path, monkeypatch, x):
    weight = np.random.default_rng(5).normal(1, 1, (5, 6)).astype(np.float32)
    np.savez(tmp_path / "w.npz", weight=weight, bias=np.arange(6.0))
    monkeypatch.setattr(_files, "BATCH_BYTES", 600)  # two samples
    options = ("--num-groups", 2, "--weights", tmp_path / "w.npz")
    assert normalize(tmp_path / "in.npy", tmp_path / "out.npy", *options) == 0
    expected = reference(x, 2)
    expected = expected * weight[:, :, None, None] + np.arange(6.0)[:, None, None]
    np.testing.assert_allclose(np.load(tmp_path / "out.npy"), expected, rtol=0, atol=5e-6)


def test_find_parameters():
    a, b = np.ones(3), np.zeros(3)
    for mapping, prefix, weight, bias in [
        ({"weight": a, "bias": b, "running_mean": b}, "", a, b),
        ({"n.scale": a, "m.bias": b}, "n.", a, None),
        ({"n.beta": b, "gamma": a}, "n.", None, b),
        ({"n/bias": b}, "n/", None, b),
    ]:
        found = _weights.find_parameters(mapping, prefix)
        assert found[0] is weight
        assert found[1] is bias


@pytest.mark.parametrize(
    ("names", "prefix", "message"),
    [
        (["weight", "gamma"], "", "ambiguous parameter names: found weight, gamma; allowed: one of weight/bias,"),
        (["n.scale", "n.weight", "n.bias"], "n.", "found n.weight, n.bias, n.scale"),
        (["gamma", "bias"], "", "found bias, gamma"),
        (["a.norm.weight", "b.gamma"], "a.norm", "under prefix 'a.norm'; prefixes that have them: 'a.norm.', 'b.'"),
        (["kernel"], "", "without a prefix; names found: 'kernel'"),
        ([], "x.", "names found: none"),
        ([f"l{i}.weight" for i in range(20)], "x.", "'l14.', 'l15.', ... (20 in all)"),
        (["overweight"], "", "names found: 'overweight'"),
    ],
)
def test_find_parameters_refuses(names, prefix, message):
    with pytest.raises(ValueError, match=re.escape(message)) as refusal:
        _weights.find_parameters(dict.fromkeys(names, np.ones(3)), prefix)
    assert "\n" not in str(refusal.value)


def test_load_file_reads_one_layer_and_closes(tmp_path):
    np.savez(tmp_path / "w.npz", **{"a.weight": np.arange(3.0), "b.weight": np.arange(4.0)})
    arrays = _weights.load_file(tmp_path / "w.npz", "a.")
    (tmp_path / "w.npz").write_bytes(b"gone")
    assert list(arrays) == ["a.weight"]
    np.testing.assert_array_equal(arrays["a.weight"], [0, 1, 2])


def test_bfloat16_weights(tmp_path):
    bfloat16 = pytest.importorskip("ml_dtypes").bfloat16
    save_file = pytest.importorskip("safetensors.numpy").save_file
    save_file({"weight": np.array([1, 2.5, -3], bfloat16)}, tmp_path / "w.safetensors")
    found = _weights.read_weights(tmp_path / "w.safetensors")
    np.testing.assert_array_equal(found["weight"].astype(np.float32), [1, 2.5, -3])
    assert found["bias"] is None


def test_safetensors_not_installed(tmp_path, monkeypatch):
    (tmp_path / "w.safetensors").write_bytes(b"")
    monkeypatch.setitem(sys.modules, "safetensors", None)
    with pytest.raises(ImportError, match=r"needs the safetensors package: pip install safetensors"):
        _weights.load_file(tmp_path / "w.safetensors")


# OUT appears whole or not at all


@pytest.mark.parametrize("found", ["float32", "uint8"])
def test_in_and_out_may_be_one_file(tmp_path, found):
    x = np.random.default_rng(6).integers(0, 255, (4, 6, 9)).astype(found)
    np.save(tmp_path / "x.npy", x)
    assert normalize(tmp_path / "x.npy", tmp_path / "x.npy", "--num-groups", 3) == 0
    np.testing.assert_allclose(np.load(tmp_path / "x.npy"), reference(x, 3), rtol=0, atol=2e-6)
    assert [path.name for path in tmp_path.iterdir()] == ["x.npy"]


@pytest.mark.skipif(os.name != "posix", reason="links and modes of POSIX")
def test_out_keeps_its_mode_and_its_link(tmp_path, x):
    (tmp_path / "out.npy").chmod(0o640)
    (tmp_path / "link.npy").symlink_to("out.npy")
    assert normalize(tmp_path / "in.npy", tmp_path / "link.npy", "--num-groups", 2) == 0
    assert (tmp_path / "link.npy").is_symlink()
    assert (tmp_path / "out.npy").stat().st_mode & 0o777 == 0o640
    np.testing.assert_array_equal(np.load(tmp_path / "out.npy"), numbagn.group_norm(x, 2))

    umask = os.umask(0o027)
    try:
        assert normalize(tmp_path / "in.npy", tmp_path / "new.npy", "--num-groups", 2) == 0
    finally:
        os.umask(umask)
    assert (tmp_path / "new.npy").stat().st_mode & 0o777 == 0o640


@pytest.mark.parametrize(
    ("failure", "message", "code"),
    [
        (OSError(errno.EIO, "Input/output error", "in.npy"), "in.npy: Input/output error", 2),
        (ValueError("two\nlines"), "two lines", 2),
        (MemoryError(), "out of memory", 2),
        (ZeroDivisionError("bug"), "unexpected ZeroDivisionError: bug", 2),
        (KeyboardInterrupt(), "interrupted", 130),
    ],
)
def test_failure_in_the_middle_leaves_the_old_file(tmp_path, monkeypatch, capsys, x, failure, message, code):
    right, calls = numbagn.group_norm, []

    def failing(chunk, *args, **options):
        if len(chunk):
            calls.append(leftovers(tmp_path))
        if len(calls) == 3:
            raise failure
        return right(chunk, *args, **options)

    monkeypatch.setattr(numbagn, "group_norm", failing)
    monkeypatch.setattr(_files, "BATCH_BYTES", 1)
    assert normalize(tmp_path / "in.npy", tmp_path / "out.npy", "--num-groups", 2) == code
    assert error_line(capsys.readouterr().err) == message
    assert [len(names) for names in calls] == [1, 1, 1]
    assert leftovers(tmp_path) == []
    assert (tmp_path / "out.npy").read_bytes() == b"an old file"


def test_full_disk_leaves_the_old_file(tmp_path, capsys, x):
    resource = pytest.importorskip("resource")
    np.save(tmp_path / "in.npy", np.ones((8, 64, 64), np.float32))
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, limits[1]))  # stands in for a full disk
    try:
        code = normalize(tmp_path / "in.npy", tmp_path / "out.npy", "--num-groups", 2)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert code == 2
    assert error_line(capsys.readouterr().err) == f"{tmp_path}: no room for the new file of 0.000131 GB: File too large"
    assert leftovers(tmp_path) == []
    assert (tmp_path / "out.npy").read_bytes() == b"an old file"


def test_room_is_taken_where_the_system_has_no_call_for_it(tmp_path, monkeypatch, x):
    def unsupported(*args):
        raise OSError(errno.EOPNOTSUPP, "not supported")

    monkeypatch.setattr(os, "posix_fallocate", unsupported, raising=False)
    monkeypatch.setattr(_files, "BATCH_BYTES", 1 << 14)
    path = tmp_path / "new.npy"
    y = _files._create(path, np.dtype(np.float64), (30, 1000), fortran=False)
    y[:] = 7
    y.flush()
    np.testing.assert_array_equal(np.load(path), np.full((30, 1000), 7.0))
    assert path.stat().st_size == 30 * 8000 + 128
    if hasattr(path.stat(), "st_blocks"):
        assert path.stat().st_blocks * 512 >= 30 * 8000


STOPPED_IN_THE_MIDDLE = """\
import signal, sys, time
import numbagn
from numbagn.__main__ import main

def slow(chunk, *args, **options):
    if len(chunk):
        print("working", flush=True)
        time.sleep(60)

signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job starts with it ignored
numbagn.group_norm = slow
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.skipif(os.name != "posix", reason="signals of POSIX")
@pytest.mark.parametrize(
    ("name", "code", "message"),
    [("SIGINT", 130, "interrupted"), ("SIGTERM", 143, "ended by SIGTERM"), ("SIGHUP", 129, "ended by SIGHUP")],
)
def test_signal_in_the_middle_leaves_the_old_file(tmp_path, x, name, code, message):
    args = ("normalize", tmp_path / "in.npy", tmp_path / "out.npy", "--num-groups", 2)
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(**command(*args, code=STOPPED_IN_THE_MIDDLE), **pipes) as process:
        try:
            assert process.stdout.readline() == "working\n"
            assert len(leftovers(tmp_path)) == 1
            process.send_signal(getattr(signal, name))
            out, err = process.communicate(timeout=30)
        finally:
            process.kill()
    assert process.returncode == code, err
    assert error_line(err) == message
    assert out == ""
    assert leftovers(tmp_path) == []
    assert (tmp_path / "out.npy").read_bytes() == b"an old file"


@pytest.mark.skipif(os.name != "posix", reason="signals of POSIX")
def test_a_signal_is_never_lost_nor_raised_twice():
    before = signal.getsignal(signal.SIGTERM)

    def send():
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.01)

    with _files.stop_signals() as check:
        check()
        with contextlib.suppress(_files.Stopped):  # a library that swallows everything
            send()
            raise AssertionError("the signal was not raised")
        send()  # during clean-up: nothing
        with pytest.raises(_files.Stopped) as stopped:
            check()
    assert stopped.value.signum == signal.SIGTERM
    assert signal.getsignal(signal.SIGTERM) == before


# Refusals


class Bomb:
    """What a hostile pickle looks like: opening it would write a file."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


def write_npy(x):
    buffer = io.BytesIO()
    np.save(buffer, x, allow_pickle=True)
    return buffer.getvalue()


def write_npz(**arrays):
    buffer = io.BytesIO()
    np.savez(buffer, allow_pickle=True, **arrays)
    return buffer.getvalue()


GOOD = write_npy(np.arange(96, dtype=np.float32).reshape(2, 6, 8))
G2 = ("--num-groups", 2)

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


BAD_WEIGHTS = {
    "w.pt": (b"PK", (), "ends in '.pt'; allowed: .npz, .safetensors"),
    "missing.npz": (None, (), "missing.npz: No such file or directory"),
    "text.npz": (b"hello", (), "text.npz is not an .npz archive"),
    "array.npz": (write_npy(np.ones(6)), (), "array.npz is not an .npz archive"),
    "cut.npz": (write_npz(weight=np.ones(600))[500:], (), "cut.npz cannot be read"),
    "text.safetensors": (b"hello " * 9, (), "text.safetensors cannot be read"),
    "prefix.npz": (write_npz(**{"n.weight": np.ones(6)}), ("--prefix", "m."), "prefixes that have them: 'n.'"),
    "names.npz": (write_npz(n=np.ones(6)), (), "names found: 'n'"),
    "both.npz": (write_npz(weight=np.ones(6), gamma=np.ones(6)), (), "ambiguous parameter names: found weight, gamma"),
    "length.npz": (write_npz(weight=np.ones(5)), (), "weight"),
    "rows.npz": (write_npz(bias=np.ones((3, 6))), (), "bias has shape (3, 6), one row a sample; allowed: 2 rows"),
}


@pytest.mark.parametrize("name", BAD_WEIGHTS)
def test_bad_weights(tmp_path, capsys, name):
    content, options, message = BAD_WEIGHTS[name]
    if name.endswith(".safetensors"):
        pytest.importorskip("safetensors")
    if content is not None:
        (tmp_path / name).write_bytes(content)
    (tmp_path / "in.npy").write_bytes(GOOD)
    assert normalize(tmp_path / "in.npy", tmp_path / "out.npy", *G2, "--weights", tmp_path / name, *options) == 2
    assert message in error_line(capsys.readouterr().err)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted({"in.npy", name} - {"missing.npz"})


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("out.txt", "out.txt; allowed: a name that ends in .npy"),
        ("none/out.npy", "none: no file can be made here: No such file or directory"),
        ("folder.npy", "folder.npy exists and is not a regular file"),
    ],
)
def test_bad_out(tmp_path, capsys, target, message):
    (tmp_path / "in.npy").write_bytes(GOOD)
    (tmp_path / "folder.npy").mkdir()
    assert normalize(tmp_path / "in.npy", tmp_path / target, *G2) == 2
    assert message in error_line(capsys.readouterr().err)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["folder.npy", "in.npy"]


@pytest.mark.skipif(os.name != "posix", reason="modes and pipes of POSIX")
def test_folders_and_files_that_cannot_be_used(tmp_path, capsys):
    os.mkfifo(tmp_path / "pipe.npy")
    assert normalize(tmp_path / "pipe.npy", tmp_path / "out.npy", *G2) == 2
    assert "pipe.npy is not a regular file" in error_line(capsys.readouterr().err)
    assert normalize(tmp_path, tmp_path / "out.npy", *G2) == 2
    assert "is not a regular file" in error_line(capsys.readouterr().err)

    (tmp_path / "in.npy").write_bytes(GOOD)
    locked = tmp_path / "locked"
    locked.mkdir(mode=0o500)
    if os.access(locked, os.W_OK):
        pytest.skip("this user may write everywhere")
    assert normalize(tmp_path / "in.npy", locked / "out.npy", *G2) == 2
    assert error_line(capsys.readouterr().err) == f"{locked}: no file can be made here: Permission denied"


@pytest.mark.parametrize("kind", ["pickle", "npy", "npz"])
def test_pickles_are_refused_and_never_run(tmp_path, capsys, kind):
    bomb = Bomb(tmp_path / "boom")
    objects = np.empty((2, 6), object)
    objects[:] = [[bomb] * 6] * 2
    hostile = {"pickle": pickle.dumps(bomb), "npy": write_npy(objects), "npz": write_npz(weight=objects[0])}[kind]
    (tmp_path / "in.npy").write_bytes(GOOD if kind == "npz" else hostile)
    (tmp_path / "w.npz").write_bytes(hostile)
    assert normalize(tmp_path / "in.npy", tmp_path / "out.npy", *G2, *(("--weights", tmp_path / "w.npz"))) == 2
    message = error_line(capsys.readouterr().err)
    assert "w.npz" in message
    assert normalize(tmp_path / "in.npy", tmp_path / "out.npy", *G2) == (0 if kind == "npz" else 2)
    if kind != "npz":
        assert {"pickle": "is not an .npy file", "npy": "Python objects"}[kind] in error_line(capsys.readouterr().err)
    assert not (tmp_path / "boom").exists()


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
    monkeypatch.setattr(_files, "BATCH_BYTES", 1)
    monkeypatch.setattr(_files.ProgressBar, "INTERVAL", 0.0)
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
