"""`group_norm` inside users' functions compiled by Numba.

Numba imports this module before it first compiles anything (the entry point `numba_extensions` of the package), and
the kernels only when a function calls `group_norm`. Of Numba it takes documented names alone: where a release does not
fit the kernels, functions that do not call `group_norm` are none the worse for numbagn.
"""

from typing import Any

import numpy as np
from numba import TypingError, types
from numba.extending import overload

from ._process import need_compiler
from .calls.checks import ACTIVATIONS
from .functional import group_norm

__all__ = ["init"]


def init() -> None:
    """Nothing is left to do: the import has registered what is below."""


def _given(kind: Any) -> bool:
    """Whether the argument of that type is there; it comes as its default value where it is left out."""
    return kind != types.none and getattr(kind, "value", kind) is not None


def _array(name: str, kind: Any, ndims: tuple[int, ...] = ()) -> None:
    if not isinstance(kind, types.Array) or kind.dtype not in (types.float32, types.float64):
        raise TypingError(f"{name} must be an array of float32 or float64 in compiled functions, got {kind}")
    if ndims and kind.ndim not in ndims:
        raise TypingError(f"{name} must have {' or '.join(map(str, ndims))} dimensions, got {kind.ndim}")


def _number(name: str, kind: Any, what: str, *kinds: type) -> None:
    if not isinstance(getattr(kind, "value", kind), kinds) or isinstance(kind, types.Boolean):
        raise TypingError(f"{name} must be {what}, got {kind}")


@overload(group_norm)
def _group_norm(  # noqa: PLR0913, PLR0917 - mirrors `group_norm`
    x: Any,
    num_groups: Any,
    weight: Any = None,
    bias: Any = None,
    eps: Any = 1e-5,
    channel_axis: Any = 1,
    activation: Any = None,
    skip: Any = None,
    residual: Any = None,
    out: Any = None,
) -> Any:
    """Check the types; the code is `kernels.cpu.inside.forward_call`, and what values it takes.

    The options can be given by position, too: Numba's overloads know no others.
    """
    need_compiler()
    _array("x", x)
    if x.ndim < 2:
        raise TypingError(f"x must have at least 2 dimensions (N, C, ...), got {x.ndim}")
    _number("num_groups", num_groups, "an integer", types.Integer)
    _number("eps", eps, "a real number", float, types.Integer, types.Float)
    _number("channel_axis", channel_axis, "an integer", int, types.Integer)
    for name, kind in (("weight", weight), ("bias", bias)):
        if _given(kind):
            _array(name, kind, (1, 2))
    for name, kind in (("skip", skip), ("residual", residual)):
        if _given(kind):
            raise TypingError(f"{name} must be None in compiled functions, got {kind}")
    function = getattr(activation, "literal_value", None)
    if _given(activation) and function not in ACTIVATIONS[1:]:
        allowed = ", ".join(map(repr, ACTIVATIONS))
        raise TypingError(f"activation must be one of {allowed}, written out in compiled functions, got {activation}")
    if _given(out):
        _array("out", out)
        if (out.dtype, out.ndim) != (x.dtype, x.ndim):
            raise TypingError(f"out must have x's dtype and dimensions, {x.dtype} and {x.ndim}, got {out}")
        if not out.mutable:
            raise TypingError(f"out must be writable, got {out}")
    from .kernels.cpu.inside import forward_call
    from .kernels.cpu.links import linked

    # channels first, as the type tells: then the kernel for channels last is not needed
    first = int(x.layout == "C" and getattr(channel_axis, "value", channel_axis) == 1 and not _given(out))
    weight, bias, out = (kind if _given(kind) else types.none for kind in (weight, bias, out))
    signature = x, types.int64, weight, bias, types.float64, types.int64, out
    forward = linked(forward_call, signature, first, ACTIVATIONS.index(function))

    def call(  # noqa: PLR0913, PLR0917 - mirrors `group_norm`
        x: Any,
        num_groups: Any,
        weight: Any = None,
        bias: Any = None,
        eps: Any = 1e-5,
        channel_axis: Any = 1,
        activation: Any = None,
        skip: Any = None,
        residual: Any = None,
        out: Any = None,
    ) -> Any:
        return forward((x, np.int64(num_groups), weight, bias, np.float64(eps), np.int64(channel_axis), out))

    return call
