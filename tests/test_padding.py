"""Calls with lengths or a mask whose like has come before: what they give is what the first gave, whatever is valid."""

import numpy as np
import pytest
from cases import DTYPES, LAYOUTS, in_layout, normal, same_bits

import numbagn
from numbagn.calls import passes, plans

SHAPE, GROUPS = (5, 6, 40, 3), 3
# Full and shorter ones, none, one too short for the kernel that reads it in its place, only one that is not empty.
LENGTHS = ([40, 17, 40, 3, 39], [9, 40, 0, 8, 11], [12, 1, 40, 40, 40], [0, 0, 25, 0, 0], [0] * 5, [40] * 5)


def padded(x, dy, weight, bias, lengths, **options):
    """All results of a forward and a backward call."""
    y, mean, rstd = numbagn.group_norm_forward(x, GROUPS, weight, bias, lengths=lengths, **options)
    return (
        y,
        mean,
        rstd,
        *numbagn.group_norm_backward(dy, x, mean, rstd, GROUPS, weight, bias, lengths=lengths, **options),
    )


@pytest.fixture
def arrays(rng):
    """x, dy, weight, bias; what lies in the padding is no number."""

    def make(dtype=np.float32, layout="channels_first", lengths=(40,) * 5, samples=False):
        shape = SHAPE[:2] if samples else SHAPE[1:2]
        weight, bias = normal(rng, shape, np.float32), normal(rng, shape, np.float32)
        x, dy = (normal(rng, SHAPE, np.float32) for _ in range(2))
        for n, length in enumerate(lengths):
            x[n, :, length:], dy[n, :, length:] = np.nan, np.inf
        with np.errstate(invalid="ignore"):
            x, dy = (in_layout(a.astype(dtype), layout) for a in (x, dy))
        return x, dy, weight, bias

    return make


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", ["float32", "float16", "float64"])
def test_repeated_calls_give_the_bits_of_first_ones(arrays, one_thread, dtype, layout):
    for lengths in LENGTHS:
        x, dy, weight, bias = arrays(DTYPES[dtype], layout, lengths)
        passes.forget_plans()
        first = padded(x, dy, weight, bias, lengths)
        padded(*arrays(DTYPES[dtype], layout), LENGTHS[0])
        assert sum(plan.padding is not None for plan in plans._plans.values()) == 2
        for given in (lengths, np.array(lengths, np.int32), np.array(lengths)[::-1][::-1]):
            assert all(map(same_bits, padded(x, dy, weight, bias, given), first))
        assert not any(first[0][n, :, length:].any() for n, length in enumerate(lengths))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", [(3, 6, 20), (3, 6, 5), (3, 96, 5, 4)])  # each kind of mask of the kernels
def test_repeated_calls_with_a_mask(rng, one_thread, shape, layout):
    x, dy = (in_layout(normal(rng, shape, np.float32), layout) for _ in range(2))
    positions = (1, *shape[2:])

    def masked(mask, x=x, dy=dy):
        y, mean, rstd = numbagn.group_norm_forward(x, 3, mask=mask)
        return y, mean, rstd, *numbagn.group_norm_backward(dy, x, mean, rstd, 3, mask=mask)

    some = rng.random((3, *positions)) < 0.4
    some[:, 0, 0] = True
    none = some.copy()
    none[1] = False
    for mask in (some, np.ones_like(some), none, some[:1], some[0], some[..., ::-1], np.zeros_like(some)):
        passes.forget_plans()
        first = masked(mask)
        masked(some)
        assert sum(plan.padding is not None for plan in plans._plans.values()) == 2
        assert all(map(same_bits, masked(mask), first))
    for error, mask in ((ValueError, some[:2]), (ValueError, np.repeat(some, 6, axis=1)), (TypeError, some * 1)):
        with pytest.raises(error, match="mask must"):
            masked(mask)


def test_repeated_calls_of_several_threads(arrays, rng, monkeypatch):
    x, dy, weight, bias = arrays(lengths=LENGTHS[0])
    alone = padded(x, dy, weight, bias, LENGTHS[0], activation="silu")
    monkeypatch.setattr("numbagn.shapes.schedule.PARALLEL_BYTES", 0)
    passes.forget_plans()
    for _ in range(3):
        assert all(map(same_bits, padded(x, dy, weight, bias, LENGTHS[0], activation="silu"), alone))
    passes.forget_plans()


@pytest.mark.parametrize("layout", LAYOUTS)
def test_zeros_that_go_past_the_caches(rng, one_thread, monkeypatch, layout):
    x, dy = (in_layout(normal(rng, (4, 3, 700), np.float32), layout) for _ in range(2))
    lengths = [699, 300, 0, 523]
    want = padded(x, dy, None, None, lengths)
    monkeypatch.setattr("numbagn.shapes.schedule.past_bytes", lambda *_: 0)
    passes.forget_plans()
    for _ in range(2):
        # NumPy aligns to 16 bytes, vectors to 64: each place in a line
        for start in range(0, 16, 4):
            buffer = np.full(x.size + 32, 7, np.float32)
            out = buffer[start : start + x.size].reshape(x.shape) if layout == "channels_first" else None
            assert all(map(same_bits, padded(x, dy, None, None, lengths), want))
            if out is not None:
                assert same_bits(numbagn.group_norm(x, GROUPS, lengths=lengths, out=out), want[0])
                assert (buffer[:start] == 7).all()
                assert (buffer[start + x.size :] == 7).all()
    passes.forget_plans()


def test_parameters_of_samples_and_results_in_place(arrays, one_thread):
    for samples in (False, True):
        x, dy, weight, bias = arrays(lengths=LENGTHS[1], samples=samples)
        first = padded(x, dy, weight, bias, LENGTHS[1])
        padded(x, dy, weight, bias, LENGTHS[0])
        assert all(map(same_bits, padded(x, dy, weight, bias, LENGTHS[1]), first))
        for _ in range(2):
            place, gradient = x.copy(), dy.copy()
            assert numbagn.group_norm(place, GROUPS, weight, bias, lengths=LENGTHS[1], out=place) is place
            assert same_bits(place, first[0])
            numbagn.group_norm_backward(
                gradient, x, *first[1:3], GROUPS, weight, bias, lengths=LENGTHS[1], out=gradient
            )
            assert same_bits(gradient, first[3])


def test_wrong_lengths_are_refused_as_by_first_calls(arrays, one_thread):
    x, _, weight, bias = arrays()
    out = np.full_like(x, 7)
    for _ in range(2):
        numbagn.group_norm(x, GROUPS, weight, bias, lengths=LENGTHS[0], out=np.empty_like(x))
    for error, lengths in (
        (ValueError, [40, 17, 40, 3, 41]), (ValueError, np.array([-1, 17, 40, 3, 1])), (ValueError, [40, 17]),
        (ValueError, np.array([[40, 17, 40, 3, 1]])), (TypeError, [40.0] * 5), (TypeError, [True] * 5),
        (TypeError, "abcde"), (TypeError, np.ma.array(LENGTHS[0])), (TypeError, [[1], [2, 3], [], [], []]),
        (ValueError, np.array([40, 17, 40, 3, 2**63 + 5], np.uint64)),
    ):  # fmt: skip
        with pytest.raises(error, match="lengths must"):
            numbagn.group_norm(x, GROUPS, weight, bias, lengths=lengths, out=out)
    assert (out == 7).all()
