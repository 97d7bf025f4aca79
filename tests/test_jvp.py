"""Forward mode against complex steps, central differences, the backward pass, torch and JAX."""

import numpy as np
import pytest
from cases import DTYPES, LAYOUTS, SHAPES, close, in_layout, normal, same_bits

import numbagn
from numbagn import reference
from numbagn.derivatives import formulas

ACTIVATIONS = list(reference.ACTIVATIONS)
# Of results relative to the largest: rounding to the dtype, and of terms that were rounded in float32.
TOLERANCE = {"float16": 1e-3, "bfloat16": 8e-3, "float32": 5e-6, "float64": 1e-13}


def wide(array, shape):
    """A parameter or its direction in float64, to broadcast against x (N, C, ...)."""
    return np.asarray(array).astype(np.float64).reshape((-1, shape[1]) + (1,) * (len(shape) - 2))


def tangent(x, dx, groups, weight=None, bias=None, eps=1e-5, dweight=None, dbias=None, activation=None):  # noqa: PLR0913, PLR0917 - mirrors `group_norm_jvp`
    """(y, dy, rstd) in float64 by a complex step, which loses nothing: f(x + ih) = f(x) + ih f'(x) for h near 0."""
    step = 1e-200
    values = x.astype(np.float64) + 1j * step * dx.astype(np.float64)
    blocks = values.reshape(x.shape[0], groups, -1)
    blocks = blocks - blocks.mean(axis=2, keepdims=True)
    rstd = 1.0 / np.sqrt((blocks * blocks).mean(axis=2, keepdims=True) + eps)
    z = (blocks * rstd).reshape(x.shape)
    one, zero = np.ones(x.shape[1]), np.zeros(x.shape[1])
    w, dw = (wide(one if weight is None else weight, x.shape), wide(zero if dweight is None else dweight, x.shape))
    b, db = (wide(zero if bias is None else bias, x.shape), wide(zero if dbias is None else dbias, x.shape))
    z = z * (w + 1j * step * dw) + b + 1j * step * db
    function, slope = reference.ACTIVATIONS[activation]
    return function(z.real), slope(z.real) * (z.imag / step), rstd.real


def agree(got, want, tolerance, least=1.0):
    """Assert that got is want, relative to its largest, or to `least`, as terms may cancel."""
    scale = max(np.abs(want).max(initial=0.0), least)
    close(np.asarray(got).astype(np.float64) / scale, want / scale, tolerance)


def parameters(rng, shape, per_sample, dtype):
    """Weight, bias and their directions."""
    kind = np.float64 if dtype == "float64" else np.float32
    made = [normal(rng, (shape[0], shape[1]) if per_sample else (shape[1],), kind, offset=0.5) for _ in range(4)]
    return dict(zip(("weight", "bias", "dweight", "dbias"), made, strict=True))


@pytest.mark.parametrize("options", ["plain", "affine_silu", "per_sample_gelu"])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_jvp_in_every_dtype_layout_and_shape(rng, one_thread, monkeypatch, dtype, layout, options):
    for name, (shape, groups) in SHAPES.items():
        # samples together, and one by one
        monkeypatch.setattr(formulas, "TANGENT_ELEMENTS", 1 if name == "vector_multiples" else 1 << 20)
        x, dx = (in_layout(normal(rng, shape, DTYPES[dtype], offset=0.3), layout) for _ in range(2))
        given = {} if options == "plain" else parameters(rng, shape, options == "per_sample_gelu", dtype)
        activation = options.rpartition("_")[2] if given else None
        y, dy = numbagn.group_norm_jvp(x, dx, groups, activation=activation, **given)
        want, want_dy, rstd = tangent(x, dx, groups, activation=activation, **given)
        assert (y.dtype, dy.dtype) == (x.dtype, x.dtype)
        assert y.strides == dy.strides == np.empty_like(x).strides
        agree(y, want, TOLERANCE[dtype])
        agree(dy, want_dy, TOLERANCE[dtype], rstd.max() * np.abs(dx.astype(np.float64)).max())


@pytest.mark.parametrize("offset", [0.0, 1e4, 1e6])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_float32_jvp_within_1e5_relative_at_any_offset_of_x_and_dx(rng, one_thread, layout, offset):
    for shape, groups in (((3, 12, 30, 31), 4), ((4, 64, 1), 8), ((2, 6, 90, 91), 1)):
        x, dx = (in_layout(normal(rng, shape, np.float32, offset=offset), layout) for _ in range(2))
        given = parameters(rng, shape, False, "float32")
        for activation in (None, "silu"):
            got = numbagn.group_norm_jvp(x, dx, groups, activation=activation, **given)[1]
            want = tangent(x, dx, groups, activation=activation, **given)[1]
            assert np.abs(got - want).max() <= 1e-5 * np.abs(want).max()
        # towards x itself nothing happens but by eps: what is left is small against the terms
        assert np.abs(numbagn.group_norm_jvp(x, x, groups)[1] - tangent(x, x, groups)[1]).max() <= 2e-6


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_jvp_is_rounded_once(rng, one_thread, dtype):
    x, dx = (normal(rng, (2, 32, 60, 61), DTYPES[dtype], offset=0.5) for _ in range(2))
    given = parameters(rng, x.shape, False, "float32")
    for activation in (None, "gelu"):
        want = tangent(x, dx, 8, activation=activation, **given)[1].astype(DTYPES[dtype])
        assert (numbagn.group_norm_jvp(x, dx, 8, activation=activation, **given)[1] == want).mean() >= 0.999


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_jvp_against_central_differences(rng, one_thread, layout, activation):
    shape, step = (2, 6, 3, 4), 1e-6
    x, dx = (in_layout(normal(rng, shape, np.float64), layout) for _ in range(2))
    given = parameters(rng, shape, False, "float64")
    sides = [
        numbagn.group_norm(
            x + h * dx, 2, given["weight"] + h * given["dweight"], given["bias"] + h * given["dbias"],
            activation=activation,
        )
        for h in (step, -step)
    ]  # fmt: skip
    _, dy = numbagn.group_norm_jvp(x, dx, 2, activation=activation, **given)
    assert np.abs(dy - (sides[0] - sides[1]) / (2 * step)).max() < 2e-8


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_jvp_is_the_transpose_of_backward(rng, one_thread, activation):
    shape = (3, 8, 5, 7)
    x, dx, dy = (normal(rng, shape, np.float64) for _ in range(3))
    given = parameters(rng, shape, True, "float64")
    forward = {name: given[name] for name in ("weight", "bias")} | {"activation": activation}
    _, mean, rstd = numbagn.group_norm_forward(x, 4, **forward)
    gradients = numbagn.group_norm_backward(dy, x, mean, rstd, 4, **forward)
    _, tangent_of_y = numbagn.group_norm_jvp(x, dx, 4, activation=activation, **given)
    back = sum((g * d).sum() for g, d in zip(gradients, (dx, given["dweight"], given["dbias"]), strict=True))
    assert abs((dy * tangent_of_y).sum() - back) < 1e-11


def test_jvp_gives_the_y_of_group_norm_and_any_direction_alone(rng, one_thread):
    shape = (2, 8, 5, 7)
    x, dx = normal(rng, shape, np.float32), normal(rng, shape, np.float32)
    given = parameters(rng, shape, False, "float32")
    y, whole = numbagn.group_norm_jvp(x, dx, 4, activation="silu", **given)
    forward = {name: given[name] for name in ("weight", "bias")}
    assert same_bits(y, numbagn.group_norm(x, 4, activation="silu", **forward))
    alone = [
        numbagn.group_norm_jvp(x, dx * np.float32(name == "x"), 4, activation="silu", **forward, **direction)[1]
        for name, direction in (
            ("x", {}), ("weight", {"dweight": given["dweight"]}), ("bias", {"dbias": given["dbias"]}),
        )
    ]  # fmt: skip
    agree(sum(alone), whole, 1e-6)


def test_jvp_with_directions_of_parameters_that_are_not_given(rng, one_thread):
    x, dx = normal(rng, (2, 8, 5), np.float32), normal(rng, (2, 8, 5), np.float32)
    given = parameters(rng, x.shape, True, "float32")
    directions = {name: given[name] for name in ("dweight", "dbias")}
    agree(numbagn.group_norm_jvp(x, dx, 2, **directions)[1], tangent(x, dx, 2, **directions)[1], 5e-6)


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16"])
def test_jvp_of_odd_memory_and_mixed_dtypes(rng, one_thread, dtype):
    shape = (2, 5, 7, 6)
    x, dx = normal(rng, shape, DTYPES[dtype]), normal(rng, shape, np.float32)
    want = tangent(np.moveaxis(x, 3, 1), np.moveaxis(dx, 3, 1), 3, activation="silu")
    spread = np.zeros((2, 10, 7, 6), dx.dtype)
    spread[:, ::2] = dx
    for odd in (dx, np.asfortranarray(dx), spread[:, ::2], dx[:, ::-1].copy()[:, ::-1], dx.astype(">f4")):
        odd.flags.writeable = False
        y, dy = numbagn.group_norm_jvp(x, odd, 3, channel_axis=-1, activation="silu")
        assert dy.dtype == x.dtype
        agree(np.moveaxis(y, 3, 1), want[0], TOLERANCE[dtype] if dtype == "float16" else 5e-6)
        agree(np.moveaxis(dy, 3, 1), want[1], TOLERANCE[dtype] if dtype == "float16" else 5e-6)
    strange = np.asfortranarray(x.astype(x.dtype.newbyteorder(">")))[:, ::-1]
    _, dy = numbagn.group_norm_jvp(strange, dx[:, ::-1], 3, channel_axis=-1, activation="silu")
    assert dy.dtype == x.dtype
    agree(np.moveaxis(dy, 3, 1), want[1][:, :, ::-1], TOLERANCE[dtype] if dtype == "float16" else 5e-6)


def test_jvp_of_nothing_constants_and_nan(rng, one_thread):
    for shape in ((0, 4, 5), (2, 4, 0)):
        y, dy = numbagn.group_norm_jvp(np.ones(shape, np.float32), np.ones(shape, np.float32), 2)
        assert y.shape == dy.shape == shape
    x, dx = normal(rng, (2, 6, 5), np.float32), normal(rng, (2, 6, 5), np.float32)
    x[0, :2] = 3.0
    dy = numbagn.group_norm_jvp(x, dx, 3, eps=0.0, activation="silu")[1]
    assert not dy[0, :2].any()
    x[1, 3] = np.nan
    y, dy = numbagn.group_norm_jvp(x, dx, 3, activation="silu")
    spoiled = np.isnan(dy)
    assert spoiled[1, 2:4].all()
    assert spoiled.sum() == 10
    assert (np.isnan(y) == spoiled).all()


def test_parallel_jvp_agrees_with_the_definition(rng):
    x, dx = normal(rng, (4, 32, 60, 61), np.float32), normal(rng, (4, 32, 60, 61), np.float32)
    given = parameters(rng, x.shape, False, "float32")
    agree(numbagn.group_norm_jvp(x, dx, 8, activation="silu", **given)[1],
          tangent(x, dx, 8, activation="silu", **given)[1], 5e-6)  # fmt: skip


def in_torch(torch, activation, groups):
    functional = torch.nn.functional
    apply = {
        None: lambda z: z, "relu": functional.relu, "silu": functional.silu, "gelu": functional.gelu,
        "gelu_tanh": lambda z: functional.gelu(z, approximate="tanh"),
    }[activation]  # fmt: skip
    return lambda x, weight, bias: apply(functional.group_norm(x, groups, weight, bias))


@pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")  # torch.func uses what torch no longer likes
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_jvp_agrees_with_torch(rng, one_thread, activation):
    torch = pytest.importorskip("torch", reason="torch is not installed")
    x, dx = normal(rng, (2, 6, 5, 3), np.float64), normal(rng, (2, 6, 5, 3), np.float64)
    given = parameters(rng, x.shape, False, "float64")
    point = (x, given["weight"], given["bias"]), (dx, given["dweight"], given["dbias"])
    want = torch.func.jvp(in_torch(torch, activation, 3), *(tuple(map(torch.from_numpy, part)) for part in point))
    for got, theirs in zip(numbagn.group_norm_jvp(x, dx, 3, activation=activation, **given), want, strict=True):
        agree(got, theirs.numpy(), 1e-13)


def test_jvp_agrees_with_jax(rng, one_thread):
    jax = pytest.importorskip("jax", reason="jax is not installed")
    jnp = jax.numpy

    def norm(x, weight, bias):
        blocks = x.reshape(x.shape[0], 3, -1)
        blocks = (blocks - blocks.mean(2, keepdims=True)) / jnp.sqrt(blocks.var(2, keepdims=True) + 1e-5)
        return jax.nn.silu(blocks.reshape(x.shape) * weight[:, None] + bias[:, None])

    x, dx = normal(rng, (2, 6, 50), np.float32), normal(rng, (2, 6, 50), np.float32)
    given = parameters(rng, x.shape, False, "float32")
    point = (x, given["weight"], given["bias"]), (dx, given["dweight"], given["dbias"])
    want = jax.jvp(norm, *point)
    for got, theirs in zip(numbagn.group_norm_jvp(x, dx, 3, activation="silu", **given), want, strict=True):
        agree(got, np.asarray(theirs), 1e-5)


X = np.ones((2, 6, 5), np.float32)
BAD_DIRECTIONS = {
    "dx None": ({"dx": None}, TypeError, "dx must be a numpy.ndarray, got None"),
    "dx a list": ({"dx": [1.0]}, TypeError, "dx must be a numpy.ndarray, got builtins.list; convert it with"),
    "dx short": ({"dx": X[1:]}, ValueError, r"dx must have x's shape \(2, 6, 5\), got \(1, 6, 5\)"),
    "dx of integers": ({"dx": X.astype(int)}, TypeError, "dx must have dtype float16, bfloat16, float32, float64"),
    "dweight long": ({"dweight": np.ones(7)}, ValueError, r"dweight must have shape \(6,\) or \(2, 6\), got \(7,\)"),
    "dweight unlike weight": (
        {"weight": np.ones(6), "dweight": np.ones((2, 6))}, ValueError,
        r"dweight must have weight's shape \(6,\), got \(2, 6\)",
    ),
    "dbias unlike bias": (
        {"bias": np.ones((2, 6)), "dbias": np.ones(6)}, ValueError,
        r"dbias must have bias's shape \(2, 6\), got \(6,\)",
    ),
    "groups": ({"num_groups": 4}, ValueError, "num_groups must divide the 6 channels"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD_DIRECTIONS)
def test_jvp_refuses(name):
    changes, kind, message = BAD_DIRECTIONS[name]
    with pytest.raises(kind, match=f"^{message}"):
        numbagn.group_norm_jvp(**{"x": X, "dx": X, "num_groups": 2} | changes)
