"""The layer: its arguments, that it does what the functions do, and that it keeps nothing but its parameters."""

import copy
import pickle
import threading

import ml_dtypes
import numpy as np
import pytest
from cases import DTYPES, in_layout, normal, same_bits

import numbagn
from numbagn.layers import Saved

bfloat16 = ml_dtypes.bfloat16

# ----------------------------------------------------------------------------------------------------------- arguments

REFUSED = {
    "channels 0": ((1, 0), {}, ValueError, "num_channels must be positive, got 0"),
    "channels negative": ((1, -8), {}, ValueError, "num_channels must be positive, got -8"),
    "channels float": ((1, 8.0), {}, TypeError, "num_channels must be an integer, got 8.0"),
    "channels bool": ((1, True), {}, TypeError, "num_channels must be an integer, got True"),
    "channels a shape": ((1, (8,)), {}, TypeError, "num_channels must be an integer, got (8,)"),
    "groups do not divide": ((3, 8), {}, ValueError, "num_groups must divide the 8 channels: one of 1, 2, 4, 8; got 3"),
    "groups and channels swapped": ((8, 4), {}, ValueError, "num_groups must divide the 4 channels: one of 1, 2, 4"),
    "groups 0": ((0, 8), {}, ValueError, "num_groups must divide the 8 channels: one of 1, 2, 4, 8; got 0"),
    "groups float": ((4.0, 8), {}, TypeError, "num_groups must be an integer, got 4.0"),
    "groups bool": ((True, 8), {}, TypeError, "num_groups must be an integer, got True"),
    "eps negative": ((4, 8, -1.0), {}, ValueError, "eps must be finite and not negative, got -1.0"),
    "eps NaN": ((4, 8, np.nan), {}, ValueError, "eps must be finite and not negative, got nan"),
    "eps text": ((4, 8, "1e-5"), {}, TypeError, "eps must be a real number, got '1e-5'"),
    "affine in the place of eps": ((4, 8, True), {}, TypeError, "eps must be a real number, got True"),
    "affine number": ((4, 8, 1e-5, 1), {}, TypeError, "affine must be True or False, got 1"),
    "bias array": ((4, 8), {"bias": np.zeros(8)}, TypeError, "bias must be True or False, got array([0., 0., 0., 0."),
    "bias None": ((4, 8), {"bias": None}, TypeError, "bias must be True or False, got None"),
    "activation": ((4, 8), {"activation": "swish"}, ValueError, "activation must be one of None, 'relu', 'silu'"),
    "activation function": ((4, 8), {"activation": np.tanh}, TypeError, "activation must be None or a string, got"),
    "axis 0": ((4, 8), {"channel_axis": 0}, ValueError, "channel_axis must not be the batch axis 0, got 0; give"),
    "axis float": ((4, 8), {"channel_axis": 1.0}, TypeError, "channel_axis must be an integer, got 1.0"),
    "dtype int": ((4, 8), {"dtype": int}, TypeError, "dtype must be one of float16, bfloat16, float32, float64, got"),
    "dtype complex": ((4, 8), {"dtype": "complex64"}, TypeError, "dtype must be one of float16, bfloat16, float32"),
    "dtype big-endian": ((4, 8), {"dtype": ">f4"}, TypeError, "bfloat16, float32, float64, got '>f4'"),
    "dtype None": ((4, 8), {"dtype": None}, TypeError, "bfloat16, float32, float64, got None"),
    "dtype unknown": ((4, 8), {"dtype": "float31"}, TypeError, "bfloat16, float32, float64, got 'float31'"),
    "dtype an array": ((4, 8), {"dtype": np.ones((3, 3))}, TypeError, "float64, got array([[1., 1., 1.], [1., 1."),
    "weight of 7": ((4, 8), {"weight_init": np.ones(7)}, ValueError, "weight_init must give a number or shape (8,)"),
    "weight of 1": ((4, 8), {"weight_init": [1.0]}, ValueError, "number or shape (8,), got shape (1,)"),
    "weight of samples": ((4, 8), {"weight_init": np.ones((2, 8))}, ValueError, "number or shape (8,), got shape (2"),
    "weight ragged": ((4, 8), {"weight_init": [1, [2]]}, ValueError, "weight_init must give a number or shape (8,)"),
    "weight complex": ((4, 8), {"weight_init": 1j}, TypeError, "weight_init must give real numbers, got dtype"),
    "weight text": ((4, 8), {"weight_init": "ones"}, TypeError, "weight_init must give real numbers, got dtype <U4"),
    "weight None": ((4, 8), {"weight_init": None}, TypeError, "weight_init must give real numbers, got dtype object"),
    "weight bool": ((4, 8), {"weight_init": True}, TypeError, "weight_init must give real numbers, got dtype bool"),
    "weight masked": ((4, 8), {"weight_init": np.ma.ones(8)}, TypeError, "weight_init must be a numpy.ndarray, got"),
    "bias function": ((4, 8), {"bias_init": lambda shape: np.ones(3)}, ValueError, "bias_init must give a number or"),
    "bias function of None": ((4, 8), {"bias_init": lambda shape: None}, TypeError, "bias_init must give real"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_refused_arguments(name):
    args, options, kind, message = REFUSED[name]
    with pytest.raises((TypeError, ValueError)) as refusal:
        numbagn.GroupNorm(*args, **options)
    assert type(refusal.value) is kind
    assert message in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_parameters_by_default():
    layer = numbagn.GroupNorm(4, 8)
    assert same_bits(layer.weight, np.ones(8, np.float32))
    assert same_bits(layer.bias, np.zeros(8, np.float32))
    assert (layer.num_groups, layer.num_channels, layer.eps) == (4, 8, 1e-5)
    assert (layer.channel_axis, layer.activation, layer.dtype) == (1, None, np.float32)


@pytest.mark.parametrize("dtype", DTYPES)
def test_parameters_as_asked(dtype):
    given = np.arange(8.0)
    layer = numbagn.GroupNorm(4, 8, dtype=DTYPES[dtype], weight_init=given, bias_init=lambda shape: -np.ones(shape))
    assert same_bits(layer.weight, given.astype(DTYPES[dtype]))
    assert same_bits(layer.bias, -np.ones(8, DTYPES[dtype]))
    layer.weight[:] = 5
    assert given[0] == 0  # a copy
    assert numbagn.GroupNorm(4, 8, weight_init=2).weight.tolist() == [2] * 8
    assert numbagn.GroupNorm(4, 8, bias_init=range(8)).bias.tolist() == list(range(8))
    assert numbagn.GroupNorm(4, 8, weight_init=np.ones(8, bfloat16)).weight.dtype == np.float32


def test_without_parameters():
    for options, has_weight, has_bias in (
        ({}, True, True),
        ({"bias": False}, True, False),
        ({"affine": False}, False, False),
        ({"affine": False, "bias": True}, False, False),
        ({"affine": np.False_}, False, False),
    ):
        layer = numbagn.GroupNorm(4, 8, **options)
        assert (layer.weight is not None, layer.bias is not None) == (has_weight, has_bias)
        assert list(layer.state_dict()) == ["weight"] * has_weight + ["bias"] * has_bias


@pytest.mark.parametrize(
    ("layer", "shown"),
    [
        (numbagn.GroupNorm(4, 8), "GroupNorm(4, 8)"),
        (numbagn.GroupNorm(4, 8, 1e-3), "GroupNorm(4, 8, eps=0.001)"),
        (numbagn.GroupNorm(4, 8, affine=False), "GroupNorm(4, 8, affine=False)"),
        (numbagn.GroupNorm(4, 8, bias=False), "GroupNorm(4, 8, bias=False)"),
        (
            numbagn.GroupNorm(np.int8(1), 8, np.float32(0.5), dtype=float, channel_axis=-1, activation="silu"),
            "GroupNorm(1, 8, eps=0.5, dtype='float64', channel_axis=-1, activation='silu')",
        ),
        (numbagn.GroupNorm(4, 8, dtype=bfloat16), "GroupNorm(4, 8, dtype='bfloat16')"),
    ],
)
def test_repr_makes_the_layer_again(layer, shown):
    assert repr(layer) == shown
    again = eval(shown, {"GroupNorm": numbagn.GroupNorm})
    assert again.__dict__.keys() == layer.__dict__.keys()
    assert repr(again) == shown
    assert again.dtype == layer.dtype


# ------------------------------------------------------------------------------------------------- forward and backward


def example(rng, **options):
    """(layer with parameters of its own, x, dy)."""
    layer = numbagn.GroupNorm(4, 8, weight_init=rng.standard_normal(8), bias_init=rng.standard_normal(8), **options)
    return layer, *(normal(rng, (3, 8, 5, 7), np.float32) for _ in range(2))


def test_call_forward_and_function_give_the_same_bits(rng, one_thread):
    layer, x, dy = example(rng, activation="silu")
    skip, residual = normal(rng, x.shape, np.float32), normal(rng, x.shape, np.float32)
    options = {"skip": skip, "residual": residual}
    want, mean, rstd = numbagn.group_norm_forward(x, 4, layer.weight, layer.bias, activation="silu", **options)
    gradients = numbagn.group_norm_backward(
        dy, x, mean, rstd, 4, layer.weight, layer.bias, activation="silu", **options
    )
    out, dx = np.empty_like(x), np.empty_like(x)
    assert layer(x, out=out, **options) is out
    assert same_bits(out, want)
    assert same_bits(layer(x, **options), want)
    y, saved = layer.forward(x, **options)
    assert same_bits(y, want)
    y, saved = layer.forward(x, out=out, **options)
    assert y is out
    assert (saved.x is x, saved.skip is skip, saved.residual is residual) == (True, True, True)
    got = layer.backward(dy, saved, out=dx)
    assert got[0] is dx
    assert len(got) == 4
    assert all(map(same_bits, got, gradients))


def test_channel_axis_and_eps_are_passed_on(rng, one_thread):
    layer, x, dy = example(rng, channel_axis=-1, eps=0.5)
    x, dy = (np.ascontiguousarray(np.moveaxis(v, 1, -1)) for v in (x, dy))
    want, mean, rstd = numbagn.group_norm_forward(x, 4, layer.weight, layer.bias, 0.5, channel_axis=-1)
    y, saved = layer.forward(x)
    assert same_bits(y, want)
    gradients = numbagn.group_norm_backward(dy, x, mean, rstd, 4, layer.weight, layer.bias, channel_axis=-1)
    assert all(map(same_bits, layer.backward(dy, saved), gradients))


def test_layer_of_torch_words(rng, one_thread):
    layer = numbagn.GroupNorm(num_groups=4, num_channels=8, eps=1e-6, affine=True, bias=False)
    x = normal(rng, (2, 8), np.float32)
    assert same_bits(layer(x), numbagn.group_norm(x, 4, np.ones(8, np.float32), eps=1e-6))


@pytest.mark.parametrize("name", ["x", "skip", "residual", "weight", "bias"])
def test_forward_refuses_an_out_that_backward_needs(rng, name):
    layer, x, _ = example(rng)
    memory = normal(rng, 2 * x.size, np.float32)
    arrays = {"x": x, "skip": x.copy(), "residual": x.copy()}
    out = memory[: x.size].reshape(x.shape)
    if name in arrays:
        arrays[name] = memory[10 : 10 + x.size].reshape(x.shape)
    else:
        setattr(layer, name, memory[10:18])
    before = memory.copy()
    with pytest.raises(ValueError, match=f"^out must not share memory with {name}, which the backward pass needs$"):
        layer.forward(**arrays, out=out)
    np.testing.assert_array_equal(memory, before)
    assert layer(**arrays, out=out) is out  # a call keeps nothing, so that it may


def test_backward_refuses_what_forward_did_not_give(rng):
    layer, x, dy = example(rng)
    for saved in (None, x, (x, x), layer):
        with pytest.raises(TypeError, match=f"^saved must be what forward returned, got {type(saved).__name__}$"):
            layer.backward(dy, saved)
    _, saved = layer.forward(x)
    with pytest.raises(ValueError, match=r"^dy must have x's shape \(3, 8, 5, 7\), got \(3, 8, 5, 6\)$"):
        layer.backward(dy[..., 1:], saved)


def test_parameters_of_each_sample(rng, one_thread):
    layer, x, dy = example(rng)
    layer.weight, layer.bias = normal(rng, (3, 8), np.float32), normal(rng, (3, 8), np.float64)
    y, saved = layer.forward(x)
    assert same_bits(y, numbagn.group_norm(x, 4, layer.weight, layer.bias))
    _, dweight, dbias = layer.backward(dy, saved)
    assert (dweight.shape, dweight.dtype, dbias.shape, dbias.dtype) == ((3, 8), np.float32, (3, 8), np.float64)
    with pytest.raises(ValueError, match=r"^weight must have shape \(8,\) or \(2, 8\), got \(3, 8\)$"):
        layer(x[:2])


def test_saved_of_several_calls_do_not_mix(rng, one_thread):
    layer, x, dy = example(rng)
    inputs = [x, 2 * x + 1, in_layout(-x, "channels_last"), x[:2], x[:, :, ::2]]
    kept = [layer.forward(v) for v in inputs]
    attributes = dict(layer.__dict__)
    for v, (y, saved) in reversed(list(zip(inputs, kept, strict=True))):
        assert isinstance(saved, Saved)
        alone_y, alone = layer.forward(v)
        assert same_bits(y, alone_y)
        d = np.resize(dy, v.shape)
        assert all(map(same_bits, layer.backward(d, saved), layer.backward(d, alone)))
    assert layer.__dict__ == attributes


def test_new_parameters_do_not_change_an_older_forward(rng, one_thread):
    layer, x, dy = example(rng)
    _, saved = layer.forward(x)
    want = layer.backward(dy, saved)
    layer.weight = layer.weight - 0.1
    layer.load_state_dict({"weight": np.zeros(8), "bias": np.zeros(8)})
    assert all(map(same_bits, layer.backward(dy, saved), want))


def test_one_layer_in_several_threads(rng, one_thread):
    layer, x, dy = example(rng)
    inputs = [x + np.float32(i) for i in range(6)]
    want = [(y, *layer.backward(dy, saved)) for y, saved in map(layer.forward, inputs)]
    wrong = []

    def work(i):
        for _ in range(30):
            y, saved = layer.forward(inputs[i])
            if not all(map(same_bits, (y, *layer.backward(dy, saved)), want[i])):
                wrong.append(i)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(len(inputs))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


# --------------------------------------------------------------------------------------------------------------- copies


@pytest.mark.parametrize("again", [copy.deepcopy, lambda layer: pickle.loads(pickle.dumps(layer))])
@pytest.mark.parametrize("options", [{}, {"dtype": bfloat16, "channel_axis": -1, "eps": 0.1}, {"affine": False}])
def test_copies_are_layers_of_their_own(rng, one_thread, again, options):
    layer = numbagn.GroupNorm(4, 8, activation="relu", **options)
    other = again(layer)
    x = normal(rng, (2, 8, 8), np.float32)
    assert repr(other) == repr(layer)
    assert other.__dict__.keys() == layer.__dict__.keys()
    assert same_bits(other(x), layer(x))
    if layer.weight is not None:
        other.weight[:] = 3
        assert (layer.weight == 1).all()
    y, saved = layer.forward(x)
    assert all(map(same_bits, layer.backward(y, again(saved)), layer.backward(y, saved)))


# name: (dtype of the layer, a finite value it cannot hold, one that it can)
TOO_LARGE = {
    "float64 for float16": ("float16", np.float64(1e300), np.float64(65519)),
    "just too large": ("float16", np.float64(65520), np.float64(-65519)),
    "float32 for float16": ("float16", np.float32(1e9), np.float32(1e-9)),
    "float64 for float32": ("float32", np.float64(-1e39), np.float64(3e38)),
    "float64 for bfloat16": (ml_dtypes.bfloat16, np.float64(3.4e38), np.float64(3.3e38)),
    "bfloat16 for float16": ("float16", ml_dtypes.bfloat16(1e30), ml_dtypes.bfloat16(3)),
}


@pytest.mark.parametrize("name", TOO_LARGE)
def test_parameters_that_do_not_fit_the_dtype_are_refused_and_none_taken(name):
    dtype, large, fitting = TOO_LARGE[name]
    layer = numbagn.GroupNorm(2, 4, dtype=dtype)
    before = layer.state_dict()
    loaded = {"n.weight": np.full(4, 2.0), "n.bias": np.array([fitting, large, fitting, np.inf], large.dtype)}
    with pytest.raises(ValueError, match=r"; take a wider dtype$") as refusal:
        layer.load_state_dict(loaded, "n.")
    assert f"n.bias must have values that fit into {np.dtype(dtype)}, got " in str(refusal.value)
    assert all(same_bits(layer.state_dict()[key], value) for key, value in before.items())
    loaded["n.bias"][1] = np.nan  # what is not finite was meant
    layer.load_state_dict(loaded, "n.")
    assert same_bits(layer.bias, np.array([fitting, np.nan, fitting, np.inf], large.dtype).astype(dtype))
    for option in ("weight_init", "bias_init"):
        message = rf"^{option} must have values that fit into {np.dtype(dtype)}, got [^\n]*; take a wider dtype$"
        for given in (large, np.array([1, large, 1, 1], large.dtype), lambda shape: np.full(shape, large)):
            with pytest.raises(ValueError, match=message):
                numbagn.GroupNorm(2, 4, dtype=dtype, **{option: given})
        numbagn.GroupNorm(2, 4, dtype=dtype, **{option: fitting})


def test_integers_that_do_not_fit_the_dtype_are_refused():
    with pytest.raises(
        ValueError, match=r"^weight_init must have values that fit into float16, got -70000; take a wider"
    ):
        numbagn.LayerNorm(4, dtype="float16", weight_init=-70000)
    assert (numbagn.InstanceNorm(4, dtype="float16", bias_init=[1, 2, 3, 60000]).bias == [1, 2, 3, 60000]).all()
    assert np.isinf(numbagn.GroupNorm(2, 4, weight_init=np.inf).weight).all()
