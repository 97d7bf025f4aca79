"""Weights and biases by name: out of a mapping, an .npz archive or a .safetensors file. Pickles are never read."""

import os
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

# The prefix of a layer is what stands before its parameters' names, separator included: "down.0.norm1.". The spellings
# of these names are those of PyTorch, MLX and ONNX Runtime; of Flax and ONNX; of Keras and the papers.
SPELLINGS = (("weight", "bias"), ("scale", "bias"), ("gamma", "beta"))
_LEAVES = tuple(dict.fromkeys(leaf for pair in SPELLINGS for leaf in pair))
_ALLOWED = "weight/bias, scale/bias or gamma/beta"


def read_weights(path: str | os.PathLike[str], prefix: str = "") -> dict[str, Any]:
    """Read one layer's "weight" and "bias" from a file; one of them may be None, not both."""
    arrays = load_file(path, prefix)
    try:
        weight, bias = find_parameters(arrays, prefix)
    except ValueError as err:
        raise ValueError(f"weights file {path}: {err}") from None
    return {"weight": weight, "bias": bias}


def load_file(path: str | os.PathLike[str], prefix: str = "") -> dict[str, Any]:
    """Read the arrays of an ``.npz`` archive or a ``.safetensors`` file by name, and close it.

    Only those whose names start with the prefix are read: one layer of a large file. Where there are none, the error
    tells which prefixes there are.
    """
    path = Path(path)
    suffix = path.suffix.lower()
    if suffix not in (".npz", ".safetensors"):
        raise ValueError(f"weights file {path} ends in {suffix!r}; allowed: .npz, .safetensors")
    with path.open("rb"):  # one plain OSError for a missing or unreadable file, whatever the format's own reader says
        pass
    names, arrays = _load_npz(path, prefix) if suffix == ".npz" else _load_safetensors(path, prefix)
    if not arrays:
        raise ValueError(f"weights file {path}: {_not_found(names, prefix)}")
    return arrays


def find_parameters(mapping: Mapping[str, Any], prefix: str = "") -> tuple[Any, Any]:
    """Find a layer's weight and bias in a mapping, as they stand there; one of them may be None, not both.

    Names that do not start with the prefix are passed over. A ValueError where no known name does, or where the names
    belong to more than one spelling, so that it is not clear which to take.
    """
    given = entries(mapping, prefix)
    if not any(leaf in given for leaf in _LEAVES):
        raise ValueError(_not_found(entries(mapping), prefix))
    weight, bias = spelling_of(given, prefix)
    return given.get(weight), given.get(bias)


def spelling_of(given: Iterable[str], prefix: str = "") -> tuple[str, str]:
    """Give the names of weight and bias in the spelling used; a ValueError where several are mixed."""
    present = [leaf for leaf in _LEAVES if leaf in given]
    for pair in SPELLINGS:
        if set(present) <= set(pair):
            return pair
    names = ", ".join(prefix + leaf for leaf in present)
    raise ValueError(f"ambiguous parameter names: found {names}; allowed: one of {_ALLOWED}, not a mixture")


def entries(mapping: Mapping[Any, Any], prefix: str = "") -> dict[str, Any]:
    """Give what stands under a prefix, by the rest of its name; a ValueError where two have the same.

    Mappings in the mapping, as Flax nests them, are read as names joined by "/"; TensorFlow's ":0" at the end of a name
    is passed over. Values elsewhere are not even looked at: an archive reads them from its file.
    """
    found: dict[str, Any] = {}
    for name, value in _walk(mapping, prefix):
        plain = name.removesuffix(":0")
        if plain in found:
            raise ValueError(f"ambiguous parameter names: {prefix}{plain} stands there twice")
        found[plain] = value
    return found


def _walk(mapping: Mapping[Any, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    for key in mapping:
        name = str(key)
        inside = name.startswith(prefix)
        if inside or prefix.startswith(f"{name}/"):
            value = mapping[key]
            if isinstance(value, Mapping):
                head = f"{name.removeprefix(prefix)}/" if inside else ""
                below = "" if inside else prefix.removeprefix(f"{name}/")
                yield from ((head + rest, leaf) for rest, leaf in _walk(value, below))
            elif inside:
                yield name.removeprefix(prefix), value


def _load_npz(path: Path, prefix: str) -> tuple[list[str], dict[str, Any]]:
    """All names, and the arrays asked for."""
    import numpy as np

    # np.load looks at the content, not at the name: it would take a pickle or a single array too.
    if not zipfile.is_zipfile(path):
        raise ValueError(f"weights file {path} is not an .npz archive")
    try:
        with np.load(path, allow_pickle=False) as archive:
            return archive.files, {name: archive[name] for name in archive.files if name.startswith(prefix)}
    except (ValueError, EOFError, zipfile.BadZipFile, zlib.error) as err:
        raise ValueError(f"weights file {path} cannot be read: {err}") from None


def _load_safetensors(path: Path, prefix: str) -> tuple[list[str], dict[str, Any]]:
    """All names, and the arrays asked for."""
    try:
        from safetensors import SafetensorError, safe_open
    except ImportError:
        raise ImportError(
            f"reading {path} needs the safetensors package: pip install safetensors (or save the weights as .npz)"
        ) from None
    try:
        with safe_open(path, framework="numpy") as archive:
            names = list(archive.keys())
            return names, {name: archive.get_tensor(name) for name in names if name.startswith(prefix)}
    # The last three are what a dtype unknown to NumPy gives, bfloat16 without ml_dtypes for example.
    except (SafetensorError, ImportError, AttributeError, TypeError) as err:
        raise ValueError(f"weights file {path} cannot be read: {err}") from None


def _not_found(names: Iterable[str], prefix: str) -> str:
    """Say which prefixes would have worked, or else which names there are."""
    every = list(names)
    where = f"under prefix {prefix!r}" if prefix else "without a prefix"
    prefixes = dict.fromkeys(head for name in every for head in _heads(name))
    if prefixes:
        return f"no {_ALLOWED} {where}; prefixes that have them: {_listing(prefixes)}"
    return f"no {_ALLOWED} {where}; names found: {_listing(every)}"


def _heads(name: str) -> list[str]:
    """Give what stands before a known parameter name, where a separator ends it: "a.norm." of "a.norm.weight"."""
    name = name.removesuffix(":0")
    heads = (name.removesuffix(leaf) for leaf in _LEAVES if name.endswith(leaf))
    return [head for head in heads if not head or not head[-1].isalnum()]


def _listing(names: Iterable[str], limit: int = 8) -> str:
    every = sorted(names)
    shown = ", ".join(repr(name) for name in every[:limit]) or "none"
    return shown if len(every) <= limit else f"{shown}, ... ({len(every)} in all)"
