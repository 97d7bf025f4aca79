"""`group_norm` inside functions that Numba compiles: the numbers, the memory order and the errors of Python's calls."""

import itertools
import re

import numpy as np
import pytest
from cases import close, in_layout, normal, same_bits
from numba import njit, prange
from numba.core.errors import TypingError
from numba.core.event import install_recorder
from numba.core.runtime import _nrt_python as runtime
from numba.core.runtime import rtsys

import numbagn
import numbagn._njit  # Numba imports it by the entry point, where numbagn is installed  # noqa: F401
from numbagn import reference

pytestmark = pytest.mark.usefixtures("one_thread")


@njit
def plain(x, num_groups):
    return numbagn.group_norm(x, num_groups)


@njit
def affine(x, num_groups, weight, bias):
    return numbagn.group_norm(x, num_groups, weight, bias)


@njit
def along(x, num_groups, weight, bias, eps, axis):
    return numbagn.group_norm(x, num_groups, weight, bias=bias, eps=eps, channel_axis=axis)


@njit
def into(x, num_groups, out):
    return numbagn.group_norm(x, num_groups, out=out)


def equal(got, want):
    """Assert the same bits in the same memory order."""
    assert same_bits(got, want)
    significant = [axis for axis, size in enumerate(want.shape) if size > 1]
    assert [got.strides[a] for a in significant] == [want.strides[a] for a in significant]


# ---------------------------------------------------------------------------------------------------------------- bits


def test_samples_that_share_memory(rng):
    """A broadcast batch, overlapping windows, axes in any order and direction: memory that no result has."""
    for dtype in (np.float32, np.float64):
        one, buffer = normal(rng, (4, 5), dtype), normal(rng, (4000,), dtype)
        windows = np.lib.stride_tricks.sliding_window_view(buffer[:60], 20)
        arrays = [np.broadcast_to(one, (3, 4, 5)), windows[:, ::-1].reshape(41, 4, 5)]
        arrays += [np.broadcast_to(one[:, :, None], (2, 4, 5, 6))] if dtype == np.float32 else []
        for _ in range(300):
            shape = rng.integers(1, 5, 3 if dtype == np.float64 else rng.integers(3, 5))
            dense = np.cumprod([1, *shape[:0:-1]])[::-1]
            strides = np.where(rng.random(shape.size) < 0.7, rng.permutation(dense), rng.integers(-9, 10, shape.size))
            strides[0] = rng.choice([0, 1, strides[0], shape[-1]])
            arrays.append(np.lib.stride_tricks.as_strided(buffer[2000:], shape, strides * buffer.itemsize))
        for x in arrays:
            groups = int(rng.choice([1, x.shape[1]]))
            want, out = numbagn.group_norm(x, groups), np.full(x.shape, np.nan, dtype)
            assert same_bits(plain(x, groups), want)
            if (dtype, x.ndim) == (np.float32, 3):
                assert same_bits(into(x, groups, out), want)


@pytest.mark.parametrize("layout", ["channels_first", "channels_last"])
@pytest.mark.parametrize(
    ("shape", "groups", "dtype"),
    [
        ((5, 24), 3, np.float32),
        ((3, 6, 41), 2, np.float32),
        ((2, 30, 13, 17), 6, np.float32),
        ((2, 30, 13, 17), 6, np.float64),
        ((1, 4, 3, 5, 7), 2, np.float32),
    ],
)
def test_same_bits_as_from_python(rng, shape, groups, dtype, layout):
    x = in_layout(normal(rng, shape, dtype, offset=3.0), layout)
    weight, bias = normal(rng, shape[1], dtype), normal(rng, shape[1], dtype)
    got = affine(x, groups, weight, bias)
    equal(got, numbagn.group_norm(x, groups, weight, bias))
    close(got, reference.group_norm(x, groups, weight, bias)[0], 2e-6 if dtype is np.float32 else 2e-14)


@pytest.mark.parametrize(
    ("shape", "groups"), [((1, 1, 1, 1), 1), ((3, 12, 1, 1), 4), ((3, 4, 3, 1), 2), ((1, 3, 211, 223), 3)]
)
def test_same_bits_for_any_size(rng, shape, groups):
    """Single values, blocks of less than a vector, several parts a block."""
    x = normal(rng, shape, np.float32, offset=-2.0)
    equal(plain(x, groups), numbagn.group_norm(x, groups))
    x = in_layout(normal(rng, (*shape[:-1], 2 * shape[-1]), np.float32), "channels_last")[..., ::2]
    equal(plain(x, groups), numbagn.group_norm(x, groups))


def test_same_bits_for_any_strides(rng):
    """Orders of axes, steps and signs: those that kernels know, and those that are copied as Python's calls copy."""
    shape = (3, 4, 5, 6)
    for order in itertools.permutations(range(4)):
        for steps in ((1, 1, 1, 1), (2, 1, 1, 1), (1, 1, 1, 2), (-1, 1, 1, 1), (1, 1, -1, 1), (1, 2, 1, -3)):
            large = normal(rng, [shape[a] * abs(step) for a, step in zip(order, steps, strict=True)], np.float32)
            x = large[tuple(slice(None, None, step) for step in steps)].transpose(np.argsort(order))
            equal(plain(x, 2), numbagn.group_norm(x, 2))


def test_same_bits_for_views_of_one_memory(rng):
    base = normal(rng, (4, 9, 11, 70), np.float32)
    crop = base[:, 1:7, 2:9]  # channels last, gaps between rows
    wide = np.moveaxis(base[..., :64], -1, 1)  # gaps between positions, as kernels know them
    narrow = np.moveaxis(base[..., :40], -1, 1)  # as they do not
    windows = np.lib.stride_tricks.sliding_window_view(base[0, 0], (4, 6))
    constant = np.broadcast_to(normal(rng, (1, 8, 3, 1), np.float32), (5, 8, 3, 2))
    for x, groups in ((np.moveaxis(crop, -1, 1), 7), (wide, 8), (narrow, 4), (windows, 2), (constant, 4)):
        groups = np.gcd(groups, x.shape[1])
        equal(plain(x, groups), numbagn.group_norm(x, groups))


def test_read_only_unaligned_and_fortran_arrays(rng):
    x, weight = normal(rng, (2, 8, 5, 3), np.float32), normal(rng, 8, np.float32)
    raw = np.empty(x.nbytes + 2, np.uint8)
    unaligned = raw[2:].view(np.float32).reshape(x.shape)
    unaligned[...] = x
    fortran = np.asfortranarray(x)
    want = numbagn.group_norm(x, 4, weight, weight)
    equal(affine(unaligned, 4, weight, weight), want)
    equal(affine(fortran, 4, weight, weight), numbagn.group_norm(fortran, 4, weight, weight))
    for array in (x, weight):
        array.flags.writeable = False
    got = affine(x, 4, weight, weight)
    equal(got, want)
    assert got.flags.writeable


def test_empty_arrays():
    for shape in ((0, 4, 3, 2), (2, 4, 0, 2)):
        assert plain(np.empty(shape, np.float32), 2).shape == shape


def test_one_sample_of_a_batch_has_its_bits(rng):
    @njit
    def one_by_one(x, weight):
        y = np.empty_like(x)
        for n in range(x.shape[0]):
            y[n] = numbagn.group_norm(x[n : n + 1], 4, weight[n : n + 1])[0]
        return y

    x, weight = normal(rng, (3, 8, 9, 7), np.float32), normal(rng, (3, 8), np.float32)
    equal(one_by_one(x, weight), numbagn.group_norm(x, 4, weight))


# ---------------------------------------------------------------------------------------------------------- parameters


def test_weight_and_bias_of_any_kind(rng):
    x = normal(rng, (3, 8, 7), np.float32)
    vector, matrix = normal(rng, 8, np.float32), normal(rng, (3, 8), np.float64)
    doubled = np.repeat(vector, 2)[::2]
    for weight, bias in (
        (None, vector), (vector, None), (vector.astype(np.float64), matrix), (matrix.astype(np.float32), doubled),
        (matrix.T.copy().T, None),
    ):  # fmt: skip
        equal(affine(x, 2, weight, bias), numbagn.group_norm(x, 2, weight, bias))
    y = affine(x.astype(np.float64), 2, vector, matrix)
    equal(y, numbagn.group_norm(x.astype(np.float64), 2, vector, matrix))


def test_any_integer_and_real_number(rng):
    x, weight = normal(rng, (2, 8, 3), np.float32), normal(rng, 8, np.float32)
    for groups, eps, axis in (
        (np.int8(4), 0.1, 1), (np.uint64(4), np.float32(0.1), 1), (4, 0, -2), (np.int32(4), np.int64(1), np.int8(1)),
    ):  # fmt: skip
        got = along(x, groups, weight, None, eps, axis)
        equal(got, numbagn.group_norm(x, groups, weight, None, float(eps), channel_axis=int(axis)))


def test_channel_axis(rng):
    x, weight = normal(rng, (2, 6, 8, 4), np.float32), [normal(rng, n, np.float32) for n in (0, 6, 8, 4)]
    for axis in (1, 2, 3, -1, -2, -3):
        w = weight[axis]
        equal(along(x, 2, w, w, 1e-3, axis), numbagn.group_norm(x, 2, w, w, 1e-3, channel_axis=axis))

    @njit
    def last(x):
        return numbagn.group_norm(x, num_groups=2, channel_axis=-1)

    equal(last(x), numbagn.group_norm(x, 2, channel_axis=-1))


def test_activations(rng):
    @njit
    def all_of_them(x, weight):
        return (
            numbagn.group_norm(x, 2, weight, activation=None), numbagn.group_norm(x, 2, weight, activation="relu"),
            numbagn.group_norm(x, 2, weight, activation="silu"), numbagn.group_norm(x, 2, weight, activation="gelu"),
            numbagn.group_norm(x, 2, weight, activation="gelu_tanh"),
        )  # fmt: skip

    x, weight = normal(rng, (2, 6, 5, 7), np.float32), normal(rng, 6, np.float32)
    for got, activation in zip(all_of_them(x, weight), (None, "relu", "silu", "gelu", "gelu_tanh"), strict=True):
        equal(got, numbagn.group_norm(x, 2, weight, activation=activation))


@pytest.mark.parametrize("layout", ["channels_first", "channels_last"])
def test_out(rng, layout):
    x = in_layout(normal(rng, (2, 6, 5, 7), np.float32), layout)
    want = numbagn.group_norm(x, 2)
    raw = np.zeros(2 * x.size + 7, np.float32)
    unaligned = np.zeros(x.nbytes + 1, np.uint8)[1:].view(np.float32)
    outs = [x.copy("K"), np.zeros(x.shape, np.float32), raw[::2][: x.size].reshape(x.shape), unaligned.reshape(x.shape)]
    outs += [np.zeros(x.shape[::-1], np.float32).T, np.zeros((6, 2, 5, 7), np.float32)[:, ::-1].transpose(1, 0, 2, 3)]
    for out in outs:
        assert into(x, 2, out).ctypes.data == out.ctypes.data
        np.testing.assert_array_equal(out, want)
    in_place = x.copy("K")
    into(in_place, 2, in_place)
    np.testing.assert_array_equal(in_place, want)
    for shift in (1, 7, x.size - 1):  # overlaps of all kinds
        memory = np.zeros(x.size + shift, np.float32)
        start, moved = memory[: x.size].reshape(x.shape), memory[shift:].reshape(x.shape)
        if layout == "channels_last":
            start, moved = (np.moveaxis(a.reshape(2, 5, 7, 6), -1, 1) for a in (start, moved))
        for source, out in ((start, moved), (moved, start), (start, start[::-1])):
            source[...] = x
            into(source, 2, out)
            np.testing.assert_array_equal(out, want)


def test_out_may_overlap_the_parameters(rng):
    @njit
    def over(x, weight, out):
        return numbagn.group_norm(x, 2, weight, weight, out=out)

    x = normal(rng, (2, 6, 5), np.float32)
    out = normal(rng, (2, 6, 5), np.float32)
    weight = out.reshape(-1)[3:9]
    want = numbagn.group_norm(x, 2, weight.copy(), weight.copy())
    np.testing.assert_array_equal(over(x, weight, out), want)


# -------------------------------------------------------------------------------------------------------------- errors


def test_values_that_do_not_fit():
    x, weight = np.ones((2, 6, 5), np.float32), np.ones(6, np.float32)
    cases = [
        ((x, 4, weight, None, 1e-5, 1), "num_groups must divide the number of channels"),
        ((x, 0, weight, None, 1e-5, 1), "num_groups must divide the number of channels"),
        ((x, np.uint64(2**64 - 1), weight, None, 1e-5, 1), "num_groups must divide the number of channels"),
        ((x, 2, weight[1:], None, 1e-5, 1), "weight must have shape (C,) or (N, C)"),
        ((x, 2, weight, weight[1:], 1e-5, 1), "bias must have shape (C,) or (N, C)"),
        ((x, 2, np.ones((3, 6), np.float32), None, 1e-5, 1), "weight must have shape (C,) or (N, C)"),
        ((x, 2, weight, None, -1.0, 1), "eps must be finite and not negative"),
        ((x, 2, weight, None, np.nan, 1), "eps must be finite and not negative"),
        ((x, 2, weight, None, np.inf, 1), "eps must be finite and not negative"),
    ]
    message = "channel_axis must be from 1 to x.ndim - 1 or negative"
    cases += [((x, 1, weight, None, 1e-5, axis), message) for axis in (0, 3, -3)]
    for arguments, message in cases:
        with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
            along(*arguments)
    out = np.full((2, 6, 4), 7, np.float32)
    with pytest.raises(ValueError, match=r"^out must have x's shape$"):
        into(x, 2, out)
    assert (out == 7).all()


def test_nan_is_refused_under_the_users_fastmath():
    @njit(fastmath=True)
    def fast(x, eps):
        return numbagn.group_norm(x, 2, eps=eps)

    with pytest.raises(ValueError, match=r"^eps must be finite"):
        fast(np.ones((1, 4, 3), np.float32), np.nan)


X = np.ones((2, 4, 3), np.float32)
READ_ONLY = np.broadcast_to(X, X.shape)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x: numbagn.group_norm((1.0, 2.0), 2), "x must be an array of float32 or float64"),
        (lambda x: numbagn.group_norm(x.astype(np.int64), 2), "x must be an array of float32 or float64"),
        (lambda x: numbagn.group_norm(x.astype(np.complex64), 2), "x must be an array of float32 or float64"),
        (lambda x: numbagn.group_norm(x.ravel(), 2), "x must have at least 2 dimensions"),
        (lambda x: numbagn.group_norm(x, 2.0), "num_groups must be an integer"),
        (lambda x: numbagn.group_norm(x, True), "num_groups must be an integer"),
        (lambda x: numbagn.group_norm(x, "2"), "num_groups must be an integer"),
        (lambda x: numbagn.group_norm(x, 2, eps=1j), "eps must be a real number"),
        (lambda x: numbagn.group_norm(x, 2, eps=None), "eps must be a real number"),
        (lambda x: numbagn.group_norm(x, 2, eps=False), "eps must be a real number"),
        (lambda x: numbagn.group_norm(x, 2, channel_axis=1.0), "channel_axis must be an integer"),
        (lambda x: numbagn.group_norm(x, 2, 1.0), "weight must be an array of float32 or float64"),
        (lambda x: numbagn.group_norm(x, 2, x), "weight must have 1 or 2 dimensions, got 3"),
        (lambda x: numbagn.group_norm(x, 2, bias=np.ones(4, np.int32)), "bias must be an array of float32 or float64"),
        (lambda x: numbagn.group_norm(x, 2, activation="tanh"), "activation must be one of None, 'relu', 'silu'"),
        (lambda x: numbagn.group_norm(x, 2, activation=1), "activation must be one of None, 'relu', 'silu'"),
        (lambda x: numbagn.group_norm(x, 2, activation=str(x.size)), "activation must be one of None, 'relu', 'silu'"),
        (lambda x: numbagn.group_norm(x, 2, skip=x), "skip must be None in compiled functions"),
        (lambda x: numbagn.group_norm(x, 2, residual=x), "residual must be None in compiled functions"),
        (lambda x: numbagn.group_norm(x, 2, out=x[0]), "out must have x's dtype and dimensions"),
        (lambda x: numbagn.group_norm(x, 2, out=x.astype(np.float64)), "out must have x's dtype and dimensions"),
        (lambda x: numbagn.group_norm(x, 2, out=1.0), "out must be an array of float32 or float64"),
        (lambda x: numbagn.group_norm(x, 2, out=READ_ONLY), "out must be writable"),
    ],
)
def test_kinds_that_are_not_taken(call, message):
    with pytest.raises(TypingError, match=re.escape(message)):
        njit(call)(X)


# ------------------------------------------------------------------------------------------ loops and other functions


def test_in_a_parallel_loop(rng):
    @njit(parallel=True)
    def samples(x, weight, bias):
        y = np.empty_like(x)
        for n in prange(x.shape[0]):
            y[n] = numbagn.group_norm(x[n : n + 1], 4, weight, bias, activation="silu")[0]
        return y

    x, weight, bias = normal(rng, (37, 8, 9, 7), np.float32), normal(rng, 8, np.float32), normal(rng, 8, np.float32)
    equal(samples(x, weight, bias), numbagn.group_norm(x, 4, weight, bias, activation="silu"))


def test_memory_stays_flat(rng):
    @njit
    def many(x, weight, count):
        total = 0.0
        for _ in range(count):
            total += numbagn.group_norm(x, 4, weight)[0, 0, 0, 0]
        return total

    x, weight = normal(rng, (2, 8, 16, 16), np.float32), normal(rng, 8, np.float64)
    views = [x, in_layout(x, "channels_last"), x[..., ::2]]
    for view in views:
        many(view, weight, 1)
    runtime.memsys_enable_stats()
    try:
        before = rtsys.get_allocation_stats()
        for view in views:
            many(view, weight, 1000)
        after = rtsys.get_allocation_stats()
    finally:
        runtime.memsys_disable_stats()
    assert after.alloc - before.alloc == after.free - before.free > 3000


def test_callers_share_what_is_compiled(rng):
    x = normal(rng, (2, 8, 5), np.float32)
    plain(x, 2)
    with install_recorder("numba:compile") as compilations:
        njit(lambda x, groups: numbagn.group_norm(x, groups) + 1.0)(x, 4)
    names = {event.data["dispatcher"].py_func.__qualname__ for _, event in compilations.buffer}
    assert not [name for name in names if "forward" in name]
