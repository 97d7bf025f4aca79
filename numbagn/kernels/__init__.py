"""Where the numbers are made. All but `geometry` import Numba and are imported at the first call.

`vectors`, `memory` and `formulas` are the ground, `moments`, `forward` and `backward` the loops, `compiled` turns them
into code, `geometry` names the integers that steer them, `operands` what they hand on together.
"""
