"""One digest of all results, forward and backward, in fresh processes of any number of threads and any layer."""

import os

import pytest
from test_threads import LAYERS, TBB, run

PROGRAM = """
import hashlib
rng = np.random.default_rng(7)
shapes = (((6, 24, 39, 41), 4), ((1, 4, 290, 310), 1), ((2, 8, 9, 11), 2), ((3, 2, 40000), 2))
cases = []
for shape, groups in shapes:
    for axis in (1, -1):
        a = [rng.standard_normal(shape).astype(np.float32) + 3 for _ in range(2)]
        cases.append((*(np.ascontiguousarray(np.moveaxis(v, 1, axis)) for v in a), groups, axis))

def digest():
    bits = hashlib.sha256()
    for x, dy, groups, axis in cases:
        weight = np.linspace(-1, 2, x.shape[axis], dtype=np.float32)
        y, mean, rstd = numbagn.group_norm_forward(x, groups, weight, channel_axis=axis)
        gradients = numbagn.group_norm_backward(dy, x, mean, rstd, groups, weight, channel_axis=axis)
        for array in (y, mean, rstd, *gradients):
            bits.update(array.tobytes())
    return bits.hexdigest()
"""


@pytest.fixture(scope="module")
def expected():
    return run(PROGRAM + "print(digest())", NUMBA_NUM_THREADS="1")


@pytest.mark.parametrize("threads", [1, 2, 3, 4])
@pytest.mark.parametrize("layer", LAYERS)
def test_the_same_in_a_fresh_process(expected, layer, threads):
    assert run(PROGRAM + "print(digest())", layer, NUMBA_NUM_THREADS=str(threads)) == expected


@pytest.mark.parametrize("layer", LAYERS)
def test_the_same_again_and_again_while_the_mask_of_threads_changes(expected, layer):
    """Under TBB a sum shared out by the layer has other bits from run to run."""
    code = (
        PROGRAM
        + """
seen = set()
for repeat in range(24):
    numba.set_num_threads(1 + repeat % 4)
    seen.add(digest())
print(*seen, numba.threading_layer())
"""
    )
    assert run(code, layer) == [*expected, layer]


@pytest.mark.skipif(not TBB.exists(), reason="tbb is not installed by pip")
def test_the_same_from_many_threads_at_once_under_tbb(expected):
    code = (
        PROGRAM
        + """
from concurrent.futures import ThreadPoolExecutor
with ThreadPoolExecutor(8) as pool:
    seen = set(pool.map(lambda _: digest(), range(24)))
print(*seen)
"""
    )
    assert run(code, "tbb", NUMBA_NUM_THREADS=str(os.cpu_count() or 2)) == expected
