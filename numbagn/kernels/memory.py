"""Arrays as kernels see them: typed pointers, and 64-byte loads and stores in every storage kind.

A load widens to the accumulator's type, a store rounds to the kind; half types are 16-bit integers in memory, since
Numba has no half arrays.
"""

import platform

from llvmlite import ir
from llvmlite.binding import get_host_cpu_features
from numba import config, types
from numba.core import cgutils
from numba.core.extending import intrinsic, models, register_model
from numba.core.imputils import impl_ret_borrowed
from numba.np.arrayobj import populate_array

from .._dtypes import STORED
from .vectors import F32, F32X16, F64, F64X8, I1, I32, I64, head_mask, llvm_vector, splat_int, splat_scalar

X86 = platform.machine().lower() in ("x86_64", "amd64")
I8, I16, F16 = ir.IntType(8), ir.IntType(16), ir.HalfType()


class Pointer(types.Type):
    """The data of a one-dimensional array of one storage kind; `absent` where there is no such operand."""

    def __init__(self, kind, absent=False):
        self.kind = kind
        self.absent = absent
        super().__init__(f"Pointer({kind}{', absent' if absent else ''})")


@register_model(Pointer)
class PointerModel(models.PrimitiveModel):
    def __init__(self, dmm, fe_type):
        super().__init__(dmm, fe_type, I8.as_pointer())


# ------------------------------------------------------------------------------------- storage kinds: widen and narrow


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


def _address(builder, pointer, element, index):
    return builder.gep(builder.bitcast(pointer, element.as_pointer()), [index])


def _align(element):
    return {I16: 2, F32: 4, F64: 8}[element]


# ------------------------------------------------------------------------------------------------------------ pointers


@intrinsic(prefer_literal=True)
def pointer(typingctx, array, kind):
    """The data pointer of `array`, of the dtype numbered `kind` in STORED.

    `array` must be an argument of the running kernel: then it outlives every use of the pointer.
    """
    result = Pointer(STORED[kind.literal_value])

    def codegen(context, builder, sig, args):
        data = cgutils.create_struct_proxy(sig.args[0])(context, builder, args[0]).data
        return builder.bitcast(data, I8.as_pointer())

    return result(array, kind), codegen


@intrinsic
def line(typingctx, array):
    """All of a compiled caller's `array`, of any strides, as the type of array that kernels are compiled for.

    It begins where `array` does, which it keeps alive; its length is the number of elements.
    """
    result = types.Array(array.dtype, 1, "C")

    def codegen(context, builder, sig, args):
        source = context.make_array(array)(context, builder, args[0])
        flat = context.make_array(result)(context, builder)
        populate_array(
            flat, data=source.data, shape=[source.nitems], strides=[source.itemsize], itemsize=source.itemsize,
            meminfo=source.meminfo,
        )  # fmt: skip
        return impl_ret_borrowed(context, builder, result, flat._getvalue())

    return result(array), codegen


@intrinsic
def absent(typingctx, ptr):
    """A pointer that stands for an operand that is not given, beside those of `ptr`'s kind."""
    result = Pointer(ptr.kind, absent=True)
    return result(ptr), lambda context, builder, sig, args: args[0]


@intrinsic
def values(typingctx, array):
    """The data pointer of a float32 or float64 array (parameters, scratch, sums): an argument, as for `pointer`."""
    result = Pointer(str(array.dtype))

    def codegen(context, builder, sig, args):
        data = cgutils.create_struct_proxy(sig.args[0])(context, builder, args[0]).data
        return builder.bitcast(data, I8.as_pointer())

    return result(array), codegen


@intrinsic
def doubles_at(typingctx, ptr):
    """The same place, as a pointer to float64."""
    return Pointer("float64")(ptr), lambda context, builder, sig, args: args[0]


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
            mask = head_mask(builder, vector.lanes, args[2])
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
            mask = head_mask(builder, vector.lanes, args[3])
            fnty = ir.FunctionType(ir.VoidType(), [raw.type, place.type, I32, mask.type])
            fn = cgutils.get_or_insert_function(builder.module, fnty, _masked_name("store", raw.type))
            builder.call(fn, [raw, place, I32(_align(element)), mask])
        return context.get_dummy_value()

    return types.none(ptr, types.int64, value, count), codegen


@intrinsic
def accumulate(typingctx, ptr, index, value):
    """Add the lanes of `value`, each in float64, to as many float64 from ptr[index] on."""
    wide = ir.VectorType(F64, value.lanes)

    def codegen(context, builder, sig, args):
        place = builder.bitcast(_address(builder, args[0], F64, args[1]), wide.as_pointer())
        added = args[2] if value == F64X8 else builder.fpext(args[2], wide)
        builder.store(builder.fadd(builder.load(place, align=8), added), place, align=8)
        return context.get_dummy_value()

    return types.none(ptr, types.int64, value), codegen


@intrinsic
def until_aligned(typingctx, ptr, index):
    """Elements from ptr[index] to the next place where a whole stored vector is aligned to its own size."""
    vector, element, _, _ = KINDS[ptr.kind]
    itemsize = _align(element)

    def codegen(context, builder, sig, args):
        address = builder.ptrtoint(_address(builder, args[0], element, args[1]), I64)
        missing = builder.and_(builder.neg(address), I64(vector.lanes * itemsize - 1))
        return builder.lshr(missing, I64(itemsize.bit_length() - 1))

    return types.int64(ptr, types.int64), codegen


@intrinsic
def stream(typingctx, ptr, index, value):
    """Like `store` of all lanes, but past the caches; ptr[index] must be where `until_aligned` says."""
    vector, element, _, narrow = KINDS[ptr.kind]

    def codegen(context, builder, sig, args):
        raw = narrow(builder, args[2], vector)
        size = _align(element) * vector.lanes
        if element == I16:
            # LLVM streams neither halves nor what it can narrow and store in one instruction: it must see plain floats
            floats = ir.VectorType(F32, size // 4)
            fence = ir.FunctionType(floats, [floats])
            name = f"llvm.arithmetic.fence.v{size // 4}f32"
            fence = cgutils.get_or_insert_function(builder.module, fence, name)
            raw = builder.call(fence, [builder.bitcast(raw, floats)])
        place = builder.bitcast(_address(builder, args[0], element, args[1]), raw.type.as_pointer())
        done = builder.store(raw, place, align=size)
        done.set_metadata("nontemporal", builder.module.add_metadata([I32(1)]))
        return context.get_dummy_value()

    return types.none(ptr, types.int64, value), codegen


@intrinsic
def streamed(typingctx):
    """Order what was streamed before what is stored after; another thread might else see them the other way round."""

    def codegen(context, builder, sig, args):
        if X86:
            fence = ir.FunctionType(ir.VoidType(), [])
            builder.call(cgutils.get_or_insert_function(builder.module, fence, "llvm.x86.sse.sfence"), [])
        return context.get_dummy_value()

    return types.none(), codegen


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


# ------------------------------------------------------------------------------------------ scalars as a pointer's kind


@intrinsic
def splat(typingctx, ptr, scalar):
    """`scalar`, rounded to the accumulator of `ptr`'s kind, in every lane."""
    vector = KINDS[ptr.kind][0]

    def codegen(context, builder, sig, args):
        return splat_scalar(builder, vector, context.cast(builder, args[1], sig.args[1], vector.scalar))

    return vector(ptr, scalar), codegen


@intrinsic
def rounded(typingctx, ptr, value):
    """The float64 `value` rounded to the accumulator of `ptr`'s kind, as float64 again."""
    element = llvm_vector(KINDS[ptr.kind][0]).element

    def codegen(context, builder, sig, args):
        return args[1] if element == F64 else builder.fpext(builder.fptrunc(args[1], F32), F64)

    return types.float64(ptr, types.float64), codegen
