"""Measuring: `python -m numbagn bench`, the residual block, and that networks of the batch-size experiment learn."""

import csv
import re
from importlib.util import find_spec

import numpy as np
import pytest
from command_line import error_line, shell

from benchmarks import batch_size, pipeline
from benchmarks.network import NORMS, Descent, Network
from numbagn.command.bench import command
from numbagn.command.bench.cases import CASE_NAMES
from numbagn.command.main import main

ARGUMENTS = ("--cases", "pixel", "--variants", "forward", "--threads", "1", "--peers", "numpy")


def test_bench_prints_a_table_and_writes_csv_and_figure(tmp_path):
    plot = ("--plot", tmp_path / "speed.png") if find_spec("matplotlib") else ()
    done = shell("bench", *ARGUMENTS, "--csv", tmp_path / "speed.csv", *plot, timeout=300)
    assert done.returncode == 0, done.stderr
    *text, heads, rule, row = done.stdout.splitlines()
    assert re.match(r"Group norm on .*\d cores.*numbagn [\d.]+, numpy [\d.]+\.$", text[0])
    assert heads.count("|") == rule.count("|") == row.count("|")
    assert heads.endswith("numbagn us | GB/s | numbagn / copy | numpy us |")
    assert row.startswith("| forward | pixel 1x32x1x1, G 8 | 1 | ")
    assert "start 1/1, 1 thread: 1/1 forward pixel: x copy: " in done.stderr
    with (tmp_path / "speed.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert {r["peer"] for r in rows} == {"copy", "read+copy", "numbagn", "numbagn layer", "numpy"}
    assert all(r["status"] == "ok" and float(r["max_error"]) < 1e-5 for r in rows)
    assert (tmp_path / "speed.png").exists() == bool(plot)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--cases", "pixel,huge"), f"--cases has huge; allowed: {', '.join(CASE_NAMES)}"),
        (("--variants", "sideways"), "--variants has sideways; allowed: forward, channels-last"),
        (("--peers", "abacus"), "--peers has abacus; allowed: numbagn, torch"),
        (("--threads", "0"), "--threads has 0; allowed: numbers from 1 to "),
        (("--threads", "all"), "--threads has all; allowed: numbers from 1 to "),
        (("--csv", "speed.txt"), "--csv is speed.txt; allowed: a name that ends in .csv"),
        (("--plot", "nowhere/speed.png"), "--plot is nowhere/speed.png, but nowhere is no folder that can be written"),
        (("--minutes", "soon"), "argument --minutes: invalid float value: 'soon'"),
    ],
)
def test_bench_refuses_before_it_measures(monkeypatch, capsys, options, message):
    monkeypatch.setattr(command, "run_starts", None)
    assert main(["bench", *options]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert message in error_line(err)


def test_bench_says_which_library_a_plot_needs(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(command, "find_spec", lambda name: None)
    assert main(["bench", "--plot", str(tmp_path / "speed.png")]) == 2
    assert error_line(capsys.readouterr().err).startswith("--plot needs matplotlib, which is not installed")


def _rows(error):
    common = {"variant": "forward", "case": "pixel", "threads": 1, "direction": "forward", "output": "out"}
    common |= {"bytes": 256, "median_us": "2", "gb_per_s": "1", "ratio_to_copy": "2", "max_error": f"{error:.0e}"}
    common |= {"machine": "a machine", "date": "2026-11-24", "numba": "0", "peer_version": "1"}
    return [
        common | {"peer": "copy", "status": "ok", "peer_version": ""},
        common | {"peer": "numbagn", "status": "ok" if error < 1e-3 else "wrong"},
        common | {"peer": "numpy", "status": "ok", "output": "fresh", "median_us": "30"},
    ]


@pytest.mark.parametrize(("error", "code"), [(1e-7, 0), (1.0, 1)])
def test_bench_tells_scripts_of_wrong_results(monkeypatch, capsys, error, code):
    monkeypatch.setattr(command, "run_starts", lambda *args, **options: _rows(error))
    assert main(["bench"]) == code
    out = capsys.readouterr().out
    assert ("numbagn in forward pixel" in out) == bool(code)
    assert ("| **2** |" in out) == (not code)
    assert out.rstrip().endswith("| 30 |" if not code else "numbagn in forward pixel.")


def test_bench_without_time_for_anything_is_an_error(monkeypatch, capsys):
    monkeypatch.setattr(command, "run_starts", lambda *args, **options: [])
    assert main(["bench"]) == 2
    assert error_line(capsys.readouterr().err).startswith("nothing was measured")


def test_bench_needs_the_package_alone():
    """A wheel holds no benchmarks/."""
    done = shell(code="import sys; sys.modules['benchmarks'] = None; from numbagn.command.bench import command, worker")
    assert (done.returncode, done.stderr) == (0, "")


def test_the_residual_block_is_the_same_with_every_norm(one_thread):
    block = pipeline.Block.random((2, 32, 6, 5), 8)
    expected, _ = block.astype(np.float64).run(pipeline.numpy_norm)
    for name, (_, norm) in pipeline.norms(1).items():
        y, seconds = block.run(norm)
        assert np.abs(y - expected).max() < 2e-5, name
        assert seconds > 0


# The networks of the batch-size experiment


@pytest.mark.parametrize("norm", NORMS)
def test_gradients_of_the_network_are_those_of_differences(one_thread, norm):
    rng = np.random.default_rng(0)
    network = Network(norm, rng, np.float64)
    images, labels = rng.standard_normal((3, 1, 8, 8)), np.array([1, 7, 7])
    for parameter in network.parameters:  # away from the kinks of ReLU and from the symmetries of the start
        parameter += 0.05 * rng.standard_normal(parameter.shape)
    _, gradients = network.loss_and_gradients(images, labels)
    for parameter, gradient in zip(network.parameters, gradients, strict=True):
        direction = rng.standard_normal(parameter.shape)
        start, step, losses = parameter.copy(), 1e-7, []
        for sign in (1, -1):
            parameter[...] = start + sign * step * direction
            losses.append(network.loss_and_gradients(images, labels)[0])
        parameter[...] = start
        assert (losses[0] - losses[1]) / (2 * step) == pytest.approx((gradient * direction).sum(), rel=1e-4, abs=1e-7)


@pytest.mark.parametrize("norm", NORMS)
def test_training_lowers_the_loss(one_thread, norm):
    pytest.importorskip("sklearn", reason="scikit-learn, which holds the digits, is not installed")
    images, labels = (a[:16] for a in batch_size.digits())
    network = Network(norm, np.random.default_rng(1))
    descent, losses = Descent(network.parameters), []
    for _ in range(50):
        loss, gradients = network.loss_and_gradients(images, labels)
        descent.step(gradients, 0.05)
        losses.append(loss)
    assert losses[-1] < (0.8 if norm == "instance norm" else 0.1) * losses[0]


def test_a_training_is_the_same_again(one_thread):
    rng = np.random.default_rng(0)
    images, labels = rng.standard_normal((24, 1, 8, 8)).astype(np.float32), rng.integers(0, 10, 24)
    one, two = (batch_size.trained("group norm", 8, images, labels, 2, 0.5, np.random.default_rng(1)) for _ in range(2))
    assert all((a == b).all() for a, b in zip(one.parameters, two.parameters, strict=True))
    assert not any((a == b).all() for a, b in zip(one.parameters, Network("group norm", rng).parameters, strict=True))


def test_running_statistics_of_batch_norm_serve_single_images():
    images = np.random.default_rng(0).standard_normal((64, 1, 8, 8)).astype(np.float32)
    norm = NORMS["batch norm"](1, np.float32, 0.0)  # keeps the last batch's alone
    y, _ = norm.forward(images)
    assert np.abs(np.concatenate([norm(image[None]) for image in images]) - y).max() < 1e-3
