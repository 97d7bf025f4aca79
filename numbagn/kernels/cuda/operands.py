"""What CUDA kernels are given and hand on as one value: arrays walked together, parameters, statistics, sizes, shares.

An array is its address with its strides, in elements: so the arrays of a call stay one value from where it is planned
to where an element is read. What is absent is None.
"""

from collections import namedtuple

# An array of x's shape, with the strides of its samples and rows; within a row elements are neighbours.
Operand = namedtuple("Operand", "address n r")
# The arrays of a call; y is dx in the backward pass, which alone has dy and dresidual.
Arrays = namedtuple("Arrays", "x skip residual dy y dresidual", defaults=(None,) * 6)
# A weight or bias, with the strides of samples and channels; that of channels is 0 where there is none.
Parameter = namedtuple("Parameter", "address n c")
Parameters = namedtuple("Parameters", "weight bias")
# How many positions of each sample are valid, counted in steps of `inner`.
Lengths = namedtuple("Lengths", "address inner")
# Mean and rstd of each group; the rstd of group 0 stands at `rstd_at`.
Statistics = namedtuple("Statistics", "mean rstd rstd_at")
# Partial sums: `number` of each kind.
Partials = namedtuple("Partials", "address number")
# A whole number; to divide by it takes the multiplier and shift, as `calls.gpu.grids.divisor` gives them.
Divisor = namedtuple("Divisor", "value multiplier shift", defaults=(None, None))
# Samples, groups in all, groups a sample, channels a group, channels, positions: those that a kernel needs.
Sizes = namedtuple("Sizes", "N groups G D C S", defaults=(None,) * 6)
# How blocks share a sample: slices of positions or of a group's elements, their size, and tiles of channels.
Slices = namedtuple("Slices", "number size tiles", defaults=(None, None))
# A group's partial sums: how many; the p-th stands at first + p // width * pitch + p % width, where first is
# n * per_sample + g * per_group.
Merged = namedtuple("Merged", "number width pitch per_sample per_group")
# Rows that teams walk over in the backward pass: `parts` teams for each group, which take `walked` samples each.
Walk = namedtuple("Walk", "parts walked")
# Columns of partial sums: result i, of `columns`, is the sum of `rows` of them, `stride` apart, from i // C * pitch +
# i % C on.
Columns = namedtuple("Columns", "rows columns C pitch stride")
# Where the sums of columns go, and whether they do.
Gradients = namedtuple("Gradients", "dweight dbias with_weight with_bias")
# An array of any shape, with the strides of all its axes.
Strided = namedtuple("Strided", "address strides")
