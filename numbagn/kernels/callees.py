"""How Numba compiles what kernels call: to LLVM's language only, not to machine code.

Numba makes each function ready to run by itself: optimized with all that it calls, and turned into machine code. What
is called only from kernels never runs by itself, and each kernel optimizes all its callees again, in its own context;
without the rest kernels compile in two thirds of the time.
"""

from numba import njit
from numba.extending import overload

from .._process import need_compiler
from .numba_names import (
    CompilerBase,
    DefaultPassBuilder,
    JITCodeLibrary,
    NativeLowering,
    data_layout,
    linked_libraries,
    register_pass,
)

__all__ = ["CALLEE", "OPTIONS", "device", "implements", "inlined", "libraries"]

need_compiler()  # every module of kernels imports this one, and none of them can be made without

# No fastmath flag: see vectors; said in so many words, since what is compiled for a user's function inherits that
# function's flags where it has none of its own. NumPy's error model: no test for zero at each division.
OPTIONS = {"nogil": True, "error_model": "numpy", "fastmath": False, "forceinline": False}


class _Library(JITCodeLibrary):
    """The code of a callee alone; whoever calls it links those that it calls, too."""

    def _optimize_functions(self, ll_module):
        ll_module.data_layout = data_layout(self)

    def finalize(self):
        self._finalized = True


def libraries(library):
    """What the caller of a callee must link."""
    return [library, *linked_libraries(library)]


@register_pass(mutates_CFG=True, analysis_only=False)
class _Lowering(NativeLowering):
    _name = "callee_lowering"

    def run_pass(self, state):
        state.flags.no_compile = True
        state.library = _Library(state.targetctx.codegen(), state.func_id.func_qualname)
        super().run_pass(state)
        entry_point = [].append  # what the callee is known by: never called, but Numba asks for a builtin function
        state.targetctx.insert_user_function(entry_point, state.cr.fndesc, libraries(state.library))
        state.cr = state.cr._replace(cfunc=entry_point)
        return True


class _Compiler(CompilerBase):
    def define_pipelines(self):
        passes = DefaultPassBuilder.define_nopython_pipeline(self.state)
        passes.passes = [
            (_Lowering if step is NativeLowering else step, description) for step, description in passes.passes
        ]
        passes.finalize()
        return [passes]


# How callees are compiled: they are never called from Python.
CALLEE = {"pipeline_class": _Compiler, "no_cpython_wrapper": True, "no_cfunc_wrapper": True}
# Those of the kernels allocate nothing.
OF_KERNEL = {"_nrt": False, **CALLEE, **OPTIONS}
device = njit(**OF_KERNEL)
# What is called for each block, and from one place or two: a call of many arguments took as long as the work on a short
# row (62 ns for four of them against 30 for 500 elements).
inlined = njit(**OF_KERNEL | {"forceinline": True})


def implements(function, place, kind):
    """Decorate what `function` does where its argument number `place` is a named tuple of the class `kind`.

    So a loop that several kernels share calls what they do not share: by the types alone. (A callee that is handed on
    from callee to callee is a global that changes, for Numba, which keeps nothing with one in its cache.)
    """

    def register(body):
        def chosen(*types):
            return body if getattr(types[place], "instance_class", None) is kind else None

        overload(function, jit_options=OF_KERNEL, strict=False)(chosen)
        return body

    return register
