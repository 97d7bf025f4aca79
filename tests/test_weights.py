"""Weights by name, out of mappings and files; pickles are refused and never run."""

import pickle
import re
import sys

import numpy as np
import pytest
from command_line import G2, GOOD, Bomb, definition, error_line, normalize, write_npy, write_npz

from numbagn import _weights
from numbagn.command import files


@pytest.mark.parametrize("suffix", ["npz", "safetensors"])
@pytest.mark.parametrize("names", [("weight", "bias"), ("scale", "bias"), ("gamma", "beta")])
def test_weights_by_name(tmp_path, x, suffix, names):
    random = np.random.default_rng(4)
    weight, bias = random.normal(1, 1, (2, 6)).astype(np.float32)
    arrays = {"down.0.norm1." + name: value for name, value in zip(names, (weight, bias), strict=True)}
    arrays["down.0.norm2.weight"] = np.full(6, np.nan, np.float32)
    path = tmp_path / f"unet.{suffix}"
    if suffix == "npz":
        np.savez(path, **arrays)
    else:
        pytest.importorskip("safetensors.numpy").save_file(arrays, path)
    options = ("--num-groups", 2, "--weights", path, "--prefix", "down.0.norm1.")
    assert normalize(tmp_path / "in.npy", tmp_path / "out.npy", *options) == 0
    np.testing.assert_allclose(np.load(tmp_path / "out.npy"), definition(x, 2, weight, bias), rtol=0, atol=5e-6)


def test_weights_of_each_sample(tmp_path, monkeypatch, x):
    weight = np.random.default_rng(5).normal(1, 1, (5, 6)).astype(np.float32)
    np.savez(tmp_path / "w.npz", weight=weight, bias=np.arange(6.0))
    monkeypatch.setattr(files, "BATCH_BYTES", 600)  # two samples
    options = ("--num-groups", 2, "--weights", tmp_path / "w.npz")
    assert normalize(tmp_path / "in.npy", tmp_path / "out.npy", *options) == 0
    expected = definition(x, 2)
    expected = expected * weight[:, :, None, None] + np.arange(6.0)[:, None, None]
    np.testing.assert_allclose(np.load(tmp_path / "out.npy"), expected, rtol=0, atol=5e-6)


def test_find_parameters():
    a, b = np.ones(3), np.zeros(3)
    for mapping, prefix, weight, bias in [
        ({"weight": a, "bias": b, "running_mean": b}, "", a, b),
        ({"n.scale": a, "m.bias": b}, "n.", a, None),
        ({"n.beta": b, "gamma": a}, "n.", None, b),
        ({"n/bias": b}, "n/", None, b),
    ]:
        found = _weights.find_parameters(mapping, prefix)
        assert found[0] is weight
        assert found[1] is bias


@pytest.mark.parametrize(
    ("names", "prefix", "message"),
    [
        (["weight", "gamma"], "", "ambiguous parameter names: found weight, gamma; allowed: one of weight/bias,"),
        (["n.scale", "n.weight", "n.bias"], "n.", "found n.weight, n.bias, n.scale"),
        (["gamma", "bias"], "", "found bias, gamma"),
        (["a.norm.weight", "b.gamma"], "a.norm", "under prefix 'a.norm'; prefixes that have them: 'a.norm.', 'b.'"),
        (["kernel"], "", "without a prefix; names found: 'kernel'"),
        ([], "x.", "names found: none"),
        ([f"l{i}.weight" for i in range(20)], "x.", "'l14.', 'l15.', ... (20 in all)"),
        (["overweight"], "", "names found: 'overweight'"),
    ],
)
def test_find_parameters_refuses(names, prefix, message):
    with pytest.raises(ValueError, match=re.escape(message)) as refusal:
        _weights.find_parameters(dict.fromkeys(names, np.ones(3)), prefix)
    assert "\n" not in str(refusal.value)


def test_load_file_reads_one_layer_and_closes(tmp_path):
    np.savez(tmp_path / "w.npz", **{"a.weight": np.arange(3.0), "b.weight": np.arange(4.0)})
    arrays = _weights.load_file(tmp_path / "w.npz", "a.")
    (tmp_path / "w.npz").write_bytes(b"gone")
    assert list(arrays) == ["a.weight"]
    np.testing.assert_array_equal(arrays["a.weight"], [0, 1, 2])


def test_bfloat16_weights(tmp_path):
    bfloat16 = pytest.importorskip("ml_dtypes").bfloat16
    save_file = pytest.importorskip("safetensors.numpy").save_file
    save_file({"weight": np.array([1, 2.5, -3], bfloat16)}, tmp_path / "w.safetensors")
    found = _weights.read_weights(tmp_path / "w.safetensors")
    np.testing.assert_array_equal(found["weight"].astype(np.float32), [1, 2.5, -3])
    assert found["bias"] is None


def test_safetensors_not_installed(tmp_path, monkeypatch):
    (tmp_path / "w.safetensors").write_bytes(b"")
    monkeypatch.setitem(sys.modules, "safetensors", None)
    with pytest.raises(ImportError, match=r"needs the safetensors package: pip install safetensors"):
        _weights.load_file(tmp_path / "w.safetensors")


# Refusals


BAD_WEIGHTS = {
    "w.pt": (b"PK", (), "ends in '.pt'; allowed: .npz, .safetensors"),
    "missing.npz": (None, (), "missing.npz: No such file or directory"),
    "text.npz": (b"hello", (), "text.npz is not an .npz archive"),
    "array.npz": (write_npy(np.ones(6)), (), "array.npz is not an .npz archive"),
    "cut.npz": (write_npz(weight=np.ones(600))[500:], (), "cut.npz cannot be read"),
    "text.safetensors": (b"hello " * 9, (), "text.safetensors cannot be read"),
    "prefix.npz": (write_npz(**{"n.weight": np.ones(6)}), ("--prefix", "m."), "prefixes that have them: 'n.'"),
    "names.npz": (write_npz(n=np.ones(6)), (), "names found: 'n'"),
    "both.npz": (write_npz(weight=np.ones(6), gamma=np.ones(6)), (), "ambiguous parameter names: found weight, gamma"),
    "length.npz": (write_npz(weight=np.ones(5)), (), "weight"),
    "rows.npz": (write_npz(bias=np.ones((3, 6))), (), "bias has shape (3, 6), one row a sample; allowed: 2 rows"),
}


@pytest.mark.parametrize("name", BAD_WEIGHTS)
def test_bad_weights(tmp_path, capsys, name):
    content, options, message = BAD_WEIGHTS[name]
    if name.endswith(".safetensors"):
        pytest.importorskip("safetensors")
    if content is not None:
        (tmp_path / name).write_bytes(content)
    (tmp_path / "in.npy").write_bytes(GOOD)
    assert normalize(tmp_path / "in.npy", tmp_path / "out.npy", *G2, "--weights", tmp_path / name, *options) == 2
    assert message in error_line(capsys.readouterr().err)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted({"in.npy", name} - {"missing.npz"})


@pytest.mark.parametrize("kind", ["pickle", "npy", "npz"])
def test_pickles_are_refused_and_never_run(tmp_path, capsys, kind):
    bomb = Bomb(tmp_path / "boom")
    objects = np.empty((2, 6), object)
    objects[:] = [[bomb] * 6] * 2
    hostile = {"pickle": pickle.dumps(bomb), "npy": write_npy(objects), "npz": write_npz(weight=objects[0])}[kind]
    (tmp_path / "in.npy").write_bytes(GOOD if kind == "npz" else hostile)
    (tmp_path / "w.npz").write_bytes(hostile)
    assert normalize(tmp_path / "in.npy", tmp_path / "out.npy", *G2, *(("--weights", tmp_path / "w.npz"))) == 2
    message = error_line(capsys.readouterr().err)
    assert "w.npz" in message
    assert normalize(tmp_path / "in.npy", tmp_path / "out.npy", *G2) == (0 if kind == "npz" else 2)
    if kind != "npz":
        assert {"pickle": "is not an .npy file", "npy": "Python objects"}[kind] in error_line(capsys.readouterr().err)
    assert not (tmp_path / "boom").exists()


def test_weights_that_do_not_fit_are_refused_and_results_that_do_not_are_infinite(tmp_path, capsys, x):
    np.savez(tmp_path / "w.npz", weight=np.full(6, 1e300), bias=np.zeros(6))
    arguments = (tmp_path / "in.npy", tmp_path / "out.npy", "--num-groups", 2, "--weights", tmp_path / "w.npz")
    assert normalize(*arguments) == 2
    message = "weight must have values that fit into float32, got 1e+300; take a wider dtype"
    assert error_line(capsys.readouterr().err) == message
    assert (tmp_path / "out.npy").read_bytes() == b"an old file"
    assert normalize(*arguments, "--dtype", "float64") == 0
    np.savez(tmp_path / "w.npz", weight=np.full(6, 1e10))
    assert normalize(*arguments, "--dtype", "float16") == 0
    assert capsys.readouterr().err == ""
    y = np.load(tmp_path / "out.npy")
    assert np.isinf(y).all()
