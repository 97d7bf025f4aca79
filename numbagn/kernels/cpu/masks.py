"""Masks: bytes that say which positions are valid."""

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from ..callees import device
from .kinds import I8
from .memory import Pointer, data_of
from .vectors import I1, known

# How a mask's bytes belong to values: one to each, or one to all of a row.
MASKS = ("no mask", "mask of values", "mask of rows")


@intrinsic(prefer_literal=True)
def mask_pointer(typingctx, array, kind):
    """The data pointer of an array of bytes, a mask of the kind numbered `kind` in MASKS; `array` as for `pointer`."""
    result = Pointer(MASKS[known(kind)], absent=array == types.none)
    return result(array, kind), data_of(result)


@intrinsic
def is_valid(typingctx, ptr, index):
    """Whether the mask is set at ptr[index]; true where there is no mask."""

    def codegen(context, builder, sig, args):
        if ptr.absent:
            return I1(1)
        return builder.icmp_unsigned("!=", builder.load(builder.gep(args[0], [args[1]])), I8(0))

    return types.boolean(ptr, types.int64), codegen


@intrinsic
def of_rows(typingctx, ptr):
    """Whether there is a mask of rows: a constant."""
    return types.boolean(ptr), lambda context, builder, sig, args: I1(sig.args[0].kind == "mask of rows")


@intrinsic
def within_rows(typingctx, ptr):
    """The mask inside rows that are valid: none where it is one of rows."""
    result = Pointer(ptr.kind, absent=True) if ptr.kind == "mask of rows" else ptr
    return result(ptr), lambda context, builder, sig, args: args[0]


@device
def run_of_rows(mask, step, first, stop):
    """(where the rows end that are valid or not as the first one is, whether they are), for a mask of rows.

    Row r's flag is at r * step.
    """
    valid, end = is_valid(mask, first * step), first + 1
    while end < stop and is_valid(mask, end * step) == valid:
        end += 1
    return end, valid


@intrinsic
def only_valid(typingctx, ptr, index, value):
    """`value` with zeros in the lanes that a mask is not set for; ptr[index] is what belongs to the first lane.

    A mask of rows stands at the row's: the index does not matter. All lanes are read: masks have a margin of 64 bytes
    on both sides.
    """

    def codegen(context, builder, sig, args):
        if ptr.absent:
            return args[2]
        none = ir.Constant(args[2].type, None)
        if ptr.kind == "mask of rows":
            return builder.select(builder.icmp_unsigned("!=", builder.load(args[0]), I8(0)), args[2], none)
        raw = ir.VectorType(I8, value.lanes)
        mask = builder.load(builder.bitcast(builder.gep(args[0], [args[1]]), raw.as_pointer()), align=1)
        return builder.select(builder.icmp_unsigned("!=", mask, ir.Constant(raw, None)), args[2], none)

    return value(ptr, types.int64, value), codegen
