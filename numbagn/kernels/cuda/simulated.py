"""The names of `lanes` and `warps` for Numba's CUDA simulator: lanes are NumPy arrays, addresses arrays of storage."""

import numpy as np
from numba import cuda

from ..polynomials import CONSTANTS, POLYNOMIALS
from .kinds import ITEMSIZE, accumulator_of

STORAGE = {"float16": np.uint16, "bfloat16": np.uint16, "float32": np.uint32, "float64": np.uint64}


class Packed:
    """Values as they lie in memory."""

    def __init__(self, kind, bits):
        self.kind, self.bits = kind, np.array(bits, STORAGE[kind])


def nested(form):
    def nest(numbers):
        rest = iter(numbers)

        def filled(part):
            if isinstance(part, tuple):
                inner = map(filled, part)
                return type(part)(*inner) if hasattr(part, "_fields") else tuple(inner)
            return None if part is None else next(rest)

        return filled(form)

    return nest


def load(address, index, kind, count):
    assert address.dtype.itemsize == ITEMSIZE[kind]
    assert 0 <= index <= address.size - count, "beyond the array"
    assert index * ITEMSIZE[kind] % 4 == 0 or count == 1, "not aligned"
    return Packed(kind, address[index : index + count].view(STORAGE[kind]))


def load_integer(address, index):
    return int(address[index])


def store(address, index, kind, lanes):
    assert address.dtype.itemsize == ITEMSIZE[kind]
    assert 0 <= index <= address.size - lanes.size, "beyond the array"
    address[index : index + lanes.size] = pack(lanes, kind).bits.view(address.dtype)


def _words(registers, place, kind, count):
    size = max(4, ITEMSIZE[kind] * count)
    return registers.view(np.uint8)[place * size :][: ITEMSIZE[kind] * count]


def keep(registers, place, packed):
    _words(registers, place, packed.kind, packed.bits.size)[:] = packed.bits.view(np.uint8)


def kept(registers, place, kind, count):
    return Packed(kind, _words(registers, place, kind, count).view(STORAGE[kind]))


def unpack(packed, acc):
    with np.errstate(all="ignore"):
        if packed.kind == "bfloat16":
            return (packed.bits.astype(np.uint32) << 16).view(np.float32).astype(acc)
        return packed.bits.view(packed.kind).astype(acc)


def pack(lanes, kind):
    with np.errstate(all="ignore"):
        if kind != "bfloat16":
            return Packed(kind, lanes.astype(kind).view(STORAGE[kind]))
        bits = lanes.astype(np.float32).view(np.uint32)
        rounded = bits + (bits >> 16 & 1) + 0x7FFF
        return Packed(kind, np.where(np.isnan(lanes), bits | 0x400000, rounded) >> 16)


def splat(value, kind, count):
    return np.full(count, value, accumulator_of(kind))


def lane_sum(lanes):
    while lanes.size > 1:
        lanes = lanes[: lanes.size // 2] + lanes[lanes.size // 2 :]
    return lanes[0]


def fma(a, b, c):
    dtype = next(v.dtype for v in (a, b, c) if isinstance(v, np.ndarray))
    with np.errstate(all="ignore"):
        a, b, c = (np.asarray(v, dtype).astype(np.longdouble) for v in (a, b, c))
        return (a * b + c).astype(dtype)


def where(flags, a, b):
    dtype = next((v.dtype for v in (a, b) if isinstance(v, np.ndarray)), np.float32)
    return np.where(flags, np.asarray(a, dtype), np.asarray(b, dtype))


def times_power_of_two(value, shifted):
    integer, mantissa = (np.uint32, 23) if value.dtype == np.float32 else (np.uint64, 52)
    return (value.view(integer) + (shifted.view(integer) << integer(mantissa))).view(value.dtype)


def constant(like, name):
    return np.full(like.size, CONSTANTS[name][like.dtype.itemsize // 4 - 1], like.dtype)


def polynomial(x, name):
    total = None
    for coefficient in reversed(POLYNOMIALS[name][x.dtype.itemsize // 4 - 1]):
        total = np.full(x.size, coefficient, x.dtype) if total is None else fma(total, x, coefficient)
    return total


# The simulator has no operations of warps: shared memory and barriers of the block do instead.


@cuda.jit(device=True)
def warp_sums(a, b, team):
    values = cuda.shared.array((2, 1024), np.float64)
    thread = cuda.threadIdx.x
    values[:, thread] = a, b
    cuda.syncthreads()
    first = thread - thread % team
    sums = values[:, first : first + team].astype(type(a)).sum(axis=1, dtype=type(a))
    cuda.syncthreads()
    return sums[0], sums[1]


@cuda.jit(device=True)
def warp_any(flag):
    return cuda.syncthreads_or(flag)
