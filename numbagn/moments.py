"""Statistics as values: of a part of a sample, merged with those of other parts, and applied to each part.

For what no single call can see whole: a stream, the tiles of an image, a volume larger than memory, the shares of
several machines. The forward kernel's phases do both halves of the work: it sums and settles here, writes there.
"""

from typing import Any, NamedTuple

import numpy as np

from .arrays.families import as_array, in_kind, in_memory, view
from .arrays.recycling import array_like
from .calls.checks import epsilon, output, parameter, problem, shown
from .calls.operands import Arrays, target_of
from .calls.passes import samples_apart
from .calls.positions import valid_positions
from .calls.running import plan_of, run
from .shapes.geometry import FIELDS, SETTLE, SUM, WRITE

__all__ = ["Moments", "group_moments", "normalize"]

# What the forward kernel is told in order to stop before it writes, or to do nothing else.
STATISTICS_ONLY = {"FIRST": SUM, "LAST": SETTLE + 1, "KEEP_M2": 1}
WRITE_ONLY = {"FIRST": WRITE, "LAST": WRITE + 1, "PARTS": 1}

Array = np.ndarray[Any, np.dtype[Any]]


class Moments(NamedTuple):
    """Number of values, mean and sum of squared deviations of each group: `group_moments` gives them.

    A plain tuple of three arrays, to be sent, stored or stacked as one likes; arrays of other real dtypes are converted
    where they are used.

    Parameters
    ----------
    count : (N, G) ndarray of float64
        How many values were seen; whole numbers, exact up to 2**53.
    mean : (N, G) ndarray of float64
        Their mean; anything where the count is 0.
    M2 : (N, G) ndarray of float64
        The sum of their squared deviations from the mean: the variance is ``M2 / count``.

    Raises
    ------
    TypeError
        If there are not three of them. The arrays are looked at where they are used.

    Examples
    --------
    >>> import numpy as np, numbagn
    >>> m = numbagn.group_moments(np.array([[[1.0, 2.0, 6.0]]]), 1)
    >>> m
    Moments(count=array([[3.]]), mean=array([[3.]]), M2=array([[14.]]))
    """

    count: Array  # type: ignore[assignment]  # a tuple's own `count` is no loss
    mean: Array
    M2: Array

    def merge(self, other: "Moments") -> "Moments":
        """The moments of both parts together.

        Parameters
        ----------
        other : Moments
            Of another part of the same samples: of the same shape.

        Returns
        -------
        Moments
            New arrays. A group that was not seen in one part (count 0) is that of the other part, bit by bit.

        Raises
        ------
        TypeError
            If `other` is no `Moments`, or not one of real numbers.
        ValueError
            If its shape is another.

        Notes
        -----
        The formulas of Chan, Golub and LeVeque [1]_, in float64. Merging the same parts in another order gives the same
        to within a few units of the last place, in the same order the same bits. NaN stays in its group, and nothing
        overflows whose result does not.

        References
        ----------
        .. [1] Chan, T. F., Golub, G. H. and LeVeque, R. J. (1979). Updating formulae and a pairwise algorithm for
           computing sample variances. Stanford University, STAN-CS-79-773.
        """
        a, b = _checked("self", self), _checked("other", other)
        if a.mean.shape != b.mean.shape:
            raise ValueError(f"other must have moments of shape {a.mean.shape}, got {b.mean.shape}")
        with np.errstate(all="ignore"):
            count = a.count + b.count
            share = b.count / count
            half = 0.5 * b.mean - 0.5 * a.mean  # of two numbers that both are finite it is, too
            mean = (a.mean + half * share) + half * share
            between = half * (2.0 * np.sqrt(a.count * share))
            both = Moments(count, mean, a.M2 + b.M2 + between * between)
        return Moments(
            *(
                np.where(b.count == 0.0, first, np.where(a.count == 0.0, second, merged))
                for first, second, merged in zip(a, b, both, strict=True)
            )
        )

    def rstd(self, eps: float = 1e-5) -> Array:
        """The inverse of each group's standard deviation, as from `group_norm_forward`.

        Parameters
        ----------
        eps : float, optional
            Added to the variance; finite, not negative.

        Returns
        -------
        rstd : (N, G) ndarray of float64
            ``1 / sqrt(M2 / count + eps)``. 0 for a constant group with ``eps=0``; NaN for a group of no values, and
            where the variance overflowed.

        Raises
        ------
        TypeError, ValueError
            If `eps` or the moments are not as said.
        """
        m, eps = _checked("self", self), epsilon(eps)
        with np.errstate(all="ignore"):
            variance = m.M2 / m.count + eps
            rstd: Array = 1.0 / np.sqrt(variance)
        rstd[variance == 0.0] = 0.0
        rstd[variance == np.inf] = np.nan
        return rstd


def group_moments(
    chunk: Any, num_groups: int, *, channel_axis: int = 1, lengths: Any = None, mask: Any = None
) -> Moments:
    """Count, mean and sum of squared deviations of each group of a part of the samples.

    Parameters
    ----------
    chunk : (N, C, ...) ndarray
        Some of the positions of N samples; all their channels, or those of `num_groups` whole groups. As `x` of
        `group_norm`.
    num_groups : int
        The number of groups G in the chunk, a divisor of C.
    channel_axis : int, optional
        The axis of the channels, not 0.
    lengths, mask
        Which positions of the chunk count, as for `group_norm`.

    Returns
    -------
    Moments
        A named tuple ``(count, mean, M2)`` of (N, G) float64 arrays, NumPy's whatever kind the chunk is of. A chunk
        without positions has count, mean and M2 0.

    Raises
    ------
    TypeError, ValueError
        As `group_norm`.

    See Also
    --------
    Moments.merge : puts parts together.
    normalize : applies the moments of the whole to each part.

    Notes
    -----
    All sums are taken in float64, whatever the dtype. For float32 values of unit variance and offsets to 1e6 the mean
    is right to two units in the last place (of the deviation, where that is larger), and M2 to 1e-14 of itself. The
    bits do not depend on the number of threads or on the other samples; they do depend on how samples are cut into
    chunks.

    Examples
    --------
    >>> import numpy as np, numbagn
    >>> x = np.random.default_rng(0).standard_normal((2, 4, 100, 30), np.float32)
    >>> m = numbagn.group_moments(x[:, :, :40], 2)
    >>> m = m.merge(numbagn.group_moments(x[:, :, 40:], 2))
    >>> y = np.concatenate([numbagn.normalize(x[:, :, :40], m), numbagn.normalize(x[:, :, 40:], m)], axis=2)
    >>> bool(np.abs(y - numbagn.group_norm(x, 2)).max() < 1e-6)
    True
    """
    in_memory("group_moments", "chunk", chunk)
    p = problem(chunk, num_groups, 0.0, channel_axis, name="chunk")
    groups = p.N, p.G
    if p.size == 0:
        return Moments(np.zeros(groups), np.zeros(groups), np.zeros(groups))
    p, x, valid = p._replace(dtype=p.dtype.wide), view("chunk", chunk), None
    if lengths is not None or mask is not None:
        valid = valid_positions(lengths, mask, p, x)
    steps = [step // p.x.itemsize * p.result.itemsize for step in p.x.strides]
    # a y of which there is no memory, as nothing is written
    unwritten = np.lib.stride_tricks.as_strided(np.empty(1, p.result), p.shape, steps)
    arrays = Arrays(p.x, None, None, None, unwritten)
    plan = plan_of("forward", p, arrays, (None, None), valid, **STATISTICS_ONLY)
    done = run(plan, arrays, (None, None), p.eps, valid and valid.positions)
    assert done is not None
    work, _, problems = done
    mean, M2 = (values.reshape(groups).copy() for values in work[: 2 * p.N * p.G].reshape(2, -1))
    positions = np.full(p.N, p.S)
    if valid is not None:
        positions = np.zeros(p.N)
        positions[problems[:, FIELDS.index("SAMPLE")]] = problems[:, FIELDS.index("VALID")]
    count = np.repeat(positions[:, None] * float(p.C // p.G), p.G, axis=1)
    for n, _, (x_n,), _ in samples_apart(p, valid, (x,)):
        found = group_moments(x_n, p.G, channel_axis=p.channel_axis)
        count[n : n + 1], mean[n : n + 1], M2[n : n + 1] = found
    return Moments(count, mean, M2)


def normalize(
    chunk: Any,
    m: Moments,
    weight: Any = None,
    bias: Any = None,
    eps: float = 1e-5,
    *,
    channel_axis: int = 1,
    activation: str | None = None,
    out: Any = None,
) -> Any:
    """Normalize a part of the samples by the moments of the whole.

    Parameters
    ----------
    chunk : (N, C, ...) ndarray
        Some of the positions of N samples, as for `group_moments`; as `x` of `group_norm`. Of a Dask array the result
        is one, too, its chunks computed when asked for.
    m : Moments
        Of all parts together, for the N samples and G groups of the chunk.
    weight, bias, eps, channel_axis, activation, out
        As for `group_norm`; parameters are those of the chunk's C channels.

    Returns
    -------
    ndarray
        As from `group_norm`: of the chunk's shape, dtype (float32 for integers) and memory order; `out` if it is given.

    Raises
    ------
    TypeError, ValueError
        As `group_norm`; also where `m` is no `Moments`, or not of shape (N, G).

    Notes
    -----
    Positions are independent of each other: chunks of 16 positions or more in one memory layout have the bits they have
    in the whole, however it is cut. Where the chunk is all there is, y is that of `group_norm` to within 4e-7 (float32;
    relative to y where that is larger than 1): the moments are summed in float64, those of a single call in float32 for
    512 values at a time. For float64 the rounding of the mean to float64 is felt: half a unit of its last place,
    divided by the deviation. A group of no values (count 0) gives NaN.
    """
    return _normalize(Part(chunk, m, weight, bias, eps, channel_axis, activation, out))


class Part(NamedTuple):
    """What `normalize` is given."""

    chunk: Any
    m: Any
    weight: Any
    bias: Any
    eps: Any
    channel_axis: Any
    activation: Any
    out: Any


def _normalize(given: Part) -> Any:
    chunk, m, weight, bias, eps, channel_axis, activation, out = given
    if type(chunk) is not np.ndarray or (out is not None and type(out) is not np.ndarray):
        return in_kind(_normalize, given, lead="chunk")
    p = problem(chunk, 1, eps, channel_axis, activation, "chunk")
    moments = moments_of(m, p.N, p.C)
    p = p._replace(G=moments.mean.shape[1])
    parameters = parameter("weight", weight, p), parameter("bias", bias, p)
    y = array_like(chunk, p.result) if out is None else output(out, p, "chunk")
    if p.size == 0:
        return y if out is None else out
    target, parameters = target_of(Arrays(p.x, None, None, None, y), p, parameters)
    arrays = Arrays(p.x, None, None, None, target)
    plan = plan_of("forward", p, arrays, parameters, None, **WRITE_ONLY)
    # what settling leaves for writing: mean, rstd, and of two sums what the mean lost
    lost = np.zeros((*moments.mean.shape, 2))
    work = np.concatenate([moments.mean.ravel(), moments.rstd(p.eps).ravel(), lost.ravel()])
    run(plan, arrays, parameters, p.eps, None, work)
    if target is not y:
        np.copyto(y, target)
    return y if out is None else out


def moments_of(m: Any, samples: int, channels: int) -> Moments:
    """Check the moments of all groups of so many samples and channels."""
    moments = _checked("m", m)
    shape = moments.mean.shape
    if shape[0] != samples or shape[1] < 1 or channels % shape[1]:
        raise ValueError(f"m must have moments of shape ({samples}, G), G a divisor of {channels}, got {shape}")
    return moments


def _checked(name: str, m: Any) -> Moments:
    """`m` with its arrays as the formulas need them, or an error that names it."""
    if not isinstance(m, Moments):
        raise TypeError(f"{name} must be numbagn.Moments, got {shown(m)}")
    arrays = [as_array(name, field) for field in m]
    if any(array.dtype.kind not in "iuf" for array in arrays):
        raise TypeError(f"{name} must have moments of real numbers, got {', '.join(str(a.dtype) for a in arrays)}")
    shapes = [array.shape for array in arrays]
    if len(shapes[0]) != 2 or len(set(shapes)) > 1:
        raise ValueError(f"{name} must have moments of one shape (N, G), got {', '.join(map(str, shapes))}")
    return Moments(*(array.astype(np.float64, copy=False) for array in arrays))
