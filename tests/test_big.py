"""More than 2**31 elements, in one group and in many samples. Takes 9 GB and minutes, so only with NUMBAGN_BIG=1."""

import os

import numpy as np
import pytest
from cases import LAYOUTS, close, normal, same_bits

import numbagn
from numbagn import reference

pytestmark = pytest.mark.skipif(os.environ.get("NUMBAGN_BIG") != "1", reason="needs NUMBAGN_BIG=1 and 9 GB of memory")

PERIOD = 64
REPEATS = 2**24 + 1  # of the period in each of two channels: 2**31 + 128 elements
AXIS = {"channels_first": 1, "channels_last": -1}


def repeated(pattern, layout):
    """The pattern (1, 2, PERIOD) again and again along its positions: the statistics stay what they are."""
    if layout == "channels_last":
        return np.tile(pattern[0].T, (REPEATS, 1))[None]
    return np.tile(pattern, REPEATS)


def equal_periods(big, layout):
    """Assert that every period has the bits of the first, and give that as (1, 2, PERIOD)."""
    rows = big.reshape((REPEATS, -1) if layout == "channels_last" else (2, REPEATS, PERIOD)).view(np.uint16)
    for channel in [rows] if layout == "channels_last" else rows:
        for start in range(0, REPEATS, 1 << 18):
            assert (channel[start : start + (1 << 18)] == channel[0]).all(), start
    first = rows[0].reshape(PERIOD, 2).T if layout == "channels_last" else rows[:, 0]
    return first[None].view(np.float16)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_one_group_forward(rng, layout):
    pattern, weight = normal(rng, (1, 2, PERIOD), np.float16, offset=1.0), normal(rng, 2, np.float32)
    x = repeated(pattern, layout)
    assert x.size > 2**31
    y, mean, rstd = numbagn.group_norm_forward(x, 1, weight, channel_axis=AXIS[layout], out=x)
    assert y is x
    want, want_mean, want_rstd = reference.group_norm(pattern, 1, weight)
    np.testing.assert_allclose(mean, want_mean, rtol=1e-7)
    np.testing.assert_allclose(rstd, want_rstd, rtol=1e-7)
    close(equal_periods(y, layout), want, 1e-3)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_one_group_backward(rng, layout):
    pattern, weight = normal(rng, (1, 2, PERIOD), np.float16), normal(rng, 2, np.float32)
    _, mean, rstd = reference.group_norm(pattern, 1, weight)
    want, dweight, dbias, _ = reference.group_norm_backward(pattern**3, pattern, 1, weight)
    x, dy = (repeated(array, layout) for array in (pattern, pattern**3))
    got = numbagn.group_norm_backward(dy, x, mean, rstd, 1, weight, channel_axis=AXIS[layout], out=dy)
    assert got[0] is dy
    close(equal_periods(got[0], layout), want, 2e-3 * np.abs(want).max())
    for sums, exact in zip(got[1:], (dweight, dbias), strict=True):
        np.testing.assert_allclose(sums, REPEATS * exact, rtol=1e-5)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_many_samples(rng, layout):
    """More samples than 2**31 elements need, of one that is broadcast: only the result takes memory."""
    sample = normal(rng, (1, 4, 1 << 16), np.float16)
    if layout == "channels_last":
        sample = np.ascontiguousarray(sample.transpose(0, 2, 1))
    want = numbagn.group_norm(sample, 2, channel_axis=AXIS[layout])
    x = np.broadcast_to(sample, (2**13 + 1, *sample.shape[1:]))
    assert x.size > 2**31
    y = numbagn.group_norm(x, 2, channel_axis=AXIS[layout], out=np.empty(x.shape, np.float16))
    assert all(same_bits(one, want[0]) for one in y)
