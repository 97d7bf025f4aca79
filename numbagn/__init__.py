"""Group normalization for NumPy arrays, compiled by Numba."""

from . import reference
from .functional import group_norm, group_norm_backward, group_norm_forward, instance_norm, layer_norm
from .layers import GroupNorm, InstanceNorm, LayerNorm

__version__ = "0.1.0"

__all__ = [
    "GroupNorm",
    "InstanceNorm",
    "LayerNorm",
    "group_norm",
    "group_norm_backward",
    "group_norm_forward",
    "instance_norm",
    "layer_norm",
    "reference",
]
