"""How work is shared out: what results depend on follows from shapes alone, what time depends on from the machine."""

import pytest

from numbagn.calls import operands
from numbagn.shapes import schedule
from numbagn.shapes.geometry import CHANNELS_FIRST, CHANNELS_LAST, SINGLE_POSITION

BITS = ("UNITS", "PART", "PARTS", "SUMS", "RUN", "PIECES", "ROW", "PITCH")
SHAPES = [(1, 32, 8, 1), (2, 320, 32, 4096), (1, 16, 1, 1 << 21), (64, 48, 16, 5), (4096, 768, 1, 1), (3, 33, 11, 221)]


@pytest.mark.parametrize("direction", [schedule.forward, schedule.backward])
@pytest.mark.parametrize("layout", [CHANNELS_FIRST, CHANNELS_LAST])
@pytest.mark.parametrize("itemsize", [2, 4, 8])
def test_parts_follow_from_the_shape_alone(monkeypatch, direction, layout, itemsize):
    for shape in SHAPES:
        seen = []
        for threads, cache in ((1, 1 << 20), (2, 32 << 20), (64, 480 << 20)):
            monkeypatch.setattr(schedule, "cache_bytes", lambda cache=cache: cache)
            share = direction(layout, shape, itemsize, True, threads)
            seen.append({name: share.get(name) for name in BITS})
        assert seen[0] == seen[1] == seen[2]


@pytest.mark.parametrize("direction", [schedule.forward, schedule.backward])
@pytest.mark.parametrize("layout", [CHANNELS_FIRST, CHANNELS_LAST])
def test_parts_and_pieces_cover_everything_once(direction, layout):
    for shape in SHAPES:
        N, C, G, S = shape
        share = direction(layout, shape, 4, True, 4)
        whole = S if layout == CHANNELS_LAST else C // G * S
        assert (share["PIECES"] - 1) * share["RUN"] < whole <= share["PIECES"] * share["RUN"]
        summed = S if layout == CHANNELS_LAST or direction is schedule.backward else whole
        assert (share["PARTS"] - 1) * share["PART"] < summed <= share["PARTS"] * share["PART"]
        assert share["UNITS"] == (N if layout == CHANNELS_LAST else N * G)


def test_samples_of_single_positions_are_covered_once_in_stretches_that_follow_from_the_shape():
    for N, C, G in ((4096, 768, 1), (33, 100, 10), (1, 7, 7), (5, 1 << 20, 1), (1 << 16, 4, 2)):
        seen = []
        for threads in (1, 2, 64):
            share = schedule.backward(SINGLE_POSITION, (N, C, G, 1), 4, True, threads)
            seen.append({name: share[name] for name in (*BITS[:6], "PITCH", "WORK") if name in share})
            assert (share["UNITS"] - 1) * share["PART"] < N <= share["UNITS"] * share["PART"]
            pieces, D = share["PIECES"] // G, C // G
            assert (pieces - 1) * share["RUN"] < D <= pieces * share["RUN"]
            # sums are those of stretches, not of samples
            assert share["WORK"] <= 2 * 33 * C + N * (3 * G + 2 * share["PIECES"]) + 2 * C
            assert share["SLOT"] <= 2 * (schedule.WHOLE_SAMPLE + 16)
        assert seen[0] == seen[1] == seen[2]


def test_small_work_is_serial_and_large_work_parallel(monkeypatch):
    monkeypatch.setattr(operands, "limit", lambda: 4)
    assert not operands.shares("forward", CHANNELS_FIRST, (1, 32, 8, 64), 4, True)["PARALLEL"]
    assert operands.shares("forward", CHANNELS_FIRST, (2, 320, 32, 4096), 4, True)["PARALLEL"]
    one_group = operands.shares("forward", CHANNELS_FIRST, (1, 16, 1, 1 << 21), 4, True)
    assert one_group["PARALLEL"]
    assert (one_group["FIRST"], one_group["LAST"]) == (1, 4)  # its parts are shared out


def test_small_work_does_not_start_the_threads(monkeypatch):
    monkeypatch.setattr(operands, "limit", lambda: pytest.fail("asked how many threads there are"))
    for direction in ("forward", "backward"):
        assert not operands.shares(direction, CHANNELS_LAST, (1, 32, 8, 64), 4, True)["PARALLEL"]


@pytest.mark.parametrize(("mebibytes", "past"), [(0, False), (32, False), (480, True), (1, True)])
def test_large_results_go_past_the_caches_by_the_size_of_the_last(monkeypatch, mebibytes, past):
    monkeypatch.setattr(schedule, "cache_bytes", lambda: mebibytes << 20)
    assert schedule.forward(CHANNELS_FIRST, (1, 256, 32, 8192), 4, True, 1)["PAST"] == past  # 8 MiB
    assert not schedule.forward(CHANNELS_FIRST, (1, 32, 8, 64), 4, True, 1)["PAST"]
    assert schedule.forward(CHANNELS_FIRST, (1, 256, 32, 65536), 4, True, 1)["PAST"]


def test_the_size_of_the_last_cache_is_known_or_said_to_be_unknown():
    size = schedule.cache_bytes.__wrapped__()
    assert size == 0 or 1 << 18 <= size <= 1 << 32
