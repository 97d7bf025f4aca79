"""The streams of a GPU that a call meets: the one its kernels run on, and others, put in order by events.

The host never waits, and where all arguments are of one stream nothing is done.
"""

import sys
from functools import lru_cache
from typing import Any

__all__ = ["Streams", "stream_of", "torch_stream"]


def stream_of(cuda: Any, handle: int | None) -> Any:
    """What a launch takes for a stream of the interface: None and 1 are the legacy default stream."""
    return external_stream(cuda, handle) if handle not in (None, 0, 1) else 0


@lru_cache(maxsize=64)
def external_stream(cuda: Any, handle: int) -> Any:
    return cuda.per_thread_default_stream() if handle == 2 else cuda.external_stream(handle)


def torch_stream(tensor: Any) -> int:
    """The handle of torch's current stream on a tensor's device, which the tensor's interface does not tell."""
    return int(sys.modules["torch"].cuda.current_stream(tensor.device).cuda_stream)


def _is_tensor(owner: Any) -> bool:
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(owner, torch.Tensor)


class Streams:
    """The stream of a call's kernels, in order with those of its arguments.

    Kernels run after what was begun on another stream before the call, and before what is begun there after it: who
    reads `out` there, or writes to what kernels still read, waits for them, too.
    """

    def __init__(self, cuda: Any, owner: Any, stream: Any) -> None:
        self.cuda, self.own, self.handle = cuda, stream, int(stream)
        self.of_torch = self.handle if _is_tensor(owner) else None  # asked once
        self.met: list[int] = []
        self.waited_for = 0  # so many of them

    def meet(self, name: str, owner: Any, handle: int | None) -> None:
        """Note the stream that an argument is worked on, if it is another: its interface's, None where it names none.

        Then nobody needs to wait for it; but who reads `out` has to wait, as far as is known on the default stream.
        """
        if handle is None and _is_tensor(owner):
            if self.of_torch is None:
                self.of_torch = torch_stream(owner)
            handle = self.of_torch
        if handle is None and name != "out":
            return
        handle = 0 if handle in (None, 1) else handle
        if handle != self.handle and handle not in self.met:
            self.met.append(handle)

    def begin(self) -> None:
        """Have the next kernel wait for what was begun on the other streams."""
        for handle in self.met[self.waited_for :]:
            self._wait(self.own, stream_of(self.cuda, handle))
        self.waited_for = len(self.met)

    def end(self) -> None:
        """Have the other streams wait for the last kernel."""
        for handle in self.met[: self.waited_for]:
            self._wait(stream_of(self.cuda, handle), self.own)

    def _wait(self, later: Any, earlier: Any) -> None:
        event = self.cuda.event(timing=False)
        event.record(earlier)
        event.wait(later)
