"""Integer x: float32 results as exact as those of its float32 copy, which is never made."""

import tracemalloc
from fractions import Fraction

import numpy as np
import pytest
from cases import LAYOUTS, SHAPES, close, in_layout, normal, same_bits

import numbagn
from numbagn import reference
from numbagn.calls import checks, passes
from numbagn.shapes import schedule

INTEGERS = ("uint8", "int8", "uint16", "int16")


def integers(rng, shape, dtype, layout="channels_first"):
    """Integers over the whole range of dtype, its ends included."""
    info = np.iinfo(dtype)
    x = rng.integers(info.min, info.max, shape, dtype, endpoint=True)
    if x.size > 1:
        x.flat[0], x.flat[-1] = info.min, info.max
    return in_layout(x, layout)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", INTEGERS)
def test_every_integer_layout_and_shape(rng, one_thread, dtype, layout):
    for shape, groups in SHAPES.values():
        x = integers(rng, shape, dtype, layout)
        w, b = normal(rng, shape[1], np.float32), normal(rng, shape[:2], np.float32)
        y, mean, rstd = numbagn.group_norm_forward(x, groups, w, b, activation="silu")
        want, want_mean, want_rstd = reference.group_norm(x, groups, w, b, activation="silu")
        assert y.dtype == np.float32
        assert y.strides == np.empty_like(x, np.float32).strides
        close(y, want, 2e-6)
        np.testing.assert_allclose(mean, want_mean, rtol=4e-7, atol=4e-7)
        np.testing.assert_allclose(rstd, want_rstd, rtol=4e-7)
        again = numbagn.group_norm(x, groups, w, b, activation="silu")  # by the plan of the first call
        assert same_bits(again, y)
        assert again.strides == y.strides


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", INTEGERS)
def test_the_bits_of_the_float32_copy(rng, one_thread, dtype, layout):
    skip, residual = (in_layout(normal(rng, (2, 9, 7, 7), np.float16), layout) for _ in range(2))
    for shape, groups in ((2, 9, 7, 7), 3), ((3, 4, 3), 2), ((2, 6, 40, 51), 2), ((3, 70, 5, 5), 10):
        x = integers(rng, shape, dtype, layout)
        options = {"skip": skip, "residual": residual} if shape == skip.shape else {}
        y, of_copy = (numbagn.group_norm(a, groups, **options) for a in (x, x.astype(np.float32)))
        if options or x.itemsize > 1:
            assert same_bits(y, of_copy)
        else:  # sums of bytes are exact, those of their copy rounded
            close(y, of_copy, 1e-6)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", ["uint8", "int8"])
def test_sums_of_bytes_are_exact(rng, dtype, layout):
    info = np.iinfo(dtype)
    for shape, groups in ((2, 9, 7, 7), 3), ((3, 4, 3), 2), ((1, 6, 250, 260), 1), ((3, 70, 5, 5), 10):
        for x in (integers(rng, shape, dtype, layout), in_layout(np.full(shape, info.min, dtype), layout)):
            x.flat[1] = info.max
            count, mean, M2 = numbagn.group_moments(x, groups)
            for n, g in np.ndindex(shape[0], groups):
                values = x[n].reshape(groups, -1)[g].astype(object)
                total, squares, size = values.sum(), (values * values).sum(), values.size
                assert count[n, g] == size
                assert mean[n, g] == pytest.approx(float(Fraction(total, size)), rel=3e-16, abs=0)
                assert M2[n, g] == pytest.approx(float(squares - Fraction(total * total, size)), rel=1e-15, abs=0)


@pytest.mark.parametrize("dtype", ["uint8", "int16"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_parallel_kernels_give_the_bits_of_serial_ones(rng, monkeypatch, layout, dtype):
    try:
        for shape, groups in (((8, 32, 24, 25), 8), ((1, 6, 250, 260), 1), ((3, 10, 170, 91), 2)):
            x, seen = integers(rng, shape, dtype, layout), []
            for parallel, past in ((1 << 62, 1 << 62), (0, 1 << 62), (0, 0)):
                monkeypatch.setattr(schedule, "PARALLEL_BYTES", parallel)
                monkeypatch.setattr(schedule, "past_bytes", lambda *_, past=past: past)
                passes.forget_plans()
                seen.append(numbagn.group_norm(x, groups))
            close(seen[0], reference.group_norm(x, groups)[0], 2e-6)
            assert all(same_bits(seen[0], other) for other in seen[1:])
    finally:
        passes.forget_plans()


@pytest.mark.parametrize("layout", LAYOUTS)
def test_small_differences_at_a_large_offset(rng, one_thread, layout):
    x = in_layout(rng.integers(59990, 60010, (2, 6, 31, 33)).astype(np.uint16), layout)
    close(numbagn.group_norm(x, 3), reference.group_norm(x, 3)[0], 2e-6)


@pytest.mark.parametrize("dtype", INTEGERS)
def test_a_constant_image_gives_the_bias(rng, one_thread, dtype):
    bias = normal(rng, 3, np.float32)
    for value in (np.iinfo(dtype).min, 0, 77, np.iinfo(dtype).max):
        x = np.full((1, 50, 41, 3), value, dtype)
        for eps in (1e-5, 0.0):
            y = numbagn.group_norm(x, 3, None, bias, eps, channel_axis=-1)
            assert (y == bias).all()


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", INTEGERS)
def test_no_converted_copy_is_made(rng, one_thread, dtype, layout):
    x = integers(rng, (2, 8, 200, 210), dtype, layout)
    out = np.empty_like(x, np.float32)
    numbagn.group_norm(x, 2, out=out)
    m = numbagn.group_moments(x, 2)
    numbagn.normalize(x, m, out=out)
    passes.forget_plans()
    assert checks.problem(x, 2).x is x
    for call in (
        lambda: numbagn.group_norm(x, 2, out=out),
        lambda: numbagn.group_moments(x, 2),
        lambda: numbagn.normalize(x, m, out=out),
    ):
        tracemalloc.start()
        try:
            call()
            most = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        assert most < x.nbytes // 4


def test_any_strides_and_byte_orders(rng, one_thread):
    base = rng.integers(0, 60000, (6, 16, 12, 20)).astype(np.uint16)
    read_only = base.copy()
    read_only.flags.writeable = False
    unaligned = np.empty(base.nbytes + 1, np.uint8)[1:].view(np.uint16).reshape(base.shape)
    unaligned[...] = base
    assert not unaligned.flags.aligned
    pictures = np.moveaxis(rng.integers(0, 255, (2, 9, 11, 4)).astype(np.uint8)[..., :3], -1, 1)
    crop = base[:, :, 3:9, 5:15]
    for x in (base[1::2], base[:, 4:12], crop, base[::-1, ::-1], read_only, unaligned, base.astype(">u2"), pictures):
        groups = 1 if x.shape[1] == 3 else 4
        y = numbagn.group_norm(x, groups)
        assert y.dtype == np.float32
        close(y, reference.group_norm(x, groups)[0], 2e-6)


def test_out_is_float32_and_may_lie_in_memory_of_x(rng, one_thread):
    memory = np.zeros(4 * 2 * 6 * 50, np.uint8)
    x = memory[600:1200].reshape(2, 6, 50)
    x[...] = integers(rng, x.shape, "uint8")
    want = numbagn.group_norm(x.copy(), 3)
    out = memory.view(np.float32).reshape(x.shape)
    assert numbagn.group_norm(x, 3, out=out) is out
    assert same_bits(out.copy(), want)
    odd = np.full((2, 6, 50), 7, np.uint8)
    for refused in (odd, odd.astype(np.float16), odd.astype(np.float64)):
        before = refused.copy()
        with pytest.raises(TypeError, match=f"^out must have dtype float32 for uint8 x, got {refused.dtype}$"):
            numbagn.group_norm(x, 3, out=refused)
        assert (refused == before).all()


@pytest.mark.parametrize("dtype", ["int32", "uint32", "int64", "uint64", "bool"])
def test_wider_integers_and_bool_are_refused_with_a_hint(dtype):
    with pytest.raises(
        TypeError, match=rf"^x must have dtype float16, .*, int16, got {dtype}; convert it with \.astype$"
    ):
        numbagn.group_norm(np.ones((2, 4, 3), dtype), 2)
    with pytest.raises(TypeError, match=r"^weight must have dtype [a-z0-9, ]* float64, got int8; convert it with"):
        numbagn.group_norm(np.ones((2, 4, 3), np.float32), 2, np.ones(4, np.int8))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_moments_and_normalize(rng, one_thread, layout):
    for dtype in INTEGERS:
        x = integers(rng, (2, 6, 40, 21), dtype, layout)
        blocks = x.reshape(2, 3, -1).astype(np.int64)
        size = blocks.shape[2]
        m = numbagn.group_moments(x[:, :, :11], 3).merge(numbagn.group_moments(x[:, :, 11:], 3))
        np.testing.assert_allclose(m.mean, blocks.sum(2) / size, rtol=1e-15, atol=1e-13)
        np.testing.assert_allclose(m.M2, (size * (blocks**2).sum(2) - blocks.sum(2) ** 2) / size, rtol=1e-13)
        y = numbagn.normalize(x[:, :, 11:], m)
        assert y.dtype == np.float32
        close(y, reference.group_norm(x, 3)[0][:, :, 11:], 2e-6)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", ["uint8", "int16"])
def test_the_gradient_of_integer_x_is_float32(rng, one_thread, dtype, layout):
    for shape, groups in (((2, 9, 7, 7), 3), ((3, 4, 3), 2), ((2, 6, 40, 51), 2)):
        x = integers(rng, shape, dtype, layout)
        dy = in_layout(normal(rng, shape, np.float32), layout)
        w, b = normal(rng, shape[1], np.float32), normal(rng, shape[1], np.float32)
        _, mean, rstd = numbagn.group_norm_forward(x, groups, w, b, activation="gelu")
        got = numbagn.group_norm_backward(dy, x, mean, rstd, groups, w, b, activation="gelu")
        want = reference.group_norm_backward(dy, x, groups, w, b, activation="gelu")
        assert got[0].dtype == np.float32
        assert got[0].strides == np.empty_like(x, np.float32).strides
        for one, exact in zip(got, want[:3], strict=True):
            assert np.abs(one - exact).max() <= 1e-5 * np.abs(exact).max()
        assert numbagn.group_norm_backward(dy, x, mean, rstd, groups, w, b, activation="gelu", out=dy)[0] is dy
        assert same_bits(dy, got[0])


def test_a_layer_takes_pictures(rng, one_thread):
    pictures = integers(rng, (2, 30, 20, 3), "uint8")
    layer = numbagn.GroupNorm(1, 3, channel_axis=-1, activation="relu")
    want = reference.group_norm(pictures, 1, channel_axis=-1, activation="relu")[0]
    close(layer(pictures), want, 2e-6)
    y, saved = layer.forward(pictures)
    close(y, want, 2e-6)
    assert layer.backward(np.ones_like(y), saved)[0].dtype == np.float32
