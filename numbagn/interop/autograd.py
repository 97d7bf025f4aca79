"""Group normalization for HIPS autograd (https://github.com/HIPS/autograd), differentiable twice in both modes.

First derivatives run on the kernels, second ones are `numbagn.group_norm_double_backward` and its forward counterpart.
"""

from typing import Any, NamedTuple

import numpy as np
from autograd.builtins import tuple as traced_tuple
from autograd.extend import defjvp_argnums, defvjp_argnums, primitive
from autograd.tracer import getval

from ..calls.arguments import Backward, Forward
from ..calls.passes import backward, forward
from ..derivatives.formulas import Direction, double_backward, second_tangent, tangent

__all__ = ["group_norm"]


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
) -> Any:
    """Normalize as `numbagn.group_norm` does, inside a function that autograd differentiates.

    Parameters
    ----------
    x, weight, bias, skip, residual
        As for `numbagn.group_norm`; derivatives may be taken with respect to each, twice. `skip` is added to x before
        the call, in their common dtype.
    num_groups, eps, channel_axis, activation
        As for `numbagn.group_norm`.

    Returns
    -------
    ndarray
        y, as from `numbagn.group_norm`.

    Raises
    ------
    TypeError, ValueError
        As `numbagn.group_norm`.
    NotImplementedError
        By autograd, if a third derivative is asked for.

    Examples
    --------
    >>> import autograd, numpy as np
    >>> from numbagn.interop.autograd import group_norm
    >>> x, weight = np.arange(8.0).reshape(1, 4, 2), np.ones(4)
    >>> autograd.grad(lambda weight: (group_norm(x, 2, weight) ** 2).sum())(weight)
    array([3.999968, 3.999968, 3.999968, 3.999968])
    """
    x = x if skip is None else x + skip
    call = _Call(None, None, None, num_groups, eps, channel_axis, activation)
    y, mean, rstd = forward(call.forward(*map(getval, (x, weight, bias, residual))), True)
    return _norm(x, weight, bias, residual, call._replace(y=y, mean=mean, rstd=rstd))


class _Call(NamedTuple):
    """What one call gave, and its options."""

    y: Any
    mean: Any
    rstd: Any
    num_groups: int
    eps: float
    channel_axis: int
    activation: str | None

    def forward(self, x: Any, weight: Any, bias: Any, residual: Any) -> Forward:
        """The arguments of the forward pass at a point."""
        given = Forward(x, self.num_groups, weight, bias, self.eps, self.channel_axis, self.activation)
        return given._replace(residual=residual)

    def backward(self, dy: Any, x: Any, weight: Any, bias: Any, residual: Any) -> Backward:
        """The arguments of the backward pass."""
        given = Backward(dy, x, self.mean, self.rstd, self.num_groups, weight, bias, self.channel_axis, self.activation)
        return given._replace(residual=residual)


# A point is (x, weight, bias, residual); a direction has one array or None for each of them.


@primitive  # type: ignore[untyped-decorator]
def _norm(x: Any, weight: Any, bias: Any, residual: Any, call: _Call) -> Any:
    return call.y


@primitive  # type: ignore[untyped-decorator]
def _gradients(dy: Any, x: Any, weight: Any, bias: Any, residual: Any, call: _Call) -> Any:
    return backward(call.backward(dy, x, weight, bias, residual))


@primitive  # type: ignore[untyped-decorator]
def _tangent(*direction_point_call: Any) -> Any:
    *direction, x, weight, bias, residual, call = direction_point_call
    along = Direction(*direction)
    if along.x is None:
        along = along._replace(x=np.zeros_like(x))
    return tangent(call.forward(x, weight, bias, residual), along)[1]


@primitive  # type: ignore[untyped-decorator]
def _double(*direction_dy_point_call: Any) -> Any:
    *direction, dy, x, weight, bias, residual, call = direction_dy_point_call
    return double_backward(call.backward(dy, x, weight, bias, residual), Direction(*direction))


@primitive  # type: ignore[untyped-decorator]
def _bend(*directions_point_call: Any) -> Any:
    one, two = Direction(*directions_point_call[:4]), Direction(*directions_point_call[4:8])
    *point, call = directions_point_call[8:]
    return second_tangent(one, two, call.backward(None, *point))


def _direction(argnums: Any, gs: Any, first: int) -> list[Any]:
    """The tangents of arguments `first` to first + 3."""
    given = dict(zip(argnums, gs, strict=True))
    return [given.get(i) for i in range(first, first + 4)]


def _norm_vjp(argnums: Any, ans: Any, args: Any, kwargs: Any) -> Any:
    def vjp(dy: Any) -> list[Any]:
        gradients = _gradients(dy, *args)
        return [gradients[i] for i in argnums]

    return vjp


def _norm_jvp(argnums: Any, gs: Any, ans: Any, args: Any, kwargs: Any) -> Any:
    return _tangent(*_direction(argnums, gs, 0), *args)


def _gradients_vjp(argnums: Any, ans: Any, args: Any, kwargs: Any) -> Any:
    def vjp(upstream: Any) -> list[Any]:
        direction = [upstream[i] if i < len(ans) else None for i in range(4)]
        second = _double(*direction, *args)
        return [second[i] for i in argnums]

    return vjp


def _gradients_jvp(argnums: Any, gs: Any, ans: Any, args: Any, kwargs: Any) -> Any:
    # linear in dy; along the others it changes as the gradient of what the tangent makes with dy
    dy, *point_call = args
    parts = []
    if 0 in argnums:
        parts.append(_gradients(gs[argnums.index(0)], *point_call))
    if any(argnums):
        parts.append(_double(*_direction(argnums, gs, 1), dy, *point_call)[1:])
    return parts[0] if len(parts) == 1 else traced_tuple(tuple(a + b for a, b in zip(*parts, strict=True)))


def _tangent_vjp(argnums: Any, ans: Any, args: Any, kwargs: Any) -> Any:
    direction, point_call = args[:4], args[4:]

    def vjp(dy: Any) -> list[Any]:
        gradients = _gradients(dy, *point_call) if min(argnums) < 4 else ()
        second = _double(*direction, dy, *point_call)[1:] if max(argnums) >= 4 else ()
        return [gradients[i] if i < 4 else second[i - 4] for i in argnums]

    return vjp


def _tangent_jvp(argnums: Any, gs: Any, ans: Any, args: Any, kwargs: Any) -> Any:
    direction, point_call = args[:4], args[4:]
    parts = []
    if min(argnums) < 4:
        parts.append(_tangent(*_direction(argnums, gs, 0), *point_call))
    if max(argnums) >= 4:
        parts.append(_bend(*direction, *_direction(argnums, gs, 4), *point_call))
    return sum(parts[1:], parts[0])


defvjp_argnums(_norm, _norm_vjp)
defjvp_argnums(_norm, _norm_jvp)
defvjp_argnums(_gradients, _gradients_vjp)
defjvp_argnums(_gradients, _gradients_jvp)
defvjp_argnums(_tangent, _tangent_vjp)
defjvp_argnums(_tangent, _tangent_jvp)
