"""Kernels as users' compiled functions call them: by symbol, so that they are no part of those functions' code.

There a kernel would be optimised and stored again with each function that calls it, directly or not.
"""

import hashlib

from llvmlite.binding import add_symbol
from numba import types
from numba.extending import intrinsic

from ..compiled import PACKAGE, sources_digest
from ..numba_names import address, cgutils, code_of, impl_ret_borrowed, impl_ret_new_ref, populate_array

# What is compiled into a user's function, or into what it calls, beside the kernels.
OTHER_SOURCES = ("_njit.py",)


class Link:
    """A kernel and the symbol it is called by.

    Numba keeps it with the code of a function in its cache, and in the next process it comes out before that code: it
    brings the kernel. The function's key in the cache knows nothing of us, so a link made by other sources is an
    OSError, which Numba takes for a missing file: the function is compiled anew.
    """

    def __init__(self, kernel, signature, key, digest=None):
        self.digest = sources_digest(*OTHER_SOURCES)
        if digest not in (None, self.digest):
            raise OSError("a function in Numba's cache was compiled with other sources of numbagn: delete it there")
        self.kernel, self.signature, self.key = kernel, signature, key
        here = callable(key)  # what depends on the machine, which may not be the one that the caller was compiled on
        self.code = code_of(kernel.dispatcher(signature, *(key() if here else key)))
        # not Numba's name, which has a number that may be another where the kernel is compiled again
        what = f"{kernel.__name__}{key.__name__ if here else key}{signature}".encode()
        self.symbol = f"{PACKAGE}_{self.digest:x}_{hashlib.sha256(what).hexdigest()}"
        add_symbol(self.symbol, address(self.code))

    def __reduce__(self):
        return Link, (self.kernel, self.signature, self.key, self.digest)


def linked(kernel, signature, *key):
    """An intrinsic that calls the kernel of that key, or of what a function gives, with a tuple of arguments."""
    link = Link(kernel, signature, key[0] if callable(key[0]) else key)
    result = link.code.signature.return_type

    @intrinsic
    def call(typingctx, arguments):
        def codegen(context, builder, sig, args):
            # where Numba finds the variable that holds a function's constants, it keeps these with the code
            context.declare_env_global(builder.module, context.get_env_name(context.fndesc))
            context.environment.consts.append(link)
            given = zip(cgutils.unpack_tuple(builder, args[0]), arguments, signature, strict=True)
            values = [
                context.get_dummy_value() if to == types.none else context.cast(builder, value, kind, to)
                for value, kind, to in given
            ]
            convention = context.call_conv
            function = cgutils.get_or_insert_function(
                builder.module, convention.get_function_type(result, signature), link.symbol
            )
            status, value = convention.call_function(builder, function, result, signature, values)
            with cgutils.if_unlikely(builder, status.is_error):
                convention.return_status_propagate(builder, status)
            return impl_ret_new_ref(context, builder, result, value)

        return result(arguments), codegen

    return call


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
            flat,
            data=source.data,
            shape=[source.nitems],
            strides=[source.itemsize],
            itemsize=source.itemsize,
            meminfo=source.meminfo,
        )
        return impl_ret_borrowed(context, builder, result, flat._getvalue())

    return result(array), codegen
