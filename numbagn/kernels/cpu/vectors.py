"""Vectors for Numba kernels: arithmetic on 64 bytes of values, with a fixed lane order.

Everything the kernels compute, they compute on these vectors, the tails too (masked loads and stores), and no fastmath
flag is used anywhere: the bits of a result follow from the source alone, not from what LLVM makes of a loop in one
context or another. That is how serial, parallel, in-place and any-batch results are equal to the last bit.

A vector is 64 bytes on every processor: one register with AVX-512, two with AVX2, four with SSE or Neon. How vectors
are read from arrays and written to them stands in `memory`; no other module makes LLVM instructions.
"""

import operator

from llvmlite import ir
from numba import types
from numba.extending import intrinsic, lower_builtin, models, register_model

from ..numba_names import AbstractTemplate, cgutils, infer_global, signature
from ..polynomials import CONSTANTS, POLYNOMIALS

I1, I32, I64 = (ir.IntType(n) for n in (1, 32, 64))
F32, F64 = ir.FloatType(), ir.DoubleType()

# ------------------------------------------------------------------------------------------------------------ types


class Vector(types.Type):
    """A 64-byte vector of accumulator values: 16 x float32 or 8 x float64, or 16 x int32 for exact sums."""

    def __init__(self, scalar):
        self.scalar = scalar
        self.lanes = 512 // scalar.bitwidth
        super().__init__(f"Vector({scalar}x{self.lanes})")


class Mask(types.Type):
    """What a comparison of two vectors gives: one bit a lane."""

    def __init__(self, vector):
        self.vector = vector
        super().__init__(f"Mask({vector})")


class Code(types.Type):
    """An integer known when the kernel is compiled, carried as a type so that any callee may specialise on it."""

    def __init__(self, value):
        self.value = value
        super().__init__(f"Code({value})")


F32X16, F64X8, I32X16 = Vector(types.float32), Vector(types.float64), Vector(types.int32)
SCALARS = {types.float32: F32, types.float64: F64, types.int32: I32}


def llvm_vector(vector, element=None):
    return ir.VectorType(element or SCALARS[vector.scalar], vector.lanes)


@register_model(Vector)
class VectorModel(models.PrimitiveModel):
    def __init__(self, dmm, fe_type):
        super().__init__(dmm, fe_type, llvm_vector(fe_type))


@register_model(Mask)
class MaskModel(models.PrimitiveModel):
    def __init__(self, dmm, fe_type):
        super().__init__(dmm, fe_type, ir.VectorType(I1, fe_type.vector.lanes))


register_model(Code)(models.OpaqueModel)

# ------------------------------------------------------------------------------------------------- LLVM building blocks


def splat_int(vector_type, value):
    return ir.Constant(vector_type, [value] * vector_type.count)


def splat_scalar(builder, vector, scalar):
    one = builder.insert_element(ir.Constant(llvm_vector(vector), ir.Undefined), scalar, I32(0))
    order = ir.Constant(ir.VectorType(I32, vector.lanes), [0] * vector.lanes)
    return builder.shuffle_vector(one, one, order)


def head_mask(builder, lanes, count):
    """Lanes 0 .. count - 1."""
    wide = ir.VectorType(I32, lanes)
    one = builder.insert_element(ir.Constant(wide, ir.Undefined), builder.trunc(count, I32), I32(0))
    limit = builder.shuffle_vector(one, one, splat_int(wide, 0))
    return builder.icmp_signed("<", ir.Constant(wide, list(range(lanes))), limit)


@intrinsic(prefer_literal=True)
def code(typingctx, value):
    """The literal integer `value` as a `Code`."""
    return Code(value.literal_value)(value), lambda context, builder, sig, args: context.get_dummy_value()


def known(kind):
    """The value of an argument of that type, a literal integer or a `Code`."""
    return kind.value if isinstance(kind, Code) else kind.literal_value


# ---------------------------------------------------------------------------------------------------- lane arithmetic


@intrinsic
def keep(typingctx, value, count):
    """`value` with zeros from lane `count` on; unchanged where count is None."""

    def codegen(context, builder, sig, args):
        if count == types.none:
            return args[0]
        return builder.select(head_mask(builder, value.lanes, args[1]), args[0], ir.Constant(args[0].type, None))

    return value(value, count), codegen


def _halves(builder, value):
    width = value.type.count // 2
    orders = (ir.Constant(ir.VectorType(I32, width), list(range(start, start + width))) for start in (0, width))
    return [builder.shuffle_vector(value, value, order) for order in orders]


@intrinsic
def doubles(typingctx, value):
    """Eight float64 that together are the sum of all lanes: upper half added to lower; float64 lanes unchanged."""

    def codegen(context, builder, sig, args):
        if value == F64X8:
            return args[0]
        widen = builder.sitofp if value == I32X16 else builder.fpext
        low, high = (widen(half, llvm_vector(F64X8)) for half in _halves(builder, args[0]))
        return builder.fadd(low, high)

    return F64X8(value), codegen


@intrinsic
def lane_sum(typingctx, value):
    """The sum of all lanes of a float64 vector, by halves: always the same order."""

    def codegen(context, builder, sig, args):
        total = args[0]
        while total.type.count > 1:
            total = builder.fadd(*_halves(builder, total))
        return builder.extract_element(total, I32(0))

    return types.float64(value), codegen


def _call(builder, name, args):
    suffix = "v16f32" if args[0].type.element == F32 else "v8f64"
    fnty = ir.FunctionType(args[0].type, [a.type for a in args])
    return builder.call(cgutils.get_or_insert_function(builder.module, fnty, f"llvm.{name}.{suffix}"), args)


def _to_vector(context, builder, value, from_type, vector):
    if isinstance(from_type, Vector):
        return value
    return splat_scalar(builder, vector, context.cast(builder, value, from_type, vector.scalar))


@intrinsic
def fma(typingctx, a, b, c):
    """a * b + c with one rounding where the processor has the instruction; at least one of the three is a vector."""
    vector = next(t for t in (a, b, c) if isinstance(t, Vector))

    def codegen(context, builder, sig, args):
        operands = [_to_vector(context, builder, v, t, vector) for v, t in zip(args, sig.args, strict=True)]
        if vector == I32X16:
            return builder.add(builder.mul(operands[0], operands[1]), operands[2])
        return _call(builder, "fmuladd", operands)

    return vector(a, b, c), codegen


@intrinsic
def shifted(typingctx, value, shift):
    """value - shift; integers, whose sums are exact, as they are."""

    def codegen(context, builder, sig, args):
        return args[0] if value == I32X16 else builder.fsub(*args)

    return value(value, shift), codegen


@intrinsic
def where(typingctx, mask, a, b):
    """Lane by lane: a where the mask is set, else b."""
    vector = mask.vector

    def codegen(context, builder, sig, args):
        a_value, b_value = (_to_vector(context, builder, args[i], sig.args[i], vector) for i in (1, 2))
        return builder.select(args[0], a_value, b_value)

    return vector(mask, a, b), codegen


@intrinsic
def join(typingctx, a, b, count):
    """The first `count` lanes of a, the others of b."""

    def codegen(context, builder, sig, args):
        return builder.select(head_mask(builder, a.lanes, args[2]), args[0], args[1])

    return a(a, b, count), codegen


@intrinsic
def times_power_of_two(typingctx, value, shifted):
    """value * 2**n where both are normal numbers, n being the last bits of the mantissa of `shifted`.

    It is added to the exponent's bits; a NaN becomes some number.
    """
    bits, mantissa = (I32, 23) if value.scalar == types.float32 else (I64, 52)

    def codegen(context, builder, sig, args):
        wide = ir.VectorType(bits, value.lanes)
        number, n = (builder.bitcast(arg, wide) for arg in args)
        return builder.bitcast(builder.add(number, builder.shl(n, splat_int(wide, mantissa))), args[0].type)

    return value(value, shifted), codegen


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
        return getattr(builder, instruction.removeprefix("f" * (vector == I32X16)))(*operands)

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
