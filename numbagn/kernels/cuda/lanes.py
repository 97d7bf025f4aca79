"""Lanes for CUDA kernels: the few values that one thread holds of a row, with the arithmetic of the shared formulas.

A thread reads and writes 16 bytes at once where it can, else one value: `Packed` is what it read, in the kind of the
array, `Lanes` is the same as accumulators. Addresses are plain integers, so that a kernel takes any library's memory
and no array needs converting. Only this module and `arithmetic` make LLVM instructions; `simulated` has the same names
for NumPy.
"""

from llvmlite import ir
from numba.cuda import types

from .kinds import ITEMSIZE, accumulator_of
from .numba_names import core_models, intrinsic, register_model

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


def packed_type(kind, count):
    """The type for a kind and a count, or None while they are not constants: Numba then asks again."""
    if isinstance(kind, types.StringLiteral) and isinstance(count, types.IntegerLiteral):
        return Packed(kind.literal_value, count.literal_value)
    return None


def llvm_lanes(lanes):
    return ir.VectorType({32: F32, 64: F64}[lanes.scalar.bitwidth], lanes.count)


@register_model(Lanes)
class LanesModel(core_models.PrimitiveModel):
    def __init__(self, dmm, fe_type):
        super().__init__(dmm, fe_type, llvm_lanes(fe_type))


@register_model(Flags)
class FlagsModel(core_models.PrimitiveModel):
    def __init__(self, dmm, fe_type):
        super().__init__(dmm, fe_type, ir.VectorType(I1, fe_type.lanes.count))


@register_model(Packed)
class PackedModel(core_models.PrimitiveModel):
    def __init__(self, dmm, fe_type):
        super().__init__(dmm, fe_type, ir.VectorType(I32, fe_type.words))


# ---------------------------------------------------------------------------------------------------------- arguments


def nested(form):
    """A function that gives a tuple of numbers that form: nested tuples, 0 for each number, None for what is absent."""

    def typed(part, numbers):
        if part is None:
            return types.none
        if isinstance(part, tuple):
            return types.BaseTuple.from_types([typed(inner, numbers) for inner in part], type(part))
        return next(numbers)

    def filled(context, builder, kind, numbers):
        if kind == types.none:
            return context.get_dummy_value()
        if isinstance(kind, types.BaseTuple):
            return context.make_tuple(builder, kind, [filled(context, builder, inner, numbers) for inner in kind])
        return next(numbers)

    @intrinsic
    def nest(typingctx, numbers):
        result = typed(form, iter(numbers))

        def codegen(context, builder, sig, args):
            values = (builder.extract_value(args[0], i) for i in range(len(numbers)))
            return filled(context, builder, result, values)

        return result(numbers), codegen

    return nest


# ------------------------------------------------------------------------------------------------------------- memory


def _pointer(builder, address, index, itemsize, element):
    byte = builder.add(address, builder.mul(index, I64(itemsize)))
    return builder.inttoptr(byte, ir.PointerType(element, GLOBAL))


def as_index(context, builder, value, from_type):
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
    packed = packed_type(kind, count)
    if packed is None:
        return None

    def codegen(context, builder, sig, args):
        element, align = _in_memory(packed.kind, packed.count)
        place = _pointer(
            builder, args[0], as_index(context, builder, args[1], sig.args[1]), ITEMSIZE[packed.kind], element
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
        index = as_index(context, builder, args[1], sig.args[1])
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
            builder, args[0], as_index(context, builder, args[1], sig.args[1]), ITEMSIZE[packed.kind], element
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
        element, number, pointer = _places(context, builder, sig, args, packed)
        value = builder.bitcast(args[2], ir.VectorType(element, number))
        for i in range(number):
            builder.store(builder.extract_element(value, I32(i)), builder.gep(pointer, [I32(i)]), align=4)
        return context.get_dummy_value()

    return types.none(registers, place, packed), codegen


@intrinsic
def kept(typingctx, registers, place, kind, count):
    """Packed values that were put there."""
    packed = packed_type(kind, count)
    if packed is None:
        return None

    def codegen(context, builder, sig, args):
        element, number, pointer = _places(context, builder, sig, args, packed)
        total = ir.Constant(ir.VectorType(element, number), ir.Undefined)
        for i in range(number):
            total = builder.insert_element(total, builder.load(builder.gep(pointer, [I32(i)]), align=4), I32(i))
        return builder.bitcast(total, ir.VectorType(I32, packed.words))

    return packed(registers, place, kind, count), codegen


def _places(context, builder, sig, args, packed):
    """(element, how many, pointer to the first) of packed values in a local or shared array.

    By scalars: arrays that are accessed by vectors of float64 stay in local memory.
    """
    element = F64 if packed.kind == "float64" else I32
    number = packed.words // 2 if element == F64 else packed.words
    data = context.make_array(sig.args[0])(context, builder, args[0]).data
    first = builder.mul(as_index(context, builder, args[1], sig.args[1]), I64(number))
    base = builder.bitcast(data, ir.PointerType(element, data.type.addrspace))
    return element, number, builder.gep(base, [first])


# --------------------------------------------------------------------------------------------- kinds <-> accumulators


def _split(builder, value, part):
    """The words of a packed value as integers of `part` bits."""
    return builder.bitcast(value, ir.VectorType(ir.IntType(part), 32 * value.type.count // part))


def each_lane(builder, result, value, change):
    """A vector of type `result`, each lane being `change` of that of `value`: what NVVM takes for every type."""
    total = ir.Constant(result, ir.Undefined)
    for i in range(result.count):
        lane = builder.extract_element(value, I32(i))
        total = builder.insert_element(total, change(lane), I32(i))
    return total


def _widen(builder, value, packed):
    target = llvm_lanes(packed.lanes)
    if packed.kind in ("float32", "float64"):
        return builder.bitcast(value, target)
    if packed.kind == "float16":
        halves = _split(builder, value, 16)  # of a single one the upper half is not used
        return each_lane(builder, target, halves, lambda half: builder.fpext(builder.bitcast(half, F16), F32))
    # by words: of a vector of 16-bit integers NVVM makes two loads of 64 bits
    total = ir.Constant(target, ir.Undefined)
    for i in range(packed.count):
        word = builder.extract_element(value, I32(i // 2))
        bits = builder.and_(word, I32(0xFFFF0000)) if i % 2 else builder.shl(word, I32(16))
        total = builder.insert_element(total, builder.bitcast(bits, F32), I32(i))
    return total


def _narrow(builder, value, packed):
    words = ir.VectorType(I32, packed.words)
    if packed.kind in ("float32", "float64"):
        return builder.bitcast(value, words)

    def upper(i):
        """Lane i as bfloat16 in the upper half of a word, to nearest even: capability 7.5 has no instruction for it."""
        lane = builder.extract_element(value, I32(i))
        bits = builder.bitcast(lane, I32)
        odd = builder.and_(builder.lshr(bits, I32(16)), I32(1))
        nearest = builder.add(bits, builder.add(odd, I32(0x7FFF)))
        nan = builder.fcmp_unordered("uno", lane, lane)
        return builder.select(nan, builder.or_(bits, I32(0x400000)), nearest)

    def half(i):
        return builder.zext(builder.bitcast(builder.fptrunc(builder.extract_element(value, I32(i)), F16), I16), I32)

    # by words: a vector of halves NVVM stores by 64 bits or less
    total = ir.Constant(words, ir.Undefined)
    for i in range(packed.words):
        if packed.kind == "float16":
            word = half(2 * i)
            if packed.count > 1:
                word = builder.or_(word, builder.shl(half(2 * i + 1), I32(16)))
        else:
            word = builder.lshr(upper(2 * i), I32(16))
            if packed.count > 1:
                word = builder.or_(word, builder.and_(upper(2 * i + 1), I32(0xFFFF0000)))
        total = builder.insert_element(total, word, I32(i))
    return total


def _cast(builder, value, lanes):
    """Accumulators as those of another precision."""
    target = llvm_lanes(lanes)
    if value.type == target:
        return value
    change = builder.fpext if target.element == F64 else builder.fptrunc
    return each_lane(builder, target, value, lambda lane: change(lane, target.element))


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
