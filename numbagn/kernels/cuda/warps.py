"""What the threads of a warp do together, on a GPU."""

from numba import cuda

ALL = 0xFFFFFFFF


@cuda.jit(device=True, forceinline=True)
def warp_sums(a, b, team):
    """Sums of two numbers over neighbours, 1 to 32 of them: the same bits in each, since a + b is b + a."""
    step = team // 2
    while step > 0:
        a += cuda.shfl_xor_sync(ALL, a, step)
        b += cuda.shfl_xor_sync(ALL, b, step)
        step //= 2
    return a, b


@cuda.jit(device=True, forceinline=True)
def warp_any(flag):
    """Whether the flag is set in any thread of the warp."""
    return cuda.any_sync(ALL, flag)
