"""Layer norm, instance norm and their layers: what is refused, how layers are shown, what state they give and take."""

import ml_dtypes
import numpy as np
import pytest
from cases import close, normal, same_bits
from test_peers import array, tensor, torch

import numbagn

# ------------------------------------------------------------------------------------------------------------- refused


class Ours(np.ndarray):
    """A subclass: it may carry a meaning that would be lost."""


X = np.ones((2, 6, 8), np.float32)
REFUSED = {
    "x list": ("x", {"x": [[1.0] * 8]}, TypeError, "must be a numpy.ndarray, got builtins.list"),
    "x int": ("x", {"x": np.ones((2, 8), int)}, TypeError, "must have dtype float16, bfloat16, float32, float64, got"),
    "x subclass": ("x", {"x": X.view(Ours)}, TypeError, "must be a numpy.ndarray, got test_norm_layers.Ours"),
    "x of no dimension": ("x", {"x": np.ones((), "f4")}, ValueError, "normalized_shape (8,) as its last dimensions, g"),
    "x of other rows": ("x", {"x": X[..., :7]}, ValueError, "(8,) as its last dimensions, got shape (2, 6, 7)"),
    "more dimensions": ("x", {"normalized_shape": (1, 2, 6, 8)}, ValueError, "(1, 2, 6, 8) as its last dimensions, go"),
    "other dimensions": ("x", {"normalized_shape": (8, 6)}, ValueError, "(8, 6) as its last dimensions, got shape (2"),
    "shape float": ("normalized_shape", {"normalized_shape": 8.0}, TypeError, "must be an integer, got 8.0"),
    "shape of floats": ("normalized_shape", {"normalized_shape": (8.0,)}, TypeError, "must be an integer, got 8.0"),
    "shape bool": ("normalized_shape", {"normalized_shape": True}, TypeError, "must be an integer, got True"),
    "shape of bools": ("normalized_shape", {"normalized_shape": (True,)}, TypeError, "must be an integer, got True"),
    "shape None": ("normalized_shape", {"normalized_shape": None}, TypeError, "must be an integer, got None"),
    "shape text": ("normalized_shape", {"normalized_shape": "8"}, TypeError, "must be an integer, got '8'"),
    "shape empty": ("normalized_shape", {"normalized_shape": ()}, ValueError, "must be one or more sizes, none negat"),
    "shape negative": ("normalized_shape", {"normalized_shape": -1}, ValueError, "none negative, got -1"),
    "shape array": ("normalized_shape", {"normalized_shape": X[0]}, TypeError, "must be an integer, got array([["),
    "weight of rows": ("weight", {"weight": np.ones((2, 8), "f4")}, ValueError, "must have shape (8,), got (2, 8)"),
    "weight of x": ("weight", {"weight": X}, ValueError, "must have shape (8,), got (2, 6, 8)"),
    "weight of none": ("weight", {"weight": np.ones((), "f4")}, ValueError, "must have shape (8,), got ()"),
    "weight list": ("weight", {"weight": [1.0] * 8}, TypeError, "must be a numpy.ndarray, got builtins.list"),
    "bias of 7": ("bias", {"bias": np.ones(7, "f4")}, ValueError, "must have shape (8,), got (7,)"),
    "bias int": ("bias", {"bias": np.ones(8, int)}, TypeError, "must have dtype float16, bfloat16, float32, float64"),
    "eps negative": ("eps", {"eps": -1.0}, ValueError, "must be finite and not negative, got -1.0"),
    "activation": ("activation", {"activation": "swish"}, ValueError, "must be one of None, 'relu', 'silu'"),
    "skip": ("skip", {"skip": X[:1]}, ValueError, "must have x's shape (2, 6, 8), got (1, 6, 8)"),
    "residual": ("residual", {"residual": X[0]}, ValueError, "must have x's shape (2, 6, 8), got (6, 8)"),
    "out shape": ("out", {"out": X[:1]}, ValueError, "must have x's shape (2, 6, 8), got (1, 6, 8)"),
    "out dtype": ("out", {"out": X.astype("f8")}, TypeError, "must have x's dtype float32, got float64"),
    "out read-only": ("out", {"out": np.broadcast_to(X[:1], X.shape)}, ValueError, "must be writable, got a read-only"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_layer_norm_refuses(one_thread, name):
    argument, change, kind, message = REFUSED[name]
    out = np.full_like(X, 7)
    good = {"x": X.copy(), "normalized_shape": 8, "weight": np.ones(8, np.float32), "out": out}
    numbagn.layer_norm(**(good | {"out": None}))  # a plan must let nothing through either
    with pytest.raises((TypeError, ValueError)) as refusal:
        numbagn.layer_norm(**(good | change))
    said = str(refusal.value)
    assert type(refusal.value) is kind
    assert said.startswith(argument + " must ")
    assert message in said
    assert "\n" not in said
    assert (out == 7).all()


@pytest.mark.parametrize(
    ("change", "kind", "message"),
    [
        ({"x": [1.0]}, TypeError, "x must be a numpy.ndarray, got builtins.list"),
        ({"x": X[0, 0]}, ValueError, "x must have at least 2 dimensions (N, C, ...), got shape (8,)"),
        ({"channel_axis": 0}, ValueError, "channel_axis must not be the batch axis 0"),
        ({"channel_axis": 3}, ValueError, "channel_axis must be from 1 to 2 or negative"),
        ({"channel_axis": 1.0}, TypeError, "channel_axis must be an integer, got 1.0"),
        ({"channel_axis": True}, TypeError, "channel_axis must be an integer, got True"),
        ({"weight": np.ones(8, np.float32)}, ValueError, "weight must have shape (6,) or (2, 6), got (8,)"),
        ({"eps": np.nan}, ValueError, "eps must be finite and not negative, got nan"),
    ],
)
def test_instance_norm_refuses(change, kind, message):
    with pytest.raises(kind) as refusal:
        numbagn.instance_norm(**({"x": X} | change))
    assert str(refusal.value).startswith(message)


# -------------------------------------------------------------------------------------------------------------- layers

LAYERS = {
    "LayerNorm(8)": lambda **options: numbagn.LayerNorm(8, **options),
    "LayerNorm((6, 8))": lambda **options: numbagn.LayerNorm((6, 8), **options),
    "InstanceNorm(6)": lambda **options: numbagn.InstanceNorm(6, **options),
}


@pytest.mark.parametrize("name", LAYERS)
def test_repr_state_and_parameters_of_layers(rng, one_thread, name):
    layer = LAYERS[name]()
    shape = {"LayerNorm(8)": (8,), "LayerNorm((6, 8))": (6, 8), "InstanceNorm(6)": (6,)}[name]
    assert repr(layer) == name
    assert same_bits(layer.weight, np.ones(shape, np.float32))
    assert same_bits(layer.bias, np.zeros(shape, np.float32))
    for options, shown in (
        ({"eps": 1e-3, "affine": False}, "eps=0.001, affine=False"),
        ({"bias": False, "dtype": ml_dtypes.bfloat16}, "bias=False, dtype='bfloat16'"),
        ({"activation": "silu"}, "activation='silu'"),
    ):
        made = LAYERS[name](**options)
        assert repr(made) == f"{name[:-1]}, {shown})"
        assert repr(eval(repr(made), vars(numbagn))) == repr(made)
    given = LAYERS[name](
        weight_init=lambda s: rng.standard_normal(s), bias_init=np.arange(np.prod(shape)).reshape(shape)
    )
    layer.load_state_dict({"norm." + k: v for k, v in given.state_dict().items()}, "norm.")
    x = normal(rng, (2, 6, 8), np.float32)
    assert same_bits(layer(x), given(x))
    assert list(layer.state_dict("a.")) == ["a.weight", "a.bias"]
    before = layer.state_dict()
    with pytest.raises(ValueError, match=r"do not fit .*Norm\(.*\): missing bias; weight has shape \(5,\), not "):
        layer.load_state_dict({"weight": np.ones(5)})
    assert all(map(same_bits, layer.state_dict().values(), before.values()))


def test_layers_of_torch_take_and_give_their_state(rng, one_thread):
    theirs = torch().nn.LayerNorm((6, 8), eps=1e-3)
    layer = numbagn.LayerNorm((6, 8), 1e-3, weight_init=rng.standard_normal((6, 8)), bias_init=2)
    theirs.load_state_dict({name: tensor(value) for name, value in layer.state_dict().items()})
    x = normal(rng, (2, 3, 6, 8), np.float32)
    close(layer(x), array(theirs(tensor(x))).astype(np.float64), 5e-6)
    with torch().no_grad():
        theirs.weight.mul_(2)
    layer.load_state_dict({name: array(value) for name, value in theirs.state_dict().items()})
    close(layer(x), array(theirs(tensor(x))).astype(np.float64), 5e-6)


@pytest.mark.parametrize(
    ("make", "kind", "message"),
    [
        (lambda: numbagn.LayerNorm(0.5), TypeError, "normalized_shape must be an integer, got 0.5"),
        (lambda: numbagn.LayerNorm(()), ValueError, "normalized_shape must be one or more sizes"),
        (lambda: numbagn.LayerNorm((4, -1)), ValueError, "normalized_shape must be one or more sizes, none negative"),
        (lambda: numbagn.LayerNorm(8, -1.0), ValueError, "eps must be finite and not negative, got -1.0"),
        (lambda: numbagn.LayerNorm(8, affine=1), TypeError, "affine must be True or False, got 1"),
        (lambda: numbagn.LayerNorm(8, dtype=int), TypeError, "dtype must be one of float16, bfloat16"),
        (lambda: numbagn.LayerNorm(8, weight_init=np.ones(7)), ValueError, "weight_init must give a number or shape"),
        (lambda: numbagn.LayerNorm((2, 8), bias_init=np.ones(8)), ValueError, "bias_init must give a number or shape"),
        (lambda: numbagn.InstanceNorm(0), ValueError, "num_channels must be positive, got 0"),
        (lambda: numbagn.InstanceNorm(4.0), TypeError, "num_channels must be an integer, got 4.0"),
        (lambda: numbagn.InstanceNorm(4, channel_axis=0), ValueError, "channel_axis must not be the batch axis 0"),
        (lambda: numbagn.LayerNorm(8)(X[..., :6]), ValueError, "x must have normalized_shape (8,) as its last"),
        (lambda: numbagn.LayerNorm(8, affine=False).forward(X[..., :6]), ValueError, "x must have normalized_"),
        (lambda: numbagn.InstanceNorm(4)(X), ValueError, "x must have 4 channels at axis 1, got shape (2, 6, 8)"),
        (lambda: numbagn.LayerNorm(8).forward(X, out=X), ValueError, "out must not share memory with x, which the"),
        (lambda: numbagn.LayerNorm(8).backward(X, (X, X)), TypeError, "saved must be what forward returned, got tuple"),
        (lambda: numbagn.LayerNorm(8).backward(X[:1], numbagn.LayerNorm(8).forward(X)[1]), ValueError, "dy must"),
    ],
)  # fmt: skip
def test_layers_refuse(one_thread, make, kind, message):
    with pytest.raises(kind) as refusal:
        make()
    assert str(refusal.value).startswith(message)
