"""Refused input: the error names the argument, what came and what is allowed, in one line, and nothing is written."""

import fractions

import ml_dtypes
import numpy as np
import pytest

import numbagn

N, C, G, SHAPE = 2, 8, 4, (2, 8, 6)
FLOATS = "float16, bfloat16, float32, float64"
INTEGERS = ("uint8", "int8", "uint16", "int16")  # only x may be of these


class Tensor:
    """An array of some other library, as far as NumPy can tell."""

    def __array__(self, dtype=None, copy=None):
        return np.zeros(SHAPE, np.float32)


class Ours(np.ndarray):
    """A subclass: it may carry a meaning that would be lost."""


def array(shape=SHAPE, dtype=np.float32):
    return np.ones(shape, dtype)


def read_only(a):
    a.flags.writeable = False
    return a


# name: (arguments that differ from those of a good call, exception, what the message says after the argument's name)
ARRAYS = {
    "a list": ([[[1.0] * 6] * 8] * 2, TypeError, "must be a numpy.ndarray, got builtins.list; convert it with numpy"),
    "a tuple": ((1.0, 2.0), TypeError, "must be a numpy.ndarray, got builtins.tuple; convert it with numpy.asarray"),
    "a number": (3.0, TypeError, "must be a numpy.ndarray, got builtins.float"),
    "text": ("x.npy", TypeError, "must be a numpy.ndarray, got builtins.str"),
    "a NumPy number": (np.float32(3), TypeError, "must be a numpy.ndarray, got numpy.float32; convert it with numpy"),
    "an object with __array__": (Tensor(), TypeError, "Tensor; convert it with numpy.asarray"),
    "a masked array": (np.ma.masked_array(array(), array() > 2), TypeError, "MaskedArray; use its .filled(...)"),
    "an array of records": (array().view(np.recarray), TypeError, "must be a numpy.ndarray, got numpy"),
    "a subclass": (array().view(Ours), TypeError, "must be a numpy.ndarray, got test_bad_input.Ours"),
    **{
        f"dtype {dtype}": (array(dtype=dtype), TypeError, f"must have dtype {FLOATS}, got {np.dtype(dtype)}")
        for dtype in (
            "bool", *INTEGERS, "int32", "uint32", "int64", "uint64", "complex64", "complex128", "longdouble", "U3",
            "S3", "datetime64[s]", "f4,i2", "T",
        )
        if np.dtype(dtype) != np.float64  # longdouble, where that is the same
    },
    "objects": (array().astype(object), TypeError, f"must have dtype {FLOATS}, got object"),
    "float8": (array(dtype=ml_dtypes.float8_e4m3fn), TypeError, f"must have dtype {FLOATS}, got float8_e4m3fn"),
}  # fmt: skip

X = {
    "x is None": ({"x": None}, TypeError, "must be a numpy.ndarray, got builtins.NoneType"),
    "x of no dimension": ({"x": array(())}, ValueError, "must have at least 2 dimensions (N, C, ...), got shape ()"),
    "x of one dimension": ({"x": array(8)}, ValueError, "must have at least 2 dimensions (N, C, ...), got shape (8,)"),
}

NUM_GROUPS = {
    "does not divide": ({"num_groups": 3}, ValueError, "must divide the 8 channels: one of 1, 2, 4, 8; got 3"),
    "zero": ({"num_groups": 0}, ValueError, "must divide the 8 channels: one of 1, 2, 4, 8; got 0"),
    "negative": ({"num_groups": -1}, ValueError, "must divide the 8 channels: one of 1, 2, 4, 8; got -1"),
    "more than channels": ({"num_groups": 16}, ValueError, "must divide the 8 channels: one of 1, 2, 4, 8; got 16"),
    "beyond 64 bits": ({"num_groups": 1 << 70}, ValueError, "one of 1, 2, 4, 8; got 1180591620717411303424"),
    "no channels": ({"x": array((2, 0, 6)), "num_groups": 0}, ValueError, "must divide the 0 channels"),
    "other axis": ({"channel_axis": -1}, ValueError, "must divide the 6 channels: one of 1, 2, 3, 6; got 4"),
    "float": ({"num_groups": 4.0}, TypeError, "must be an integer, got 4.0"),
    "NumPy float": ({"num_groups": np.float64(4)}, TypeError, "must be an integer, got np.float64(4.0)"),
    "bool": ({"num_groups": True}, TypeError, "must be an integer, got True"),
    "NumPy bool": ({"num_groups": np.True_}, TypeError, "must be an integer, got np.True_"),
    "text": ({"num_groups": "4"}, TypeError, "must be an integer, got '4'"),
    "None": ({"num_groups": None}, TypeError, "must be an integer, got None"),
    "an array in its place": ({"num_groups": array((8, 8))}, TypeError, "must be an integer, got array([[1., 1., 1"),
}

CHANNEL_AXIS = {
    "batch axis": ({"channel_axis": 0}, ValueError, "must not be the batch axis 0, got 0; give a single"),
    "batch axis from the end": ({"channel_axis": -3}, ValueError, "must not be the batch axis 0, got -3"),
    "too large": ({"channel_axis": 3}, ValueError, "must be from 1 to 2 or negative for 3 dimensions, got 3"),
    "too small": ({"channel_axis": -4}, ValueError, "must be from 1 to 2 or negative for 3 dimensions, got -4"),
    "float": ({"channel_axis": 1.0}, TypeError, "must be an integer, got 1.0"),
    "bool": ({"channel_axis": True}, TypeError, "must be an integer, got True"),
    "None": ({"channel_axis": None}, TypeError, "must be an integer, got None"),
    "text": ({"channel_axis": "C"}, TypeError, "must be an integer, got 'C'"),
}

ACTIVATION = {
    "unknown": ({"activation": "tanh"}, ValueError, "one of None, 'relu', 'silu', 'gelu', 'gelu_tanh', got 'tanh'"),
    "capitals": ({"activation": "SiLU"}, ValueError, "one of None, 'relu', 'silu', 'gelu', 'gelu_tanh', got 'SiLU'"),
    "empty": ({"activation": ""}, ValueError, "one of None, 'relu', 'silu', 'gelu', 'gelu_tanh', got ''"),
    "two lines": ({"activation": "re\nlu"}, ValueError, r"got 're\nlu'"),
    "number": ({"activation": 1}, TypeError, "must be None or a string, got 1"),
    "bool": ({"activation": False}, TypeError, "must be None or a string, got False"),
    "function": ({"activation": np.tanh}, TypeError, "must be None or a string, got <ufunc 'tanh'>"),
    "list": ({"activation": ["relu"]}, TypeError, "must be None or a string, got ['relu']"),
    "array": ({"activation": array((3, 3))}, TypeError, "must be None or a string, got array([[1., 1., 1.], ["),
}

EPS = {
    "negative": ({"eps": -1e-5}, ValueError, "must be finite and not negative, got -1e-05"),
    "NaN": ({"eps": np.nan}, ValueError, "must be finite and not negative, got nan"),
    "infinite": ({"eps": np.inf}, ValueError, "must be finite and not negative, got inf"),
    "beyond float64": ({"eps": 10**400}, ValueError, "must be finite and not negative, got 1000"),
    "fraction beyond float64": ({"eps": fractions.Fraction(10**400)}, ValueError, "must be finite and not negative"),
    "text": ({"eps": "1e-5"}, TypeError, "must be a real number, got '1e-5'"),
    "None": ({"eps": None}, TypeError, "must be a real number, got None"),
    "bool": ({"eps": True}, TypeError, "must be a real number, got True"),
    "complex": ({"eps": 1e-5j}, TypeError, "must be a real number, got 1e-05j"),
    "array": ({"eps": array((2, 2))}, TypeError, "must be a real number, got array([[1., 1.], [1., 1.]]"),
}

# shapes refused for weight and bias, for operands of x's shape, for the statistics
PARAMETER_SHAPES = ((), (7,), (9,), (1,), (4,), (2, 4), (1, 8), (3, 8), (8, 2), (8, 1), (1, 8, 1), (2, 8, 1), (0,))
OPERAND_SHAPES = ((), (6,), (2, 8), (1, 8, 6), (2, 8, 1), (2, 6, 8), (3, 8, 6), (2, 8, 6, 1), (2, 8, 0))
STATISTICS_SHAPES = ((), (4,), (8,), (2, 8), (2, 1), (4, 2), (2, 4, 1), (3, 4))

OUT = {
    "a list": ([1.0], TypeError, "must be a numpy.ndarray, got builtins.list"),
    "masked": (np.ma.masked_array(array(), array() > 2), TypeError, "must be a numpy.ndarray, got numpy.ma.Masked"),
    "subclass": (array().view(Ours), TypeError, "must be a numpy.ndarray, got test_bad_input.Ours"),
    "text": ("out.npy", TypeError, "must be a numpy.ndarray, got builtins.str"),
    **{
        f"dtype {dtype}": (array(dtype=dtype), TypeError, f"must have x's dtype float32, got {np.dtype(dtype)}")
        for dtype in ("float64", "float16", ml_dtypes.bfloat16, "int8", ">f8", "longdouble", "object")
    },
    **{
        f"shape {shape}": (array(shape), ValueError, f"must have x's shape (2, 8, 6), got {shape}")
        for shape in OPERAND_SHAPES
    },
    "read-only": (read_only(array()), ValueError, "must be writable, got a read-only array"),
    "broadcast": (np.broadcast_to(array((2, 8, 1)), SHAPE), ValueError, "must be writable, got a read-only array"),
}


def rows(tables):
    """(argument, arguments that differ, exception, message) of all tables, as parameters with names."""
    return [
        pytest.param(argument, change, kind, message, id=f"{argument}: {name}")
        for argument, table in tables.items()
        for name, (change, kind, message) in table.items()
    ]


def shapes(argument, refused, allowed):
    return {str(s): ({argument: array(s)}, ValueError, f"must have {allowed}, got {s}") for s in refused}


def kinds(argument):
    return {name: ({argument: value}, kind, message) for name, (value, kind, message) in ARRAYS.items()}


COMMON = {
    "x": X
    | {
        name: (change, kind, message.replace(FLOATS, ", ".join((FLOATS, *INTEGERS))))
        for name, (change, kind, message) in kinds("x").items()
        if name.removeprefix("dtype ") not in INTEGERS
    },
    "num_groups": NUM_GROUPS,
    "channel_axis": CHANNEL_AXIS,
    "activation": ACTIVATION,
    "weight": kinds("weight") | shapes("weight", PARAMETER_SHAPES, "shape (8,) or (2, 8)"),
    "bias": kinds("bias") | shapes("bias", PARAMETER_SHAPES, "shape (8,) or (2, 8)"),
    "skip": kinds("skip") | shapes("skip", OPERAND_SHAPES, "x's shape (2, 8, 6)"),
    "residual": kinds("residual") | shapes("residual", OPERAND_SHAPES, "x's shape (2, 8, 6)"),
    "out": {name: ({"out": value}, kind, message) for name, (value, kind, message) in OUT.items()},
}
FORWARD_ONLY = {"eps": EPS}
BACKWARD_ONLY = {
    "dy": {"None": ({"dy": None}, TypeError, "must be a numpy.ndarray, got None")}
    | kinds("dy")
    | shapes("dy", OPERAND_SHAPES, "x's shape (2, 8, 6)"),
    "mean": {"None": ({"mean": None}, TypeError, "must be a numpy.ndarray, got builtins.NoneType")}
    | kinds("mean")
    | shapes("mean", STATISTICS_SHAPES, "shape (2, 4)"),
    "rstd": {"None": ({"rstd": None}, TypeError, "must be a numpy.ndarray, got builtins.NoneType")}
    | kinds("rstd")
    | shapes("rstd", STATISTICS_SHAPES, "shape (2, 4)"),
}


def good_call():
    """The arguments of a call that all functions take, eps and the gradients' aside."""
    return {
        "x": np.arange(96, dtype=np.float32).reshape(SHAPE),
        "num_groups": G,
        "weight": np.arange(8, dtype=np.float32),
        "bias": array((2, 8)),
        "skip": array(),
        "residual": array(),
        "activation": "silu",
        "out": np.full(SHAPE, 7, np.float32),
    }


def refused(function, good, change, argument, kind, message):
    """Call with one argument changed; check the error, and that no array was written to."""
    arguments = good | change
    arrays = {k: v for k, v in arguments.items() if isinstance(v, np.ndarray)}
    before = {k: v.tobytes() for k, v in arrays.items()}
    with pytest.raises((TypeError, ValueError)) as refusal:
        function(**arguments)
    said = str(refusal.value)
    assert type(refusal.value) is kind
    assert said.startswith(argument + " must ")
    assert message in said
    assert "\n" not in said
    assert len(said) <= 200
    assert {k: v.tobytes() for k, v in arrays.items()} == before


def test_the_good_call_is_good(one_thread):
    good = good_call()
    y, mean, rstd = numbagn.group_norm_forward(**good)
    numbagn.group_norm_backward(dy=y.copy(), mean=mean, rstd=rstd, **good)


@pytest.mark.parametrize(("argument", "change", "kind", "message"), rows(COMMON | FORWARD_ONLY))
def test_forward_refuses(argument, change, kind, message):
    for function in (numbagn.group_norm, numbagn.group_norm_forward):
        refused(function, good_call(), change, argument, kind, message)


@pytest.mark.parametrize(("argument", "change", "kind", "message"), rows(COMMON | BACKWARD_ONLY))
def test_backward_refuses(argument, change, kind, message):
    good = good_call() | {"dy": array(), "mean": np.zeros((N, G)), "rstd": np.ones((N, G))}
    refused(numbagn.group_norm_backward, good, change, argument, kind, message)


@pytest.mark.parametrize(("argument", "change", "kind", "message"), rows({k: COMMON[k] for k in ("x", "skip", "out")}))
def test_layer_refuses(argument, change, kind, message):
    layer = numbagn.GroupNorm(G, C)
    good = {k: v for k, v in good_call().items() if k in ("x", "skip", "residual", "out")}
    for function in (layer, layer.forward):
        refused(function, good, change, argument, kind, message)
    assert layer.weight.tolist() == [1] * C
    assert layer.bias.tolist() == [0] * C


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize(("shape", "axis"), [((2, 16, 6), 1), ((2, 4, 6), 1), ((2, 12, 6, 8), -3), ((2, 8, 12), 2)])
def test_layer_refuses_another_number_of_channels(shape, axis, affine):
    layer = numbagn.GroupNorm(G, C, affine=affine, channel_axis=axis)
    out = np.full(shape, 7, np.float32)
    message = f"must have 8 channels at axis {axis}, got shape {shape}"
    for function in (layer, layer.forward):
        refused(function, {"x": array(shape), "out": out}, {}, "x", ValueError, message)


def test_num_groups_lists_the_divisors_also_of_many_channels():
    with pytest.raises(ValueError, match=r"5120 channels: one of 1, 2, 4, .*, 1280, 2560, 5120; got 3"):
        numbagn.group_norm(array((1, 5120)), 3)
    with pytest.raises(ValueError, match=r"100003 channels: a positive divisor of 100003; got 2"):
        numbagn.group_norm(array((1, 100003)), 2)


@pytest.mark.parametrize(
    "call",
    [
        lambda x: numbagn.group_norm(x),
        lambda x: numbagn.group_norm(x, 4, None, None, 1e-5, 1),
        lambda x: numbagn.group_norm(x, 4, channels=1),
        lambda x: numbagn.group_norm(x, 4, act="relu"),
        lambda x: numbagn.group_norm_backward(x, x, 4),
        lambda x: numbagn.group_norm_backward(x, x, array((2, 4)), array((2, 4)), 4, eps=1e-5),
    ],
)
def test_wrong_signatures_are_python_errors(call):
    with pytest.raises(TypeError, match=r"^group_norm(_backward)?\(\) "):
        call(array())
