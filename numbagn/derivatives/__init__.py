"""Derivatives beyond the gradient: forward mode, and second derivatives."""

from .public import group_norm_double_backward, group_norm_jvp

__all__ = ["group_norm_double_backward", "group_norm_jvp"]
