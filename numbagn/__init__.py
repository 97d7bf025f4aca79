"""Group normalization for NumPy arrays, compiled by Numba."""

from . import reference
from ._warmup import warmup
from .functional import group_norm, group_norm_backward, group_norm_forward
from .layers import GroupNorm

__version__ = "0.1.0"

__all__ = ["GroupNorm", "group_norm", "group_norm_backward", "group_norm_forward", "reference", "warmup"]
