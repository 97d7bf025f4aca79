"""Parameters of other libraries' layers: torch, Flax, Keras and MLX, by the values that their layers give."""

import doctest
import re

import numpy as np
import pytest
from cases import close, normal, same_bits

import numbagn
from numbagn import _weights
from numbagn.interop import mlx

C, G = 12, 3
WEIGHT, BIAS = np.linspace(0.5, 2.0, C, dtype=np.float32), np.linspace(-1.0, 1.0, C, dtype=np.float32)


def loaded(mapping, prefix="", **options):
    layer = numbagn.GroupNorm(G, C, **options)
    layer.load_state_dict(mapping, prefix)
    return layer


# ---------------------------------------------------------------------------------------------------------------- torch


def test_module_of_torch(rng, one_thread):
    torch = pytest.importorskip("torch", reason="torch is not installed")
    module = torch.nn.Sequential(torch.nn.Conv2d(C, C, 1), torch.nn.GroupNorm(G, C, eps=1e-3))
    with torch.no_grad():
        module[1].weight.copy_(torch.from_numpy(WEIGHT))
        module[1].bias.copy_(torch.from_numpy(BIAS))
        x = normal(rng, (2, C, 5, 7), np.float32)
        want = module[1](torch.from_numpy(x)).numpy()
    layer = loaded({name: value.numpy() for name, value in module.state_dict().items()}, "1.", eps=1e-3)
    close(layer(x), want, 1e-5)


# ----------------------------------------------------------------------------------------------------------------- Flax


def test_variables_of_flax_linen(rng, one_thread):
    jax = pytest.importorskip("jax", reason="jax is not installed")
    linen = pytest.importorskip("flax.linen", reason="flax is not installed")

    class Model(linen.Module):
        @linen.compact
        def __call__(self, x):
            return linen.GroupNorm(num_groups=G)(linen.Dense(C)(x))

    model, x = Model(), normal(rng, (2, 5, 7, C), np.float32)
    variables = jax.tree.map(np.array, model.init(jax.random.key(0), x))
    own = variables["params"]["GroupNorm_0"]
    own["scale"][:], own["bias"][:] = WEIGHT, BIAS
    want, seen = model.apply(variables, x, capture_intermediates=True)
    dense = np.array(seen["intermediates"]["Dense_0"]["__call__"][0])
    options = {"eps": 1e-6, "channel_axis": -1}
    nested = loaded(variables, "params/GroupNorm_0/", **options)
    close(nested(dense), np.asarray(want), 1e-5)
    flattened = {"/".join(path): value for path, value in _paths(variables)}
    for layer in (
        loaded(flattened, "params/GroupNorm_0/", **options),
        loaded(variables["params"], "GroupNorm_0/", **options),
        loaded(own, **options),
    ):
        assert same_bits(layer(dense), nested(dense))


def _paths(tree, above=()):
    for name, value in tree.items():
        if isinstance(value, dict):
            yield from _paths(value, (*above, name))
        else:
            yield (*above, name), value


def test_state_of_flax_nnx(rng, one_thread):
    jax = pytest.importorskip("jax", reason="jax is not installed")
    nnx = pytest.importorskip("flax.nnx", reason="flax is not installed")
    model = nnx.Sequential(nnx.Linear(C, C, rngs=nnx.Rngs(0)), nnx.GroupNorm(C, num_groups=G, rngs=nnx.Rngs(1)))
    norm = model.layers[1]
    norm.scale[...], norm.bias[...] = jax.numpy.asarray(WEIGHT), jax.numpy.asarray(BIAS)
    x = normal(rng, (2, 5, 7, C), np.float32)
    state = jax.tree.map(np.asarray, nnx.to_pure_dict(nnx.state(model)))
    layer = loaded(state, "layers/1/", eps=1e-6, channel_axis=-1)
    close(layer(x), np.asarray(norm(x)), 1e-5)


# ---------------------------------------------------------------------------------------------------------------- Keras


def test_weights_of_keras(rng, one_thread):
    """Its layer as it is documented: consecutive groups of the last axis, epsilon 1e-3, gamma and beta."""
    x = normal(rng, (2, 5, 7, C), np.float32)
    want = np.empty_like(x, np.float64)
    for n in range(2):
        for g in range(G):
            channels = slice(g * C // G, (g + 1) * C // G)
            block = x[n, ..., channels].astype(np.float64)
            x_hat = (block - block.mean()) / np.sqrt(block.var() + 1e-3)
            want[n, ..., channels] = x_hat * WEIGHT[channels] + BIAS[channels]
    options = {"eps": 1e-3, "channel_axis": -1}
    for layer in (
        loaded({"model/norm/gamma:0": WEIGHT, "model/norm/beta:0": BIAS, "kernel:0": x}, "model/norm/", **options),
        loaded({"norm/gamma": WEIGHT, "norm/beta": BIAS}, "norm/", **options),
        loaded({"norm": {"norm": {"gamma:0": WEIGHT, "beta:0": BIAS}}}, "norm/norm/", **options),
    ):
        close(layer(x), want, 4e-6)
    assert loaded({"n/gamma:0": WEIGHT}, "n/", bias=False).bias is None


def test_weights_of_keras_in_a_file(tmp_path):
    np.savez(tmp_path / "w.npz", **{"norm/gamma:0": WEIGHT, "norm/beta:0": BIAS})
    found = _weights.read_weights(tmp_path / "w.npz", "norm/")
    assert same_bits(found["weight"], WEIGHT)
    assert same_bits(found["bias"], BIAS)
    with pytest.raises(ValueError, match=r"prefixes that have them: 'norm/'"):
        _weights.read_weights(tmp_path / "w.npz", "nor/")


# ------------------------------------------------------------------------------------------------------------------ MLX


@pytest.mark.parametrize("groups", [1, 3, 4, 12])
def test_layer_of_mlx_with_interleaved_groups(rng, one_thread, groups):
    """Its layer as it is documented: channel c in group c mod G, over all positions."""
    x = normal(rng, (2, 5, 7, C), np.float32)
    want = np.empty_like(x, np.float64)
    for n in range(2):
        for g in range(groups):
            channels = [c for c in range(C) if c % groups == g]
            block = x[n][..., channels].astype(np.float64)
            x_hat = (block - block.mean()) / np.sqrt(block.var() + 1e-5)
            want[n][..., channels] = x_hat * WEIGHT[channels] + BIAS[channels]
    order = mlx.channel_order(C, groups)
    parameters = {"norm.weight": WEIGHT, "norm.bias": BIAS}
    layer = numbagn.GroupNorm(groups, C, channel_axis=-1)
    layer.load_state_dict({name: value[order] for name, value in parameters.items()}, "norm.")
    y = np.empty_like(x)
    y[..., order] = layer(x[..., order])
    close(y, want, 4e-6)


def test_order_folded_into_the_layers_around(rng, one_thread):
    """Nothing is copied at run time: the layer before gives its channels in order, the one after takes them so."""
    x, before, after = (
        normal(rng, (2, 9, 8), np.float32),
        normal(rng, (8, C), np.float32),
        normal(rng, (C, 5), np.float32),
    )
    order = mlx.channel_order(C, 4)
    interleaved = np.empty((2, 9, C), np.float32)
    interleaved[..., order] = numbagn.group_norm((x @ before)[..., order], 4, channel_axis=-1)
    folded = numbagn.group_norm(x @ before[:, order], 4, channel_axis=-1) @ after[order]
    close(folded, (interleaved @ after).astype(np.float64), 1e-4)


@pytest.mark.parametrize(
    ("arguments", "kind", "message"),
    [
        ((12, 5), ValueError, "num_groups must divide the 12 channels: one of 1, 2, 3, 4, 6, 12; got 5"),
        ((0, 1), ValueError, "num_channels must be positive, got 0"),
        ((12.0, 3), TypeError, r"num_channels must be an integer, got 12\.0"),
    ],
)
def test_channel_order_refuses(arguments, kind, message):
    with pytest.raises(kind, match=f"^{message}$"):
        mlx.channel_order(*arguments)


def test_example_of_mlx():
    result = doctest.testmod(mlx)
    assert result.attempted > 0
    assert result.failed == 0


# -------------------------------------------------------------------------------------------------------------- nesting


def test_only_what_stands_under_the_prefix_is_read():
    class Archive(dict):
        def __getitem__(self, name):
            assert name.startswith(("norm", "deep")), name
            return super().__getitem__(name)

    flat = Archive({"norm.weight": WEIGHT, "norm.bias": BIAS, "other.weight": None, "n": None, "normal": None})
    assert same_bits(loaded(flat, "norm.").weight, WEIGHT)
    nested = Archive({"deep": {"norm": {"scale": WEIGHT, "bias": BIAS}}, "dee": None, "shallow": {"scale": None}})
    assert same_bits(loaded(nested, "deep/norm/").bias, BIAS)


@pytest.mark.parametrize(
    ("mapping", "prefix", "message"),
    [
        (
            {"a": {"scale": WEIGHT, "bias": BIAS}},
            "",
            "missing bias; unexpected a/scale; unexpected a/bias",
        ),
        ({"a": {"scale": WEIGHT, "bias": BIAS, "b": {"x": BIAS}}}, "a/", "unexpected a/b/x"),
        ({"a": {"scale": WEIGHT}}, "a/", "missing a/bias"),
        ({"a": {"scale": WEIGHT, "beta": BIAS}}, "a/", "ambiguous parameter names: found a/scale, a/beta"),
        ({"a": {"gamma": WEIGHT, "gamma:0": WEIGHT}}, "a/", "ambiguous parameter names: a/gamma stands there twice"),
        ({"a/gamma": WEIGHT, "a": {"gamma": WEIGHT}}, "a/", "ambiguous parameter names: a/gamma stands there twice"),
        ({"a": {"scale": WEIGHT[1:], "bias": BIAS}}, "a/", "a/scale has shape (11,), not (12,)"),
    ],
)
def test_nested_parameters_that_do_not_fit(mapping, prefix, message):
    with pytest.raises(ValueError, match=re.escape(message)) as refusal:
        loaded(mapping, prefix)
    assert "\n" not in str(refusal.value)


def test_prefixes_of_nested_parameters_are_shown():
    variables = {"params": {"GroupNorm_0": {"scale": WEIGHT, "bias": BIAS}, "GroupNorm_1": {"scale": WEIGHT}}}
    with pytest.raises(ValueError, match=r"prefixes that have them: 'params/GroupNorm_0/', 'params/GroupNorm_1/'"):
        _weights.find_parameters(variables, "GroupNorm_0/")
