"""Parameters out of a layer and into it: all of them or none, and never a pickle."""

import re

import ml_dtypes
import numpy as np
import pytest
from cases import same_bits
from command_line import Bomb

import numbagn
from numbagn._weights import SPELLINGS, load_file

WEIGHT, BIAS = np.arange(8, dtype=np.float32), np.arange(8, 16, dtype=np.float32)


def test_state_dict_gives_copies():
    layer = numbagn.GroupNorm(4, 8)
    state = layer.state_dict("down.norm.")
    assert list(state) == ["down.norm.weight", "down.norm.bias"]
    state["down.norm.weight"][:] = 7
    assert (layer.weight == 1).all()


def test_a_state_goes_round():
    for options in ({}, {"bias": False}, {"affine": False}, {"dtype": ml_dtypes.bfloat16}, {"dtype": "float64"}):
        layer = numbagn.GroupNorm(4, 8, weight_init=WEIGHT, bias_init=BIAS, **options)
        other = numbagn.GroupNorm(4, 8, **options)
        other.load_state_dict(layer.state_dict("a."), "a.")
        for mine, theirs in ((layer.weight, other.weight), (layer.bias, other.bias)):
            assert (mine is None and theirs is None) or same_bits(mine, theirs)


@pytest.mark.parametrize("prefix", ["", "norm1.", "model.down_blocks.0.resnets.1.norm1.", "layers/3/"])
@pytest.mark.parametrize("spelling", SPELLINGS)
def test_load_state_dict_by_every_spelling(spelling, prefix):
    layer = numbagn.GroupNorm(4, 8)
    mapping = {prefix + spelling[0]: WEIGHT, prefix + spelling[1]: BIAS.astype(np.float16)}
    mapping |= {"other.weight": np.ones(3), "other.step": "text"} if prefix else {}
    layer.load_state_dict(mapping, prefix)
    assert same_bits(layer.weight, WEIGHT)
    assert same_bits(layer.bias, BIAS)
    mapping[prefix + spelling[0]][:0] = 0
    layer.weight[:] = 0
    assert WEIGHT[1] == 1  # copied


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float32, np.float64, ">f4"])
def test_load_state_dict_converts_to_the_dtype_of_the_layer(dtype):
    layer = numbagn.GroupNorm(4, 8, dtype=np.float64)
    layer.load_state_dict({"weight": WEIGHT.astype(dtype), "bias": BIAS.astype(dtype)[::-1][::-1]})
    assert same_bits(layer.weight, WEIGHT.astype(np.float64))
    assert same_bits(layer.bias, BIAS.astype(np.float64))


def faulty(**changes):
    """A good mapping but for these changes; None takes a name away."""
    mapping = {"weight": WEIGHT, "bias": BIAS} | changes
    return {name: value for name, value in mapping.items() if value is not None}


FITS = "the parameters do not fit GroupNorm(4, 8): "
DTYPE = "must have dtype float16, bfloat16, float32, float64"
# name: (options of the layer, mapping, prefix, exception, the message or its middle)
FAULTS = {
    "empty": ({}, {}, "", ValueError, FITS + "missing weight; missing bias"),
    "missing bias": ({}, faulty(bias=None), "", ValueError, FITS + "missing bias"),
    "missing weight": ({}, faulty(weight=None), "", ValueError, FITS + "missing weight"),
    "missing scale": ({}, {"beta": BIAS}, "", ValueError, FITS + "missing gamma"),
    "unexpected": ({}, faulty(running_mean=BIAS), "", ValueError, FITS + "unexpected running_mean"),
    "unexpected bias": ({"bias": False}, faulty(), "", ValueError, "GroupNorm(4, 8, bias=False): unexpected bias"),
    "no affine": ({"affine": False}, faulty(), "", ValueError, "affine=False): unexpected weight; unexpected bias"),
    "short": ({}, faulty(weight=WEIGHT[:7]), "", ValueError, FITS + "weight has shape (7,), not (8,)"),
    "long": ({}, faulty(bias=np.ones(9)), "", ValueError, FITS + "bias has shape (9,), not (8,)"),
    "one number": ({}, faulty(bias=np.float32(1)), "", TypeError, "bias must be a numpy.ndarray, got numpy.float32"),
    "of no dimension": ({}, faulty(bias=np.array(1.0)), "", ValueError, "bias has shape (), not (8,)"),
    "of each sample": ({}, faulty(weight=np.ones((2, 8))), "", ValueError, "weight has shape (2, 8), not (8,)"),
    "as convolution": ({}, faulty(weight=np.ones((1, 8, 1, 1))), "", ValueError, "weight has shape (1, 8, 1, 1), not"),
    "integers": ({}, faulty(weight=np.ones(8, int)), "", TypeError, FITS + f"weight {DTYPE}, got int64"),
    "complex": ({}, faulty(weight=np.ones(8, complex)), "", TypeError, FITS + f"weight {DTYPE}, got complex128"),
    "objects": ({}, faulty(weight=WEIGHT.astype(object)), "", TypeError, FITS + f"weight {DTYPE}, got object"),
    "a list": ({}, faulty(weight=[1.0] * 8), "", TypeError, FITS + "weight must be a numpy.ndarray, got"),
    "masked": ({}, faulty(weight=np.ma.ones(8)), "", TypeError, FITS + "weight must be a numpy.ndarray, got"),
    "prefix without its dot": ({}, {"n.weight": WEIGHT, "n.bias": BIAS}, "n", ValueError, "unexpected n.weight"),
    "another prefix": ({}, {"n.weight": WEIGHT, "n.bias": BIAS}, "m.", ValueError, FITS + "missing m.weight; missing"),
    "below the prefix": ({}, {"n.weight": WEIGHT, "n.bias": BIAS, "n.0.weight": BIAS}, "n.", ValueError, "unexpected"),
    "two spellings of weight": ({}, faulty(gamma=WEIGHT), "", ValueError, "found weight, bias, gamma; allowed: one"),
    "weight and beta": ({}, faulty(bias=None, beta=BIAS), "", ValueError, "ambiguous parameter names: found weight"),
    "gamma and bias": ({}, {"n.gamma": WEIGHT, "n.bias": BIAS}, "n.", ValueError, "found n.bias, n.gamma; allowed:"),
    "several": (
        {}, {"n.scale": WEIGHT[:5], "n.steps": BIAS, "n.mean": BIAS}, "n.", ValueError,
        FITS + "missing n.bias; unexpected n.steps; unexpected n.mean; n.scale has shape (5,), not (8,)",
    ),
    "several, a dtype among them": (
        {}, faulty(weight=np.ones(8, int), bias=np.ones(3), more=BIAS), "", ValueError,
        FITS + f"unexpected more; bias has shape (3,), not (8,); weight {DTYPE}, got int64",
    ),
    "two dtypes": (
        {}, faulty(weight=np.ones(8, int), bias=np.ones(8, bool)), "", TypeError,
        FITS + f"weight {DTYPE}, got int64; convert it with .astype; bias {DTYPE}, got bool; convert it with .astype",
    ),
    "no mapping": ({}, [("weight", WEIGHT)], "", TypeError, "mapping must be a mapping of str to arrays, got list"),
    "None": ({}, None, "", TypeError, "mapping must be a mapping of str to arrays, got NoneType"),
    "numbers as names": ({}, {0: WEIGHT, 1: BIAS}, "", TypeError, "mapping must be a mapping of str to arrays, got"),
    "prefix None": ({}, faulty(), None, TypeError, "prefix must be a string, got None"),
    "prefix a list": ({}, faulty(), ["n."], TypeError, "prefix must be a string, got ['n.']"),
}  # fmt: skip


@pytest.mark.parametrize("name", FAULTS)
def test_load_state_dict_refuses(name):
    options, mapping, prefix, kind, message = FAULTS[name]
    layer = numbagn.GroupNorm(4, 8, **options)
    before = dict(layer.__dict__)
    state = layer.state_dict()
    with pytest.raises((TypeError, ValueError)) as refusal:
        layer.load_state_dict(mapping, prefix)
    assert type(refusal.value) is kind
    assert message in str(refusal.value)
    assert "\n" not in str(refusal.value)
    assert all(layer.__dict__[name] is value for name, value in before.items())
    assert all(same_bits(value, state[name]) for name, value in layer.state_dict().items())


# ---------------------------------------------------------------------------------------------------------------- files


def test_npz(tmp_path):
    layer = numbagn.GroupNorm(4, 8, weight_init=WEIGHT, bias_init=BIAS)
    np.savez(tmp_path / "w.npz", **layer.state_dict("norm."), step=np.array("of training"))
    other = numbagn.GroupNorm(4, 8)
    with np.load(tmp_path / "w.npz") as archive:
        other.load_state_dict(archive, "norm.")
    assert same_bits(other.weight, WEIGHT)
    assert same_bits(other.bias, BIAS)
    other = numbagn.GroupNorm(4, 8)
    other.load_state_dict(load_file(tmp_path / "w.npz", "norm."), "norm.")
    assert same_bits(other.bias, BIAS)


def test_npz_with_a_pickle_is_refused_and_the_pickle_never_run(tmp_path):
    hostile = np.empty(8, object)
    hostile[:] = [Bomb(tmp_path / "boom")] * 8
    np.savez(tmp_path / "w.npz", weight=WEIGHT, bias=hostile, allow_pickle=True)
    layer = numbagn.GroupNorm(4, 8)
    with np.load(tmp_path / "w.npz") as archive, pytest.raises(ValueError, match="Object arrays cannot be loaded"):
        layer.load_state_dict(archive)
    with pytest.raises(ValueError, match=re.escape("w.npz cannot be read: Object arrays cannot be loaded")):
        load_file(tmp_path / "w.npz")
    assert (layer.weight == 1).all()
    assert (layer.bias == 0).all()
    assert not (tmp_path / "boom").exists()


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_safetensors(tmp_path, dtype):
    safetensors = pytest.importorskip("safetensors.numpy", reason="safetensors is not installed")
    layer = numbagn.GroupNorm(4, 8, dtype=dtype, weight_init=WEIGHT, bias_init=BIAS)
    data = safetensors.save(layer.state_dict("norm.") | {"conv.weight": np.ones((8, 8, 3, 3), np.float32)})
    other = numbagn.GroupNorm(4, 8, dtype=dtype)
    other.load_state_dict(safetensors.load(data), "norm.")
    assert same_bits(other.weight, layer.weight)
    assert same_bits(other.bias, layer.bias)
    (tmp_path / "w.safetensors").write_bytes(data)
    other = numbagn.GroupNorm(4, 8, dtype=dtype)
    other.load_state_dict(load_file(tmp_path / "w.safetensors", "norm."), "norm.")
    assert same_bits(other.weight, layer.weight)


def test_state_dict_of_torch():
    torch = pytest.importorskip("torch", reason="torch is not installed")
    theirs = torch.nn.GroupNorm(4, 8)
    layer = numbagn.GroupNorm(4, 8, weight_init=WEIGHT)
    layer.load_state_dict(theirs.state_dict())
    assert type(layer.weight) is np.ndarray
    assert not np.shares_memory(layer.weight, theirs.weight.detach().numpy())
    assert same_bits(layer.weight, theirs.weight.detach().numpy())
    theirs.load_state_dict({name: torch.from_numpy(value) for name, value in layer.state_dict().items()})
