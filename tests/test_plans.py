"""A repeated call skips the checks: it gives what the first gave, and refuses what the first would have refused."""

import ctypes
import threading

import numpy as np
import pytest
from cases import DTYPES, LAYOUTS, in_layout, normal, same_bits

import numbagn
from numbagn.calls import operands, passes, plans
from numbagn.shapes import schedule
from numbagn.shapes.geometry import FIELDS


def calls(x, dy, groups, weight, bias, activation, **out):
    """All results of a forward and a backward call."""
    y, mean, rstd = numbagn.group_norm_forward(x, groups, weight, bias, activation=activation)
    alone = numbagn.group_norm(x, groups, weight, bias, activation=activation, **out)
    dx, dweight, dbias = numbagn.group_norm_backward(dy, x, mean, rstd, groups, weight, bias, activation=activation)
    return y, mean, rstd, alone.copy("K"), dx, dweight, dbias


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_repeated_calls_give_the_same_bits_in_new_arrays(rng, one_thread, dtype, layout):
    wide = np.float64 if dtype == "float64" else np.float32
    half = normal(rng, 6, np.float16)  # a parameter that is converted at each call
    for weight, bias in ((None, None), (normal(rng, 6, wide), normal(rng, (3, 6), wide)), (half, None)):
        x, dy = (in_layout(normal(rng, (3, 6, 5, 7), DTYPES[dtype]), layout) for _ in range(2))
        passes.forget_plans()
        first = calls(x, dy, 2, weight, bias, "silu")
        assert len(plans._plans) == 2
        second = calls(x, dy, 2, weight, bias, "silu")
        assert len(plans._plans) == 2
        assert all(map(same_bits, first, second))
        assert first[0].strides == second[0].strides
        assert not any(np.may_share_memory(a, b) for a in first for b in second)
        other = in_layout(normal(rng, x.shape, DTYPES[dtype]), layout)  # another array of the same kind
        fresh = calls(other, dy, 2, weight, bias, "silu")
        passes.forget_plans()
        assert all(map(same_bits, fresh, calls(other, dy, 2, weight, bias, "silu")))


def test_repeated_calls_into_out_and_in_place(rng, one_thread):
    x, dy = normal(rng, (2, 6, 5, 7), np.float32), normal(rng, (2, 6, 5, 7), np.float32)
    want, mean, rstd = numbagn.group_norm_forward(x, 3)
    gradient = numbagn.group_norm_backward(dy, x, mean, rstd, 3)[0]
    for _ in range(3):
        out = np.full_like(x, np.nan)
        assert numbagn.group_norm(x, 3, out=out) is out
        assert same_bits(out, want)
        place = x.copy()
        assert numbagn.group_norm(place, 3, out=place) is place
        assert same_bits(place, want)
        for target in ("x", "dy", "out"):
            arrays = {"x": x.copy(), "dy": dy.copy(), "out": np.empty_like(x)}
            got = numbagn.group_norm_backward(arrays["dy"], arrays["x"], mean, rstd, 3, out=arrays[target])
            assert got[0] is arrays[target]
            assert same_bits(got[0], gradient)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_repeated_calls_into_out_of_any_order_and_strides(rng, one_thread, layout):
    x = in_layout(normal(rng, (2, 6, 5, 7), np.float32), layout)
    want = numbagn.group_norm(x, 3)
    for order in ("K", "C", "F", "gaps"):
        passes.forget_plans()
        for _ in range(3):
            out = np.repeat(x, 2, axis=-1)[..., ::2] if order == "gaps" else np.empty_like(x, order=order)
            numbagn.group_norm(x, 3, out=out)
            assert same_bits(np.ascontiguousarray(out), np.ascontiguousarray(want))
        assert len(plans._plans) == (out.strides == x.strides)


def test_a_plan_lets_nothing_through_that_the_checks_refuse(rng, one_thread):
    x, w = normal(rng, (2, 4, 5), np.float32), np.ones(4, np.float32)
    y, mean, rstd = numbagn.group_norm_forward(x, 1, w, w)
    numbagn.group_norm(x, 1, w, w, out=np.empty_like(x))
    numbagn.group_norm_backward(y, x, mean, rstd, 1, w, w)
    read_only = np.zeros_like(x)
    read_only.flags.writeable = False
    for error, arguments in (
        (TypeError, {"num_groups": True}),
        (TypeError, {"num_groups": 1.0}),
        (ValueError, {"num_groups": 3}),
        (TypeError, {"channel_axis": True}),
        (ValueError, {"channel_axis": 0}),
        (TypeError, {"eps": True}),
        (ValueError, {"eps": float("nan")}),
        (TypeError, {"activation": ["relu"]}),
        (ValueError, {"activation": "swish"}),
        (ValueError, {"weight": np.ones(5, np.float32)}),
        (ValueError, {"weight": np.ones((4, 1), np.float32)}),
        (TypeError, {"bias": [1.0] * 4}),
        (TypeError, {"weight": np.ma.array(w)}),
        (TypeError, {"x": np.ma.array(x)}),
        (TypeError, {"x": x.astype(np.int32)}),
        (ValueError, {"out": read_only}),
        (ValueError, {"out": np.zeros((2, 4, 6), np.float32)}),
        (TypeError, {"out": np.zeros((2, 4, 5))}),
        (TypeError, {"out": np.zeros((2, 4, 5), ">f8")}),
        (ValueError, {"out": np.lib.stride_tricks.as_strided(np.zeros(20, np.float32), (2, 4, 5), (0, 20, 4))}),
    ):
        with pytest.raises(error):
            numbagn.group_norm(**({"x": x, "num_groups": 1, "weight": w, "bias": w} | arguments))
    assert not read_only.any()
    for error, position, value in (
        (ValueError, 0, y[:1]),
        (TypeError, 0, y.astype(np.int32)),
        (ValueError, 2, mean[:1]),
        (ValueError, 3, rstd[:, :0]),
    ):
        arguments = [y, x, mean, rstd, 1, w, w]
        arguments[position] = value
        with pytest.raises(error):
            numbagn.group_norm_backward(*arguments)


def test_overlap_is_seen_at_every_call(rng, one_thread):
    buffer = normal(rng, 100, np.float32)
    w = buffer[90:94]
    for start in (0, 20, 30, 54):  # where out lies clear of x, behind it, and upon the weight
        for _ in range(2):
            buffer[:] = np.arange(100) % 7
            x, out = buffer[8:48].reshape(2, 4, 5), buffer[start : start + 40].reshape(2, 4, 5)
            want = numbagn.group_norm(x.copy(), 2, w.copy())
            assert same_bits(numbagn.group_norm(x, 2, w, out=out).copy(), want), start


def wrapped(memory, shape):
    """An array over the memory of another, without a base: as extension types make them."""
    pointer = ctypes.pythonapi.PyCapsule_GetPointer
    pointer.restype, pointer.argtypes = ctypes.c_void_p, (ctypes.py_object, ctypes.c_char_p)
    table = ctypes.cast(pointer(np._core._multiarray_umath._ARRAY_API, None), ctypes.POINTER(ctypes.c_void_p))
    kinds = ctypes.py_object, ctypes.c_int, ctypes.c_void_p, ctypes.c_int, *[ctypes.c_void_p] * 2, *[ctypes.c_int] * 2
    PyArray_New = ctypes.PYFUNCTYPE(ctypes.py_object, *kinds, ctypes.c_void_p)(table[93])
    sizes = (ctypes.c_ssize_t * len(shape))(*shape)
    behaved_in_c_order = 0x0501
    array = PyArray_New(
        np.ndarray, len(shape), sizes, memory.dtype.num, None, memory.ctypes.data, 0, behaved_in_c_order, None
    )
    assert array.base is None
    assert np.may_share_memory(array, memory)
    return array


@pytest.mark.parametrize("function", ["group_norm", "group_norm_backward"])
def test_overlap_of_arrays_without_a_base_is_seen_at_every_call(rng, one_thread, function):
    shape = (2, 4, 5)
    values, dy = normal(rng, shape, np.float32), normal(rng, shape, np.float32)
    want, mean, rstd = numbagn.group_norm_forward(values, 2)
    if function == "group_norm":
        call = lambda x, out: numbagn.group_norm(x, 2, out=out)  # noqa: E731
    else:
        call = lambda x, out: numbagn.group_norm_backward(dy, x, mean, rstd, 2, out=out)[0]  # noqa: E731
        want = call(values, None)
    memory = np.zeros(99, np.float32)
    for start in (3, 0, 21):
        call(values.copy(), np.empty_like(values))  # a call whose arrays lie apart is remembered
        x, out = wrapped(memory, shape), wrapped(memory[start:], shape)
        x[...] = values
        assert same_bits(call(x, out).copy(), want)


def test_eps_and_parameters_of_other_kinds_have_plans_of_their_own(rng, one_thread):
    x = normal(rng, (2, 4, 5), np.float32)
    ones = np.ones(4)
    for eps in (1e-5, 1.0, 1e-5):
        want = numbagn.reference.group_norm(x, 2, eps=eps)[0]
        assert np.abs(numbagn.group_norm(x, 2, eps=eps) - want).max() < 2e-6
    for weight in (None, ones, ones.astype(np.float32), np.ones((2, 4), np.float32), 2 * np.ones(8, np.float32)[::2]):
        for _ in range(2):
            want = numbagn.reference.group_norm(x, 2, weight)[0]
            assert np.abs(numbagn.group_norm(x, 2, weight) - want).max() < 3e-6


def test_plans_are_bounded(one_thread, monkeypatch):
    monkeypatch.setattr(plans, "MOST_PLANS", 8)
    passes.forget_plans()
    for n in range(1, 40):
        numbagn.group_norm(np.ones((n, 2, 3), np.float32), 1)
        assert len(plans._plans) <= 8


def test_threads_share_plans(rng, one_thread):
    arrays = [normal(rng, (1 + n % 3, 8, 6), np.float32) for n in range(6)]
    wants = [numbagn.group_norm(x, 4) for x in arrays]
    passes.forget_plans()
    wrong = []

    def work(seed):
        drawn = np.random.default_rng(seed).integers(0, 6, 300)
        wrong.extend(i for i in drawn if not same_bits(numbagn.group_norm(arrays[i], 4), wants[i]))

    workers = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert not wrong


def test_forgetting_plans_forgets_all_schedules(rng, monkeypatch):
    x = normal(rng, (3, 4, 200), np.float32)

    def parts():
        numbagn.group_norm(x, 2)
        (plan,) = plans._plans.values()
        shares = operands.shares("forward", 0, (3, 4, 2, 200), 4, True)
        return [shares["PARTS"], int(plan.way.dims[0, FIELDS.index("PARTS")])]

    passes.forget_plans()
    assert parts() == [1, 1]
    monkeypatch.setattr(schedule, "PART_ELEMENTS", 100)
    passes.forget_plans()
    assert parts() == [4, 4]
    monkeypatch.undo()
    passes.forget_plans()
