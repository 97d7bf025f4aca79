"""What kernels are written with: lanes, sums over threads and the shared formulas, for a GPU or for Numba's simulator.

The simulator (``NUMBA_ENABLE_CUDASIM=1``) runs kernels as Python functions: there lanes are NumPy arrays.
"""

from functools import cache
from types import FunctionType
from typing import Any, NamedTuple

import numpy as np
from numba import config, cuda

from .. import formulas
from .kinds import accumulator_of

SIMULATED = bool(config.ENABLE_CUDASIM)
if SIMULATED:
    from .simulated import (
        constant,
        fma,
        keep,
        kept,
        lane_sum,
        load,
        load_integer,
        nested,
        pack,
        polynomial,
        splat,
        store,
        times_power_of_two,
        unpack,
        warp_any,
        warp_sums,
        where,
    )
else:
    from .arithmetic import constant, fma, lane_sum, polynomial, splat, times_power_of_two, where
    from .lanes import keep, kept, load, load_integer, nested, pack, store, unpack
    from .warps import warp_any, warp_sums

__all__ = [
    "ACC", "activation_of", "device", "divide", "divided", "fma", "keep", "kept", "kernel", "lane_sum", "lanes_in",
    "load", "load_integer", "load_one", "pack", "slope_of", "splat", "store", "store_one", "team_sums", "unpack",
    "unrolled", "warp_any",
]  # fmt: skip

# The scalar type of accumulators, by kind.
ACC = {"float32": np.float32, "float64": np.float64}


def device(function):
    """A function for kernels to call."""
    return cuda.jit(function, device=True) if SIMULATED else cuda.jit(function, device=True, forceinline=True)


class Kernel(NamedTuple):
    """A kernel, before it is known which of its arguments are absent."""

    function: Any
    threads: int  # of a block


def kernel(threads):
    """Make a kernel for blocks of that many threads; ptxas, told so, finds registers for all of them."""
    return lambda function: Kernel(function, threads)


class Launchable(NamedTuple):
    """A kernel as it is launched: with its numbers alone."""

    dispatcher: Any
    threads: int


def numbers_of(values):
    """The numbers in nested tuples, in their order."""
    if isinstance(values, tuple):
        return [number for value in values for number in numbers_of(value)]
    return [] if values is None else [values]


def form_of(values):
    """Nested tuples with 0 for each number."""
    if isinstance(values, tuple):
        parts = map(form_of, values)
        return type(values)(*parts) if hasattr(values, "_fields") else tuple(parts)
    return None if values is None else 0


# A kernel, made from the names of its arguments: Numba does not inline what is called with *arguments.
_ENTRY = """
def entry_of(body, nest):
    def {name}(numbers):
        {arguments} = nest(numbers)
        body({arguments})
    return {name}
"""


@cache
def launchable(kernel, form):
    """The kernel for arguments of that form, which is given their numbers as one tuple.

    So a launch costs what its numbers cost, 1 us each, and nothing for what is absent: numba-cuda spends another 2.7 us
    on each tuple among the arguments.
    """
    function, code = kernel.function, kernel.function.__code__
    # Inlined before NVVM sees it: only in the kernel itself does NVVM know how many threads a block has, so that
    # `threadIdx.x // team` becomes 0 where the team is the block; as a function of its own the body took up to 47
    # registers more for compute capability 10.
    body = function if SIMULATED else cuda.jit(function, device=True, inline="always")
    bounds = {} if SIMULATED else {"launch_bounds": kernel.threads}
    arguments = ", ".join(code.co_varnames[: code.co_argcount])
    # With the names of the module that it is written in: to those alone the simulator lends its own `cuda`
    made = {}
    exec(_ENTRY.format(name=function.__name__, arguments=arguments), function.__globals__, made)
    entry = made["entry_of"](body, nested(form))
    entry.__qualname__ = function.__name__
    return Launchable(cuda.jit(**bounds)(entry), kernel.threads)


def launch(kernel, blocks, stream, numbers):
    """Run a kernel. The only place where kernels start."""
    kernel.dispatcher[blocks, kernel.threads, stream](tuple(numbers))


# ----------------------------------------------------------------------------------------------------- shared formulas

_PRIMITIVES = {
    "fma": fma, "where": where, "constant": constant, "polynomial": polynomial,
    "times_power_of_two": times_power_of_two,
}  # fmt: skip


@cache
def _formula(name):
    """The formula of that name in `kernels.formulas`, on lanes of this target."""
    python = getattr(formulas, name).py_func
    names = {n: getattr(formulas, n) for n in python.__code__.co_names if hasattr(formulas, n)}
    for n, value in names.items():
        if n in _PRIMITIVES:
            names[n] = _PRIMITIVES[n]
        elif hasattr(value, "py_func"):
            names[n] = _formula(n)
    function = FunctionType(python.__code__, {"__builtins__": __builtins__, "__name__": __name__} | names, name)
    return function if SIMULATED else device(function)


@device
def _same(z):
    return z


@device
def _slope_of_same(z):
    return z * 0.0 + 1.0


def activation_of(name):
    """The activation, on lanes."""
    return _same if name is None else _formula(formulas.ACTIVATIONS[name][0].py_func.__name__)


def slope_of(name):
    """The derivative of the activation, on lanes."""
    return _slope_of_same if name is None else _formula(formulas.ACTIVATIONS[name][1].py_func.__name__)


# ------------------------------------------------------------------------------------------------------- whole numbers


@device
def divide(value, divisor):
    """value // divisor for 0 <= value < 2**31: a division of 64-bit integers is a call of a hundred instructions.

    Multiplier and shift stand for the divisor (Granlund and Montgomery 1994).
    """
    return (value * divisor.multiplier) >> divisor.shift


@device
def divided(value, divisor):
    """(value // divisor, value % divisor)."""
    quotient = divide(value, divisor)
    return quotient, value - quotient * divisor.value


# ----------------------------------------------------------------------------------------------------------- unrolling


def unrolled(body, times):
    """A function (0, state, arguments): state after ``state = body(j, state, arguments)`` for j = 0 .. times - 1.

    Each call is a copy of the body. NVVM keeps a loop whose body is long, and for compute capability 10 short ones too;
    arrays that it indexes by the loop's variable then lie in local memory.
    """
    if times == 1:
        return body
    middle = times // 2
    half, rest = unrolled(body, middle), unrolled(body, times - middle)

    @device
    def both(j, state, *arguments):
        return rest(j + middle, half(j, state, *arguments), *arguments)

    return both


# ------------------------------------------------------------------------------------------------ scalars and all lanes


@cache
def load_one(kind):
    """A function (address, index) that gives one value as an accumulator."""
    acc = accumulator_of(kind)

    @device
    def one(address, index):
        return lane_sum(unpack(load(address, index, kind, 1), acc))

    return one


@cache
def store_one(kind):
    """A function (address, index, value) that writes one value."""

    @device
    def one(address, index, value):
        store(address, index, kind, splat(value, kind, 1))

    return one


@cache
def lanes_in(acc, count):
    """A function (array, place) that gives the accumulators kept at that place of a local or shared array."""

    @device
    def lanes(array, place):
        return unpack(kept(array, place, acc, count), acc)

    return lanes


# --------------------------------------------------------------------------------------------------- sums over threads


@cache
def team_sums(team, acc):
    """A function that gives the sums of two numbers over the threads of a team, to each of them: always the same bits.

    A team is 1 to 32 neighbours of one warp, or a whole block of `team` threads. All threads of the warp or block must
    call it.
    """
    scalar = ACC[acc]
    if team <= 32:

        @device
        def in_warp(a, b):
            return warp_sums(a, b, team)

        return in_warp

    warps, both = team // 32, team // 16

    @device
    def in_block(a, b):
        sums = cuda.shared.array(both, scalar)
        a, b = warp_sums(a, b, 32)
        if cuda.threadIdx.x % 32 == 0:
            sums[cuda.threadIdx.x // 32] = a
            sums[cuda.threadIdx.x // 32 + warps] = b
        cuda.syncthreads()
        a, b = sums[0], sums[warps]
        for i in range(1, warps):
            a += sums[i]
            b += sums[i + warps]
        cuda.syncthreads()
        return a, b

    return in_block
