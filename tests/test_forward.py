"""The forward pass against the definition: every dtype, layout, shape and option."""

import numpy as np
import pytest
from cases import DTYPES, LAYOUTS, SHAPES, close, in_layout, normal, same_bits

import numbagn
from numbagn import reference
from numbagn.arrays.dtypes import dtype_row

# options of a call; the arrays are made for the shape
OPTIONS = {
    "plain": (),
    "affine": ("weight", "bias"),
    "weight_silu": ("weight", "silu"),
    "bias_gelu": ("bias", "gelu"),
    "per_sample_gelu_tanh": ("weight_n", "bias_n", "gelu_tanh"),
    "residual_relu": ("weight", "bias_n", "residual", "relu"),
    "skip": ("weight", "bias", "skip"),
    "skip_residual_silu": ("weight_n", "bias", "skip", "residual", "silu"),
}


def make(rng, options, shape, dtype, layout):
    """Keyword arguments of a call with these options."""
    n, c = shape[:2]
    made = {}
    for option in options:
        if option in reference.ACTIVATIONS:
            made["activation"] = option
        elif option in ("skip", "residual"):
            made[option] = in_layout(normal(rng, shape, dtype), layout)
        else:
            name, per_sample = option.removesuffix("_n"), option.endswith("_n")
            wide = np.float64 if dtype == np.float64 else np.float32
            made[name] = normal(rng, (n, c) if per_sample else (c,), wide, offset=0.5)
    return made


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_dtype_layout_option_and_shape(rng, one_thread, dtype, layout, options):
    tolerance = dtype_row(DTYPES[dtype]).tolerance
    for shape, groups in SHAPES.values():
        x = in_layout(normal(rng, shape, DTYPES[dtype], offset=0.3), layout)
        arguments = make(rng, OPTIONS[options], shape, DTYPES[dtype], layout)
        y, mean, rstd = numbagn.group_norm_forward(x, groups, **arguments)
        want, want_mean, want_rstd = reference.group_norm(x, groups, **arguments)
        assert y.dtype == x.dtype
        assert y.strides == np.empty_like(x).strides
        close(y, want, tolerance)
        exact = 1e-14 if dtype == "float64" else 4e-7
        close(mean, want_mean, exact)
        np.testing.assert_allclose(rstd, want_rstd, rtol=exact)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_parallel_kernel_agrees_with_the_definition(rng, dtype, layout):
    # beyond the size from which calls run in parallel: whole blocks, and phases over parts of few blocks
    for shape, groups in (((8, 32, 24, 25), 8), ((1, 6, 250, 260), 1), ((3, 10, 170, 91), 2)):
        x = in_layout(normal(rng, shape, DTYPES[dtype], offset=2.0), layout)
        w, b = normal(rng, shape[1], np.float32), normal(rng, shape[1], np.float32)
        y = numbagn.group_norm(x, groups, w, b, activation="silu")
        close(y, reference.group_norm(x, groups, w, b, activation="silu")[0], dtype_row(x.dtype).tolerance)


@pytest.mark.parametrize("axis", [1, 2, 3, -1, -2, -3])
def test_channel_axis(rng, axis):
    x = normal(rng, (2, 6, 6, 6), np.float32)
    w = normal(rng, 6, np.float32)
    close(numbagn.group_norm(x, 3, w, channel_axis=axis), reference.group_norm(x, 3, w, channel_axis=axis)[0], 2e-6)


def strided(rng):
    """Arrays of shape (3, 8, 6, 10) with every kind of stride."""
    base = normal(rng, (6, 16, 12, 20), np.float32)
    yield "batch slice", base[1:4, :8, :6, :10].copy()[::1]
    yield "every other sample", np.ascontiguousarray(base[:, :8, :6, :10])[::2]
    yield "channel slice", np.ascontiguousarray(base[:3, :, :6, :10])[:, 4:12]
    yield "every other channel", np.ascontiguousarray(base[:3, :, :6, :10])[:, ::2]
    yield "crop", base[:3, :8, 3:9, 5:15]
    yield "every other position", base[:3, :8, ::2, ::2]
    yield "reversed batch", base[2::-1, :8, :6, :10]
    yield "reversed channels", base[:3, 7::-1, :6, :10]
    yield "reversed positions", base[:3, :8, 5::-1, 9::-1]
    yield "swapped positions", np.ascontiguousarray(base[:3, :8, :6, :10].transpose(0, 1, 3, 2)).transpose(0, 1, 3, 2)
    yield "fortran", np.asfortranarray(base[:3, :8, :6, :10])
    yield "channels before samples", np.ascontiguousarray(base[:3, :8, :6, :10].swapaxes(0, 1)).swapaxes(0, 1)
    yield "channels last", in_layout(base[:3, :8, :6, :10], "channels_last")
    yield "channel slice of channels last", in_layout(base[:3, :, :6, :10], "channels_last")[:, 3:11]
    yield (
        "channels in the middle",
        np.ascontiguousarray(base[:3, :8, :6, :10].transpose(0, 2, 1, 3)).transpose(0, 2, 1, 3),
    )
    yield "broadcast batch", np.broadcast_to(base[:1, :8, :6, :10], (3, 8, 6, 10))
    yield "broadcast positions", np.broadcast_to(base[:3, :8, :6, :1], (3, 8, 6, 10))
    yield "broadcast channels", np.broadcast_to(base[:3, :1, :6, :10], (3, 8, 6, 10))
    read_only = base[:3, :8, :6, :10].copy()
    read_only.flags.writeable = False
    yield "read-only", read_only
    raw = np.empty(4 * 3 * 8 * 60 + 1, np.uint8)[1:].view(np.float32).reshape(3, 8, 6, 10)
    raw[...] = base[:3, :8, :6, :10]
    assert not raw.flags.aligned
    yield "unaligned", raw
    records = np.zeros((3, 8, 6, 10), [("other", np.int8), ("x", np.float32)])
    records["x"] = base[:3, :8, :6, :10]
    yield "field of records", records["x"]
    wide = np.asarray(rng.standard_normal((3, 6, 10, 90)), np.float32)[..., 7:79]
    yield "slice of many channels last", np.moveaxis(wide, -1, 1)
    yield "big-endian", base[:3, :8, :6, :10].astype(">f4")


def test_any_strides_give_the_same_numbers(rng):
    for name, x in strided(rng):
        w, b = normal(rng, x.shape[1], np.float32), normal(rng, x.shape[1], np.float32)
        before = x.tobytes()
        y = numbagn.group_norm(x, 4, w, b, activation="relu")
        close(y, reference.group_norm(x, 4, w, b, activation="relu")[0], 2e-6)
        if x.dtype.isnative:
            assert y.strides == np.empty_like(x).strides, name
        assert y.dtype == np.float32
        assert x.tobytes() == before, name


def test_strided_gives_the_bits_of_its_dense_copy(rng):
    for name, x in strided(rng):
        dense = x.astype(np.float32, order="K")
        assert same_bits(numbagn.group_norm(x, 4), numbagn.group_norm(dense, 4)), name


def test_memory_mapped_input_and_output(rng, tmp_path):
    x = normal(rng, (2, 8, 5, 7), np.float32)
    np.save(tmp_path / "x.npy", x)
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
    out = np.lib.format.open_memmap(tmp_path / "y.npy", "w+", np.float32, x.shape)
    assert numbagn.group_norm(mapped, 4, out=out) is out
    out.flush()
    assert same_bits(np.load(tmp_path / "y.npy"), numbagn.group_norm(x, 4))


@pytest.mark.parametrize("parameter", DTYPES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_parameters_of_any_dtype_either_alone(rng, dtype, parameter):
    x = normal(rng, (2, 6, 11), DTYPES[dtype])
    w = normal(rng, 6, DTYPES[parameter], offset=1.0)
    b = normal(rng, (2, 6), DTYPES[parameter])
    for arguments in ({"weight": w}, {"bias": b}, {"weight": b, "bias": w}):
        y = numbagn.group_norm(x, 2, **arguments)
        close(y, reference.group_norm(x, 2, **arguments)[0], dtype_row(x.dtype).tolerance)


@pytest.mark.parametrize("other", DTYPES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_skip_and_residual_of_any_dtype_and_layout(rng, dtype, other):
    x = normal(rng, (2, 6, 4, 5), DTYPES[dtype])
    skip = in_layout(normal(rng, x.shape, DTYPES[other]), "channels_last")
    residual = np.broadcast_to(normal(rng, (2, 6, 1, 1), DTYPES[other]), x.shape)
    y = numbagn.group_norm(x, 2, skip=skip, residual=residual)
    close(y, reference.group_norm(x, 2, skip=skip, residual=residual)[0], dtype_row(x.dtype).tolerance)


def test_empty_arrays_give_empty_results():
    for shape, groups in (((0, 4, 5), 2), ((3, 4, 0), 2), ((3, 0, 5), 7), ((0, 4), 4)):
        y, mean, rstd = numbagn.group_norm_forward(np.zeros(shape, np.float32), groups)
        assert y.shape == shape
        assert mean.shape == rstd.shape == (shape[0], groups)
        assert not mean.any()
        dx, dw, db = numbagn.group_norm_backward(y, y, mean, rstd, groups)
        assert dx.shape == shape
        assert dw.shape == db.shape == (shape[1],)
        assert not dw.any()
        assert not db.any()
        out = np.zeros(shape, np.float32)
        assert numbagn.group_norm(out, groups, out=out) is out


def test_more_than_two_to_the_31_elements_in_strides_of_64_bits(rng):
    # the last sample lies 3 * 2**30 float32 elements beyond the first; pages never touched cost nothing
    step = 3 << 30
    memory = np.zeros(step + 64, np.float32)
    view = np.lib.stride_tricks.as_strided(memory, (2, 4, 16), (4 * step, 64, 4))
    view[...] = normal(rng, view.shape, np.float32)
    close(numbagn.group_norm(view, 2), reference.group_norm(view, 2)[0], 2e-6)
