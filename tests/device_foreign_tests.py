"""Arrays of other libraries on a GPU: who may write where, who waits for whom, what is kept. See `device_tests`."""

import numpy as np
import pytest
from cases import DTYPES, close, normal
from stand_in_device import Device, Foreign, NumbaArray

import numbagn
from numbagn import reference
from numbagn.arrays import device as device_arrays
from numbagn.calls.gpu import grids, plans

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")
SHAPE = (2, 4, 2, 4)


@pytest.fixture
def computing(monkeypatch):
    monkeypatch.setattr(grids, "THREADS", 32)
    return Device(monkeypatch)


@pytest.fixture
def device(monkeypatch):
    return Device(monkeypatch, computes=False)


def directions(device, x, out, kind=None, **given):
    """(name, a call of it with `out`, what it should write), forward and backward."""
    kind = kind or type(out)
    rng = np.random.default_rng(1)
    dy = normal(rng, x.shape, x.dtype)
    want, mean, rstd = reference.group_norm(x, 2)
    want_dx = reference.group_norm_backward(dy, x, 2)[0]
    d_x, d_dy, d_mean, d_rstd = (device.put(v, kind, **given) for v in (x, dy, mean, rstd))
    yield "forward", lambda: numbagn.group_norm(d_x, 2, out=out), want
    yield "backward", lambda: numbagn.group_norm_backward(d_dy, d_x, d_mean, d_rstd, 2, out=out)[0], want_dx


# ----------------------------------------------------------------------------------------------------------- who writes


@pytest.mark.parametrize("direction", [0, 1])
def test_a_read_only_out_is_refused_in_a_repeated_call_too(rng, computing, direction):
    x = normal(rng, SHAPE, np.float32)
    out = computing.put(np.zeros_like(x))
    _, call, want = list(directions(computing, x, out))[direction]
    for _ in range(2):
        assert call() is out
        close(out.host, want, 1e-5)
    out.host[...] = 5
    out.read_only = True
    for _ in range(2):
        with pytest.raises(ValueError, match="out must be writable, got a read-only array"):
            call()
    assert (out.host == 5).all()
    out.read_only = False
    call()
    close(out.host, want, 1e-5)


def test_out_whose_elements_share_memory_is_refused(rng, device):
    x = normal(rng, SHAPE, np.float32)
    root = np.full(64, 5, np.float32)
    device.roots.append(root)
    for strides in ((32, 0, 16, 4), (0, 32, 16, 4), (32, 16, 4, 4), (128, 32, 12, 4)):
        out = Foreign(np.lib.stride_tricks.as_strided(root, SHAPE, strides))
        for _, call, _ in directions(device, x, out):
            for _ in range(2):
                with pytest.raises(ValueError, match="out must have no elements that share memory"):
                    call()
    assert (root == 5).all()
    assert not device.log
    for view in (root.reshape(2, 2, 4, 4).transpose(0, 2, 1, 3), root.reshape(2, 4, 2, 4)[:, ::-1]):
        for _, call, _ in directions(device, x, Foreign(view)):
            call()


def test_an_argument_that_changed_between_calls_is_asked_again(rng, computing):
    x = normal(rng, SHAPE, np.float32)
    want = reference.group_norm(x, 2)[0]

    def call(x, out=None):
        return numbagn.group_norm(computing.put(x) if isinstance(x, np.ndarray) else x, 2, out=out)

    out = computing.put(np.zeros_like(x))
    call(x, out)
    for other, kind, says in (
        (computing.put(np.zeros(SHAPE)), TypeError, "out must have x's dtype float32"),
        (computing.put(np.zeros((*SHAPE[:3], 5), np.float32)), ValueError, "out must have x's shape"),
        (np.zeros_like(x), TypeError, "out must be a device array as x is"),
    ):
        with pytest.raises(kind, match=says):
            call(x, other)
    close(call(x, computing.put(np.zeros(SHAPE[::-1], np.float32).T)).host, want, 3e-6)  # of other strides
    unaligned = np.zeros(x.size + 1, np.float32)
    computing.roots.append(unaligned)
    close(call(x, Foreign(unaligned[1:].reshape(SHAPE))).host, want, 3e-6)
    both = computing.put(x)
    assert call(both, both) is both
    close(both.host, want, 3e-6)
    for split in (np.s_[1:], np.s_[:-1]):  # overlaps x in part
        root = np.concatenate([x, x[:1]])
        computing.roots.append(flat := root.reshape(-1))
        whole = flat.reshape(root.shape)
        given = Foreign(whole[:2] if split.start else whole[1:])
        wanted = reference.group_norm(given.host, 2)[0]
        close(call(given, Foreign(whole[split])).host, wanted, 3e-6)


@pytest.mark.parametrize("way", ["in place", "another layout", "host lengths", "device lengths"])
def test_a_plan_is_kept_whatever_a_call_needs(rng, computing, way):
    for lengths in ([4, 2], [1, 4], [0, 3]):
        x = normal(rng, (2, 4, 4), np.float32)
        want, options = reference.group_norm(x, 2)[0], {}
        given = computing.put(x)
        if way == "in place":
            options["out"] = given
        elif way == "another layout":
            options["out"] = computing.put(np.zeros((4, 4, 2), np.float32).T)
        else:
            options["lengths"] = lengths if way == "host lengths" else computing.put(np.array(lengths))
            for n, length in enumerate(lengths):
                want[n] = 0
                if length:
                    want[n : n + 1, :, :length] = reference.group_norm(x[n : n + 1, :, :length], 2)[0]
        close(numbagn.group_norm(given, 2, **options).host, want, 3e-6)
        assert len(plans._plans) == 1
    if way == "host lengths":  # are checked in each call
        for _ in range(2):
            with pytest.raises(ValueError, match="lengths must be from 0 to 4"):
                numbagn.group_norm(given, 2, lengths=[5, 1])
    for _ in range(2):
        numbagn.group_norm(given, np.int64(2), eps=np.float64(1e-3))
    assert len(plans._plans) == 2


# -------------------------------------------------------------------------------------------------------------- tensors


@pytest.mark.parametrize("direction", [0, 1])
@pytest.mark.parametrize("leader", ["torch", "foreign"])
def test_autograd_is_told_once_of_each_call_that_wrote_to_a_tensor(rng, device, direction, leader):
    x = normal(rng, SHAPE, np.float32)
    out = device.put(np.zeros_like(x), device.torch.Tensor)
    kind = device.torch.Tensor if leader == "torch" else Foreign
    _, call, _ = list(directions(device, x, out, kind))[direction]
    for turn in range(1, 4):  # the first call and repeated ones
        assert call() is out
        assert len(device.versions) == turn
        assert all(told is out for told in device.versions)
    for attribute, value, kind, says in (
        ("read_only", True, ValueError, "out must be writable"),
        ("requires_grad", True, TypeError, "out must not require gradients"),
        ("negative", True, TypeError, "out must lie in memory as it is"),
        ("is_cuda", False, TypeError, "out must be a device array as x is, got a tensor on"),
    ):
        device.log.clear()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(out, attribute, value, raising=False)
            if attribute == "is_cuda" and leader == "torch":
                patch.setattr(out, "device", "cpu")
            with pytest.raises(kind, match=says):
                call()
        assert not device.log
    assert len(device.versions) == 3
    out.inference = True  # has no gradients to spoil
    call()
    assert len(device.versions) == 3


def test_new_results_and_inputs_are_not_told(rng, device):
    x = device.put(normal(rng, SHAPE, np.float32), device.torch.Tensor)
    for _ in range(2):
        y = numbagn.group_norm(x, 2)
        assert type(y) is device.torch.Tensor
    assert not device.versions


NAMES = ("x", "weight", "bias", "skip", "residual", "out")


@pytest.mark.parametrize("name", NAMES)
def test_tensors_that_require_gradients_are_refused_as_on_the_cpu(rng, device, name):
    x = normal(rng, SHAPE, np.float32)
    values = {n: normal(rng, 4, np.float32) if n in ("weight", "bias") else x + 1 for n in NAMES} | {"x": x}
    arguments = {n: device.put(v, device.torch.Tensor) for n, v in values.items()}
    numbagn.group_norm(num_groups=2, **arguments)
    for kind in ("Tensor", "Parameter"):
        changed = getattr(device.torch, kind if kind == "Tensor" else "nn")
        tensor = device.put(values[name], changed if kind == "Tensor" else changed.Parameter)
        tensor.requires_grad = True
        given = arguments | {name: tensor}
        device.log.clear()
        device.torch.grad_mode = True
        for _ in range(2):
            with pytest.raises(TypeError, match=f"{name} must not require gradients"):
                numbagn.group_norm(num_groups=2, **given)
        assert not device.log
        device.torch.grad_mode = False
        assert numbagn.group_norm(num_groups=2, **given) is given["out"]
        assert device.versions[-1] is given["out"]


def test_tensors_with_a_meaning_are_refused(rng, device):
    class Masked(device.torch.Tensor):
        pass

    x = normal(rng, SHAPE, np.float32)
    given, other = device.put(x, device.torch.Tensor), device.put(x, Masked)
    for name in ("skip", "out"):
        with pytest.raises(TypeError, match=f"{name} must be .*Masked; use its .as_subclass"):
            numbagn.group_norm(given, 2, **{name: other})
    assert np.array_equal(other.host, x)


@pytest.mark.parametrize("dtype", DTYPES)
def test_tensors_of_every_dtype_come_back_as_such(rng, computing, dtype):
    x = normal(rng, SHAPE, DTYPES[dtype])
    y, mean, rstd = numbagn.group_norm_forward(computing.put(x, computing.torch.Tensor), 2)
    assert {type(v) for v in (y, mean, rstd)} == {computing.torch.Tensor}
    close(y.host, reference.group_norm(x, 2)[0], 2e-2 if x.itemsize == 2 else 3e-6)


# -------------------------------------------------------------------------------------------------------------- streams


def forward(device, x, **options):
    """The order of launches and events of a call, twice: the first and a repeated one are of the same."""
    numbagn.group_norm(x, 2, **options)
    first = device.order()
    numbagn.group_norm(x, 2, **options)
    assert device.order() == first
    return first


@pytest.mark.parametrize("stream", [None, 1, 2, 11])
def test_where_all_is_of_one_stream_nothing_waits(rng, device, stream):
    x = device.put(normal(rng, SHAPE, np.float32), stream=stream)
    w = device.put(normal(rng, 4, np.float32), stream=stream)
    handle = {None: 0, 1: 0}.get(stream, stream)
    assert forward(device, x, weight=w, bias=np.ones(4, np.float32), skip=x, out=x) == [handle]
    assert forward(device, x, weight=w, skip=device.put(x.host)) == [handle]  # of a stream that nobody need wait for


def test_kernels_wait_for_the_streams_of_all_arguments_and_those_for_the_kernels(rng, device):
    x = normal(rng, SHAPE, np.float32)
    for own, handle in ((3, 3), (None, 0), (1, 0), (2, 2)):
        given = device.put(x, stream=own)
        assert forward(device, given, skip=device.put(x, stream=4)) == [(handle, 4), handle, (4, handle)]
        w, b = (device.put(x[0, :, 0, 0], stream=stream) for stream in (5, 6))
        want = [(handle, 5), (handle, 6), handle, (5, handle), (6, handle)]
        assert forward(device, given, weight=w, bias=b) == want
        out = device.put(x, stream=8)
        want = [(handle, 5), (handle, 8), handle, (5, handle), (8, handle)]
        assert forward(device, given, weight=w, residual=device.put(x, stream=5), out=out) == want
    given = device.put(x, stream=3)
    assert forward(device, given, skip=device.put(x, stream=1)) == [(3, 0), 3, (0, 3)]
    assert forward(device, given, skip=device.put(x, stream=2)) == [(3, 2), 3, (2, 3)]
    lengths = device.put(np.array([2, 1]), stream=9)
    assert forward(device, given, lengths=lengths) == [(3, 9), 3, (9, 3)]


def test_backward_waits_too(rng, device):
    x = normal(rng, SHAPE, np.float32)
    _, mean, rstd = reference.group_norm(x, 2)
    given = [device.put(v, stream=n) for n, v in enumerate((x, x, mean, rstd), 3)]  # dy, x, mean, rstd
    for _ in range(2):
        numbagn.group_norm_backward(*given, 2)
        assert device.order() == [(4, 3), (4, 5), (4, 6), 4, (3, 4), (5, 4), (6, 4)]


def test_who_reads_an_out_without_a_stream_waits_on_the_default_one(rng, device):
    x = normal(rng, SHAPE, np.float32)
    given, out = device.put(x, stream=3), device.put(x)
    assert forward(device, given, out=out)[-2:] == [3, (0, 3)]


def test_a_copy_of_an_argument_laid_out_otherwise_waits_too(rng, device):
    x = normal(rng, SHAPE, np.float32)
    given = device.put(x, stream=3)
    skip = device.put(np.ascontiguousarray(x.T).T, stream=4)
    assert forward(device, given, skip=skip) == [(3, 4), 3, (4, 3)]
    out = device.put(np.ascontiguousarray(x.T).T, stream=4)
    assert forward(device, given, out=out) == [(3, 4), 3, (4, 3)]


def test_a_refused_call_leaves_no_stream_behind_what_it_launched(rng, device):
    x = normal(rng, SHAPE, np.float32)
    skip, bad = device.put(np.ascontiguousarray(x.T).T, stream=4), device.put(x[:1], stream=5)
    with pytest.raises(ValueError, match="out must have x's shape"):
        numbagn.group_norm(device.put(x, stream=3), 2, skip=skip, out=bad)
    order = device.order()
    launched = [what for what in order if not isinstance(what, tuple)]
    assert not launched or order[-1] == (5, 3)


def test_nothing_is_launched_before_all_is_checked(rng, device):
    x = normal(rng, SHAPE, np.float32)
    other = device.put(np.ascontiguousarray(x.T).T, stream=4)  # is copied
    for bad in ({"out": device.put(x[:1])}, {"lengths": [9, 1]}, {"bias": np.ones(3, np.float32)}):
        for _ in range(2):
            with pytest.raises(ValueError, match=" must "):
                numbagn.group_norm(other, 2, skip=other, **bad)
    assert not device.log


def test_tensors_are_worked_on_in_torch_s_current_stream(rng, device):
    x = normal(rng, SHAPE, np.float32)
    tensor, other = (device.put(x, device.torch.Tensor) for _ in range(2))
    assert forward(device, tensor, skip=other, out=device.put(x, device.torch.Tensor)) == [7]
    device.torch_stream = 8
    assert forward(device, tensor, skip=other) == [8]
    assert forward(device, device.put(x, stream=3), skip=other, residual=tensor) == [(3, 8), 3, (8, 3)]
    assert forward(device, tensor, skip=device.put(x, stream=3)) == [(8, 3), 8, (3, 8)]


@pytest.mark.parametrize("stream", [None, 2, 3])
def test_results_tell_the_stream_that_they_are_made_on(rng, device, stream):
    x = normal(rng, SHAPE, np.float32)
    given = device.put(x, stream=stream)
    results = numbagn.group_norm_forward(given, 2)
    more = numbagn.group_norm_backward(given, given, *results[1:], 2, residual=given)
    row = numbagn.LayerNorm(8).forward(device.put(x.reshape(-1)[:8], stream=stream))
    statistics = (row[1].mean, row[1].rstd)
    assert [v.shape for v in statistics] == [(), ()]
    for result in (*results, *more, row[0], *statistics):
        assert type(result) is NumbaArray
        assert result.__cuda_array_interface__["stream"] == stream
    assert all(not isinstance(what, tuple) for what in device.order())


# ------------------------------------------------------------------------------------------------ the host's parameters


def test_parameters_that_change_in_place_are_seen(rng, computing):
    x, weight = normal(rng, SHAPE, np.float32), np.ones(4, np.float32)
    given = computing.put(x)
    large = np.ones(device_arrays.LARGEST_UPLOADED // 4 + 1, np.float32)
    for factor in (1, 2, 3, 1):
        weight[:] = large[:] = factor
        close(numbagn.group_norm(given, 2, weight).host, reference.group_norm(x, 2, weight)[0], 1e-5)
        assert np.array_equal(device_arrays.uploaded("weight", large, 0).owner.host, large)


def test_small_parameters_are_copied_once_and_few_bytes_are_kept(rng, device):
    x = device.put(normal(rng, SHAPE, np.float32))
    weight, bias = np.ones(4, np.float32), np.zeros(4, np.float32)
    for _ in range(3):
        numbagn.group_norm(x, 2, weight, bias)
    assert len(device.copies) == 2
    for _ in range(2 * device_arrays.MOST_UPLOADED):  # of training
        weight += 1
        device_arrays.uploaded("weight", weight, 0)
    kept = device_arrays._kept.cache_info()
    assert kept.currsize == device_arrays.MOST_UPLOADED
    assert device_arrays.MOST_UPLOADED * device_arrays.LARGEST_UPLOADED <= 16 << 20
    count = len(device.copies)
    device_arrays.uploaded("weight", weight, 0)
    assert len(device.copies) == count  # the newest are kept


def test_large_parameters_are_neither_kept_nor_read_after_the_call(device):
    large = np.ones(device_arrays.LARGEST_UPLOADED // 4 + 1, np.float32)
    for _ in range(3):
        device_arrays.uploaded("weight", large, 0)
    assert len(device.copies) == 3
    assert not device_arrays._kept.cache_info().currsize
    assert not any(np.may_share_memory(large, copy) for copy in device.copies)


def test_copies_are_made_on_the_kernels_stream(rng, device):
    x = normal(rng, SHAPE, np.float32)
    weight = np.ones(4, np.float32)
    for stream in (3, 4, 3):
        assert forward(device, device.put(x, stream=stream), weight=weight) == [stream]
    assert len(device.copies) == 2
