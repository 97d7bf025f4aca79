"""A small convolutional network in NumPy whose norms can be exchanged: forward, backward and the steps of training.

Images (N, 1, 8, 8) go through six 3x3 convolutions, each followed by norm and ReLU, at 8x8, 4x4 and 2x2 positions, two
at each. The mean over positions is classified by one matrix: (N, 10).
"""

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np

import numbagn

from .convolution import convolve, convolve_backward

CHANNELS = (1, 16, 16, 32, 32, 64, 64)
POOLED_AFTER = (1, 3)  # convolutions, counted from 0, whose results a 2x2 mean follows
CLASSES = 10
CHANNELS_A_GROUP = 8
BATCH_NORM_EPS = 1e-5

Parameters = list[np.ndarray]


class BatchNorm:
    """Batch norm and ReLU as the textbook has them: the batch's statistics in training, running ones afterwards.

    `keep` is how much of the running statistics one step keeps.
    """

    def __init__(self, channels: int, dtype: Any, keep: float) -> None:
        self.weight, self.bias = np.ones(channels, dtype), np.zeros(channels, dtype)
        self.running_mean, self.running_var = np.zeros(channels, dtype), np.ones(channels, dtype)
        self.keep = keep

    def forward(self, x: np.ndarray) -> tuple[np.ndarray, tuple]:
        mean, var = x.mean((0, 2, 3)), x.var((0, 2, 3))
        count = x.size // x.shape[1]
        unbiased = var * (count / (count - 1))
        self.running_mean += (1 - self.keep) * (mean - self.running_mean)
        self.running_var += (1 - self.keep) * (unbiased - self.running_var)
        rstd = 1 / np.sqrt(var + BATCH_NORM_EPS)
        x_hat = (x - _apart(mean)) * _apart(rstd)
        y = np.maximum(x_hat * _apart(self.weight) + _apart(self.bias), 0)
        return y, (x_hat, rstd, y)

    def backward(self, dy: np.ndarray, saved: tuple) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        x_hat, rstd, y = saved
        dy = dy * (y > 0)
        dweight, dbias = (dy * x_hat).sum((0, 2, 3)), dy.sum((0, 2, 3))
        count = dy.size // dy.shape[1]
        dx = _apart(rstd * self.weight) * (dy - _apart(dbias / count) - x_hat * _apart(dweight / count))
        return dx, dweight, dbias

    def __call__(self, x: np.ndarray) -> np.ndarray:
        rstd = 1 / np.sqrt(self.running_var + BATCH_NORM_EPS)
        scale = self.weight * rstd
        return np.maximum(x * _apart(scale) + _apart(self.bias - self.running_mean * scale), 0)


# Each makes norm and ReLU of one place: channels, dtype, what running statistics keep of themselves in a step.
NORMS: dict[str, Callable[[int, Any, float], Any]] = {
    "batch norm": BatchNorm,
    "group norm": lambda channels, dtype, keep: numbagn.GroupNorm(
        channels // CHANNELS_A_GROUP, channels, dtype=dtype, activation="relu"
    ),
    "layer norm": lambda channels, dtype, keep: numbagn.GroupNorm(1, channels, dtype=dtype, activation="relu"),
    "instance norm": lambda channels, dtype, keep: numbagn.InstanceNorm(channels, dtype=dtype, activation="relu"),
}


class Network:
    def __init__(self, norm: str, rng: np.random.Generator, dtype: Any = np.float32, keep: float = 0.9) -> None:
        pairs = list(pairwise(CHANNELS))
        self.kernels = [
            (rng.standard_normal((outputs, inputs, 3, 3)) * np.sqrt(2 / (9 * inputs))).astype(dtype)
            for inputs, outputs in pairs
        ]
        self.norms = [NORMS[norm](outputs, dtype, keep) for _, outputs in pairs]
        features = CHANNELS[-1]
        self.last = (rng.standard_normal((features, CLASSES)) * np.sqrt(1 / features)).astype(dtype)
        self.last_bias = np.zeros(CLASSES, dtype)

    @property
    def parameters(self) -> Parameters:
        norms = [parameter for norm in self.norms for parameter in (norm.weight, norm.bias)]
        return [*self.kernels, self.last, self.last_bias, *norms]

    def loss_and_gradients(self, x: np.ndarray, labels: np.ndarray) -> tuple[float, Parameters]:
        """Mean cross-entropy, and its gradient by each of `parameters`."""
        saved = []
        for number, (kernel, norm) in enumerate(zip(self.kernels, self.norms, strict=True)):
            x, columns = convolve(x, kernel)
            x, of_norm = norm.forward(x)
            saved.append((columns, of_norm))
            x = _pooled(x) if number in POOLED_AFTER else x
        shape, features = x.shape, x.mean((2, 3))
        logits = features @ self.last + self.last_bias
        logits -= logits.max(1, keepdims=True)
        log_sum = np.log(np.exp(logits).sum(1, keepdims=True))
        rows = np.arange(len(labels))
        loss = float((log_sum[:, 0] - logits[rows, labels]).mean())

        dlogits = np.exp(logits - log_sum)
        dlogits[rows, labels] -= 1
        dlogits /= len(labels)
        dlast, dlast_bias = features.T @ dlogits, dlogits.sum(0)
        dx = np.broadcast_to((dlogits @ self.last.T)[:, :, None, None] / (shape[2] * shape[3]), shape)
        dkernels, dnorms = [], []
        for number in reversed(range(len(self.kernels))):
            columns, of_norm = saved[number]
            dx = _spread(dx) if number in POOLED_AFTER else dx
            dx, dweight, dbias = self.norms[number].backward(dx, of_norm)
            dx, dkernel = convolve_backward(dx, columns, self.kernels[number])
            dkernels.insert(0, dkernel)
            dnorms[:0] = [dweight, dbias]
        return loss, [*dkernels, dlast, dlast_bias, *dnorms]

    def classify(self, x: np.ndarray) -> np.ndarray:
        for number, (kernel, norm) in enumerate(zip(self.kernels, self.norms, strict=True)):
            x = norm(convolve(x, kernel)[0])
            x = _pooled(x) if number in POOLED_AFTER else x
        return (x.mean((2, 3)) @ self.last + self.last_bias).argmax(1)


class Descent:
    """Gradient descent with momentum 0.9 and weight decay 1e-4, as in the paper."""

    def __init__(self, parameters: Parameters) -> None:
        self.parameters, self.velocities = parameters, [np.zeros_like(parameter) for parameter in parameters]

    def step(self, gradients: Parameters, rate: float) -> None:
        for parameter, velocity, gradient in zip(self.parameters, self.velocities, gradients, strict=True):
            velocity *= 0.9
            velocity += gradient + 1e-4 * parameter
            parameter -= rate * velocity


def _apart(channels: np.ndarray) -> np.ndarray:
    return channels[:, None, None]


def _pooled(x: np.ndarray) -> np.ndarray:
    samples, channels, height, width = x.shape
    return x.reshape(samples, channels, height // 2, 2, width // 2, 2).mean((3, 5))


def _spread(dy: np.ndarray) -> np.ndarray:
    return (dy / 4).repeat(2, 2).repeat(2, 3)
