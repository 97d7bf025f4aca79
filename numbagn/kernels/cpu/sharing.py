"""Tasks of a kernel, run one after another or by Numba's threads.

What Numba makes parallel it compiles three times, and slowly. So one small function is that for all kernels, and gets
the tasks as a pointer to a function: each kernel is compiled once, for one thread and for several.
"""

import functools

from llvmlite import ir
from numba import prange, types
from numba.extending import intrinsic

from ..callees import libraries
from ..compiled import entry
from ..numba_names import address, cgutils, code_of
from .kinds import I8
from .vectors import I64

# What runs one task: (its arguments, its number).
TASK = ir.FunctionType(ir.VoidType(), [I8.as_pointer(), I64])
SIGNATURE = types.int64, types.int64, types.int64


@intrinsic
def run_tasks(typingctx, launcher, count, function, work, arguments):
    """Call function(t, work, *arguments), where both are callees, for t = 0 .. count - 1.

    In this order where `launcher` is 0, else by the threads of `launch`, whose address it is.
    """
    given = types.int64, work, *arguments
    function.get_call_type(typingctx, given, {})
    callee = function.dispatcher.overloads[given]

    def codegen(context, builder, sig, args):
        launcher, count, *_, values = args
        context.add_linking_libs(libraries(callee.library))
        packed = cgutils.alloca_once_value(builder, values)
        task = ir.Function(builder.module, TASK, builder.module.get_unique_name(f"{callee.fndesc.llvm_func_name}_task"))
        task.linkage = "internal"
        task.attributes.add("noinline")  # there is one copy of it
        inside = ir.IRBuilder(task.append_basic_block())
        values = inside.load(inside.bitcast(task.args[0], packed.type))
        values = [inside.extract_value(values, i) for i in range(len(arguments))]
        values = [task.args[1], context.get_dummy_value(), *values]
        context.call_internal_no_propagate(inside, callee.fndesc, callee.signature, values)
        inside.ret_void()
        packed = builder.bitcast(packed, I8.as_pointer())
        with builder.if_else(builder.icmp_signed("==", launcher, I64(0))) as (alone, shared):
            with alone, cgutils.for_range(builder, count) as loop:
                builder.call(task, [packed, loop.index])
            with shared:
                convention = context.call_conv
                launch = builder.inttoptr(launcher, convention.get_function_type(types.none, SIGNATURE).as_pointer())
                where = [builder.ptrtoint(pointer, I64) for pointer in (task, packed)]
                convention.call_function(builder, launch, types.none, SIGNATURE, [*where, count])
        return context.get_dummy_value()

    return types.none(types.int64, types.int64, function, work, arguments), codegen


@intrinsic
def run_task(typingctx, task, arguments, t):
    """Run task t, by the addresses of what runs it and of its arguments."""

    def codegen(context, builder, sig, args):
        task = builder.inttoptr(args[0], TASK.as_pointer())
        builder.call(task, [builder.inttoptr(args[1], I8.as_pointer()), args[2]])
        return context.get_dummy_value()

    return types.none(*SIGNATURE), codegen


@entry(parallel=True)
def launch(sources):
    """Make the function that runs tasks 0 .. count - 1 by Numba's threads."""

    def launch(task, arguments, count):
        if sources == 0:
            return
        for t in prange(count):
            run_task(task, arguments, t)

    return launch


@functools.cache
def launcher():
    """The address of that function, which starts Numba's threads."""
    return address(code_of(launch.dispatcher(SIGNATURE)))
