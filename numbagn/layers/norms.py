"""The public layers: what each normalizes over and what its constructor takes."""

from typing import Any

import numpy as np

from ..calls.checks import channel_axis_of, groups_of, integer, shown
from ..calls.rows import ROWS, normalized
from .base import Init, Layer

__all__ = ["GroupNorm", "InstanceNorm", "LayerNorm"]


class GroupNorm(Layer):
    """Group normalization with parameters of its own.

    Parameters
    ----------
    num_groups : int
        The number of groups G, a divisor of C.
    num_channels : int
        The number of channels C.
    eps : float, optional
        Added to the variance; finite, not negative.
    affine : bool, optional
        Whether there are a weight and a bias.
    bias : bool, optional
        Whether there is a bias beside the weight.
    dtype : dtype, optional
        Of the parameters: float16, bfloat16, float32 or float64.
    weight_init, bias_init : float, array or callable, optional
        What the parameters begin with: a number, C values, or a function that is given the shape (C,).
    channel_axis : int, optional
        The axis of the channels, not 0.
    activation : {None, "relu", "silu", "gelu", "gelu_tanh"}, optional
        Applied after weight and bias.

    Attributes
    ----------
    weight, bias : (C,) ndarray or None
        The parameters; an optimizer may write into them or set others, (N, C) too.

    Raises
    ------
    TypeError, ValueError
        If an argument is of the wrong kind or does not fit.

    Notes
    -----
    A call keeps nothing, so that one layer may serve any number of threads.

    Examples
    --------
    >>> import numpy as np, numbagn
    >>> layer = numbagn.GroupNorm(2, 4, activation="relu")
    >>> y, saved = layer.forward(np.arange(16, dtype=np.float32).reshape(1, 4, 4))
    >>> dx, dweight, dbias = layer.backward(np.ones_like(y), saved)
    >>> dbias
    array([0., 4., 0., 4.], dtype=float32)
    """

    def __init__(  # noqa: PLR0913 - public
        self,
        num_groups: int,
        num_channels: int,
        eps: float = 1e-5,
        affine: bool = True,
        *,
        bias: bool = True,
        dtype: Any = np.float32,
        weight_init: Init = 1.0,
        bias_init: Init = 0.0,
        channel_axis: int = 1,
        activation: str | None = None,
    ) -> None:
        self._set_sizes(num_groups, num_channels, channel_axis)
        self._set_up(eps, activation, affine, bias, dtype, (weight_init, bias_init))

    def _set_sizes(self, num_groups: int, num_channels: int, channel_axis: int) -> None:
        channels = integer("num_channels", num_channels)
        if channels < 1:
            raise ValueError(f"num_channels must be positive, got {shown(channels)}")
        self.num_channels = channels
        self.num_groups = groups_of(num_groups, channels)
        self.channel_axis = integer("channel_axis", channel_axis)
        if self.channel_axis == 0:
            channel_axis_of(0, 2)  # refuses the batch axis

    def _sizes(self) -> tuple[Any, ...]:
        return self.num_groups, self.num_channels

    def _parameter_shape(self) -> tuple[int, ...]:
        return (self.num_channels,)

    def _grouping(self, x: Any) -> tuple[Any, Any]:
        axis = self.channel_axis
        shape = getattr(x, "shape", ())
        if -len(shape) <= axis < len(shape) and shape[axis] != self.num_channels:
            raise ValueError(f"x must have {self.num_channels} channels at axis {axis}, got shape {tuple(shape)}")
        return self.num_groups, axis


class InstanceNorm(GroupNorm):
    """Instance normalization with parameters of its own: `GroupNorm` with as many groups as channels.

    Parameters
    ----------
    num_channels : int
        The number of channels C.
    eps, affine, bias, dtype, weight_init, bias_init, channel_axis, activation
        As for `GroupNorm`.

    Attributes
    ----------
    weight, bias : (C,) ndarray or None
        The parameters; an optimizer may write into them or set others, (N, C) too.

    Raises
    ------
    TypeError, ValueError
        If an argument is of the wrong kind or does not fit.

    Examples
    --------
    >>> import numpy as np, numbagn
    >>> layer = numbagn.InstanceNorm(4, bias_init=[0, 1, 2, 3])
    >>> layer(np.ones((1, 4, 2), np.float32))[0, :, 0]
    array([0., 1., 2., 3.], dtype=float32)
    """

    def __init__(  # noqa: PLR0913 - public
        self,
        num_channels: int,
        eps: float = 1e-5,
        affine: bool = True,
        *,
        bias: bool = True,
        dtype: Any = np.float32,
        weight_init: Init = 1.0,
        bias_init: Init = 0.0,
        channel_axis: int = 1,
        activation: str | None = None,
    ) -> None:
        self._set_sizes(num_channels, num_channels, channel_axis)
        self._set_up(eps, activation, affine, bias, dtype, (weight_init, bias_init))

    def _sizes(self) -> tuple[Any, ...]:
        return (self.num_channels,)


class LayerNorm(Layer):
    """Layer normalization with parameters of its own.

    Parameters
    ----------
    normalized_shape : int or tuple of int
        The last dimensions of the arrays to come, over which each row is normalized; an int stands for one dimension.
    eps : float, optional
        Added to the variance; finite, not negative.
    affine : bool, optional
        Whether there are a weight and a bias.
    bias : bool, optional
        Whether there is a bias beside the weight.
    dtype : dtype, optional
        Of the parameters: float16, bfloat16, float32 or float64.
    weight_init, bias_init : float, array or callable, optional
        What the parameters begin with: a number, an array of normalized_shape, or a function that is given that shape.
    activation : {None, "relu", "silu", "gelu", "gelu_tanh"}, optional
        Applied after weight and bias.

    Attributes
    ----------
    weight, bias : ndarray of normalized_shape or None
        The parameters; an optimizer may write into them or set others.

    Raises
    ------
    TypeError, ValueError
        If an argument is of the wrong kind or does not fit.

    Notes
    -----
    A call keeps nothing, so that one layer may serve any number of threads. What `forward` saves has a mean and a rstd
    of the leading dimensions' shape.

    Examples
    --------
    >>> import numpy as np, numbagn
    >>> layer = numbagn.LayerNorm(4)
    >>> y, saved = layer.forward(np.arange(24, dtype=np.float32).reshape(2, 3, 4))
    >>> dx, dweight, dbias = layer.backward(np.ones_like(y), saved)
    >>> dbias
    array([6., 6., 6., 6.], dtype=float32)
    """

    def __init__(
        self,
        normalized_shape: int | tuple[int, ...],
        eps: float = 1e-5,
        affine: bool = True,
        *,
        bias: bool = True,
        dtype: Any = np.float32,
        weight_init: Init = 1.0,
        bias_init: Init = 0.0,
        activation: str | None = None,
    ) -> None:
        self.normalized_shape = normalized(normalized_shape)
        self._set_up(eps, activation, affine, bias, dtype, (weight_init, bias_init))

    def _sizes(self) -> tuple[Any, ...]:
        return self.normalized_shape if len(self.normalized_shape) == 1 else (self.normalized_shape,)

    def _parameter_shape(self) -> tuple[int, ...]:
        return self.normalized_shape

    def _grouping(self, x: Any) -> tuple[Any, Any]:
        return self.normalized_shape, ROWS
