"""Layers: parameters kept together with the options of a call."""

from .base import Saved
from .norms import GroupNorm, InstanceNorm, LayerNorm

__all__ = ["GroupNorm", "InstanceNorm", "LayerNorm", "Saved"]
