"""HIPS autograd: derivatives to the second order, in both modes, with respect to every array."""

import doctest

import numpy as np
import pytest
from cases import DTYPES, same_bits

import numbagn
from numbagn import reference

autograd = pytest.importorskip("autograd", reason="autograd is not installed")
from autograd.test_util import check_grads  # noqa: E402

from numbagn.interop import autograd as interop  # noqa: E402

group_norm = interop.group_norm


@pytest.fixture(autouse=True)
def seeded(rng):
    """check_grads takes NumPy's global numbers."""
    np.random.seed(rng.integers(1 << 30))  # noqa: NPY002


def arrays(rng, *shapes):
    return [rng.standard_normal(shape) for shape in shapes]


@pytest.mark.parametrize("activation", reference.ACTIVATIONS)
def test_check_grads_to_second_order_forward_and_reverse(rng, one_thread, activation):
    shape = (2, 6, 3)
    x, weight, bias, skip, residual = arrays(rng, shape, (2, 6), 6, shape, shape)
    options = {"activation": activation}
    check_grads(lambda x: group_norm(x, 3, **options), modes=["fwd", "rev"], order=2)(x)
    check_grads(lambda w: group_norm(x, 3, w, bias, **options), modes=["fwd", "rev"], order=2)(weight)
    check_grads(
        lambda x, w, b, s, r: group_norm(x, 2, w, b, 0.1, skip=s, residual=r, **options), modes=["fwd", "rev"], order=2
    )(x, weight, bias, skip, residual)


def test_check_grads_channels_last(rng, one_thread):
    x, weight, bias = arrays(rng, (2, 3, 4, 6), 6, 6)
    check_grads(lambda x, w, b: group_norm(x, 3, w, b, channel_axis=-1, activation="silu"), order=2)(x, weight, bias)


@pytest.mark.parametrize("dtype", DTYPES)
def test_first_derivatives_are_those_of_the_kernels(rng, one_thread, dtype):
    x, dy, residual = (a.astype(DTYPES[dtype]) for a in arrays(rng, *[(3, 8, 5, 7)] * 3))
    weight, bias = arrays(rng, 8, 8)
    options = {"activation": "gelu", "residual": residual}
    want_y, mean, rstd = numbagn.group_norm_forward(x, 4, weight, bias, **options)
    want = numbagn.group_norm_backward(dy, x, mean, rstd, 4, weight, bias, **options)
    vjp, y = autograd.make_vjp(lambda a: group_norm(a[0], 4, a[1], a[2], activation="gelu", residual=a[3]))(
        (x, weight, bias, residual)
    )
    assert same_bits(y, want_y)
    for got, gradient in zip(vjp(dy), want, strict=True):  # autograd adds zeros: -0 becomes 0
        assert got.dtype == gradient.dtype
        np.testing.assert_array_equal(got, gradient)


def test_without_autograd_around_it_is_group_norm(rng, one_thread):
    x, skip = (a.astype(np.float32) for a in arrays(rng, (2, 6, 5), (2, 6, 5)))
    assert same_bits(group_norm(x, 2, eps=0.5, skip=skip), numbagn.group_norm(x + skip, 2, eps=0.5))
    with pytest.raises(ValueError, match=r"^num_groups must divide the 6 channels"):
        autograd.grad(lambda x: group_norm(x, 4).sum())(x)


def test_gradient_penalty_goes_down_along_its_gradient(rng, one_thread):
    """What second derivatives are for: the square of a gradient, differentiated."""
    x, weight, target = arrays(rng, (4, 6, 10), 6, (4, 6, 10))

    def penalty(weight):
        loss = lambda x: ((group_norm(x, 3, weight, activation="silu") - target) ** 2).sum()  # noqa: E731
        return (autograd.grad(loss)(x) ** 2).sum()

    gradient, step = autograd.grad(penalty)(weight), 1e-6
    direction = rng.standard_normal(6)
    difference = (penalty(weight + step * direction) - penalty(weight - step * direction)) / (2 * step)
    assert abs(difference - gradient @ direction) < 1e-6 * abs(difference)


def test_third_derivatives_are_refused(rng, one_thread):
    third = lambda x: (group_norm(x, 2) ** 2).sum()  # noqa: E731
    for _ in range(3):
        third = autograd.elementwise_grad(third)
    with pytest.raises(NotImplementedError, match="not defined"):
        third(rng.standard_normal((2, 6, 5)))


def test_example_in_its_docstring():
    result = doctest.testmod(interop)
    assert result.attempted > 0
    assert result.failed == 0
