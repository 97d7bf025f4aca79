"""Group normalization for NumPy arrays, compiled by Numba."""

from . import reference
from .command.warmup import warmup
from .derivatives.public import group_norm_double_backward, group_norm_jvp
from .functional import group_norm, group_norm_backward, group_norm_forward, instance_norm, layer_norm
from .layers.norms import GroupNorm, InstanceNorm, LayerNorm
from .moments import Moments, group_moments, normalize

__version__ = "0.1.0"

__all__ = ["group_norm", "group_norm_backward", "group_norm_forward", "instance_norm", "layer_norm"]
__all__ += ["GroupNorm", "InstanceNorm", "LayerNorm"]
__all__ += ["group_norm_double_backward", "group_norm_jvp"]
__all__ += ["Moments", "group_moments", "normalize"]
__all__ += ["reference", "warmup"]
