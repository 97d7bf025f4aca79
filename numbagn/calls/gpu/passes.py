"""How a call runs for arrays on a GPU: check, share out, allocate, launch on the producer's stream, give back.

`forward` and `backward` have the arguments of those in `_calls`. The host never waits.
"""

from typing import Any

import numpy as np

from ...arrays.device import DeviceArray, cuda_module, dense_strides, described, maker_of
from ..arguments import Backward, Forward
from ..checks import ACTIVATIONS
from . import grids
from .grids import (
    VECTORS,
    channels_of,
    columns_of,
    fields,
    layout_is_last,
    rows_of,
    slices_of,
    whole_of,
)  # fmt: skip
from .operands import (
    Call,
    count_of,
    current,
    dense,
    lengths_in,
    operand_of,
    output_of,
    parameter_of,
    problem_of,
    statistics_of,
    strides_like,
    target_of,
)  # fmt: skip
from .replay import given_of, key_of, remember, replayed

__all__ = ["backward", "forward"]


# -------------------------------------------------------------------------------------------------------------- forward


def forward(given: Forward, with_statistics: bool) -> tuple[Any, Any, Any]:
    """(y, mean, rstd) of `numbagn.group_norm_forward`."""
    x, num_groups, weight, bias, eps, channel_axis, activation, skip, residual, lengths, mask, out = given
    came = described("x", x)
    cuda_module()
    with current(came), Call(came, maker_of(came)) as call:
        devices = None
        if lengths is None and mask is None:
            arrays = {"x": came, "weight": weight, "bias": bias, "skip": skip, "residual": residual, "out": out}
            devices = given_of(call, arrays)
        key = key_of(devices, "forward", num_groups, eps, channel_axis, activation)
        results = replayed(key, call, devices)
        if results is None:
            results = _forward(
                call, came, num_groups, weight, bias, eps, channel_axis, activation, skip, residual, lengths, mask, out
            )
            remember(key, call, results, devices)
    y, stats = results
    y = y.owner if out is None else out
    if stats.array.ndim == 1:  # one row in all: Numba would copy an indexed number to the host
        return y, *(call.as_number(stats.owner[i : i + 1]) for i in range(2))
    return y, stats.owner[0], stats.owner[1]


def _forward(
    call: Call, came: DeviceArray, num_groups: Any, weight: Any, bias: Any, eps: Any, channel_axis: Any,
    activation: Any, skip: Any, residual: Any, lengths: Any, mask: Any, out: Any,
) -> tuple[DeviceArray, DeviceArray]:  # fmt: skip
    """(y, both statistics)."""
    from ...kernels.cuda import forward as one_pass
    from ...kernels.cuda import split

    p, dev = problem_of(call, came, num_groups, eps, channel_axis, activation)
    w, b = parameter_of(call, "weight", weight, p), parameter_of(call, "bias", bias, p)
    s, r = operand_of(call, "skip", skip, p), operand_of(call, "residual", residual, p)
    wanted = None if out is None else output_of(call, out, p)
    padded = lengths_in(call, lengths, mask, p)
    y = wanted or call.empty(p.shape, strides_like(came.array), p.result)
    shape = (2, *p.statistics_shape)
    stats = call.empty(shape, dense_strides(shape, range(len(shape)), 8), np.float64)
    if p.size == 0:
        if stats.array.size:
            call.clear(stats)
        call.repeatable = False
        return y, stats
    target = target_of(call, y, p, [dev, s, r], [w, b])
    x = call.operand("x", "x", dev, p)
    s, r = call.operand("skip", "skip", s, p), call.operand("res", "res", r, p)
    w_kind, b_kind = call.parameter("weight", w, p), call.parameter("bias", b, p)

    D, groups, last = p.C // p.G, p.N * p.G, layout_is_last(p.layout, p.S)
    lanewise = p.S == 1 and not last
    count = count_of(p, {"x": x, "skip": s, "res": r, "weight": w, "bias": b}, last, lanewise, padded)
    if count_of(p, {"y": target}, last, lanewise, padded) < count:  # where y lies must not change the order of sums
        target = call.laid_out(p, p.result)
    call.operand("y", "y", target, p)
    lanewise = lanewise and count > 1
    kind, skip_kind, res_kind = p.dtype.name, s.kind if s else "", r.kind if r else ""
    options = (kind, skip_kind, res_kind, w_kind, b_kind, ACTIVATIONS[p.activation], count)
    call.values |= fields(G=p.G, D=D, S=p.S, C=p.C) | {"groups": groups, "stats": stats.address, "eps": p.eps}
    whole = None if last else whole_of(D * p.S, count)
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
        call.launch(split.sums_last(kind, skip_kind, count, columns, grids.THREADS, padded), blocks, **shared)
        call.launch(
            split.settle(grids.THREADS), groups, **shared, **fields(width=D), number=D * sums.slices, pitch=p.C,
            per_sample=sums.slices * p.C, per_group=D,
        )  # fmt: skip
        call.launch(split.apply_last(*options, columns, VECTORS, grids.THREADS, padded), blocks, **shared)
    else:
        sums = slices_of(D * p.S, count)
        partials = groups * sums.slices
        shared = fields(slices=sums.slices) | {
            "partial": call.scratch(3 * partials).address, "partials": partials, "size": sums.size,
        }  # fmt: skip
        call.launch(split.sums_first(kind, skip_kind, count, VECTORS, grids.THREADS, padded), partials, **shared)
        call.launch(
            split.settle(grids.THREADS), groups, **shared, **fields(width=1), number=sums.slices, pitch=1,
            per_sample=p.G * sums.slices, per_group=sums.slices,
        )  # fmt: skip
        stretches = -(-D * p.S // (count * VECTORS * grids.THREADS))
        kernel = split.apply_first(*options, lanewise, VECTORS, grids.THREADS, padded)
        call.launch(kernel, groups * stretches, **fields(slices=stretches))
    if target is not y:
        call.copy(target, y)
    return y, stats


# ------------------------------------------------------------------------------------------------------------- backward


def backward(given: Backward) -> tuple[Any, ...]:
    """(dx, dweight, dbias) of `numbagn.group_norm_backward`, and dresidual if there is a residual."""
    dy, x, mean, rstd, num_groups, weight, bias, channel_axis, activation, skip, residual, lengths, mask, out = given
    came = described("x", x)
    cuda_module()
    with current(came), Call(came, maker_of(came)) as call:
        devices = None
        if lengths is None and mask is None:
            arrays = {
                "x": came, "dy": dy, "mean": mean, "rstd": rstd, "weight": weight, "bias": bias, "skip": skip,
                "residual": residual, "out": out,
            }  # fmt: skip
            devices = given_of(call, arrays)
        key = key_of(devices, "backward", num_groups, channel_axis, activation)
        results = replayed(key, call, devices)
        if results is None:
            results = _backward(
                call, dy, came, mean, rstd, num_groups, weight, bias, channel_axis, activation, skip, residual, lengths,
                mask, out,
            )  # fmt: skip
            remember(key, call, results, devices)
    dx, *more = results
    return (dx.owner if out is None else out, *(result.owner for result in more))


def _backward(
    call: Call, dy: Any, came: DeviceArray, mean: Any, rstd: Any, num_groups: Any, weight: Any, bias: Any,
    channel_axis: Any, activation: Any, skip: Any, residual: Any, lengths: Any, mask: Any, out: Any,
) -> tuple[DeviceArray, ...]:  # fmt: skip
    """(dx, dweight, dbias), and dresidual if there is a residual."""
    from ...kernels.cuda import backward as one_pass
    from ...kernels.cuda import backward_split as split

    p, dev = problem_of(call, came, num_groups, 0.0, channel_axis, activation)
    w, b = parameter_of(call, "weight", weight, p), parameter_of(call, "bias", bias, p)
    s, r = operand_of(call, "skip", skip, p), operand_of(call, "residual", residual, p)
    if dy is None:
        raise TypeError("dy must be a device array as x is, got None")
    g = operand_of(call, "dy", dy, p)
    m, rs = statistics_of(call, "mean", mean, p), statistics_of(call, "rstd", rstd, p)
    wanted = None if out is None else output_of(call, out, p)
    padded = lengths_in(call, lengths, mask, p)
    m, rs = dense(call, m) or m, dense(call, rs) or rs
    dx = wanted or call.empty(p.shape, strides_like(came.array), p.result)
    dr = None if r is None else call.laid_out(p, r.array.dtype)
    accumulator = p.dtype.accumulator
    results = []
    for given in (w, b):
        shape = p.parameter_shapes[0] if given is None else given.array.shape
        dtype = accumulator if given is None else given.array.dtype
        results.append(call.empty(shape, dense_strides(shape, range(len(shape)), dtype.itemsize), dtype))
    dweight, dbias = results
    final = (dx, dweight, dbias) if dr is None else (dx, dweight, dbias, dr)
    if p.size == 0:
        for result in results:
            if result.array.size:
                call.clear(result)
        call.repeatable = False
        return final
    target = target_of(call, dx, p, [dev, s, r, g], [w, b, m, rs])
    x = call.operand("x", "x", dev, p)
    s, r, g = (call.operand(name, name, v, p) for name, v in (("skip", s), ("res", r), ("dy", g)))
    call.operand("dres", "dres", dr, p)
    w_kind, b_kind = call.parameter("weight", w, p), call.parameter("bias", b, p)

    D, groups, last = p.C // p.G, p.N * p.G, layout_is_last(p.layout, p.S)
    own = any(v is not None and v.array.shape != p.parameter_shapes[0] for v in (w, b))
    lanewise = p.S == 1 and not last and not own
    given_in = {"x": x, "skip": s, "res": r, "dy": g, "dres": dr, "weight": w, "bias": b}
    count = count_of(p, given_in, last, lanewise, padded)
    if count_of(p, {"dx": target}, last, lanewise, padded) < count:  # as for y
        target = call.laid_out(p, p.result)
    call.operand("dx", "dx", target, p)
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
        kernel = one_pass.whole(*options, each, vectors, team, groups_in, grids.THREADS, padded)
        call.launch(kernel, -(-groups // groups_in), partial=partial.address)
        layout = {"rows": p.N, "pitch": p.C, "stride": p.C, "second": p.N * p.C}
    else:
        count = 1 if lanewise else count
        options = (*options[:-1], count)
        if last:
            columns, tiles, sums = columns_of(p.C, p.S, count)
            slices, size = sums
        else:
            team = 32 if 1024 * count >= p.S else grids.THREADS
            slices = max(1, -(-p.S // (16 * grids.THREADS * VECTORS)))
            size = -(-p.S // (slices * count)) * count
        partials = p.N * slices * p.C
        partial, means = call.scratch(2 * partials, accumulator), call.scratch(2 * groups)
        shared = fields(slices=slices) | {
            "partial": partial.address, "partials": partials, "size": size, "means": means.address,
        }  # fmt: skip
        if last:
            shared |= fields(tiles=tiles)
            blocks = p.N * slices * tiles
            call.launch(split.sums_last(*options, columns, grids.THREADS, padded), blocks, **shared)
        else:
            kernel = split.sums_first(*options, team, grids.THREADS, padded)
            call.launch(kernel, -(-partials // (grids.THREADS // team)), items=partials, **shared)
        call.launch(split.settle(accumulator.name, w_kind, grids.THREADS), groups, padded=int(padded), **shared)
        if last:
            call.launch(split.apply_last(*options, columns, VECTORS, grids.THREADS, padded), blocks, **shared)
        else:
            stretches = -(-D * p.S // (count * VECTORS * grids.THREADS))
            kernel = split.apply_first(*options, VECTORS, grids.THREADS, padded)
            call.launch(kernel, groups * stretches, **(shared | fields(slices=stretches)))
        layout = {"rows": p.N * slices, "pitch": slices * p.C, "stride": p.C, "second": partials}
    for result, with_weight in ((dweight, 1), (dbias, 0)):
        rows_in = layout["rows"] if result.array.shape == p.parameter_shapes[0] else slices
        kernel = one_pass.parameters(accumulator.name, dweight.kind, dbias.kind, grids.THREADS)
        both = dweight.array.shape == dbias.array.shape
        if both and not with_weight:
            break
        call.launch(
            kernel, -(-result.array.size // 32), **(layout | {"rows": rows_in}), partial=partial.address,
            dweight=dweight.address, dbias=dbias.address, columns=result.array.size,
            with_weight=int(both or with_weight), with_bias=int(both or not with_weight),
        )  # fmt: skip
    if target is not dx:
        call.copy(target, dx)
    return final
