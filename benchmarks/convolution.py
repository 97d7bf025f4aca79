"""3x3 convolution in NumPy, channels first, padded by zeros: every window becomes a column, then one matrix product."""

import numpy as np

TAPS = [(row, column) for row in range(3) for column in range(3)]


def convolve(x: np.ndarray, kernel: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """y (N, K, H, W) of x (N, C, H, W) and kernel (K, C, 3, 3), and the columns (N, 9 C, H W) backward needs."""
    samples, channels, height, width = x.shape
    padded = _padded(x)
    columns = np.empty((samples, channels, 9, height, width), x.dtype)
    for tap, (row, column) in enumerate(TAPS):
        columns[:, :, tap] = padded[:, :, row : row + height, column : column + width]
    columns = columns.reshape(samples, 9 * channels, height * width)
    y = np.matmul(kernel.reshape(len(kernel), -1), columns)
    return y.reshape(samples, len(kernel), height, width), columns


def convolve_backward(dy: np.ndarray, columns: np.ndarray, kernel: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """dx and dkernel."""
    samples, outputs, height, width = dy.shape
    dy = dy.reshape(samples, outputs, -1)
    dkernel = np.matmul(dy, columns.transpose(0, 2, 1)).sum(0).reshape(kernel.shape)
    dcolumns = np.matmul(kernel.reshape(outputs, -1).T, dy).reshape(samples, -1, 9, height, width)
    dx = np.zeros((samples, dcolumns.shape[1], height + 2, width + 2), dy.dtype)
    for tap, (row, column) in enumerate(TAPS):
        dx[:, :, row : row + height, column : column + width] += dcolumns[:, :, tap]
    return dx[:, :, 1:-1, 1:-1], dkernel


def _padded(x: np.ndarray) -> np.ndarray:
    padded = np.zeros((*x.shape[:2], x.shape[2] + 2, x.shape[3] + 2), x.dtype)
    padded[:, :, 1:-1, 1:-1] = x
    return padded
