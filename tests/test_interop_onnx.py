"""ONNX models on our kernels: by values against the definition, ONNX's own evaluator and ONNX Runtime."""

import contextlib

import numpy as np
import pytest
from cases import DTYPES, close, normal

from numbagn import reference

pytest.importorskip("onnx", reason="onnx is not installed")
from onnx import TensorProto, checker, helper
from onnx.reference import ReferenceEvaluator

from numbagn.interop.onnx import OPS

TYPES = {
    "float16": TensorProto.FLOAT16, "bfloat16": TensorProto.BFLOAT16, "float32": TensorProto.FLOAT,
    "float64": TensorProto.DOUBLE,
}  # fmt: skip
# Of ours against the definition, and of others that round between the two stages.
TOLERANCE = {"float16": 1e-3, "bfloat16": 8e-3, "float32": 4e-6, "float64": 1e-12}
LOOSE = {"float16": 2e-2, "bfloat16": 0.2, "float32": 4e-5, "float64": 4e-5}
# ONNX counts in float32: its 1e-5 is this
EPS = float(np.float32(1e-5))


def model(nodes, dtype, inputs, outputs, opset):
    """A checked model of nodes; of its inputs and outputs only the rank is given."""
    kinds = {name: TensorProto.FLOAT if name in ("mean", "inv") else TYPES[dtype] for name in [*inputs, *outputs]}
    values = [
        [helper.make_tensor_value_info(name, kinds[name], [None] * rank) for name, rank in side.items()]
        for side in (inputs, outputs)
    ]
    made = helper.make_model(
        helper.make_graph(nodes, "model", *values), opset_imports=[helper.make_opsetid("", opset)], ir_version=10
    )
    if opset >= 21 or not any(node.op_type == "GroupNormalization" for node in nodes):  # it calls that of 18 deprecated
        checker.check_model(made)
    return made


def run(made, feeds):
    return ReferenceEvaluator(made, new_ops=OPS).run(None, feeds)


def others(made, feeds):
    """What ONNX's own evaluator gives, and ONNX Runtime where it has the operator for the type."""
    found = {"evaluator": ReferenceEvaluator(made).run(None, feeds)}
    if feeds["x"].dtype == DTYPES["bfloat16"]:  # which its Python package cannot be given
        return found
    onnxruntime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    from onnxruntime.capi.onnxruntime_pybind11_state import NotImplemented as NoKernel

    with contextlib.suppress(NoKernel):
        session = onnxruntime.InferenceSession(made.SerializeToString(), providers=["CPUExecutionProvider"])
        found["onnxruntime"] = session.run(None, feeds)
    return found


def single(op, dtype, feeds, opset, outputs=None, **attributes):
    outputs = outputs or {"y": feeds["x"].ndim}
    node = helper.make_node(op, list(feeds), list(outputs), **attributes)
    return model([node], dtype, {name: value.ndim for name, value in feeds.items()}, outputs, opset)


@pytest.mark.parametrize("opset", [18, 20, 21, 22])
@pytest.mark.parametrize("dtype", DTYPES)
def test_group_normalization(rng, one_thread, dtype, opset):
    x = normal(rng, (2, 6, 5, 7), DTYPES[dtype], offset=0.3)
    per_channel = opset >= 21
    scale, bias = (normal(rng, 6 if per_channel else 3, DTYPES[dtype], offset=0.5) for _ in range(2))
    feeds = {"x": x, "scale": scale, "bias": bias}
    made = single("GroupNormalization", dtype, feeds, opset, num_groups=3)
    (y,) = run(made, feeds)
    weight, shift = (scale, bias) if per_channel else (np.repeat(scale, 2), np.repeat(bias, 2))
    assert y.dtype == x.dtype
    close(y, reference.group_norm(x, 3, weight, shift, EPS)[0], TOLERANCE[dtype])
    for theirs in others(made, feeds).values():
        close(theirs[0], y.astype(np.float64), LOOSE[dtype])


@pytest.mark.parametrize("shape", [(2, 6), (3, 6, 1), (1, 6, 3, 4, 5)])
def test_group_normalization_of_any_rank_and_epsilon(rng, one_thread, shape):
    feeds = {"x": normal(rng, shape, np.float32)} | {n: normal(rng, 6, np.float32) for n in ("scale", "bias")}
    (y,) = run(single("GroupNormalization", "float32", feeds, 21, num_groups=2, epsilon=0.5), feeds)
    close(y, reference.group_norm(feeds["x"], 2, feeds["scale"], feeds["bias"], 0.5)[0], 4e-6)


@pytest.mark.parametrize("stash_type", ["float16", "bfloat16", "float32", "float64"])
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_stash_type_is_the_least_precision(rng, one_thread, dtype, stash_type):
    x = normal(rng, (2, 6, 5, 7), DTYPES[dtype], offset=2e3)
    feeds = {"x": x, "scale": normal(rng, 6, DTYPES[dtype]), "bias": normal(rng, 6, DTYPES[dtype])}
    made = single("GroupNormalization", dtype, feeds, 21, num_groups=2, stash_type=TYPES[stash_type])
    (y,) = run(made, feeds)
    assert y.dtype == x.dtype
    want = reference.group_norm(x, 2, feeds["scale"], feeds["bias"], EPS)[0]
    close(y, want, TOLERANCE[dtype])
    if stash_type == "float64" and dtype != "float64":  # rounded once
        assert (y == want.astype(y.dtype)).mean() > 0.999


@pytest.mark.parametrize("opset", [18, 22])
@pytest.mark.parametrize("dtype", DTYPES)
def test_instance_normalization(rng, one_thread, dtype, opset):
    if dtype == "bfloat16" and opset < 22:
        pytest.skip("bfloat16 came with opset 22")
    x = normal(rng, (2, 6, 5, 7), DTYPES[dtype], offset=0.3)
    feeds = {"x": x, "scale": normal(rng, 6, DTYPES[dtype]), "bias": normal(rng, 6, DTYPES[dtype])}
    made = single("InstanceNormalization", dtype, feeds, opset, epsilon=0.25)
    (y,) = run(made, feeds)
    assert y.dtype == x.dtype
    close(y, reference.group_norm(x, 6, feeds["scale"], feeds["bias"], 0.25)[0], TOLERANCE[dtype])
    for theirs in others(made, feeds).values():
        close(theirs[0], y.astype(np.float64), LOOSE[dtype])


@pytest.mark.parametrize("with_bias", [True, False])
@pytest.mark.parametrize("axis", [-1, 2, 1, 0, -3])
@pytest.mark.parametrize("dtype", DTYPES)
def test_layer_normalization(rng, one_thread, dtype, axis, with_bias):
    x = normal(rng, (2, 3, 4, 5), DTYPES[dtype], offset=0.3)
    outer, inner = x.shape[: axis % 4], x.shape[axis % 4 :]
    feeds = {"x": x} | {n: normal(rng, inner, DTYPES[dtype]) for n in ("scale", "bias")[: 1 + with_bias]}
    made = single("LayerNormalization", dtype, feeds, 17, {"y": 4, "mean": 4, "inv": 4}, axis=axis)
    y, mean, inv = run(made, feeds)
    assert (y.dtype, mean.dtype, inv.dtype) == (x.dtype, np.float32, np.float32)
    rows = int(np.prod(outer))
    parameters = (feeds[n].reshape(-1) if n in feeds else None for n in ("scale", "bias"))
    want, want_mean, want_inv = reference.group_norm(x.reshape(rows, -1), 1, *parameters, EPS)
    close(y, want.reshape(x.shape), TOLERANCE[dtype])
    assert mean.shape == inv.shape == outer + (1,) * len(inner)
    close(mean.reshape(-1, 1), want_mean, 1e-6)
    close(inv.reshape(-1, 1), want_inv, 1e-6)
    if axis == 0 and dtype == "bfloat16":  # its own evaluator's sums, in bfloat16, are off by more
        return
    for theirs in others(made, feeds).values():
        for got, their in zip((y, mean, inv), theirs, strict=True):
            close(np.asarray(their), got.astype(np.float64), LOOSE[dtype])


@pytest.mark.parametrize("shape", [(), (1,), (4, 1), (5,), (1, 1, 1, 5), (2, 1, 4, 5), (2, 3, 1, 1)])
def test_scale_of_layer_normalization_is_broadcast(rng, one_thread, shape):
    feeds = {"x": normal(rng, (2, 3, 4, 5), np.float32)} | {
        n: normal(rng, shape, np.float32) for n in ("scale", "bias")
    }
    feeds = {name: np.asarray(value) for name, value in feeds.items()}
    (y,) = run(single("LayerNormalization", "float32", feeds, 17, axis=2), feeds)
    x_hat = reference.group_norm(feeds["x"].reshape(6, 20), 1, eps=EPS)[0].reshape(2, 3, 4, 5)
    close(y, x_hat * feeds["scale"] + feeds["bias"], 4e-6)


def test_layer_normalization_with_statistics_in_bfloat16(rng, one_thread):
    feeds = {"x": normal(rng, (2, 3, 8), np.float32), "scale": normal(rng, 8, np.float32)}
    node = helper.make_node("LayerNormalization", list(feeds), ["y", "mean", "inv"], stash_type=TYPES["bfloat16"])
    made = helper.make_model(
        helper.make_graph(
            [node],
            "model",
            [helper.make_tensor_value_info(name, TensorProto.FLOAT, value.shape) for name, value in feeds.items()],
            [helper.make_tensor_value_info(n, TYPES["bfloat16" if n != "y" else "float32"], None) for n in node.output],
        ),
        opset_imports=[helper.make_opsetid("", 17)],
    )
    y, mean, inv = run(made, feeds)
    want, want_mean, _ = reference.group_norm(feeds["x"].reshape(6, 8), 1, feeds["scale"], eps=EPS)
    assert mean.dtype.name == inv.dtype.name == "bfloat16"
    close(y, want.reshape(y.shape), 4e-6)
    close(mean.reshape(6, 1), want_mean, 8e-3)


def test_a_pipeline_of_two_norms_in_numpy_alone(rng, one_thread):
    """GroupNormalization, then LayerNormalization over channels: what a converted model looks like."""
    feeds = {"x": normal(rng, (2, 8, 4, 4), np.float32, offset=1e4)}
    feeds |= {name: normal(rng, 8, np.float32, offset=1.0) for name in ("scale", "bias", "gamma", "beta")}
    nodes = [
        helper.make_node("GroupNormalization", ["x", "scale", "bias"], ["normed"], num_groups=4),
        helper.make_node("Relu", ["normed"], ["positive"]),
        helper.make_node("Transpose", ["positive"], ["last"], perm=[0, 2, 3, 1]),
        helper.make_node("LayerNormalization", ["last", "gamma", "beta"], ["y"], axis=-1),
    ]
    made = model(nodes, "float32", {name: value.ndim for name, value in feeds.items()}, {"y": 4}, 21)
    (y,) = run(made, feeds)
    first = reference.group_norm(feeds["x"], 4, feeds["scale"], feeds["bias"], EPS, activation="relu")[0]
    rows = np.moveaxis(first, 1, -1).reshape(-1, 8)
    close(y.reshape(-1, 8), reference.group_norm(rows, 1, feeds["gamma"], feeds["beta"], EPS)[0], 1e-5)


def test_parameters_that_do_not_fit_are_refused(rng):
    feeds = {"x": normal(rng, (2, 6, 5), np.float32)} | {n: np.ones(4, np.float32) for n in ("scale", "bias")}
    with pytest.raises(ValueError, match=r"weight must have shape \(6,\) or \(2, 6\), got \(4,\)"):
        run(single("GroupNormalization", "float32", feeds, 21, num_groups=3), feeds)
    with pytest.raises(ValueError, match="num_groups must divide the 6 channels"):
        run(single("GroupNormalization", "float32", feeds, 18, num_groups=4), feeds)
