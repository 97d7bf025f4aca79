"""The kernels of the CPU.

`forward` and `backward` are the kernels. Each has a module for a memory layout, `.._first` for channels first and
`.._last` for channels last, `backward_rows` for single positions: what is computed from one block. How both directions
walk a block stands in `walk_first` and `walk_last`; statistics are made in `moments`, vectors of results in `results`.
Below are the values that these hand on together (`operands`, `tables`, `work`), and arithmetic and memory by vectors
(`vectors`, `kinds`, `memory`, `masks`). `phases` and `sharing` share tasks out, `padding` prepares padded batches;
`inside` and `links` are for functions that users compile.
"""
