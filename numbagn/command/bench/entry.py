"""One call to be timed."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np


class Skip(Exception):
    """Why a peer cannot take part in a task, in one line."""


@dataclass(frozen=True)
class Entry:
    peer: str
    version: str
    output: str  # "out": writes to a buffer that exists; "fresh": allocates its result
    call: Callable[[], Any]
    arrays: Callable[[Any], tuple[np.ndarray, ...]]  # from what the call returns to arrays in x's memory order
