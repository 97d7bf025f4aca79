"""Lanes for CUDA kernels: the few values that one thread holds of a row, with the arithmetic of the shared formulas.

A thread reads and writes 16 bytes at once where it can, else one value: `Packed` is what it read, in the kind of the
array, `Lanes` is the same as accumulators. Addresses are plain integers, so that a kernel takes any library's memory
and no array needs converting. No other module makes LLVM instructions; `simulated` has the same names for NumPy.
"""

import operator

from llvmlite import ir
from numba import cuda
from numba.cuda import types
from numba.cuda.cudadecl import registry as typing_registry
from numba.cuda.cudaimpl import registry as lowering_registry
from numba.cuda.extending import core_models, intrinsic, register_model
from numba.cuda.typing.templates import AbstractTemplate, signature

from ..polynomials import CONSTANTS, POLYNOMIALS
from .kinds import ITEMSIZE, accumulator_of

I1, I16, I32, I64 = (ir.IntType(n) for n in (1, 16, 32, 64))
F16, F32, F64 = ir.HalfType(), ir.FloatType(), ir.DoubleType()
GLOBAL = 1  # the address space of a GPU's memory

# ------------------------------------------------------------------------------------------------------------ types


class Lanes(types.Type):
    """Accumulator values, float32 or float64."""

    def __init__(self, scalar, count):
        self.scalar, self.count = scalar, count
        super().__init__(f"Lanes({scalar}x{count})")


class Flags(types.Type):
    """What a comparison of lanes gives."""

    def __init__(self, lanes):
        self.lanes = lanes
        super().__init__(f"Flags({lanes})")


class Packed(types.Type):
    """Values as they lie in memory, in words of 32 bits."""

    def __init__(self, kind, count):
        self.kind, self.count = kind, count
        self.words = max(1, ITEMSIZE[kind] * count // 4)
        super().__init__(f"Packed({kind}x{count})")

    @property
    def lanes(self):
        return Lanes({"float32": types.float32, "float64": types.float64}[accumulator_of(self.kind)], self.count)


def _packed(kind, count):
    """The type for a kind and a count, or None while they are not constants: Numba then asks again."""
    if isinstance(kind, types.StringLiteral) and isinstance(count, types.IntegerLiteral):
        return Packed(kind.literal_value, count.literal_value)
    return None


def _llvm(lanes):
    return ir.VectorType({32: F32, 64: F64}[lanes.scalar.bitwidth], lanes.count)


@register_model(Lanes)
class LanesModel(core_models.PrimitiveModel):
    def __init__(self, dmm, fe_type):
        super().__init__(dmm, fe_type, _llvm(fe_type))


@register_model(Flags)
class FlagsModel(core_models.PrimitiveModel):
    def __init__(self, dmm, fe_type):
        super().__init__(dmm, fe_type, ir.VectorType(I1, fe_type.lanes.count))


@register_model(Packed)
class PackedModel(core_models.PrimitiveModel):
    def __init__(self, dmm, fe_type):
        super().__init__(dmm, fe_type, ir.VectorType(I32, fe_type.words))


# ------------------------------------------------------------------------------------------------------------- memory


def _pointer(builder, address, index, itemsize, element):
    byte = builder.add(address, builder.mul(index, I64(itemsize)))
    return builder.inttoptr(byte, ir.PointerType(element, GLOBAL))


def _index(context, builder, value, from_type):
    return context.cast(builder, value, from_type, types.int64)


def _in_memory(kind, count):
    """(LLVM type of one access, its alignment)."""
    size = ITEMSIZE[kind] * count
    if count > 1:
        return ir.VectorType(I32, size // 4), min(size, 16)
    return ir.IntType(8 * size), size


@intrinsic
def load(typingctx, address, index, kind, count):
    """`count` values from element `index` on, of an array of `kind` that begins at `address`."""
    packed = _packed(kind, count)
    if packed is None:
        return None

    def codegen(context, builder, sig, args):
        element, align = _in_memory(packed.kind, packed.count)
        place = _pointer(
            builder, args[0], _index(context, builder, args[1], sig.args[1]), ITEMSIZE[packed.kind], element
        )
        value = builder.load(place, align=align)
        if packed.count > 1:
            return value
        if element == I16:
            value = builder.zext(value, I32)
        return builder.bitcast(value, ir.VectorType(I32, packed.words))

    return packed(address, index, kind, count), codegen


@intrinsic
def load_integer(typingctx, address, index):
    """Element `index` of an array of int64 that begins at `address`."""

    def codegen(context, builder, sig, args):
        index = _index(context, builder, args[1], sig.args[1])
        return builder.load(_pointer(builder, args[0], index, 8, I64), align=8)

    return types.int64(address, index), codegen


@intrinsic
def store(typingctx, address, index, kind, lanes):
    """Write lanes from element `index` on, rounded to `kind`."""
    if not isinstance(kind, types.StringLiteral):
        return None
    packed = Packed(kind.literal_value, lanes.count)

    def codegen(context, builder, sig, args):
        element, align = _in_memory(packed.kind, packed.count)
        place = _pointer(
            builder, args[0], _index(context, builder, args[1], sig.args[1]), ITEMSIZE[packed.kind], element
        )
        value = _narrow(builder, _cast(builder, args[3], packed.lanes), packed)
        if packed.count == 1:
            value = builder.bitcast(value, ir.IntType(32 * packed.words))
            if element == I16:
                value = builder.trunc(value, I16)
        builder.store(value, place, align=align)
        return context.get_dummy_value()

    return types.none(address, index, kind, lanes), codegen


@intrinsic
def keep(typingctx, registers, place, packed):
    """Put packed values into a local array of words; with places that unrolling makes constant it becomes registers."""

    def codegen(context, builder, sig, args):
        pointer = _words(context, builder, sig.args[0], args[0], sig.args[1], args[1], packed)
        builder.store(args[2], pointer, align=4)
        return context.get_dummy_value()

    return types.none(registers, place, packed), codegen


@intrinsic
def kept(typingctx, registers, place, kind, count):
    """Packed values that were put there."""
    packed = _packed(kind, count)
    if packed is None:
        return None

    def codegen(context, builder, sig, args):
        pointer = _words(context, builder, sig.args[0], args[0], sig.args[1], args[1], packed)
        return builder.load(pointer, align=4)

    return packed(registers, place, kind, count), codegen


def _words(context, builder, array_type, array, place_type, place, packed):
    data = context.make_array(array_type)(context, builder, array).data
    first = builder.mul(_index(context, builder, place, place_type), I64(packed.words))
    word = builder.gep(builder.bitcast(data, ir.PointerType(I32, data.type.addrspace)), [first])
    return builder.bitcast(word, ir.PointerType(ir.VectorType(I32, packed.words), word.type.addrspace))


# --------------------------------------------------------------------------------------------- kinds <-> accumulators


def _split(builder, value, part):
    """The words of a packed value as integers of `part` bits."""
    return builder.bitcast(value, ir.VectorType(ir.IntType(part), 32 * value.type.count // part))


def _each(builder, result, value, change):
    """A vector of type `result`, each lane being `change` of that of `value`: what NVVM takes for every type."""
    total = ir.Constant(result, ir.Undefined)
    for i in range(result.count):
        lane = builder.extract_element(value, I32(i))
        total = builder.insert_element(total, change(lane), I32(i))
    return total


def _widen(builder, value, packed):
    target = _llvm(packed.lanes)
    if packed.kind in ("float32", "float64"):
        return builder.bitcast(value, target)
    halves = _split(builder, value, 16)  # of a single one the upper half is not used
    if packed.kind == "float16":
        return _each(builder, target, halves, lambda half: builder.fpext(builder.bitcast(half, F16), F32))
    return _each(
        builder, target, halves, lambda half: builder.bitcast(builder.shl(builder.zext(half, I32), I32(16)), F32)
    )


def _narrow(builder, value, packed):
    words = ir.VectorType(I32, packed.words)
    if packed.kind in ("float32", "float64"):
        return builder.bitcast(value, words)

    def round_bf16(lane):
        # to nearest even, with integers: compute capability 7.5 has no instruction for it
        bits = builder.bitcast(lane, I32)
        odd = builder.and_(builder.lshr(bits, I32(16)), I32(1))
        rounded = builder.add(bits, builder.add(odd, I32(0x7FFF)))
        nan = builder.fcmp_unordered("uno", lane, lane)
        chosen = builder.select(nan, builder.or_(bits, I32(0x400000)), rounded)
        return builder.trunc(builder.lshr(chosen, I32(16)), I16)

    def round_f16(lane):
        return builder.bitcast(builder.fptrunc(lane, F16), I16)

    halves = ir.VectorType(I16, 2 * packed.words)
    change = round_f16 if packed.kind == "float16" else round_bf16
    total = ir.Constant(halves, [0] * halves.count)
    for i in range(packed.count):
        total = builder.insert_element(total, change(builder.extract_element(value, I32(i))), I32(i))
    return builder.bitcast(total, words)


def _cast(builder, value, lanes):
    """Accumulators as those of another precision."""
    target = _llvm(lanes)
    if value.type == target:
        return value
    change = builder.fpext if target.element == F64 else builder.fptrunc
    return _each(builder, target, value, lambda lane: change(lane, target.element))


@intrinsic
def unpack(typingctx, packed, acc):
    """Packed values as accumulators of the kind `acc`."""
    if not isinstance(acc, types.StringLiteral):
        return None
    lanes = Packed(acc.literal_value, packed.count).lanes

    def codegen(context, builder, sig, args):
        return _cast(builder, _widen(builder, args[0], packed), lanes)

    return lanes(packed, acc), codegen


@intrinsic
def pack(typingctx, lanes, kind):
    """Accumulators rounded to `kind`."""
    if not isinstance(kind, types.StringLiteral):
        return None
    packed = Packed(kind.literal_value, lanes.count)
    def codegen(context, builder, sig, args):
        return _narrow(builder, _cast(builder, args[0], packed.lanes), packed)

    return packed(lanes, kind), codegen


# ---------------------------------------------------------------------------------------------------- lane arithmetic


def _splat(context, builder, value, from_type, lanes):
    if isinstance(from_type, Lanes):
        return value
    scalar = context.cast(builder, value, from_type, lanes.scalar)
    total = ir.Constant(_llvm(lanes), ir.Undefined)
    for i in range(lanes.count):
        total = builder.insert_element(total, scalar, I32(i))
    return total


@intrinsic
def splat(typingctx, value, kind, count):
    """One number in `count` lanes of the accumulator of `kind`."""
    packed = _packed(kind, count)
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
        result = _llvm(lanes)
        return _lanewise(builder, result, operands, lambda x, y, z: _fma(builder, result.element, x, y, z))

    return lanes(a, b, c), codegen


@intrinsic
def where(typingctx, flags, a, b):
    """Lane by lane: a where the flag is set, else b."""
    lanes = flags.lanes

    def codegen(context, builder, sig, args):
        operands = [args[0]] + [_splat(context, builder, args[i], sig.args[i], lanes) for i in (1, 2)]
        return _lanewise(builder, _llvm(lanes), operands, builder.select)

    return lanes(flags, a, b), codegen


@intrinsic
def times_power_of_two(typingctx, value, shifted):
    """value * 2**n where both are normal numbers, n being the last bits of the mantissa of `shifted`."""
    bits, mantissa = (I32, 23) if value.scalar == types.float32 else (I64, 52)

    def codegen(context, builder, sig, args):
        result = _llvm(value)

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
        return ir.Constant(_llvm(like), [number] * like.count)

    return like(like, name), codegen


@intrinsic
def polynomial(typingctx, x, name):
    """The polynomial POLYNOMIALS[name] in x, its degree chosen by the precision of the lanes, by Horner's rule."""
    if not isinstance(name, types.StringLiteral):
        return None
    coefficients = POLYNOMIALS[name.literal_value][x.scalar.bitwidth // 32 - 1]

    def codegen(context, builder, sig, args):
        result = _llvm(x)

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
            operands.insert(0, ir.Constant(_llvm(lanes), [-0.0] * lanes.count))
        make = builder.fsub if instruction == "fneg" else getattr(builder, instruction)
        return _lanewise(builder, _llvm(lanes), operands, make)

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
