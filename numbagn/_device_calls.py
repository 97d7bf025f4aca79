"""How a call runs for arrays on a GPU: check, share out, allocate, launch on the producer's stream, give back.

`forward` and `backward` have the arguments of those in `_calls`. The host never waits.
"""

import contextlib
from typing import Any

import numpy as np

from . import _device_plan
from ._arrays import float_row
from ._device import (
    Array, DeviceArray, Maker, cuda_module, dense_strides, described, device_of, maker_of, read_only, shape_only,
    simulated, uploaded,
)  # fmt: skip
from ._device_plan import (
    MOST, VECTORS, channels_of, columns_of, fields, lanes_that_fit, layout_is_last, rows_of, slices_of, whole_of,
)  # fmt: skip
from ._padded import outermost, lengths_of
from ._problem import ACTIVATIONS, Problem, channel_axis_of, layout_of, problem, shape_of_parameter
from ._rows import ROWS, Rows, normalized, rows
from .kernels.geometry import CHANNELS_FIRST, CHANNELS_LAST

__all__ = ["backward", "forward"]


class Call:
    """What the launches of one call share."""

    def __init__(self, x: DeviceArray, maker: Maker) -> None:
        self.maker = maker
        self.leader = x
        self.values: dict[str, Any] = {}  # arguments of kernels by name
        self.alive: list[Any] = []  # what kernels work on, until all are launched

    def launch(self, kernel: Any, blocks: int, **more: Any) -> None:
        from .kernels.cuda.target import launch

        if blocks > MOST:
            raise ValueError(f"x must not need more than {MOST} blocks of a GPU, got {blocks}")
        launch(kernel, blocks, self.maker.stream, self.values | more)

    def scratch(self, size: int, dtype: Any = np.float64) -> DeviceArray:
        """Memory for this call."""
        dtype = np.dtype(dtype)
        made = described("scratch", self.maker.empty((max(size, 1),), (dtype.itemsize,), dtype))
        self.alive.append(made)
        return made

    def empty(self, shape: tuple[int, ...], strides: tuple[int, ...], dtype: Any) -> DeviceArray:
        made = described("a result", self.maker.empty(shape, strides, np.dtype(dtype)))
        made = made._replace(array=shape_only(shape, strides, np.dtype(dtype)))
        self.alive.append(made)
        return made

    def copy(self, source: DeviceArray, target: DeviceArray) -> None:
        """Copy between two layouts."""
        from .kernels.cuda.copying import copy

        shape = source.array.shape
        steps = [
            tuple(step // a.array.itemsize for step in a.array.strides) for a in (source, target)
        ]  # of one axis there must be a tuple too
        self.launch(
            copy(source.kind, target.kind, len(shape), _device_plan.THREADS), -(-source.array.size // _device_plan.THREADS),
            source=source.address, target=target.address, size=source.array.size, shape=shape, source_strides=steps[0],
            target_strides=steps[1],
        )  # fmt: skip

    def clear(self, target: DeviceArray) -> None:
        """Fill a small array with zeros."""
        zeros = uploaded("zeros", np.zeros(target.array.shape, target.array.dtype))
        self.copy(zeros, target)

    def relaid(self, source: DeviceArray, order: Any) -> DeviceArray:
        """A dense copy, its axes in memory in that order."""
        shape, dtype = source.array.shape, source.array.dtype
        dense = self.empty(shape, dense_strides(shape, order, dtype.itemsize), dtype)
        self.copy(source, dense)
        return dense

    def operand(self, name: str, short: str, device: DeviceArray | None, p: Problem) -> DeviceArray | None:
        """Put an array of x's shape among the arguments, laid out as x; None becomes zeros that nothing reads."""
        if device is not None and (p.steps(device.array) is None or min(device.array.strides, default=0) < 0):
            device = self.relaid(device, order_of(p))
        self.values[name] = 0 if device is None else device.address
        self.values[f"{short}_n"], self.values[f"{short}_r"] = (0, 0) if device is None else p.steps(device.array) or ()
        if device is None and simulated(self.leader.owner):
            self.values[name] = np.zeros(1, np.uint64)
        if device is not None:
            self.alive.append(device)
        return device

    def parameter(self, name: str, given: DeviceArray | None, p: Problem) -> str:
        """Put a weight or bias among the arguments; its kind."""
        short = name[0]
        shared = given is not None and given.array.shape == p.parameter_shapes[0]
        self.values |= {
            short: 0 if given is None else given.address,
            f"{short}_n": 0 if given is None or shared else p.C,
            f"{short}_c": int(given is not None),
        }
        if given is None and simulated(self.leader.owner):
            self.values[short] = np.zeros(1, np.uint64)
        self.alive.append(given)
        return p.dtype.accumulator.name if given is None else given.kind


def order_of(p: Problem) -> tuple[int, ...]:
    """The axes in x's memory, outermost first."""
    if isinstance(p, Rows):
        return (*p.order, *range(p.channel_axis, len(p.shape)))
    return (0, p.channel_axis, *p.order) if p.layout == CHANNELS_FIRST else (0, *p.order, p.channel_axis)


# --------------------------------------------------------------------------------------------------------------- checks


def _problem(call: Call, x: DeviceArray, num_groups: Any, eps: Any, channel_axis: Any, activation: Any) -> tuple[
    Problem, DeviceArray
]:  # fmt: skip
    """The checked problem and x laid out for it: a copy where no kernel can walk its memory."""
    array = x.array
    float_row("x", array)
    negative = min(array.strides, default=0) < 0
    natural = tuple(range(array.ndim))
    if channel_axis is ROWS:
        lead = array.ndim - len(normalized(num_groups))
        dense = array.ndim > lead >= 0 and not negative and _rows_walk(array, lead)
        if not dense and array.size:
            array = shape_only(array.shape, None, array.dtype)
        p: Problem = rows(array, num_groups, eps, ROWS, activation)
    else:
        if array.ndim >= 2:
            axis = channel_axis_of(channel_axis, array.ndim)
            if array.size and (negative or layout_of(array.shape, array.strides, array.itemsize, axis) is None):
                array = shape_only(array.shape, None, array.dtype)
        p = problem(array, num_groups, eps, channel_axis, activation)
    if p.C // p.G * p.S > MOST or p.N * p.C > MOST:
        raise ValueError(f"x must not have more than {MOST} elements a group, or channels, on a GPU, got {p.shape}")
    if array is not x.array and array.size:
        x = call.relaid(x, natural)
    return p, x


def _rows_walk(array: Array, lead: int) -> bool:
    from ._rows import steps_of_rows

    order = tuple(range(lead))
    return steps_of_rows(array.shape, array.strides, array.itemsize, order) is not None


def _parameter(name: str, value: Any, p: Problem) -> DeviceArray | None:
    """A weight or bias on the device, dense; arrays of the host are copied there."""
    if value is None:
        return None
    host = type(value) is np.ndarray
    array = value if host else described(name, value).array
    float_row(name, array)
    shape_of_parameter(name, array.shape, p)
    if host:
        return uploaded(name, value.astype(value.dtype.newbyteorder("="), copy=False))
    return described(name, value)


def _dense(call: Call, device: DeviceArray | None) -> DeviceArray | None:
    """The array itself where it is C-contiguous, else a copy."""
    if device is None or device.array.size < 2 or device.array.flags.c_contiguous:
        return device
    return call.relaid(device, range(device.array.ndim))


def _operand(name: str, value: Any, p: Problem) -> DeviceArray | None:
    if value is None:
        return None
    device = described(name, value)
    float_row(name, device.array)
    if device.array.shape != p.shape:
        raise ValueError(f"{name} must have x's shape {p.shape}, got {device.array.shape}")
    return device


def _statistics(name: str, value: Any, p: Problem) -> DeviceArray:
    device = described(name, value)
    float_row(name, device.array)
    if device.array.shape != p.statistics_shape:
        raise ValueError(f"{name} must have shape {p.statistics_shape}, got {device.array.shape}")
    return device


def _lengths(call: Call, lengths: Any, mask: Any, p: Problem) -> bool:
    """Put `lengths` among the arguments; whether there are any."""
    call.values |= {"lengths": np.zeros(1, np.int64) if simulated(call.leader.owner) else 0, "inner": 1}
    if mask is not None:
        raise TypeError("mask must be None for arrays on a GPU; lengths are taken there")
    if lengths is None:
        return False
    spatial = [axis for axis in range(1, len(p.shape)) if axis != p.channel_axis]
    if isinstance(p, Rows):
        raise ValueError("lengths must not be given to layer norm, which normalizes each row by itself")
    if isinstance(lengths, (np.ndarray, list, tuple)):
        given = uploaded("lengths", lengths_of(lengths, p, spatial))
    else:
        given = described("lengths", lengths)
        if given.array.dtype != np.int64:
            raise TypeError(f"lengths must have dtype int64 on a GPU, got {given.array.dtype}")
        if given.array.shape != (p.N,):
            raise ValueError(f"lengths must have shape ({p.N},), got {given.array.shape}")
    if not spatial or not outermost(p, spatial[0]):
        raise ValueError("lengths must count along the outermost spatial axis in memory on a GPU")
    given = _dense(call, given) or given
    call.alive.append(given)
    inner = 1
    for axis in spatial[1:]:
        inner *= p.shape[axis]
    call.values |= {"lengths": given.address, "inner": inner}
    return True


def _output(value: Any, p: Problem) -> DeviceArray:
    device = described("out", value)
    if device.array.dtype != p.result:
        raise TypeError(f"out must have x's dtype {p.result}, got {device.array.dtype}")
    if device.array.shape != p.shape:
        raise ValueError(f"out must have x's shape {p.shape}, got {device.array.shape}")
    if read_only(value):
        raise ValueError("out must be writable, got a read-only array")
    return device


def _extent(device: DeviceArray) -> tuple[int, int]:
    """The first byte of an array and the one after its last."""
    spans = [(n - 1) * s for n, s in zip(device.array.shape, device.array.strides, strict=True)]
    return device.first + sum(min(v, 0) for v in spans), device.first + sum(
        max(v, 0) for v in spans
    ) + device.array.itemsize


def _target(call: Call, out: DeviceArray, p: Problem, same: list[Any], others: list[Any]) -> DeviceArray:
    """Where kernels may write: `out`, or new memory where that is laid out otherwise or in something's way."""

    def meets(other: DeviceArray | None) -> bool:
        if other is None or not other.array.size:
            return False
        (a, b), (c, d) = _extent(out), _extent(other)
        return a < d and c < b

    def in_the_way(other: DeviceArray | None) -> bool:
        if other is None or not meets(other):
            return False
        return (other.first, p.steps(other.array), other.kind) != (out.first, p.steps(out.array), out.kind)

    fits = p.steps(out.array) is not None and min(out.array.strides) >= 0 and not p.overlaps_itself(out.array)
    if fits and not any(map(in_the_way, same)) and not any(map(meets, others)):
        return out
    return call.empty(p.shape, dense_strides(p.shape, order_of(p), out.array.itemsize), out.array.dtype)


def _count(p: Problem, devices: dict[str, DeviceArray | None], last: bool, lanewise: bool, padded: bool) -> int:
    """Values that a thread can move at once: 16 bytes of x, or one."""
    lanes = 16 // p.x.dtype.itemsize
    row = p.C // p.G if lanewise else p.C if last else p.S
    if padded and not last:
        return 1
    sizes, places = [row], []
    for name, device in devices.items():
        if device is None:
            continue
        if name in ("weight", "bias"):
            if lanewise:
                places.append((device.first, device.array.itemsize))
            continue
        steps = p.steps(device.array) or ()
        sizes += [steps[0] if p.N > 1 else 0, 0 if lanewise else steps[1]]
        places.append((device.first, device.array.itemsize))
    return lanes_that_fit(lanes, tuple(sizes), tuple(places))


def _strides_like(x: Array) -> tuple[int, ...]:
    """The strides of a dense array in x's memory order."""
    order = sorted(range(x.ndim), key=lambda axis: -abs(x.strides[axis]))
    return dense_strides(x.shape, order, x.itemsize)


def _on(x: DeviceArray) -> Any:
    """The context in which x's device is the current one."""
    number = device_of(x.owner)
    if number is None:
        return contextlib.nullcontext()
    return cuda_module().gpus[number]


# -------------------------------------------------------------------------------------------------------------- forward


def forward(
    x: Any, num_groups: Any, weight: Any, bias: Any, eps: Any, channel_axis: Any, activation: Any, skip: Any,
    residual: Any, lengths: Any, mask: Any, out: Any, with_statistics: bool,
) -> tuple[Any, Any, Any]:  # fmt: skip
    """(y, mean, rstd) of `numbagn.group_norm_forward`."""
    came = described("x", x)
    cuda_module()
    with _on(came):
        return _forward(
            came, num_groups, weight, bias, eps, channel_axis, activation, skip, residual, lengths, mask, out
        )


def _forward(
    came: DeviceArray, num_groups: Any, weight: Any, bias: Any, eps: Any, channel_axis: Any, activation: Any, skip: Any,
    residual: Any, lengths: Any, mask: Any, out: Any,
) -> tuple[Any, Any, Any]:  # fmt: skip
    from .kernels.cuda import forward as one_pass
    from .kernels.cuda import split

    call = Call(came, maker_of(came))
    p, dev = _problem(call, came, num_groups, eps, channel_axis, activation)
    w, b = _dense(call, _parameter("weight", weight, p)), _dense(call, _parameter("bias", bias, p))
    s, r = _operand("skip", skip, p), _operand("residual", residual, p)
    wanted = None if out is None else _output(out, p)
    padded = _lengths(call, lengths, mask, p)
    y = wanted or call.empty(p.shape, _strides_like(came.array), p.result)
    shape = (2, *p.statistics_shape)
    stats = call.empty(shape, dense_strides(shape, range(len(shape)), 8), np.float64)
    mean, rstd = stats.owner[0], stats.owner[1]
    if p.size == 0:
        if stats.array.size:
            call.clear(stats)
        return (y.owner if out is None else out), mean, rstd
    target = _target(call, y, p, [dev, s, r], [w, b])
    x = call.operand("x", "x", dev, p)
    s, r = call.operand("skip", "skip", s, p), call.operand("res", "res", r, p)
    call.operand("y", "y", target, p)
    w_kind, b_kind = call.parameter("weight", w, p), call.parameter("bias", b, p)

    D, groups, last = p.C // p.G, p.N * p.G, layout_is_last(p.layout, p.S)
    lanewise = p.S == 1 and not last
    devices = {"x": x, "skip": s, "res": r, "y": target, "weight": w, "bias": b}
    count = _count(p, devices, last, lanewise, padded)
    lanewise = lanewise and count > 1
    kind, skip_kind, res_kind = p.dtype.name, s.kind if s else "", r.kind if r else ""
    options = (kind, skip_kind, res_kind, w_kind, b_kind, ACTIVATIONS[p.activation], count)
    call.values |= fields(G=p.G, D=D, S=p.S, C=p.C) | {"groups": groups, "stats": stats.address, "eps": p.eps}
    whole = None if last else whole_of(D * p.S, count if skip_kind == "" or kind == "float32" else count)
    if whole is not None:
        kernel = one_pass.whole(*options, lanewise, whole.vectors, whole.team, whole.threads, padded)
        call.launch(kernel, -(-groups // (whole.threads // whole.team)))
    elif last:
        columns, tiles, sums = columns_of(p.C, p.S, count)
        partials = p.N * sums.slices * p.C
        partial = call.scratch(3 * partials)
        shared = fields(slices=sums.slices, tiles=tiles) | {
            "partial": partial.address, "partials": partials, "size": sums.size,
        }  # fmt: skip
        blocks = p.N * sums.slices * tiles
        call.launch(split.sums_last(kind, skip_kind, count, columns, _device_plan.THREADS, padded), blocks, **shared)
        call.launch(
            split.settle(_device_plan.THREADS), groups, **shared, **fields(width=D), number=D * sums.slices, pitch=p.C,
            per_sample=sums.slices * p.C, per_group=D,
        )  # fmt: skip
        call.launch(split.apply_last(*options, columns, VECTORS, _device_plan.THREADS, padded), blocks, **shared)
    else:
        sums = slices_of(D * p.S, count)
        partials = groups * sums.slices
        shared = fields(slices=sums.slices) | {
            "partial": call.scratch(3 * partials).address, "partials": partials, "size": sums.size,
        }  # fmt: skip
        call.launch(split.sums_first(kind, skip_kind, count, VECTORS, _device_plan.THREADS, padded), partials, **shared)
        call.launch(
            split.settle(_device_plan.THREADS), groups, **shared, **fields(width=1), number=sums.slices, pitch=1,
            per_sample=p.G * sums.slices, per_group=sums.slices,
        )  # fmt: skip
        stretches = -(-D * p.S // (count * VECTORS * _device_plan.THREADS))
        kernel = split.apply_first(*options, lanewise, VECTORS, _device_plan.THREADS, padded)
        call.launch(kernel, groups * stretches, **fields(slices=stretches))
    if target is not y:
        call.copy(target, y)
    return (y.owner if out is None else out), mean, rstd


# ------------------------------------------------------------------------------------------------------------- backward


def backward(
    dy: Any, x: Any, mean: Any, rstd: Any, num_groups: Any, weight: Any, bias: Any, channel_axis: Any, activation: Any,
    skip: Any, residual: Any, lengths: Any, mask: Any, out: Any,
) -> tuple[Any, ...]:  # fmt: skip
    """(dx, dweight, dbias) of `numbagn.group_norm_backward`, and dresidual if there is a residual."""
    came = described("x", x)
    cuda_module()
    with _on(came):
        return _backward(
            dy, came, mean, rstd, num_groups, weight, bias, channel_axis, activation, skip, residual, lengths, mask, out
        )


def _backward(
    dy: Any, came: DeviceArray, mean: Any, rstd: Any, num_groups: Any, weight: Any, bias: Any, channel_axis: Any,
    activation: Any, skip: Any, residual: Any, lengths: Any, mask: Any, out: Any,
) -> tuple[Any, ...]:  # fmt: skip
    from .kernels.cuda import backward as one_pass
    from .kernels.cuda import backward_split as split

    call = Call(came, maker_of(came))
    p, dev = _problem(call, came, num_groups, 0.0, channel_axis, activation)
    w, b = _dense(call, _parameter("weight", weight, p)), _dense(call, _parameter("bias", bias, p))
    s, r = _operand("skip", skip, p), _operand("residual", residual, p)
    if dy is None:
        raise TypeError("dy must be a device array as x is, got None")
    g = _operand("dy", dy, p)
    m, rs = _statistics("mean", mean, p), _statistics("rstd", rstd, p)
    wanted = None if out is None else _output(out, p)
    padded = _lengths(call, lengths, mask, p)
    m, rs = _dense(call, m) or m, _dense(call, rs) or rs
    dx = wanted or call.empty(p.shape, _strides_like(came.array), p.result)
    dr = None if r is None else call.empty(p.shape, dense_strides(p.shape, order_of(p), r.array.itemsize), r.array.dtype)
    accumulator = p.dtype.accumulator
    results = []
    for given in (w, b):
        shape = p.parameter_shapes[0] if given is None else given.array.shape
        dtype = accumulator if given is None else given.array.dtype
        results.append(call.empty(shape, dense_strides(shape, range(len(shape)), dtype.itemsize), dtype))
    dweight, dbias = results
    final = (dx.owner if out is None else out, dweight.owner, dbias.owner) + (() if dr is None else (dr.owner,))
    if p.size == 0:
        for result in results:
            if result.array.size:
                call.clear(result)
        return final
    target = _target(call, dx, p, [dev, s, r, g], [w, b, m, rs])
    x = call.operand("x", "x", dev, p)
    s, r, g = (
        call.operand(name, name, v, p) for name, v in (("skip", s), ("res", r), ("dy", g))
    )
    call.operand("dx", "dx", target, p)
    call.operand("dres", "dres", dr, p)
    w_kind, b_kind = call.parameter("weight", w, p), call.parameter("bias", b, p)

    D, groups, last = p.C // p.G, p.N * p.G, layout_is_last(p.layout, p.S)
    own = any(v is not None and v.array.shape != p.parameter_shapes[0] for v in (w, b))
    lanewise = p.S == 1 and not last and not own
    devices = {"x": x, "skip": s, "res": r, "dy": g, "dx": target, "dres": dr, "weight": w, "bias": b}
    count = _count(p, devices, last, lanewise, padded)
    assert g is not None
    kind, skip_kind, res_kind = p.dtype.name, s.kind if s else "", r.kind if r else ""
    options = (
        kind, skip_kind, g.kind, res_kind, w_kind, b_kind, m.kind, rs.kind, ACTIVATIONS[p.activation], count,
    )  # fmt: skip
    call.values |= fields(G=p.G, D=D, S=p.S, C=p.C) | {
        "N": p.N, "groups": groups, "mean": m.address, "rstd": rs.address, "NC": p.N * p.C,
    }  # fmt: skip
    call.alive += [m, rs]
    wide = accumulator.itemsize * count > 16
    slices = 1
    held = rows_of(D, count, wide) if lanewise and not padded else None
    channels = None if last else channels_of(D, p.S, count, wide)
    if held is not None:
        walked = max(1, -(-p.N // 512))  # rows a team walks over: from the batch, for the sums over it
        parts = -(-p.N // walked)
        partial = call.scratch(2 * parts * p.C, accumulator)
        kernel = one_pass.rows(*options, held.vectors, held.team, held.threads)
        teams = held.threads // held.team
        call.launch(kernel, -(-parts * p.G // teams), partial=partial.address, parts=parts, walked=walked)
        layout = {"rows": parts, "pitch": 0, "stride": p.C, "second": parts * p.C}
    elif channels is not None and not (p.S == 1 and lanewise and D > 64):
        each, vectors, team, groups_in = channels
        partial = call.scratch(2 * p.N * p.C, accumulator)
        kernel = one_pass.whole(*options, each, vectors, team, groups_in, _device_plan.THREADS, padded)
        call.launch(kernel, -(-groups // groups_in), partial=partial.address)
        layout = {"rows": p.N, "pitch": p.C, "stride": p.C, "second": p.N * p.C}
    else:
        count = 1 if lanewise else count
        options = (*options[:-1], count)
        if last:
            columns, tiles, sums = columns_of(p.C, p.S, count)
            slices, size = sums
        else:
            team = 32 if p.S <= 1024 * count else _device_plan.THREADS
            slices = max(1, -(-p.S // (16 * _device_plan.THREADS * VECTORS)))
            size = -(-(-(-p.S // slices)) // count) * count
        partials = p.N * slices * p.C
        partial, means = call.scratch(2 * partials, accumulator), call.scratch(2 * groups)
        shared = fields(slices=slices) | {
            "partial": partial.address, "partials": partials, "size": size, "means": means.address,
        }  # fmt: skip
        if last:
            shared |= fields(tiles=tiles)
            blocks = p.N * slices * tiles
            call.launch(split.sums_last(*options, columns, _device_plan.THREADS, padded), blocks, **shared)
        else:
            kernel = split.sums_first(*options, team, _device_plan.THREADS, padded)
            call.launch(kernel, -(-partials // (_device_plan.THREADS // team)), items=partials, **shared)
        call.launch(split.settle(accumulator.name, w_kind, _device_plan.THREADS), groups, padded=int(padded), **shared)
        if last:
            call.launch(split.apply_last(*options, columns, VECTORS, _device_plan.THREADS, padded), blocks, **shared)
        else:
            stretches = -(-D * p.S // (count * VECTORS * _device_plan.THREADS))
            kernel = split.apply_first(*options, VECTORS, _device_plan.THREADS, padded)
            call.launch(kernel, groups * stretches, **(shared | fields(slices=stretches)))
        layout = {"rows": p.N * slices, "pitch": slices * p.C, "stride": p.C, "second": partials}
    for result, with_weight in ((dweight, 1), (dbias, 0)):
        rows_in = layout["rows"] if result.array.shape == p.parameter_shapes[0] else slices
        kernel = one_pass.parameters(accumulator.name, dweight.kind, dbias.kind, _device_plan.THREADS)
        both = dweight.array.shape == dbias.array.shape
        if both and not with_weight:
            break
        call.launch(
            kernel, -(-result.array.size // 32), **(layout | {"rows": rows_in}), partial=partial.address,
            dweight=dweight.address, dbias=dbias.address, columns=result.array.size, with_weight=int(both or with_weight),
            with_bias=int(both or not with_weight),
        )  # fmt: skip
    if target is not dx:
        call.copy(target, dx)
    return final
