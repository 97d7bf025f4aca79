"""The backward pass against the definition, against float64 differences, and in every dtype, layout and option."""

import itertools

import numpy as np
import pytest
from cases import DTYPES, LAYOUTS, SHAPES, close, in_layout, normal
from test_forward import make

import numbagn
from numbagn import reference

OPTIONS = {
    "plain": (),
    "affine": ("weight", "bias"),
    "bias_silu": ("bias", "silu"),
    "per_sample_gelu": ("weight_n", "bias_n", "gelu"),
    "residual_relu": ("weight", "bias_n", "residual", "relu"),
    "skip_residual_gelu_tanh": ("weight_n", "bias", "skip", "residual", "gelu_tanh"),
}
# Of gradients relative to their largest: rounding to the dtype, and of sums whose terms were rounded in float32.
TOLERANCE = {"float16": 2e-3, "bfloat16": 1.6e-2, "float32": 5e-6, "float64": 1e-13}


def both(dy, x, groups, **arguments):
    """The gradients and the definition's."""
    forward_only = {k: v for k, v in arguments.items() if k != "out"}
    _, mean, rstd = numbagn.group_norm_forward(x, groups, **forward_only)
    got = numbagn.group_norm_backward(dy, x, mean, rstd, groups, **arguments)
    return got, reference.group_norm_backward(dy, x, groups, **forward_only)


def check(got, want, dx_tolerance, sum_tolerance=2e-6, rstd=1.0):
    """Assert that all gradients agree, each relative to its own largest; dx to rstd at least, as its terms cancel."""
    tolerances = (dx_tolerance, sum_tolerance, sum_tolerance, dx_tolerance)
    assert len(got) == (3 if want[3] is None else 4)
    for g, w, tolerance, least in zip(got, want, tolerances, (np.max(rstd), 1.0, 1.0, 1.0), strict=False):
        scale = max(np.abs(w).max(initial=0.0), least)
        close(np.asarray(g).astype(np.float64) / scale, w / scale, tolerance)


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_dtype_layout_option_and_shape(rng, one_thread, dtype, layout, options):
    for shape, groups in SHAPES.values():
        # relu's slope jumps at 0: keep z clear of the rounding of the two sides
        x = in_layout(normal(rng, shape, DTYPES[dtype], offset=0.3), layout)
        dy = in_layout(normal(rng, shape, DTYPES[dtype]), layout)
        arguments = make(rng, OPTIONS[options], shape, DTYPES[dtype], layout)
        if arguments.get("activation") == "relu":
            z = reference.group_norm(x, groups, **(arguments | {"activation": None}))[0]
            dy[np.abs(z) < 1e-5] = 0
        got, want = both(dy, x, groups, **arguments)
        assert got[0].dtype == x.dtype
        assert got[0].strides == np.empty_like(x).strides
        rstd = numbagn.group_norm_forward(x, groups, skip=arguments.get("skip"))[2]
        check(got, want, TOLERANCE[dtype], 1e-12 if dtype == "float64" else 2e-6, rstd)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_parallel_kernel_agrees_with_the_definition(rng, layout):
    for shape, groups in (((8, 32, 24, 25), 8), ((1, 6, 250, 260), 1), ((3, 10, 170, 91), 2)):
        x, dy = (in_layout(normal(rng, shape, np.float32), layout) for _ in range(2))
        w, b = normal(rng, shape[1], np.float32), normal(rng, shape[1], np.float32)
        check(*both(dy, x, groups, weight=w, bias=b, activation="silu"), 5e-6)


@pytest.mark.parametrize(
    ("layout", "activation"),
    [*itertools.product(["channels_first"], ["relu", "silu", "gelu", "gelu_tanh"]), ("channels_last", "silu")],
)  # an activation's kernels are compiled for seconds, and its slope does not know the layout
def test_gradients_against_central_differences(rng, one_thread, layout, activation):
    shape, groups, step = (2, 6, 3), 2, 1e-6
    x, dy, skip, residual = (in_layout(normal(rng, shape, np.float64), layout) for _ in range(4))
    weight, bias = normal(rng, (2, 6), np.float64), normal(rng, 6, np.float64)
    values = {"x": x, "weight": weight, "bias": bias, "skip": skip, "residual": residual}

    def loss(**changed):
        return float((dy * numbagn.group_norm(num_groups=groups, activation=activation, **(values | changed))).sum())

    _, mean, rstd = numbagn.group_norm_forward(num_groups=groups, activation=activation, **values)
    dx, dweight, dbias, dresidual = numbagn.group_norm_backward(
        dy, mean=mean, rstd=rstd, num_groups=groups, activation=activation, **values
    )
    gradients = {"x": dx, "weight": dweight, "bias": dbias, "skip": dx, "residual": dresidual}
    for name, gradient in gradients.items():
        assert gradient.shape == values[name].shape
        for index in np.ndindex(values[name].shape):
            sides = []
            for h in (step, -step):
                moved = values[name].copy()
                moved[index] += h
                sides.append(loss(**{name: moved}))
            assert abs((sides[0] - sides[1]) / (2 * step) - gradient[index]) < 2e-8, (name, index)


@pytest.mark.parametrize("offset", [0.0, 1e4, 1e6])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_float32_gradients_within_1e5_relative_at_any_offset(rng, one_thread, layout, offset):
    for shape, groups in (((3, 12, 30, 31), 4), ((4, 64, 1), 8), ((2, 6, 90, 91), 1)):
        x = in_layout(normal(rng, shape, np.float32, offset=offset), layout)
        dy = in_layout(normal(rng, shape, np.float32), layout)
        w, b = normal(rng, shape[1], np.float32), normal(rng, shape[1], np.float32)
        for activation in (None, "silu"):
            got, want = both(dy, x, groups, weight=w, bias=b, activation=activation)
            for g, v in zip(got, want, strict=False):
                assert np.abs(g - v).max() <= 1e-5 * np.abs(v).max()


def test_float32_statistics_of_others_are_taken_as_they_are(rng, one_thread):
    x, dy = normal(rng, (2, 8, 9), np.float32), normal(rng, (2, 8, 9), np.float32)
    _, mean, rstd = numbagn.group_norm_forward(x, 4)
    got = numbagn.group_norm_backward(dy, x, mean.astype(np.float32), rstd.astype(np.float32), 4)
    check(got, reference.group_norm_backward(dy, x, 4), 5e-6)


@pytest.mark.parametrize("other", DTYPES)
@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_dy_and_residual_of_any_dtype(rng, one_thread, dtype, other):
    shape = (2, 6, 4, 5)
    x, dy = normal(rng, shape, DTYPES[dtype]), in_layout(normal(rng, shape, DTYPES[other]), "channels_last")
    residual = normal(rng, shape, DTYPES[other])
    got, want = both(dy, x, 2, residual=residual, activation="silu")
    assert got[3].dtype == residual.dtype
    check(got, want, max(TOLERANCE[dtype], TOLERANCE[other]))


def test_gradients_have_the_shape_and_dtype_of_their_parameters(rng, one_thread):
    x, dy = normal(rng, (3, 4, 5), np.float32), normal(rng, (3, 4, 5), np.float32)
    for weight, bias, shapes, dtypes in (
        (None, None, ((4,), (4,)), ("float32", "float32")),
        (np.ones(4, np.float16), None, ((4,), (4,)), ("float16", "float32")),
        (np.ones((3, 4)), np.ones(4, np.float32), ((3, 4), (4,)), ("float64", "float32")),
    ):
        (_, dweight, dbias), _ = both(dy, x, 2, weight=weight, bias=bias)
        assert (dweight.shape, dbias.shape) == shapes
        assert (dweight.dtype.name, dbias.dtype.name) == dtypes


@pytest.mark.parametrize("layout", LAYOUTS)
def test_dx_may_be_written_to_dy_or_x(rng, one_thread, layout):
    shape = (2, 6, 9, 10)
    x, dy, skip = (in_layout(normal(rng, shape, np.float32), layout) for _ in range(3))
    _, mean, rstd = numbagn.group_norm_forward(x, 3, skip=skip, activation="silu")
    want = numbagn.group_norm_backward(dy, x, mean, rstd, 3, skip=skip, activation="silu")
    for target in ("x", "dy"):
        arrays = {"x": in_layout(x.copy(), layout), "dy": in_layout(dy.copy(), layout)}
        got = numbagn.group_norm_backward(
            arrays["dy"], arrays["x"], mean, rstd, 3, skip=skip, activation="silu", out=arrays[target]
        )
        assert got[0] is arrays[target]
        for g, w in zip(got, want, strict=True):
            np.testing.assert_array_equal(g, w)


def test_constant_groups_have_gradient_zero(one_thread):
    x = np.full((1, 4, 5), 3.0, np.float32)
    _, mean, rstd = numbagn.group_norm_forward(x, 2, eps=0.0)
    dx, dweight, dbias = numbagn.group_norm_backward(np.ones_like(x), x, mean, rstd, 2)
    assert not dx.any()
    assert not dweight.any()
    assert (dbias == 5).all()
