"""The arguments of a call as one value, as users gave them.

A small call has no time for a named tuple (0.3 us of 2), so functions take the plain tuple of its fields as well.
"""

from typing import Any, NamedTuple

__all__ = ["Backward", "Forward"]


class Forward(NamedTuple):
    """What `numbagn.group_norm_forward` is given."""

    x: Any
    num_groups: Any
    weight: Any = None
    bias: Any = None
    eps: Any = 1e-5
    channel_axis: Any = 1
    activation: Any = None
    skip: Any = None
    residual: Any = None
    lengths: Any = None
    mask: Any = None
    out: Any = None


class Backward(NamedTuple):
    """What `numbagn.group_norm_backward` is given."""

    dy: Any
    x: Any
    mean: Any
    rstd: Any
    num_groups: Any
    weight: Any = None
    bias: Any = None
    channel_axis: Any = 1
    activation: Any = None
    skip: Any = None
    residual: Any = None
    lengths: Any = None
    mask: Any = None
    out: Any = None
