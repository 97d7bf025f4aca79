"""The kernels for GPUs. Imports `numba.cuda`: to be imported only where a device array has arrived."""
