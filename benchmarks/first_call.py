"""A fresh process that times its imports and its first calls: `python -P benchmarks/first_call.py 1,32,1,1 8`.

It stands alone, because importing anything of the benchmarks would import NumPy and Numba before the clock runs.
"""

import json
import sys
from itertools import pairwise
from time import perf_counter


def main(shape: tuple[int, ...], groups: int) -> dict[str, float]:
    """Seconds of each step, in the order in which they happen."""
    times = [perf_counter()]
    import numpy as np

    times.append(perf_counter())
    import numba  # noqa: F401 - apart, as it is the larger part of the import of numbagn

    times.append(perf_counter())
    import numbagn

    times.append(perf_counter())
    x = np.ones(shape, np.float32)
    weight, bias = np.ones(shape[1], np.float32), np.zeros(shape[1], np.float32)
    times.append(perf_counter())
    numbagn.group_norm(x, groups, weight, bias)
    times.append(perf_counter())
    numbagn.group_norm(x, groups, weight, bias)
    times.append(perf_counter())
    names = ("import_numpy_s", "import_numba_s", "import_numbagn_s", "data_s", "first_call_s", "second_call_s")
    return {name: end - begin for name, (begin, end) in zip(names, pairwise(times), strict=True)}


if __name__ == "__main__":
    print(json.dumps(main(tuple(map(int, sys.argv[1].split(","))), int(sys.argv[2]))))
