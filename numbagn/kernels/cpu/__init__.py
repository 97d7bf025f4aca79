"""The kernels of the CPU, and what they are made of."""
