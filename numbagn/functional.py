"""The public functions. Each takes five steps: check, share out, allocate, run the kernel, give back what came in."""

from functools import lru_cache
from typing import Any

import numpy as np

from . import _schedule
from ._arrays import flat
from ._dtypes import STORED
from ._problem import CHANNELS_LAST, Problem, operand, output, parameter, problem, statistics

__all__ = ["group_norm", "group_norm_backward", "group_norm_forward"]

# Scratch rows of a task, channels last: see the kernels.
FORWARD_ROWS, BACKWARD_ROWS = 6, 10


def group_norm(
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
    out: Any = None,
) -> Any:
    """Normalize each group of channels of each sample.

    Parameters
    ----------
    x : (N, C, ...) ndarray of float16, bfloat16, float32 or float64
        The samples. Axis 0 is the batch, `channel_axis` the channels, all others are positions. Any strides and byte
        order; memory is not copied while samples, channels and positions lie densely in channels-first or channels-last
        order (slices along the batch, and channels-last slices along the channels, are dense enough). A memory map is
        read in place.
    num_groups : int
        The number of groups G, a divisor of C: 1 is layer norm over channels and positions, C is instance norm.
    weight, bias : (C,) or (N, C) ndarray, optional
        Scale and shift of each channel, or of each channel of each sample; each alone if wanted. Of any of x's dtypes;
        applied in float32, for float64 x in float64.
    eps : float, optional
        Added to the variance; finite, not negative.
    channel_axis : int, optional
        The axis of the channels, not 0.
    activation : {None, "relu", "silu", "gelu", "gelu_tanh"}, optional
        Applied last.
    skip : ndarray, optional
        Added to x before the statistics are taken. Of x's shape, of any of x's dtypes.
    residual : ndarray, optional
        Added after weight and bias, before the activation. Of x's shape, of any of x's dtypes.
    out : ndarray, optional
        Where to write the result: of x's shape and dtype. It may be x itself; where it overlaps an argument in any
        other way the result is as if it did not.

    Returns
    -------
    ndarray
        y, of x's shape, dtype and memory order; `out` if that is given.

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

    The statistics are as good as float64 ones, whatever the dtype, layout and offset of x. A group that holds NaN or an
    infinity becomes NaN, no other does; a constant group becomes the bias, also with ``eps=0``. The bits of the result
    do not depend on the number of threads, on the other samples of the batch, or on `out`.

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
    return group_norm_forward(
        x, num_groups, weight, bias, eps,
        channel_axis=channel_axis, activation=activation, skip=skip, residual=residual, out=out,
    )[0]  # fmt: skip


def group_norm_forward(
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
    out: Any = None,
) -> tuple[Any, Any, Any]:
    """Normalize, and give the statistics too: what training needs.

    Parameters
    ----------
    x, num_groups, weight, bias, eps, channel_axis, activation, skip, residual, out
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
    p = problem(x, num_groups, eps, channel_axis, activation)
    w, b = parameter("weight", weight, p), parameter("bias", bias, p)
    s, r = operand("skip", skip, p), operand("residual", residual, p)
    y = np.empty_like(x, dtype=p.x.dtype, subok=False) if out is None else output(out, p)
    mean, rstd = np.zeros((p.N, p.G)), np.zeros((p.N, p.G))
    if p.size == 0:
        return y, mean, rstd
    target, w, b = _target(y, p, w, b, (p.x, s, r))

    share = _shares("forward", p.layout, p.N, p.C, p.G, p.S, p.x.itemsize)
    dims = _dims(p, share, FORWARD_ROWS, w, b, X=p.x, SKIP=s, RES=r, Y=target)
    kernel_arguments = (
        dims, p.eps, _flat(p.x, p), _flat(s, p), _flat(r, p), _flat(target, p), _values(w, p, 1.0), _values(b, p, 0.0),
        mean.reshape(-1), rstd.reshape(-1), np.empty(2 * share["UNITS"] * share["PARTS"] * _groups_in_unit(p)),
        _scratch(p, share, FORWARD_ROWS),
    )  # fmt: skip
    from .kernels.forward import forward_kernel

    key = (p.layout, _kind(p.x), _kind(s), _kind(r), p.activation, share["PARALLEL"])
    forward_kernel(kernel_arguments, *key)(*kernel_arguments)
    if target is not y:
        np.copyto(y, target)
    return (y if out is None else out), mean, rstd


def group_norm_backward(
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
    out: Any = None,
) -> tuple[Any, ...]:
    """Gradients of a loss with respect to x, weight, bias and residual, from its gradient with respect to y.

    Parameters
    ----------
    dy : ndarray
        The gradient with respect to y: of x's shape, of any of x's dtypes.
    x, num_groups, weight, bias, channel_axis, activation, skip, residual
        What the forward pass was given. `bias` and `residual` matter only with an activation.
    mean, rstd : (N, G) ndarray
        The statistics, as from `group_norm_forward`; those of other libraries (float32) are taken as they are.
    out : ndarray, optional
        Where to write dx: of x's shape and dtype; may be x or dy itself.

    Returns
    -------
    dx : ndarray
        Of x's shape, dtype and memory order; it is also the gradient with respect to `skip`.
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
    positions (and samples). The bits of dx, of dresidual and of (N, C) gradients do not depend on the batch, none
    depend on the threads.
    """
    p = problem(x, num_groups, 0.0, channel_axis, activation)
    w, b = parameter("weight", weight, p), parameter("bias", bias, p)
    s, r = operand("skip", skip, p), operand("residual", residual, p)
    g = operand("dy", dy, p)
    if g is None:
        raise TypeError("dy must be a numpy.ndarray, got None")
    m, rs = statistics("mean", mean, p), statistics("rstd", rstd, p)
    dx = np.empty_like(x, dtype=p.x.dtype, subok=False) if out is None else output(out, p)
    dr = None if r is None else p.empty(r.dtype)
    sums = np.zeros((1, 2, p.N, p.C))
    if p.size:
        target, w, b = _target(dx, p, w, b, (p.x, g, s, r), m, rs)
        share = _shares("backward", p.layout, p.N, p.C, p.G, p.S, p.x.itemsize)
        dims = _dims(p, share, BACKWARD_ROWS, w, b, X=p.x, SKIP=s, RES=r, Y=target, DY=g, DRES=dr)
        sums = np.empty((share["PARTS"], 2, p.N, p.C))
        kernel_arguments = (
            dims, _flat(g, p), _flat(p.x, p), _flat(s, p), _flat(r, p), _flat(target, p), _flat(dr, p),
            _values(w, p, 1.0), _values(b, p, 0.0), m.reshape(-1), rs.reshape(-1), sums.reshape(-1),
            np.empty(3 * p.N * p.G), _scratch(p, share, BACKWARD_ROWS),
        )  # fmt: skip
        from .kernels.backward import backward_kernel

        key = (
            p.layout, _kind(p.x), _kind(g), _kind(s), _kind(r), _kind(dr), p.activation, share["PARALLEL"],
        )  # fmt: skip
        backward_kernel(kernel_arguments, *key)(*kernel_arguments)
        if target is not dx:
            np.copyto(dx, target)
    gradients = (
        dx if out is None else out,
        _parameter_gradient(sums[0, 1], weight, p),
        _parameter_gradient(sums[0, 0], bias, p),
    )
    if dr is None:
        return gradients
    with np.errstate(all="ignore"):
        return (*gradients, dr.astype(residual.dtype.newbyteorder("="), copy=False))


# ----------------------------------------------------------------------------------------------- from arrays to kernels


@lru_cache(maxsize=4096)
def _shares(direction: str, *sizes: int) -> dict[str, int]:
    share: dict[str, int] = getattr(_schedule, direction)(*sizes, _schedule.threads())
    return share


def _target(
    y: np.ndarray,
    p: Problem,
    w: np.ndarray | None,
    b: np.ndarray | None,
    operands: tuple[np.ndarray | None, ...],
    *others: np.ndarray,
) -> tuple[np.ndarray, np.ndarray | None, np.ndarray | None]:
    """What the kernel may write: y, or a new array in x's layout where y is laid out otherwise or in anything's way.

    An operand that is y itself is no hindrance, since each element is read before it is written.
    """

    def in_the_way(operand: np.ndarray | None) -> bool:
        if operand is None or not np.may_share_memory(y, operand):
            return False
        return p.steps(operand) != p.steps(y) or _start(operand) != _start(y) or operand.dtype != y.dtype

    if p.steps(y) is None or not y.flags.aligned or p.overlaps_itself(y):
        return p.empty(p.x.dtype), w, b
    if any(map(in_the_way, operands)) or any(np.may_share_memory(y, other) for other in others):
        return p.empty(p.x.dtype), w, b
    # parameters are small: they step out of the way
    w, b = (v.copy() if v is not None and np.may_share_memory(y, v) else v for v in (w, b))
    return y, w, b


def _start(array: np.ndarray) -> int:
    start: int = array.__array_interface__["data"][0]
    return start


def _kind(array: np.ndarray | None) -> int:
    """The number kernels know the array's dtype by; -1: no array."""
    return -1 if array is None else STORED.index(array.dtype.name)


def _flat(array: np.ndarray | None, p: Problem) -> np.ndarray:
    if array is None:
        return np.empty(1, p.dtype.accumulator)
    return flat(array, p.dtype.storage if array.dtype == p.x.dtype else array.dtype)


def _values(array: np.ndarray | None, p: Problem, default: float) -> np.ndarray:
    """A parameter's values, or the one value that stands for it where it is None."""
    if array is None:
        return np.array([default], p.dtype.accumulator)
    return flat(array, p.dtype.accumulator)


def _groups_in_unit(p: Problem) -> int:
    return p.G if p.layout == CHANNELS_LAST else 1


def _pitch(p: Problem) -> int:
    """Values of a row of scratch: C rounded up to whole 64-byte vectors."""
    width = 64 // p.dtype.accumulator.itemsize
    return -(-p.C // width) * width


def _scratch(p: Problem, share: dict[str, int], rows: int) -> np.ndarray:
    """Per-channel scratch for each task; only channels last needs it."""
    size = share["SLOTS"] * rows * _pitch(p) if p.layout == CHANNELS_LAST else 1
    return np.empty(size, p.dtype.accumulator)


def _dims(
    p: Problem,
    share: dict[str, int],
    rows: int,
    w: np.ndarray | None,
    b: np.ndarray | None,
    **arrays: np.ndarray | None,
) -> np.ndarray:
    """The kernels' integers, in the order of `kernels.geometry.FIELDS`."""
    from .kernels.geometry import FIELDS

    values = share | {"N": p.N, "C": p.C, "G": p.G, "D": p.C // p.G, "S": p.S, "SLOT": rows * _pitch(p)}
    for name, array in arrays.items():
        steps = (0, 0) if array is None else p.steps(array)
        assert steps is not None
        values[f"{name}_N"], values[f"{name}_R"] = steps
    for name, array in (("W", w), ("B", b)):
        values[f"{name}_N"] = p.C if array is not None and array.ndim == 2 else 0
        values[f"{name}_C"] = int(array is not None)
    target = arrays.pop("Y")
    if any(array is not None and np.may_share_memory(array, target) for array in arrays.values()):
        values["PAST"] = 0  # in place: its lines are in the cache already
    return np.array([values.get(field, 0) for field in FIELDS], np.int64)


def _parameter_gradient(sums: np.ndarray, parameter: Any, p: Problem) -> np.ndarray:
    """Sums (N, C) brought to the parameter's shape and dtype."""
    dtype = p.dtype.accumulator if parameter is None else parameter.dtype.newbyteorder("=")
    with np.errstate(all="ignore"):
        total = sums if parameter is not None and parameter.ndim == 2 else sums.sum(axis=0)
        return total.astype(dtype)
