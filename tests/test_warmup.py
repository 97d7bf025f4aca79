"""What `warmup` made ready is never compiled again, in this process or another."""

import json

import numpy as np
import pytest
from command_line import shell
from numba.core.event import install_recorder

import numbagn
from numbagn.command.main import main


def test_every_call_of_a_kind_is_ready_afterwards():
    shape = (2, 6, 64, 65)
    numbagn.warmup(["float32", np.float64], ["forward", "backward"], activations=["relu"], padded=False)
    with install_recorder("numba:compile") as compilations:
        for dtype in (np.float32, np.float64):
            for x in (np.ones(shape, dtype), np.ones((2, 64, 65, 6), dtype).transpose(0, 3, 1, 2)):
                for cut in (x, x[:, :, :3]):
                    layer = numbagn.GroupNorm(3, 6, activation="relu")
                    y, saved = layer.forward(cut)
                    layer.backward(y, saved)
                    numbagn.group_norm(cut, 3, activation="relu", out=np.empty_like(cut))
    assert compilations.buffer == []


def test_layer_norm_and_padded_batches_are_ready_afterwards():
    """Of any width: what prepares masks is one kernel for all."""
    numbagn.warmup(["float32"], ["forward", "backward"])
    with install_recorder("numba:compile") as compilations:
        layer = numbagn.LayerNorm(24)
        layer.backward(*layer.forward(np.ones((5, 24), np.float32)))
        for C in (4, 6, 64, 96):
            for x in (np.ones((3, C, 20), np.float32), np.ones((3, 20, C), np.float32).swapaxes(1, 2)):
                mask = np.arange(20) < np.array([20, 18, 17]).reshape(3, 1, 1)
                for valid in (
                    {"mask": mask},
                    {"lengths": [20, 18, 17]},
                    {"lengths": [20, 18, 5]},
                    {"lengths": [20, 1, 0]},
                ):
                    y, mean, rstd = numbagn.group_norm_forward(x, 2, **valid)
                    numbagn.group_norm_backward(y, x, mean, rstd, 2, **valid)
    assert compilations.buffer == []


def test_integers_are_made_ready():
    assert {w.dtype for w in numbagn.warmup(["uint8"], ["forward", "backward"], padded=False)} == {"uint8"}
    with install_recorder("numba:compile") as compilations:
        for x in (np.ones((2, 4, 30), np.uint8), np.ones((2, 30, 4), np.uint8).swapaxes(1, 2)):
            y, mean, rstd = numbagn.group_norm_forward(x, 2)
            numbagn.group_norm_backward(y, x, mean, rstd, 2)
    assert compilations.buffer == []


def test_what_was_made_ready_is_told():
    told = []
    done = numbagn.warmup(layouts=["channels_first"], progress=lambda *step: told.append(step))
    assert [(w.op, w.dtype, w.layout, w.activation, w.parallel) for w in done] == [
        ("forward", "float32", "channels_first", None, parallel) for parallel in (False, True)
    ]
    assert all(w.seconds > 0 for w in done)
    assert told == [
        (0, 2, "forward float32 channels first, one thread"),
        (1, 2, "forward float32 channels first, several threads"),
        (2, 2, "done"),
    ]


@pytest.mark.parametrize(
    ("arguments", "kind", "message"),
    [
        ({"dtypes": "float32"}, TypeError, "dtypes must be a list or another iterable, got 'float32'"),
        ({"dtypes": 5}, TypeError, "dtypes must be a list"),
        ({"dtypes": ["int32"]}, TypeError, "dtypes must be of float16, bfloat16, float32, float64"),
        ({"dtypes": ["foo"]}, TypeError, "dtypes must be of"),
        ({"dtypes": [None]}, TypeError, "dtypes must be of"),
        ({"ops": ["forwards"]}, ValueError, "ops must be of 'forward', 'backward', got 'forwards'"),
        ({"layouts": ["NCHW"]}, ValueError, "layouts must be of 'channels_first', 'channels_last', got 'NCHW'"),
        ({"activations": ["mish"]}, ValueError, "activation must be one of None"),
        ({"activations": "relu"}, TypeError, "activations must be a list"),
        ({"skip": 1}, TypeError, "skip must be True or False, got 1"),
        ({"padded": None}, TypeError, "padded must be True or False, got None"),
    ],
)
def test_warmup_refuses(arguments, kind, message):
    with install_recorder("numba:compile") as compilations, pytest.raises(kind) as refusal:
        numbagn.warmup(**arguments)
    assert str(refusal.value).startswith(message)
    assert compilations.buffer == []


def test_the_command_fills_the_cache_for_later_processes(tmp_path):
    places = {"NUMBA_CACHE_DIR": str(tmp_path), "NUMBA_NUM_THREADS": "2"}
    done = shell("warmup", "--dtypes", "float32", "--layouts", "channels_first", "--no-padded", **places)
    assert (done.returncode, done.stdout.split()[:3]) == (0, ["2", "kernels", "ready"])
    assert [line.split("]")[0] for line in done.stderr.splitlines()] == ["[0/2", "[1/2", "[2/2"]
    code = """
import json
import numpy as np, numbagn
from numba.core.event import install_recorder
with install_recorder("numba:compile") as compilations:
    numbagn.group_norm(np.ones((1, 4, 4), np.float32), 2)
    numbagn.group_norm(np.ones((4, 8, 99999), np.float32), 2)
print(json.dumps(len(compilations.buffer)))
"""
    later = shell(code=code, **places)
    assert (later.returncode, later.stderr, json.loads(later.stdout)) == (0, "", 0)


def test_the_command_fails_where_nothing_can_be_kept(monkeypatch, capsys, tmp_path):
    monkeypatch.setenv("NUMBAGN_CACHE", "0")
    assert main(["warmup", "--quiet"]) == 2
    assert capsys.readouterr().err == "numbagn: error: NUMBAGN_CACHE is 0, so there is no cache to fill\n"
    (tmp_path / "file").write_bytes(b"")
    (tmp_path / "__pycache__").write_bytes(b"")
    places = {"NUMBA_CACHE_DIR": str(tmp_path / "file"), "NUMBA_CACHE_LOCATOR_CLASSES": "UserProvidedCacheLocator"}
    done = shell("warmup", "--quiet", "--layouts", "channels_first", NUMBAGN_CACHE="1", **places)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("numbagn: error: there is no folder to keep compiled kernels in")
    assert done.stderr.count("\n") == 1


def test_the_command_names_what_is_wrong(capsys):
    assert main(["warmup", "--ops", "sideways"]) == 2
    said = capsys.readouterr().err
    assert said == "numbagn: error: ops must be of 'forward', 'backward', got 'sideways'\n"
