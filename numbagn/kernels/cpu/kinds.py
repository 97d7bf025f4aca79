"""Storage kinds: how each dtype's values in memory become the accumulator's lanes, and results become values again."""

import platform
from types import SimpleNamespace

from llvmlite import ir
from llvmlite.binding import get_host_cpu_features
from numba import config

from .vectors import F32, F32X16, F64, F64X8, I32, I32X16, llvm_vector, splat_int

X86 = platform.machine().lower() in ("x86_64", "amd64")
I8, I16, F16 = ir.IntType(8), ir.IntType(16), ir.HalfType()


def _converts_halves():
    """Whether the processor Numba compiles for converts float16; LLVM else calls a function that is not there."""
    if not X86:
        return True
    if config.CPU_NAME is None and config.CPU_FEATURES is None:
        return bool(get_host_cpu_features().get("f16c"))
    return "+f16c" in (config.CPU_FEATURES or "")


CONVERTS_HALVES = _converts_halves()


def _widen_f16(builder, raw, vector):
    if CONVERTS_HALVES:
        return builder.fpext(builder.bitcast(raw, llvm_vector(vector, F16)), llvm_vector(vector))
    # exponent and mantissa moved into place make the number but for 2**112, subnormal ones too
    wide, floats = llvm_vector(vector, I32), llvm_vector(vector)
    bits = builder.zext(raw, wide)
    size = builder.shl(builder.and_(bits, splat_int(wide, 0x7FFF)), splat_int(wide, 13))
    scaled = builder.fmul(builder.bitcast(size, floats), ir.Constant(floats, [2.0**112] * vector.lanes))
    size_bits = builder.bitcast(scaled, wide)
    special = builder.icmp_unsigned(">=", size, splat_int(wide, 0x7C00 << 13))
    size_bits = builder.select(special, builder.or_(size_bits, splat_int(wide, 0x7F800000)), size_bits)
    sign = builder.shl(builder.and_(bits, splat_int(wide, 0x8000)), splat_int(wide, 16))
    return builder.bitcast(builder.or_(size_bits, sign), floats)


def _narrow_f16(builder, value, vector):
    if CONVERTS_HALVES:
        return builder.bitcast(builder.fptrunc(value, llvm_vector(vector, F16)), llvm_vector(vector, I16))
    wide, floats = llvm_vector(vector, I32), llvm_vector(vector)
    bits = builder.bitcast(value, wide)
    size = builder.and_(bits, splat_int(wide, 0x7FFFFFFF))
    odd = builder.and_(builder.lshr(size, splat_int(wide, 13)), splat_int(wide, 1))
    # to nearest even, the exponent 112 less
    normal = builder.add(size, builder.add(odd, splat_int(wide, (0xFFF - (112 << 23)) & 0xFFFFFFFF)))
    normal = builder.lshr(normal, splat_int(wide, 13))
    # added to 1/2, a number below 2**-14 is rounded to multiples of 2**-24, which are counted from there
    half = ir.Constant(floats, [0.5] * vector.lanes)
    counted = builder.bitcast(builder.fadd(builder.bitcast(size, floats), half), wide)
    counted = builder.sub(counted, splat_int(wide, 0x3F000000))
    small = builder.icmp_unsigned("<", size, splat_int(wide, 0x38800000))
    large = builder.icmp_unsigned(">=", size, splat_int(wide, 0x477FF000))
    nan = builder.icmp_unsigned(">", size, splat_int(wide, 0x7F800000))
    special = builder.select(nan, splat_int(wide, 0x7E00), splat_int(wide, 0x7C00))
    result = builder.select(large, special, builder.select(small, counted, normal))
    sign = builder.and_(builder.lshr(bits, splat_int(wide, 16)), splat_int(wide, 0x8000))
    return builder.trunc(builder.or_(result, sign), llvm_vector(vector, I16))


def _widen_bf16(builder, raw, vector):
    wide = llvm_vector(vector, I32)
    return builder.bitcast(builder.shl(builder.zext(raw, wide), splat_int(wide, 16)), llvm_vector(vector))


def _narrow_bf16(builder, value, vector):
    """Round to nearest even with integers: the hardware's own instruction flushes subnormal numbers to zero.

    A NaN that arithmetic has made has its first mantissa bit set, so that cutting off the others leaves a NaN.
    """
    wide = llvm_vector(vector, I32)
    bits = builder.bitcast(value, wide)
    odd = builder.and_(builder.lshr(bits, splat_int(wide, 16)), splat_int(wide, 1))
    rounded = builder.add(bits, builder.add(odd, splat_int(wide, 0x7FFF)))
    kept = builder.select(builder.fcmp_unordered("uno", value, value), bits, rounded)
    return builder.trunc(builder.lshr(kept, splat_int(wide, 16)), llvm_vector(vector, I16))


def _unsigned(builder, raw, vector):
    return builder.zext(raw, llvm_vector(vector, I32))


def _signed(builder, raw, vector):
    return builder.sext(raw, llvm_vector(vector, I32))


def _from_unsigned(builder, raw, vector):
    # by way of signed 32-bit integers, for which AVX2 has an instruction
    return builder.sitofp(_unsigned(builder, raw, vector), llvm_vector(vector))


def _from_signed(builder, raw, vector):
    return builder.sitofp(_signed(builder, raw, vector), llvm_vector(vector))


def _same(builder, value, vector):
    return value


# Half a vector, on the way to float64.
EIGHT_FLOATS = SimpleNamespace(scalar=F32X16.scalar, lanes=8)


def to_double_lanes(builder, value, vector):
    return builder.fpext(value, llvm_vector(vector, F64))


# kind: (what a load gives, element in memory, memory -> accumulator, accumulator -> memory; None: only read)
KINDS = {
    "float16": (F32X16, I16, _widen_f16, _narrow_f16),
    "bfloat16": (F32X16, I16, _widen_bf16, _narrow_bf16),
    "float32": (F32X16, F32, _same, _same),
    "float64": (F64X8, F64, _same, _same),
    "uint8": (F32X16, I8, _from_unsigned, None),
    "int8": (F32X16, I8, _from_signed, None),
    "uint16": (F32X16, I16, _from_unsigned, None),
    "int16": (F32X16, I16, _from_signed, None),
}


def _wide(kind):
    """The kind for the same memory whose loads give float64."""
    _, element, widen, _ = KINDS[kind]

    def to_double(builder, raw, vector):
        return to_double_lanes(builder, widen(builder, raw, EIGHT_FLOATS), vector)

    return F64X8, element, to_double, None


KINDS |= {f"wide {kind}": _wide(kind) for kind, row in KINDS.items() if row[0] == F32X16 and row[1] != I8}
# The kinds for the same memory whose loads stay integers, so small that 2**15 squares fit into 32 bits.
KINDS |= {"exact uint8": (I32X16, I8, _unsigned, None), "exact int8": (I32X16, I8, _signed, None)}
