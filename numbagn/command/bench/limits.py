"""The limits: a plain copy of the same bytes, and reading each group before copying it.

`copy` is the best of memcpy and a copy with streaming stores (64-byte stores that bypass the caches, as memcpy itself
uses only far beyond the cache size). `read+copy` reads a group in full and then copies it, group after group: a group
norm must see a whole group before its first output, so this is what a fused one could reach at best.
For a backward pass `copy` is out = dy + x and `read+copy` reads both first.

The arrays are seen as 64-bit integers (up to 7 bytes at the end left out): what moves is the same for every dtype, and
integers need no fastmath to run at full width. Where out has another dtype than x, a copy converts.
"""

import platform
from collections.abc import Callable
from functools import partial

import numpy as np
from llvmlite import ir
from numba import njit, prange, types
from numba.extending import intrinsic

from ...kernels.numba_names import cgutils
from .task import Task

LINE_BYTES = 64  # of a cache line
X86 = platform.machine().lower() in ("x86_64", "amd64")


@intrinsic
def stream_line(typingctx, out, a, b, index):
    """A line of out from `index` on = a[...] (+ b[...] unless b is None) by one non-temporal store, aligned.

    Of integers of one dtype, or a of uint8 and out of float32.
    """
    count = LINE_BYTES * 8 // out.dtype.bitwidth

    def codegen(context, builder, signature, args):
        def vector(position):
            return ir.VectorType(context.get_data_type(signature.args[position].dtype), count)

        def pointer(position):
            array = context.make_array(signature.args[position])(context, builder, args[position])
            return builder.bitcast(builder.gep(array.data, [args[3]]), vector(position).as_pointer())

        value = builder.load(pointer(1), align=1)
        if out.dtype != a.dtype:
            value = builder.uitofp(value, vector(0))
        elif not isinstance(signature.args[2], types.NoneType):
            value = builder.add(value, builder.load(pointer(2), align=1))
        store = builder.store(value, pointer(0), align=LINE_BYTES)
        store.set_metadata("nontemporal", builder.module.add_metadata([ir.Constant(ir.IntType(32), 1)]))
        return context.get_dummy_value()

    return types.void(out, a, b, types.intp), codegen


@intrinsic
def store_fence(typingctx):
    """Streaming stores are weakly ordered on x86: without this another thread might see old data."""

    def codegen(context, builder, signature, args):
        if X86:
            kind = ir.FunctionType(ir.VoidType(), [])
            builder.call(cgutils.get_or_insert_function(builder.module, kind, "llvm.x86.sse.sfence"), [])
        return context.get_dummy_value()

    return types.void(), codegen


@njit(cache=True)
def write_plain(out, a, b, start, stop):
    out_part, a_part = out[start:stop], a[start:stop]
    if b is None:
        for i in range(out_part.size):
            out_part[i] = a_part[i]
    else:
        b_part = b[start:stop]
        for i in range(out_part.size):
            out_part[i] = a_part[i] + b_part[i]


@njit(cache=True)
def write_span(out, a, b, start, stop, phase, streaming):
    """Write out[start:stop]; phase is out's distance in elements from a cache line's beginning."""
    if not streaming:
        write_plain(out, a, b, start, stop)
        return
    line = LINE_BYTES // out.itemsize
    first = min(stop, start + (-(start + phase)) % line)
    last = first + (stop - first) // line * line
    write_plain(out, a, b, start, first)
    for i in range(first, last, line):
        stream_line(out, a, b, i)
    write_plain(out, a, b, last, stop)
    store_fence()


@njit(cache=True)
def read_span(a, b, start, stop):
    seen = np.int64(0)
    a_part = a[start:stop]
    for i in range(a_part.size):
        seen ^= a_part[i]
    if b is not None:
        b_part = b[start:stop]
        for i in range(b_part.size):
            seen ^= b_part[i]
    return seen


@njit(cache=True)
def write_serial(out, a, b, phase, streaming):
    write_span(out, a, b, 0, out.size, phase, streaming)


@njit(cache=True, parallel=True)
def write_parallel(out, a, b, phase, streaming, threads):
    for t in prange(threads):
        write_span(out, a, b, out.size * t // threads, out.size * (t + 1) // threads, phase, streaming)


@njit(cache=True)
def read_write_blocks(out, a, b, blocks, first, last, phase, streaming):
    seen = np.int64(0)
    for block in range(first, last):
        start, stop = out.size * block // blocks, out.size * (block + 1) // blocks
        seen ^= read_span(a, b, start, stop)
        write_span(out, a, b, start, stop, phase, streaming)
    return seen


@njit(cache=True)
def read_write_serial(out, a, b, blocks, phase, streaming, sink):
    sink[0] = read_write_blocks(out, a, b, blocks, 0, blocks, phase, streaming)


@njit(cache=True, parallel=True)
def read_write_parallel(out, a, b, blocks, phase, streaming, sink):
    threads = sink.size
    if blocks >= threads:
        for t in prange(threads):
            first, last = blocks * t // threads, blocks * (t + 1) // threads
            sink[t] = read_write_blocks(out, a, b, blocks, first, last, phase, streaming)
        return
    for block in range(blocks):  # fewer groups than threads: all threads share each group
        start, size = out.size * block // blocks, out.size * (block + 1) // blocks - out.size * block // blocks
        for t in prange(threads):
            sink[t] = read_span(a, b, start + size * t // threads, start + size * (t + 1) // threads)
        for t in prange(threads):
            part, end = start + size * t // threads, start + size * (t + 1) // threads
            write_span(out, a, b, part, end, phase, streaming)


def words(array: np.ndarray) -> np.ndarray:
    flat = array.reshape(-1).view(np.uint8)
    return flat[: flat.size // 8 * 8].view(np.int64)


def limit_calls(task: Task, threads: int) -> dict[str, list[Callable[[], object]]]:
    """For each limit every way to reach it; the best of them, as measured, is the limit."""
    out, a = words(task.out), words(task.x if task.dy is None else task.dy)
    b = None if task.dy is None else words(task.x)
    if task.out.dtype != task.x.dtype:
        out, a = task.out.reshape(-1), task.x.reshape(-1)
    phase = out.ctypes.data % LINE_BYTES // out.itemsize
    # Channels last, the groups of a sample lie interleaved: the sample is the smallest block that can be read in order.
    blocks = task.case.shape[0] * (task.groups if task.variant.layout == "NCHW" else 1)
    sink = np.zeros(threads, np.int64)
    copies: list[Callable[[], object]] = [
        partial(np.copyto, out, a) if b is None else partial(np.add, a, b, out),
        partial(write_serial, out, a, b, phase, True),
    ]
    reads: list[Callable[[], object]] = []
    for streaming in (False, True):
        reads.append(partial(read_write_serial, out, a, b, blocks, phase, streaming, sink))
        if threads > 1:
            copies.append(partial(write_parallel, out, a, b, phase, streaming, threads))
            reads.append(partial(read_write_parallel, out, a, b, blocks, phase, streaming, sink))
    return {"copy": copies, "read+copy": reads}
