"""The arguments of a call for arrays on a GPU: checked, and copied where no kernel could walk over them."""

from typing import Any, NamedTuple

import numpy as np

from ...arrays.device import shape_only
from ...arrays.families import float_row
from ...kernels.cuda.operands import Lengths
from ...shapes.strides import layout_of
from ..arguments import Backward, Forward
from ..checks import Problem, channel_axis_of, check_apart, problem, shape_of_parameter
from ..positions import lengths_of, outermost
from ..rows import ROWS, Rows, normalized, rows, steps_of_rows
from .buffers import Buffer, strides_like
from .drafts import Draft
from .grids import MOST
from .plans import Came

__all__ = ["Operands", "operands_of"]


class Operands(NamedTuple):
    """The checked arguments of a call."""

    p: Problem
    x: Buffer
    weight: Buffer | None
    bias: Buffer | None
    skip: Buffer | None
    residual: Buffer | None
    dy: Buffer | None  # of the backward pass, as mean and rstd
    mean: Buffer | None
    rstd: Buffer | None
    out: Buffer  # new memory where none is given
    lengths: Lengths | None


def operands_of(draft: Draft, given: Forward | Backward, came: Came) -> Operands:
    """Check the arguments of a call; copies of them become launches of the draft."""
    arguments = _Arguments(draft, given, came)
    p, x = arguments.problem()
    weight, bias = (arguments.parameter(name, p) for name in ("weight", "bias"))
    skip, residual = (arguments.operand(name, p) for name in ("skip", "residual"))
    dy = mean = rstd = None
    if isinstance(given, Backward):
        dy = arguments.operand("dy", p)
        if dy is None:
            raise TypeError("dy must be a device array as x is, got None")
        mean, rstd = (arguments.statistics(name, p) for name in ("mean", "rstd"))
    out = arguments.output(p)
    return Operands(p, x, weight, bias, skip, residual, dy, mean, rstd, out, arguments.lengths(p))


class _Arguments:
    """The arguments of a call as the checks go through them."""

    def __init__(self, draft: Draft, given: Any, came: Came) -> None:
        self.draft, self.given, self.came = draft, given, came

    def buffer(self, name: str) -> Buffer | None:
        """The array of that name, or the error that says what is wrong with it."""
        device = self.came[name]
        if isinstance(device, Exception):
            raise device
        return None if device is None else Buffer(name, device.array, device)

    def required(self, name: str) -> Buffer:
        buffer = self.buffer(name)
        assert buffer is not None
        return buffer

    def problem(self) -> tuple[Problem, Buffer]:
        """The checked problem and x laid out for it: a copy where no kernel can walk its memory."""
        x, given = self.required("x"), self.given
        float_row("x", x.array)
        array = _natural_unless_walkable(x.array, given)
        make = rows if given.channel_axis is ROWS else problem
        eps = given.eps if isinstance(given, Forward) else 0.0
        p = make(array, given.num_groups, eps, given.channel_axis, given.activation)
        if p.C // p.G * p.S > MOST or p.N * p.C > MOST:
            raise ValueError(f"x must not have more than {MOST} elements a group, or channels, on a GPU, got {p.shape}")
        if array is not x.array and array.size:
            x = self.draft.relaid(x, range(array.ndim))
        return p, x

    def parameter(self, name: str, p: Problem) -> Buffer | None:
        """A weight or bias, dense."""
        buffer = self.buffer(name)
        if buffer is None:
            return None
        float_row(name, buffer.array)
        shape_of_parameter(name, buffer.shape, p)
        return self.draft.contiguous(buffer)

    def operand(self, name: str, p: Problem) -> Buffer | None:
        """An array of x's shape."""
        buffer = self.buffer(name)
        if buffer is None:
            return None
        float_row(name, buffer.array)
        if buffer.shape != p.shape:
            raise ValueError(f"{name} must have x's shape {p.shape}, got {buffer.shape}")
        return buffer

    def statistics(self, name: str, p: Problem) -> Buffer:
        """Mean or rstd, dense."""
        buffer = self.required(name)
        float_row(name, buffer.array)
        if buffer.shape != p.statistics_shape:
            raise ValueError(f"{name} must have shape {p.statistics_shape}, got {buffer.shape}")
        return self.draft.contiguous(buffer)

    def output(self, p: Problem) -> Buffer:
        """Where y or dx is to go: new memory has its axes in the order of x's as it came."""
        out = self.buffer("out")
        if out is None or out.came is None:
            return self.draft.empty("result", p.shape, strides_like(self.required("x").array), p.result)
        if out.array.dtype != p.result:
            raise TypeError(f"out must have x's dtype {p.result}, got {out.array.dtype}")
        if out.shape != p.shape:
            raise ValueError(f"out must have x's shape {p.shape}, got {out.shape}")
        if out.came.read_only:
            raise ValueError("out must be writable, got a read-only array")
        check_apart(out.array)
        return out

    def lengths(self, p: Problem) -> Lengths | None:
        """How many positions are valid, where that is given."""
        given = self.given.lengths
        if self.given.mask is not None:
            raise TypeError("mask must be None for arrays on a GPU; lengths are taken there")
        if given is None:
            return None
        if isinstance(p, Rows):
            raise ValueError("lengths must not be given to layer norm, which normalizes each row by itself")
        buffer, spatial = self.buffer("lengths"), p.spatial
        if buffer is None:
            lengths_of(given, p)
        elif buffer.array.dtype != np.int64:
            raise TypeError(f"lengths must have dtype int64 on a GPU, got {buffer.array.dtype}")
        elif buffer.shape != (p.N,):
            raise ValueError(f"lengths must have shape ({p.N},), got {buffer.shape}")
        elif not buffer.array.flags.c_contiguous:
            raise ValueError(f"lengths must be contiguous on a GPU, got strides {buffer.array.strides}")
        if not spatial or not outermost(p, spatial[0]):
            raise ValueError("lengths must count along the outermost spatial axis in memory on a GPU")
        return Lengths("lengths", int(np.prod([p.shape[axis] for axis in spatial[1:]], dtype=np.int64)))


def _natural_unless_walkable(array: np.ndarray, given: Any) -> np.ndarray:
    """The array, or one of its shape in C order where no kernel can walk over its memory."""
    negative = min(array.strides, default=0) < 0
    if given.channel_axis is ROWS:
        lead = array.ndim - len(normalized(given.num_groups))
        order = tuple(range(lead))
        walks = array.ndim > lead >= 0 and steps_of_rows(array.shape, array.strides, array.itemsize, order) is not None
    elif array.ndim >= 2:
        axis = channel_axis_of(given.channel_axis, array.ndim)
        walks = layout_of(array.shape, array.strides, array.itemsize, axis) is not None
    else:
        walks = True
    if array.size and (negative or not walks):
        return shape_only(array.shape, None, array.dtype)
    return array
