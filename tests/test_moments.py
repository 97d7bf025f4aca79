"""Statistics as values: exact, merged in any order, and applied to parts of what no single call sees."""

import itertools
from fractions import Fraction
from functools import reduce

import numpy as np
import pytest
from cases import DTYPES, LAYOUTS, SHAPES, close, error, in_layout, normal, same_bits

import numbagn
from numbagn import Moments, group_moments, normalize, reference
from numbagn.arrays.dtypes import dtype_row
from numbagn.calls import passes
from numbagn.shapes import schedule


def exact(x, groups):
    """(mean, M2) of each group in exact fractions, rounded once."""
    blocks = np.asarray(x).astype(np.float64).reshape(x.shape[0], groups, -1)
    results = np.empty((2, *blocks.shape[:2]))
    for at in np.ndindex(blocks.shape[:2]):
        values = [Fraction(v) for v in blocks[at].tolist()]
        mean = sum(values) / len(values)
        results[(0, *at)], results[(1, *at)] = float(mean), float(sum((v - mean) ** 2 for v in values))
    return results


def ulps(got, want, scale):
    """The largest difference in units of the last place of want, or of the scale where that is larger."""
    return float(np.max(np.abs(got - want) / np.spacing(np.maximum(np.abs(want), scale))))


def stack(m):
    return np.stack(m)


# ------------------------------------------------------------------------------------------------------- group_moments


@pytest.mark.parametrize("offset", [0.0, 1e4, 1e6])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_mean_within_2_ulp_and_m2_within_1e14_of_the_exact_ones(rng, one_thread, dtype, layout, offset):
    for shape, groups in (((2, 6, 31, 33), 2), ((1, 80, 9, 7), 4), ((3, 12, 1), 4), ((2, 4, 3), 2)):
        x = in_layout(normal(rng, shape, DTYPES[dtype], offset), layout)
        m = group_moments(x, groups)
        mean, m2 = exact(x, groups)
        assert ulps(m.mean, mean, 1.0) <= 2
        np.testing.assert_allclose(m.M2, m2, rtol=1e-14)
        assert (m.count == x[0].size // groups).all()


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_moments_of_halves_are_exact_too(rng, one_thread, dtype, layout):
    x = in_layout(normal(rng, (2, 6, 31, 33), DTYPES[dtype], offset=3.0), layout)
    m = group_moments(x, 3)
    mean, m2 = exact(x, 3)
    assert ulps(m.mean, mean, 1.0) <= 2
    np.testing.assert_allclose(m.M2, m2, rtol=1e-14)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_moments_of_every_shape(rng, one_thread, layout):
    for shape, groups in SHAPES.values():
        x = in_layout(normal(rng, shape, np.float32, offset=0.3), layout)
        blocks = x.reshape(shape[0], groups, -1).astype(np.float64)
        m = group_moments(x, groups)
        np.testing.assert_allclose(m.mean, blocks.mean(2), rtol=0, atol=1e-14)
        np.testing.assert_allclose(m.M2, blocks.var(2) * blocks.shape[2], rtol=1e-12, atol=1e-25)


@pytest.mark.parametrize("scale", [1e-38, 1e-30, 1e30, 1e38])
def test_any_magnitude(rng, one_thread, scale):
    x = (rng.uniform(-1, 1, (1, 4, 70)) * scale).astype(np.float32)
    mean, m2 = exact(x, 2)
    m = group_moments(x, 2)
    assert ulps(m.mean, mean, scale) <= 2
    np.testing.assert_allclose(m.M2, m2, rtol=1e-14)


def test_a_far_value_at_the_places_looked_at_first_costs_nothing(rng, one_thread):
    x = normal(rng, (1, 1, 4000), np.float32)
    x[0, 0, [500, 1500, 2500, 3500]] = 1e9
    mean, m2 = exact(x, 1)
    m = group_moments(x, 1)
    np.testing.assert_allclose(m.mean, mean, rtol=1e-15)
    np.testing.assert_allclose(m.M2, m2, rtol=1e-14)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_bits_do_not_depend_on_threads_nor_on_the_batch(rng, monkeypatch, layout):
    for shape, groups in (((6, 24, 9, 11), 4), ((1, 4, 190, 210), 1), ((40, 48, 1), 6)):
        x, weight = in_layout(normal(rng, shape, np.float32), layout), normal(rng, shape[1], np.float32)
        seen = []
        for parallel in (1 << 62, 0):
            monkeypatch.setattr(schedule, "PARALLEL_BYTES", parallel)
            passes.forget_plans()
            m = group_moments(x, groups)
            seen.append((stack(m), normalize(x, m, weight)))
        alone = [group_moments(x[n : n + 1], groups) for n in range(shape[0])]
        assert same_bits(stack(m), np.concatenate([stack(one) for one in alone], axis=1))
        assert all(map(same_bits, *seen))
        y = [normalize(x[n : n + 1], one, weight) for n, one in enumerate(alone)]
        np.testing.assert_array_equal(np.concatenate(y), seen[0][1])
    passes.forget_plans()


def test_chunks_without_values(rng):
    for shape, groups in (((0, 4, 5), 2), ((3, 4, 0), 2), ((3, 0, 5), 7)):
        m = group_moments(np.zeros(shape, np.float32), groups)
        assert all(field.shape == (shape[0], groups) and not field.any() for field in m)
        assert normalize(np.zeros(shape, np.float32), m).shape == shape


def test_nan_and_infinity_stay_in_their_group(rng, one_thread):
    x = normal(rng, (2, 6, 50), np.float32)
    clean = group_moments(x, 3)
    x[0, 2, 7], x[1, 5, 3] = np.nan, np.inf
    m = group_moments(x, 3)
    bad = np.zeros((2, 3), bool)
    bad[0, 1] = bad[1, 2] = True
    for got in (m, m.merge(clean), clean.merge(m)):
        assert (np.isnan(got.M2) == bad).all()
        assert np.isfinite(got.mean[~bad]).all()
    assert same_bits(m.M2[~bad], clean.M2[~bad])
    assert (np.isnan(normalize(x, m)).any(axis=2).reshape(2, 3, 2).all(axis=2) == bad).all()


# --------------------------------------------------------------------------------------------------------------- merge


def cuts(x):
    """Parts of a volume (N, C, D, H, W): slabs, tiles of odd sizes, single positions."""
    yield [x[:, :, d : d + 2] for d in range(0, x.shape[2], 2)]
    yield [x[:, :, :, h : h + 3, w : w + 4] for h in (0, 3, 6) for w in (0, 4, 8)]
    yield [x[:, :, :, :, w] for w in range(x.shape[4])]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("offset", [0.0, 1e4, 1e6])
def test_parts_merged_in_any_order_are_the_whole(rng, one_thread, layout, offset):
    x = in_layout(normal(rng, (2, 6, 5, 8, 9), np.float32, offset), layout)
    mean, m2 = exact(x, 3)
    for parts in cuts(x):
        moments = [group_moments(part, 3) for part in parts]
        for _ in range(4):
            m = reduce(Moments.merge, moments)
            assert ulps(m.mean, mean, 1.0) <= 4
            # each mean is rounded once, which moves the squares between the parts by as much
            np.testing.assert_allclose(m.M2, m2, rtol=1e-14 + 4 * np.spacing(offset))
            assert same_bits(stack(m), stack(reduce(Moments.merge, moments)))
            assert (m.count == x[0].size // 3).all()
            rng.shuffle(moments)


def test_merging_weighs_by_counts(rng, one_thread):
    x = normal(rng, (1, 2, 1000), np.float64, offset=5.0)
    for at in (1, 3, 500, 999):
        m = group_moments(x[..., :at], 1).merge(group_moments(x[..., at:], 1))
        mean, m2 = exact(x, 1)
        assert ulps(m.mean, mean, 1.0) <= 2
        np.testing.assert_allclose(m.M2, m2, rtol=2e-14)


def test_an_unseen_part_changes_no_bit(rng, one_thread):
    m = group_moments(normal(rng, (2, 4, 30), np.float32, offset=0.1), 2)
    for mean in (0.0, np.nan, np.inf):
        nothing = Moments(np.zeros((2, 2)), np.full((2, 2), mean), np.full((2, 2), mean))
        assert same_bits(stack(m.merge(nothing)), stack(m))
        assert same_bits(stack(nothing.merge(m)), stack(m))
    empty = group_moments(np.zeros((2, 4, 0), np.float32), 2)
    assert not stack(empty.merge(empty)).any()
    some = Moments(np.array([[0.0, 3.0]]), np.array([[0.0, 1.5]]), np.array([[0.0, 2.0]]))
    other = Moments(np.array([[2.0, 0.0]]), np.array([[7.0, 0.0]]), np.array([[1.0, 0.0]]))
    assert stack(some.merge(other)).tolist() == [[[2, 3]], [[7, 1.5]], [[1, 2]]]


def test_equal_means_stay_exact(one_thread):
    parts = [group_moments(np.full((1, 2, n), 0.1), 1) for n in (3, 7, 1, 1000)]
    m = reduce(Moments.merge, parts)
    assert (m.count.item(), m.mean.item(), m.M2.item()) == (2022, 0.1, 0.0)


def test_nothing_overflows_whose_result_does_not():
    def of(count, mean):
        return Moments(*(np.array([[v]]) for v in (count, mean, 0.0)))

    m = of(1.0, -1.7e308).merge(of(1.0, 1.7e308))
    assert (m.count.item(), m.mean.item(), m.M2.item()) == (2, 0, np.inf)
    assert of(1.0, -1.7e308).merge(of(1e15, 1.7e308)).mean.item() == pytest.approx(1.7e308)
    m = of(3.0, 1e153).merge(of(1.0, -1e153))
    assert m.M2.item() == pytest.approx(3e306)
    assert np.isnan(m._replace(M2=np.array([[np.inf]])).rstd()).all()


def test_merge_leaves_both_parts_as_they_were(rng, one_thread):
    a, b = (group_moments(normal(rng, (2, 4, 30), np.float32), 2) for _ in range(2))
    before = stack(a), stack(b)
    merged = a.merge(b)
    assert same_bits(stack(a), before[0])
    assert same_bits(stack(b), before[1])
    assert not any(np.may_share_memory(x, y) for x in merged for y in (*a, *b))


# ----------------------------------------------------------------------------------------------------------- normalize


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_chunk_that_is_the_whole_gives_what_group_norm_gives(rng, one_thread, dtype, layout):
    row = dtype_row(DTYPES[dtype])
    for shape, groups in SHAPES.values():
        x = in_layout(normal(rng, shape, DTYPES[dtype], offset=0.3), layout)
        wide = np.float64 if dtype == "float64" else np.float32
        weight, bias = normal(rng, shape[:2], wide, offset=1.0), normal(rng, shape[1], wide)
        m = group_moments(x, groups)
        y = normalize(x, m, weight, bias, activation="silu")
        want, mean, rstd = numbagn.group_norm_forward(x, groups, weight, bias, activation="silu")
        assert y.dtype == x.dtype
        assert y.strides == want.strides
        close(y, reference.group_norm(x, groups, weight, bias, activation="silu")[0], row.tolerance)
        np.testing.assert_allclose(m.mean, mean, rtol=0, atol=1e-7)
        np.testing.assert_allclose(m.rstd(), rstd, rtol=4e-7)
        plain, want = (np.asarray(a).astype(np.float64) for a in (normalize(x, m), numbagn.group_norm(x, groups)))
        apart = {"float16": 2**-10, "bfloat16": 2**-7, "float32": 4e-7, "float64": 2e-15}[dtype]
        assert (np.abs(plain - want) <= apart * np.maximum(1, np.abs(want))).all()


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("offset", [0.0, 1e4, 1e6])
def test_parts_normalized_by_the_moments_of_the_whole(rng, one_thread, layout, offset):
    x = in_layout(normal(rng, (2, 6, 5, 8, 10), np.float32, offset), layout)
    weight, bias = normal(rng, 6, np.float32), normal(rng, (2, 6), np.float32)
    want = reference.group_norm(x, 3, weight, bias, activation="gelu")[0]
    m = reduce(Moments.merge, [group_moments(part, 3) for part in next(cuts(x))])
    whole = normalize(x, m, weight, bias, activation="gelu")
    assert error(whole, want) <= 4e-6
    y = np.empty_like(x)
    for parts, of_whole, into in zip(cuts(x), cuts(whole), cuts(y), strict=True):
        y[...] = np.nan
        for part, want, out in zip(parts, of_whole, into, strict=True):
            np.testing.assert_array_equal(normalize(part, m, weight, bias, activation="gelu"), want)
            assert normalize(part, m, weight, bias, activation="gelu", out=out) is out
        assert same_bits(y, whole)


def test_parts_may_be_whole_groups_of_channels(rng, one_thread):
    x, weight = normal(rng, (2, 12, 7, 9), np.float32), normal(rng, 12, np.float32)
    whole = normalize(x, group_moments(x, 4), weight)
    for c in range(0, 12, 6):
        part = slice(c, c + 6)
        m = group_moments(x[:, part], 2)
        assert same_bits(normalize(x[:, part], m, weight[part]), np.ascontiguousarray(whole[:, part]))


@pytest.mark.parametrize("axis", [1, 2, -1])
def test_channel_axis(rng, one_thread, axis):
    x = normal(rng, (2, 6, 6, 6), np.float32)
    m = group_moments(x, 3, channel_axis=axis)
    assert error(normalize(x, m, channel_axis=axis), reference.group_norm(x, 3, channel_axis=axis)[0]) <= 2e-6


def test_a_stream_of_chunks(rng, one_thread):
    """Chunks that come one by one, as of a recording, in every strided and mapped form."""
    x = normal(rng, (3, 8, 1000), np.float32, offset=100.0)
    read_only = x.copy()
    read_only.flags.writeable = False
    for source in (x, read_only, np.asfortranarray(x), x[::-1, ::-1, ::-1], x.astype(">f4")):
        parts = [source[..., i : i + 130] for i in range(0, 1000, 130)]
        m = reduce(Moments.merge, (group_moments(part, 2) for part in parts))
        y = np.concatenate([normalize(part, m) for part in parts], axis=2)
        close(y, reference.group_norm(source, 2)[0], 2e-6)


def test_in_place_and_into_memory_of_other_arguments(rng, one_thread):
    x = normal(rng, (2, 6, 400), np.float32)
    m = group_moments(x, 3)
    want = normalize(x, m)
    place = x.copy()
    assert normalize(place, m, out=place) is place
    assert same_bits(place, want)
    memory = np.empty(x.size + 8, np.float32)
    moved = memory[8:].reshape(x.shape)
    moved[...] = x
    out = memory[:-8].reshape(x.shape)
    assert same_bits(normalize(moved, m, out=out), want)
    buffer = np.zeros(x.size)  # m itself lies where y is to be written
    fields = [buffer[6 * i : 6 * i + 6].reshape(2, 3) for i in range(3)]
    for field, values in zip(fields, m, strict=True):
        field[...] = values
    out = buffer.view(np.float32)[: x.size].reshape(x.shape)
    assert same_bits(normalize(x, Moments(*fields), out=out), want)


def test_a_constant_group_gives_the_bias(rng, one_thread):
    bias = normal(rng, 4, np.float32)
    for value in (0.0, 0.1, 3e4):
        x = np.full((2, 4, 50), value, np.float32)
        m = reduce(Moments.merge, [group_moments(part, 2) for part in (x[..., :7], x[..., 7:])])
        assert not m.M2.any()
        for eps in (1e-5, 0.0):
            assert (normalize(x, m, bias=bias, eps=eps) == bias[:, None]).all()


def test_a_group_of_no_values_gives_nan(rng, one_thread):
    x = normal(rng, (1, 4, 5), np.float32)
    m = Moments(np.array([[0.0, 10.0]]), np.zeros((1, 2)), np.zeros((1, 2)))
    y = normalize(x, m)
    assert np.isnan(y[0, :2]).all()
    assert np.isfinite(y[0, 2:]).all()


def test_the_backward_pass_takes_them(rng, one_thread):
    x, dy = normal(rng, (2, 6, 5, 7), np.float32), normal(rng, (2, 6, 5, 7), np.float32)
    m = group_moments(x[:, :, :2], 3).merge(group_moments(x[:, :, 2:], 3))
    dx, _, _ = numbagn.group_norm_backward(dy, x, m.mean, m.rstd(), 3)
    want = reference.group_norm_backward(dy, x, 3)[0]
    assert error(dx, want) <= 1e-5 * np.abs(want).max()


def test_moments_of_other_real_dtypes_are_converted(rng, one_thread):
    x = normal(rng, (2, 6, 50), np.float32)
    m = group_moments(x, 3)
    whole = Moments(m.count.astype(np.int64), m.mean, m.M2)
    assert same_bits(normalize(x, whole), normalize(x, m))
    assert same_bits(stack(whole.merge(whole)), stack(m.merge(m)))


# ------------------------------------------------------------------------------------------------------------ refusals


def refused(kind, message, function, *arguments, **options):
    with pytest.raises((TypeError, ValueError)) as refusal:
        function(*arguments, **options)
    assert type(refusal.value) is kind
    assert message in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_refused_calls_name_the_argument_and_write_nothing(rng):
    x = normal(rng, (2, 6, 50), np.float32)
    ones = np.ones((2, 3))
    m = Moments(ones, ones, ones)
    refused(TypeError, "chunk must be a numpy.ndarray, got builtins.list", group_moments, [1.0], 2)
    refused(TypeError, "chunk must have dtype float16", group_moments, x > 0, 2)
    refused(ValueError, "chunk must have at least 2 dimensions", group_moments, x[0, 0], 2)
    refused(ValueError, "num_groups must divide the 6 channels: one of 1, 2, 3, 6; got 4", group_moments, x, 4)
    refused(ValueError, "channel_axis must not be the batch axis", group_moments, x, 2, channel_axis=0)
    refused(TypeError, "other must be numbagn.Moments, got (array", m.merge, tuple(m))
    refused(ValueError, "other must have moments of shape (2, 3), got (1, 3)", m.merge, Moments(*(ones[:1],) * 3))
    refused(TypeError, "other must have moments of real numbers", m.merge, m._replace(mean=ones > 0))
    refused(TypeError, "other must be a numpy.ndarray, got builtins.float", m.merge, m._replace(mean=1.0))
    refused(ValueError, "other must have moments of one shape (N, G)", m.merge, m._replace(mean=ones[:1]))
    refused(ValueError, "eps must be finite and not negative", m.rstd, -1.0)
    out = np.full_like(x, 7)
    for kind, message, change in (
        (TypeError, "chunk must be a numpy.ndarray", {"chunk": None}),
        (TypeError, "m must be numbagn.Moments, got None", {"m": None}),
        (
            ValueError,
            "m must have moments of shape (2, G), G a divisor of 6, got (1, 3)",
            {"m": Moments(*3 * [ones[:1]])},
        ),
        (
            ValueError,
            "m must have moments of shape (2, G), G a divisor of 6, got (2, 4)",
            {"m": Moments(*3 * [np.ones((2, 4))])},
        ),
        (
            ValueError,
            "m must have moments of shape (2, G), G a divisor of 6, got (2, 0)",
            {"m": Moments(*3 * [np.ones((2, 0))])},
        ),
        (ValueError, "m must have moments of one shape (N, G)", {"m": Moments(*3 * [np.ones(6)])}),
        (ValueError, "weight must have shape (6,) or (2, 6)", {"weight": np.ones(5, np.float32)}),
        (TypeError, "bias must be a numpy.ndarray", {"bias": 1.0}),
        (ValueError, "eps must be finite", {"eps": np.nan}),
        (ValueError, "activation must be one of", {"activation": "tanh"}),
        (ValueError, "channel_axis must be", {"channel_axis": 3}),
        (TypeError, "out must have chunk's dtype float32, got float64", {"out": np.ones(x.shape)}),
        (ValueError, "out must have chunk's shape (2, 6, 50), got (2, 6)", {"out": np.ones((2, 6), np.float32)}),
    ):
        refused(kind, message, normalize, **({"chunk": x, "m": m, "out": out} | change))
    assert (out == 7).all()


def test_every_pair_of_parts_merges_both_ways_alike(rng, one_thread):
    x = normal(rng, (2, 4, 600), np.float32, offset=50.0)
    parts = [group_moments(x[..., i : i + size], 2) for i, size in ((0, 1), (1, 9), (10, 590))]
    for a, b in itertools.permutations(parts, 2):
        one, other = a.merge(b), b.merge(a)
        assert ulps(one.mean, other.mean, 1.0) <= 2
        np.testing.assert_allclose(one.M2, other.M2, rtol=1e-15 * 4 + 1e-12)
