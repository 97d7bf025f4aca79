"""The claim of the Group Normalization paper on real data: batch norm needs large batches, group norm does not."""

import argparse
import sys
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np

from numbagn._bench.entry import Skip
from numbagn._bench.machine import environment_of
from numbagn._bench.results import provenance, write

from . import RESULTS
from .network import NORMS, Descent, Network

BATCH_SIZES = (32, 16, 8, 4, 2)
RATE_AT_32 = 0.1
# Of the running statistics of batch norm, in a step of 32 samples; smaller batches keep more, so that what is
# remembered are as many samples at any batch size. It would lose by noisy running statistics otherwise.
KEEP_AT_32 = 0.9
TRAINING_SAMPLES = 600
COLUMNS = (
    *("norm", "batch_size", "seeds", "error_percent", "standard_error", "lowest", "highest"),
    *("training_samples", "test_samples", "epochs"),
)
DESCRIPTION = """\
Train a small convolutional network on scikit-learn's handwritten digits with batches of 32, 16, 8, 4 and 2 images and
write the test error, mean and standard error over seeds. The network, batch norm and the steps of training are plain
NumPy; group, layer and instance norm, forward and backward, are numbagn's.

What differs between two points is the norm and the batch size alone: each seed has one split of the data, one start of
the weights and one order of the images for all of them, each sees every image as often, and the learning rate follows
the batch size linearly (0.1 at 32) and falls tenfold after 30, 60 and 90 % of the steps, as in the paper."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description, parser.formatter_class = DESCRIPTION, argparse.RawDescriptionHelpFormatter
    parser.add_argument("--seeds", type=int, default=10, help="trainings of each point, default %(default)s")
    parser.add_argument("--epochs", type=int, default=10, help="how often each image is seen, default %(default)s")
    parser.add_argument("--output", type=Path, default=RESULTS / "batch_size.csv", help="CSV to write")


def main(options: argparse.Namespace) -> None:
    try:
        digits()
    except Skip as reason:
        print(f"skipped: {reason}", file=sys.stderr)
        return
    # Small batches take longest: first, so that the processes end together.
    points = [(norm, size, seed) for size in BATCH_SIZES[::-1] for seed in range(options.seeds) for norm in NORMS]
    errors: dict[tuple[str, int], list[float]] = {(norm, size): [] for norm in NORMS for size in BATCH_SIZES}
    begin = time.time()
    # A process a core, each with one thread; spawned: a forked one would keep this process's idea of its threads.
    with environment_of(1), ProcessPoolExecutor(mp_context=get_context("spawn")) as pool:
        jobs = {pool.submit(test_error, *point, options.epochs): point for point in points}
        for done, job in enumerate(as_completed(jobs), 1):
            norm, size, _ = jobs[job]
            errors[norm, size].append(job.result())
            text = (
                f"[{time.time() - begin:4.0f} s] {done}/{len(points)} {norm}, batches of {size}: {job.result():.2f} %"
            )
            print(text, file=sys.stderr)
    write(options.output, COLUMNS, [_row(*key, values, options.epochs) for key, values in errors.items()])
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


def test_error(norm: str, size: int, seed: int, epochs: int) -> float:
    """Percent of the test images that a network trained with this norm and batch size gets wrong."""
    images, labels = digits()
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(images))
    training, test = order[:TRAINING_SAMPLES], order[TRAINING_SAMPLES:]
    network = trained(norm, size, images[training], labels[training], epochs, rng)
    return 100 * float(np.mean(network.classify(images[test]) != labels[test]))


def trained(
    norm: str, size: int, images: np.ndarray, labels: np.ndarray, epochs: int, rng: np.random.Generator
) -> Network:
    network = Network(norm, rng, images.dtype, KEEP_AT_32 ** (size / 32))
    descent = Descent(network.parameters)
    batches = len(images) // size
    for epoch in range(epochs):
        order = rng.permutation(len(images))
        for batch in range(batches):
            part = order[batch * size : (batch + 1) * size]
            _, gradients = network.loss_and_gradients(shifted(images[part], rng), labels[part])
            share = (epoch * batches + batch) / (epochs * batches)
            drops = sum(share >= begin for begin in (0.3, 0.6, 0.9))
            descent.step(gradients, RATE_AT_32 * size / 32 / 10**drops)
    return network


def shifted(images: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Each image moved by up to one pixel in either direction, background moving in: no image is seen twice alike."""
    background = images.min()
    padded = np.pad(images, ((0, 0), (0, 0), (1, 1), (1, 1)), constant_values=background)
    rows, columns = rng.integers(0, 3, (2, len(images)))
    height, width = images.shape[2:]
    return np.stack([p[:, r : r + height, c : c + width] for p, r, c in zip(padded, rows, columns, strict=True)])


def _row(norm: str, size: int, errors: list[float], epochs: int) -> dict[str, Any]:
    deviation = np.std(errors, ddof=1) if len(errors) > 1 else np.nan
    row = {
        "norm": norm,
        "batch_size": size,
        "seeds": len(errors),
        "error_percent": f"{np.mean(errors):.3f}",
        "standard_error": f"{deviation / np.sqrt(len(errors)):.3f}",
        "lowest": f"{min(errors):.3f}",
        "highest": f"{max(errors):.3f}",
        "training_samples": TRAINING_SAMPLES,
        "test_samples": len(digits()[0]) - TRAINING_SAMPLES,
        "epochs": epochs,
    }
    return row | provenance()
