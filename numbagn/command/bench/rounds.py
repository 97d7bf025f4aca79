"""Timing in rounds: every contestant has one turn a round, in an order shuffled anew each round.

What one must know of a machine to trust a figure: speeds drift within seconds, worker pools keep spinning after their
call and slow down whoever comes next, threads that were asleep may all wake up on one core and stay there for some
milliseconds, and another program may hold a core. So the contestants share every round, each turn begins with a rest
and, with several threads, with calls that are not timed, and turns in which a thread waited for a core are set aside.
"""

import gc
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import repeat
from pathlib import Path

import numpy as np

# A turn shorter than this would be lost in the clock and in the wake-up of a core after the rest.
TURN_SECONDS = 2e-3
# ONNX Runtime's and OpenMP's pools spin for several milliseconds into the next turn; on one thread nobody spins.
REST_SECONDS = {1: 1e-3}
REST_SECONDS_PARALLEL = 12e-3
# With several threads: until the system has spread them over the cores (8 ms here).
WARM_SECONDS_PARALLEL = 15e-3
# Longer calls work on arrays larger than the caches: a call before the turn would warm nothing and cost much.
WARM_BELOW_SECONDS = 2e-2
WAITED_SHARE = 0.1
MOST_ROUNDS = 25
# A contestant that takes over this share of the budget in one turn sits out every second round.
SLOW_SHARE = 0.1


@dataclass
class Turns:
    """The measured turns of one contestant, in seconds a call."""

    call: Callable[[], object]
    calls: int = 1
    estimate: float = 0.0
    seconds: list[float] = field(default_factory=list)
    waited: list[bool] = field(default_factory=list)
    cores: list[float] = field(default_factory=list)

    def kept(self) -> np.ndarray:
        """The undisturbed turns, or all where fewer than three are undisturbed."""
        calm = [s for s, waited in zip(self.seconds, self.waited, strict=True) if not waited]
        return np.array(calm if len(calm) >= 3 else self.seconds)

    @property
    def median(self) -> float:
        return float(np.median(self.kept()))

    @property
    def undisturbed(self) -> float:
        return 1 - sum(self.waited) / len(self.waited)


def calibrated(call: Callable[[], object]) -> Turns:
    """Find how many calls make a turn; the call has run before, so that nothing is compiled here."""
    turns = Turns(call)
    while True:
        seconds = _timed(turns)
        turns.estimate = seconds / turns.calls if not turns.estimate else min(turns.estimate, seconds / turns.calls)
        if seconds >= TURN_SECONDS / 2:
            break
        turns.calls = max(2 * turns.calls, int(turns.calls * TURN_SECONDS / max(seconds, 1e-7)))
    turns.calls = max(1, round(TURN_SECONDS / turns.estimate))
    return turns


def measure(contestants: list[Turns], threads: int, budget_seconds: float, fewest_rounds: int, seed: int) -> None:
    """Add turns to every contestant, for as many rounds as the budget allows."""
    rng = np.random.default_rng(seed)
    rest = REST_SECONDS.get(threads, REST_SECONDS_PARALLEL)
    warm = 0.0 if threads == 1 else WARM_SECONDS_PARALLEL
    slow = [c.calls * c.estimate > SLOW_SHARE * budget_seconds for c in contestants]
    round_seconds = sum(rest + warm + 1.5 * c.calls * c.estimate for c in contestants)
    rounds = min(MOST_ROUNDS, max(fewest_rounds, int(budget_seconds / round_seconds)))
    gc.collect()
    gc.disable()
    try:
        for number in range(rounds):
            for index in rng.permutation(len(contestants)):
                if slow[index] and number % 2:
                    continue
                time.sleep(rest)
                _turn(contestants[index], warm)
    finally:
        gc.enable()


def _turn(turns: Turns, warm_seconds: float) -> None:
    if turns.estimate < WARM_BELOW_SECONDS:
        until = time.perf_counter() + warm_seconds
        turns.call()
        while time.perf_counter() < until:
            turns.call()
    waited, cpu, begin = _waited_seconds(), time.process_time(), time.perf_counter()
    seconds = _timed(turns)
    # process_time covers all threads: about 2.0 where two of them worked, spinning included.
    turns.cores.append((time.process_time() - cpu) / (time.perf_counter() - begin))
    turns.waited.append(_waited_seconds() - waited > WAITED_SHARE * seconds)
    turns.seconds.append(seconds / turns.calls)


def _timed(turns: Turns) -> float:
    call, start = turns.call, time.perf_counter()
    for _ in repeat(None, turns.calls):
        call()
    return time.perf_counter() - start


def _waited_seconds() -> float:
    """How long this process's threads have been ready to run but without a core, in all; 0 where Linux does not say."""
    total = 0
    for task in Path("/proc/self/task").glob("*/schedstat"):
        try:
            total += int(task.read_text().split()[1])
        except (OSError, IndexError):  # the thread has just ended, or the kernel keeps no such count
            continue
    return total / 1e9
