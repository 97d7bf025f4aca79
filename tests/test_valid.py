"""Samples of which some positions are valid: `lengths` gives the bits of each alone, `mask` is as the definition."""

import itertools

import ml_dtypes
import numpy as np
import pytest
from cases import DTYPES, LAYOUTS, close, in_layout, normal, same_bits

import numbagn
from numbagn import reference
from numbagn.calls import operands, padding

TOLERANCES = {"float16": 2.0e-3, "bfloat16": 1.6e-2, "float32": 3e-6, "float64": 3e-14}
SHAPES = {
    "sequences": ((5, 6, 40), 3, [40, 17, 0, 1, 33]),
    "long": ((3, 4, 9000), 2, [9000, 8191, 16]),
    "images": ((4, 6, 7, 9), 2, [7, 3, 1, 0]),
    "many_channels": ((4, 128, 30), 8, [30, 29, 16, 2]),
    "volumes": ((2, 3, 5, 4, 6), 1, [5, 2]),
    "short": ((4, 8, 5), 4, [5, 4, 3, 1]),
    "one_position": ((3, 8, 1), 2, [1, 0, 1]),
    "one_channel": ((3, 1, 50), 1, [50, 20, 7]),
}


def bad(x, lengths):
    """x with NaN and infinities behind the lengths."""
    x = x.copy()
    for n, length in enumerate(lengths):
        x[n, :, length:] = np.nan
        x[n, :, length::2] = np.inf
    return x


def parameters(rng, kind, shape):
    N, C = shape[:2]
    return {
        "none": {},
        "channels": {"weight": normal(rng, C, np.float32), "bias": normal(rng, C, np.float32)},
        "samples": {"weight": normal(rng, (N, C), np.float32), "bias": normal(rng, (N, C), np.float32)},
    }[kind]


def alone(options, n, length):
    """The options of sample n cut to its valid positions."""
    return {
        name: value if np.ndim(value) < 2 else value[n : n + 1] if value.ndim == 2 else value[n : n + 1, :, :length]
        for name, value in options.items()
    }


PADDED = [(dtype, layout, False) for dtype in DTYPES for layout in LAYOUTS]
PADDED += [("float32", layout, True) for layout in LAYOUTS]


@pytest.mark.parametrize(("dtype", "layout", "parallel"), PADDED)
@pytest.mark.parametrize("case", SHAPES)
def test_lengths_give_the_bits_of_each_sample_alone(rng, monkeypatch, case, dtype, layout, parallel):
    shape, groups, lengths = SHAPES[case]
    if parallel:
        monkeypatch.setattr(numbagn.shapes.schedule, "PARALLEL_BYTES", 1)
    kind = {"float16": "samples", "float64": "none"}.get(dtype, "channels")
    options = parameters(rng, kind, shape)
    x = in_layout(bad(normal(rng, shape, DTYPES[dtype], 3.0), lengths), layout)
    dy = in_layout(bad(normal(rng, shape, DTYPES[dtype]), lengths), layout)
    y, mean, rstd = numbagn.group_norm_forward(x, groups, lengths=lengths, **options)
    dx, dweight, dbias = numbagn.group_norm_backward(dy, x, mean, rstd, groups, lengths=lengths, **options)
    sums = np.zeros((2, *dweight.shape))
    for n, length in enumerate(lengths):
        cut = np.s_[n : n + 1, :, :length]
        mine = alone(options, n, length)
        one, one_mean, one_rstd = numbagn.group_norm_forward(x[cut], groups, **mine)
        assert same_bits(y[cut], one)
        assert same_bits(mean[n : n + 1], one_mean)
        assert same_bits(rstd[n : n + 1], one_rstd)
        assert not y[n, :, length:].any()
        one_dx, *more = numbagn.group_norm_backward(dy[cut], x[cut], one_mean, one_rstd, groups, **mine)
        assert same_bits(dx[cut], one_dx)
        assert not dx[n, :, length:].any()
        for total, own in zip(sums, more, strict=True):
            total[...] += own if total.ndim == 1 else np.eye(shape[0])[n][:, None] * own
    close(dweight, sums[0], 1e-5 if dtype != "float64" else 1e-13)
    close(dbias, sums[1], 1e-5 if dtype != "float64" else 1e-13)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_lengths_with_operands_in_place(rng, layout):
    shape, groups, lengths = (4, 6, 7, 9), 3, np.array([7, 1, 0, 5], np.uint8)
    x, skip, residual, dy = (in_layout(bad(normal(rng, shape, np.float32), lengths), layout) for _ in range(4))
    options = {"activation": "silu", "skip": skip, "residual": residual}
    y, mean, rstd = numbagn.group_norm_forward(x, groups, lengths=lengths, **options)
    results = numbagn.group_norm_backward(dy, x, mean, rstd, groups, lengths=lengths, **options)
    for n, length in enumerate(lengths):
        cut = np.s_[n : n + 1, :, :length]
        mine = alone(options, n, length)
        one, *statistics = numbagn.group_norm_forward(x[cut], groups, **mine)
        assert same_bits(y[cut], one)
        dx, _, _, dresidual = numbagn.group_norm_backward(dy[cut], x[cut], *statistics, groups, **mine)
        assert same_bits(results[0][cut], dx)
        assert same_bits(results[3][cut], dresidual)
        assert not results[3][n, :, length:].any()
    target = x.copy(order="K")
    assert numbagn.group_norm(target, groups, lengths=lengths, out=target, **options) is target
    assert same_bits(target, y)


def of_valid(x, mask, groups, weight=None, bias=None, dy=None):
    """The definition over the valid positions of each sample, by the reference: y, mean, rstd or the gradients."""
    N, C = x.shape[:2]
    flat, flags = x.reshape(N, C, -1).astype(np.float64), np.broadcast_to(mask, (N, 1, *x.shape[2:])).reshape(N, -1)
    result, statistics, sums = np.zeros(flat.shape), np.zeros((2, N, groups)), np.zeros((2, N, C))
    for n in range(N):
        if not flags[n].any():
            continue
        cut = flat[n : n + 1][:, :, flags[n]]
        y, mean, rstd = reference.group_norm(cut, groups, weight, bias, 1e-5)
        statistics[:, n] = mean[0], rstd[0]
        if dy is not None:
            upstream = dy.reshape(N, C, -1)[n : n + 1][:, :, flags[n]]
            y, dweight, dbias, _ = reference.group_norm_backward(upstream, cut, groups, weight, bias)
            sums[:, n] = dweight, dbias
        result[n][:, flags[n]] = y[0]
    return (result.reshape(x.shape), *(statistics if dy is None else sums.sum(axis=1)))


# each needs kernels of its own: a dtype of each width, one kind at a time
MASKED = [("float32", layout, parallel) for layout in LAYOUTS for parallel in (False, True)]
MASKED += [("bfloat16", "channels_first", False), ("float64", "channels_last", False)]


@pytest.mark.parametrize(("dtype", "layout", "parallel"), MASKED)
@pytest.mark.parametrize("case", SHAPES)
def test_masked_as_the_definition(rng, monkeypatch, case, dtype, layout, parallel):
    shape, groups, _ = SHAPES[case]
    if parallel:
        monkeypatch.setattr(numbagn.shapes.schedule, "PARALLEL_BYTES", 1)
    mask = rng.random((shape[0], 1, *shape[2:])) < 0.6
    mask[-1] = False
    x = normal(rng, shape, DTYPES[dtype], 3.0)
    dy = normal(rng, shape, DTYPES[dtype])
    for array in (x, dy):
        array[~np.broadcast_to(mask, shape)] = np.nan
    x, dy = in_layout(x, layout), in_layout(dy, layout)
    weight, bias = (normal(rng, shape[1], np.float32) for _ in range(2))
    tolerance = TOLERANCES[dtype]
    want, want_mean, want_rstd = of_valid(x, mask, groups, weight, bias)
    y, mean, rstd = numbagn.group_norm_forward(x, groups, weight, bias, mask=mask)
    close(y, want, tolerance)
    assert not y[~np.broadcast_to(mask, shape)].any()
    close(mean, want_mean, 1e-7 if dtype != "float64" else 1e-14)
    assert np.all(np.abs(rstd - want_rstd) <= 1e-6 * want_rstd)
    want, *sums = of_valid(x, mask, groups, weight, bias, dy=np.asarray(dy, np.float64))
    got, *parameters = numbagn.group_norm_backward(dy, x, mean, rstd, groups, weight, bias, mask=mask)
    scale = max(1.0, np.abs(want).max())
    close(got / scale, want / scale, max(tolerance, 1e-5))
    assert not got[~np.broadcast_to(mask, shape)].any()
    for own, sum_ in zip(parameters, sums, strict=True):
        close(own, sum_, 1e-4 if dtype != "float64" else 1e-6)


def test_masks_of_any_shape_that_broadcasts(rng):
    x = normal(rng, (2, 4, 6, 20), np.float32)
    for shape in ((2, 1, 6, 20), (1, 1, 6, 20), (1, 1, 1, 20), (6, 1), (20,), (2, 1, 1, 1), ()):
        mask = np.asarray(rng.random(shape) < 0.7)
        full = np.broadcast_to(mask, (2, 1, 6, 20)).copy()
        assert same_bits(numbagn.group_norm(x, 2, mask=mask), numbagn.group_norm(x, 2, mask=full))
        last = np.ascontiguousarray(np.moveaxis(x, 1, -1))
        close(
            np.moveaxis(numbagn.group_norm(last, 2, mask=np.moveaxis(full, 1, -1), channel_axis=-1), -1, 1),
            of_valid(x, full, 2)[0],
            3e-6,
        )


def test_a_mask_that_keeps_all_or_a_prefix(rng):
    x = normal(rng, (3, 4, 100), np.float32, 1e4)
    y = numbagn.group_norm(x, 2)
    close(numbagn.group_norm(x, 2, mask=np.ones((3, 1, 100), bool)), y, 1e-6)
    assert same_bits(numbagn.group_norm(x, 2, lengths=[100] * 3), y)
    lengths = np.array([30, 99, 100])
    prefix = np.arange(100) < lengths[:, None, None]
    close(numbagn.group_norm(x, 2, mask=prefix), numbagn.group_norm(x, 2, lengths=lengths), 2e-6)
    both = numbagn.group_norm(x, 2, lengths=lengths, mask=np.arange(100) >= 10)
    close(both, of_valid(x, prefix & (np.arange(100) >= 10), 2)[0], 3e-6)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_masked_at_any_offset_and_magnitude(rng, layout):
    mask = rng.random((2, 1, 9, 30)) < 0.5
    for offset, scale in ((1e6, 1.0), (0.0, 1e-30), (0.0, 1e30), (-1e4, 1.0)):
        x = normal(rng, (2, 4, 9, 30), np.float32, offset, scale)
        want, mean, rstd = reference_of(x, mask)
        x[~np.broadcast_to(mask, x.shape)] = 3e38
        got = numbagn.group_norm_forward(in_layout(x, layout), 2, eps=0.0, mask=mask)
        close(got[0], want, 2e-6)
        assert np.allclose(got[1], mean, rtol=1e-9, atol=0)
        assert np.allclose(got[2], rstd, rtol=1e-6, atol=0)


def reference_of(x, mask):
    flags = np.broadcast_to(mask, x.shape)
    groups = x.astype(np.float64).reshape(2, 2, -1), flags.reshape(2, 2, -1)
    y, mean, rstd = np.zeros(groups[0].shape), np.zeros((2, 2)), np.zeros((2, 2))
    for u in np.ndindex(2, 2):
        values = groups[0][u][groups[1][u]]
        mean[u], rstd[u] = values.mean(), 1 / values.std()
        y[u][groups[1][u]] = (values - mean[u]) * rstd[u]
    return y.reshape(x.shape), mean, rstd


def test_lengths_give_the_bits_of_each_sample_alone_in_any_order_of_memory(rng, one_thread):
    """Forward and backward, the first time and again; the channels anywhere, steps, the other byte order."""
    sizes, lengths = (3, 4, 20, 3), [20, 2, 7]
    seen = [("native", order, axis) for order in itertools.permutations(range(4)) for axis in (1, 2, 3)]
    seen += [(kind, (0, 3, 1, 2), axis) for kind in ("swapped", "stepped") for axis in (1, 2, 3)]
    for kind, order, axis in seen:
        first = 1 if axis > 1 else 2  # the spatial axis that lengths count along
        shape = tuple(sizes[2] if a == first else sizes[1] if a == axis else (3, 4, 2, 3)[a] for a in range(4))

        def array(shape=shape, order=order, kind=kind):
            values = normal(rng, [shape[a] for a in order], np.float32).transpose(np.argsort(order))
            if kind == "stepped":
                values = np.repeat(values, 2, axis=3)[..., ::2]
            return values.astype(">f4") if kind == "swapped" else values

        x, dy = array(), array()
        options = {"channel_axis": axis, "activation": "silu"}
        for _ in range(2):
            y, mean, rstd = numbagn.group_norm_forward(x, 2, lengths=lengths, **options)
            dx, *_ = numbagn.group_norm_backward(dy, x, mean, rstd, 2, lengths=lengths, **options)
            m = numbagn.group_moments(x, 2, channel_axis=axis, lengths=lengths)
            for n, length in enumerate(lengths):
                cut = (slice(n, n + 1), *(slice(length if a == first else None) for a in (1, 2, 3)))
                one, one_mean, one_rstd = numbagn.group_norm_forward(x[cut], 2, **options)
                one_dx, *_ = numbagn.group_norm_backward(dy[cut], x[cut], one_mean, one_rstd, 2, **options)
                of_one = numbagn.group_moments(x[cut], 2, channel_axis=axis)
                where = kind, order, axis, length
                assert same_bits(y[cut], one), where
                assert same_bits(rstd[n : n + 1], one_rstd), where
                assert same_bits(dx[cut], one_dx), where
                assert same_bits(m.M2[n : n + 1], of_one.M2), where
            assert np.count_nonzero(y) <= sum(lengths) * y[0].size // sizes[2]


def test_orders_of_memory_in_which_the_first_axis_is_not_outermost(rng):
    x = np.asfortranarray(normal(rng, (3, 4, 6, 20), np.float32)).transpose(0, 1, 2, 3)
    lengths = [6, 2, 0]
    mask = np.arange(6)[:, None] < np.array(lengths)[:, None, None, None]
    close(numbagn.group_norm(x, 2, lengths=lengths), of_valid(x, mask, 2)[0], 3e-6)


def test_rows_with_gaps_are_read_in_place(rng, monkeypatch):
    whole = normal(rng, (3, 6, 70), np.float32, 5.0)
    x = whole[:, :, 3:64]
    want = numbagn.group_norm(x.copy(), 3, activation="relu")
    monkeypatch.setattr(np, "copy", None)
    assert numbagn.calls.checks.problem(x, 3).x is x
    assert same_bits(numbagn.group_norm(x, 3, activation="relu"), want)
    out = np.zeros_like(whole)
    numbagn.group_norm(x, 3, activation="relu", out=out[:, :, 3:64])
    assert same_bits(out[:, :, 3:64].copy("C"), want)
    assert not out[:, :, :3].any()
    assert not out[:, :, 64:].any()


@pytest.mark.parametrize("layout", LAYOUTS)
def test_moments_of_what_is_valid(rng, layout):
    x = in_layout(bad(normal(rng, (4, 6, 40), np.float32, 1e4), lengths := [40, 17, 0, 3]), layout)
    m = numbagn.group_moments(x, 3, lengths=lengths)
    mask = np.arange(40) < np.array(lengths)[:, None, None]
    masked = numbagn.group_moments(x, 3, mask=mask)
    for n, length in enumerate(lengths):
        one = numbagn.group_moments(x[n : n + 1, :, :length], 3)
        assert all(same_bits(field[n : n + 1], own) for field, own in zip(m, one, strict=True))
        for field, own in zip(masked, one, strict=True):
            assert np.allclose(field[n : n + 1], own, rtol=1e-13, atol=0)
    whole = normal(rng, (2, 6, 5, 9), np.float64)
    keep = rng.random((2, 1, 5, 9)) < 0.5
    merged = numbagn.group_moments(whole, 2, mask=keep).merge(numbagn.group_moments(whole, 2, mask=~keep))
    for field, want in zip(merged, numbagn.group_moments(whole, 2), strict=True):
        assert np.allclose(field, want, rtol=1e-13, atol=1e-15)


def test_layers_take_what_is_valid(rng):
    x = bad(normal(rng, (3, 4, 30), np.float32), lengths := [30, 20, 5])
    for layer, groups in ((numbagn.GroupNorm(2, 4), 2), (numbagn.InstanceNorm(4), 4)):
        want = numbagn.group_norm_forward(x, groups, layer.weight, layer.bias, lengths=lengths)
        y, saved = layer.forward(x, lengths=lengths)
        assert same_bits(y, want[0])
        assert same_bits(layer(x, mask=np.ones(30, bool), lengths=lengths)[0], layer(x, mask=np.ones(30, bool))[0])
        got = layer.backward(y, saved)
        want = numbagn.group_norm_backward(y, x, *want[1:], groups, layer.weight, layer.bias, lengths=lengths)
        assert all(same_bits(a, b) for a, b in zip(got, want, strict=True))
    with pytest.raises(ValueError, match="lengths must not be given to layer norm"):
        numbagn.LayerNorm(30)(x, lengths=lengths)


X = np.zeros((2, 4, 6, 5), np.float32)


@pytest.mark.parametrize(
    ("options", "kind", "message"),
    [
        ({"lengths": 3}, TypeError, "lengths must be an array or a list of 2 integers, got 3"),
        ({"lengths": [1.0, 2.0]}, TypeError, "lengths must be an array or a list of 2 integers"),
        ({"lengths": [True, False]}, TypeError, "lengths must be an array or a list of 2 integers"),
        ({"lengths": [[1], [2, 3]]}, TypeError, "lengths must be an array or a list of 2 integers"),
        ({"lengths": [1, 2, 3]}, ValueError, r"lengths must have shape (2,), got (3,)"),
        ({"lengths": [1, 7]}, ValueError, "lengths must be from 0 to 6, the size of axis 2; got 7"),
        ({"lengths": [-1, 6]}, ValueError, "lengths must be from 0 to 6, the size of axis 2; got -1"),
        ({"lengths": np.ma.array([1, 2])}, TypeError, "lengths must be"),
        ({"mask": [True]}, TypeError, "mask must be a numpy.ndarray of bool"),
        ({"mask": np.ones((2, 1, 6, 5))}, TypeError, "mask must have dtype bool, got float64"),
        ({"mask": np.ones((2, 4, 6, 5), bool)}, ValueError, "mask must have shape (2, 1, 6, 5) or one that broadcasts"),
        ({"mask": np.ones((2, 1, 5, 6), bool)}, ValueError, "mask must have shape (2, 1, 6, 5)"),
        ({"mask": np.ma.array(np.ones((2, 1, 6, 5), bool))}, TypeError, "mask must be"),
    ],
)
def test_refused(options, kind, message):
    out = np.full(X.shape, 7, np.float32)
    for call in (
        lambda: numbagn.group_norm(X, 2, out=out, **options),
        lambda: numbagn.group_norm_backward(X, X, np.zeros((2, 2)), np.ones((2, 2)), 2, out=out, **options),
    ):
        with pytest.raises(kind) as refusal:
            call()
        assert str(refusal.value).startswith(message)
        assert "\n" not in str(refusal.value)
    assert (out == 7).all()


def test_lengths_need_positions():
    x = np.arange(8, dtype=np.float32).reshape(2, 4)
    message = r"^lengths must not be given where x has no positions, got x of shape \(2, 4\); .*: x\[:, None\]$"
    with pytest.raises(ValueError, match=message):
        numbagn.group_norm(x, 2, lengths=[3, 2])
    with pytest.raises(ValueError, match=r"^mask must have shape \(2, 1\) .*, got \(2, 4\); .*: x\[:, None\]$"):
        numbagn.group_norm(x, 2, mask=np.ones((2, 4), bool))
    y = numbagn.group_norm(x[:, None], 1, lengths=[3, 2])
    assert same_bits(y, numbagn.group_norm(x[:, None], 1, mask=(x % 4 < [[3], [2]])[:, None]))


@pytest.mark.parametrize("dtype", ["uint8", "int64", "float32"])
def test_hints_for_masks_and_lengths(dtype):
    flags = np.ones((2, 1, 6, 5), dtype)
    flags[1] = 0
    with pytest.raises(TypeError, match=rf"^mask must have dtype bool, got {dtype}; use its \.astype\(bool\)$"):
        numbagn.group_norm(X, 2, mask=flags)
    assert not numbagn.group_norm(X, 2, mask=flags.astype(bool))[1].any()
    for option, value, message in (
        (
            "mask",
            flags.astype(bool)[:, 0],
            r"mask must have shape .*, got \(2, 6, 5\); use its \.reshape\(2, 1, 6, 5\)",
        ),
        ("mask", flags.tolist(), r"mask must be a numpy\.ndarray of bool, got .*; convert it with numpy\.asarray"),
        (
            "mask",
            np.ma.array(flags),
            r"mask must be a numpy\.ndarray of bool, got .*; use its \.filled\(\.\.\.\) or its \.data",
        ),
        (
            "lengths",
            [3.0, 2.0],
            r"lengths must be .* 2 integers, got \[3\.0, 2\.0\]; use numpy\.asarray.*\.astype\(int\)",
        ),
        ("lengths", np.array([[3], [2]]), r"lengths must have shape \(2,\), got \(2, 1\); use its \.reshape\(2,\)"),
    ):
        with pytest.raises((TypeError, ValueError), match=f"^{message}$"):
            numbagn.group_norm(X, 2, **{option: value})


def test_empty_batches(rng):
    assert numbagn.group_norm(X[:0], 2, lengths=[]).shape == (0, 4, 6, 5)
    assert not numbagn.group_norm(normal(rng, X.shape, np.float32), 2, lengths=[0, 0]).any()
    y = numbagn.group_norm(X.astype(ml_dtypes.bfloat16), 2, mask=np.zeros((1, 1, 1, 1), bool))
    assert not y.any()


def test_large_samples_are_shared_out_one_by_one(rng, monkeypatch):
    x = normal(rng, (3, 4, 3000), np.float32)
    lengths = [3000, 1234, 16]
    together = numbagn.group_norm(x, 2, lengths=lengths)
    monkeypatch.setattr(numbagn.shapes.schedule, "PARALLEL_BYTES", 1)
    monkeypatch.setattr(padding, "ALONE_BYTES", 1)
    monkeypatch.setattr(operands, "limit", lambda: 2)
    numbagn.calls.passes.forget_plans()
    for _ in range(2):
        assert same_bits(numbagn.group_norm(x, 2, lengths=lengths), together)
    numbagn.calls.passes.forget_plans()
