"""The contestants: each peer turns a task into ready calls, or says in one line why it cannot take part.

A peer gets the same arrays as the others and is used in the fastest way known here: no autograd, no copies, all
threads asked for, an output buffer bound where its interface has one. `fresh` calls allocate their result.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

import numbagn

from . import graph_peers, textbook
from .task import EPS, Entry, Skip, Task, imported, one_line

# A layer object saves some of a call's overhead, which shows on small inputs only.
LAYER_BELOW_BYTES = 64 * 1024


def numbagn_entries(task: Task, threads: int) -> list[Entry]:
    version, x, groups, weight, bias = numbagn.__version__, task.x, task.groups, task.weight, task.bias
    keywords = {"channel_axis": task.channel_axis, "activation": task.variant.activation}
    forward = task.variant.direction == "forward"
    if forward:
        call = partial(numbagn.group_norm, x, groups, weight, bias, EPS, **keywords)
    else:
        statistics = task.mean, task.rstd
        call = partial(numbagn.group_norm_backward, task.dy, x, *statistics, groups, weight, bias, **keywords)
    arrays = _single if forward else tuple
    entries = [
        Entry("numbagn", version, "out", partial(call, out=task.out), arrays),
        Entry("numbagn", version, "fresh", call, arrays),
    ]
    if forward and x.nbytes < LAYER_BELOW_BYTES:
        layer = numbagn.GroupNorm(groups, task.case.shape[1], eps=EPS, dtype=weight.dtype, **keywords)
        layer.weight[...], layer.bias[...] = weight, bias
        entries.append(Entry("numbagn layer", version, "fresh", partial(layer, x), _single))
    return entries


def torch_entries(task: Task, threads: int) -> list[Entry]:
    """F.group_norm, or aten::native_group_norm_backward with float32 statistics as torch itself saves them."""
    torch = imported("torch")
    functional = torch.nn.functional
    torch.set_num_threads(threads)
    torch.set_grad_enabled(False)
    version, variant = torch.__version__, task.variant

    def tensor(array: np.ndarray) -> Any:
        """A view of the array, channels first; channels last it is torch's channels_last memory format."""
        half = array.dtype.name == "bfloat16"
        view = torch.from_numpy(array.view(np.int16)).view(torch.bfloat16) if half else torch.from_numpy(array)
        return view.movedim(-1, 1) if variant.layout == "NHWC" and array.ndim > 1 else view

    def array(result: Any) -> np.ndarray:
        if variant.layout == "NHWC" and result.ndim > 1:
            result = result.movedim(1, -1)
        return (result.float() if result.dtype == torch.bfloat16 else result).contiguous().numpy()

    x, weight, bias, groups = tensor(task.x), tensor(task.weight), tensor(task.bias), task.groups
    if variant.direction == "backward":
        mean, rstd = (torch.from_numpy(s.astype(task.weight.dtype)) for s in (task.mean, task.rstd))
        samples, channels = task.case.shape[:2]
        positions = task.case.elements // (samples * channels)
        op, dy = torch.ops.aten.native_group_norm_backward, tensor(task.dy)
        rest = (mean, rstd, weight, samples, channels, positions, groups, [True, True, True])
        call = partial(op, dy, x, *rest)
        if variant.layout == "NHWC" and x.ndim == 3:
            # There is no channels-last format of three axes: autograd copies first, and without that dx is wrong.
            def call() -> Any:
                return op(dy.contiguous(), x.contiguous(), *rest)

        return [Entry("torch", version, "fresh", call, lambda result: tuple(map(array, result)))]
    call = partial(functional.group_norm, x, groups, weight, bias, EPS)
    if task.x.dtype != task.out.dtype:

        def call() -> Any:
            return functional.group_norm(x.float(), groups, weight, bias, EPS)

    elif variant.activation:
        normed, after = call, {"relu": functional.relu, "silu": functional.silu}[variant.activation]

        def call() -> Any:
            return after(normed(), inplace=True)

    return [Entry("torch", version, "fresh", call, lambda y: (array(y),))]


def jax_entries(task: Task, threads: int) -> list[Entry]:
    """The textbook compiled by XLA, in float32 for half types as flax does; backward from the saved statistics.

    The backward formula written out is what jax can do at best: differentiating the forward pass was slower.
    """
    jax = imported("jax")
    if task.out.dtype == np.float64:
        jax.config.update("jax_enable_x64", True)
    function, arrays = _textbook(jax.numpy, task)
    compiled, arguments = jax.jit(function), tuple(map(jax.device_put, arrays))

    def call() -> Any:
        return jax.block_until_ready(compiled(*arguments))

    return [Entry("jax", jax.__version__, "fresh", call, lambda result: tuple(map(np.asarray, result)))]


def numpy_entries(task: Task, threads: int) -> list[Entry]:
    """The textbook in NumPy, on one thread as NumPy's reductions are; half types are computed in float32."""
    function, arrays = _textbook(np, task)
    return [Entry("numpy", np.__version__, "fresh", partial(function, *arrays), tuple)]


def _textbook(xp: Any, task: Task) -> tuple[Callable[..., tuple], tuple[np.ndarray, ...]]:
    """The textbook as a function of some arrays, computed in the parameters' dtype, and those arrays."""
    variant, wide, dtype = task.variant, task.weight.dtype, task.out.dtype

    def forward(x: Any, weight: Any, bias: Any) -> tuple:
        x = x.astype(wide, copy=False)
        y = textbook.forward(xp, x, weight, bias, task.groups, EPS, variant.layout, variant.activation)
        return (y.astype(dtype, copy=False),)

    def backward(dy: Any, x: Any, mean: Any, rstd: Any, weight: Any) -> tuple:
        dy, x = (a.astype(wide, copy=False) for a in (dy, x))
        dx, *rest = textbook.backward(dy, x, mean, rstd, weight, task.groups, variant.layout)
        return dx.astype(dtype, copy=False), *rest

    if variant.direction == "forward":
        return forward, (task.x, task.weight, task.bias)
    return backward, (task.dy, task.x, task.mean.astype(wide), task.rstd.astype(wide), task.weight)


Peer = Callable[[Task, int], list[Entry]]
PEERS: dict[str, Peer] = {
    "numbagn": numbagn_entries,
    "torch": torch_entries,
    "onnxruntime": graph_peers.onnxruntime_entries,
    "openvino": graph_peers.openvino_entries,
    "jax": jax_entries,
    "numpy": numpy_entries,
}


def entries_of(peer: Peer, task: Task, threads: int) -> list[Entry]:
    """The peer's calls; any refusal, also one by the peer's own library, becomes a Skip with one line of reason."""
    try:
        return peer(task, threads)
    except Skip:
        raise
    except Exception as error:
        raise Skip(one_line(error)) from error


def _single(result: np.ndarray) -> tuple[np.ndarray]:
    return (result,)
