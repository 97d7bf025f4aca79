"""Arrays of other libraries: taken where NumPy's are, without a copy, and results come back as what x is."""

import sys
import types

import ml_dtypes
import numpy as np
import pytest
from cases import DTYPES, normal, same_bits
from command_line import shell

import numbagn
from numbagn import _arrays, _calls
from numbagn._recycling import array_like

SHAPE, G = (2, 8, 5, 6), 4


class Standard:
    """An array of a library that keeps to the array API standard, and nothing more."""

    def __init__(self, array, device=1):
        self.array, self.device = array, device

    shape = property(lambda self: self.array.shape)

    def __dlpack__(self, **options):
        if self.device != 1:
            raise BufferError("not in this memory")
        return self.array.__dlpack__(**options)

    def __dlpack_device__(self):
        return self.device, 0

    def __array_namespace__(self):
        return types.SimpleNamespace(from_dlpack=lambda array: Standard(np.from_dlpack(array)))


def to_torch(a):
    torch = pytest.importorskip("torch", reason="torch is not installed")
    if a.dtype.name == "bfloat16":
        return torch.from_numpy(a.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(a)


def from_torch(t):
    assert type(t) is sys.modules["torch"].Tensor
    torch = sys.modules["torch"]
    return t.view(torch.int16).numpy().view(ml_dtypes.bfloat16) if t.dtype is torch.bfloat16 else t.numpy()


def to_jax(a):
    jax = pytest.importorskip("jax", reason="jax is not installed")
    return a if a.dtype == np.float64 else jax.numpy.asarray(a)  # no float64 unless it is told to


def from_jax(a):
    if type(a) is np.ndarray:
        assert a.dtype == np.float64
        return a
    assert isinstance(a, sys.modules["jax"].Array)
    return np.asarray(a)


def from_standard(a):
    assert type(a) is Standard
    return a.array


# kind: (from NumPy, to NumPy, the dtypes it has)
KINDS = {
    "torch": (to_torch, from_torch, DTYPES),
    "jax": (to_jax, from_jax, ("float16", "bfloat16", "float32")),
    "standard": (Standard, from_standard, ("float16", "float32", "float64")),
}


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
    again = _arrays.in_kind(lambda x: seen.append(x) or result, {"x": theirs})
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
    monkeypatch.setattr(_calls, "problem", None)  # not asked again
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


def test_out_of_a_wrong_kind_is_refused_and_nothing_written(rng):
    x = normal(rng, SHAPE, np.float32)
    theirs = to_jax(x.copy())
    for given in (x, theirs):
        with pytest.raises(TypeError, match=r"^out must be an array that can be written to, got a jax\.Array[^\n]*$"):
            numbagn.group_norm(given, G, out=theirs)
    assert same_bits(np.asarray(theirs), x)
    out = Standard(x.copy())
    out.array.flags.writeable = False
    with pytest.raises((TypeError, ValueError), match=r"^out must [^\n]*$"):
        numbagn.group_norm(x, G, out=out)
    with pytest.raises(TypeError, match=r"^out must be a numpy.ndarray, got builtins.list"):
        numbagn.group_norm(x, G, out=[1.0])


# ------------------------------------------------------------------------------------------------------------- refusals


def tensors():
    """Tensors that are refused: (tensor, what the message says)."""
    torch = pytest.importorskip("torch", reason="torch is not installed")
    t = torch.ones(SHAPE)

    class Labelled(torch.Tensor):
        pass

    return {
        "on another device": (t.to("meta"), "must be a dense tensor in CPU memory, got torch.Tensor on meta"),
        "sparse": (
            t.to_sparse(),
            "must be a dense tensor in CPU memory, got torch.Tensor on cpu: can't convert Sparse",
        ),
        "negative bit": (torch.complex(t, t).conj().imag, "Use tensor.resolve_neg()"),
        "float8": (t.to(torch.float8_e4m3fn), "Float8_e4m3fn"),
        "complex": (torch.complex(t, t), "must have dtype float16, bfloat16, float32, float64"),
        "integers": (t.long(), "must have dtype float16, bfloat16, float32, float64"),
        "a subclass": (t.as_subclass(Labelled), "Labelled; use its .as_subclass(torch.Tensor)"),
        "requires gradients": (t.clone().requires_grad_(), "must not require gradients, which do not flow through"),
        "a parameter": (torch.nn.Parameter(t.clone()), "use its .detach() or torch.no_grad()"),
    }


@pytest.mark.parametrize("name", ["x", "weight", "skip", "residual"])
def test_tensors_that_are_refused(name):
    for tensor, says in tensors().values():
        given = {"x": np.ones(SHAPE, np.float32)} | {name: tensor}
        with pytest.raises(TypeError, match=rf"^{name} must [^\n]*$") as fault:
            numbagn.group_norm(**given, num_groups=G)
        assert says in str(fault.value)


def test_parameters_of_torch_where_no_gradients_are_wanted(rng, one_thread):
    torch = pytest.importorskip("torch", reason="torch is not installed")
    norm = torch.nn.GroupNorm(G, 8)
    torch.nn.init.normal_(norm.weight)
    x = to_torch(normal(rng, SHAPE, np.float32)).requires_grad_()
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            y = numbagn.group_norm(x, G, norm.weight, norm.bias)
            torch.testing.assert_close(y, norm(x), rtol=0, atol=4e-6)
    assert torch.equal(numbagn.group_norm(x.detach(), G, norm.weight.detach(), norm.bias.detach()), y)


def test_tensors_inside_torch_func_are_refused(rng):
    torch = pytest.importorskip("torch", reason="torch is not installed")
    with pytest.raises(TypeError, match=r"^x must be a dense tensor in CPU memory[^\n]*$"):
        torch.func.vmap(lambda x: numbagn.group_norm(x, G))(to_torch(normal(rng, (3, *SHAPE), np.float32)))


def test_bfloat16_tensors_without_ml_dtypes(monkeypatch):
    torch = pytest.importorskip("torch", reason="torch is not installed")
    monkeypatch.setitem(sys.modules, "ml_dtypes", None)
    with pytest.raises(TypeError, match=r"^x must not be bfloat16 without ml_dtypes: pip install 'numbagn\[bf16\]'$"):
        numbagn.group_norm(torch.ones(SHAPE, dtype=torch.bfloat16), G)


def test_arrays_on_devices_are_refused():
    with pytest.raises(TypeError, match=r"^x must lie in CPU memory, got test_arrays.Standard: not in this memory$"):
        numbagn.group_norm(Standard(np.ones(SHAPE), device=2), G)
    device = type("DeviceArray", (), {"__cuda_array_interface__": {}, "__array__": lambda self: 1 / 0})()
    with pytest.raises(TypeError, match=r"DeviceArray; copy it to CPU memory$"):
        numbagn.group_norm(device, G)


def test_a_library_that_is_being_imported_is_no_hindrance(rng, one_thread, monkeypatch):
    monkeypatch.setattr(_arrays, "_known", {})
    for name in ("torch", "jax", "dask.array"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    x = normal(rng, SHAPE, np.float32)
    assert same_bits(numbagn.group_norm(Standard(x), G).array, numbagn.group_norm(x, G))


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


# -------------------------------------------------------------------------------------- what is refused, and what to do


def test_hint_for_xarray_keeps_the_labels(rng, one_thread):
    xarray = pytest.importorskip("xarray", reason="xarray is not installed")
    x = normal(rng, (2, 8, 5), np.float32)
    labelled = xarray.DataArray(x, dims=["n", "c", "t"], coords={"c": list("abcdefgh")}, attrs={"unit": "mV"})
    for given in (labelled, labelled.variable):
        with pytest.raises(TypeError, match=r"; give its \.data, and keep its labels with \.copy\(data=\.\.\.\)$"):
            numbagn.group_norm(given, G)
    y = labelled.copy(data=numbagn.group_norm(labelled.data, G))
    assert same_bits(y.values, numbagn.group_norm(x, G))
    assert y.attrs == labelled.attrs
    assert list(y.c.values) == list("abcdefgh")


def test_hint_for_data_frames(rng, one_thread):
    pandas = pytest.importorskip("pandas", reason="pandas is not installed")
    x = normal(rng, (5, 8), np.float32)
    table, column = pandas.DataFrame(x), pandas.Series(np.ones(8, np.float32))
    with pytest.raises(TypeError, match=r"^x must be a numpy.ndarray, got pandas.*DataFrame; use its \.to_numpy\(\)$"):
        numbagn.group_norm(table, G)
    with pytest.raises(
        TypeError, match=r"^weight must be a numpy.ndarray, got pandas.*Series; use its \.to_numpy\(\)$"
    ):
        numbagn.group_norm(x, G, column)
    assert same_bits(numbagn.group_norm(table.to_numpy(), G, column.to_numpy()), numbagn.group_norm(x, G))


def test_hint_for_matrices(rng, one_thread):
    x = normal(rng, (5, 8), np.float32)
    matrix = x.view(np.matrix)
    for name in ("x", "skip", "out"):
        with pytest.raises(
            TypeError, match=rf"^{name} must be a numpy.ndarray, got numpy.*; convert it with numpy.asarray"
        ):
            numbagn.group_norm(**{"x": x} | {name: matrix}, num_groups=G)
    assert same_bits(numbagn.group_norm(np.asarray(matrix), G), numbagn.group_norm(x, G))


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


# -------------------------------------------------------------------------------------------------------------- imports


@pytest.mark.parametrize(
    ("library", "make"),
    [("numpy", "numpy.ones"), ("torch", "torch.ones"), ("jax", "jax.numpy.ones"), ("dask", "dask.array.ones")],
)
def test_no_other_library_is_loaded(library, make):
    pytest.importorskip(library, reason=f"{library} is not installed")
    others = {"torch", "jax", "dask", "xarray", "pandas", "ml_dtypes", "distributed"}
    done = shell(
        code=f"""
import sys, numpy, {library if library != "dask" else "dask.array"}, numbagn
before = set(sys.modules)
x = {make}((2, 8, 5), dtype={"torch.float32" if library == "torch" else "numpy.float32"})
layer = numbagn.GroupNorm(4, 8)
layer(x)
numbagn.group_norm(x, 4)
try: numbagn.group_norm([1.0], 4)
except TypeError: pass
print(sorted({others} & (set(sys.modules) - before)))
"""
    )
    assert (done.returncode, done.stderr, done.stdout) == (0, "", "[]\n")
