"""The two peers that run graphs: ONNX Runtime and OpenVINO. Both write to a bound output; neither has a backward."""

from collections.abc import Callable
from functools import partial
from time import perf_counter
from typing import Any

import numpy as np

from .task import EPS, Entry, Skip, Task, imported


def onnxruntime_entries(task: Task, threads: int) -> list[Entry]:
    """The faster of two spellings: the InstanceNormalization pattern of exporters, and GroupNormalization-21."""
    _forward_only(task)
    onnx, onnxruntime = imported("onnx"), imported("onnxruntime")
    if task.x.dtype.name == "bfloat16":
        raise Skip("its CPU kernels have no bfloat16")

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.log_severity_level = 4

    def bound(nodes: Callable[..., list[Any]]) -> Callable[[], object]:
        model = _onnx_model(onnx, nodes, task)
        session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        binding = session.io_binding()
        binding.bind_input("x", "cpu", 0, task.x.dtype, task.x.shape, task.x.ctypes.data)
        binding.bind_output("y", "cpu", 0, task.out.dtype, task.x.shape, task.out.ctypes.data)
        return partial(session.run_with_iobinding, binding)

    calls, refusals = [], []
    for nodes in (_instance_norm_nodes, _group_norm_nodes):
        try:
            call = bound(nodes)
            call()
        except Exception as error:  # each spelling may lack a kernel for a dtype; its exceptions share no base
            refusals.append(" ".join(str(error).split())[:160])
        else:
            calls.append(call)
    if not calls:
        raise Skip(refusals[0])
    return [Entry("onnxruntime", onnxruntime.__version__, "out", min(calls, key=_seconds), lambda _: (task.out,))]


def openvino_entries(task: Task, threads: int) -> list[Entry]:
    """GroupNormalization-12; float32 is asked for, as it would choose bfloat16 by itself where the CPU has it."""
    _forward_only(task)
    openvino, ops = imported("openvino"), imported("openvino.opset12")
    half = task.x.dtype.name == "bfloat16"
    element = openvino.Type.bf16 if half else openvino.Type(task.x.dtype)

    def tensor(array: np.ndarray) -> Any:
        if half:
            return openvino.Tensor(array.view(np.uint16), array.shape, element)
        return openvino.Tensor(array, shared_memory=True)

    x = ops.parameter(list(task.x.shape), element)
    first, last = _axis_orders(task)
    channels_first = x if first is None else ops.transpose(x, ops.constant(np.array(first)))
    if task.x.dtype != task.out.dtype:
        element = openvino.Type(task.out.dtype)
        channels_first = ops.convert(channels_first, element)
    weight, bias = (ops.convert(ops.constant(p), element) for p in (task.weight, task.bias))
    y = ops.group_normalization(channels_first, weight, bias, task.groups, EPS)
    if task.variant.activation == "silu":
        y = ops.swish(y)
    elif task.variant.activation == "relu":
        y = ops.relu(y)
    y = y if last is None else ops.transpose(y, ops.constant(np.array(last)))
    settings = {
        "PERFORMANCE_HINT": "LATENCY",
        "NUM_STREAMS": "1",
        "INFERENCE_NUM_THREADS": str(threads),
        "INFERENCE_PRECISION_HINT": "f32",
    }
    compiled = openvino.Core().compile_model(openvino.Model([y], [x]), "CPU", settings)
    request = compiled.create_infer_request()
    request.set_input_tensor(tensor(task.x))
    request.set_output_tensor(tensor(task.out))

    def through_pool() -> None:
        request.start_async()
        request.wait()

    # The calling thread takes part in infer(): that halves a tiny call, and may slow down a large one on two threads.
    call = min(partial(request.infer, {}, share_outputs=True), through_pool, key=_seconds)
    return [Entry("openvino", openvino.__version__.split("-")[0], "out", call, lambda _: (task.out,))]


def _forward_only(task: Task) -> None:
    if task.variant.direction == "backward":
        raise Skip("it has no backward pass")


def _seconds(call: Callable[[], object]) -> float:
    """The shortest of at least three calls and of 5 ms of calls."""
    times: list[float] = []
    while len(times) < 3 or sum(times) < 5e-3:
        start = perf_counter()
        call()
        times.append(perf_counter() - start)
    return min(times)


def _axis_orders(task: Task) -> tuple[list[int] | None, list[int] | None]:
    """Transpositions to channels first and back; these graphs know group norm in that order only."""
    if task.variant.layout == "NCHW":
        return None, None
    axes = list(range(task.x.ndim))
    return [0, axes[-1], *axes[1:-1]], [0, *axes[2:], 1]


def _onnx_model(onnx: Any, nodes: Callable[..., list[Any]], task: Task) -> bytes:
    helper, activation = onnx.helper, task.variant.activation
    first, last = _axis_orders(task)
    constants: list[Any] = []
    elements = [helper.np_dtype_to_tensor_dtype(array.dtype) for array in (task.x, task.out)]
    graph, source = [], "x"
    if first is not None:
        graph, source = [helper.make_node("Transpose", ["x"], ["first"], perm=first)], "first"
    if elements[0] != elements[1]:
        graph.append(helper.make_node("Cast", [source], ["wide"], to=elements[1]))
        source = "wide"
    graph += nodes(onnx, task, source, constants)
    if activation == "silu":
        graph.append(helper.make_node("Sigmoid", ["normed"], ["gate"]))
        graph.append(helper.make_node("Mul", ["normed", "gate"], ["activated"]))
    elif activation == "relu":
        graph.append(helper.make_node("Relu", ["normed"], ["activated"]))
    if last is not None:
        graph.append(helper.make_node("Transpose", [graph[-1].output[0]], ["last"], perm=last))
    graph[-1].output[0] = "y"
    ends = [helper.make_tensor_value_info(*end, task.x.shape) for end in zip(("x", "y"), elements, strict=True)]
    whole = helper.make_graph(graph, "group_norm", ends[:1], ends[1:], constants)
    model = helper.make_model(whole, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    return model.SerializeToString()


def _instance_norm_nodes(onnx: Any, task: Task, source: str, constants: list[Any]) -> list[Any]:
    node = onnx.helper.make_node
    samples, channels = task.case.shape[:2]
    dtype, groups = task.out.dtype, task.groups
    parameter_shape = (channels, *(1 for _ in task.case.shape[2:]))

    def constant(name: str, value: np.ndarray) -> str:
        constants.append(onnx.numpy_helper.from_array(value, name))
        return name

    grouped = constant("grouped", np.array([samples, groups, -1]))
    shape = constant("shape", np.array(task.case.shape))
    ones, zeros = constant("ones", np.ones(groups, dtype)), constant("zeros", np.zeros(groups, dtype))
    weight = constant("weight", task.weight.astype(dtype).reshape(parameter_shape))
    bias = constant("bias", task.bias.astype(dtype).reshape(parameter_shape))
    return [
        node("Reshape", [source, grouped], ["in_groups"]),
        node("InstanceNormalization", ["in_groups", ones, zeros], ["standard"], epsilon=EPS),
        node("Reshape", ["standard", shape], ["whole"]),
        node("Mul", ["whole", weight], ["scaled"]),
        node("Add", ["scaled", bias], ["normed"]),
    ]


def _group_norm_nodes(onnx: Any, task: Task, source: str, constants: list[Any]) -> list[Any]:
    for name, value in (("weight", task.weight), ("bias", task.bias)):
        constants.append(onnx.numpy_helper.from_array(value.astype(task.out.dtype), name))
    inputs, groups = [source, "weight", "bias"], task.groups
    return [onnx.helper.make_node("GroupNormalization", inputs, ["normed"], epsilon=EPS, num_groups=groups)]
