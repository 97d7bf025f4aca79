"""The claim of the Group Normalization paper on real data: batch norm needs large batches, group norm does not."""

import argparse
import sys
import time
from concurrent.futures import as_completed
from pathlib import Path
from typing import Any

import numpy as np

from numbagn.command.bench.results import provenance, write
from numbagn.command.bench.task import Skip

from . import RESULTS
from .network import NORMS, Descent, Network
from .processes import processes

BATCH_SIZES = (32, 16, 8, 4, 2)
RATE_AT_32 = 0.05
WARM_UP = 0.1  # the share of the steps in which the rate rises
# Of the running statistics of batch norm, in a step of 32 samples; smaller batches keep more, so that what is
# remembered are as many samples at any batch size. It would lose by noisy running statistics otherwise.
KEEP_AT_32 = 0.9
TRAINING_SAMPLES = 1200
# Of noise added to images of variance 1. Without it every norm and batch size gets 98 % right, which shows nothing.
NOISE = 0.7
TEST_DRAWS = 4  # of the noise on each test image
COLUMNS = ("norm", "batch_size", "seed", "error_percent", "training_samples", "test_samples", "epochs", "noise")
DESCRIPTION = """\
Train a small convolutional network on scikit-learn's handwritten digits with batches of 32, 16, 8, 4 and 2 images and
write the test error of each training. The network, batch norm and the steps of training are plain NumPy; group, layer
and instance norm, forward and backward, are numbagn's.

What differs between two points is the norm and the batch size alone: each seed has one split of the data, one start of
the weights and one order of the images for all of them, each sees every image as often, and the learning rate follows
the batch size linearly, as in the paper; it rises in the first tenth of the steps and falls as a cosine. Images are
moved by up to a pixel and noise is added, anew each time, in training and test."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--seeds", type=int, default=5, help="trainings of each point, default %(default)s")
    parser.add_argument("--epochs", type=int, default=20, help="how often each image is seen, default %(default)s")
    parser.add_argument("--noise", type=float, default=NOISE, help="standard deviation added, default %(default)s")
    parser.add_argument("--output", type=Path, default=RESULTS / "batch_size.csv", help="CSV to write")


def main(options: argparse.Namespace) -> None:
    try:
        digits()
    except Skip as reason:
        print(f"skipped: {reason}", file=sys.stderr)
        return
    # One seed after the other, so that an interrupted run leaves whole ones.
    points = [(norm, size, seed) for seed in range(options.seeds) for size in BATCH_SIZES[::-1] for norm in NORMS]
    errors: dict[tuple[str, int, int], float] = {}
    begin = time.time()
    with processes(threads=1) as pool:
        jobs = {pool.submit(test_error, *point, options.epochs, options.noise): point for point in points}
        for done, job in enumerate(as_completed(jobs), 1):
            norm, size, seed = jobs[job]
            errors[norm, size, seed] = job.result()
            place = f"[{time.time() - begin:4.0f} s] {done}/{len(points)} {norm}, batches of {size}, seed {seed}"
            print(f"{place}: {job.result():.2f} %", file=sys.stderr)
            rows = [_row(*point, errors[point], options) for point in sorted(errors, key=_order)]
            write(options.output, COLUMNS, rows)
    print(f"wrote {options.output}", file=sys.stderr)


def digits() -> tuple[np.ndarray, np.ndarray]:
    """1797 images (N, 1, 8, 8) of mean 0 and variance 1, and what they show."""
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise Skip(f"scikit-learn, which holds the images, cannot be imported ({error})") from error
    data = load_digits()
    images = data.images[:, None].astype(np.float32)
    return (images - images.mean()) / images.std(), data.target


def test_error(norm: str, size: int, seed: int, epochs: int, noise: float) -> float:
    """Percent of the test images that a network trained with this norm and batch size gets wrong."""
    images, labels = digits()
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(images))
    training, test = order[:TRAINING_SAMPLES], order[TRAINING_SAMPLES:]
    network = trained(norm, size, images[training], labels[training], epochs, noise, rng)
    draws = np.random.default_rng(seed)  # the same for all norms and batch sizes
    wrong = [network.classify(disturbed(images[test], noise, draws)) != labels[test] for _ in range(TEST_DRAWS)]
    return 100 * float(np.mean(wrong))


def trained(
    norm: str, size: int, images: np.ndarray, labels: np.ndarray, epochs: int, noise: float, rng: np.random.Generator
) -> Network:
    network = Network(norm, rng, images.dtype, KEEP_AT_32 ** (size / 32))
    descent = Descent(network.parameters)
    batches = len(images) // size
    steps = epochs * batches
    for step in range(steps):
        if step % batches == 0:
            order = rng.permutation(len(images))
        part = order[step % batches * size :][:size]
        _, gradients = network.loss_and_gradients(disturbed(images[part], noise, rng), labels[part])
        rise = min(1.0, (step + 1) / (WARM_UP * steps))
        descent.step(gradients, RATE_AT_32 * size / 32 * rise * (1 + np.cos(np.pi * step / steps)) / 2)
    return network


def disturbed(images: np.ndarray, noise: float, rng: np.random.Generator) -> np.ndarray:
    """Each image moved by up to one pixel in either direction, background moving in, and with noise added."""
    background = images.min()
    padded = np.pad(images, ((0, 0), (0, 0), (1, 1), (1, 1)), constant_values=background)
    rows, columns = rng.integers(0, 3, (2, len(images)))
    height, width = images.shape[2:]
    moved = np.stack([p[:, r : r + height, c : c + width] for p, r, c in zip(padded, rows, columns, strict=True)])
    return moved + images.dtype.type(noise) * rng.standard_normal(images.shape, images.dtype)


def _order(point: tuple[str, int, int]) -> tuple[int, int, int]:
    norm, size, seed = point
    return list(NORMS).index(norm), BATCH_SIZES.index(size), seed


def _row(norm: str, size: int, seed: int, error: float, options: argparse.Namespace) -> dict[str, Any]:
    row = {
        "norm": norm,
        "batch_size": size,
        "seed": seed,
        "error_percent": f"{error:.2f}",
        "training_samples": TRAINING_SAMPLES,
        "test_samples": len(digits()[0]) - TRAINING_SAMPLES,
        "epochs": options.epochs,
        "noise": options.noise,
    }
    return row | provenance()
