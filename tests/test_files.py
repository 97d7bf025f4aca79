"""Files normalized into files: real data, dtypes, orders and batches; OUT appears whole or not at all."""

import contextlib
import errno
import os
import re
import signal
import subprocess
import time

import numpy as np
import pytest
from command_line import G2, GOOD, command, definition, error_line, leftovers, normalize, shell

import numbagn
from numbagn.command import files

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
    np.testing.assert_allclose(y, definition(photo[None], 3, channel_axis=-1)[0], rtol=0, atol=5e-6)
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
    expected = definition(photos, 1, eps=1e-3, channel_axis=-1, activation="silu")
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
    np.testing.assert_allclose(y, definition(volume, 4), rtol=0, atol=atol)


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
    np.testing.assert_allclose(y, definition(x, 2), rtol=0, atol=atol)


def test_narrowing_happens_after_the_work(tmp_path):
    x = np.random.default_rng(2).normal(1e6, 1, (2, 4, 50))  # beyond float16; float32 would round it to 1/16
    np.save(tmp_path / "in.npy", x)
    assert normalize(tmp_path / "in.npy", tmp_path / "out.npy", "--num-groups", 2, "--dtype", "float16") == 0
    y = np.load(tmp_path / "out.npy")
    np.testing.assert_array_equal(y, definition(x, 2).astype(np.float16))


@pytest.mark.parametrize("found", ["float32", "uint8", "float64"])
@pytest.mark.parametrize("add_batch_axis", [False, True])
def test_fortran_order_stays(tmp_path, monkeypatch, found, add_batch_axis):
    x = np.asfortranarray(np.random.default_rng(3).integers(0, 255, (6, 4, 7)).astype(found))
    np.save(tmp_path / "in.npy", x)
    monkeypatch.setattr(files, "BATCH_BYTES", 256)
    options = ("--add-batch-axis", "--num-groups", 3) if add_batch_axis else ("--num-groups", 2)
    assert normalize(tmp_path / "in.npy", tmp_path / "out.npy", "--dtype", "float32", *options) == 0
    y = np.load(tmp_path / "out.npy")
    assert y.flags.f_contiguous
    assert not y.flags.c_contiguous
    expected = definition(x[None], 3)[0] if add_batch_axis else definition(x, 2)
    np.testing.assert_allclose(y, expected, rtol=0, atol=2e-6)


@pytest.mark.parametrize("batch_bytes", [1, 600, 1 << 20])
def test_batches_give_the_bits_of_one_call(tmp_path, monkeypatch, x, batch_bytes):
    calls = []
    monkeypatch.setattr(files, "BATCH_BYTES", batch_bytes)
    report = files.normalize_file(
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


# OUT appears whole or not at all


@pytest.mark.parametrize("found", ["float32", "uint8"])
def test_in_and_out_may_be_one_file(tmp_path, found):
    x = np.random.default_rng(6).integers(0, 255, (4, 6, 9)).astype(found)
    np.save(tmp_path / "x.npy", x)
    assert normalize(tmp_path / "x.npy", tmp_path / "x.npy", "--num-groups", 3) == 0
    np.testing.assert_allclose(np.load(tmp_path / "x.npy"), definition(x, 3), rtol=0, atol=2e-6)
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
    monkeypatch.setattr(files, "BATCH_BYTES", 1)
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
    monkeypatch.setattr(files, "BATCH_BYTES", 1 << 14)
    path = tmp_path / "new.npy"
    y = files._create(path, np.dtype(np.float64), (30, 1000), fortran=False)
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

    with files.stop_signals() as check:
        check()
        with contextlib.suppress(files.Stopped):  # a library that swallows everything
            send()
            raise AssertionError("the signal was not raised")
        send()  # during clean-up: nothing
        with pytest.raises(files.Stopped) as stopped:
            check()
    assert stopped.value.signum == signal.SIGTERM
    assert signal.getsignal(signal.SIGTERM) == before


# Refusals


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
