"""Vectors for Numba kernels: typed pointers, 64-byte loads and stores, arithmetic with a fixed lane order.

Everything the kernels compute, they compute on these vectors, the tails too (masked loads and stores), and no fastmath
flag is used anywhere: the bits of a result follow from the source alone, not from what LLVM makes of a loop in one
context or another. That is how serial, parallel, in-place and any-batch results are equal to the last bit.

A vector is 64 bytes on every processor: one register with AVX-512, two with AVX2, four with SSE or Neon. All LLVM-level
code of the library is in this file.
"""

import operator

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.core.extending import intrinsic, models, register_model
from numba.core.imputils import lower_builtin
from numba.core.typing.templates import AbstractTemplate, infer_global, signature

from .._dtypes import STORED
from .polynomials import CONSTANTS, POLYNOMIALS

I1, I8, I16, I32, I64 = (ir.IntType(n) for n in (1, 8, 16, 32, 64))
F16, F32, F64 = ir.HalfType(), ir.FloatType(), ir.DoubleType()

# ------------------------------------------------------------------------------------------------------------ types


class Vector(types.Type):
    """A 64-byte vector of accumulator values: 16 x float32 or 8 x float64."""

    def __init__(self, scalar):
        self.scalar = scalar
        self.lanes = 512 // scalar.bitwidth
        super().__init__(f"Vector({scalar}x{self.lanes})")


class Mask(types.Type):
    """What a comparison of two vectors gives: one bit a lane."""

    def __init__(self, vector):
        self.vector = vector
        super().__init__(f"Mask({vector})")


class Pointer(types.Type):
    """The data of a one-dimensional array of one storage kind; `absent` where there is no such operand."""

    def __init__(self, kind, absent=False):
        self.kind = kind
        self.absent = absent
        super().__init__(f"Pointer({kind}{', absent' if absent else ''})")


class Code(types.Type):
    """An integer known when the kernel is compiled, carried as a type so that any callee may specialise on it."""

    def __init__(self, value):
        self.value = value
        super().__init__(f"Code({value})")


F32X16, F64X8 = Vector(types.float32), Vector(types.float64)


def llvm_vector(vector, element=None):
    return ir.VectorType(element or {32: F32, 64: F64}[vector.scalar.bitwidth], vector.lanes)


@register_model(Vector)
class VectorModel(models.PrimitiveModel):
    def __init__(self, dmm, fe_type):
        super().__init__(dmm, fe_type, llvm_vector(fe_type))


@register_model(Mask)
class MaskModel(models.PrimitiveModel):
    def __init__(self, dmm, fe_type):
        super().__init__(dmm, fe_type, ir.VectorType(I1, fe_type.vector.lanes))


@register_model(Pointer)
class PointerModel(models.PrimitiveModel):
    def __init__(self, dmm, fe_type):
        super().__init__(dmm, fe_type, I8.as_pointer())


register_model(Code)(models.OpaqueModel)

# ------------------------------------------------------------------------------------- storage kinds: widen and narrow


def _widen_f16(builder, raw, vector):
    half = builder.bitcast(raw, llvm_vector(vector, F16))
    return builder.fpext(half, llvm_vector(vector))


def _narrow_f16(builder, value, vector):
    return builder.bitcast(builder.fptrunc(value, llvm_vector(vector, F16)), llvm_vector(vector, I16))


def _widen_bf16(builder, raw, vector):
    wide = llvm_vector(vector, I32)
    return builder.bitcast(builder.shl(builder.zext(raw, wide), _splat_int(wide, 16)), llvm_vector(vector))


def _narrow_bf16(builder, value, vector):
    """Round to nearest even with integers: the hardware's own instruction flushes subnormal numbers to zero."""
    wide = llvm_vector(vector, I32)
    bits = builder.bitcast(value, wide)
    odd = builder.and_(builder.lshr(bits, _splat_int(wide, 16)), _splat_int(wide, 1))
    rounded = builder.add(bits, builder.add(odd, _splat_int(wide, 0x7FFF)))
    quiet = builder.or_(bits, _splat_int(wide, 0x400000))
    kept = builder.select(builder.fcmp_unordered("uno", value, value), quiet, rounded)
    return builder.trunc(builder.lshr(kept, _splat_int(wide, 16)), llvm_vector(vector, I16))


def _same(builder, value, vector):
    return value


def _to_double(builder, value, vector):
    return builder.fpext(value, llvm_vector(vector, F64))


# kind: (what a load gives, element in memory, memory -> accumulator, accumulator -> memory)
KINDS = {
    "float16": (F32X16, I16, _widen_f16, _narrow_f16),
    "bfloat16": (F32X16, I16, _widen_bf16, _narrow_bf16),
    "float32": (F32X16, F32, _same, _same),
    "float64": (F64X8, F64, _same, _same),
}


def _splat_int(vector_type, value):
    return ir.Constant(vector_type, [value] * vector_type.count)


def _splat(builder, vector, scalar):
    one = builder.insert_element(ir.Constant(llvm_vector(vector), ir.Undefined), scalar, I32(0))
    order = ir.Constant(ir.VectorType(I32, vector.lanes), [0] * vector.lanes)
    return builder.shuffle_vector(one, one, order)


def _head_mask(builder, lanes, count):
    """Lanes 0 .. count - 1."""
    wide = ir.VectorType(I32, lanes)
    one = builder.insert_element(ir.Constant(wide, ir.Undefined), builder.trunc(count, I32), I32(0))
    limit = builder.shuffle_vector(one, one, _splat_int(wide, 0))
    return builder.icmp_signed("<", ir.Constant(wide, list(range(lanes))), limit)


def _address(builder, pointer, element, index):
    return builder.gep(builder.bitcast(pointer, element.as_pointer()), [index])


def _align(element):
    return {I16: 2, F32: 4, F64: 8}[element]


# ---------------------------------------------------------------------------------------------------- loads and stores


@intrinsic(prefer_literal=True)
def code(typingctx, value):
    """The literal integer `value` as a `Code`."""
    return Code(value.literal_value)(value), lambda context, builder, sig, args: context.get_dummy_value()


@intrinsic(prefer_literal=True)
def pointer(typingctx, array, kind):
    """The data pointer of `array`, of the dtype numbered `kind` in STORED; -1 where the operand is absent.

    `array` must be an argument of the running kernel: then it outlives every use of the pointer.
    """
    absent = kind.literal_value < 0
    result = Pointer(str(array.dtype) if absent else STORED[kind.literal_value], absent)

    def codegen(context, builder, sig, args):
        data = cgutils.create_struct_proxy(sig.args[0])(context, builder, args[0]).data
        return builder.bitcast(data, I8.as_pointer())

    return result(array, kind), codegen


@intrinsic
def values(typingctx, array):
    """The data pointer of a float32 or float64 array (parameters, scratch, sums): an argument, as for `pointer`."""
    result = Pointer(str(array.dtype))

    def codegen(context, builder, sig, args):
        data = cgutils.create_struct_proxy(sig.args[0])(context, builder, args[0]).data
        return builder.bitcast(data, I8.as_pointer())

    return result(array), codegen


@intrinsic
def offset(typingctx, ptr, index):
    """The pointer to ptr[index]."""
    element = KINDS[ptr.kind][1]

    def codegen(context, builder, sig, args):
        return builder.bitcast(_address(builder, args[0], element, args[1]), I8.as_pointer())

    return ptr(ptr, types.int64), codegen


@intrinsic
def present(typingctx, ptr):
    """Whether the operand is there: a constant, so that LLVM drops the branch not taken."""
    return types.boolean(ptr), lambda context, builder, sig, args: I1(not ptr.absent)


@intrinsic
def lanes(typingctx, ptr):
    """Elements in one vector of this pointer's kind."""
    count = KINDS[ptr.kind][0].lanes
    return types.int64(ptr), lambda context, builder, sig, args: I64(count)


@intrinsic
def load(typingctx, ptr, index, count):
    """The vector at ptr[index], widened to the accumulator's type: all lanes (count None) or the first `count`, then 0.

    Nothing is read beyond `count`. An absent operand gives zeros.
    """
    vector, element, widen, _ = KINDS[ptr.kind]

    def codegen(context, builder, sig, args):
        if ptr.absent:
            return ir.Constant(llvm_vector(vector), None)
        raw = ir.VectorType(element, vector.lanes)
        place = builder.bitcast(_address(builder, args[0], element, args[1]), raw.as_pointer())
        if count == types.none:
            value = builder.load(place, align=_align(element))
        else:
            mask = _head_mask(builder, vector.lanes, args[2])
            fnty = ir.FunctionType(raw, [place.type, I32, mask.type, raw])
            fn = cgutils.get_or_insert_function(builder.module, fnty, _masked_name("load", raw))
            value = builder.call(fn, [place, I32(_align(element)), mask, ir.Constant(raw, None)])
        return widen(builder, value, vector)

    return vector(ptr, types.int64, count), codegen


@intrinsic
def store(typingctx, ptr, index, value, count):
    """Round `value` to the pointer's kind and write it at ptr[index]: all lanes (count None) or the first `count`.

    A float32 vector may be stored to a float64 pointer. Nothing is written to an absent operand.
    """
    vector, element, _, narrow = KINDS[ptr.kind]
    if value.scalar.bitwidth < vector.scalar.bitwidth:
        vector, narrow = value, _to_double

    def codegen(context, builder, sig, args):
        if ptr.absent:
            return context.get_dummy_value()
        raw = narrow(builder, args[2], vector)
        place = builder.bitcast(_address(builder, args[0], element, args[1]), raw.type.as_pointer())
        if count == types.none:
            builder.store(raw, place, align=_align(element))
        else:
            mask = _head_mask(builder, vector.lanes, args[3])
            fnty = ir.FunctionType(ir.VoidType(), [raw.type, place.type, I32, mask.type])
            fn = cgutils.get_or_insert_function(builder.module, fnty, _masked_name("store", raw.type))
            builder.call(fn, [raw, place, I32(_align(element)), mask])
        return context.get_dummy_value()

    return types.none(ptr, types.int64, value, count), codegen


def _masked_name(verb, raw):
    names = {I16: "i16", F32: "f32", F64: "f64"}
    return f"llvm.masked.{verb}.v{raw.count}{names[raw.element]}.p0"


@intrinsic
def load_one(typingctx, ptr, index):
    """ptr[index] as float64; 0 for an absent operand."""
    vector, element, widen, _ = KINDS[ptr.kind]

    def codegen(context, builder, sig, args):
        if ptr.absent:
            return F64(0.0)
        raw = builder.load(_address(builder, args[0], element, args[1]), align=_align(element))
        one = builder.insert_element(ir.Constant(ir.VectorType(element, vector.lanes), ir.Undefined), raw, I32(0))
        value = builder.extract_element(widen(builder, one, vector), I32(0))
        return value if value.type == F64 else builder.fpext(value, F64)

    return types.float64(ptr, types.int64), codegen


@intrinsic
def store_one(typingctx, ptr, index, value):
    """Write the float64 `value` to ptr[index], a float32 or float64 pointer."""
    element = KINDS[ptr.kind][1]

    def codegen(context, builder, sig, args):
        value = args[2] if element == F64 else builder.fptrunc(args[2], F32)
        builder.store(value, _address(builder, args[0], element, args[1]), align=_align(element))
        return context.get_dummy_value()

    return types.none(ptr, types.int64, types.float64), codegen


# ---------------------------------------------------------------------------------------------------- lane arithmetic


@intrinsic
def splat(typingctx, ptr, scalar):
    """`scalar`, rounded to the accumulator of `ptr`'s kind, in every lane."""
    vector = KINDS[ptr.kind][0]

    def codegen(context, builder, sig, args):
        return _splat(builder, vector, context.cast(builder, args[1], sig.args[1], vector.scalar))

    return vector(ptr, scalar), codegen


@intrinsic
def rounded(typingctx, ptr, value):
    """The float64 `value` rounded to the accumulator of `ptr`'s kind, as float64 again."""
    element = llvm_vector(KINDS[ptr.kind][0]).element

    def codegen(context, builder, sig, args):
        return args[1] if element == F64 else builder.fpext(builder.fptrunc(args[1], F32), F64)

    return types.float64(ptr, types.float64), codegen


@intrinsic
def keep(typingctx, value, count):
    """`value` with zeros from lane `count` on; unchanged where count is None."""

    def codegen(context, builder, sig, args):
        if count == types.none:
            return args[0]
        return builder.select(_head_mask(builder, value.lanes, args[1]), args[0], ir.Constant(args[0].type, None))

    return value(value, count), codegen


@intrinsic
def lane_sum(typingctx, value):
    """The sum of all lanes in float64, by halves: always the same order."""

    def codegen(context, builder, sig, args):
        total, width = args[0], value.lanes
        if total.type.element != F64:
            total = builder.fpext(total, ir.VectorType(F64, width))
        while width > 1:
            width //= 2
            low, high = (
                ir.Constant(ir.VectorType(I32, width), list(range(start, start + width))) for start in (0, width)
            )
            total = builder.fadd(
                builder.shuffle_vector(total, total, low), builder.shuffle_vector(total, total, high)
            )
        return builder.extract_element(total, I32(0))

    return types.float64(value), codegen


def _call(builder, name, args):
    suffix = "v16f32" if args[0].type.element == F32 else "v8f64"
    fnty = ir.FunctionType(args[0].type, [a.type for a in args])
    return builder.call(cgutils.get_or_insert_function(builder.module, fnty, f"llvm.{name}.{suffix}"), args)


def _to_vector(context, builder, value, from_type, vector):
    if isinstance(from_type, Vector):
        return value
    return _splat(builder, vector, context.cast(builder, value, from_type, vector.scalar))


@intrinsic
def fma(typingctx, a, b, c):
    """a * b + c with one rounding where the processor has the instruction; one of the three is a vector."""
    vector = next(t for t in (a, b, c) if isinstance(t, Vector))

    def codegen(context, builder, sig, args):
        operands = [_to_vector(context, builder, v, t, vector) for v, t in zip(args, sig.args, strict=True)]
        return _call(builder, "fmuladd", operands)

    return vector(a, b, c), codegen


@intrinsic
def where(typingctx, mask, a, b):
    """Lane by lane: a where the mask is set, else b."""
    vector = mask.vector

    def codegen(context, builder, sig, args):
        a_value, b_value = (_to_vector(context, builder, args[i], sig.args[i], vector) for i in (1, 2))
        return builder.select(args[0], a_value, b_value)

    return vector(mask, a, b), codegen


@intrinsic
def absolute(typingctx, value):
    """The magnitude of each lane."""
    return value(value), lambda context, builder, sig, args: _call(builder, "fabs", args)


@intrinsic
def nearest(typingctx, value):
    """Each lane rounded to the nearest whole number, ties to even."""
    return value(value), lambda context, builder, sig, args: _call(builder, "nearbyint", args)


@intrinsic
def power_of_two(typingctx, value):
    """2 ** value for whole numbers within the range of normal exponents, made from the exponent's bits.

    The whole number is read off the mantissa after adding 1.5 * 2**mantissa: a conversion to integer would be undefined
    for NaN, this gives some power of two, which a NaN factor then overrules.
    """
    bits, mantissa, bias = (I32, 23, 127) if value.scalar == types.float32 else (I64, 52, 1023)

    def codegen(context, builder, sig, args):
        wide = ir.VectorType(bits, value.lanes)
        shifted = builder.fadd(args[0], ir.Constant(args[0].type, [1.5 * 2.0**mantissa] * value.lanes))
        exponent = builder.add(builder.bitcast(shifted, wide), _splat_int(wide, bias))
        return builder.bitcast(builder.shl(exponent, _splat_int(wide, mantissa)), args[0].type)

    return value(value), codegen


@intrinsic(prefer_literal=True)
def constant(typingctx, like, name):
    """The number CONSTANTS[name], as precise as the lanes of `like`, in every lane."""
    number = CONSTANTS[name.literal_value][like.scalar.bitwidth // 32 - 1]

    def codegen(context, builder, sig, args):
        return ir.Constant(args[0].type, [number] * like.lanes)

    return like(like, name), codegen


@intrinsic(prefer_literal=True)
def polynomial(typingctx, x, name):
    """The polynomial POLYNOMIALS[name] in x, its degree chosen by the precision of the lanes, by Horner's rule."""
    coefficients = POLYNOMIALS[name.literal_value][x.scalar.bitwidth // 32 - 1]

    def codegen(context, builder, sig, args):
        terms = [ir.Constant(args[0].type, [c] * x.lanes) for c in coefficients]
        total = terms[-1]
        for term in reversed(terms[:-1]):
            total = _call(builder, "fmuladd", [total, args[0], term])
        return total

    return x(x, name), codegen


def _register(op, instruction):
    @infer_global(op)
    class Typing(AbstractTemplate):
        def generic(self, args, kws):
            vectors = [t for t in args if isinstance(t, Vector)]
            if vectors and all(t == vectors[0] or isinstance(t, types.Number) for t in args):
                result = Mask(vectors[0]) if instruction.startswith("fcmp") else vectors[0]
                return signature(result, *args)
            return None

    def lowering(context, builder, sig, args):
        vector = next(t for t in sig.args if isinstance(t, Vector))
        operands = [_to_vector(context, builder, v, t, vector) for v, t in zip(args, sig.args, strict=True)]
        if instruction.startswith("fcmp"):
            return builder.fcmp_ordered(instruction.removeprefix("fcmp "), *operands)
        return getattr(builder, instruction)(*operands)

    if op is operator.neg:
        lower_builtin(op, Vector)(lowering)
        return
    for left, right in ((Vector, Vector), (Vector, types.Number), (types.Number, Vector)):
        lower_builtin(op, left, right)(lowering)


for _op, _instruction in {
    operator.add: "fadd",
    operator.sub: "fsub",
    operator.mul: "fmul",
    operator.truediv: "fdiv",
    operator.neg: "fneg",
    operator.lt: "fcmp <",
    operator.le: "fcmp <=",
    operator.gt: "fcmp >",
}.items():
    _register(_op, _instruction)
