"""Which arrays `out` may be: of x's dtype in either byte order, and with memory of its own for each element."""

import itertools

import numba
import numpy as np
import pytest
from cases import DTYPES, normal, same_bits
from numpy.lib.stride_tricks import as_strided

import numbagn
from numbagn.calls.checks import check_apart

SHAPE, G = (2, 4, 6), 2


def swapped(x):
    """The same values in the other byte order."""
    return x.astype(x.dtype.newbyteorder("S"))


def calls(x):
    """Name: (a call that writes to `out`, what it gives without), for samples of any byte order."""
    native = x.astype(x.dtype.newbyteorder("="))
    _, mean, rstd = numbagn.group_norm_forward(native, G)
    m = numbagn.group_moments(native, G)
    group, instance, layer = numbagn.GroupNorm(G, 4), numbagn.InstanceNorm(4), numbagn.LayerNorm(6)
    _, saved = group.forward(native)
    return {
        "group_norm": lambda x, **out: numbagn.group_norm(x, G, **out),
        "lengths": lambda x, **out: numbagn.group_norm(x, G, lengths=[6, 3], **out),
        "mask": lambda x, **out: numbagn.group_norm(x, G, mask=np.arange(6) % 2 > 0, **out),
        "group_norm_forward": lambda x, **out: numbagn.group_norm_forward(x, G, **out)[0],
        "group_norm_backward": lambda x, **out: numbagn.group_norm_backward(x, native, mean, rstd, G, **out)[0],
        "of x": lambda x, **out: numbagn.group_norm_backward(native, x, mean, rstd, G, **out)[0],
        "instance_norm": lambda x, **out: numbagn.instance_norm(x, **out),
        "layer_norm": lambda x, **out: numbagn.layer_norm(x, 6, **out),
        "normalize": lambda x, **out: numbagn.normalize(x, m, **out),
        "GroupNorm": lambda x, **out: group(x, **out),
        "InstanceNorm": lambda x, **out: instance(x, **out),
        "LayerNorm": lambda x, **out: layer(x, **out),
        "Layer.backward": lambda x, **out: group.backward(x, saved, **out)[0],
    }


NAMES = tuple(calls(np.ones(SHAPE, np.float32)))


# ----------------------------------------------------------------------------------------------------------- byte order


@pytest.mark.parametrize("name", NAMES)
def test_out_may_be_of_the_other_byte_order(rng, one_thread, name):
    x = normal(rng, SHAPE, np.float32)
    call = calls(x)[name]
    want = call(x)
    for _ in range(2):  # a repeated call, too
        for given in (x, swapped(x)):
            out = swapped(np.full_like(x, 7))
            assert call(given, out=out) is out
            assert out.dtype == np.dtype(">f4")
            assert same_bits(out.astype(np.float32), want)
        place = swapped(x)
        assert call(place, out=place) is place
        assert same_bits(place.astype(np.float32), want)


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_out_of_the_other_byte_order_of_every_dtype_in_anything_s_way(rng, one_thread, dtype):
    x, skip = normal(rng, SHAPE, DTYPES[dtype]), normal(rng, SHAPE, DTYPES[dtype])
    weight = normal(rng, 4, DTYPES[dtype])
    want = numbagn.group_norm(x, G, weight, skip=skip)
    memory = np.empty(100, x.dtype.newbyteorder("S"))
    for start, shift in itertools.product((0, 50), (0, 1, 3)):  # out is x moved by some elements, or holds the weight
        place = memory[start : start + 48].reshape(SHAPE)
        place[...] = x
        own = memory[shift : shift + 48].reshape(SHAPE)
        assert numbagn.group_norm(place, G, weight, skip=skip, out=own) is own
        assert same_bits(own.astype(x.dtype), want)
        memory[10:14] = weight
        numbagn.group_norm(x, G, memory[10:14], skip=skip, out=own)
        assert same_bits(own.astype(x.dtype), want)


def test_out_of_integers_may_be_of_the_other_byte_order(rng, one_thread):
    x, out = rng.integers(0, 99, SHAPE, np.uint8), np.empty(SHAPE, ">f4")
    assert same_bits(numbagn.group_norm(x, G, out=out).astype(np.float32), numbagn.group_norm(x, G))
    with pytest.raises(TypeError, match=r"^out must have dtype float32 for uint8 x, got >f8$"):
        numbagn.group_norm(x, G, out=np.empty(SHAPE, ">f8"))


# --------------------------------------------------------------------------------------------- memory of each element


# name: strides in elements of an array of SHAPE
SHARED = {
    "one place for all samples": (0, 6, 1),
    "one place for all channels": (6, 0, 1),
    "one place for all positions": (24, 6, 0),
    "one place for all": (0, 0, 0),
    "its own samples": (12, 6, 1),
    "its own samples, one element apart": (1, 6, 1),
    "windows of positions": (24, 1, 1),
    "samples over channels, far apart": (100, 100, 1),
    "backwards": (-12, 6, 1),
    "a sum of others": (13, 10, 3),
}
OWN = {
    "dense": (24, 6, 1),
    "gaps": (100, 20, 3),
    "channels last": (24, 1, 4),
    "samples side by side": (6, 12, 1),
    "samples innermost": (1, 12, 2),
    "backwards": (-24, 6, -1),
    "interleaved as no transposition does": (3, 30, 2),
}


def laid_out(steps, dtype):
    """(an array of SHAPE with these strides, all of its memory)."""
    memory = np.full(1000, 7, dtype)
    return as_strided(memory[500:], SHAPE, [step * memory.itemsize for step in steps]), memory


@pytest.mark.parametrize("name", NAMES)
def test_out_whose_elements_share_memory_is_refused_and_nothing_written(rng, one_thread, name):
    x = normal(rng, SHAPE, np.float32)
    call = calls(x)[name]
    call(x, out=np.empty_like(x))  # what is remembered lets none through
    for steps, dtype in itertools.product(SHARED.values(), ("<f4", ">f4")):
        out, memory = laid_out(steps, dtype)
        for given in (x, out):
            with pytest.raises(ValueError, match=r"^out must have no elements that share memory, got strides \(.*like"):
                call(given, out=out)
        assert (memory == 7).all()


def test_out_may_lie_in_any_other_strides(rng, one_thread):
    x = normal(rng, SHAPE, np.float32)
    want = numbagn.group_norm(x, G)
    for steps in OWN.values():
        out, memory = laid_out(steps, np.float32)
        assert same_bits(numbagn.group_norm(x, G, out=out).copy(), want)
        assert (memory != 7).sum() == x.size
    for shape in ((1, 4, 6), (2, 4, 1), (2, 0, 6)):  # strides of axes of one element, or none, say nothing
        out = as_strided(
            np.zeros(99, np.float32), shape, [4 * s if n > 1 else 0 for n, s in zip(shape, (24, 6, 1), strict=True)]
        )
        numbagn.group_norm(np.ones(shape, np.float32), 1, out=out)


def test_elements_share_memory_or_not_as_counted_one_by_one(rng):
    for _ in range(3000):
        shape = tuple(rng.integers(0, 5, rng.integers(1, 5)))
        dtype = np.dtype(rng.choice(["u1", "f2", "f4", "f8"]))
        strides = tuple(int(s) for s in rng.integers(-40, 41, len(shape)) * rng.choice([1, dtype.itemsize, 3]))
        array = as_strided(np.zeros(1, dtype), shape, strides)  # looked at, never read
        places = [
            sum(i * s for i, s in zip(index, strides, strict=True)) + byte
            for index in np.ndindex(shape)
            for byte in range(dtype.itemsize)
        ]
        if len(set(places)) == len(places):
            check_apart(array)
        else:
            with pytest.raises(ValueError, match=r"^out must have no elements that share memory"):
                check_apart(array)


def test_a_huge_out_is_refused_without_a_look_at_each_element():
    for strides in ((0, 8, 4), (4, 4, 4), (4000, 0, 4)):
        out = as_strided(np.zeros(1, np.float32), (1 << 20, 1 << 20, 1 << 20), strides)
        with pytest.raises(ValueError, match=r"^out must have no elements that share memory"):
            check_apart(out)


@numba.njit
def compiled(x, groups, out):
    return numbagn.group_norm(x, groups, out=out)


def test_compiled_callers_refuse_an_out_whose_elements_share_memory(rng):
    x = normal(rng, SHAPE, np.float32)
    want = numbagn.group_norm(x, G)
    out, memory = laid_out(OWN["gaps"], np.float32)
    assert same_bits(compiled(x, G, out).copy(), want)
    for steps in SHARED.values():
        out, memory = laid_out(steps, np.float32)
        with pytest.raises(ValueError, match=r"^out must have strides that keep its elements apart$"):
            compiled(x, G, out)
        assert (memory == 7).all()
    empty = as_strided(np.zeros(1, np.float32), (0, 4, 6), (0, 0, 0))
    assert compiled(empty, G, empty).shape == (0, 4, 6)
