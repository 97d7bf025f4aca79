"""Odd input that is allowed: it gives the definition's numbers, and leaves all but `out` as it was."""

import warnings

import numpy as np
import pytest
from cases import DTYPES, close, in_layout, normal, same_bits

import numbagn
from numbagn import reference
from numbagn.arrays.dtypes import dtype_row

SHAPE = (3, 8, 6, 10)


def with_value(x, where, value):
    x = x.copy()
    x[where] = value
    return x


def read_only(x):
    x = x.copy()
    x.flags.writeable = False
    return x


def unaligned(x, by=1):
    moved = np.empty(x.nbytes + by, np.uint8)[by:].view(x.dtype).reshape(x.shape)
    moved[...] = x
    assert not moved.flags.aligned
    return moved


def stepped(x):
    """The same values at every other position of every axis."""
    wide = np.full([2 * n for n in x.shape], np.nan, x.dtype)
    wide[tuple(slice(1, None, 2) for _ in x.shape)] = x
    return wide[tuple(slice(1, None, 2) for _ in x.shape)]


def reversed_everywhere(x):
    back = tuple(slice(None, None, -1) for _ in x.shape)
    return x[back].copy()[back]


def permuted(x, *axes):
    """The same values with the memory order of `axes`."""
    return np.ascontiguousarray(x.transpose(axes)).transpose(np.argsort(axes))


# name: what becomes of a (3, 8, 6, 10) float32 array of normal numbers
ARRAYS = {
    "read-only": read_only,
    "unaligned": unaligned,
    "unaligned by half": lambda x: unaligned(x, 2),
    "every other element": stepped,
    "negative strides": reversed_everywhere,
    "reversed batch": lambda x: x[::-1],
    "reversed channels": lambda x: x[:, ::-1],
    "mirrored": lambda x: x[..., ::-1],
    "crop": lambda x: x[:, :, 1:5, 2:9],
    "crop of channels last": lambda x: in_layout(x, "channels_last")[:, :, 1:5, 2:9],
    "half the channels of channels last": lambda x: in_layout(np.concatenate([x, x], 1), "channels_last")[:, 4:12],
    "Fortran order": np.asfortranarray,
    "all axes reversed in memory": lambda x: permuted(x, 3, 2, 1, 0),
    "positions before samples": lambda x: permuted(x, 2, 3, 0, 1),
    "positions around channels": lambda x: permuted(x, 0, 2, 1, 3),
    "positions swapped": lambda x: permuted(x, 0, 1, 3, 2),
    "positions swapped, channels last": lambda x: permuted(x, 0, 3, 2, 1),
    "one sample in any place": lambda x: permuted(x[:1], 2, 0, 3, 1),
    "one sample for all": lambda x: np.broadcast_to(x[:1], x.shape),
    "one channel for all": lambda x: np.broadcast_to(x[:, :1], x.shape),
    "one row for all": lambda x: np.broadcast_to(x[:, :, :1], x.shape),
    "one number for all": lambda x: np.broadcast_to(x[:1, :1, :1, :1], x.shape),
    "windows": lambda x: np.lib.stride_tricks.sliding_window_view(x.ravel(), 80)[:12].reshape(12, 8, 10),
    "windows over the batch": lambda x: np.lib.stride_tricks.as_strided(x, (5, 8, 6), (32, 24, 4)),
    "big-endian": lambda x: x.astype(">f4"),
    "big-endian, channels last": lambda x: in_layout(x.astype(">f4"), "channels_last"),
    "field of records": lambda x: np.rec.fromarrays([x, x.astype(np.int8)]).view(np.ndarray)["f0"],
    "real part": lambda x: (x + 1j * x).real,
    "many dimensions": lambda x: x.reshape(3, 8, 1, 2, 1, 3, 5, 1, 2, 1),
    "(N, C)": lambda x: x[:, :, 0, 0],
    "C = N": lambda x: x.reshape(12, 12, 10)[:8, :8],
    "C = S": lambda x: x.reshape(3, 8, 60)[:, :, 7::-1],
    "one sample": lambda x: x[:1],
    "one position": lambda x: x[:, :, :1, :1],
    "offset 1e4": lambda x: x + np.float32(1e4),
    "offset 1e6": lambda x: x + np.float32(1e6),
    "offset 1e8": lambda x: x + np.float32(1e8),
    "offset -1e8": lambda x: x - np.float32(1e8),
    "scale 1e-30": lambda x: x * np.float32(1e-30),
    "subnormal": lambda x: x * np.float32(1e-42),
    "scale 1e19": lambda x: x * np.float32(1e19),
    "scale 1e30": lambda x: x * np.float32(1e30),
    "scale 3e37": lambda x: x * np.float32(3e37),
    "up to 1e38": lambda x: np.sign(x) * np.float32(1e38),
    "scales of 40 digits": lambda x: x * np.float32(10) ** np.arange(-20, 20, 5, np.float32).reshape(1, 8, 1, 1),
    "zeros": np.zeros_like,
    "negative zeros": lambda x: np.copysign(np.float32(0), -np.ones_like(x)),
    "constant": lambda x: np.full_like(x, -7.3),
    "constant channels": lambda x: np.broadcast_to(np.arange(8, dtype=np.float32).reshape(8, 1, 1), x.shape),
}


@pytest.mark.parametrize("name", ARRAYS)
def test_arrays(rng, one_thread, name):
    x = ARRAYS[name](normal(rng, SHAPE, np.float32))
    weight, bias = normal(rng, 8, np.float32), normal(rng, (x.shape[0], 8), np.float32)
    dy = normal(rng, x.shape, np.float32)
    before = x.tobytes()
    y, mean, rstd = numbagn.group_norm_forward(x, 4, weight, bias)
    want, want_mean, want_rstd = reference.group_norm(x, 4, weight, bias)
    close(y, want, 4e-6)
    np.testing.assert_allclose(mean, want_mean, rtol=1e-6, atol=1e-7 * np.abs(x).astype(np.float64).max())
    np.testing.assert_allclose(rstd, want_rstd, rtol=1e-6)
    got = numbagn.group_norm_backward(dy, x, mean, rstd, 4, weight, bias)
    terms = rstd.max() * np.abs(dy).max() * np.abs(weight).max()  # of dx, which may all but cancel
    want = reference.group_norm_backward(dy, x, 4, weight, bias)[:3]
    tolerances = (1e-6 * terms, 1e-5 * np.abs(want[1]).max(), 1e-5 * np.abs(want[2]).max())
    for g, v, tolerance in zip(got, want, tolerances, strict=True):
        assert g.shape == v.shape
        np.testing.assert_allclose(g, v, rtol=0, atol=tolerance + np.finfo(np.float32).tiny)
    assert x.tobytes() == before


# name: (x from normal numbers of shape (2, 6, 4, 10), groups, further arguments)
CALLS = {
    "one group": (lambda x: x, 1, {}),
    "a group for each channel": (lambda x: x, 6, {}),
    "one value a group": (lambda x: x[..., :1, :1], 6, {}),
    "one value a group, eps 0": (lambda x: x[..., 0, 0], 6, {"eps": 0}),
    "constant, eps 0": (lambda x: np.full_like(x, 3e4), 3, {"eps": 0.0}),
    "constant group among others, eps 0": (lambda x: with_value(x, (1, slice(2, 4)), 0.1), 3, {"eps": 0.0}),
    "channels last by axis": (lambda x: x, 5, {"channel_axis": -1}),
    "channels in the middle": (lambda x: x, 2, {"channel_axis": 2}),
    "channels in the middle, from the end": (lambda x: x, 2, {"channel_axis": -2}),
    "channel axis 1 from the end": (lambda x: x, 2, {"channel_axis": -3}),
    "(N, C), last axis": (lambda x: x[:, :, 0, 0], 2, {"channel_axis": -1}),
    "NumPy integers": (lambda x: x, np.uint8(3), {"channel_axis": np.int16(1)}),
    "an array that is an integer": (lambda x: x, np.array(3), {}),
    "eps as integer": (lambda x: x, 3, {"eps": 1}),
    "eps as float32": (lambda x: x, 3, {"eps": np.float32(0.1)}),
    "large eps": (lambda x: x, 3, {"eps": 1e30}),
    "tiny eps": (lambda x: 1e-20 * x, 3, {"eps": 1e-300}),
    "float64 weight": (lambda x: x, 3, {"weight": np.linspace(-1, 1, 6)}),
    "big-endian weight": (lambda x: x, 3, {"weight": np.linspace(-1, 1, 6).astype(">f4")}),
    "read-only weight": (lambda x: x, 3, {"weight": read_only(np.linspace(-1, 1, 6, dtype=np.float32))}),
    "reversed weight": (lambda x: x, 3, {"weight": np.linspace(-1, 1, 6, dtype=np.float32)[::-1]}),
    "unaligned weight": (lambda x: x, 3, {"weight": unaligned(np.linspace(-1, 1, 6, dtype=np.float32))}),
    "one number as weight": (lambda x: x, 3, {"weight": np.broadcast_to(np.float32(2), 6)}),
    "bias alone": (lambda x: x, 3, {"bias": np.linspace(-1, 1, 6, dtype=np.float32)}),
    "weight of each sample": (lambda x: x, 3, {"weight": np.linspace(-1, 1, 12, dtype=np.float32).reshape(2, 6)}),
    "weight of each sample, transposed": (lambda x: x, 3, {"weight": np.linspace(-1, 1, 12).reshape(6, 2).T}),
    "weight of one sample": (lambda x: x[:1], 3, {"weight": np.linspace(-1, 1, 6).reshape(1, 6)}),
    "weight 0": (lambda x: x, 3, {"weight": np.zeros(6), "bias": np.arange(6.0)}),
    "parameters beyond float32": (lambda x: x, 3, {"weight": np.full(6, 1e-300), "bias": np.full(6, 1e-60)}),
    "N = C, (C,)": (lambda x: x.reshape(5, 6, 16)[[0, 1, 2, 3, 4, 0]], 3, {"weight": np.arange(6.0)}),
    "N = C, (N, C)": (lambda x: x.reshape(5, 6, 16)[[0, 1, 2, 3, 4, 0]], 3, {"weight": np.arange(36.0).reshape(6, 6)}),
    "x as skip": (lambda x: x, 3, {"skip": "x"}),
    "x as residual": (lambda x: x, 3, {"residual": "x"}),
    "skip of another layout": (lambda x: in_layout(x, "channels_last"), 3, {"skip": np.ones((2, 6, 4, 10))}),
    "big-endian residual": (lambda x: x, 3, {"residual": np.linspace(-1, 1, 480).astype(">f4").reshape(2, 6, 4, 10)}),
}  # fmt: skip


@pytest.mark.parametrize("name", CALLS)
def test_calls(rng, one_thread, name):
    make, groups, options = CALLS[name]
    x = make(normal(rng, (2, 6, 4, 10), np.float32))
    options = {k: x if isinstance(v, str) else v for k, v in options.items()}
    y = numbagn.group_norm(x, groups, **options)
    assert y.dtype == np.float32
    assert y.strides == np.empty_like(x).strides
    close(y, reference.group_norm(x, int(groups), **options)[0], 4e-6)


@pytest.mark.parametrize(
    ("shape", "groups"), [((0, 4, 5), 2), ((3, 4, 0), 2), ((3, 4, 2, 0, 5), 1), ((3, 0, 5), 7), ((0, 4), 4)]
)
def test_empty(shape, groups):
    x, out = np.zeros(shape, np.float32), np.zeros(shape, np.float32)
    parameters = np.ones(shape[1], np.float32), np.ones(shape[:2], np.float32)
    for strides in (None, (0,) * len(shape)):  # what NumPy gives an empty array
        out = np.lib.stride_tricks.as_strided(out, shape, strides)
        y, mean, rstd = numbagn.group_norm_forward(x, groups, *parameters, activation="silu", out=out)
        assert y is out
        assert mean.shape == rstd.shape == (shape[0], groups)
        dx, dweight, dbias, dresidual = numbagn.group_norm_backward(
            x, x, mean, rstd, groups, *parameters, residual=x, out=out
        )
        assert dx is out
        assert dresidual.shape == shape
        assert (dweight.shape, dbias.shape) == (shape[1:2], shape[:2])
        assert not dweight.any()
        assert not dbias.any()


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_nan_and_infinity_stay_in_their_group(rng, one_thread, bad):
    x = normal(rng, SHAPE, np.float32)
    clean = numbagn.group_norm(x, 4)
    spoiled = numbagn.group_norm(with_value(x, (1, 2, 3, 4), bad), 4)
    assert np.isnan(spoiled[1, 2:4]).all()
    spoiled[1, 2:4] = clean[1, 2:4]
    np.testing.assert_array_equal(spoiled, clean)


def test_infinite_parameters_and_gradients_stay_in_their_channel(rng, one_thread):
    x = normal(rng, SHAPE, np.float32)
    weight = np.ones(8, np.float32)
    clean = numbagn.group_norm(x, 4, weight)
    y, mean, rstd = numbagn.group_norm_forward(x, 4, with_value(weight, 3, np.nan))
    assert np.isnan(y[:, 3]).all()
    y[:, 3] = clean[:, 3]
    np.testing.assert_array_equal(y, clean)
    dy = normal(rng, SHAPE, np.float32)
    want = numbagn.group_norm_backward(dy, x, mean, rstd, 4)
    dy[0, 5, 0, 0], dy[1, 5, 0, 0] = np.inf, -np.inf
    dx, dweight, dbias = numbagn.group_norm_backward(dy, x, mean, rstd, 4)  # inf - inf: no warning either
    assert np.isnan(dbias[5])
    assert not np.isfinite(dweight[5])
    others = np.arange(8) != 5
    np.testing.assert_array_equal(dweight[others], want[1][others])
    np.testing.assert_array_equal(dbias[others], want[2][others])
    np.testing.assert_array_equal(dx[2], want[0][2])


@pytest.mark.parametrize(
    ("dtype", "scale", "finite"),
    [("bfloat16", 1e38, True), ("float16", 2e4, True), ("float16", 6e-8, True), ("float64", 1e150, True),
     ("float64", 1e-150, True), ("float64", 1e300, False)],
)  # fmt: skip
def test_ends_of_the_range(rng, one_thread, dtype, scale, finite):
    x = (scale * rng.uniform(-3, 3, (2, 8, 50))).astype(DTYPES[dtype])
    y = numbagn.group_norm(x, 4, eps=0.0)
    if finite:
        close(y, reference.group_norm(x, 4, eps=0.0)[0], dtype_row(x.dtype).tolerance)
    else:  # a variance beyond the range is never silent zeros
        assert np.isnan(y).all()


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_errstate_of_the_caller_is_not_asked(rng, one_thread, dtype):
    x = normal(rng, (2, 6, 10), DTYPES[dtype])
    extremes = np.array([1e-300, 1e300, np.inf, -np.inf, np.nan, 0.0])
    operand = np.resize(extremes, x.shape)
    with np.errstate(over="ignore"):
        half_extremes, half_operand = extremes.astype(np.float16), operand.astype(np.float16)
    dy = np.full(x.shape, 1e6, np.float32)
    with np.errstate(all="raise"), warnings.catch_warnings():
        warnings.simplefilter("error")
        _, mean, rstd = numbagn.group_norm_forward(x, 3, extremes, extremes, residual=operand)
        gradients = numbagn.group_norm_backward(dy, x, mean, rstd, 3, half_extremes, extremes, residual=half_operand)
    assert len(gradients) == 4
    assert np.isinf(gradients[3]).all()  # 1e6 as float16


def test_memory_maps(rng, one_thread, tmp_path):
    x = normal(rng, SHAPE, np.float32)
    np.save(tmp_path / "x.npy", x)
    np.save(tmp_path / "big.npy", x.astype(">f4"))
    want = numbagn.group_norm(x, 4)
    for name in ("x.npy", "big.npy"):
        mapped = np.load(tmp_path / name, mmap_mode="r")
        y = numbagn.group_norm(mapped, 4)
        assert type(y) is np.ndarray
        assert same_bits(y, want)
        assert same_bits(numbagn.group_norm(mapped[:, ::-1], 4), numbagn.group_norm(x[:, ::-1], 4))
    in_place = np.load(tmp_path / "x.npy", mmap_mode="r+")
    assert numbagn.group_norm(in_place, 4, out=in_place) is in_place
    in_place.flush()
    assert same_bits(np.load(tmp_path / "x.npy"), want)


@pytest.mark.parametrize(
    "huge",
    [
        np.broadcast_to(np.float32(1), (1 << 21, 4, 1 << 22)),  # must be copied first
        np.broadcast_to(np.ones((1, 4, 8), np.float32), (1 << 40, 4, 8)),  # can be read where it is
        np.broadcast_to(np.ones((1, 8, 4), np.float16), (1 << 40, 8, 4)).transpose(0, 2, 1),
    ],
    ids=["a copy", "channels first", "channels last"],
)
def test_what_is_larger_than_memory_is_a_memory_error(huge):
    with pytest.raises(MemoryError):
        numbagn.group_norm(huge, 2)
    with pytest.raises(MemoryError):
        numbagn.group_norm(huge, 2, mask=np.ones(1, bool))
