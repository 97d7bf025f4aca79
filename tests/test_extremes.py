"""What is right beyond the usual: terms that cancel, an eps next to nothing, numbers at the ends of a dtype's range."""

import numpy as np
import pytest
from cases import DTYPES, LAYOUTS, close, error, in_layout, normal
from numba import njit

import numbagn
from numbagn import reference


@njit
def inside(x, num_groups, weight, bias, eps):
    return numbagn.group_norm(x, num_groups, weight, bias, eps)


def biased(bias, shape, dtype):
    """What a constant sample becomes."""
    return np.broadcast_to(bias.reshape(-1, *[1] * (len(shape) - 2)), shape).astype(dtype)


@pytest.mark.parametrize("between", ["channels", "positions"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_skip_that_cancels_a_spread_of_x_costs_no_accuracy(rng, one_thread, layout, between):
    shape = (2, 8, 17, 18)
    for spread in (10.0, 1e3, 1e4, 1e6):
        offsets = normal(rng, (1, 8, 1, 1) if between == "channels" else (1, 1, 17, 18), np.float64, scale=spread)
        x = in_layout((normal(rng, shape, np.float64) + offsets).astype(np.float32), layout)
        skip = in_layout((normal(rng, shape, np.float64) - offsets).astype(np.float32), layout)
        w, b, dy = normal(rng, 8, np.float32), normal(rng, 8, np.float32), normal(rng, shape, np.float32)
        together = x.astype(np.float64) + skip
        y, mean, rstd = numbagn.group_norm_forward(x, 2, w, b, skip=skip)
        want, _, want_rstd = reference.group_norm(together, 2, w, b)
        close(y, want, 2e-6)
        np.testing.assert_allclose(rstd, want_rstd, rtol=3e-7)
        got = numbagn.group_norm_backward(dy, x, mean, rstd, 2, w, b, skip=skip, activation="silu")
        rights = reference.group_norm_backward(dy, together, 2, w, b, activation="silu")
        for gradient, right in zip(got, rights[:3], strict=True):
            assert error(gradient, right) <= 1e-5 * np.abs(right).max()


@pytest.mark.parametrize("layout", LAYOUTS)
def test_skip_of_another_magnitude_is_not_rounded_away(rng, one_thread, layout):
    """Bits of x that x + skip in float32 would not hold; and of bfloat16, whose exponents reach further."""
    for dtype, offset, tolerance in (("float32", 1e5, 2e-6), ("bfloat16", 65536.0, 1.6e-2)):
        x = in_layout(normal(rng, (2, 6, 9, 11), DTYPES[dtype]), layout)
        skip = in_layout(np.full(x.shape, offset).astype(DTYPES[dtype]), layout)
        y = numbagn.group_norm(x, 2, skip=skip)
        close(y, reference.group_norm(x, 2, skip=skip)[0], tolerance)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_x_and_skip_whose_sum_is_beyond_float32(rng, one_thread, layout):
    for shape in ((2, 8, 9, 10), (3, 24, 1), (2, 4, 5)):
        for low, high in ((2.9e38, 3.4e38), (-3.4e38, 3.4e38), (-3.4e38, -1e38)):
            x, skip = (in_layout(rng.uniform(low, high, shape).astype(np.float32), layout) for _ in range(2))
            w, dy = normal(rng, shape[1], np.float32), normal(rng, shape, np.float32)
            y, mean, rstd = numbagn.group_norm_forward(x, 2, w, skip=skip)
            together = x.astype(np.float64) + skip
            close(y, reference.group_norm(together, 2, w)[0], 2e-6)
            _, dweight, _ = numbagn.group_norm_backward(dy, x, mean, rstd, 2, w, skip=skip)
            right = reference.group_norm_backward(dy, together, 2, w)[1]
            assert error(dweight, right) <= 1e-5 * np.abs(right).max()


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_constant_group_gives_the_bias_however_small_eps(rng, one_thread, dtype, layout):
    """Its rstd may be more than x's accumulators can hold, and its value as large as x's dtype can."""
    x_dtype = DTYPES[dtype]
    smallest = float(np.array(1, f"u{x_dtype.itemsize}").view(x_dtype))
    for eps in (1e-76, 1e-80, 1e-300, 5e-324):
        for value in (0.0, 0.1, 6e4 if dtype == "float16" else 3e38, smallest):
            for shape, groups in (((2, 6, 7, 7), 2), ((2, 35, 1), 5), ((2, 4, 1), 4), ((1, 3, 50, 51), 1)):
                x = in_layout(np.full(shape, value).astype(x_dtype), layout)
                w, b = np.full(shape[1], 1e3), normal(rng, shape[1], np.float32).astype(np.float64)
                y, mean, rstd = numbagn.group_norm_forward(x, groups, w, b, eps)
                want = biased(b, shape, x_dtype).astype(np.float64)
                np.testing.assert_array_equal(y.astype(np.float64), want)
                dx, dweight, dbias = numbagn.group_norm_backward(np.ones_like(x), x, mean, rstd, groups, None, b)
                assert (dx == 0.0).all()
                assert (dweight == 0.0).all()
                np.testing.assert_array_equal(dbias, x.size // shape[1])
                of_parts = numbagn.normalize(x, numbagn.group_moments(x, groups), w, b, eps)
                np.testing.assert_array_equal(of_parts.astype(np.float64), want)
                if x_dtype == np.float32:
                    np.testing.assert_array_equal(inside(x, groups, w, b, eps), y)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_group_beside_a_constant_one_is_as_without_it(rng, one_thread, layout):
    for eps in (1e-80, 5e-324):
        x = in_layout(normal(rng, (2, 8, 9, 10), np.float32, scale=1e30), layout)
        alone = numbagn.group_norm(x, 4, eps=eps)
        x[:, 2:4] = 1e25
        y = numbagn.group_norm(x, 4, eps=eps)
        assert (y[:, 2:4] == 0.0).all()
        np.testing.assert_array_equal(np.delete(y, [2, 3], axis=1), np.delete(alone, [2, 3], axis=1))


@pytest.mark.parametrize("scale", [1e-38, 1e-40, 3e-44])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_float32_subnormals_without_eps(rng, one_thread, layout, scale):
    for shape, groups in (((2, 8, 9, 10), 4), ((3, 24, 1), 2), ((2, 64, 5), 32)):
        x = in_layout(normal(rng, shape, np.float32, scale=scale, offset=2 * scale), layout)
        x[0, : shape[1] // groups] *= np.float32(2.0**120)  # in the sample of groups that are not so small
        dy = normal(rng, shape, np.float32)
        y, mean, rstd = numbagn.group_norm_forward(x, groups, eps=0.0)
        want, _, want_rstd = reference.group_norm(x, groups, eps=0.0)
        close(y, want, 2e-6)
        np.testing.assert_allclose(rstd, want_rstd, rtol=3e-7)
        _, dweight, dbias = numbagn.group_norm_backward(dy, x, mean, rstd, groups)
        _, right, right_bias, _ = reference.group_norm_backward(dy, x, groups, eps=0.0)
        assert error(dweight, right) <= 1e-5 * np.abs(right).max()
        assert error(dbias, right_bias) <= 1e-5 * np.abs(right_bias).max()


@pytest.mark.parametrize("layout", LAYOUTS)
def test_float64_whose_squares_overflow_but_not_their_mean(rng, one_thread, layout):
    for shape, groups in (((2, 8, 30, 31), 4), ((3, 600, 1), 2)):
        x = in_layout(normal(rng, shape, np.float64), layout)
        want, _, want_rstd = reference.group_norm(x, groups, eps=0.0)
        y, mean, rstd = numbagn.group_norm_forward(x * 2.0**510, groups)
        close(y, want, 1e-13)
        np.testing.assert_allclose(rstd * 2.0**510, want_rstd, rtol=1e-13)
        _, dweight, _ = numbagn.group_norm_backward(x, x * 2.0**510, mean, rstd, groups)
        close(dweight, (x * want).sum((0, *range(2, x.ndim))), 1e-10)
