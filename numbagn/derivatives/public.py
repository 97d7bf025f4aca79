"""Derivatives beyond the gradient, forward mode and second derivatives: what they take, give and promise."""

from typing import Any

from ..calls.arguments import Backward, Forward
from .formulas import Direction, double_backward, tangent

__all__ = ["group_norm_double_backward", "group_norm_jvp"]


def group_norm_jvp(  # noqa: PLR0913 - public
    x: Any,
    dx: Any,
    num_groups: int,
    weight: Any = None,
    bias: Any = None,
    eps: float = 1e-5,
    *,
    dweight: Any = None,
    dbias: Any = None,
    channel_axis: int = 1,
    activation: str | None = None,
) -> tuple[Any, Any]:
    """Normalize, and push a direction forward: y, and how it changes as x and the parameters change (forward mode).

    Parameters
    ----------
    x, num_groups, weight, bias, eps, channel_axis, activation
        As for `numbagn.group_norm`.
    dx : ndarray
        The direction of x: of x's shape, of any of x's dtypes.
    dweight, dbias : ndarray, optional
        The directions of weight and bias: of their shapes, (C,) or (N, C) where the parameter is None (that of the 1 or
        0 which stands for it then). None is a direction of zeros.

    Returns
    -------
    y : ndarray
        As from `numbagn.group_norm`.
    dy : ndarray
        The Jacobian of y times the direction: of x's shape, dtype and memory order.

    Raises
    ------
    TypeError, ValueError
        As `numbagn.group_norm`, and where a direction does not fit.

    See Also
    --------
    group_norm_backward : the Jacobian's transpose, reverse mode.
    group_norm_double_backward : second derivatives.

    Notes
    -----
    With ``u = rstd * (dx - mean(dx) - x_hat * mean(dx * x_hat))``, the means over the group: ``dy = activation'(z) *
    (weight * u + x_hat * dweight + dbias)``. This holds by the chain rule, as ``rstd`` changes by ``-rstd**2 * mean(dx
    * x_hat)``. float16 and bfloat16 are rounded once, at the end.

    float32 results are within 1e-5 of float64 ones at any offset of x and dx, relative to the largest (where the terms
    of u all but cancel, as for dx proportional to x: relative to the largest term).

    Examples
    --------
    >>> import numpy as np, numbagn
    >>> x = np.array([[[0, 1, 2, 3], [4, 5, 6, 7]]], np.float32)
    >>> dx = np.zeros_like(x)
    >>> dx[0, 0, 0] = 1
    >>> y, dy = numbagn.group_norm_jvp(x, dx, 1)
    >>> dy[0, 0].round(3)
    array([ 0.255, -0.145, -0.109, -0.073], dtype=float32)
    """
    at = Forward(x, num_groups, weight, bias, eps, channel_axis, activation)
    return tangent(at, Direction(dx, dweight, dbias))


def group_norm_double_backward(  # noqa: PLR0913 - public
    ddx: Any,
    dy: Any,
    x: Any,
    mean: Any,
    rstd: Any,
    num_groups: int,
    weight: Any = None,
    bias: Any = None,
    *,
    ddweight: Any = None,
    ddbias: Any = None,
    channel_axis: int = 1,
    activation: str | None = None,
    skip: Any = None,
    residual: Any = None,
    ddresidual: Any = None,
) -> tuple[Any, ...]:
    """Gradients of a loss that was made of `group_norm_backward`'s results: for gradient penalties and meta-learning.

    Parameters
    ----------
    ddx : ndarray or None
        The gradient of the loss with respect to dx, the first result of `group_norm_backward`: of x's shape, of any of
        x's dtypes. None is a gradient of zeros.
    dy, x, mean, rstd, num_groups, weight, bias, channel_axis, activation, skip, residual
        What `numbagn.group_norm_backward` was given.
    ddweight, ddbias : ndarray, optional
        The gradients of the loss with respect to dweight and dbias: of the parameters' shapes, (C,) or (N, C) where the
        parameter is None.
    ddresidual : ndarray, optional
        The gradient of the loss with respect to dresidual, where there is one: of x's shape, of any of x's dtypes.

    Returns
    -------
    grad_dy, grad_x : ndarray
        The gradients of the loss with respect to dy and x: of the shape, dtype and memory order of each; grad_x is also
        the gradient with respect to `skip`. It takes into account that mean and rstd are functions of x.
    grad_weight, grad_bias : ndarray
        Of the parameter's own shape and dtype. Where the parameter is None: (C,), in float32, for float64 x in float64.
    grad_residual : ndarray
        Only where `residual` is given: of x's shape, of residual's dtype.

    Raises
    ------
    TypeError, ValueError
        As `numbagn.group_norm_backward`, and where a gradient does not fit.

    Notes
    -----
    Let m be the mean over a group, J v = ``rstd * (v - m(v) - x_hat * m(v * x_hat))`` the derivative of x_hat, which is
    symmetric, and z what the activation is applied to. The backward pass is, with ``dz = dy * activation'(z)``,

        dx = J(weight * dz),  dweight = sum(dz * x_hat),  dbias = sum(dz),  dresidual = dz

    The loss depends on dy, x and the parameters through ``sum(dy * activation'(z) * t)`` with ``u = J ddx``,

        t = weight * u + ddweight * x_hat + ddbias + ddresidual

    t is the direction of z that `group_norm_jvp` would give for (ddx, ddweight, ddbias). Hence

        h = dy * activation''(z) * t
        grad_dy = activation'(z) * t,  grad_bias = sum(h),  grad_weight = sum(h * x_hat + dz * u),  grad_residual = h
        grad_x = J(weight * h + ddweight * dz)
                 - rstd * (x_hat * m(weight * dz * u) + m(ddx * x_hat) * dx + m(weight * dz * x_hat) * u)

    where the last line is what the change of J itself gives. activation'' is exact for every activation; that of relu
    is 0, also at 0.

    This is plain NumPy in float64, a stretch of samples at a time: 3 to 4 times the time of `group_norm_backward`, with
    the exact gelu 12 times.

    Examples
    --------
    A penalty on the gradient's square, ``sum(dx**2)``, differentiated by x:

    >>> import numpy as np, numbagn
    >>> x = np.array([[[0, 1, 2, 3], [4, 5, 6, 7]]], np.float64)
    >>> dy = np.cos(x)
    >>> _, mean, rstd = numbagn.group_norm_forward(x, 1)
    >>> dx, _, _ = numbagn.group_norm_backward(dy, x, mean, rstd, 1)
    >>> _, grad_x, _, _ = numbagn.group_norm_double_backward(2 * dx, dy, x, mean, rstd, 1)
    >>> grad_x[0, 0].round(4)
    array([0.119 , 0.0879, 0.0631, 0.0335])
    """
    at = Backward(dy, x, mean, rstd, num_groups, weight, bias, channel_axis, activation, skip, residual)
    return double_backward(at, Direction(ddx, ddweight, ddbias, ddresidual))
