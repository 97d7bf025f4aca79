"""Group norm as the textbook has it, in any NumPy-like namespace.

In float64 under NumPy this is the definition that every timed result is checked against. It is kept apart from the
library on purpose: a fault shared by the library and its own reference would show here. In float32 the same lines
are the `numpy` peer, and compiled by XLA the `jax` peer.
"""

from typing import Any

import numpy as np


def forward(
    xp: Any, x: Any, weight: Any, bias: Any, groups: int, eps: float, layout: str, activation: str | None
) -> Any:
    """y for x (N, C, ...) ("NCHW") or (N, ..., C) ("NHWC"), parameters (C,) or (N, C), in x's own precision."""
    split, axes, per_group, per_channel = _shapes(x.shape, groups, layout)
    grouped = x.reshape(split)
    mean = grouped.mean(axis=axes, keepdims=True)
    centred = grouped - mean
    rstd = 1 / xp.sqrt((centred * centred).mean(axis=axes, keepdims=True) + eps)
    y = (centred * rstd).reshape(per_group) * weight.reshape(per_channel) + bias.reshape(per_channel)
    if activation == "relu":
        y = xp.maximum(y, 0)
    elif activation == "silu":
        y = y / (1 + xp.exp(-y))
    return y.reshape(x.shape)


def statistics(x: np.ndarray, groups: int, eps: float, layout: str) -> tuple[np.ndarray, np.ndarray]:
    """mean and rstd, each (N, G), in x's own precision."""
    split, axes, _, _ = _shapes(x.shape, groups, layout)
    grouped = x.reshape(split)
    return grouped.mean(axis=axes), 1 / np.sqrt(grouped.var(axis=axes) + eps)


def backward(dy: Any, x: Any, mean: Any, rstd: Any, weight: Any, groups: int, layout: str) -> tuple:
    """dx, dweight and dbias from the saved (N, G) statistics."""
    split, axes, per_group, per_channel = _shapes(x.shape, groups, layout)
    per_stat = [x.shape[0], 1, 1, 1]
    per_stat[1 if layout == "NCHW" else 2] = groups
    x_hat = (x.reshape(split) - mean.reshape(per_stat)) * rstd.reshape(per_stat)
    dy = dy.reshape(per_group)
    channel_sum = (0, 2) if layout == "NCHW" else (0, 1)
    dweight = (dy * x_hat.reshape(per_group)).sum(axis=channel_sum)
    dbias = dy.sum(axis=channel_sum)
    dx_hat = (dy * weight.reshape(per_channel)).reshape(split)
    mean_dx_hat = dx_hat.mean(axis=axes, keepdims=True)
    mean_product = (dx_hat * x_hat).mean(axis=axes, keepdims=True)
    dx = rstd.reshape(per_stat) * (dx_hat - mean_dx_hat - x_hat * mean_product)
    return dx.reshape(x.shape), dweight, dbias


def _shapes(shape: tuple[int, ...], groups: int, layout: str) -> tuple:
    """(shape with the groups apart, axes of a group, shape with the channels apart, shape of a parameter there)."""
    samples = shape[0]
    if layout == "NCHW":
        channels = shape[1]
        return (samples, groups, channels // groups, -1), (2, 3), (samples, channels, -1), (-1, channels, 1)
    channels = shape[-1]
    return (samples, -1, groups, channels // groups), (1, 3), (samples, -1, channels), (-1, 1, channels)


def max_difference(result: np.ndarray, expected: np.ndarray) -> float:
    """max |result - expected| over all elements, NaN where any is NaN; in pieces, to make no array-sized temporary."""
    flat, wanted, piece, worst = result.reshape(-1), expected.reshape(-1), 1 << 15, 0.0
    for start in range(0, flat.size, piece):
        part = flat[start : start + piece].astype(np.float64)
        worst = np.maximum(worst, np.abs(part - wanted[start : start + piece]).max())
    return float(worst)
