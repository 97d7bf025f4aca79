"""Dask arrays: lazy results, chunk by chunk, that are those of one call on the whole."""

import itertools

import ml_dtypes
import numpy as np
import pytest
from cases import DTYPES, close, in_layout, normal, same_bits

import numbagn
from numbagn import reference
from numbagn.arrays.dtypes import dtype_row

dask = pytest.importorskip("dask", reason="dask is not installed")
da = pytest.importorskip("dask.array", reason="dask is not installed")

SHAPE, G = (5, 8, 12, 10), 4

# chunks that leave each group whole: (chunks, those of the result)
WHOLE = {
    "one": (SHAPE, ((5,), (8,), (12,), (10,))),
    "batch": ((2, 8, 12, 10), ((2, 2, 1), (8,), (12,), (10,))),
    "channels": ((5, (2, 6), 12, 10), ((5,), (2, 6), (12,), (10,))),
    "cut groups": (((1, 4), 3, 12, 10), ((1, 4), (4, 2, 2), (12,), (10,))),
}
# chunks that do not
CUT = {
    "rows": (5, 8, 5, 10),
    "everything": ((2, 3), 4, (1, 7, 4), 3),
    "single positions": (5, 8, 4, 1),
    "cut groups too": (2, (3, 5), 6, 10),
    "empty chunks": (5, 8, (0, 6, 0, 6), 10),
}


@pytest.fixture(autouse=True)
def one_thread_each(one_thread):
    with dask.config.set(scheduler="synchronous"):
        yield


def options(rng, dtype=np.float32):
    """Name: what a call is given beside x."""
    per_sample = normal(rng, SHAPE[:2], np.float32)
    return {
        "nothing": {},
        "parameters": {"weight": normal(rng, 8, np.float32), "bias": per_sample, "eps": 0.1, "activation": "silu"},
        "operands": {
            "skip": normal(rng, SHAPE, dtype),
            "residual": normal(rng, SHAPE, np.float32),
            "weight": per_sample,
        },
        "residual and activation": {"residual": normal(rng, SHAPE, dtype), "activation": "gelu"},
    }


def lazily(given, chunks):
    """The same with Dask arrays."""
    return {
        name: da.from_array(value, chunks=1 if value.ndim < 4 else chunks) if isinstance(value, np.ndarray) else value
        for name, value in given.items()
    }


@pytest.mark.parametrize("chunks", WHOLE)
def test_chunks_of_whole_groups_have_the_bits_of_one_call(rng, chunks):
    x = normal(rng, SHAPE, np.float32)
    chunks, want_chunks = WHOLE[chunks]
    for given in options(rng).values():
        want = numbagn.group_norm_forward(x, G, **given)
        for beside in (given, lazily(given, chunks)):
            y = numbagn.group_norm(da.from_array(x, chunks), G, **beside)
            assert y.chunks == want_chunks
            assert same_bits(y.compute(), want[0])
            results = numbagn.group_norm_forward(da.from_array(x, chunks), G, **beside)
            assert results[0].chunks == want_chunks
            assert all(same_bits(got, value) for got, value in zip(dask.compute(*results), want, strict=True))


@pytest.mark.parametrize("chunks", CUT)
def test_moments_of_cut_groups_are_merged(rng, chunks):
    chunks = CUT[chunks]
    for offset, given in itertools.product((0.0, 1e6), options(rng).values()):
        x = normal(rng, SHAPE, np.float32, offset)
        want, want_mean, want_rstd = reference.group_norm(x, G, **given)
        for beside in (given, lazily(given, chunks)):
            results = numbagn.group_norm_forward(da.from_array(x, chunks), G, **beside)
            y, mean, rstd = dask.compute(*results)
            assert results[0].chunks[2:] == da.from_array(x, chunks).chunks[2:]
            assert y.dtype == np.float32
            assert results[1].shape == results[2].shape == mean.shape == rstd.shape
            close(y, want, 2e-6)
            np.testing.assert_allclose(mean, want_mean, rtol=1e-15, atol=1e-15)
            np.testing.assert_allclose(rstd, want_rstd, rtol=1e-10)  # the means of chunks, rounded at 1e6
            assert same_bits(numbagn.group_norm(da.from_array(x, chunks), G, **beside).compute(), y)
            close(y, numbagn.group_norm(x, G, **given).astype(np.float64), 1e-6)


@pytest.mark.parametrize("dtype", DTYPES)
def test_dtypes(rng, dtype):
    x = normal(rng, SHAPE, DTYPES[dtype])
    operands = options(rng, x.dtype)["operands"]
    for given, chunks in (({}, (2, 8, 12, 10)), ({}, (2, 8, 5, 10)), (operands, (2, 8, 5, 10))):
        y = numbagn.group_norm(da.from_array(x, chunks), G, **given)
        assert y.dtype == y.compute().dtype == DTYPES[dtype]
        close(y.compute(), reference.group_norm(x, G, **given)[0], dtype_row(x.dtype).tolerance)


@pytest.mark.parametrize("chunks", [(2, 8, 12, 10), (2, 8, 5, 10)])
def test_integers_give_float32(rng, chunks):
    x = rng.integers(0, 256, SHAPE, np.uint8)
    y, mean, _ = numbagn.group_norm_forward(da.from_array(x, chunks), G)
    assert y.dtype == y.compute().dtype == np.float32
    assert mean.dtype == mean.compute().dtype == np.float64
    close(y.compute(), reference.group_norm(x, G)[0], 2e-6)


@pytest.mark.parametrize("chunks", [(2, 5, 6, 8), (2, 5, 3, 8), (5, 5, 3, 4)])
def test_channels_last(rng, chunks):
    x = normal(rng, (5, 8, 5, 6), np.float32)
    last = np.ascontiguousarray(np.moveaxis(x, 1, -1))
    results = numbagn.group_norm_forward(da.from_array(last, chunks), G, channel_axis=-1)
    y, mean, rstd = dask.compute(*results)
    want = reference.group_norm(x, G)
    close(np.moveaxis(y, -1, 1), want[0], 4e-6)
    np.testing.assert_allclose(mean, want[1], rtol=0, atol=1e-7)
    np.testing.assert_allclose(rstd, want[2], rtol=1e-7)
    as_view = numbagn.group_norm(da.from_array(last, chunks).transpose(0, 3, 1, 2), G)
    assert same_bits(np.ascontiguousarray(np.moveaxis(as_view.compute(), 1, -1)), y)


@pytest.mark.parametrize("chunks", [(2, 3, 4, 10), (5, 8, 5, 3), (1, 8, 12, 10)])
@pytest.mark.parametrize("normalized", [10, (12, 10), SHAPE])
def test_rows_of_layer_norm(rng, chunks, normalized):
    sizes = normalized if isinstance(normalized, tuple) else (normalized,)
    x, weight, bias = (normal(rng, shape, np.float32) for shape in (SHAPE, sizes, sizes))
    want = numbagn.layer_norm(x, normalized, weight, bias, skip=x)
    lazy = da.from_array(x, chunks)
    for parameters in ((weight, bias), (da.from_array(weight, 2), da.from_array(bias, 3))):
        y = numbagn.layer_norm(lazy, normalized, *parameters, skip=lazy)
        assert isinstance(y, da.Array)
        assert y.shape == SHAPE
        assert same_bits(y.compute(), want)
    layer = numbagn.LayerNorm(sizes, weight_init=weight, bias_init=bias)
    _, saved = layer.forward(x, skip=x)
    y, lazily_saved = layer.forward(lazy, skip=lazy)
    statistics = lazily_saved.mean, lazily_saved.rstd
    assert all(s.shape == SHAPE[: 4 - len(sizes)] for s in statistics)
    for got, value in zip(dask.compute(y, *statistics), (want, saved.mean, saved.rstd), strict=True):
        assert same_bits(np.asarray(got), value)


def test_instance_norm_and_layers(rng):
    x = normal(rng, SHAPE, np.float32)
    lazy = da.from_array(x, (2, 3, 12, 10))
    assert same_bits(numbagn.instance_norm(lazy).compute(), numbagn.instance_norm(x))
    layer = numbagn.InstanceNorm(8, activation="relu")
    assert same_bits(layer(lazy).compute(), layer(x))


def test_layout_of_chunks_is_kept(rng):
    strides = []
    for chunks in ((2, 8, 12, 10), (2, 8, 5, 10)):
        x = da.from_array(normal(rng, SHAPE, np.float32), chunks)
        x = x.map_blocks(in_layout, "channels_last", dtype=np.float32, meta=np.empty(0, np.float32))
        y = numbagn.group_norm(x, G).map_blocks(lambda block: strides.append(block.strides) or block, meta=x._meta)
        dask.compute(y, scheduler="synchronous")
    assert {s[1] for s in strides} == {4}


def test_bits_are_the_same_in_every_run_on_any_number_of_threads(rng):
    x = da.from_array(normal(rng, (3, 8, 40, 11), np.float32, 100.0), (1, 4, 3, 5))
    want = numbagn.group_norm(x, G).compute()
    for threads in (1, 2, 4, 4, 4):
        with dask.config.set(scheduler="threads", num_workers=threads):
            assert same_bits(numbagn.group_norm(x, G).compute(), want)


@pytest.mark.parametrize(("chunks", "calls"), [((2, 8, 12, 10), 3), ((5, 8, 4, 5), 6)])
def test_nothing_is_computed_before_it_is_asked_for(rng, chunks, calls):
    computed = []

    def count(block):
        computed.append(block.shape)
        return block

    x = da.from_array(normal(rng, SHAPE, np.float32), chunks).map_blocks(
        count, dtype=np.float32, meta=np.empty(0, "f4")
    )
    y, mean, rstd = numbagn.group_norm_forward(x, G, residual=da.ones(SHAPE, dtype=np.float32))
    layer = numbagn.GroupNorm(G, 8)
    other, saved = layer.forward(x)
    z = numbagn.group_norm(layer(x), G)
    assert all(isinstance(a, da.Array) for a in (y, mean, rstd, other, saved.mean, z))
    assert computed == []
    y.blocks[0, 0].compute()
    assert 0 < len(computed) <= calls
    del computed[:]
    dask.compute(y, mean, rstd, other, z)
    assert len(computed) == calls  # all results from one pass over the data


def test_sizes_may_be_unknown_along_the_batch(rng):
    x = normal(rng, SHAPE, np.float32)
    d = da.from_array(x, (2, 8, 12, 10))
    some = d[d[:, 0, 0, 0] > -10]
    assert np.isnan(some.shape[0])
    weight = normal(rng, 8, np.float32)
    assert same_bits(numbagn.group_norm(some, G, weight).compute(), numbagn.group_norm(x, G, weight))
    some = some.rechunk({2: 6})
    close(numbagn.group_norm(some, G, weight).compute(), numbagn.group_norm(x, G, weight).astype(np.float64), 1e-6)


@pytest.mark.parametrize("shape", [(0, 8, 5), (3, 8, 0), (3, 0, 5)])
def test_empty(shape):
    for function in (numbagn.group_norm, lambda *a: numbagn.group_norm_forward(*a)[0]):
        y = function(da.zeros(shape, dtype=np.float32, chunks=2), 2)
        assert y.compute().shape == y.shape == shape


def test_nan_stays_in_its_group(rng):
    x = normal(rng, SHAPE, np.float32)
    x[1, 2, 3, 4] = np.nan
    y = numbagn.group_norm(da.from_array(x, (5, 8, 6, 5)), G).compute()
    assert np.isnan(y[1, 2:4]).all()
    assert np.isnan(y).sum() == y[1, 2:4].size


# name: (further arguments, exception, message)
REFUSED = {
    "groups": ({"num_groups": 3}, ValueError, "num_groups must divide the 8 channels: one of 1, 2, 4, 8; got 3"),
    "axis": ({"channel_axis": 0}, ValueError, "channel_axis must not be the batch axis 0"),
    "eps": ({"eps": -1.0}, ValueError, "eps must be finite and not negative"),
    "activation": ({"activation": "tanh"}, ValueError, "activation must be one of"),
    "weight": ({"weight": np.ones(7)}, ValueError, r"weight must have shape \(8,\) or \(5, 8\), got \(7,\)"),
    "bias": ({"bias": da.ones((4, 8))}, ValueError, r"bias must have shape \(8,\) or \(5, 8\), got \(4, 8\)"),
    "integer weight": ({"weight": da.ones(8, dtype=int)}, TypeError, "weight must have dtype float16, .*got int64"),
    "skip": ({"skip": np.ones((5, 8))}, ValueError, r"skip must have shape \(5, 8, 12, 10\), got \(5, 8\)"),
    "residual": ({"residual": [1.0]}, TypeError, "residual must be a numpy.ndarray, got builtins.list"),
    "out": ({"out": np.ones(SHAPE, np.float32)}, TypeError, "out must be None where x is a Dask array"),
    "lazy out": ({"out": da.ones(SHAPE)}, TypeError, "out must be None where x is a Dask array"),
    "lengths": ({"lengths": [1, 2, 3, 4, 5]}, TypeError, "lengths must be None where x is a Dask array"),
    "mask": ({"mask": np.ones((5, 1, 12, 10), bool)}, TypeError, "mask must be None where x is a Dask array"),
    "dtype": ({"x": da.ones(SHAPE, dtype=complex)}, TypeError, "x must have dtype float16, .*got complex128"),
    "dimensions": ({"x": da.ones(8)}, ValueError, "x must have at least 2 dimensions"),
    "masked": ({"x": da.ma.masked_greater(da.ones(SHAPE), 2)}, TypeError, "x must have chunks of numpy.ndarray, got"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_refused_at_once(name):
    given, exception, message = REFUSED[name]
    given = {"x": da.ones(SHAPE, dtype=np.float32, chunks=2), "num_groups": G} | given
    with pytest.raises(exception, match=f"^{message}[^\n]*$"):
        numbagn.group_norm(**given)


def test_unknown_sizes_of_positions_are_refused():
    x = da.ones((5, 8, 12), chunks=3)
    x = x[:, :, x[0, 0] > 0]
    with pytest.raises(ValueError, match=r"^x must have known sizes after axis 0, got .*compute_chunk_sizes"):
        numbagn.group_norm(x, G)
    with pytest.raises(ValueError, match=r"^x must have known sizes after axis 1, got .*compute_chunk_sizes"):
        numbagn.layer_norm(x, 12)
    with pytest.raises(ValueError, match=r"^x must have normalized_shape \(7,\) as its last dimensions"):
        numbagn.layer_norm(da.ones((5, 8)), 7)


@pytest.mark.parametrize("chunks", [*(chunks for chunks, _ in WHOLE.values()), *CUT.values()])
def test_normalize_is_lazy_and_gives_the_numbers_of_one_call(rng, chunks):
    x = normal(rng, SHAPE, np.float32, 100.0)
    m = numbagn.group_moments(x, G)
    given = options(rng)["parameters"]
    lazy = da.from_array(x, chunks)
    for beside in ({}, given, lazily(given, chunks)):
        y = numbagn.normalize(lazy, m, **beside)
        assert isinstance(y, da.Array)
        assert (y.shape, y.dtype) == (SHAPE, np.float32)
        same = {name: given[name] for name in beside}
        close(y.compute(), numbagn.normalize(x, m, **same).astype(np.float64), 1e-6)
    last = da.from_array(np.moveaxis(x, 1, -1).copy(), (2, 5, 4, 3))
    y = numbagn.normalize(last, m, channel_axis=-1)
    close(np.moveaxis(y.compute(), -1, 1), numbagn.normalize(x, m).astype(np.float64), 1e-6)


def test_normalize_refuses_at_once(rng):
    lazy, m = da.ones(SHAPE, dtype=np.float32, chunks=3), numbagn.Moments(*np.ones((3, 5, G)))
    some = lazy[lazy[:, 0, 0, 0] > 0]
    for error, message, arguments in (
        (TypeError, "out must be None where chunk is a Dask array, got ", {"out": np.ones(SHAPE, np.float32)}),
        (TypeError, "m must be numbagn.Moments, got None", {"m": None}),
        (
            ValueError,
            "m must have moments of shape (5, G), G a divisor of 8, got (4, 4)",
            {"m": m._make(np.ones((3, 4, 4)))},
        ),
        (TypeError, "m must be in memory here, got dask.array", {"m": m._make(da.ones((3, 5, G)))}),
        (ValueError, "weight must have shape (8,) or (5, 8), got (7,)", {"weight": np.ones(7)}),
        (ValueError, "chunk must have known sizes, got (nan, 8, 12, 10); use compute_chunk_sizes()", {"chunk": some}),
        (ValueError, "eps must be finite", {"eps": -1.0}),
    ):
        with pytest.raises(error) as refusal:
            numbagn.normalize(**({"chunk": lazy, "m": m} | arguments))
        assert str(refusal.value).startswith(message)
        assert "\n" not in str(refusal.value)
    empty = numbagn.normalize(da.ones((0, 8, 3), chunks=2), numbagn.Moments(*np.ones((3, 0, G))))
    assert empty.compute().shape == (0, 8, 3)


def test_backward_and_lazy_operands_of_arrays_in_memory_are_refused(rng):
    x, lazy = normal(rng, SHAPE, np.float32), da.ones(SHAPE, dtype=np.float32)
    with pytest.raises(TypeError, match=r"^x must be in CPU memory for group_norm_backward and .*\.compute\(\)$"):
        numbagn.group_norm_backward(x, lazy, np.ones((5, G)), np.ones((5, G)), G)
    for name in ("skip", "residual", "out"):
        with pytest.raises(
            TypeError, match=rf"^{name} must be in memory here, got dask.array.*; use its \.compute\(\)$"
        ):
            numbagn.group_norm(x, G, **{name: lazy})


def test_chunks_of_xarray(rng):
    xarray = pytest.importorskip("xarray", reason="xarray is not installed")
    x = normal(rng, SHAPE, np.float32)
    labelled = xarray.DataArray(x, dims=["n", "c", "h", "w"], attrs={"unit": "mV"}).chunk({"n": 2})
    y = labelled.copy(data=numbagn.group_norm(labelled.data, G))
    assert isinstance(y.data, da.Array)
    assert y.attrs == labelled.attrs
    assert same_bits(y.values, numbagn.group_norm(x, G))


def test_on_two_worker_processes(rng):
    distributed = pytest.importorskip("distributed", reason="distributed is not installed")
    x = normal(rng, SHAPE, np.float32, 1e4)
    half = normal(rng, SHAPE, ml_dtypes.bfloat16)
    with (
        dask.config.set({"distributed.worker.daemon": True}),
        distributed.LocalCluster(n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None) as cluster,
        distributed.Client(cluster) as client,
    ):
        for array, chunks in ((x, (1, 8, 12, 10)), (x, (5, 4, 3, 10)), (half, (2, 8, 6, 5))):
            lazy = numbagn.group_norm(da.from_array(array, chunks), G, activation="silu")
            got = client.compute(lazy).result(timeout=60)
            assert same_bits(got, lazy.compute(scheduler="synchronous"))
        assert len(client.scheduler_info()["workers"]) == 2
