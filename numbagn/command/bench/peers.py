"""The contestants: each peer turns a task into ready calls, or says in one line why it cannot take part.

A peer gets the same arrays as the others and is used in the fastest way known here: no autograd, no copies, all
threads asked for, an output buffer bound where its interface has one. `fresh` calls allocate their result.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from typing import Any

import numpy as np

from . import graph_peers, textbook
from .entry import Entry, Skip
from .machine import version_of
from .task import EPS, Task

# A layer object saves some of a call's overhead, which shows on small inputs only.
LAYER_BELOW_BYTES = 64 * 1024


def numbagn_entries(task: Task, threads: int) -> list[Entry]:
    numbagn = _imported("numbagn")
    version = getattr(numbagn, "__version__", "") or version_of("numbagn")
    variant, activation = task.variant, task.variant.activation
    keywords = {"channel_axis": task.channel_axis, "activation": activation}
    if variant.direction == "backward":
        mean, rstd = task.mean, task.rstd
        call = partial(numbagn.group_norm_backward, task.dy, task.x, mean, rstd, task.groups, task.weight, task.bias)
        return [
            Entry("numbagn", version, "out", partial(call, **keywords, out=task.out), tuple),
            Entry("numbagn", version, "fresh", partial(call, **keywords), tuple),
        ]
    call = partial(numbagn.group_norm, task.x, task.groups, task.weight, task.bias, EPS, **keywords)
    entries = [
        Entry("numbagn", version, "out", partial(call, out=task.out), _single),
        Entry("numbagn", version, "fresh", call, _single),
    ]
    if task.x.nbytes < LAYER_BELOW_BYTES:
        layer = numbagn.GroupNorm(task.groups, task.case.shape[1], eps=EPS, dtype=task.weight.dtype, **keywords)
        layer.weight[...], layer.bias[...] = task.weight, task.bias
        entries.append(Entry("numbagn layer", version, "fresh", partial(layer, task.x), _single))
    return entries


def torch_entries(task: Task, threads: int) -> list[Entry]:
    """F.group_norm, or aten::native_group_norm_backward with float32 statistics as torch itself saves them."""
    torch = _imported("torch")
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
    if task.x.dtype != task.out.dtype:
        return [
            Entry(
                "torch",
                version,
                "fresh",
                lambda: functional.group_norm(x.float(), groups, weight, bias, EPS),
                lambda y: (array(y),),
            )
        ]
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
    after = {None: None, "relu": functional.relu, "silu": functional.silu}[variant.activation]
    if after is None:
        return [Entry("torch", version, "fresh", call, lambda y: (array(y),))]
    return [Entry("torch", version, "fresh", lambda: after(call(), inplace=True), lambda y: (array(y),))]


def jax_entries(task: Task, threads: int) -> list[Entry]:
    """The textbook compiled by XLA, in float32 for half types as flax does; backward from the saved statistics.

    The backward formula written out is what jax can do at best: differentiating the forward pass was slower.
    """
    jax = _imported("jax")
    jnp, variant = jax.numpy, task.variant
    dtype = task.out.dtype
    if dtype == np.float64:
        jax.config.update("jax_enable_x64", True)

    if variant.direction == "backward":

        @jax.jit
        def compiled(dy: Any, x: Any, mean: Any, rstd: Any, weight: Any) -> Any:
            dy, x = dy.astype(weight.dtype), x.astype(weight.dtype)
            dx, *rest = textbook.backward(jnp, dy, x, mean, rstd, weight, task.groups, variant.layout)
            return dx.astype(dtype), *rest

        statistics = tuple(s.astype(task.weight.dtype) for s in (task.mean, task.rstd))
        arguments = tuple(map(jax.device_put, (task.dy, task.x, *statistics, task.weight)))
    else:

        @jax.jit
        def compiled(x: Any, weight: Any, bias: Any) -> Any:
            x = x.astype(weight.dtype)
            groups = task.groups
            y = textbook.forward(jnp, x, weight, bias, groups, EPS, variant.layout, variant.activation)
            return (y.astype(dtype),)

        arguments = tuple(map(jax.device_put, (task.x, task.weight, task.bias)))

    def call() -> Any:
        return jax.block_until_ready(compiled(*arguments))

    return [Entry("jax", jax.__version__, "fresh", call, lambda result: tuple(map(np.asarray, result)))]


def numpy_entries(task: Task, threads: int) -> list[Entry]:
    """The textbook in NumPy, on one thread as NumPy's reductions are; half types are computed in float32."""
    variant, precision = task.variant, task.weight.dtype
    layout, groups = variant.layout, task.groups
    x, dtype = task.x, task.out.dtype
    if variant.direction == "backward":
        mean, rstd = (s.astype(precision) for s in (task.mean, task.rstd))

        def call() -> Any:
            dy, wide = (a.astype(precision, copy=False) for a in (task.dy, x))
            dx, *rest = textbook.backward(np, dy, wide, mean, rstd, task.weight, groups, layout)
            return dx.astype(dtype, copy=False), *rest

        return [Entry("numpy", np.__version__, "fresh", call, tuple)]

    def call() -> Any:
        wide = x.astype(precision, copy=False)
        y = textbook.forward(np, wide, task.weight, task.bias, groups, EPS, layout, variant.activation)
        return y.astype(dtype, copy=False)

    return [Entry("numpy", np.__version__, "fresh", call, _single)]


@dataclass(frozen=True)
class Peer:
    name: str
    entries: Callable[[Task, int], list[Entry]]


PEERS = (
    Peer("numbagn", numbagn_entries),
    Peer("torch", torch_entries),
    Peer("onnxruntime", graph_peers.onnxruntime_entries),
    Peer("openvino", graph_peers.openvino_entries),
    Peer("jax", jax_entries),
    Peer("numpy", numpy_entries),
)


def entries_of(peer: Peer, task: Task, threads: int) -> list[Entry]:
    """The peer's calls; any refusal, also one by the peer's own library, becomes a Skip with one line of reason."""
    try:
        return peer.entries(task, threads)
    except Skip:
        raise
    except Exception as error:
        raise Skip(one_line(error)) from error


def one_line(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:160]}"


def _imported(name: str) -> Any:
    try:
        return import_module(name)
    except ImportError as error:
        raise Skip(f"cannot be imported ({one_line(error)})") from error


def _single(result: np.ndarray) -> tuple[np.ndarray]:
    return (result,)
