"""Arrays of other libraries: how tests make them of NumPy's, and see what is in them."""

import sys
import types

import ml_dtypes
import numpy as np
import pytest
from cases import DTYPES


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
