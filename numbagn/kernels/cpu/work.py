"""The integers that a kernel runs by, read by their names: `work.S` is the field of `geometry.FIELDS` called "S".

Names of more than one letter are written small: `work.x_n` is "X_N".
"""

from llvmlite import ir
from numba import types
from numba.extending import intrinsic, lower_getattr_generic, lower_setattr_generic, models, register_model

from ...shapes.geometry import FIELDS
from ..numba_names import AttributeTemplate, infer_getattr

I8, I64 = ir.IntType(8), ir.IntType(64)
# name of an attribute: its place
PLACES = {name if len(name) == 1 else name.lower(): place for place, name in enumerate(FIELDS)}


class Work(types.Type):
    """The integers of one problem, which stand somewhere in memory."""

    def __init__(self):
        super().__init__("Work")


WORK = Work()


@register_model(Work)
class WorkModel(models.PrimitiveModel):
    def __init__(self, dmm, fe_type):
        super().__init__(dmm, fe_type, I8.as_pointer())


def _place(builder, work, place):
    return builder.gep(builder.bitcast(work, I64.as_pointer()), [place])


@intrinsic
def work_at(typingctx, ptr, problem):
    """The integers of a problem, by its number, of those that begin at a pointer to int64."""

    def codegen(context, builder, sig, args):
        first = builder.bitcast(args[0], I64.as_pointer())
        return builder.bitcast(builder.gep(first, [builder.mul(args[1], I64(len(FIELDS)))]), I8.as_pointer())

    return WORK(ptr, types.int64), codegen


@intrinsic
def field(typingctx, work, place):
    """The integer whose place among them is computed."""
    return types.int64(work, types.int64), lambda context, builder, sig, args: builder.load(_place(builder, *args))


@intrinsic
def set_field(typingctx, work, place, value):
    """Write it."""

    def codegen(context, builder, sig, args):
        builder.store(args[2], _place(builder, *args[:2]))
        return context.get_dummy_value()

    return types.none(work, types.int64, types.int64), codegen


@infer_getattr
class _Fields(AttributeTemplate):
    key = Work

    def generic_resolve(self, work, attribute):
        return types.int64 if attribute in PLACES else None


@lower_getattr_generic(Work)
def _get(context, builder, kind, work, attribute):
    return builder.load(_place(builder, work, I64(PLACES[attribute])))


@lower_setattr_generic(Work)
def _set(context, builder, sig, args, attribute):
    builder.store(args[1], _place(builder, args[0], I64(PLACES[attribute])))
