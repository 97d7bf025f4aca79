"""The public functions: what they take, give and promise. How a call runs stands in `calls.passes`."""

from typing import Any

from .calls.passes import backward, forward
from .calls.rows import ROWS

__all__ = ["group_norm", "group_norm_backward", "group_norm_forward", "instance_norm", "layer_norm"]


def group_norm(  # noqa: PLR0913 - public
    x: Any,
    num_groups: int,
    weight: Any = None,
    bias: Any = None,
    eps: float = 1e-5,
    *,
    channel_axis: int = 1,
    activation: str | None = None,
    skip: Any = None,
    residual: Any = None,
    lengths: Any = None,
    mask: Any = None,
    out: Any = None,
) -> Any:
    """Normalize each group of channels of each sample.

    Parameters
    ----------
    x : (N, C, ...) ndarray of float16, bfloat16, float32 or float64, or of uint8, int8, uint16 or int16
        The samples. Axis 0 is the batch, `channel_axis` the channels, all others are positions. Any strides and byte
        order; memory is not copied if samples, channels and positions lie densely in channels-first or channels-last
        order (slices along the batch, and channels-last slices of 64 channels or more, are dense enough). A memory map
        is read in place. Of integers the result is float32, made in one pass, without a converted copy.
    num_groups : int
        The number of groups G, a divisor of C: 1 is layer norm over channels and positions, C is instance norm.
    weight, bias : (C,) or (N, C) ndarray, optional
        Scale and shift of each channel, or of each channel of each sample; each alone if wanted. Of any of the four
        float dtypes; applied in float32, for float64 x in float64.
    eps : float, optional
        Added to the variance; finite, not negative.
    channel_axis : int, optional
        The axis of the channels, not 0.
    activation : {None, "relu", "silu", "gelu", "gelu_tanh"}, optional
        Applied last.
    skip : ndarray, optional
        Added to x before the statistics are taken. Of x's shape, of any of the float dtypes.
    residual : ndarray, optional
        Added after weight and bias, before the activation. Of x's shape, of any of the float dtypes.
    lengths : (N,) array or list of int, optional
        How many positions of each sample are valid, counted along the first spatial axis: a padded batch of sequences.
        The statistics are over the valid ones; y is 0 at the others, which may hold anything, NaN too.
    mask : ndarray of bool, optional
        Which positions are valid: of shape (N, 1, ...), 1 being at the channel axis, or one that broadcasts to it.
    out : ndarray, optional
        Where to write the result: of y's shape and dtype, in either byte order, with memory of its own for each
        element. It may be x itself; where it overlaps an argument in any other way the result is as if it did not.

    Returns
    -------
    ndarray
        y, of x's shape, dtype (float32 for integers) and memory order; `out` if that is given.

    Raises
    ------
    TypeError
        If an argument is of a kind or dtype that is not taken.
    ValueError
        If a shape, the number of groups or another value does not fit. Nothing is written then.

    See Also
    --------
    group_norm_forward : also gives the statistics, which the backward pass needs.
    GroupNorm : holds the parameters.

    Notes
    -----
    ``y = activation((x + skip - mean) * rstd * weight + bias + residual)`` with ``rstd = 1 / sqrt(var +
    eps)``, mean and (biased) variance over the C / G channels of a group and all positions [1]_.

    The statistics are as good as float64 ones, whatever the dtype, layout and offset of x, and whatever `skip` adds to
    it or cancels. A group that holds NaN or an infinity becomes NaN, no other does; a constant group becomes the bias,
    also with ``eps=0``. The bits of the result do not depend on the number of threads, on the other samples of the
    batch, or on `out`.

    Arrays of other libraries in CPU memory are taken wherever arrays are, without a copy: tensors of torch that require
    no gradients, arrays of JAX (not as `out`), and those of any library that keeps to the array API standard. Results
    are of x's kind; statistics for JAX arrays are NumPy's unless JAX has float64. For a Dask array they are Dask
    arrays: each chunk is a call of its own where chunks cut the batch only, and normalized by the merged moments of all
    chunks where they cut positions too; chunks that cut groups are lengthened to the ends of groups first. Their bits
    depend on the chunks' sizes then.

    References
    ----------
    .. [1] Wu, Y. and He, K. (2018). Group Normalization. https://arxiv.org/abs/1803.08494

    Examples
    --------
    >>> import numpy as np, numbagn
    >>> x = np.arange(16, dtype=np.float32).reshape(1, 4, 4)
    >>> numbagn.group_norm(x, 2)[0, 0].round(3)
    array([-1.528, -1.091, -0.655, -0.218], dtype=float32)
    """
    given = x, num_groups, weight, bias, eps, channel_axis, activation, skip, residual, lengths, mask, out
    return forward(given, False)[0]


def group_norm_forward(  # noqa: PLR0913 - public
    x: Any,
    num_groups: int,
    weight: Any = None,
    bias: Any = None,
    eps: float = 1e-5,
    *,
    channel_axis: int = 1,
    activation: str | None = None,
    skip: Any = None,
    residual: Any = None,
    lengths: Any = None,
    mask: Any = None,
    out: Any = None,
) -> tuple[Any, Any, Any]:
    """Normalize, and give the statistics too: what training needs.

    Parameters
    ----------
    x, num_groups, weight, bias, eps, channel_axis, activation, skip, residual, lengths, mask, out
        As for `group_norm`.

    Returns
    -------
    y : ndarray
        As from `group_norm`.
    mean, rstd : (N, G) ndarray of float64
        The mean of each group and the inverse of its standard deviation, eps included. rstd is 0 for a constant group
        with ``eps=0``.

    Raises
    ------
    TypeError, ValueError
        As `group_norm`.
    """
    given = x, num_groups, weight, bias, eps, channel_axis, activation, skip, residual, lengths, mask, out
    return forward(given, True)


def group_norm_backward(  # noqa: PLR0913 - public
    dy: Any,
    x: Any,
    mean: Any,
    rstd: Any,
    num_groups: int,
    weight: Any = None,
    bias: Any = None,
    *,
    channel_axis: int = 1,
    activation: str | None = None,
    skip: Any = None,
    residual: Any = None,
    lengths: Any = None,
    mask: Any = None,
    out: Any = None,
) -> tuple[Any, ...]:
    """Gradients of a loss with respect to x, weight, bias and residual, from its gradient with respect to y.

    Parameters
    ----------
    dy : ndarray
        The gradient with respect to y: of x's shape, of any of the float dtypes.
    x, num_groups, weight, bias, channel_axis, activation, skip, residual, lengths, mask
        What the forward pass was given. `bias` and `residual` matter only with an activation.
    mean, rstd : (N, G) ndarray
        The statistics, as from `group_norm_forward`; those of other libraries (float32) are taken as they are.
    out : ndarray, optional
        Where to write dx: of its shape and dtype; may be x or dy itself.

    Returns
    -------
    dx : ndarray
        Of x's shape, dtype (float32 for integers) and memory order; it is also the gradient with respect to `skip`.
    dweight, dbias : ndarray
        Of the parameter's own shape and dtype, (C,) or (N, C). Where the parameter is None: (C,), in float32, for
        float64 x in float64.
    dresidual : ndarray
        Only where `residual` is given: of x's shape, of residual's dtype.

    Raises
    ------
    TypeError, ValueError
        As `group_norm`.

    Notes
    -----
    With ``dz = dy * activation'(z)`` and ``g = dz * weight``: ``dx = rstd * (g - mean(g) - x_hat * mean(g *
    x_hat))``, the means over the group; ``dweight`` and ``dbias`` are the sums of ``dz * x_hat`` and of ``dz`` over
    positions (and samples). For float32 and halves rstd counts as 1e38 at most: it is more for a constant group with an
    eps below 1e-76 alone, where dx would exceed the range of these dtypes unless its terms cancel. The bits of dx, of
    dresidual and of (N, C) gradients do not depend on the batch, none depend on the threads.
    """
    given = dy, x, mean, rstd, num_groups, weight, bias, channel_axis, activation, skip, residual, lengths, mask, out
    return backward(given)


def instance_norm(  # noqa: PLR0913 - public
    x: Any,
    weight: Any = None,
    bias: Any = None,
    eps: float = 1e-5,
    *,
    channel_axis: int = 1,
    activation: str | None = None,
    skip: Any = None,
    residual: Any = None,
    lengths: Any = None,
    mask: Any = None,
    out: Any = None,
) -> Any:
    """Normalize each channel of each sample over its positions: `group_norm` with as many groups as channels.

    Parameters
    ----------
    x, weight, bias, eps, channel_axis, activation, skip, residual, lengths, mask, out
        As for `group_norm`.

    Returns
    -------
    ndarray
        y, of x's shape, dtype and memory order; `out` if that is given.

    Raises
    ------
    TypeError, ValueError
        As `group_norm`.

    See Also
    --------
    InstanceNorm : holds the parameters.

    Notes
    -----
    Ulyanov, D., Vedaldi, A. and Lempitsky, V. (2016). Instance Normalization. https://arxiv.org/abs/1607.08022

    The backward pass is `group_norm_backward` with as many groups as channels.

    Examples
    --------
    >>> import numpy as np, numbagn
    >>> x = np.arange(16, dtype=np.float32).reshape(1, 4, 4)
    >>> numbagn.instance_norm(x)[0, 0].round(3)
    array([-1.342, -0.447,  0.447,  1.342], dtype=float32)
    """
    try:
        channels = x.shape[channel_axis]
    except (AttributeError, IndexError, TypeError):
        channels = 1  # the call tells what is wrong
    given = x, channels or 1, weight, bias, eps, channel_axis, activation, skip, residual, lengths, mask, out
    return forward(given, False)[0]


def layer_norm(  # noqa: PLR0913 - public
    x: Any,
    normalized_shape: Any,
    weight: Any = None,
    bias: Any = None,
    eps: float = 1e-5,
    *,
    activation: str | None = None,
    skip: Any = None,
    residual: Any = None,
    out: Any = None,
) -> Any:
    """Normalize each row of x, its last dimensions taken together.

    Parameters
    ----------
    x : (..., *normalized_shape) ndarray of float16, bfloat16, float32 or float64
        The rows; any number of leading dimensions, none too. Memory is not copied if each row is dense and rows are
        evenly spaced, in whatever order of the leading dimensions: slices of rows and time-first arrays seen
        batch-first are.
    normalized_shape : int or tuple of int
        x's last dimensions, over which the statistics are taken; an int stands for one dimension.
    weight, bias : ndarray of shape normalized_shape, optional
        Scale and shift of each element of a row; each alone if wanted. Of any of x's dtypes; applied in float32, for
        float64 x in float64.
    eps : float, optional
        Added to the variance; finite, not negative.
    activation, skip, residual, out
        As for `group_norm`.

    Returns
    -------
    ndarray
        y, of x's shape, dtype and memory order; `out` if that is given.

    Raises
    ------
    TypeError
        If an argument is of a kind or dtype that is not taken.
    ValueError
        If a shape or another value does not fit. Nothing is written then.

    See Also
    --------
    LayerNorm : holds the parameters, and has the backward pass.
    group_norm : with one group, normalizes whole samples, with a weight for each channel.

    Notes
    -----
    ``y = activation((x + skip - mean) * rstd * weight + bias + residual)`` with ``rstd = 1 / sqrt(var +
    eps)``, mean and (biased) variance over each row [1]_; accuracy and bits as for `group_norm`.

    References
    ----------
    .. [1] Ba, J. L., Kiros, J. R. and Hinton, G. E. (2016). Layer Normalization. https://arxiv.org/abs/1607.06450

    Examples
    --------
    >>> import numpy as np, numbagn
    >>> x = np.arange(12, dtype=np.float32).reshape(3, 4)
    >>> numbagn.layer_norm(x, 4)[2].round(3)
    array([-1.342, -0.447,  0.447,  1.342], dtype=float32)
    """
    given = x, normalized_shape, weight, bias, eps, ROWS, activation, skip, residual, None, None, out
    return forward(given, False)[0]
