"""Input beyond all measure: an error that says so, in no time, and nothing half-written."""

import time

import ml_dtypes
import numpy as np
import pytest
from cases import LAYOUTS, in_layout, normal, same_bits

import numbagn

# Shapes of 2**49 elements and more, which views of one number have but no memory could hold.
HUGE = {
    "samples": (1 << 45, 4, 8),
    "channels": (1, 1 << 47, 8),
    "positions": (2, 4, 1 << 23, 1 << 24),
    "everything": (1 << 17, 1 << 17, 1 << 17),
}


def view(shape, dtype=np.float32, writable=False):
    """A view of one number; a writable one says so, though all its elements are the same."""
    one = np.full(1, 7, dtype)
    return np.lib.stride_tricks.as_strided(one, shape, (0,) * len(shape), writeable=writable)


def samples(shape, dtype=np.float32):
    """A view whose samples are one and the same, laid out as kernels take them: only the result would need memory."""
    one = np.full((1, *shape[1:]), 7, dtype)
    return np.broadcast_to(one, shape)


@pytest.fixture(autouse=True)
def in_no_time():
    started = time.perf_counter()
    yield
    assert time.perf_counter() - started < 60  # compiling, as a rule nothing


def refused(function, **arguments):
    """A MemoryError of NumPy, which names the size; `out` stays as it was, and the next call works."""
    out = arguments.get("out")
    with pytest.raises(MemoryError, match=r"Unable to allocate .* for an array with shape") as refusal:
        function(**arguments)
    assert "\n" not in str(refusal.value)
    if out is not None:
        assert out[(0,) * out.ndim] == 7
    x = np.arange(16, dtype=np.float32).reshape(1, 4, 4)
    assert np.isfinite(numbagn.group_norm(x, 2)).all()


@pytest.mark.parametrize("with_out", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "float16", "uint8"])
@pytest.mark.parametrize("shape", HUGE.values(), ids=HUGE)
def test_forward(shape, dtype, with_out):
    out = view(shape, "float32" if dtype == "uint8" else dtype, writable=True) if with_out else None
    for function in (numbagn.group_norm, numbagn.group_norm_forward):
        refused(function, x=view(shape, dtype), num_groups=2 if shape[1] == 4 else 1, out=out)


@pytest.mark.parametrize("with_out", [False, True])
@pytest.mark.parametrize("shape", HUGE.values(), ids=HUGE)
def test_backward(shape, with_out):
    statistics = np.broadcast_to(np.zeros(1), (shape[0], 1))
    out = view(shape, writable=True) if with_out else None
    refused(
        numbagn.group_norm_backward,
        dy=view(shape),
        x=view(shape),
        mean=statistics,
        rstd=statistics,
        num_groups=1,
        out=out,
    )


@pytest.mark.parametrize("with_out", [False, True])
@pytest.mark.parametrize("name", ["skip", "residual"])
def test_operands(name, with_out):
    shape = HUGE["samples"]
    out = view(shape, writable=True) if with_out else None
    refused(numbagn.group_norm, x=samples(shape), num_groups=2, out=out, **{name: view(shape)})


def test_layers():
    layer = numbagn.GroupNorm(2, 4)
    for function in (layer, layer.forward):
        refused(function, x=samples(HUGE["samples"]))
    with pytest.raises(MemoryError):
        numbagn.GroupNorm(1, 1 << 50)


def test_bytes_beyond_any_integer():
    """The float32 result of 2**62 uint8 would have 2**64 bytes."""
    with pytest.raises((MemoryError, ValueError)) as refusal:
        numbagn.group_norm(samples((1 << 57, 4, 8), np.uint8), 2)
    assert "\n" not in str(refusal.value)


def test_many_dimensions():
    shape = (1, 2, *(1,) * 60, 3, 4)
    x = np.arange(24, dtype=np.float32).reshape(shape)
    got = numbagn.group_norm(x, 2, channel_axis=1)
    assert same_bits(got.reshape(1, 2, 12), numbagn.group_norm(x.reshape(1, 2, 12), 2))


class Unspeakable:
    def __repr__(self):
        raise RuntimeError("no words")


@pytest.mark.parametrize("name", ["num_groups", "channel_axis", "eps", "activation"])
@pytest.mark.parametrize("value", ["x" * 10**6, 10**1000, -(10**5000), Unspeakable()], ids=["text", "1", "2", "object"])
def test_what_cannot_be_shown_in_a_line_is_cut_short(name, value):
    x = np.ones((2, 8, 6), np.float32)
    with pytest.raises((TypeError, ValueError), match=f"^{name} must ") as refusal:
        numbagn.group_norm(**({"x": x, "num_groups": 2} | {name: value}))
    assert len(str(refusal.value)) < 200


@pytest.mark.parametrize("channels", [-(10**5000), 10**5000], ids=["negative", "positive"])
def test_a_number_of_channels_that_cannot_be_shown(channels):
    with pytest.raises(ValueError, match=r"^num_(channels|groups) must ") as refusal:
        numbagn.GroupNorm(3, channels)
    assert len(str(refusal.value)) < 200


# --------------------------------------------------------------------------------------- memory that is not NumPy's own


@pytest.mark.parametrize("mode", ["w+", "r+", "c"])
@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16])
def test_a_memory_map_as_out(rng, one_thread, tmp_path, mode, dtype):
    x = normal(rng, (2, 6, 5, 7), dtype)
    np.save(tmp_path / "x.npy", x.view(np.uint8))
    source = np.load(tmp_path / "x.npy", mmap_mode="r").view(dtype)
    (tmp_path / "y").write_bytes(b"\x01" * x.nbytes)
    out = np.memmap(tmp_path / "y", dtype, mode, shape=x.shape)
    want = numbagn.group_norm(x, 3)
    assert numbagn.group_norm(source, 3, out=out) is out
    assert same_bits(np.asarray(out), want)
    assert not source.flags.writeable
    out.flush()
    written = (tmp_path / "y").read_bytes()
    assert written == (b"\x01" * x.nbytes if mode == "c" else want.tobytes())  # c: copied on write, to memory only


def test_a_memory_map_that_is_read_only_is_no_out(rng, tmp_path):
    x = normal(rng, (2, 6, 5), np.float32)
    (tmp_path / "y").write_bytes(b"\x01" * x.nbytes)
    with pytest.raises(ValueError, match=r"^out must be writable, got a read-only array$"):
        numbagn.group_norm(x, 3, out=np.memmap(tmp_path / "y", np.float32, "r", shape=x.shape))
    assert (tmp_path / "y").read_bytes() == b"\x01" * x.nbytes


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("apart", [8, -8, 1, 64 * 1600])
def test_a_large_out_that_overlaps_x_by_some_elements(rng, layout, apart):
    """Kernels of several threads too: 2.6 MB."""
    x = normal(rng, (4, 64, 40, 64), np.float32)
    memory = np.zeros(x.size + 2 * abs(apart), np.float32)

    def at(start):
        shape = x.shape if layout == "channels_first" else (4, 40, 64, 64)
        array = memory[start : start + x.size].reshape(shape)
        return array if layout == "channels_first" else np.moveaxis(array, -1, 1)

    source, out = (at(0), at(apart)) if apart > 0 else (at(-apart), at(0))
    source[...] = x
    want = numbagn.group_norm(in_layout(x, layout), 8, activation="silu")
    numbagn.group_norm(source, 8, activation="silu", out=out)
    np.testing.assert_array_equal(out, want)
    source[...] = x
    numbagn.group_norm(source, 8, activation="silu", out=source[:, ::-1])
    np.testing.assert_array_equal(source[:, ::-1], want)
