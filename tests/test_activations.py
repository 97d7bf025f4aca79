"""The elementary functions and activations: their error in units of the last place, and their ends."""

import math

import numpy as np
import pytest
from numba import njit

from numbagn import reference
from numbagn.arrays.dtypes import STORED
from numbagn.calls.checks import ACTIVATIONS
from numbagn.kernels import formulas
from numbagn.kernels.cpu.memory import lanes, load, pointer, store


def compiled(formula, dtype):
    """An elementwise function of whole vectors."""
    kind = STORED.index(np.dtype(dtype).name)

    @njit
    def loop(x, y):
        px, py = pointer(x, kind), pointer(y, kind)
        for i in range(0, x.size, lanes(px)):
            store(py, i, formula(load(px, i, None)), None)

    def apply(values):
        x = np.concatenate([np.asarray(values, dtype), np.zeros(-len(values) % 16, dtype)])
        y = np.empty_like(x)
        loop(x, y)
        return y[: len(values)]

    return apply


def ulps(got, want):
    """The error in units of the last place; want in higher precision."""
    unit = np.spacing(np.maximum(np.abs(want.astype(got.dtype)), np.finfo(got.dtype).tiny))
    return float(np.max(np.abs(got.astype(want.dtype) - want) / unit.astype(want.dtype)))


def higher(dtype):
    return np.float64 if dtype == np.float32 else np.longdouble


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_exp_within_2_ulp(dtype):
    edge = 87.3 if dtype == np.float32 else 708.0
    x = np.linspace(-edge, edge, 400_000).astype(dtype)
    assert ulps(compiled(formulas.exp, dtype)(x), np.exp(x.astype(higher(dtype)))) < 2.0


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_exp_at_its_ends(dtype):
    got = compiled(formulas.exp, dtype)([-math.inf, -1e30, -2000, 0.0, -0.0, 1e-45, 2000, 1e30, math.inf, math.nan])
    assert got[:3].tolist() == [0, 0, 0]
    assert got[3:6].tolist() == [1, 1, 1]
    assert (got[6:9] == math.inf).all()
    assert math.isnan(got[9])
    # where results are subnormal, and where they end
    x = np.linspace(-103, -87, 5000) if dtype == np.float32 else np.linspace(-745, -708, 5000)
    x = x.astype(dtype)
    tiny = float(np.finfo(dtype).smallest_normal)
    assert np.abs(compiled(formulas.exp, dtype)(x) - np.exp(x.astype(higher(dtype)))).max() <= 1.01 * tiny
    largest = np.array([88.7228, 88.72283] if dtype == np.float32 else [709.7827, 709.782712], dtype)
    np.testing.assert_allclose(compiled(formulas.exp, dtype)(largest), np.exp(largest), rtol=2e-7)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_silu_within_3_ulp(dtype):
    x = np.linspace(-80, 80, 400_000).astype(dtype)
    wide = x.astype(higher(dtype))
    assert ulps(compiled(formulas.silu, dtype)(x), wide / (1 + np.exp(-wide))) < 3.0


def test_gelu_float32_within_8_ulp_also_in_its_tail():
    x = np.linspace(-12, 12, 50_001).astype(np.float32)
    want = np.array([0.5 * v * math.erfc(-v / math.sqrt(2)) for v in x.astype(float)])
    assert ulps(compiled(formulas.gelu, np.float32)(x), want) < 8.0


def test_gelu_float64():
    x = np.linspace(-12, 12, 50_001)
    want = np.array([0.5 * v * math.erfc(-v / math.sqrt(2)) for v in x])
    np.testing.assert_allclose(compiled(formulas.gelu, np.float64)(x), want, rtol=1e-13, atol=1e-300)


@pytest.mark.parametrize("name", formulas.ACTIVATIONS)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_activation_and_slope_agree_with_the_definition(name, dtype):
    x = np.linspace(-20, 20, 20_001).astype(dtype)
    for formula, definition in zip(formulas.ACTIVATIONS[name], reference.ACTIVATIONS[name], strict=True):
        got, want = compiled(formula, dtype)(x), definition(x.astype(np.float64))
        assert np.max(np.abs(got - want) / np.maximum(1, np.abs(want))) < (1e-6 if dtype == np.float32 else 1e-14)


@pytest.mark.parametrize("name", formulas.ACTIVATIONS)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_activation_at_its_ends(name, dtype):
    function, slope = (compiled(formula, dtype) for formula in formulas.ACTIVATIONS[name])
    x = [-math.inf, -1e30, -1e3, 0.0, -0.0, 1e-40, 1e3, 1e30, math.inf, math.nan]
    y = function(x)
    assert y[:5].tolist() == [0, 0, 0, 0, 0]
    assert y[5] == dtype(1e-40) * (1.0 if name == "relu" else dtype(0.5))
    assert y[6:9].tolist() == [1e3, float(dtype(1e30)), math.inf]
    assert math.isnan(y[9])
    d = slope(x)
    assert d[:3].tolist() == [0, 0, 0]
    assert d[6:9].tolist() == [1, 1, 1]


def test_one_list_of_activations():
    assert [None, *formulas.ACTIVATIONS] == list(ACTIVATIONS) == list(reference.ACTIVATIONS)
