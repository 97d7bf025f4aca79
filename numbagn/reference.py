"""Group normalization by its definition: textbook NumPy in float64, one line for each formula.

Everything else in this package is tested against these two functions. They take the arguments of `numbagn.group_norm`
and `numbagn.group_norm_backward` but return float64, whatever comes in.

    y = activation((x + skip - mean) * rstd * weight + bias + residual),   rstd = 1 / sqrt(var + eps)

with mean and var over each group: C / G consecutive channels of one sample, at all positions (Wu & He 2018, "Group
Normalization", https://arxiv.org/abs/1803.08494).
"""

import math

import numpy as np

__all__ = ["ACTIVATIONS", "group_norm", "group_norm_backward"]

_erf = np.vectorize(math.erf, otypes=[np.float64])


def _sigmoid(z):
    with np.errstate(over="ignore"):
        return 1.0 / (1.0 + np.exp(-z))


def _cdf(z):
    return 0.5 * (1.0 + _erf(z / math.sqrt(2.0)))


def _tanh_argument(z):
    return math.sqrt(2.0 / math.pi) * (z + 0.044715 * z**3)


def _silu_slope(z):
    return _sigmoid(z) * (1.0 + z * (1.0 - _sigmoid(z)))


def _gelu_slope(z):
    return _cdf(z) + z * np.exp(-z * z / 2.0) / math.sqrt(2.0 * math.pi)


def _gelu_tanh_slope(z):
    t = np.tanh(_tanh_argument(z))
    return 0.5 * (1.0 + t) + 0.5 * z * (1.0 - t * t) * math.sqrt(2.0 / math.pi) * (1.0 + 3.0 * 0.044715 * z * z)


# name: (activation, derivative); at 0 the derivative of relu is 0
ACTIVATIONS = {
    None: (lambda z: z, np.ones_like),
    "relu": (lambda z: np.where(z < 0.0, 0.0, z), lambda z: np.where(z > 0.0, 1.0, 0.0)),
    "silu": (lambda z: z * _sigmoid(z), _silu_slope),
    "gelu": (lambda z: z * _cdf(z), _gelu_slope),
    "gelu_tanh": (lambda z: 0.5 * z * (1.0 + np.tanh(_tanh_argument(z))), _gelu_tanh_slope),
}


def _float64(array, channel_axis):
    return np.moveaxis(np.asarray(array).astype(np.float64), channel_axis, 1)


def _per_channel(parameter, x, default):
    """A parameter of shape (C,) or (N, C), so shaped that it broadcasts against x (N, C, ...)."""
    if parameter is None:
        return np.float64(default)
    parameter = np.asarray(parameter).astype(np.float64)
    return parameter.reshape((-1, x.shape[1]) + (1,) * (x.ndim - 2))


def _normalized(x, num_groups, eps):
    """x_hat, mean and rstd of x (N, C, ...); mean and rstd (N, G). A constant group has x_hat = 0 even if eps = 0."""
    # contiguous, as NumPy sums pairwise along such an axis only
    groups = np.ascontiguousarray(x.reshape(x.shape[0], num_groups, math.prod(x.shape[1:]) // num_groups))
    if groups.size == 0:
        return x, np.zeros(groups.shape[:2]), np.zeros(groups.shape[:2])
    mean, var = groups.mean(axis=2, keepdims=True), groups.var(axis=2, keepdims=True)
    with np.errstate(divide="ignore"):
        rstd = np.where(var + eps == 0.0, 0.0, 1.0 / np.sqrt(var + eps))
    return ((groups - mean) * rstd).reshape(x.shape), mean[..., 0], rstd[..., 0]


def group_norm(  # noqa: PLR0913 - mirrors what it defines
    x, num_groups, weight=None, bias=None, eps=1e-5, *, channel_axis=1, activation=None, skip=None, residual=None
):
    """Normalize each group of channels of each sample, in float64.

    Parameters
    ----------
    x, num_groups, weight, bias, eps, channel_axis, activation, skip, residual
        As for `numbagn.group_norm_forward`; x may be anything that `numpy.asarray` takes.

    Returns
    -------
    y : ndarray of float64
        Of x's shape.
    mean, rstd : (N, G) ndarray of float64
        The mean of each group and the inverse of its standard deviation, eps included.

    Raises
    ------
    KeyError, ValueError
        By NumPy or Python where arguments do not fit: nothing is checked beforehand.

    Examples
    --------
    >>> from numbagn import reference
    >>> y, mean, rstd = reference.group_norm([[[1.0, 3.0], [5.0, 7.0]]], 1, eps=0)
    >>> mean
    array([[4.]])
    """
    v = _float64(x, channel_axis)
    v = v if skip is None else v + _float64(skip, channel_axis)
    x_hat, mean, rstd = _normalized(v, num_groups, eps)
    z = x_hat * _per_channel(weight, v, 1.0) + _per_channel(bias, v, 0.0)
    z = z if residual is None else z + _float64(residual, channel_axis)
    return np.moveaxis(ACTIVATIONS[activation][0](z), 1, channel_axis), mean, rstd


def group_norm_backward(  # noqa: PLR0913 - mirrors what it defines
    dy, x, num_groups, weight=None, bias=None, eps=1e-5, *, channel_axis=1, activation=None, skip=None, residual=None
):
    """Gradients from dy, in float64 and from statistics of its own.

    Parameters
    ----------
    dy : ndarray
        The gradient with respect to y: of x's shape.
    x, num_groups, weight, bias, eps, channel_axis, activation, skip, residual
        As for `group_norm`.

    Returns
    -------
    dx : ndarray of float64
        Of x's shape.
    dweight, dbias : ndarray of float64
        Of the parameter's shape, (C,) or (N, C); (C,) where the parameter is None.
    dresidual : ndarray of float64 or None
        Of x's shape; None where `residual` is.

    Raises
    ------
    KeyError, ValueError
        By NumPy or Python where arguments do not fit: nothing is checked beforehand.

    Examples
    --------
    >>> from numbagn import reference
    >>> reference.group_norm_backward([[[1.0, 2.0]]], [[[1.0, 3.0]]], 1)[2]
    array([3.])
    """
    v, dy = _float64(x, channel_axis), _float64(dy, channel_axis)
    v = v if skip is None else v + _float64(skip, channel_axis)
    x_hat, _, rstd = _normalized(v, num_groups, eps)
    w = _per_channel(weight, v, 1.0)
    z = x_hat * w + _per_channel(bias, v, 0.0)
    z = z if residual is None else z + _float64(residual, channel_axis)
    dz = dy * ACTIVATIONS[activation][1](z)
    spatial = tuple(range(2, v.ndim))

    def gradient(per_channel, parameter):
        return per_channel.sum(axis=spatial if np.ndim(parameter) == 2 else (0, *spatial))

    grouped = (v.shape[0], num_groups, math.prod(v.shape[1:]) // num_groups)
    dx_hat, x_hat_g = (dz * w).reshape(grouped), x_hat.reshape(grouped)
    if dx_hat.size:
        m1, m2 = dx_hat.mean(axis=2, keepdims=True), (dx_hat * x_hat_g).mean(axis=2, keepdims=True)
        dx_hat = rstd[..., None] * (dx_hat - m1 - x_hat_g * m2)
    return (
        np.moveaxis(dx_hat.reshape(v.shape), 1, channel_axis),
        gradient(dz * x_hat, weight),
        gradient(dz, bias),
        None if residual is None else np.moveaxis(dz, 1, channel_axis),
    )
