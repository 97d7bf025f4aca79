"""Arrays as kernels see them: typed pointers, and 64-byte loads and stores in every storage kind.

A load widens to the accumulator's type, a store rounds to the kind; half types are 16-bit integers in memory, since
Numba has no half arrays.
"""

import operator

from llvmlite import ir
from numba import types
from numba.extending import intrinsic, lower_builtin, models, register_model

from ...arrays.dtypes import STORED
from ..numba_names import AbstractTemplate, cgutils, infer, infer_global, signature
from .kinds import I8, I16, KINDS, X86, to_double_lanes
from .vectors import F32, F64, F64X8, I1, I32, I32X16, I64, head_mask, known, llvm_vector, splat_scalar


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


def _address(builder, pointer, element, index):
    return builder.gep(builder.bitcast(pointer, element.as_pointer()), [index])


def _vector_address(builder, pointer, element, index, lanes):
    return builder.bitcast(_address(builder, pointer, element, index), ir.VectorType(element, lanes).as_pointer())


ELEMENTS = {"float32": F32, "float64": F64, "int64": I64}


def _align(element):
    return {I8: 1, I16: 2, F32: 4, F64: 8}[element]


# ------------------------------------------------------------------------------------------------------------ pointers


def data_of(result):
    """Code for a pointer of the type `result` to the data of an array, the first argument, unless it is None.

    The array must be an argument of the running kernel: then it outlives every use of the pointer.
    """

    def codegen(context, builder, sig, args):
        if result.absent:
            return ir.Constant(I8.as_pointer(), None)
        data = cgutils.create_struct_proxy(sig.args[0])(context, builder, args[0]).data
        return builder.bitcast(data, I8.as_pointer())

    return codegen


@intrinsic(prefer_literal=True)
def pointer(typingctx, array, kind):
    """The data pointer of `array`, of the dtype numbered `kind` in STORED; an absent one where `array` is None."""
    result = Pointer(STORED[known(kind)], absent=array == types.none)
    return result(array, kind), data_of(result)


@intrinsic
def values(typingctx, array):
    """The data pointer of an array of float32, float64 or int64 (parameters, sums, ...), an absent one of None.

    ptr[index] is one of its values, of float32 as float64.
    """
    result = Pointer("float64", absent=True) if array == types.none else Pointer(str(array.dtype))
    return result(array), data_of(result)


def _exact(ptr, skip):
    kind = f"exact {ptr.kind}"
    return Pointer(kind, ptr.absent) if skip.absent and kind in KINDS else ptr


@intrinsic
def exact(typingctx, ptr, skip):
    """`ptr` as it is read for sums: single bytes as integers, whose sums are exact, unless `skip` is added to them."""
    return _exact(ptr, skip)(ptr, skip), lambda context, builder, sig, args: args[0]


@intrinsic
def is_exact(typingctx, ptr, skip):
    """Whether `exact` reads integers: a constant."""
    return types.boolean(ptr, skip), lambda context, builder, sig, args: I1(_exact(*sig.args).kind.startswith("exact"))


@intrinsic
def doubles_at(typingctx, ptr):
    """The same place, as a pointer to float64."""
    return Pointer("float64")(ptr), lambda context, builder, sig, args: args[0]


@intrinsic
def offset(typingctx, ptr, index):
    """The pointer to ptr[index]; an absent one stays, so that nothing is computed for it."""
    element = KINDS[ptr.kind][1] if ptr.kind in KINDS else ELEMENTS.get(ptr.kind, I8)  # a mask

    def codegen(context, builder, sig, args):
        if ptr.absent:
            return args[0]
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
        place = _vector_address(builder, args[0], element, args[1], vector.lanes)
        if count == types.none:
            value = builder.load(place, align=_align(element))
        else:
            value = _masked_load(builder, place, element, head_mask(builder, vector.lanes, args[2]))
        return widen(builder, value, vector)

    return vector(ptr, types.int64, count), codegen


def _masked_load(builder, place, element, mask):
    raw = ir.VectorType(element, mask.type.count)
    fnty = ir.FunctionType(raw, [place.type, I32, mask.type, raw])
    fn = cgutils.get_or_insert_function(builder.module, fnty, _masked_name("load", raw))
    return builder.call(fn, [place, I32(_align(element)), mask, ir.Constant(raw, None)])


@intrinsic
def load_from(typingctx, ptr, index, first, count):
    """Like `load` of `count` lanes, but zeros before lane `first`, and nothing is read there either."""
    vector, element, widen, _ = KINDS[ptr.kind]

    def codegen(context, builder, sig, args):
        if ptr.absent:
            return ir.Constant(llvm_vector(vector), None)
        place = _vector_address(builder, args[0], element, args[1], vector.lanes)
        mask = head_mask(builder, vector.lanes, args[3])
        mask = builder.and_(mask, builder.not_(head_mask(builder, vector.lanes, args[2])))
        return widen(builder, _masked_load(builder, place, element, mask), vector)

    return vector(ptr, types.int64, types.int64, types.int64), codegen


@intrinsic
def store(typingctx, ptr, index, value, count):
    """Round `value` to the pointer's kind and write it at ptr[index]: all lanes (count None) or the first `count`.

    A float32 vector may be stored to a float64 pointer. Nothing is written to an absent operand.
    """
    vector, element, _, narrow = KINDS[ptr.kind]
    if value.scalar.bitwidth < vector.scalar.bitwidth:
        vector, narrow = value, to_double_lanes

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
        place = _vector_address(builder, args[0], F64, args[1], value.lanes)
        widen = builder.sitofp if value == I32X16 else builder.fpext
        added = args[2] if value == F64X8 else widen(args[2], wide)
        builder.store(builder.fadd(builder.load(place, align=8), added), place, align=8)
        return context.get_dummy_value()

    return types.none(ptr, types.int64, value), codegen


@intrinsic
def prefetch(typingctx, ptr, index):
    """Ask for the line of ptr[index] to come to the second cache; it need not be memory of ours, and no fault comes."""
    element = KINDS[ptr.kind][1]

    def codegen(context, builder, sig, args):
        if ptr.absent:
            return context.get_dummy_value()
        place = builder.bitcast(_address(builder, args[0], element, args[1]), I8.as_pointer())
        fnty = ir.FunctionType(ir.VoidType(), [place.type, I32, I32, I32])
        fn = cgutils.get_or_insert_function(builder.module, fnty, "llvm.prefetch.p0")
        builder.call(fn, [place, I32(0), I32(2), I32(1)])
        return context.get_dummy_value()

    return types.none(ptr, types.int64), codegen


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
def store_nontemporal(typingctx, ptr, index, value):
    """Like `store` of all lanes, but past the caches; ptr[index] must be where `until_aligned` says."""
    vector, element, _, narrow = KINDS[ptr.kind]

    def codegen(context, builder, sig, args):
        if ptr.absent:
            return context.get_dummy_value()
        raw = narrow(builder, args[2], vector)
        size = _align(element) * vector.lanes
        if element == I16:
            # LLVM stores past the caches neither halves nor what it can narrow and store in one instruction: it must be
            # shown plain floats
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
def store_fence(typingctx):
    """Order what was stored past the caches before what is stored after.

    Another thread might else see them the other way round.
    """

    def codegen(context, builder, sig, args):
        if X86:
            fence = ir.FunctionType(ir.VoidType(), [])
            builder.call(cgutils.get_or_insert_function(builder.module, fence, "llvm.x86.sse.sfence"), [])
        return context.get_dummy_value()

    return types.none(), codegen


def _masked_name(verb, raw):
    names = {I8: "i8", I16: "i16", F32: "f32", F64: "f64"}
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


# Items of a pointer to float32, float64 or int64: few instructions and quickly typed, where those of an array come with
# its shape, strides and negative indices.


def _item(ptr):
    return types.int64 if ptr.kind == "int64" else types.float64


@infer_global(operator.getitem)
class _GetItem(AbstractTemplate):
    def generic(self, args, kws):
        return signature(_item(args[0]), args[0], types.int64) if isinstance(args[0], Pointer) else None


@infer
class _GetConstantItem(AbstractTemplate):
    key = "static_getitem"

    def generic(self, args, kws):
        return signature(_item(args[0]), *args) if isinstance(args[0], Pointer) else None


@infer_global(operator.setitem)
class _SetItem(AbstractTemplate):
    def generic(self, args, kws):
        return signature(types.none, args[0], types.int64, _item(args[0])) if isinstance(args[0], Pointer) else None


@lower_builtin(operator.getitem, Pointer, types.int64)
@lower_builtin("static_getitem", Pointer, types.Any)
def _get(context, builder, sig, args):
    element, index = ELEMENTS[sig.args[0].kind], args[1]
    value = builder.load(_address(builder, args[0], element, I64(index) if isinstance(index, int) else index))
    return builder.fpext(value, F64) if element == F32 else value


@lower_builtin(operator.setitem, Pointer, types.int64, types.int64)
@lower_builtin(operator.setitem, Pointer, types.int64, types.float64)
def _set(context, builder, sig, args):
    element = ELEMENTS[sig.args[0].kind]
    value = builder.fptrunc(args[2], F32) if element == F32 else args[2]
    builder.store(value, _address(builder, args[0], element, args[1]))


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
