"""The GPU path, on whatever `numba.cuda` is: the simulator or a GPU. `test_cuda` runs this in a process of its own.

The same shapes, layouts and options as for the CPU, and the same definition.
"""

import contextlib
import itertools

import numpy as np
import pytest
from cases import DTYPES, LAYOUTS, SHAPES, close, in_layout, normal, same_bits
from numba import config, cuda
from test_backward import OPTIONS, check
from test_backward import TOLERANCE as GRADIENTS
from test_forward import make

import numbagn
from numbagn import reference
from numbagn.calls.gpu import grids, passes, plans, running

SIMULATED = bool(config.ENABLE_CUDASIM)
if SIMULATED:  # lanes are NumPy arrays there, which warn of infinities
    pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")
TOLERANCE = {"float16": 2.0e-3, "bfloat16": 1.6e-2, "float32": 3e-6, "float64": 3e-14}
# (shape, groups, whether by the split kernels); the simulator runs each thread as a Python thread, so little of it.
if SIMULATED:
    ALL = [((2, 4, 2, 4), 2, False), ((2, 4, 2, 4), 2, True), ((3, 4, 3), 2, False), ((3, 4, 3), 1, True)]
    ALL += [((3, 12, 1), 4, False), ((5, 24), 3, False), ((1, 2, 3, 11), 1, False)]
    FEW = ALL[:2]
else:
    LARGE = [((1, 2, 212, 212), 1, False), ((2, 1, 133, 149), 1, False), ((2, 40, 60, 44), 4, False)]
    ALL = [(*case, False) for case in SHAPES.values()] + LARGE
    FEW = [(*SHAPES["vector_multiples"], False), *LARGE[::2]]


@contextlib.contextmanager
def kernels_for(split):
    """Take the kernels for large groups, whatever the size."""
    with pytest.MonkeyPatch.context() as patch:
        if split:
            plans.forget()
            patch.setattr(grids, "whole_of", lambda *sizes: None)
            patch.setattr(grids, "channels_of", lambda *sizes: None)
        yield
    if split:
        plans.forget()


@pytest.fixture(autouse=True, scope="module")
def _small_blocks():
    """A thread of the simulator is a Python thread: blocks have few there. GPUs get the sizes that users get."""
    with pytest.MonkeyPatch.context() as patch:
        if SIMULATED:
            patch.setattr(grids, "THREADS", 32)
        yield


class Exported:
    """Device memory of another library: all it has is the interface."""

    def __init__(self, owner, shape, strides, typestr, stream=None, readonly=False):
        self.owner = owner
        self.interface = {
            "shape": shape, "strides": strides, "typestr": typestr, "version": 3, "stream": stream,
            "data": (owner.__cuda_array_interface__["data"][0], readonly),
        }  # fmt: skip

    @property
    def __cuda_array_interface__(self):
        return self.interface


def send(array):
    """A copy on the device with the array's strides."""
    if array is None or np.isscalar(array):
        return array
    order = np.argsort([-abs(s) for s in array.strides], kind="stable")
    base = np.ascontiguousarray(array.transpose(order))
    if SIMULATED:
        return cuda.to_device(base.copy()).transpose(np.argsort(order))
    bits = base.view(np.uint16) if base.dtype.name == "bfloat16" else base
    strides = base.transpose(np.argsort(order)).strides
    typestr = "<V2" if base.dtype.name == "bfloat16" else base.dtype.str
    return Exported(cuda.to_device(bits), array.shape, strides, typestr)


def receive(device):
    """A copy on the host."""
    if isinstance(device, Exported):
        device = cuda.from_cuda_array_interface(device.__cuda_array_interface__, owner=device, sync=False)
    return device.copy_to_host()


def sent(arguments):
    return {name: send(v) if isinstance(v, np.ndarray) else v for name, v in arguments.items()}


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_dtype_layout_and_option(rng, dtype, layout, options):
    cases = ALL
    if SIMULATED:  # each dtype, layout and option with one shape in both ways, each shape with several of them
        number = [*itertools.product(DTYPES, LAYOUTS, OPTIONS)].index((dtype, layout, options))
        cases = [ALL[number % 2], ALL[2 + number % (len(ALL) - 2)]]
    for shape, groups, split in cases:
        x = in_layout(normal(rng, shape, DTYPES[dtype], offset=0.3), layout)
        dy = in_layout(normal(rng, shape, DTYPES[dtype]), layout)
        arguments = make(rng, OPTIONS[options], shape, DTYPES[dtype], layout)
        if arguments.get("activation") == "relu":
            z = reference.group_norm(x, groups, **(arguments | {"activation": None}))[0]
            dy[np.abs(z) < 1e-5] = 0
        want, mean, rstd = reference.group_norm(x, groups, **arguments)
        given = sent(arguments)
        with kernels_for(split):
            y, got_mean, got_rstd = numbagn.group_norm_forward(send(x), groups, **given)
            got = numbagn.group_norm_backward(send(dy), send(x), got_mean, got_rstd, groups, **given)
        y = receive(y)
        assert y.dtype == x.dtype
        assert y.strides == np.empty_like(x).strides
        close(y, want, TOLERANCE[dtype])
        close(receive(got_mean), mean, 1e-6)
        close(receive(got_rstd) / rstd, 1.0 + 0 * rstd, 1e-6)
        wanted = reference.group_norm_backward(dy, x, groups, **arguments)
        check([*map(receive, got)], wanted, 2 * GRADIENTS[dtype], 1e-11 if dtype == "float64" else 1e-5, rstd)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("offset", [0.0, 1e4, 1e6])
def test_offsets(rng, layout, offset):
    for shape, groups, split in FEW:
        x = in_layout(normal(rng, shape, np.float32, offset), layout)
        with kernels_for(split):
            close(receive(numbagn.group_norm(send(x), groups)), reference.group_norm(x, groups)[0], 3e-6)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(("dtype", "scale"), [("float32", 1e37), ("float32", 1e-40), ("float64", 1e140)])
def test_magnitudes(rng, layout, dtype, scale):
    for shape, groups, split in FEW:
        x = in_layout((rng.standard_normal(shape) * scale).astype(dtype), layout)
        want = reference.group_norm(x.astype(np.longdouble) / scale, groups, eps=0.0)[0]
        with kernels_for(split):
            close(receive(numbagn.group_norm(send(x), groups, eps=0.0)), want, 4e-6)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_no_silent_zeros_where_a_variance_overflows(rng, layout):
    for shape, groups, split in FEW:
        x = in_layout(rng.standard_normal(shape) * 1e300, layout)
        with kernels_for(split):
            y = receive(numbagn.group_norm(send(x), groups))
        assert np.isnan(y).all() or np.abs(y).max() > 1.0


@pytest.mark.parametrize("layout", LAYOUTS)
def test_constant_groups_are_the_bias(layout):
    for shape, groups, split in FEW:
        bias = np.arange(shape[1], dtype=np.float32)
        for value, eps in ((7.25e9, 1e-5), (7.25e9, 0.0), (1e20, 1e-300)):
            x = in_layout(np.full(shape, value, np.float32), layout)
            with kernels_for(split):
                y = receive(numbagn.group_norm(send(x), groups, None, send(bias), eps))
            assert np.array_equal(y, np.broadcast_to(bias.reshape((-1,) + (1,) * (len(shape) - 2)), shape))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_nan_stays_in_its_group(rng, layout, bad):
    for shape, groups, split in FEW:
        x = in_layout(normal(rng, shape, np.float32), layout)
        x[0, 0, 0, 0] = bad
        with kernels_for(split):
            y = receive(numbagn.group_norm(send(x), groups))
        D = shape[1] // groups
        assert np.isnan(y[0, :D]).all()
        assert np.isfinite(y[0, D:]).all()
        assert np.isfinite(y[1:]).all()


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(
    ("shape", "groups", "lengths"),
    [((3, 6, 9), 3, [9, 4, 0]), ((2, 4, 3, 2), 2, [3, 2]), ((2, 16, 5), 4, [1, 5])] if SIMULATED else
    [((3, 6, 40), 3, [40, 17, 0]), ((2, 4, 9000), 2, [701, 16]), ((2, 4, 6, 5), 2, [6, 2]), ((2, 64, 30), 4, [1, 30])],
)  # fmt: skip
def test_lengths(rng, layout, shape, groups, lengths):
    x, dy = (in_layout(normal(rng, shape, np.float32, 3.0), layout) for _ in range(2))
    options = {"weight": normal(rng, shape[1], np.float32), "activation": "silu"}
    for n, length in enumerate(lengths):
        x[n, :, length:] = np.nan
        dy[n, :, length:] = np.nan
    ways = [(lengths, False), (np.array(lengths, np.int32), True), (send(np.array(lengths, np.int64)), False)]
    for given, split in ways:
        with kernels_for(split):
            y, mean, rstd = numbagn.group_norm_forward(send(x), groups, lengths=given, **sent(options))
            got = numbagn.group_norm_backward(send(dy), send(x), mean, rstd, groups, lengths=given, **sent(options))
        y, mean, rstd, dx, dweight, dbias = map(receive, (y, mean, rstd, *got))
        want_dweight, want_dbias = 0.0, 0.0
        for n, length in enumerate(lengths):
            part = np.s_[n : n + 1, :, :length]
            assert not y[n, :, length:].any()
            assert not dx[n, :, length:].any()
            if length == 0:
                assert not mean[n].any()
                continue
            close(y[part], reference.group_norm(x[part], groups, **options)[0], 3e-6)
            one_dx, one_dweight, one_dbias, _ = reference.group_norm_backward(dy[part], x[part], groups, **options)
            close(dx[part], one_dx, 2e-5)
            want_dweight, want_dbias = want_dweight + one_dweight, want_dbias + one_dbias
        close(dweight, want_dweight, 1e-4)
        close(dbias, want_dbias, 1e-4)


def test_lengths_on_the_device_are_bounded(rng):
    x = normal(rng, (2, 4, 6), np.float32)
    y = receive(numbagn.group_norm(send(x), 2, lengths=send(np.array([1 << 40, -3]))))
    close(y[:1], reference.group_norm(x[:1], 2)[0], 3e-6)
    assert not y[1].any()


@pytest.mark.parametrize("layout", LAYOUTS)
def test_out_and_in_place(rng, layout):
    for shape, groups, split in FEW:
        x = in_layout(normal(rng, shape, np.float32), layout)
        with kernels_for(split):
            want = receive(numbagn.group_norm(send(x), groups))
            out = send(np.empty_like(x))
            assert numbagn.group_norm(send(x), groups, out=out) is out
            own = send(x)
            assert numbagn.group_norm(own, groups, out=own) is own
            other = send(np.empty(shape[::-1], np.float32).transpose())  # of another memory order
            numbagn.group_norm(send(x), groups, out=other)
            unaligned = cuda.device_array(x.size + 1, x.dtype)[1:].reshape(shape)
            numbagn.group_norm(send(x), groups, out=unaligned)
        for result in (out, own, other, unaligned):
            assert np.array_equal(receive(result), want)


def test_a_layer_s_forward_pass_does_not_overwrite_what_backward_needs(rng):
    x = send(normal(rng, (2, 4, 6), np.float32))
    layer = numbagn.GroupNorm(2, 4)
    with pytest.raises(ValueError, match="out must not share memory with x"):
        layer.forward(x, out=x)
    out = send(np.empty((2, 4, 6), np.float32))
    assert layer.forward(x, out=out)[0] is out


def test_the_same_bits_alone_in_a_batch_and_again(rng):
    for (shape, groups, split), layout in itertools.product(FEW, LAYOUTS):
        x = in_layout(normal(rng, (3, *shape[1:]), np.float32), layout)
        with kernels_for(split):
            batch, again = (receive(numbagn.group_norm(send(x), groups)) for _ in range(2))
            alone = receive(numbagn.group_norm(send(x[1:2]), groups))
        assert same_bits(batch, again)
        assert same_bits(np.ascontiguousarray(batch[1:2]), np.ascontiguousarray(alone))


def test_a_repeated_call_is_replayed_on_its_own_arrays(rng, monkeypatch):
    shape = (2, 4, 2, 4)
    x, dy, more = (normal(rng, shape, np.float32) for _ in range(3))
    weights = [normal(rng, 4, np.float32) for _ in range(3)]
    monkeypatch.setattr(plans, "_plans", plans.Kept())
    for turn, w in enumerate(weights):
        given = w if turn == 2 else send(w)  # a layer's parameters are the host's
        options = {"weight": given, "skip": send(more), "residual": send(dy), "activation": "silu"}
        device, out = send(x), send(np.empty_like(x)) if turn else None
        y, mean, rstd = numbagn.group_norm_forward(device, 2, out=out, **options)
        assert out is None or y is out
        got = numbagn.group_norm_backward(send(dy), device, mean, rstd, 2, **options)
        arguments = {"weight": w, "skip": more, "residual": dy, "activation": "silu"}
        want, _, wanted_rstd = reference.group_norm(x, 2, **arguments)
        close(receive(y), want, 3e-6)
        wanted = reference.group_norm_backward(dy, x, 2, **arguments)
        check([*map(receive, got)], wanted, 1e-5, 1e-5, wanted_rstd)
        x = x + 1  # other memory, other values
    assert len(plans._plans) == 3  # forward fresh and out=, backward
    y, mean, _ = numbagn.group_norm_forward(send(x), 2)
    _, again_mean, _ = numbagn.group_norm_forward(send(x + 5), 2)
    assert np.abs(receive(again_mean) - receive(mean) - 5).max() < 1e-5  # the first results are not overwritten
    with pytest.raises(TypeError, match="num_groups must be an integer"):
        numbagn.group_norm(send(x), 2.0)


@pytest.mark.skipif(not SIMULATED, reason="NumPy's views stand for those of a library that has such")
@pytest.mark.parametrize("view", ["gaps", "steps", "samples_apart", "fortran"])
def test_odd_strides(rng, view):
    whole = normal(rng, (4, 4, 3, 6), np.float32)
    cut = {
        "gaps": np.s_[:, :2, 1:3, :],
        "steps": np.s_[:, ::2, :, ::3],
        "samples_apart": np.s_[::2],
        "fortran": np.s_[:],
    }
    x = whole[cut[view]] if view != "fortran" else np.asfortranarray(whole)
    device = type(cuda.to_device(whole))(x)  # the simulator's arrays wrap any of NumPy's
    close(receive(numbagn.group_norm(device, 2)), reference.group_norm(x, 2)[0], 3e-6)


@pytest.mark.parametrize(
    "shape", [(5, 12), (3, 2, 67), (9,)] if SIMULATED else [(5, 12), (3, 2, 67), (2, 3, 1030), (3, 37), (9,), (2, 512)]
)
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_layer_norm_and_its_backward(rng, shape, dtype):
    x, dy = (normal(rng, shape, DTYPES[dtype]) for _ in range(2))
    layer = numbagn.LayerNorm(shape[-1], activation="silu")
    layer.weight, layer.bias = normal(rng, shape[-1], np.float32), normal(rng, shape[-1], np.float32)
    want, saved = layer.forward(x)
    got, kept = layer.forward(send(x))
    close(receive(got), want.astype(np.float64), TOLERANCE[dtype])
    assert receive(kept.mean).shape == saved.mean.shape
    for mine, theirs in zip(layer.backward(send(dy), kept), layer.backward(dy, saved), strict=True):
        close(receive(mine), theirs.astype(np.float64), 4 * GRADIENTS[dtype] + 1e-5)


def test_memory_that_no_kernel_could_read_rightly_is_refused(rng):
    x = send(normal(rng, (2, 4, 6), np.float32))
    with pytest.raises(ValueError, match="lengths must be contiguous"):
        numbagn.group_norm(x, 2, lengths=cuda.to_device(np.array([3, 9, 6, 9]))[::2])
    if SIMULATED:
        return
    owner = cuda.to_device(np.zeros(64, np.float32))
    for strides, typestr, kind in (
        ((96, 24, 6), "<f4", ValueError),
        (None, ">f4", TypeError),
    ):
        with pytest.raises(kind, match="x must be"):
            numbagn.group_norm(Exported(owner, (2, 4, 6), strides, typestr), 2)


def test_layers_take_device_arrays(rng):
    x = normal(rng, (1, 8, 2, 2), np.float32)
    for layer in (numbagn.GroupNorm(4, 8, activation="relu"), numbagn.InstanceNorm(8, affine=True)):
        layer.weight = normal(rng, 8, np.float32)
        assert not isinstance(layer(send(x)), np.ndarray)
        close(receive(layer(send(x))), layer(x).astype(np.float64), 3e-6)


def test_empty_arrays():
    for shape in ((0, 4, 3), (2, 4, 0)):
        y, mean, rstd = numbagn.group_norm_forward(send(np.empty(shape, np.float32)), 2)
        assert y.shape == shape
        assert mean.shape == rstd.shape == (shape[0], 2)
        assert not receive(mean).any()


@pytest.mark.parametrize(
    ("change", "kind", "says"),
    [
        ({"num_groups": 3}, ValueError, "num_groups must divide the 8 channels"),
        ({"weight": np.ones(7, np.float32)}, ValueError, "weight must have shape"),
        ({"weight": np.ones(8, np.int32)}, TypeError, "weight must have dtype"),
        ({"skip": np.ones((2, 8, 4), np.float32)}, TypeError, "skip must be a device array"),
        ({"mask": np.ones((2, 1, 4), bool)}, TypeError, "mask must be None"),
        ({"lengths": [1]}, ValueError, "lengths must have shape"),
        ({"out": np.ones((2, 8, 4), np.float32)}, TypeError, "out must be a device array"),
        ({"activation": "tanh"}, ValueError, "activation must be one of"),
        ({"eps": -1.0}, ValueError, "eps must be"),
        ({"x": np.ones((2, 8, 4), np.int32)}, TypeError, "x must have dtype"),
        ({"x": np.ones(8, np.float32)}, ValueError, "x must have at least 2 dimensions"),
    ],
)
def test_bad_input_gets_one_line(change, kind, says):
    arguments = {"x": np.ones((2, 8, 4), np.float32), "num_groups": 4} | change
    arguments["x"] = send(arguments["x"])
    with pytest.raises(kind, match=says) as caught:
        numbagn.group_norm(**arguments)
    assert "\n" not in str(caught.value)


def test_an_out_whose_elements_share_memory_is_refused():
    memory = send(np.full(64, 7, np.float32))
    x = send(np.ones((2, 8, 4), np.float32))
    if SIMULATED:
        out = cuda.to_device(np.zeros(1, np.float32))
        out._ary = np.lib.stride_tricks.as_strided(memory._ary, (2, 8, 4), (0, 16, 4))
    else:
        out = Exported(memory, (2, 8, 4), (0, 16, 4), "<f4")
    with pytest.raises(ValueError, match="out must have no elements that share memory"):
        numbagn.group_norm(x, 4, out=out)
    assert (receive(memory) == 7).all()


def test_what_the_device_has_no_kernels_for_says_so():
    x = send(np.ones((2, 8, 4), np.float32))
    with pytest.raises(TypeError, match="chunk must be in CPU memory for group_moments"):
        numbagn.group_moments(x, 2)
    with pytest.raises(TypeError, match="weight must lie in CPU memory"):
        numbagn.group_norm(np.ones((2, 8, 4), np.float32), 2, send(np.ones(8, np.float32)))


def test_arrays_of_another_device_are_refused(rng, monkeypatch):
    x, skip = (cuda.to_device(normal(rng, (2, 4, 6), np.float32)) for _ in range(2))
    monkeypatch.setattr(running, "device_of", lambda owner: int(owner is skip))
    monkeypatch.setattr(passes, "current", contextlib.nullcontext)
    with pytest.raises(ValueError, match="skip must lie on x's device 0, got device 1"):
        numbagn.group_norm(x, 2, skip=skip)
