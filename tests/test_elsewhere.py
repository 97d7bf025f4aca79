"""Arrays that are not in memory here: each public function takes them, or says in one line that it does not."""

from importlib import import_module

import numpy as np
import pytest
from cases import normal, same_bits

import numbagn
from numbagn.arrays import libraries

SHAPE, G = (2, 8, 5), 4
STATISTICS = np.zeros((2, G)), np.ones((2, G))
MOMENTS = numbagn.Moments(np.full((2, G), 10.0), *STATISTICS)

# what each public name does with an array
CALLS = {
    "group_norm": lambda x: numbagn.group_norm(x, G),
    "group_norm_forward": lambda x: numbagn.group_norm_forward(x, G)[0],
    "instance_norm": lambda x: numbagn.instance_norm(x),
    "layer_norm": lambda x: numbagn.layer_norm(x, 5),
    "GroupNorm": lambda x: numbagn.GroupNorm(G, 8)(x),
    "InstanceNorm": lambda x: numbagn.InstanceNorm(8).forward(x)[0],
    "LayerNorm": lambda x: numbagn.LayerNorm(5)(x),
    "normalize": lambda x: numbagn.normalize(x, MOMENTS),
    "group_norm_backward": lambda x: numbagn.group_norm_backward(x, x, *STATISTICS, G)[0],
    "group_norm_jvp": lambda x: numbagn.group_norm_jvp(x, x, G)[0],
    "group_norm_double_backward": lambda x: numbagn.group_norm_double_backward(x, x, x, *STATISTICS, G)[0],
    "group_moments": lambda x: numbagn.group_moments(x, G).mean,
}
NO_CALLS = {"Moments", "reference", "warmup"}
# those that a Dask array is refused by, and those that any array on a GPU is
IN_MEMORY_ONLY = ("group_norm_backward", "group_norm_jvp", "group_norm_double_backward", "group_moments")
NOT_ON_DEVICES = ("normalize", *IN_MEMORY_ONLY[1:])


def refusal(name, x):
    """What the call says."""
    with pytest.raises(TypeError) as refused:
        CALLS[name](x)
    return str(refused.value)


def test_the_table_has_every_public_name():
    assert set(numbagn.__all__) == CALLS.keys() | NO_CALLS


@pytest.mark.parametrize("name", CALLS)
def test_dask_arrays_are_taken_lazily_or_refused_by_name(rng, one_thread, name):
    da = pytest.importorskip("dask.array", reason="dask is not installed")
    x = normal(rng, SHAPE, np.float32)
    lazy = da.from_array(x, chunks=(1, 8, 5))
    if name not in IN_MEMORY_ONLY:
        y = CALLS[name](lazy)
        assert isinstance(y, da.Array)
        assert same_bits(y.compute(), CALLS[name](x))
        return
    lead, _, rest = refusal(name, lazy).partition(" must be in CPU memory for ")
    assert lead in ("x", "chunk")
    assert rest.startswith(name)
    assert rest.endswith(", got dask.array.core.Array; use its .compute()")


def test_the_backward_pass_of_a_layer_names_both_ways_to_it():
    da = pytest.importorskip("dask.array", reason="dask is not installed")
    layer = numbagn.GroupNorm(G, 8)
    y, saved = layer.forward(da.ones(SHAPE))
    with pytest.raises(
        TypeError, match=r"^x must be in CPU memory for group_norm_backward and the backward of layers, "
    ):
        layer.backward(y, saved)


@pytest.mark.parametrize("name", NOT_ON_DEVICES)
def test_arrays_on_devices_are_refused_by_name(name):
    device = type("DeviceArray", (), {"__cuda_array_interface__": {}, "__array__": lambda self: 1 / 0})()
    lead = "chunk" if name in ("normalize", "group_moments") else "x"
    want = f"{lead} must be in CPU memory for {name}, got test_elsewhere.DeviceArray; copy it there"
    assert refusal(name, device) == want


def test_only_what_a_module_offers_is_called_there(monkeypatch):
    """Not what it happens to have under the same name."""
    pytest.importorskip("dask.array", reason="dask is not installed")
    module = import_module("numbagn.interop.dask")
    assert set(module.__all__) == {"forward", "normalize"}
    assert import_module(libraries.DEVICE).__all__ == ["backward", "forward"]
    monkeypatch.setattr(module, "__all__", ["forward"])
    da = import_module("dask.array")
    assert refusal("normalize", da.ones(SHAPE)).startswith("chunk must be in CPU memory for normalize, got dask.array")


class Foreign:
    """An array of a library that keeps to the array API standard, over NumPy's memory."""

    def __init__(self, array):
        self.array = array

    def __array_namespace__(self):
        return Foreign

    def __dlpack__(self, **options):
        return self.array.__dlpack__(**options)

    def __dlpack_device__(self):
        return self.array.__dlpack_device__()

    @property
    def shape(self):
        return self.array.shape

    @staticmethod
    def from_dlpack(array, **options):
        return Foreign(np.from_dlpack(array))


@pytest.mark.parametrize("name", CALLS)
def test_arrays_of_any_library_of_the_standard_are_taken(rng, one_thread, name):
    x = normal(rng, SHAPE, np.float32)
    y = CALLS[name](Foreign(x))
    assert type(y) is (np.ndarray if name == "group_moments" else Foreign)
    assert same_bits(y if name == "group_moments" else y.array, CALLS[name](x))
