"""What kernels take of Numba beyond `numba` and `numba.extending`: it promises nothing about these names.

All in one place, and tried when it is imported, so that a release of Numba that lacks one is named in one line, and
not found out by an AttributeError somewhere in a compilation. What the cache takes is in `numba_caching`: kernels can
do without a cache.
"""

import numba

# ruff: noqa: F401 -- what is imported here is for others

# The oldest and the newest release that the tests are run with.
OLDEST, NEWEST, NEXT = "0.61", "0.68", "0.69"


class Unfit(ImportError):
    """A release of Numba that lacks something."""


def unfit(what):
    """The error for it; `what` is a sentence about what is missing, or Python's own error."""
    what = str(what).partition(" (")[0]  # without the path of Numba's module
    return Unfit(
        f"numbagn cannot use Numba {numba.__version__}: {what}; it is tested with Numba {OLDEST} to {NEWEST}: "
        f"pip install 'numba>={OLDEST},<{NEXT}'"
    )


def check(needed):
    """Refuse where one of the classes or modules that are the keys lacks one of its names, as the values list them."""
    for owner, names in needed.items():
        for name in names.split():
            part(owner, name)


def part(owner, name):
    """An attribute that may be gone."""
    try:
        return getattr(owner, name)
    except AttributeError:
        raise unfit(f"{getattr(owner, '__name__', type(owner).__name__)} has no {name!r}") from None


try:
    from numba.core import cgutils
    from numba.core.base import BaseContext
    from numba.core.codegen import JITCodeLibrary
    from numba.core.compiler import CompilerBase, DefaultPassBuilder, Flags
    from numba.core.compiler_lock import global_compiler_lock
    from numba.core.compiler_machinery import register_pass
    from numba.core.imputils import impl_ret_borrowed, impl_ret_new_ref
    from numba.core.options import DefaultOptions
    from numba.core.registry import cpu_target
    from numba.core.typed_passes import NativeLowering
    from numba.core.typing.templates import (
        AbstractTemplate,
        AttributeTemplate,
        infer,
        infer_getattr,
        infer_global,
        signature,
    )
    from numba.cpython.unsafe.tuple import tuple_setitem
    from numba.np.arrayobj import populate_array
    from numba.np.ufunc import parallel
except ImportError as fault:
    raise unfit(fault) from fault

# What is called or overridden of them.
check(
    {
        cgutils: "alloca_once_value create_struct_proxy for_range get_or_insert_function if_unlikely unpack_tuple",
        BaseContext: """
            add_linking_libs call_internal_no_propagate cast declare_env_global environment fndesc get_dummy_value
            get_env_name insert_user_function make_array
        """,
        DefaultOptions: "_nrt",
        DefaultPassBuilder: "define_nopython_pipeline",
        Flags: "no_compile",
        JITCodeLibrary: "_optimize_functions finalize get_pointer_to_function",
        NativeLowering: "run_pass",
        parallel: "_backend_init_process_lock _backend_init_thread_lock",
    }
)


def code_of(dispatcher):
    """What a dispatcher of one signature has compiled."""
    (code,) = part(dispatcher, "overloads").values()
    return code


def entry_point(code):
    """The compiled function as Python calls it."""
    return part(code, "entry_point")


def address(code):
    """Where its machine code begins."""
    return code.library.get_pointer_to_function(part(code.fndesc, "llvm_func_name"))


def linked_libraries(library):
    """The libraries that one calls."""
    return part(library, "_linking_libraries")


def data_layout(library):
    """How the machine lays out data, as LLVM writes it."""
    return part(part(library, "_codegen"), "_data_layout")


def set_cache(dispatcher, cache):
    """Let a dispatcher keep what it compiles in that cache."""
    part(dispatcher, "_cache")
    dispatcher._cache = cache
