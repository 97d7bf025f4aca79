"""Arrays of other libraries: taken where NumPy's are, without a copy, and results come back as what x is."""

import sys

import numpy as np
import pytest
from cases import DTYPES, normal, same_bits
from command_line import shell
from foreign import KINDS, from_jax, from_torch, to_jax, to_torch

import numbagn
from numbagn.arrays import families
from numbagn.arrays.recycling import array_like
from numbagn.calls import passes
from numbagn.calls.arguments import Forward

SHAPE, G = (2, 8, 5, 6), 4


@pytest.fixture(params=KINDS)
def kind(request):
    return KINDS[request.param]


def arguments(rng):
    """All arrays a forward pass takes."""
    arrays = {name: normal(rng, SHAPE, np.float32) for name in ("x", "skip", "residual")}
    return arrays | {"weight": normal(rng, 8, np.float32), "bias": normal(rng, (2, 8), np.float32)}


def backward_arguments(rng):
    given = arguments(rng)
    _, mean, rstd = numbagn.group_norm_forward(**given, num_groups=G)
    return given | {"dy": normal(rng, SHAPE, np.float32), "mean": mean, "rstd": rstd}


def assert_same(got, want, to_numpy):
    got, want = (r if type(r) is tuple else (r,) for r in (got, want))
    for g, w in zip(got, want, strict=True):
        assert same_bits(to_numpy(g), w)


@pytest.mark.parametrize("dtype", DTYPES)
def test_results_are_of_the_kind_of_x_and_have_the_bits_of_numpy(rng, one_thread, kind, dtype):
    to, back, dtypes = kind
    if dtype not in dtypes:
        pytest.skip("a dtype these arrays do not have")
    x, dy = (normal(rng, SHAPE, DTYPES[dtype]) for _ in range(2))
    forward = {"x": x, "weight": normal(rng, 8, np.float32), "bias": normal(rng, (2, 8), np.float32)}
    _, mean, rstd = numbagn.group_norm_forward(**forward, num_groups=G)
    for function, arrays in (
        (numbagn.group_norm, forward), (numbagn.group_norm_forward, forward),
        (numbagn.group_norm_backward, forward | {"dy": dy, "mean": mean, "rstd": rstd}),
    ):  # fmt: skip
        theirs = {name: to(value) for name, value in arrays.items()}
        assert_same(function(**theirs, num_groups=G), function(**arrays, num_groups=G), back)


def test_kinds_may_be_mixed(rng, one_thread, kind):
    to, back, _ = kind
    for function, make in ((numbagn.group_norm_forward, arguments), (numbagn.group_norm_backward, backward_arguments)):
        given = make(rng)
        want = function(**given, num_groups=G)
        for name, value in given.items():
            got = function(**given | {name: to(value)}, num_groups=G)
            assert_same(got, want, back if name == "x" else np.asarray)
            assert name == "x" or all(type(result) is np.ndarray for result in got)


def test_integers_give_float32_of_the_kind_of_x(rng, one_thread, kind):
    to, back, _ = kind
    x = rng.integers(0, 256, SHAPE, np.uint8)
    assert_same(numbagn.group_norm(to(x), G), numbagn.group_norm(x, G), back)


def test_parts_by_the_moments_of_the_whole(rng, one_thread, kind):
    to, back, _ = kind
    x = normal(rng, SHAPE, np.float32)
    weight = normal(rng, 8, np.float32)
    m = numbagn.group_moments(to(x), G)
    assert all(same_bits(got, want) for got, want in zip(m, numbagn.group_moments(x, G), strict=True))
    want = numbagn.normalize(x, m, weight)
    assert_same(numbagn.normalize(to(x), m, to(weight)), want, back)
    assert_same(numbagn.normalize(x, numbagn.Moments(*map(to, m)), to(weight)), want, np.asarray)


def test_rows_and_padded_batches(rng, one_thread, kind):
    to, back, _ = kind
    x, weight = normal(rng, SHAPE, np.float32), normal(rng, 6, np.float32)
    assert_same(numbagn.layer_norm(to(x), 6, to(weight)), numbagn.layer_norm(x, 6, weight), back)
    assert_same(numbagn.LayerNorm(6)(to(x)), numbagn.layer_norm(x, 6), back)
    assert_same(numbagn.instance_norm(to(x)), numbagn.instance_norm(x), back)
    for name, value in (("lengths", np.array([5, 3], np.int32)), ("mask", rng.random((2, 1, 5, 6)) < 0.5)):
        want = numbagn.group_norm(x, G, **{name: value})
        assert_same(numbagn.group_norm(to(x), G, **{name: to(value)}), want, back)
        assert_same(numbagn.group_norm(x, G, **{name: to(value)}), want, np.asarray)


def test_layout_is_kept(rng, one_thread):
    torch = pytest.importorskip("torch", reason="torch is not installed")
    x = to_torch(normal(rng, SHAPE, np.float32)).to(memory_format=torch.channels_last)
    y, mean, rstd = numbagn.group_norm_forward(x, G)
    assert y.stride() == x.stride()
    assert y.is_contiguous(memory_format=torch.channels_last)
    assert numbagn.group_norm_backward(y, x, mean, rstd, G)[0].stride() == x.stride()
    torch.testing.assert_close(y, torch.nn.functional.group_norm(x, G), rtol=0, atol=4e-6)


def test_strided_tensors(rng, one_thread):
    torch = pytest.importorskip("torch", reason="torch is not installed")
    x = to_torch(normal(rng, SHAPE, np.float32))
    for strided in (x[:, :, 1:, ::2], x.transpose(0, 2), x[:1].expand(3, *SHAPE[1:]), x[:0], x[..., :0]):
        y = numbagn.group_norm(strided, 1)
        assert y.shape == strided.shape
        if strided.numel():
            torch.testing.assert_close(y, torch.nn.functional.group_norm(strided, 1), rtol=0, atol=4e-6)


def test_no_copy_is_made(rng, kind):
    to, _, _ = kind
    result = array_like(np.empty(1 << 20, np.float32))  # begins where JAX wants memory to begin
    seen = []
    theirs = to(normal(rng, SHAPE, np.float32))
    again = families.in_kind(lambda given: seen.append(given.x) or result, Forward(theirs, 1))
    assert type(seen[0]) is np.ndarray
    assert np.shares_memory(seen[0], np.from_dlpack(theirs))
    assert np.shares_memory(result, np.from_dlpack(again))


def test_memory_of_a_result_is_not_used_again_while_it_is_held(rng, kind):
    to, back, _ = kind
    x = to(normal(rng, (1, 8, 1 << 17), np.float32))
    first = numbagn.group_norm(x, G)
    kept = back(first).copy()
    others = [numbagn.group_norm(x, G, bias=np.full(8, i, np.float32)) for i in range(3)]
    assert same_bits(back(first), kept)
    assert len({np.from_dlpack(y).__array_interface__["data"][0] for y in (first, *others)}) == 4


def test_later_calls_are_as_quick_as_those_of_numpy(rng, kind, monkeypatch):
    x = kind[0](normal(rng, SHAPE, np.float32))
    want = numbagn.group_norm(x, G)
    monkeypatch.setattr(passes, "problem", None)  # not asked again
    assert_same(numbagn.group_norm(x, G), kind[1](want), kind[1])


# ------------------------------------------------------------------------------------------------------------------ out


@pytest.mark.parametrize("dtype", DTYPES)
def test_out_may_be_a_tensor(rng, one_thread, dtype):
    pytest.importorskip("torch", reason="torch is not installed")
    x = normal(rng, SHAPE, DTYPES[dtype])
    want, mean, rstd = numbagn.group_norm_forward(x, G)
    for given in (x, to_torch(x)):
        out = to_torch(np.zeros_like(x))
        y, theirs, _ = numbagn.group_norm_forward(given, G, out=out)
        assert y is out
        assert type(theirs) is type(given)
        assert same_bits(from_torch(out), want)
    out = np.zeros_like(x)
    assert numbagn.group_norm(to_torch(x), G, out=out) is out
    assert same_bits(out, want)
    want = numbagn.group_norm_backward(x, x, mean, rstd, G)[0]
    inside = to_torch(x.copy())
    assert numbagn.group_norm_backward(inside, to_torch(x), mean, rstd, G, out=inside)[0] is inside
    assert same_bits(from_torch(inside), want)


def test_autograd_is_told_of_what_was_written(rng, one_thread):
    torch = pytest.importorskip("torch", reason="torch is not installed")
    weight = torch.ones(SHAPE, requires_grad=True)
    x = to_torch(normal(rng, SHAPE, np.float32))
    loss = (weight * x).sum()  # keeps x for the gradient
    assert numbagn.group_norm(x, G, out=x) is x
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_out_in_inference_mode(rng, one_thread):
    torch = pytest.importorskip("torch", reason="torch is not installed")
    x = normal(rng, SHAPE, np.float32)
    with torch.inference_mode():
        out = torch.empty(SHAPE)
        assert numbagn.group_norm(x, G, out=out) is out
    assert same_bits(out.numpy(), numbagn.group_norm(x, G))


# ------------------------------------------------------------------------------------------------------------------ JAX


def test_under_jit_by_a_callback(rng, one_thread):
    x = to_jax(normal(rng, SHAPE, np.float32))
    jax = sys.modules["jax"]
    for transform in (jax.jit, jax.vmap, jax.grad):
        with pytest.raises(TypeError, match=r"^x must hold values, got a jax.core.Tracer; .* use jax.pure_callback"):
            transform(lambda x: numbagn.group_norm(x[None] if x.ndim == 3 else x, G).sum())(x)

    @jax.jit
    def callback(x):
        return jax.pure_callback(lambda x: numbagn.group_norm(x, G), jax.ShapeDtypeStruct(x.shape, x.dtype), x)

    assert_same(callback(x), np.asarray(numbagn.group_norm(x, G)), from_jax)


def test_statistics_in_jax_are_float64_or_numpys(rng, one_thread):
    x = to_jax(normal(rng, SHAPE, np.float32, offset=1e6))
    jax = sys.modules["jax"]
    y, mean, rstd = numbagn.group_norm_forward(x, G)
    assert isinstance(y, jax.Array)
    assert type(mean) is type(rstd) is np.ndarray
    with jax.enable_x64(True) if hasattr(jax, "enable_x64") else jax.experimental.enable_x64():
        _, *statistics = numbagn.group_norm_forward(x, G)
        assert all(isinstance(s, jax.Array) and s.dtype == np.float64 for s in statistics)
        assert same_bits(np.asarray(statistics[0]), mean)
        wide = numbagn.group_norm(jax.numpy.asarray(np.asarray(x), np.float64), G)
        assert wide.dtype == np.float64
    with pytest.raises(TypeError, match=r"^x must be an array of numbers, got a jax.Array: .*PRNGKey"):
        numbagn.group_norm(jax.random.key(0), G)


def test_results_stay_on_the_device_of_x():
    pytest.importorskip("jax", reason="jax is not installed")
    done = shell(
        code="""
import jax, numbagn
jax.config.update("jax_num_cpu_devices", 2)
second = jax.devices()[1]
for dtype in ("float32", "bfloat16"):
    x = jax.device_put(jax.numpy.ones((2, 8, 5), dtype), second)
    print(numbagn.group_norm(x, 4).devices() == {second}, end=" ")
both = jax.sharding.NamedSharding(jax.make_mesh((2,), ("n",)), jax.sharding.PartitionSpec("n"))
try:
    numbagn.group_norm(jax.device_put(x, both), 4)
except TypeError as fault:
    print(fault)
""",
        JAX_PLATFORMS="cpu",
    )
    assert done.stdout.startswith("True True x must lie in CPU memory, got a jax.Array on "), done.stderr


# --------------------------------------------------------------------------------------------------------------- layers


def test_layers(rng, one_thread, kind):
    to, back, _ = kind
    layer = numbagn.GroupNorm(G, 8, weight_init=to(normal(rng, 8, np.float32)), activation="silu")
    assert type(layer.weight) is np.ndarray
    x, dy = normal(rng, SHAPE, np.float32), normal(rng, SHAPE, np.float32)
    want, saved = layer.forward(x)
    assert_same(layer(to(x)), want, back)
    y, theirs = layer.forward(to(x))
    assert_same(y, want, back)
    assert_same(layer.backward(to(dy), theirs), layer.backward(dy, saved), back)
    with pytest.raises(ValueError, match=r"^x must have 8 channels at axis 1, got shape \(8, 2, 5, 6\)$"):
        layer(to(np.ones((8, 2, 5, 6), np.float32)))


def test_layers_refuse_an_out_that_shares_memory(rng):
    torch = pytest.importorskip("torch", reason="torch is not installed")
    layer = numbagn.GroupNorm(G, 8)
    x = torch.ones(SHAPE)
    for out in (x, x.numpy()):
        with pytest.raises(ValueError, match="out must not share memory with x"):
            layer.forward(x, out=out)
    assert (x == 1).all()
    out = torch.empty(SHAPE)
    assert layer.forward(x, out=out)[0] is out
