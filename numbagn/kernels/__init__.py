"""Where the numbers are made. Imported at the first call, since it imports Numba.

`vectors` and `formulas` are the ground, `moments`, `forward` and `backward` the loops, `compiled` turns them into code,
`geometry` names the integers that steer them.
"""
