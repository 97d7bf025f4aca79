"""Layers taken from MLX: its groups are interleaved unless it was told ``pytorch_compatible=True``.

There channel c belongs to group ``c % num_groups``; here, in the paper and everywhere else a group is consecutive
channels. So a layer taken over needs its channels in another order, which `channel_order` gives. MLX is not imported.
"""

from typing import Any

import numpy as np

from ..calls.checks import groups_of, integer, shown

__all__ = ["channel_order"]


def channel_order(num_channels: int, num_groups: int) -> np.ndarray[Any, np.dtype[np.intp]]:
    """Give the order of MLX's channels in which its groups are consecutive.

    Parameters
    ----------
    num_channels : int
        The number of channels C.
    num_groups : int
        The number of groups G, a divisor of C.

    Returns
    -------
    (C,) ndarray of int
        At each place the channel of MLX that belongs there: those of group 0, 0, G, 2 G and so on, then group 1's.

    Raises
    ------
    TypeError, ValueError
        If an argument is of the wrong kind or does not fit.

    Notes
    -----
    Reordering x and y costs a copy of each. It costs nothing where the layers around are reordered once, instead: the
    output channels of the one before, the input channels of the one after.

    Examples
    --------
    >>> import numpy as np, numbagn
    >>> from numbagn.interop.mlx import channel_order
    >>> order = channel_order(6, 2)
    >>> order
    array([0, 2, 4, 1, 3, 5])
    >>> parameters = {"weight": np.ones(6, np.float32), "bias": np.arange(6, dtype=np.float32)}
    >>> layer = numbagn.GroupNorm(2, 6, channel_axis=-1)
    >>> layer.load_state_dict({name: value[order] for name, value in parameters.items()})
    >>> x = np.zeros((1, 4, 6), np.float32)
    >>> y = np.empty_like(x)
    >>> y[..., order] = layer(x[..., order])
    >>> y[0, 0]
    array([0., 1., 2., 3., 4., 5.], dtype=float32)
    """
    channels = integer("num_channels", num_channels)
    if channels < 1:
        raise ValueError(f"num_channels must be positive, got {shown(channels)}")
    groups = groups_of(num_groups, channels)
    return np.arange(channels).reshape(channels // groups, groups).T.reshape(-1)
