"""What is promised of accuracy, each promise by name."""

import numpy as np
import pytest
from cases import DTYPES, LAYOUTS, close, error, in_layout, normal
from command_line import shell

import numbagn
from numbagn import reference

SHAPES = (
    ((2, 32, 16, 16), 8),
    ((1, 6, 7, 7), 2),
    ((4, 768), 1),
    ((3, 64, 1), 16),
    ((1, 4, 130, 131), 1),
    ((2, 30, 40, 41), 30),
)


@pytest.mark.parametrize("offset", [0.0, 1e4, 1e6])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_float32_error_at_most_2e6_at_any_offset(rng, one_thread, layout, offset):
    for shape, groups in SHAPES:
        x = in_layout(normal(rng, shape, np.float32, offset=offset), layout)
        y, mean, rstd = numbagn.group_norm_forward(x, groups)
        want, want_mean, want_rstd = reference.group_norm(x, groups)
        assert error(y, want) <= 2e-6, shape
        assert error(mean, want_mean) <= 1e-7, shape
        np.testing.assert_allclose(rstd, want_rstd, rtol=3e-7)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_float32_error_with_skip_of_opposite_offset(rng, one_thread, layout):
    for offset in (1e4, 1e6):
        x = in_layout(normal(rng, (2, 16, 20, 21), np.float32, offset=offset), layout)
        skip = in_layout(normal(rng, x.shape, np.float32, offset=0.5 - offset), layout)
        assert error(numbagn.group_norm(x, 4, skip=skip), reference.group_norm(x, 4, skip=skip)[0]) <= 2e-6


@pytest.mark.parametrize("scale", [1e-30, 1e-20, 1e-10, 1e10, 1e19, 1e30, 3e37])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_float32_magnitudes_from_1e30_to_1e38(rng, one_thread, layout, scale):
    for shape, groups in (((2, 8, 9, 10), 4), ((3, 24, 1), 2), ((1, 2, 70, 71), 1)):
        x = in_layout((scale * rng.uniform(-3, 3, shape)).astype(np.float32), layout)
        close(numbagn.group_norm(x, groups, eps=0.0), reference.group_norm(x, groups, eps=0.0)[0], 2e-6)
        close(numbagn.group_norm(x, groups), reference.group_norm(x, groups)[0], 2e-6)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_float32_at_the_end_of_its_range(one_thread, layout):
    top = np.finfo(np.float32).max
    x = in_layout(np.array([top, -top, top, top / 2, 0, -top / 4] * 8, np.float32).reshape(1, 4, 12), layout)
    close(numbagn.group_norm(x, 2), reference.group_norm(x, 2)[0], 2e-6)
    lopsided = in_layout(np.where(np.arange(48).reshape(1, 4, 12) == 5, -top, top), layout)
    close(numbagn.group_norm(lopsided, 1), reference.group_norm(lopsided, 1)[0], 2e-6)


def test_bfloat16_at_the_end_of_its_range(one_thread):
    x = np.array([3e38, -3e38, 1e38, 3e38] * 12, np.float32).astype(DTYPES["bfloat16"]).reshape(1, 4, 12)
    close(numbagn.group_norm(x, 2), reference.group_norm(x, 2)[0], 1.6e-2)


def test_overflowing_variance_is_nan_not_zero(rng, one_thread):
    x = normal(rng, (1, 4, 50), np.float64, scale=1e300)
    with np.errstate(over="ignore"):
        y, _, rstd = numbagn.group_norm_forward(x, 2)
    assert np.isnan(y).all()
    assert np.isnan(rstd).all()


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_outputs_are_the_correctly_rounded_ones(rng, one_thread, dtype, layout):
    x = in_layout(normal(rng, (2, 32, 60, 61), DTYPES[dtype], offset=0.5), layout)
    w, b = normal(rng, 32, np.float32), normal(rng, 32, np.float32)
    want = reference.group_norm(x, 8, w, b)[0].astype(DTYPES[dtype])
    assert (numbagn.group_norm(x, 8, w, b) == want).mean() >= 0.999


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_constant_group_gives_the_bias(rng, one_thread, dtype, layout):
    for value in (0.0, 1.0, -7.25, 3.0e4, 0.1):
        for shape, groups in (((2, 6, 7, 7), 2), ((2, 35, 1), 5), ((1, 2, 3), 2), ((1, 3, 50, 51), 1)):
            x = in_layout(np.full(shape, value).astype(DTYPES[dtype]), layout)
            bias = normal(rng, shape[1], np.float32)
            for eps in (1e-5, 0.0):
                y, _, rstd = numbagn.group_norm_forward(x, groups, None, bias, eps)
                want = np.broadcast_to(bias.reshape((1, -1) + (1,) * (len(shape) - 2)), shape).astype(DTYPES[dtype])
                np.testing.assert_array_equal(y.astype(np.float64), want.astype(np.float64))
                assert (rstd == (0.0 if eps == 0.0 else 1.0 / np.sqrt(eps))).all()


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_nan_and_infinity_stay_in_their_group(rng, one_thread, layout, bad):
    for shape, groups, where in (
        ((2, 6, 5, 7), 3, (1, 2, 4, 6)),
        ((3, 12, 1), 4, (0, 11, 0)),
        ((2, 34, 3), 2, (1, 0, 0)),
    ):
        x = in_layout(normal(rng, shape, np.float32), layout)
        clean = numbagn.group_norm(x, groups)
        x[where] = bad
        y = numbagn.group_norm(x, groups)
        spoiled = np.zeros(shape, bool)
        d = shape[1] // groups
        spoiled[where[0], where[1] // d * d : (where[1] // d + 1) * d] = True
        assert np.isnan(y[spoiled]).all()
        np.testing.assert_array_equal(y[~spoiled], clean[~spoiled])
        _, mean, rstd = numbagn.group_norm_forward(x, groups)
        dx, _, _ = numbagn.group_norm_backward(np.ones_like(x), x, mean, rstd, groups)
        assert np.isnan(dx[spoiled]).all()
        assert np.isfinite(dx[~spoiled]).all()


@pytest.mark.parametrize("layout", LAYOUTS)
def test_samples_that_mislead_the_shift(rng, one_thread, layout):
    """The elements the first shift is taken from are outliers, or the block is all but constant."""
    shape = (1, 4, 48, 50)
    blocks = []
    for i in range(1, 8, 2):  # exactly where the kernels look
        x = normal(rng, shape, np.float32)
        x[..., 48 * i // 8, :] = 1e6
        blocks.append(x)
    sampled = normal(rng, shape, np.float32).reshape(-1)
    sampled[[sampled.size // 4 * g + sampled.size // 4 * i // 8 for g in range(4) for i in range(1, 8, 2)]] = 1e4
    blocks.append(sampled.reshape(shape))
    one = np.zeros(shape, np.float32)
    one[0, :, 6, 7] = 1.0
    blocks.append(one)
    ramp = np.linspace(-1e3, 1e5, one.size).astype(np.float32).reshape(shape)
    blocks.append(ramp)
    blocks.append(np.sign(ramp - 5e4) * np.float32(1e4) + normal(rng, shape, np.float32))
    for x in blocks:
        for groups in (1, 4):
            y, _, rstd = numbagn.group_norm_forward(in_layout(x, layout), groups)
            want, _, want_rstd = reference.group_norm(x, groups)
            np.testing.assert_allclose(rstd, want_rstd, rtol=5e-7)
            close(y, want, 2e-6)


def test_float64_is_as_good_as_the_definition(rng, one_thread):
    x = normal(rng, (2, 8, 30, 31), np.float64, offset=1e8)
    exact = x.astype(np.longdouble).reshape(2, 2, -1) - 1e8
    want = (exact - exact.mean(-1, keepdims=True)) / np.sqrt(exact.var(-1, keepdims=True) + 1e-5)
    assert np.abs(numbagn.group_norm(x, 2).reshape(want.shape) - want).max() < 1e-14


def test_float16_on_a_processor_that_does_not_convert_it():
    """There Numba would call a function that is not there, and the process would end."""
    code = """
import numpy as np, numbagn
from numbagn.kernels.cpu import kinds
assert not kinds.CONVERTS_HALVES
x = np.arange(65536, dtype=np.uint16).view(np.float16).reshape(1, 16, 4096).copy()
x[~np.isfinite(x)] = 1
x = np.concatenate([x, x * np.float16(0.001), np.full_like(x, 1e-7)])
y = numbagn.group_norm(x, 16)
want = numbagn.reference.group_norm(x, 16)[0].astype(np.float16)
print((y == want).mean() > 0.999, np.abs(y.astype(float) - want).max() < 0.01)
x[0, 0, :3] = np.nan, np.inf, 1
y = numbagn.group_norm(x, 16)
print(np.isnan(y[0, 0]).all(), not np.isnan(y[0, 1:]).any())
big = numbagn.group_norm(x[1:2], 16, np.full(16, 60000, np.float32), np.full(16, -5.0, np.float32))
print(np.isinf(big).any(), big.dtype)
"""
    done = shell(code=code, NUMBA_CPU_NAME="generic", NUMBA_CPU_FEATURES="")
    assert (done.stderr, done.stdout.split()) == ("", ["True", "True", "True", "True", "True", "float16"])
