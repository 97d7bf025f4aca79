"""The backward pass's own backward against central differences of the backward pass, and torch."""

import numpy as np
import pytest
from cases import DTYPES, LAYOUTS, SHAPES, in_layout, normal
from test_jvp import ACTIVATIONS, X, agree, in_torch, parameters

import numbagn
from numbagn.derivatives import formulas


def second(rng, shape, dtype, layout, activation, per_sample=False, more=False):
    """Arguments of the double backward, and those of its forward pass."""
    arrays = ["dy", "x", "ddx"] + (["skip", "residual", "ddresidual"] if more else [])
    given = {name: in_layout(normal(rng, shape, DTYPES[dtype]), layout) for name in arrays}
    made = parameters(rng, shape, per_sample, dtype)
    given |= {"weight": made["weight"], "bias": made["bias"], "ddweight": made["dweight"], "ddbias": made["dbias"]}
    given["activation"] = activation
    return given


def first_order(groups, given):
    """The gradients, with statistics of these very arguments."""
    names = ("weight", "bias", "activation", "skip", "residual")
    forward = {name: given[name] for name in names if name in given}
    _, mean, rstd = numbagn.group_norm_forward(given["x"], groups, **forward)
    return mean, rstd, numbagn.group_norm_backward(given["dy"], given["x"], mean, rstd, groups, **forward)


def double(groups, given):
    mean, rstd, _ = first_order(groups, given)
    return numbagn.group_norm_double_backward(mean=mean, rstd=rstd, num_groups=groups, **given)


@pytest.mark.parametrize("more", [False, True], ids=["plain", "skip_residual"])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_double_backward_against_central_differences_of_backward(rng, one_thread, activation, more):
    groups, step = 2, 1e-6
    given = second(rng, (2, 6, 3), "float64", "channels_first", activation, per_sample=more, more=more)
    results = double(groups, given)
    assert len(results) == (5 if more else 4)
    gradients = dict(zip(("dy", "x", "weight", "bias", "residual"), results, strict=False))
    gradients |= {"skip": gradients["x"]} if more else {}
    upstream = [given[name] for name in ("ddx", "ddweight", "ddbias", "ddresidual") if name in given]

    def loss(changed):
        made = first_order(groups, given | changed)[2]
        return sum((gradient * above).sum() for gradient, above in zip(made, upstream, strict=True))

    for name, gradient in gradients.items():
        assert gradient.shape == given[name].shape
        for index in np.ndindex(gradient.shape):
            sides = []
            for h in (step, -step):
                moved = given[name].copy()
                moved[index] += h
                sides.append(loss({name: moved}))
            difference = (sides[0] - sides[1]) / (2 * step)
            assert abs(difference - gradient[index]) < 1e-7 * max(1.0, abs(difference)), (name, index)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_double_backward_agrees_with_torch(rng, one_thread, activation):
    torch = pytest.importorskip("torch", reason="torch is not installed")
    given = second(rng, (3, 8, 5, 4), "float64", "channels_last", activation)
    names = ("dy", "x", "weight", "bias")
    dy, *point = (torch.tensor(given[name], requires_grad=True) for name in names)
    first = torch.autograd.grad(in_torch(torch, activation, 4)(*point), point, dy, create_graph=True)
    above = (torch.from_numpy(given[name]) for name in ("ddx", "ddweight", "ddbias"))
    loss = sum((gradient * a).sum() for gradient, a in zip(first, above, strict=True))
    want = torch.autograd.grad(loss, [dy, *point], allow_unused=True)
    for got, theirs in zip(double(4, given), want, strict=True):
        agree(got, 0.0 * got if theirs is None else theirs.numpy(), 1e-13)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_double_backward_in_every_dtype_layout_and_shape(rng, one_thread, monkeypatch, dtype, layout):
    for name, (shape, groups) in SHAPES.items():
        monkeypatch.setattr(formulas, "SECOND_ELEMENTS", 1 if name == "vector_multiples" else 1 << 16)
        given = second(rng, shape, dtype, layout, "silu", per_sample=name == "one_position")
        got = double(groups, given)
        lifted = {k: v if isinstance(v, (str, tuple)) else np.array(v, np.float64, order="C") for k, v in given.items()}
        want = double(groups, lifted)
        for g, w, like in zip(got, want, ("dy", "x", "weight", "bias"), strict=True):
            assert g.dtype == given[like].dtype
            assert g.strides == np.empty_like(given[like]).strides
            agree(g, w, {"float16": 1e-3, "bfloat16": 8e-3}.get(dtype, 2e-6))


@pytest.mark.parametrize("offset", [1e4, 1e6])
def test_float32_double_backward_within_1e5_relative_at_any_offset(rng, one_thread, offset):
    given = second(rng, (2, 8, 30, 31), "float32", "channels_first", "gelu_tanh")
    given |= {name: given[name] + np.float32(offset) for name in ("x", "ddx")}
    lifted = {k: v if isinstance(v, str) else v.astype(np.float64) for k, v in given.items()}
    lifted |= {name: lifted[name] - offset for name in ("x", "ddx")}  # neither offset can be seen in any result
    for got, want in zip(double(4, given), double(4, lifted), strict=True):
        assert np.abs(got - want).max() <= 1e-5 * np.abs(want).max()


def test_double_backward_of_single_upstream_gradients(rng, one_thread):
    given = second(rng, (2, 6, 5), "float64", "channels_first", "silu", more=True)
    given["weight"] = given["bias"] = None
    names = ("ddx", "ddweight", "ddbias", "ddresidual")
    alone = [double(3, given | {other: None for other in names if other != name}) for name in names]
    for whole, *parts in zip(double(3, given), *alone, strict=True):
        agree(sum(parts), whole, 1e-13)


def test_double_backward_of_gradients_of_missing_parameters(rng, one_thread):
    x = normal(rng, (2, 6, 5), np.float16)
    _, mean, rstd = numbagn.group_norm_forward(x, 3)
    got = numbagn.group_norm_double_backward(x, x.astype(np.float64), x, mean, rstd, 3)
    assert [g.dtype.name for g in got] == ["float64", "float16", "float32", "float32"]
    assert [g.shape for g in got] == [x.shape, x.shape, (6,), (6,)]
    assert not got[3].any()


def test_double_backward_where_activations_are_straight(rng, one_thread):
    """At z of any size: slopes are 0 or 1 there, and nothing overflows to NaN."""
    for activation in ACTIVATIONS[1:]:
        given = second(rng, (1, 2, 4), "float64", "channels_first", activation)
        given["bias"] = np.array([1e160, -1e160])
        grad_dy, grad_x, grad_weight, grad_bias = double(1, given)
        assert np.isfinite(grad_x).all()
        assert np.isfinite(grad_weight).all()
        assert grad_dy[0, 0].all()
        assert not grad_dy[0, 1].any()
        assert not grad_bias.any()


def test_double_backward_of_nothing_constants_and_nan(rng, one_thread):
    for shape in ((0, 4, 5), (2, 4, 0)):
        x = np.ones(shape, np.float32)
        got = numbagn.group_norm_double_backward(x, x, x, *np.zeros((2, shape[0], 2)), 2)
        assert [g.shape for g in got] == [shape, shape, (4,), (4,)]
        assert not got[2].any()
    given = second(rng, (2, 6, 5), "float32", "channels_first", "silu")
    given["x"][0, :2] = 3.0
    given["x"][1, 3] = np.nan
    _, grad_x, _, _ = double(3, given)
    assert np.isfinite(grad_x[0]).all()
    assert np.isnan(grad_x[1, 2:4]).all()
    assert np.isnan(grad_x).sum() == 10


BAD_SECONDS = {
    "dy None": ({"dy": None}, TypeError, "dy must be a numpy.ndarray, got None"),
    "ddx short": ({"ddx": X[1:]}, ValueError, r"ddx must have x's shape \(2, 6, 5\), got \(1, 6, 5\)"),
    "mean": ({"mean": np.ones((2, 3))}, ValueError, r"mean must have shape \(2, 2\), got \(2, 3\)"),
    "ddweight unlike weight": (
        {"weight": np.ones(6), "ddweight": np.ones((2, 6))}, ValueError,
        r"ddweight must have weight's shape \(6,\), got \(2, 6\)",
    ),
    "ddresidual": ({"ddresidual": X}, ValueError, "ddresidual must be None where residual is"),
    "activation": ({"activation": "tanh"}, ValueError, "activation must be one of None, 'relu', 'silu'"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD_SECONDS)
def test_double_backward_refuses(name):
    changes, kind, message = BAD_SECONDS[name]
    statistics = np.ones((2, 2))
    arguments = {"ddx": X, "dy": X, "x": X, "mean": statistics, "rstd": statistics, "num_groups": 2} | changes
    with pytest.raises(kind, match=f"^{message}"):
        numbagn.group_norm_double_backward(**arguments)
