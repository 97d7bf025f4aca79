"""Arithmetic on lanes: the operators and primitives that the shared formulas are written with.

Everything is made lane by lane, since NVVM's older dialect takes no vectors in its mathematical functions.
"""

import operator

from llvmlite import ir
from numba.cuda import types

from ..polynomials import CONSTANTS, POLYNOMIALS
from .lanes import I1, I32, I64, Flags, Lanes, llvm_lanes, packed_type
from .numba_names import AbstractTemplate, intrinsic, lowering_registry, signature, typing_registry


def _splat(context, builder, value, from_type, lanes):
    if isinstance(from_type, Lanes):
        return value
    scalar = context.cast(builder, value, from_type, lanes.scalar)
    total = ir.Constant(llvm_lanes(lanes), ir.Undefined)
    for i in range(lanes.count):
        total = builder.insert_element(total, scalar, I32(i))
    return total


@intrinsic
def splat(typingctx, value, kind, count):
    """One number in `count` lanes of the accumulator of `kind`."""
    packed = packed_type(kind, count)
    if packed is None:
        return None
    lanes = packed.lanes

    def codegen(context, builder, sig, args):
        return _splat(context, builder, args[0], sig.args[0], lanes)

    return lanes(value, kind, count), codegen


@intrinsic
def lane_sum(typingctx, lanes):
    """The sum of all lanes, by halves."""

    def codegen(context, builder, sig, args):
        values = [builder.extract_element(args[0], I32(i)) for i in range(lanes.count)]
        while len(values) > 1:
            half = len(values) // 2
            values = [builder.fadd(values[i], values[i + half]) for i in range(half)]
        return values[0]

    return lanes.scalar(lanes), codegen


def _fma(builder, element, a, b, c):
    function = builder.module.declare_intrinsic("llvm.fma", [element], ir.FunctionType(element, [element] * 3))
    return builder.call(function, [a, b, c])


def _lanewise(builder, result, vectors, change):
    total = ir.Constant(result, ir.Undefined)
    for i in range(result.count):
        parts = [builder.extract_element(vector, I32(i)) for vector in vectors]
        total = builder.insert_element(total, change(*parts), I32(i))
    return total


@intrinsic
def fma(typingctx, a, b, c):
    """a * b + c with one rounding; at least one of the three is Lanes."""
    lanes = next(t for t in (a, b, c) if isinstance(t, Lanes))

    def codegen(context, builder, sig, args):
        operands = [_splat(context, builder, v, t, lanes) for v, t in zip(args, sig.args, strict=True)]
        result = llvm_lanes(lanes)
        return _lanewise(builder, result, operands, lambda x, y, z: _fma(builder, result.element, x, y, z))

    return lanes(a, b, c), codegen


@intrinsic
def where(typingctx, flags, a, b):
    """Lane by lane: a where the flag is set, else b."""
    lanes = flags.lanes

    def codegen(context, builder, sig, args):
        operands = [args[0]] + [_splat(context, builder, args[i], sig.args[i], lanes) for i in (1, 2)]
        return _lanewise(builder, llvm_lanes(lanes), operands, builder.select)

    return lanes(flags, a, b), codegen


@intrinsic
def times_power_of_two(typingctx, value, shifted):
    """value * 2**n where both are normal numbers, n being the last bits of the mantissa of `shifted`."""
    bits, mantissa = (I32, 23) if value.scalar == types.float32 else (I64, 52)

    def codegen(context, builder, sig, args):
        result = llvm_lanes(value)

        def scaled(number, n):
            exponent = builder.shl(builder.bitcast(n, bits), bits(mantissa))
            return builder.bitcast(builder.add(builder.bitcast(number, bits), exponent), result.element)

        return _lanewise(builder, result, args, scaled)

    return value(value, shifted), codegen


@intrinsic
def constant(typingctx, like, name):
    """The number CONSTANTS[name], as precise as the lanes of `like`, in every lane."""
    if not isinstance(name, types.StringLiteral):
        return None
    number = CONSTANTS[name.literal_value][like.scalar.bitwidth // 32 - 1]

    def codegen(context, builder, sig, args):
        return ir.Constant(llvm_lanes(like), [number] * like.count)

    return like(like, name), codegen


@intrinsic
def polynomial(typingctx, x, name):
    """The polynomial POLYNOMIALS[name] in x, its degree chosen by the precision of the lanes, by Horner's rule."""
    if not isinstance(name, types.StringLiteral):
        return None
    coefficients = POLYNOMIALS[name.literal_value][x.scalar.bitwidth // 32 - 1]

    def codegen(context, builder, sig, args):
        result = llvm_lanes(x)

        def horner(lane):
            total = result.element(coefficients[-1])
            for c in reversed(coefficients[:-1]):
                total = _fma(builder, result.element, total, lane, result.element(c))
            return total

        return _lanewise(builder, result, args[:1], horner)

    return x(x, name), codegen


def _register(op, instruction):
    @typing_registry.register_global(op)
    class Typing(AbstractTemplate):
        def generic(self, args, kws):
            lanes = [t for t in args if isinstance(t, Lanes)]
            if lanes and all(t == lanes[0] or isinstance(t, types.Number) for t in args):
                return signature(Flags(lanes[0]) if instruction.startswith("fcmp") else lanes[0], *args)
            return None

    def lowering(context, builder, sig, args):
        lanes = next(t for t in sig.args if isinstance(t, Lanes))
        operands = [_splat(context, builder, v, t, lanes) for v, t in zip(args, sig.args, strict=True)]
        if instruction.startswith("fcmp"):
            compared = instruction.removeprefix("fcmp ")
            flags = ir.VectorType(I1, lanes.count)
            return _lanewise(builder, flags, operands, lambda a, b: builder.fcmp_ordered(compared, a, b))
        if instruction == "fneg":  # which NVVM's older dialect does not know
            operands.insert(0, ir.Constant(llvm_lanes(lanes), [-0.0] * lanes.count))
        make = builder.fsub if instruction == "fneg" else getattr(builder, instruction)
        return _lanewise(builder, llvm_lanes(lanes), operands, make)

    if op is operator.neg:
        lowering_registry.lower(op, Lanes)(lowering)
        return
    for left, right in ((Lanes, Lanes), (Lanes, types.Number), (types.Number, Lanes)):
        lowering_registry.lower(op, left, right)(lowering)


for _op, _instruction in {
    operator.add: "fadd", operator.sub: "fsub", operator.mul: "fmul", operator.truediv: "fdiv", operator.neg: "fneg",
    operator.lt: "fcmp <", operator.le: "fcmp <=", operator.gt: "fcmp >",
}.items():  # fmt: skip
    _register(_op, _instruction)
