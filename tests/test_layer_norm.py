"""Layer norm and instance norm: torch's semantics, the definition's numbers, no copies of evenly spaced rows."""

import numpy as np
import pytest
from cases import DTYPES, close, normal, same_bits
from test_peers import array, near, tensor, torch

import numbagn
from numbagn import reference
from numbagn.calls import rows

# (shape, dimensions of a row): leading dimensions 0 to 3, rows of rank 1 to 3, shorter than a vector and several parts
SHAPES = {
    "no_leading": ((37,), 1),
    "no_leading_rank_2": ((5, 7), 2),
    "one_element": ((4, 1), 1),
    "rows": ((9, 64), 1),
    "odd_rows": ((19, 67), 1),
    "rank_2": ((5, 6, 11), 2),
    "sequence": ((2, 5, 96), 1),
    "rank_3": ((3, 2, 4, 5), 3),
    "three_leading": ((2, 3, 4, 33), 1),
    "three_leading_rank_2": ((2, 1, 3, 4, 6), 2),
    "many_rows": ((300, 24), 1),
    "long_rows": ((3, 20001), 1),
    "rows_of_parts": ((2, 3, 70001), 1),
}
TOLERANCES = {"float16": 4e-3, "bfloat16": 3.2e-2, "float32": 5e-6, "float64": 1e-13}
OPTIONS = {
    "plain": (),
    "affine": ("weight", "bias"),
    "bias_silu": ("bias", "silu"),
    "skip_residual_gelu": ("weight", "bias", "skip", "residual", "gelu"),
}


def make(rng, options, x, rank, dtype):
    """Keyword arguments by name; one that is none of them is the activation."""
    shapes = dict.fromkeys(("weight", "bias"), x.shape[x.ndim - rank :]) | dict.fromkeys(("skip", "residual"), x.shape)
    made = {name: normal(rng, shapes[name], dtype) for name in options if name in shapes}
    activation = [name for name in options if name not in shapes]
    return made | ({"activation": activation[0]} if activation else {})


def flattened(value, rows, elements):
    """An argument as the definition of group norm takes it, rows as samples."""
    if not isinstance(value, np.ndarray):
        return value
    return value.reshape(rows, elements) if value.size == rows * elements else value.reshape(elements)


def definition(x, rank, **arguments):
    """(y, mean, rstd) in float64, by the definition of group norm with a channel for each element."""
    elements = int(np.prod(x.shape[x.ndim - rank :]))
    flat = {k: flattened(v, x.size // elements, elements) for k, v in arguments.items()}
    if x.size == elements:  # one row: a parameter is not one of samples
        flat |= {k: v.reshape(elements) for k, v in arguments.items() if k in ("weight", "bias")}
    y, mean, rstd = reference.group_norm(x.reshape(-1, elements), 1, **flat)
    lead = x.shape[: x.ndim - rank]
    return y.reshape(x.shape), mean.reshape(lead), rstd.reshape(lead)


def definition_backward(dy, x, rank, **arguments):
    """(dx, dweight, dbias, dresidual) in float64."""
    elements = int(np.prod(x.shape[x.ndim - rank :]))
    flat = {k: flattened(v, x.size // elements, elements) for k, v in arguments.items()}
    if x.size == elements:
        flat |= {k: v.reshape(elements) for k, v in arguments.items() if k in ("weight", "bias")}
    dx, dweight, dbias, dresidual = reference.group_norm_backward(
        dy.reshape(-1, elements), x.reshape(-1, elements), 1, **flat
    )
    shape = x.shape[x.ndim - rank :]
    dresidual = None if dresidual is None else dresidual.reshape(x.shape)
    return dx.reshape(x.shape), dweight.reshape(shape), dbias.reshape(shape), dresidual


def layer_of(x, rank, **arguments):
    """A layer with these parameters, and the other arguments."""
    weight, bias, activation = (arguments.pop(name, None) for name in ("weight", "bias", "activation"))
    layer = numbagn.LayerNorm(x.shape[x.ndim - rank :], activation=activation)
    layer.weight, layer.bias = weight, bias
    return layer, arguments


# ------------------------------------------------------------------------------------------------------------- numbers


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_layer_norm_and_its_gradients_are_the_definition_s(rng, one_thread, dtype, options):
    for shape, rank in SHAPES.values():
        x, dy = normal(rng, shape, DTYPES[dtype], offset=0.3), normal(rng, shape, DTYPES[dtype])
        arguments = make(rng, OPTIONS[options], x, rank, DTYPES[dtype])
        want, mean, rstd = definition(x, rank, **arguments)
        for _ in range(2):  # the second by the plan of the first
            y = numbagn.layer_norm(x, shape[len(shape) - rank :], **arguments)
            assert (y.dtype, y.shape) == (x.dtype, shape)
            close(y, want, TOLERANCES[dtype])

        layer, operands = layer_of(x, rank, **arguments)
        wanted = definition_backward(dy, x, rank, **arguments)
        for _ in range(2):
            forward, saved = layer.forward(x, **operands)
            assert same_bits(forward, y)
            close(saved.mean, mean, 1e-6)
            np.testing.assert_allclose(saved.rstd, rstd, rtol=1e-6)
            got = layer.backward(dy, saved)
            assert len(got) == (3 if wanted[3] is None else 4)
            for i, (g, w) in enumerate(zip(got, wanted, strict=False)):
                # the terms of dx all but cancel in rows of few elements
                scale = max(1.0, np.abs(w).max(), rstd.max() if i == 0 else 1.0)
                close(g.astype(np.float64) / scale, w / scale, TOLERANCES[dtype])


@pytest.mark.parametrize("dtype", DTYPES)
def test_torch_layer_norm_and_autograd(rng, one_thread, dtype):
    layer_norm = torch().nn.functional.layer_norm
    for shape, rank in SHAPES.values():
        x, dy = normal(rng, shape, DTYPES[dtype], offset=0.2), normal(rng, shape, DTYPES[dtype])
        row = shape[len(shape) - rank :]
        weight, bias = (normal(rng, row, DTYPES[dtype], offset=0.5) for _ in range(2))
        theirs = [tensor(v.copy()).requires_grad_() for v in (x, weight, bias)]
        want = layer_norm(theirs[0], row, theirs[1], theirs[2], eps=1e-3)
        want.backward(tensor(dy))
        layer = numbagn.LayerNorm(row, 1e-3, dtype=DTYPES[dtype], weight_init=weight, bias_init=bias)
        y, saved = layer.forward(x)
        close(y, array(want).astype(np.float64), TOLERANCES[dtype])
        for g, parameter in zip(layer.backward(dy, saved), theirs, strict=True):
            assert (g.dtype, g.shape) == (x.dtype, tuple(parameter.shape))
            near(g, array(parameter.grad), TOLERANCES[dtype])


@pytest.mark.parametrize("offset", [0.0, 1e4, 1e6])
def test_float32_rows_at_any_offset(rng, one_thread, offset):
    for shape in ((40, 768), (7, 1000), (2, 40000)):
        x, dy = normal(rng, shape, np.float32, offset=offset), normal(rng, shape, np.float32)
        weight = normal(rng, shape[1], np.float32)
        close(numbagn.layer_norm(x, shape[1]), definition(x, 1)[0], 2e-6)
        layer, _ = layer_of(x, 1, weight=weight)
        _, saved = layer.forward(x)
        for g, w in zip(layer.backward(dy, saved), definition_backward(dy, x, 1, weight=weight), strict=False):
            assert np.abs(g - w).max() <= 1e-5 * np.abs(w).max()


def test_gradients_are_float64_differences(rng, one_thread):
    x, dy = rng.standard_normal((3, 4, 5)), rng.standard_normal((3, 4, 5))
    weight, bias, residual = rng.standard_normal((4, 5)), rng.standard_normal((4, 5)), rng.standard_normal(x.shape)
    layer, _ = layer_of(x, 2, weight=weight, bias=bias, activation="silu")
    _, saved = layer.forward(x, residual=residual)
    gradients = layer.backward(dy, saved)
    for value, gradient in zip((x, weight, bias, residual), gradients, strict=True):
        for index in ((0,) * value.ndim, (-1,) * value.ndim):
            kept, differences = value[index], []
            for step in (1e-5, -1e-5):
                value[index] = kept + step
                differences.append((layer(x, residual=residual) * dy).sum())
            value[index] = kept
            assert abs((differences[0] - differences[1]) / 2e-5 - gradient[index]) < 1e-7


@pytest.mark.parametrize("layout", ["C", "last"])
def test_instance_norm_is_group_norm_of_single_channels(rng, one_thread, layout):
    x = normal(rng, (2, 6, 5, 7), np.float32)
    x = np.ascontiguousarray(np.moveaxis(x, 1, -1)) if layout == "last" else x
    axis = -1 if layout == "last" else 1
    weight, bias = normal(rng, 6, np.float32), normal(rng, (2, 6), np.float32)
    options = {"skip": x[::-1].copy(), "residual": 2 * x, "activation": "relu", "channel_axis": axis}
    want, mean, rstd = numbagn.group_norm_forward(x, 6, weight, bias, 0.1, **options)
    out = np.empty_like(x)
    assert same_bits(numbagn.instance_norm(x, weight, bias, 0.1, **options), want)
    assert numbagn.instance_norm(x, weight, bias, 0.1, out=out, **options) is out
    assert same_bits(out, want)
    layer = numbagn.InstanceNorm(6, 0.1, weight_init=weight, channel_axis=axis, activation="relu")
    layer.bias = bias
    operands = {"skip": options["skip"], "residual": options["residual"]}
    y, saved = layer.forward(x, **operands)
    assert same_bits(y, want)
    assert same_bits(layer(x, **operands), want)
    gradients = numbagn.group_norm_backward(x, x, mean, rstd, 6, weight, bias, **options)
    assert all(map(same_bits, layer.backward(x, saved), gradients))


def test_torch_instance_norm(rng, one_thread):
    x = normal(rng, (3, 5, 6, 7), np.float32, offset=2.0)
    weight, bias = normal(rng, 5, np.float32), normal(rng, 5, np.float32)
    want = torch().nn.functional.instance_norm(tensor(x), weight=tensor(weight), bias=tensor(bias))
    close(numbagn.instance_norm(x, weight, bias), array(want).astype(np.float64), 5e-6)


# -------------------------------------------------------------------------------------------------------------- memory

# name: (a view of 4 x 6 rows of 5 x 8 elements, whether it is read in place)
VIEWS = {
    "contiguous": (lambda make: make(4, 6, 5, 8), True),
    "slices of rows": (lambda make: make(4, 6, 9, 8)[:, :, 2:7], True),
    "every other row": (lambda make: make(4, 12, 5, 8)[:, ::2], True),
    "rows backwards": (lambda make: make(4, 6, 5, 8)[::-1, ::-1], True),
    "time first seen batch first": (lambda make: make(6, 4, 5, 8).transpose(1, 0, 2, 3), True),
    "one row again and again": (lambda make: np.broadcast_to(make(5, 8), (4, 6, 5, 8)), True),
    "rows unevenly spaced": (lambda make: make(4, 7, 5, 8)[:, :6], False),
    "elements with gaps": (lambda make: make(4, 6, 5, 16)[..., ::2], False),
    "elements backwards": (lambda make: make(4, 6, 5, 8)[..., ::-1], False),
    "transposed rows": (lambda make: make(4, 6, 8, 5).swapaxes(2, 3), False),
    "Fortran order": (lambda make: make(8, 5, 6, 4).T, False),
    "unaligned": (lambda make: np.frombuffer(b"x" + make(4, 6, 5, 8).tobytes(), np.float32, offset=1), False),
}


@pytest.mark.parametrize("name", VIEWS)
def test_any_memory_gives_the_same_bits(rng, one_thread, name):
    view, in_place = VIEWS[name]
    x, dy, skip = (view(lambda *shape: normal(rng, shape, np.float32)).reshape(4, 6, 5, 8) for _ in range(3))
    if name == "unaligned":
        assert not x.flags.aligned
    weight = normal(rng, (5, 8), np.float32)
    layer, _ = layer_of(x, 2, weight=weight, activation="silu")
    want, kept = layer.forward(np.ascontiguousarray(x), skip=np.ascontiguousarray(skip))
    gradients = layer.backward(np.ascontiguousarray(dy), kept)
    assert (rows.rows(x, (5, 8)).x is x or np.shares_memory(rows.rows(x, (5, 8)).x, x)) == in_place
    for _ in range(2):
        y, saved = layer.forward(x, skip=skip)
        assert y.strides == np.empty_like(x).strides
        for got, expected in zip((y, saved.mean, saved.rstd), (want, kept.mean, kept.rstd), strict=True):
            assert same_bits(got, expected)
        got = layer.backward(dy, saved)
        assert got[0].strides == np.empty_like(x).strides
        assert same_bits(got[0], gradients[0])
        for g, expected in zip(got[1:], gradients[1:], strict=True):  # samples are added up in the order of memory
            near(g, expected, 1e-6)
        alone = numbagn.layer_norm(x, (5, 8))
        assert same_bits(alone, numbagn.layer_norm(np.ascontiguousarray(x), (5, 8)))


@pytest.mark.parametrize(
    "name", ["contiguous", "slices of rows", "every other row", "rows backwards", "transposed rows"]
)
def test_out_of_any_memory(rng, one_thread, name):
    x = normal(rng, (4, 6, 5, 8), np.float32)
    want = numbagn.layer_norm(x, (5, 8))
    for _ in range(2):
        memory = []
        out = VIEWS[name][0](lambda *shape: memory.append(np.full(shape, 7, np.float32)) or memory[0])  # noqa: B023
        assert numbagn.layer_norm(x, (5, 8), out=out) is out
        assert same_bits(np.ascontiguousarray(out), want)
        assert (memory[0] == 7).sum() == memory[0].size - out.size


def test_in_place_and_overlapping_out(rng, one_thread):
    memory = normal(rng, 200, np.float32)
    for start in (0, 8, 16, 20, 100):
        buffer = memory.copy()
        x, out = buffer[16:80].reshape(8, 8), buffer[start : start + 64].reshape(8, 8)
        want = numbagn.layer_norm(x.copy(), 8, skip=x.copy())
        assert numbagn.layer_norm(x, 8, skip=x, out=out) is out
        assert same_bits(out.copy(), want), start


def test_empty_rows_and_no_rows(one_thread):
    for shape, rank in (((0, 8), 1), ((3, 0), 1), ((2, 0, 4), 2), ((0, 3, 4), 1), ((0,), 1)):
        x = np.ones(shape, np.float32)
        layer, _ = layer_of(x, rank)
        y, saved = layer.forward(x)
        assert same_bits(y, x)
        assert saved.mean.shape == saved.rstd.shape == shape[: len(shape) - rank]
        dx, dweight, dbias = layer.backward(x, saved)
        assert same_bits(dx, x)
        assert dweight.shape == dbias.shape == shape[len(shape) - rank :]
        assert not dweight.any()
    assert numbagn.instance_norm(np.ones((2, 0, 3), np.float32)).shape == (2, 0, 3)


def test_a_row_alone_has_the_bits_it_has_among_others(rng, one_thread):
    for shape in ((70, 96), (5, 20001)):
        x, dy = normal(rng, shape, np.float32), normal(rng, shape, np.float32)
        weight, bias = normal(rng, shape[1], np.float32), normal(rng, shape[1], np.float32)
        layer, _ = layer_of(x, 1, weight=weight, bias=bias, activation="gelu")
        y, saved = layer.forward(x)
        dx = layer.backward(dy, saved)[0]
        for n in (0, shape[0] // 2, shape[0] - 1):
            for part in (n, slice(n, n + 1)):  # with no leading dimension, and with one
                alone, kept = layer.forward(x[part])
                assert same_bits(alone, y[part])
                assert same_bits(layer.backward(dy[part], kept)[0], dx[part])
