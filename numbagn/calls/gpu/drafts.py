"""A plan in the making: buffers with names, launches on them, copies between layouts."""

from collections.abc import Iterable
from typing import Any

import numpy as np

from ...arrays.device import dense_strides, shape_only
from ...kernels.cuda.copying import clear, copy
from ...kernels.cuda.target import form_of, launchable, numbers_of
from ..checks import Problem
from . import grids
from .buffers import Buffer, fits, in_the_way, order_of, strided
from .plans import Launch, Made, Plan

__all__ = ["Draft"]


class Draft:
    """The buffers that a call makes and its launches, so far."""

    def __init__(self) -> None:
        self.made: dict[str, Made] = {}
        self.launches: list[Launch] = []

    def plan(self, p: Problem, results: Iterable[Buffer]) -> Plan:
        return Plan(p, self.made, tuple(self.launches), tuple(result.name for result in results))

    def launch(self, kernel: Any, blocks: int, *arguments: Any) -> None:
        """Add a launch; addresses among the arguments are names of buffers."""
        if blocks > grids.MOST:
            raise ValueError(f"x must not need more than {grids.MOST} blocks of a GPU, got {blocks}")
        self.launches.append(Launch(launchable(kernel, form_of(arguments)), blocks, tuple(numbers_of(arguments))))

    # ----------------------------------------------------------------------------------------------------- new buffers

    def empty(self, name: str, shape: tuple[int, ...], strides: tuple[int, ...], dtype: Any) -> Buffer:
        self.made[name] = Made(shape, strides, np.dtype(dtype))
        return Buffer(name, shape_only(*self.made[name]))

    def dense(self, name: str, shape: tuple[int, ...], dtype: Any, order: Iterable[int] | None = None) -> Buffer:
        """A dense array, its axes in memory in that order, or in theirs."""
        axes = range(len(shape)) if order is None else order
        return self.empty(name, shape, dense_strides(shape, axes, np.dtype(dtype).itemsize), dtype)

    def scratch(self, name: str, size: int, dtype: Any = np.float64) -> str:
        """The name of memory for this call."""
        return self.dense(name, (max(size, 1),), dtype).name

    def laid_out(self, name: str, p: Problem, dtype: Any) -> Buffer:
        """An array of x's shape, laid out as x."""
        return self.dense(name, p.shape, dtype, order_of(p))

    def target(self, out: Buffer, p: Problem, same: Iterable[Any], others: Iterable[Any]) -> Buffer:
        """Where kernels may write: `out`, or new memory where that is laid out otherwise or in something's way.

        Arrays in `same` are read element by element as `out` is written, `others` as a whole.
        """
        free = not any(in_the_way(other, out, p, same=True) for other in same)
        if free and fits(out, p) and not any(in_the_way(other, out, p, same=False) for other in others):
            return out
        return self.beside(out, p)

    def beside(self, out: Buffer, p: Problem) -> Buffer:
        """New memory for what then is copied to `out`."""
        return self.laid_out(f"for {out.name}", p, out.array.dtype)

    # ---------------------------------------------------------------------------------------------------------- copies

    def copy(self, source: Buffer, target: Buffer) -> None:
        """Copy between two layouts."""
        size, shape = source.array.size, source.shape
        kernel = copy(source.kind, target.kind, len(shape), grids.THREADS)
        self.launch(kernel, -(-size // grids.THREADS), strided(source), strided(target), size, shape)

    def copy_if_other(self, source: Buffer, target: Buffer) -> None:
        """Copy where it is not the same buffer."""
        if source is not target:
            self.copy(source, target)

    def relaid(self, source: Buffer, order: Iterable[int]) -> Buffer:
        """A dense copy, its axes in memory in that order."""
        copy = self.dense(f"{source.name} relaid", source.shape, source.array.dtype, order)
        self.copy(source, copy)
        return copy

    def contiguous(self, buffer: Buffer) -> Buffer:
        """The array itself where it is C-contiguous, else a copy."""
        if buffer.array.size < 2 or buffer.array.flags.c_contiguous:
            return buffer
        return self.relaid(buffer, range(len(buffer.shape)))

    def walkable(self, buffer: Buffer, p: Problem) -> Buffer:
        """The array itself where it is laid out as x, else a copy that is."""
        return buffer if fits(buffer, p) else self.relaid(buffer, order_of(p))

    def clear(self, target: Buffer) -> None:
        """Fill a dense array with zeros."""
        size = target.array.size
        if size:
            self.launch(clear(target.kind, grids.THREADS), -(-size // grids.THREADS), target.name, size)
