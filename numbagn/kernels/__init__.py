"""Where the numbers are made: how kernels are compiled, kept on disk and called, and what all of them compute with.

`callees` and `compiled` turn functions into code, `cache` keeps it; `numba_names` and `numba_caching` are all that is
used of Numba's own. `formulas` and `polynomials` are the arithmetic of one lane. The kernels of the CPU stand in `cpu`,
those of GPUs in `cuda`. They import Numba, so they are imported at the first call.
"""
