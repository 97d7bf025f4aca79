"""The same bits whatever the number of threads, the schedule, the batch and the output."""

import numba
import numpy as np
import pytest
from cases import LAYOUTS, SHAPES, close, in_layout, normal, same_bits

import numbagn
from numbagn import reference
from numbagn.calls import passes
from numbagn.shapes import schedule

# whole blocks; one block in many parts; few uneven blocks; single positions
SCHEDULED = (((6, 24, 9, 11), 4), ((1, 4, 190, 210), 1), ((3, 10, 64, 65), 2), ((40, 48, 1), 6))


def run(x, dy, skip, groups, weight, bias):
    """All outputs of a forward and a backward call."""
    y, mean, rstd = numbagn.group_norm_forward(x, groups, weight, bias, skip=skip, activation="silu")
    gradients = numbagn.group_norm_backward(dy, x, mean, rstd, groups, weight, bias, skip=skip, activation="silu")
    return (y, mean, rstd, *gradients)


@pytest.fixture
def schedules(monkeypatch):
    """Run a function under every schedule: serial, or in parallel whole or in phases, with 1, 2 and 4 threads."""

    def results(function):
        before = numba.get_num_threads()
        plain = schedule._shared
        try:
            for parallel in (0, 1):
                for whole in (True, False):
                    for threads in (1, 2, 4) if parallel else (1,):
                        numba.set_num_threads(min(threads, numba.config.NUMBA_NUM_THREADS))
                        forced = {
                            "PARALLEL": parallel,
                            "FIRST": 0 if whole else 1,
                            "LAST": 1 if whole else 4,
                            "SLOTS": 3 * threads if parallel else 1,
                        }
                        monkeypatch.setattr(schedule, "_shared", lambda *_, forced=forced: forced)
                        passes.forget_plans()
                        yield (parallel, whole, threads), function()
        finally:
            numba.set_num_threads(before)
            monkeypatch.setattr(schedule, "_shared", plain)
            passes.forget_plans()

    return results


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_same_bits_for_any_threads_and_schedule(rng, schedules, layout, dtype):
    for shape, groups in SCHEDULED:
        x, dy, skip = (in_layout(normal(rng, shape, dtype, offset=3.0), layout) for _ in range(3))
        weight, bias = normal(rng, shape[1], np.float32), normal(rng, shape[:2], np.float32)
        first = None
        for how, results in schedules(lambda: run(x, dy, skip, groups, weight, bias)):  # noqa: B023
            first = first or results
            assert all(map(same_bits, results, first)), (shape, how)


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_same_bits_for_any_threads_and_schedule_of_single_positions(rng, schedules, monkeypatch, dtype):
    """All samples share the parameters: their gradients are summed over stretches of samples."""
    monkeypatch.setattr(schedule, "SAMPLES_IN_UNIT", 7)
    monkeypatch.setattr(schedule, "ROW_PIECE", 64)
    for shape, groups in (((40, 48), 6), ((100, 200), 1), ((3, 300), 2), ((1, 77), 1)):
        x, dy, skip = (normal(rng, shape, dtype, offset=3.0) for _ in range(3))
        weight, bias = normal(rng, shape[1], np.float32), normal(rng, shape[1], np.float32)
        first = None
        for how, results in schedules(lambda: run(x, dy, skip, groups, weight, bias)):  # noqa: B023
            first = first or results
            assert all(map(same_bits, results, first)), (shape, how)
        for n in (0, shape[0] - 1):
            part = slice(n, n + 1)
            alone = run(x[part], dy[part], skip[part], groups, weight, bias)
            assert all(same_bits(a[part], b) for a, b in zip(first[:4], alone[:4], strict=True)), (shape, n)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_sample_alone_has_the_bits_it_has_in_its_batch(rng, layout):
    for shape, groups in (((6, 24, 9, 11), 4), ((3, 10, 64, 65), 2), ((40, 48, 1), 6), ((2, 8, 190, 210), 1)):
        x, dy, skip = (in_layout(normal(rng, shape, np.float32), layout) for _ in range(3))
        weight, bias = normal(rng, shape[:2], np.float32), normal(rng, shape[:2], np.float32)
        batch = run(x, dy, skip, groups, weight, bias)
        for n in range(shape[0]):
            part = slice(n, n + 1)
            alone = run(x[part], dy[part], skip[part], groups, weight[part], bias[part])
            for whole, single in zip(batch, alone, strict=True):
                assert same_bits(np.ascontiguousarray(whole[part]), np.ascontiguousarray(single)), (shape, n)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_same_bits_with_and_without_out_in_place_and_in_an_unaligned_out(rng, layout):
    for shape in ((2, 6, 9, 11), (5, 24, 1), (1, 4, 130, 140)):
        x, skip, residual = (in_layout(normal(rng, shape, np.float32), layout) for _ in range(3))
        want = numbagn.group_norm(x, 2, skip=skip, residual=residual, activation="gelu")
        for name in ("x", "skip", "residual"):
            arrays = {"x": x.copy("K"), "skip": skip.copy("K"), "residual": residual.copy("K")}
            y = numbagn.group_norm(num_groups=2, activation="gelu", out=arrays[name], **arrays)
            assert y is arrays[name]
            np.testing.assert_array_equal(y, want)
        raw = np.empty(4 * x.size + 4, np.uint8)
        for shift in range(5):  # 16-byte, 4-byte and no alignment
            out = raw[shift : shift + 4 * x.size].view(np.float32).reshape(shape)
            np.testing.assert_array_equal(
                numbagn.group_norm(x, 2, skip=skip, residual=residual, activation="gelu", out=out), want
            )


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [np.float32, np.float16, np.float64])
def test_same_bits_past_the_caches_at_any_alignment(rng, monkeypatch, layout, dtype):
    shape = (2, 6, 31, 33)  # runs long enough to be aligned, with a head and a tail
    x, dy = (in_layout(normal(rng, shape, dtype), layout) for _ in range(2))
    _, mean, rstd = numbagn.group_norm_forward(x, 3)
    want, dx = numbagn.group_norm(x, 3), numbagn.group_norm_backward(dy, x, mean, rstd, 3)[0]
    monkeypatch.setattr(schedule, "past_bytes", lambda *_: 0)
    passes.forget_plans()
    try:
        for parallel in (1 << 62, 0):
            monkeypatch.setattr(schedule, "PARALLEL_BYTES", parallel)
            passes.forget_plans()
            raw = np.full(x.nbytes + 256, 0xA5, np.uint8)
            for start in (*range(64, 129, x.itemsize), 65):
                raw[:] = 0xA5
                out = raw[start : start + x.nbytes].view(x.dtype).reshape(x.shape)
                for target in (want, dx):
                    if target is want:
                        numbagn.group_norm(x, 3, out=out)
                    else:
                        numbagn.group_norm_backward(dy, x, mean, rstd, 3, out=out)
                    np.testing.assert_array_equal(out, target)
                    assert (raw[:start] == 0xA5).all()
                    assert (raw[start + x.nbytes :] == 0xA5).all()
    finally:
        passes.forget_plans()


def test_same_bits_again_and_again(rng):
    x = normal(rng, (4, 32, 40, 41), np.float32)
    first = numbagn.group_norm(x, 8)
    assert all(same_bits(numbagn.group_norm(x, 8), first) for _ in range(20))


def test_numba_settings_are_left_alone(rng):
    before = numba.get_num_threads(), numba.config.NUMBA_NUM_THREADS, numba.config.THREADING_LAYER
    numbagn.group_norm(normal(rng, (4, 32, 40, 41), np.float32), 8)
    assert (numba.get_num_threads(), numba.config.NUMBA_NUM_THREADS, numba.config.THREADING_LAYER) == before


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(("elements", "positions"), [(16, 1), (50, 3), (1 << 20, 1 << 20)])
def test_any_parts_give_right_numbers_and_the_same_bits_serial_or_parallel(
    rng, monkeypatch, layout, elements, positions
):
    """Every path on small and odd shapes: many parts or one, streamed or not, whole blocks or phases."""
    monkeypatch.setattr(schedule, "PART_ELEMENTS", elements)
    for name in ("PART_POSITIONS", "BACKWARD_PART_POSITIONS"):
        monkeypatch.setattr(schedule, name, positions)
    cases = [SHAPES[name] for name in ("below_a_vector", "five_channels_a_group", "vector_multiples", "wide_rows")]
    cases += [((1, 70, 5, 5), 10), ((3, 3, 17, 19), 1), ((40, 6, 5), 2)]
    try:
        for shape, groups in cases:
            x, dy = (in_layout(normal(rng, shape, np.float32), layout) for _ in range(2))
            w, b = normal(rng, shape[1], np.float32), normal(rng, shape[1], np.float32)
            seen = []
            for parallel, past in ((1 << 62, 1 << 40), (0, 1 << 40), (0, 0)):
                monkeypatch.setattr(schedule, "PARALLEL_BYTES", parallel)
                monkeypatch.setattr(schedule, "past_bytes", lambda *_, past=past: past)
                passes.forget_plans()
                y, mean, rstd = numbagn.group_norm_forward(x, groups, w, b, activation="silu")
                seen.append([y, *numbagn.group_norm_backward(dy, x, mean, rstd, groups, w, b, activation="silu")])
            want = reference.group_norm(x, groups, w, b, activation="silu")[0]
            gradients = reference.group_norm_backward(dy, x, groups, w, b, activation="silu")[:3]
            close(seen[0][0], want, 2e-6)
            for got, exact in zip(seen[0][1:], gradients, strict=True):
                assert np.abs(got - exact).max() <= 1e-5 * np.abs(exact).max()
            for others in seen[1:]:
                assert all(map(same_bits, seen[0], others)), shape
    finally:
        passes.forget_plans()
