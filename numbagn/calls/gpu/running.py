"""How a call for arrays on a GPU runs: on the producer's stream, in order with others. The host never waits."""

import contextlib
from typing import Any

import numpy as np

from ...arrays.device import (
    DeviceArray,
    cuda_module,
    described,
    device_of,
    maker_of,
    shape_only,
    uploaded,
)
from ...arrays.families import float_row
from ...arrays.streams import Streams
from .plans import Came, Made, Plan

__all__ = ["Call", "current"]


class Call:
    """One call for x's device. Left as a context, it lets other streams wait for its launches."""

    def __init__(self, x: DeviceArray) -> None:
        self.x = x
        self.maker = maker_of(x)
        self.device = device_of(x.owner)
        self.streams = Streams(cuda_module(), x.owner, self.maker.stream)

    def __enter__(self) -> "Call":
        return self

    def __exit__(self, *fault: object) -> None:
        self.streams.end()

    def came(self, given: Any, names: tuple[str, ...]) -> Came:
        """The arrays of those names on the device; what is wrong with one is told when its turn comes to be checked."""
        came: Came = {}
        for name in names:
            value = getattr(given, name)
            try:
                came[name] = self._on_device(name, value)
            except (TypeError, ValueError) as fault:
                came[name] = fault
        return came

    def _on_device(self, name: str, value: Any) -> DeviceArray | None:
        if value is None and name not in ("mean", "rstd"):
            return None
        if name == "x":
            return self.x
        if name in ("weight", "bias") and type(value) in (np.ndarray, np.memmap):
            float_row(name, value)
            return self.uploaded(name, value.astype(value.dtype.newbyteorder("="), copy=False))
        if name == "lengths" and isinstance(value, (np.ndarray, list, tuple)):
            return None  # copied when they have been checked
        device = described(name, value)
        number = device_of(device.owner)
        if number is not None and self.device is not None and number != self.device:  # of which no kernel could read
            raise ValueError(f"{name} must lie on x's device {self.device}, got device {number}")
        self.streams.meet(name, device.owner, device.stream)
        return device

    def uploaded(self, name: str, values: np.ndarray) -> DeviceArray:
        """A copy of the host's values on the device."""
        return uploaded(name, values, self.maker.stream)

    def run(self, plan: Plan, came: Came) -> dict[str, Any]:
        """Make a plan's buffers and launch its kernels; all buffers by name."""
        buffers: dict[str, Any] = dict(came)
        for name, made in plan.made.items():
            buffers[name] = self._empty(made)
        addresses = {name: buffer.address for name, buffer in buffers.items() if buffer is not None}
        for kernel, blocks, numbers in plan.launches:
            self._launch(kernel, blocks, [addresses[v] if type(v) is str else v for v in numbers])
        return buffers

    def _empty(self, made: Made) -> DeviceArray:
        device = described("a result", self.maker.empty(*made))
        return device._replace(array=shape_only(*made))

    def _launch(self, kernel: Any, blocks: int, numbers: list[Any]) -> None:
        from ...kernels.cuda.target import launch

        self.streams.begin()
        launch(kernel, blocks, self.maker.stream, numbers)

    def as_number(self, one: Any) -> Any:
        """An array of one element as one without axes, which in Numba forgets its stream."""
        number = one.reshape(())
        return number.bind(self.maker.stream) if hasattr(number, "bind") else number


def current(x: DeviceArray) -> Any:
    """The context in which x's device is the current one."""
    number = device_of(x.owner)
    if number is None:
        return contextlib.nullcontext()
    return cuda_module().gpus[number]
