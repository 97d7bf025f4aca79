"""Properties that hold for every input, with inputs found by hypothesis."""

import numpy as np
from cases import LAYOUTS, in_layout, same_bits
from hypothesis import given
from hypothesis import strategies as st

import numbagn


@st.composite
def problems(draw):
    """(x float32, groups)."""
    groups = draw(st.integers(1, 5))
    shape = (draw(st.integers(1, 4)), groups * draw(st.integers(1, 7)), *draw(st.lists(st.integers(1, 9), max_size=3)))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    x = rng.standard_normal(shape).astype(np.float32)
    return in_layout(x, draw(st.sampled_from(LAYOUTS))), groups


def wide_enough(x, groups):
    """Whether every group has a variance that eps = 0 can divide by."""
    flat = np.asarray(x, np.float64).reshape(x.shape[0], groups, -1)
    return flat.shape[2] > 1 and flat.var(axis=2).min() > 1e-3


@given(problems(), st.floats(-1000, 1000), st.floats(0.01, 100))
def test_shift_and_scale_of_x_change_nothing(problem, shift, scale):
    x, groups = problem
    if wide_enough(x, groups):
        moved = (x.astype(np.float64) * scale + shift).astype(np.float32)
        back = (moved.astype(np.float64) - shift) / scale  # what rounding left of x
        y, want = (numbagn.group_norm(v, groups, eps=0.0) for v in (moved, back))
        assert np.abs(y - want).max() < 1e-5 * max(1.0, np.abs(want).max())


@given(problems())
def test_mean_zero_and_variance_one_of_each_group(problem):
    x, groups = problem
    if wide_enough(x, groups):
        y = numbagn.group_norm(x, groups, eps=0.0).astype(np.float64).reshape(x.shape[0], groups, -1)
        assert np.abs(y.mean(axis=2)).max() < 1e-6
        assert np.abs(y.var(axis=2) - 1).max() < 2e-6


@given(problems(), st.randoms(use_true_random=False))
def test_samples_are_independent(problem, random):
    x, groups = problem
    order = list(range(x.shape[0]))
    random.shuffle(order)
    y = numbagn.group_norm(x, groups)
    assert same_bits(numbagn.group_norm(x[order], groups), y[order])
    cut = random.randint(0, x.shape[0])
    parts = [numbagn.group_norm(part, groups) for part in (x[:cut], x[cut:])]
    assert same_bits(np.concatenate(parts), np.ascontiguousarray(y))


@given(problems())
def test_one_channel_a_group_is_instance_norm(problem):
    x, _ = problem
    wide = x.astype(np.float64).reshape(*x.shape[:2], -1)
    want = (wide - wide.mean(-1, keepdims=True)) / np.sqrt(wide.var(-1, keepdims=True) + 1e-5)
    assert np.abs(numbagn.group_norm(x, x.shape[1]).reshape(wide.shape) - want).max() < 2e-5


@given(problems())
def test_order_of_positions_does_not_matter(problem):
    x, groups = problem
    reverse = tuple(slice(None) if a < 2 else slice(None, None, -1) for a in range(x.ndim))
    y, mirrored = numbagn.group_norm(x, groups), numbagn.group_norm(x[reverse], groups)
    assert np.abs(y[reverse] - mirrored).max() < 5e-6


@given(problems(), st.integers(0, 10**6))
def test_nan_stays_in_its_group(problem, place):
    x, groups = problem
    clean = numbagn.group_norm(x, groups)
    x = x.copy("K")
    n, c, *rest = np.unravel_index(place % x.size, x.shape)
    x[(n, c, *rest)] = np.nan
    y = numbagn.group_norm(x, groups)
    d = x.shape[1] // groups
    spoiled = np.zeros(x.shape, bool)
    spoiled[n, c // d * d : (c // d + 1) * d] = True
    assert np.isnan(y[spoiled]).all()
    assert (y[~spoiled] == clean[~spoiled]).all()


@given(problems())
def test_dx_is_orthogonal_to_what_the_norm_removes(problem):
    x, groups = problem
    rng = np.random.default_rng(0)
    dy = rng.standard_normal(x.shape).astype(np.float32)
    _, mean, rstd = numbagn.group_norm_forward(x, groups)
    dx = numbagn.group_norm_backward(dy, x, mean, rstd, groups)[0].astype(np.float64)
    total = dx.reshape(x.shape[0], groups, -1).sum(axis=2)
    assert np.abs(total).max() <= 1e-4 * max(1.0, np.abs(dx).max())
