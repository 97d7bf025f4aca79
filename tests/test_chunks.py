"""Files with samples larger than memory: cut in the order of memory, read twice at most, right in any shape."""

import itertools
import math
import sys

import numpy as np
import pytest
from command_line import definition, error_line, leftovers, normalize, shell

import numbagn
from numbagn.command import chunks, files

# name: (shape of the file, channel axis, groups)
SHAPES = {
    "volumes": ((2, 6, 5, 8, 9), 1, 2),
    "one group": ((1, 3, 40, 11), 1, 1),
    "many channels, few positions": ((2, 96, 5), 1, 3),
    "no positions": ((3, 240), 1, 4),
    "channels last": ((2, 9, 10, 12), -1, 3),
    "channels in the middle": ((2, 5, 12, 7), 2, 4),
    "one channel": ((1, 1, 1000), 1, 1),
    "instance norm": ((2, 4, 6, 50), 1, 4),
}


@pytest.fixture
def small_chunks(monkeypatch):
    """Samples above so many bytes are cut."""

    def set_bytes(size):
        monkeypatch.setattr(files, "BATCH_BYTES", size)
        monkeypatch.setattr(files, "CHUNK_BYTES", size)

    return set_bytes


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("most", [1, 7, 60, 400, 10**6])
def test_boxes_are_consecutive_memory_and_cover_it_in_order(order, most):
    for shape, axis, groups in SHAPES.values():
        x = np.arange(math.prod(shape)).reshape(shape, order=order)
        group = shape[axis] // groups
        seen = []
        for box in chunks.boxes(shape, x.strides, axis % x.ndim, group, most):
            values = np.sort(x[box], axis=None)
            assert 0 < values.size <= most
            assert (np.diff(values) == 1).all()
            channels = box[axis % x.ndim]
            assert channels.start // group == (channels.stop - 1) // group or (
                channels.start % group == channels.stop % group == 0
            )
            seen.append(values)
        assert (np.concatenate(seen) == np.arange(x.size)).all()


@pytest.mark.parametrize("order", ["C", "F"])
def test_boxes_of_whole_groups(order):
    for shape, axis, groups in SHAPES.values():
        x = np.arange(math.prod(shape)).reshape(shape, order=order)
        group, positions = shape[axis] // groups, x[0].size // shape[axis]
        for most in (1, 60, 400):
            covered = 0
            for box in chunks.boxes(shape, x.strides, axis % x.ndim, group, most, whole_groups=True):
                part = x[box]
                assert part.shape[axis] % group == 0
                assert part.size == part.shape[0] * part.shape[axis] * positions
                covered += part.size
            assert covered == x.size


@pytest.mark.parametrize("chunk_bytes", [200, 1000, 5000])
@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("name", SHAPES)
def test_chunks_agree_with_the_definition(tmp_path, rng, one_thread, small_chunks, name, order, chunk_bytes):
    shape, axis, groups = SHAPES[name]
    small_chunks(chunk_bytes)
    x = np.asarray(rng.normal(1e4, 1, shape).astype(np.float32), order=order)
    weight, bias = rng.normal(1, 1, shape[axis]), rng.normal(0, 1, (shape[0], shape[axis]))
    np.save(tmp_path / "in.npy", x)
    files.normalize_file(
        tmp_path / "in.npy",
        tmp_path / "out.npy",
        groups,
        weight=weight,
        bias=bias,
        channel_axis=axis,
        activation="silu",
    )
    y = np.load(tmp_path / "out.npy")
    assert (y.dtype, y.flags.c_contiguous, y.flags.f_contiguous) == (
        x.dtype,
        x.flags.c_contiguous,
        x.flags.f_contiguous,
    )
    want = definition(x, groups, weight, bias, channel_axis=axis, activation="silu")
    np.testing.assert_allclose(y, want, rtol=2e-6, atol=2e-6)


@pytest.mark.parametrize("asked", [None, "float16", "float32", "float64"])
@pytest.mark.parametrize("found", ["uint8", "int16", "int32", "uint64", "float16", ">f4", "float64"])
def test_every_dtype_in_chunks(tmp_path, rng, one_thread, small_chunks, found, asked):
    small_chunks(3000)
    wide = np.dtype(found).kind in "iu" and np.dtype(found).itemsize >= 4
    # near 1e9 float32 would lose all that distinguishes these
    x = (rng.integers(0, 100, (2, 4, 9, 60)) + (10**9 if wide else 0)).astype(found)
    np.save(tmp_path / "in.npy", x)
    files.normalize_file(tmp_path / "in.npy", tmp_path / "out.npy", 2, dtype=asked)
    y = np.load(tmp_path / "out.npy")
    assert y.dtype == (asked or (np.dtype(found).newbyteorder("=") if "f" in found else np.float32))
    np.testing.assert_allclose(y, definition(x, 2), rtol=0, atol={2: 2e-3, 4: 2e-6, 8: 4e-6}[y.dtype.itemsize])


@pytest.mark.parametrize("asked", ["float16", "float32", "float64"])
@pytest.mark.parametrize(
    ("found", "base"),
    [
        ("int64", 1_700_000_000_000_000_000),  # nanoseconds
        (">i8", -(2**63)),
        ("int64", 2**53),
        ("uint64", 2**64 - 1000),
        (">u8", 2**63 - 500),
    ],
)
def test_integers_beyond_what_float64_holds(tmp_path, rng, one_thread, small_chunks, found, base, asked):
    small = rng.integers(0, 1000, (2, 6, 9, 60))
    x = (small.astype(object) + base).astype(found)
    x[:, :2] = small[:, :2]  # a group far from the others
    want = definition(small, 3)
    for chunk_bytes, order, axis in itertools.product((900, 20000, 1 << 20), "CF", (1, 2)):
        small_chunks(chunk_bytes)
        np.save(tmp_path / "in.npy", np.asarray(np.moveaxis(x, 1, axis), order=order))
        files.normalize_file(tmp_path / "in.npy", tmp_path / "out.npy", 3, dtype=asked, channel_axis=axis)
        y = np.moveaxis(np.load(tmp_path / "out.npy"), axis, 1)
        assert y.dtype == asked
        np.testing.assert_allclose(y, want, rtol=0, atol={2: 2e-3, 4: 1e-6, 8: 1e-12}[y.dtype.itemsize])


def test_integers_from_end_to_end_of_their_range(tmp_path, one_thread):
    for ends in (np.array([-(2**63), 2**63 - 1, 0, 5]), np.array([2**64 - 1, 0, 2**63, 5], np.uint64)):
        np.save(tmp_path / "in.npy", ends.reshape(1, 1, 4))
        files.normalize_file(tmp_path / "in.npy", tmp_path / "out.npy", 1, dtype="float64")
        want = definition(ends.astype(np.float64).reshape(1, 1, 4), 1)
        np.testing.assert_allclose(np.load(tmp_path / "out.npy"), want, rtol=0, atol=1e-15)


def test_groups_that_fit_have_the_bits_of_one_call(tmp_path, rng, one_thread, small_chunks):
    x = rng.normal(3, 2, (2, 12, 30, 10)).astype(np.float32)
    np.save(tmp_path / "in.npy", x)
    small_chunks(3 * 3 * 300 * 4)  # three groups of four
    files.normalize_file(tmp_path / "in.npy", tmp_path / "out.npy", 4)
    np.testing.assert_array_equal(np.load(tmp_path / "out.npy"), numbagn.group_norm(x, 4))


def test_each_value_is_read_twice_and_the_bar_moves_through_both_passes(tmp_path, rng, monkeypatch, small_chunks):
    x = rng.normal(3, 2, (2, 3, 64, 50)).astype(np.float32)
    np.save(tmp_path / "in.npy", x)
    small_chunks(4000)
    seen = {"group_moments": 0, "normalize": 0, "group_norm": 0}

    def counting(name, right):
        def counted(part, *args, **options):
            seen[name] += part.size
            return right(part, *args, **options)

        return counted

    for name in seen:
        monkeypatch.setattr(numbagn, name, counting(name, getattr(numbagn, name)))
    calls = []
    files.normalize_file(tmp_path / "in.npy", tmp_path / "out.npy", 1, progress=lambda *call: calls.append(call))
    assert seen == {"group_moments": x.size, "normalize": x.size, "group_norm": 0}
    done = [call[0] for call in calls]
    assert (calls[0], calls[-1]) == ((0, 2), (2, 2))
    assert done == sorted(done)
    assert len(done) > 2 * x.nbytes / 4000
    assert max(np.diff(done)) < 0.1


def test_a_failure_in_the_second_pass_leaves_the_old_file(tmp_path, monkeypatch, capsys, x, small_chunks):
    def failing(*args, **options):
        assert len(leftovers(tmp_path)) == 1
        raise MemoryError

    monkeypatch.setattr(numbagn, "normalize", failing)
    small_chunks(100)
    assert normalize(tmp_path / "in.npy", tmp_path / "out.npy", "--num-groups", 1) == 2
    assert error_line(capsys.readouterr().err) == "out of memory"
    assert leftovers(tmp_path) == []
    assert (tmp_path / "out.npy").read_bytes() == b"an old file"


def test_a_signal_is_heard_between_chunks(tmp_path, monkeypatch, x, small_chunks):
    right, calls = numbagn.group_moments, []

    def signalled(*args, **options):
        calls.append(1)
        return right(*args, **options)

    def stopping(done, total):
        if len(calls) == 2:
            raise files.Stopped(15)

    monkeypatch.setattr(numbagn, "group_moments", signalled)
    small_chunks(100)
    with pytest.raises(files.Stopped):
        files.normalize_file(tmp_path / "in.npy", tmp_path / "out.npy", 1, progress=stopping)
    assert len(calls) == 2
    assert leftovers(tmp_path) == []


LITTLE_MEMORY = """\
import re, resource, sys
import numpy as np
from pathlib import Path
from numbagn.command import files

files.BATCH_BYTES = files.CHUNK_BYTES = 2 << 20
folder, axis, *options = Path(sys.argv[1]), int(sys.argv[2])

def run(name):
    files.normalize_file(folder / f"{name}.npy", folder / f"{name}_out.npy", 1, channel_axis=axis)

run("small")  # compiles, starts threads
used = 1024 * int(re.search(r"VmData:\\s*(\\d+) kB", Path("/proc/self/status").read_text())[1])
resource.setrlimit(resource.RLIMIT_DATA, (used + (24 << 20),) * 2)
try:
    np.ones(48 << 20, np.uint8)
except MemoryError:
    run("large")
    print("done")
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="limits and /proc of Linux")
@pytest.mark.parametrize(
    ("dtype", "order", "axis", "shape"),
    [
        (np.float32, "C", 1, (1, 4, 16, 700, 512)),  # 92 MB in one sample
        (np.uint8, "C", -1, (1, 4000, 3000, 3)),  # 36 MB, 144 MB out
        (np.float32, "F", 1, (2, 4, 16, 350, 512)),
    ],
    ids=["volume", "picture", "fortran"],
)
def test_a_sample_larger_than_the_memory_the_process_may_have(tmp_path, rng, dtype, order, axis, shape):
    small = (*shape[:2], shape[2] // 8, *shape[3:])
    for name, of in (("small", small), ("large", shape)):
        x = rng.integers(0, 200, of, np.uint8).astype(dtype)
        np.save(tmp_path / f"{name}.npy", np.asarray(x, order=order))
    done = shell(tmp_path, axis, code=LITTLE_MEMORY, timeout=300)
    assert (done.returncode, done.stdout, done.stderr) == (0, "done\n", "")
    y = np.load(tmp_path / "large_out.npy", mmap_mode="r")
    # the definition for one group a sample, in little memory
    for got, values in zip(y, x, strict=True):
        mean, rstd = values.mean(dtype=np.float64), 1 / np.sqrt(values.var(dtype=np.float64) + 1e-5)
        np.testing.assert_allclose(got[::7], (values[::7] - mean) * rstd, rtol=0, atol=2e-6)
