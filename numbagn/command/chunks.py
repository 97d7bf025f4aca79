"""Normalization of arrays larger than memory: part by part in the order of memory, each read twice at most.

Groups that fit a chunk, all their values together, take one call. Of others the moments of all chunks are merged, then
each chunk is normalized by them.
"""

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

import numbagn

__all__ = ["Norm", "boxes", "normalize_chunks"]

Array = np.ndarray[Any, np.dtype[Any]]
Box = tuple[slice, ...]

LOW_HALF = (1 << 32) - 1
# Integers that the kernels read as they are, into float32.
DIRECT = ("uint8", "int8", "uint16", "int16")


@dataclass(frozen=True)
class Norm:
    """What is asked for, the same for all parts of an array; `work` is the dtype whose precision is enough."""

    num_groups: int
    work: np.dtype[Any]
    weight: Any = None
    bias: Any = None
    eps: float = 1e-5
    channel_axis: int = 1
    activation: str | None = None

    def of(self, samples: slice, channels: slice, groups: int) -> "Norm":
        """The same for a part of the array: these samples, and these channels, which are so many groups."""
        weight, bias = (
            # (N, C) parameters belong to samples and are cut like them
            p if not isinstance(p, np.ndarray) else p[samples, channels] if p.ndim == 2 else p[channels]
            for p in (self.weight, self.bias)
        )
        return replace(self, weight=weight, bias=bias, num_groups=groups)

    def apply(
        self, x: Array, y: Array | None, moments: numbagn.Moments | None = None, origin: Array | None = None
    ) -> None:
        """Normalize x into y, by its own moments or by those given, with as little memory as the dtypes allow.

        Moments of 64-bit integers are those of their differences from `origin`.
        """
        own, result = None, self.work
        if moments is None:
            origin = self.origin(x)
        if origin is not None:
            own = y if y is not None and y.dtype == self.work else np.empty_like(x, self.work)
            x = self.differences(x, origin, own)
        elif x.dtype.name in DIRECT and self.work != np.float64:
            result = np.dtype(np.float32)
        elif x.dtype != self.work and y is not None and y.dtype == self.work:
            # converted straight into its place and normalized there: no copy in memory
            np.copyto(y, x)
            x = y
        elif x.dtype != self.work:
            x = own = x.astype(self.work)
        out = y if y is not None and y.dtype == result else own
        options: dict[str, Any] = {"channel_axis": self.channel_axis, "activation": self.activation, "out": out}
        if moments is None:
            made = numbagn.group_norm(x, self.num_groups, self.weight, self.bias, self.eps, **options)
        else:
            made = numbagn.normalize(x, moments, self.weight, self.bias, self.eps, **options)
        if y is not None and out is not y:
            with np.errstate(all="ignore"):
                np.copyto(y, made, casting="same_kind")

    def moments(self, x: Array, origin: Array | None) -> numbagn.Moments:
        """The moments of x, exact for every dtype: those of its differences from `origin` if there is one."""
        if origin is not None:
            x = self.differences(x, origin, np.empty_like(x, np.float64))
        elif x.dtype.kind in "iu" and x.dtype.name not in DIRECT:
            x = x.astype(np.float64)
        return numbagn.group_moments(x, self.num_groups, channel_axis=self.channel_axis)

    def origin(self, x: Array) -> Array | None:
        """What integers that float64 cannot hold are counted from, which changes no result: the first of each group.

        (N, G), or None for all other x.
        """
        if x.dtype.kind not in "iu" or x.dtype.itemsize < 8 or x.size == 0:
            return None
        at = [slice(None)] + [slice(0, 1)] * (x.ndim - 1)
        at[self.channel_axis] = slice(None, None, x.shape[self.channel_axis] // self.num_groups)
        return np.array(x[tuple(at)]).reshape(x.shape[0], self.num_groups)

    def differences(self, x: Array, origin: Array, into: Array) -> Array:
        """x less the origin of its group, `into` float64: exact below 2**53, rounded once beyond."""
        shape = [1] * x.ndim
        shape[0], shape[self.channel_axis] = x.shape[0], x.shape[self.channel_axis]
        from_ = np.repeat(origin, shape[self.channel_axis] // self.num_groups, axis=1).reshape(shape)
        # in halves: the difference of two 64-bit integers needs a bit more than they have
        np.right_shift(x, 32, out=into)
        into -= from_ >> 32
        into *= 2.0**32
        low = np.bitwise_and(x, LOW_HALF).view(np.int64)
        low -= np.bitwise_and(from_, LOW_HALF).view(np.int64)
        into += low
        return into


def boxes(
    shape: tuple[int, ...],
    strides: tuple[int, ...],
    channel_axis: int,
    group: int,
    most: int,
    whole_groups: bool = False,
) -> Iterator[Box]:
    """Cut an array into boxes of consecutive memory, in the order of memory; gives the index of each.

    The array, of this shape and these strides, is dense in some order of its axes; axis 0 is the batch, and `group`
    channels are one group. A box has channels of one group, or whole groups, and at most `most` elements where that can
    be. With `whole_groups` no group of any sample is cut: boxes are then larger than `most` where such a group is, or
    where groups or samples are interleaved in memory.
    """
    order = sorted(range(len(shape)), key=lambda axis: -abs(strides[axis]) if shape[axis] > 1 else 0)
    steps = list(shape)
    for axis in order:
        if math.prod(steps) <= most or (whole_groups and axis not in (0, channel_axis)):
            break
        fitting = most * steps[axis] // math.prod(steps)
        unit = group if axis == channel_axis else 1
        if fitting >= unit or whole_groups:
            fitting = fitting // unit * unit
            steps[axis] = max(unit, fitting)
        else:
            steps[axis] = max(1, fitting)
    spans = [_spans(shape[axis], steps[axis], group if axis == channel_axis else 1) for axis in order]
    for chosen in itertools.product(*spans):
        box = dict(zip(order, chosen, strict=True))
        yield tuple(box[axis] for axis in range(len(shape)))


def _spans(length: int, step: int, group: int) -> list[slice]:
    """Slices of `step`, which end where a group does if they are shorter than that."""
    block = max(step, group)
    return [
        slice(start, min(start + step, first + block, length))
        for first in range(0, length, block)
        for start in range(first, min(first + block, length), step)
    ]


def normalize_chunks(x: Array, y: Array, norm: Norm, most: int) -> Iterator[float]:
    """Normalize x (N, C, ...) into y, never more than about `most` elements at a time.

    Both are dense, of one memory order. Gives the share of all work that is done after each step.
    """
    axis, group, done = norm.channel_axis % x.ndim, x.shape[norm.channel_axis] // norm.num_groups, 0.0
    for box in boxes(x.shape, x.strides, axis, group, most, whole_groups=True):
        part, into = x[box], y[box]
        own = norm.of(box[0], box[axis], part.shape[axis] // group)
        share = part.size / x.size
        if part.size <= most:
            own.apply(part, into)
            done += share
            yield done
            continue
        # a third of the bytes are moved for the moments; the last chunks come first then, which memory still holds
        cut = list(boxes(part.shape, part.strides, axis, group, most))
        moments, origin = numbagn.Moments(*np.zeros((3, part.shape[0], own.num_groups))), own.origin(part)
        for chunk in cut:
            at, of_chunk = _place(chunk, axis, group, own)
            seen = of_chunk.moments(part[chunk], None if origin is None else origin[at])
            merged = numbagn.Moments(*(field[at] for field in moments)).merge(seen)
            for field, values in zip(moments, merged, strict=True):
                field[at] = values
            done += share * part[chunk].size / part.size / 3
            yield done
        for chunk in reversed(cut):
            at, of_chunk = _place(chunk, axis, group, own)
            whole = numbagn.Moments(*(field[at] for field in moments))
            of_chunk.apply(part[chunk], into[chunk], whole, None if origin is None else origin[at])
            done += share * part[chunk].size / part.size * 2 / 3
            yield done


def _place(chunk: Box, axis: int, group: int, norm: Norm) -> tuple[tuple[slice, slice], Norm]:
    """Where the moments of a chunk stand among those of all, and what is asked for there."""
    channels = chunk[axis]
    groups = slice(channels.start // group, -(-channels.stop // group))
    return (chunk[0], groups), norm.of(chunk[0], channels, groups.stop - groups.start)
