"""ONNX's normalizations for `onnx.reference.ReferenceEvaluator`, so that a model runs on NumPy and these kernels alone.

``ReferenceEvaluator(model, new_ops=numbagn.interop.onnx.OPS)`` takes them in place of its own.

The first stage is done in the precision that `stash_type` asks for, or a higher one: statistics are always as good as
float64 ones. Half types are rounded once, at the end, not between normalizing and scaling too.
"""

import math
from typing import Any

import numpy as np
from onnx import TensorProto, helper
from onnx.reference.op_run import OpRun

from ..functional import group_norm_forward

__all__ = ["OPS", "GroupNormalization", "InstanceNormalization", "LayerNormalization"]

# From this version of the operators on, GroupNormalization has a scale and a bias for each channel; before, each group.
PER_CHANNEL_SINCE = 21


def _normalize(x: Any, num_groups: int, scale: Any, bias: Any, epsilon: float, stash_type: int | None) -> Any:
    if stash_type == TensorProto.DOUBLE and x.dtype != np.float64:
        y, mean, rstd = group_norm_forward(x.astype(np.float64), num_groups, scale, bias, epsilon)
        with np.errstate(all="ignore"):
            return y.astype(x.dtype), mean, rstd
    return group_norm_forward(x, num_groups, scale, bias, epsilon)


class GroupNormalization(OpRun):  # type: ignore[misc]
    """GroupNormalization of opset 18, with a scale and a bias for each group, and of opset 21, for each channel."""

    def _run(
        self, x: Any, scale: Any, bias: Any, epsilon: Any = None, num_groups: Any = None, stash_type: Any = None
    ) -> Any:
        opsets = self.run_params["opsets"]
        if opsets.get("", opsets.get("ai.onnx")) < PER_CHANNEL_SINCE:
            scale, bias = (np.repeat(a, x.shape[1] // max(num_groups, 1)) for a in (scale, bias))
        return _normalize(x, num_groups, scale, bias, epsilon, stash_type)[:1]


class InstanceNormalization(OpRun):  # type: ignore[misc]
    """InstanceNormalization: each channel is a group."""

    def _run(self, x: Any, scale: Any, bias: Any, epsilon: Any = None) -> Any:
        return _normalize(x, x.shape[1], scale, bias, epsilon, None)[:1]


class LayerNormalization(OpRun):  # type: ignore[misc]
    """LayerNormalization over `axis` and all axes after it; Mean and InvStdDev have the type `stash_type`."""

    def _run(
        self, x: Any, scale: Any, bias: Any = None, axis: Any = None, epsilon: Any = None, stash_type: Any = None
    ) -> Any:
        axis %= x.ndim
        outer, inner = x.shape[:axis], x.shape[axis:]
        rows, columns = math.prod(outer), math.prod(inner)

        def parameter(given: Any) -> Any:
            if given is None or given.ndim <= len(inner):
                return None if given is None else np.broadcast_to(given, inner).reshape(columns)
            return np.broadcast_to(given, x.shape).reshape(rows, columns)

        scale, bias = parameter(scale), parameter(bias)
        y, *statistics = _normalize(x.reshape(rows, columns), 1, scale, bias, epsilon, stash_type)
        kind = helper.tensor_dtype_to_np_dtype(stash_type)
        with np.errstate(all="ignore"):
            return y.reshape(x.shape), *(s.astype(kind).reshape(outer + (1,) * len(inner)) for s in statistics)


OPS = [GroupNormalization, InstanceNormalization, LayerNormalization]
