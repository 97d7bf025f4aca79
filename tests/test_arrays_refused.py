"""Arrays of other libraries that are refused, with a hint that works; and that nothing is imported to know them."""

import sys
import types

import numpy as np
import pytest
from cases import normal, same_bits
from command_line import shell
from foreign import Standard, to_jax, to_torch

import numbagn
from numbagn.arrays import families

SHAPE, G = (2, 8, 5, 6), 4


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
    with pytest.raises(TypeError, match=r"^x must lie in CPU memory, got foreign.Standard: not in this memory$"):
        numbagn.group_norm(Standard(np.ones(SHAPE), device=2), G)
    device = type("DeviceArray", (), {"__cuda_array_interface__": {}, "__array__": lambda self: 1 / 0})()
    with pytest.raises(TypeError, match=r"^skip must lie in CPU memory here, got .*DeviceArray; copy it there$"):
        numbagn.group_norm(np.ones(SHAPE), G, skip=device)


def test_a_library_that_is_being_imported_is_no_hindrance(rng, one_thread, monkeypatch):
    monkeypatch.setattr(families, "_known", {})
    for name in ("torch", "jax", "dask.array"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    x = normal(rng, SHAPE, np.float32)
    assert same_bits(numbagn.group_norm(Standard(x), G).array, numbagn.group_norm(x, G))


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
