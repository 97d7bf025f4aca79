"""The numbers of other libraries: PyTorch forward and backward, ONNX Runtime forward."""

import numpy as np
import pytest
from cases import DTYPES, close, in_layout, normal

import numbagn

# (shape, groups): training, odd, single positions, one group, one channel a group
SHAPES = (((2, 32, 8, 9), 8), ((3, 30, 7, 7), 5), ((4, 24), 3), ((1, 6, 4, 5, 3), 1), ((2, 6, 11), 6))
# Theirs are rounded too. Of results of unit scale, and of gradients relative to the largest.
TOLERANCES = {"float16": 4e-3, "bfloat16": 3.2e-2, "float32": 5e-6, "float64": 1e-13}
ACTIVATIONS = {"float16": (None,), "bfloat16": (None,), "float32": (None, "silu"), "float64": (None, "silu")}


def torch():
    return pytest.importorskip("torch", reason="torch is not installed")


def onnx():
    """(onnx.helper, onnxruntime)."""
    pytest.importorskip("onnx", reason="onnx is not installed")
    runtime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    from onnx import helper

    return helper, runtime


def tensor(array):
    """A torch tensor on the array's memory, strides and all; bfloat16 goes by its bits."""
    if array.dtype == DTYPES["bfloat16"]:
        return torch().from_numpy(array.view(np.uint16)).view(torch().bfloat16)
    return torch().from_numpy(array)


def array(value):
    """A NumPy array on the tensor's memory."""
    value = value.detach()
    if value.dtype == torch().bfloat16:
        return value.view(torch().uint16).numpy().view(DTYPES["bfloat16"])
    return value.numpy()


def example(rng, shape, dtype, layout="channels_first"):
    """(x, dy, weight, bias) of one dtype, as torch wants them."""
    x, dy = (in_layout(normal(rng, shape, DTYPES[dtype], offset=0.2), layout) for _ in range(2))
    return x, dy, *(normal(rng, shape[1], DTYPES[dtype], offset=0.5) for _ in range(2))


def near(got, want, tolerance):
    """Assert that gradients agree relative to the largest."""
    scale = max(1.0, np.abs(want.astype(np.float64)).max())
    close(got.astype(np.float64) / scale, want.astype(np.float64) / scale, tolerance)


@pytest.mark.parametrize("layout", ["channels_first", "channels_last"])
@pytest.mark.parametrize(("dtype", "activation"), [(d, a) for d in DTYPES for a in ACTIVATIONS[d]])
def test_torch_forward_and_autograd(rng, one_thread, dtype, activation, layout):
    functional = torch().nn.functional
    for shape, groups in SHAPES:
        x, dy, weight, bias = example(rng, shape, dtype, layout)
        theirs = [tensor(v.copy("K")).requires_grad_() for v in (x, weight, bias)]
        z = functional.group_norm(theirs[0], groups, theirs[1], theirs[2], eps=1e-5)
        want = z if activation is None else functional.silu(z)
        want.backward(tensor(dy))

        y, mean, rstd = numbagn.group_norm_forward(x, groups, weight, bias, activation=activation)
        close(y, array(want).astype(np.float64), TOLERANCES[dtype])
        got = numbagn.group_norm_backward(dy, x, mean, rstd, groups, weight, bias, activation=activation)
        for g, parameter in zip(got, theirs, strict=True):
            assert g.dtype == x.dtype
            near(g, array(parameter.grad), TOLERANCES[dtype])


def test_torch_layer_and_its_state(rng, one_thread):
    theirs = torch().nn.GroupNorm(4, 8, eps=1e-3)
    layer = numbagn.GroupNorm(4, 8, eps=1e-3, weight_init=rng.standard_normal(8), bias_init=rng.standard_normal(8))
    theirs.load_state_dict({name: tensor(value) for name, value in layer.state_dict().items()})
    x = normal(rng, (2, 8, 5, 5), np.float32)
    close(layer(x), array(theirs(tensor(x))).astype(np.float64), 5e-6)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_torch_channels_last_memory_is_read_and_written_in_place(rng, one_thread, dtype):
    x = tensor(example(rng, (2, 12, 5, 7), dtype)[0]).contiguous(memory_format=torch().channels_last)
    view = array(x)
    assert np.shares_memory(view, array(x))
    want = torch().nn.functional.group_norm(x, 3)
    y = numbagn.group_norm(view, 3)
    assert y.strides == view.strides
    close(y, array(want).astype(np.float64), TOLERANCES[dtype])
    numbagn.group_norm(view, 3, out=view)
    close(array(x), array(want).astype(np.float64), TOLERANCES[dtype])


def test_torch_statistics_serve_backward(rng, one_thread):
    x, dy, weight, bias = example(rng, (2, 8, 6, 6), "float32")
    parameters = [tensor(v) for v in (weight, bias)]
    _, mean, rstd = torch().native_group_norm(tensor(x), *parameters, 2, 8, 36, 4, 1e-5)
    _, own_mean, own_rstd = numbagn.group_norm_forward(x, 4, weight, bias)
    close(array(mean), own_mean, 1e-6)
    np.testing.assert_allclose(array(rstd), own_rstd, rtol=1e-5)
    got = numbagn.group_norm_backward(dy, x, array(mean), array(rstd), 4, weight, bias)
    want = numbagn.group_norm_backward(dy, x, own_mean, own_rstd, 4, weight, bias)
    for g, w in zip(got, want, strict=True):
        near(g, w, 2e-5)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_onnx_runtime_forward(rng, one_thread, dtype):
    helper, runtime = onnx()
    kind = helper.np_dtype_to_tensor_dtype(DTYPES[dtype])
    runtime.set_default_logger_severity(3)
    for shape, groups in SHAPES[:2]:
        node = helper.make_node("GroupNormalization", ["x", "w", "b"], ["y"], num_groups=groups, epsilon=1e-5)
        inputs = [
            helper.make_tensor_value_info(n, kind, s)
            for n, s in zip("xwb", (shape, shape[1:2], shape[1:2]), strict=True)
        ]
        graph = helper.make_graph([node], "g", inputs, [helper.make_tensor_value_info("y", kind, shape)])
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
        session = runtime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
        x, _, weight, bias = example(rng, shape, dtype)
        (want,) = session.run(None, {"x": x, "w": weight, "b": bias})
        close(numbagn.group_norm(x, groups, weight, bias), want.astype(np.float64), 2 * TOLERANCES[dtype])
