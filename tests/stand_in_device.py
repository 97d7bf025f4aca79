"""A GPU, its `numba.cuda` and a torch for it, of which tests can ask what was done: over the host's memory.

Kernels run in Numba's simulator (``NUMBA_ENABLE_CUDASIM=1``), at addresses as those that libraries give.
"""

import contextlib
import itertools
import sys
import types

import ml_dtypes
import numpy as np

from numbagn.arrays import device, families
from numbagn.calls.gpu import passes, plans, running
from numbagn.kernels.cuda import target

# Names of dtypes: their storage.
STORAGE = {"float16": np.uint16, "bfloat16": np.uint16, "float32": np.uint32, "float64": np.uint64, "int64": np.int64}


class Foreign:
    """An array of some library in the memory of the device."""

    version = 3

    def __init__(self, array, stream=None, read_only=False):
        self.host, self.stream, self.read_only = array, stream, read_only

    shape = property(lambda self: self.host.shape)

    def like(self, host):
        return type(self)(host, self.stream, self.read_only)

    def __getitem__(self, index):
        return self.like(self.host[index])

    @property
    def __cuda_array_interface__(self):
        typestr = "<V2" if self.host.dtype.name == "bfloat16" else self.host.dtype.str
        told = {
            "shape": self.host.shape, "strides": self.host.strides, "typestr": typestr, "version": self.version,
            "data": (self.host.__array_interface__["data"][0], self.read_only),
        }  # fmt: skip
        return told | ({"stream": self.stream} if self.version == 3 else {})


class NumbaArray(Foreign):
    """As Numba's: what is made of it by reshaping forgets the stream."""

    def reshape(self, shape):
        return NumbaArray(self.host.reshape(shape))

    def bind(self, stream):
        return NumbaArray(self.host, int(stream) or None)


class Stream(int):
    """A stream by its handle."""


class Device:
    """What was done: `log` has ("record", event, stream), ("wait", event, stream) and ("launch", stream)."""

    def __init__(self, monkeypatch, computes=True):
        self.computes = computes  # else launches are told, and nothing more: the simulator is slow
        self.log, self.copies, self.roots, self.torch_stream = [], [], [], 7
        self.versions = []  # tensors that autograd was told about
        self.events = itertools.count()
        self.launch = target.launch
        for module in (device, passes, running):
            monkeypatch.setattr(module, "cuda_module", lambda: self.cuda)
        monkeypatch.setattr(target, "launch", self.run)
        monkeypatch.setattr(plans, "_plans", plans.Kept())
        monkeypatch.setattr(families, "_known", {})
        device._kept.cache_clear()
        self.torch = torch_of(self)
        monkeypatch.setitem(sys.modules, "torch", self.torch)
        self.cuda = types.ModuleType("cuda")
        self.cuda.__dict__.update(
            gpus={0: contextlib.nullcontext()}, device_array=self.device_array, to_device=self.to_device,
            event=self.event, external_stream=Stream, per_thread_default_stream=lambda: Stream(2),
        )  # fmt: skip

    def put(self, array, kind=Foreign, **options):
        """An array of that kind with the values and strides of one of NumPy's."""
        root = np.empty(array.size, array.dtype)
        order = np.argsort([-abs(s) for s in array.strides], kind="stable")
        host = root.reshape([array.shape[axis] for axis in order]).transpose(np.argsort(order))
        host[...] = array
        self.roots.append(root)
        return kind(host, **options)

    def device_array(self, shape, dtype, strides, stream=0):
        root = np.zeros(int(np.prod(shape)), dtype)
        self.roots.append(root)
        host = np.ndarray(shape, dtype, root, 0, strides)
        return NumbaArray(host, int(stream) or None)

    def to_device(self, array, stream=0):
        self.copies.append(array)
        return self.put(array, NumbaArray, stream=int(stream) or None)

    def event(self, timing):
        assert not timing
        number = next(self.events)
        return types.SimpleNamespace(
            record=lambda stream: self.log.append(("record", number, int(stream))),
            wait=lambda stream: self.log.append(("wait", number, int(stream))),
        )

    def run(self, kernel, blocks, stream, arguments):
        self.log.append(("launch", int(stream)))
        if self.computes:
            arguments = [self.memory(value) if type(value) is int else value for value in arguments]
            self.launch(kernel, blocks, 0, arguments)

    def memory(self, value):
        """The memory from that address on, or the value if it is none."""
        for root in self.roots:
            start = root.__array_interface__["data"][0]
            if start <= value < start + root.nbytes:
                return root.view(STORAGE[root.dtype.name])[(value - start) // root.itemsize :]
        return value

    def order(self):
        """The log in short: (a stream that waits, the one it waits for), and the streams of launches."""
        recorded, order = {}, []
        for what, *rest in self.log:
            if what == "record":
                recorded[rest[0]] = rest[1]
            elif what == "wait":
                order.append((rest[1], recorded[rest[0]]))
            elif order[-1:] != rest:  # kernels one after the other
                order.append(rest[0])
        self.log.clear()
        return order


def torch_of(device):
    """A torch whose tensors lie on that device."""

    class Tensor(Foreign):
        version, is_cuda = 2, True
        requires_grad = inference = negative = False
        device = types.SimpleNamespace(index=0)

        def like(self, host):
            return Tensor(host)

        def reshape(self, shape):
            return Tensor(self.host.reshape(shape))

        def detach(self):
            return Tensor(self.host)

        def is_inference(self):
            return self.inference

        def is_neg(self):
            return self.negative

        @property
        def __cuda_array_interface__(self):
            assert not self.requires_grad
            return super().__cuda_array_interface__

    class Parameter(Tensor):
        requires_grad = True

    def empty_strided(shape, steps, dtype, device):
        dtype = np.dtype(dtype)
        root = np.zeros(int(np.prod(shape)), dtype)
        owner.roots.append(root)
        return Tensor(np.ndarray(shape, dtype, root, 0, [step * dtype.itemsize for step in steps]))

    owner = device
    dtypes = {name: getattr(np, name) for name in ("float16", "float32", "float64")} | {"bfloat16": ml_dtypes.bfloat16}
    torch = types.ModuleType("torch")
    graph = types.SimpleNamespace(increment_version=device.versions.append)
    torch.__dict__.update(
        dtypes, Tensor=Tensor, nn=types.SimpleNamespace(Parameter=Parameter), grad_mode=True,
        is_grad_enabled=lambda: torch.grad_mode, autograd=types.SimpleNamespace(graph=graph),
        empty_strided=empty_strided,
        cuda=types.SimpleNamespace(current_stream=lambda device: types.SimpleNamespace(cuda_stream=owner.torch_stream)),
    )  # fmt: skip
    return torch
