"""`out` may lie anywhere: in the way of an argument, it ends up as if it did not."""

import numpy as np
import pytest

import numbagn

SHAPE = (2, 4, 6)


def at(start, *steps, shape=SHAPE):
    """A view of a flat array: its first element, and the distance of elements along each axis (by default dense)."""
    steps = steps or [int(np.prod(shape[a + 1 :])) for a in range(len(shape))]
    return lambda memory: np.lib.stride_tricks.as_strided(memory[start:], shape, [s * memory.itemsize for s in steps])


# Where nothing overlaps: x, skip, residual, weight, bias and further on the gradients' arguments and out.
APART = {
    "x": at(0),
    "skip": at(100),
    "residual": at(200),
    "weight": at(300, shape=(4,)),
    "bias": at(310, shape=(2, 4)),
    "dy": at(400),
    "mean": at(500, shape=(2, 2)),
    "rstd": at(510, shape=(2, 2)),
    "out": at(600),
}

# name: the arguments that lie elsewhere
FORWARD = {
    "nothing": {},
    "x itself": {"out": at(0)},
    "skip itself": {"out": at(100)},
    "residual itself": {"out": at(200)},
    "x, skip and residual at once": {"skip": at(0), "residual": at(0), "out": at(0)},
    "x one element on": {"x": at(1), "out": at(0)},
    "x one element back": {"x": at(0), "out": at(1)},
    "x one channel on": {"x": at(6), "out": at(0)},
    "x one sample on": {"x": at(24), "out": at(0)},
    "x one sample back": {"x": at(0), "out": at(24)},
    "skip one element on": {"skip": at(101), "out": at(100)},
    "skip one sample back": {"skip": at(100), "out": at(124)},
    "residual one element back": {"residual": at(200), "out": at(201)},
    "residual one sample on": {"residual": at(224), "out": at(200)},
    "x itself and residual one element on": {"residual": at(1), "out": at(0)},
    "x with its positions reversed": {"out": at(5, 24, 6, -1)},
    "x with its channels reversed": {"out": at(18, 24, -6, 1)},
    "x with its samples reversed": {"out": at(24, -24, 6, 1)},
    "x from its end": {"out": at(47, -24, -6, -1)},
    "reversed x": {"x": at(47, -24, -6, -1), "out": at(0)},
    "reversed x itself": {"x": at(47, -24, -6, -1), "out": at(47, -24, -6, -1)},
    "residual with its samples reversed": {"out": at(224, -24, 6, 1)},
    "x, but channels last": {"out": at(0, 24, 1, 4)},
    "channels-last x, but channels first": {"x": at(0, 24, 1, 4), "out": at(0)},
    "channels-last x itself": {"x": at(0, 24, 1, 4), "out": at(0, 24, 1, 4)},
    "channels-last x one channel on": {"x": at(1, 24, 1, 4), "out": at(0, 24, 1, 4)},
    "between the elements of x": {"x": at(0, 48, 12, 2), "out": at(1, 48, 12, 2)},
    "between the channels of channels-last x": {"x": at(0, 48, 1, 8), "out": at(4, 48, 1, 8)},
    "between the samples of x": {"x": at(0, 48, 6, 1), "out": at(24, 48, 6, 1)},
    "every other element of x itself": {"x": at(0, 48, 12, 2), "out": at(0, 48, 12, 2)},
    "weight": {"weight": at(610, shape=(4,))},
    "bias of each sample": {"bias": at(606, shape=(2, 4))},
    "both parameters, backwards": {"weight": at(630, -1, shape=(4,)), "bias": at(620, -5, 1, shape=(2, 4))},
    "parameters in x itself": {"weight": at(3, shape=(4,)), "bias": at(20, 4, 1, shape=(2, 4)), "out": at(0)},
    "x of windows": {"x": at(0, 12, 6, 1), "out": at(0)},
    "channels-last x of windows": {"x": at(0, 4, 1, 4), "out": at(0, 24, 1, 4)},
    "channels-last samples side by side": {"x": at(0, 4, 1, 8), "out": at(0, 4, 1, 8)},
    "x of one sample": {"x": at(0, 0, 6, 1), "out": at(0)},
}
BACKWARD = FORWARD | {
    "dy itself": {"out": at(400)},
    "dy and x at once": {"dy": at(0), "out": at(0)},
    "dy one element on": {"dy": at(401), "out": at(400)},
    "dy one sample back": {"dy": at(400), "out": at(424)},
    "dy from its end": {"out": at(447, -24, -6, -1)},
    "mean": {"mean": at(607, shape=(2, 2))},
    "rstd": {"rstd": at(640, -2, -1, shape=(2, 2))},
    "mean and rstd in x itself": {"mean": at(0, shape=(2, 2)), "rstd": at(44, shape=(2, 2)), "out": at(0)},
}


def views(places, memory, names):
    return {name: (APART | places)[name](memory) for name in names}


def as_if_apart(function, places, memory, names):
    """Compare all of the memory after a call with what a call without `out` and an assignment make of it."""
    expected = memory.copy()
    arguments = views(places, memory.copy(), names)
    del arguments["out"]
    want = function(num_groups=2, activation="silu", **arguments)
    views(places, expected, names)["out"][...] = want[0]

    arguments = views(places, memory, names)
    got = function(num_groups=2, activation="silu", **arguments)
    assert got[0] is arguments["out"]
    np.testing.assert_array_equal(memory, expected)
    for g, w in zip(got[1:], want[1:], strict=True):
        np.testing.assert_array_equal(g, w)


@pytest.mark.parametrize("name", FORWARD)
def test_forward(rng, one_thread, name):
    memory = rng.standard_normal(700).astype(np.float32)
    names = ("x", "skip", "residual", "weight", "bias", "out")
    as_if_apart(numbagn.group_norm_forward, FORWARD[name], memory, names)


@pytest.mark.parametrize("name", BACKWARD)
def test_backward(rng, one_thread, name):
    as_if_apart(numbagn.group_norm_backward, BACKWARD[name], rng.standard_normal(700), tuple(APART))


def test_out_in_the_memory_of_another_dtype(rng, one_thread):
    memory = rng.standard_normal(100).astype(np.float64)
    residual = memory[:48].reshape(SHAPE)
    out = memory.view(np.float32)[3:51].reshape(SHAPE)
    x = rng.standard_normal(SHAPE).astype(np.float32)
    want = numbagn.group_norm(x, 2, residual=residual.copy())
    np.testing.assert_array_equal(numbagn.group_norm(x, 2, residual=residual, out=out), want)
    x16 = rng.standard_normal(SHAPE).astype(np.float16)
    residual32 = memory.view(np.float32)[60:108].reshape(SHAPE)
    out16 = memory.view(np.float16)[120:168].reshape(SHAPE)
    want = numbagn.group_norm(x16, 2, residual=residual32.copy())
    np.testing.assert_array_equal(numbagn.group_norm(x16, 2, residual=residual32, out=out16), want)
