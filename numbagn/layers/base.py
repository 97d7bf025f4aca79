"""What all layers have in common: parameters, the ways to call them, and their state."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from .._weights import entries, spelling_of
from ..arrays.dtypes import dtype_row, supported
from ..arrays.families import as_array, fitting, float_row, may_share_memory
from ..calls.checks import activation_code, epsilon, shown
from ..calls.passes import backward, forward

__all__ = ["Init", "Layer", "Saved"]

Init = float | np.ndarray | Callable[[tuple[int, ...]], Any]


class Saved(NamedTuple):
    """What a layer's `backward` needs of a forward pass: the arrays themselves, not copies."""

    x: np.ndarray
    mean: np.ndarray
    rstd: np.ndarray
    weight: np.ndarray | None
    bias: np.ndarray | None
    skip: np.ndarray | None
    residual: np.ndarray | None
    lengths: Any = None
    mask: np.ndarray | None = None


class Layer:
    """What a layer does but for its sizes: what it normalizes over, and the shape of its parameters."""

    weight: np.ndarray | None
    bias: np.ndarray | None

    def _sizes(self) -> tuple[Any, ...]:
        """The arguments of the constructor that have no defaults."""
        raise NotImplementedError

    def _parameter_shape(self) -> tuple[int, ...]:
        """The shape of weight and bias."""
        raise NotImplementedError

    def _grouping(self, x: Any) -> tuple[Any, Any]:
        """The number of groups and the channel axis for a call; refuses an x that is not for this layer.

        A call compares x with the weight, but a layer may have none.
        """
        raise NotImplementedError

    def _set_up(self, eps: Any, activation: Any, affine: Any, bias: Any, dtype: Any, inits: tuple[Init, Init]) -> None:
        """Check and keep the options that all layers have, and make the parameters; sizes must be known by now."""
        self.eps = epsilon(eps)
        for name, flag in (("affine", affine), ("bias", bias)):
            if not isinstance(flag, (bool, np.bool_)):
                raise TypeError(f"{name} must be True or False, got {shown(flag)}")
        activation_code(activation)
        self.activation = activation
        try:
            self.dtype = np.dtype(dtype)
        except (TypeError, ValueError):
            known = None
        else:
            known = dtype_row(self.dtype)
        if known is None or dtype is None:  # None would be NumPy's default, float64
            raise TypeError(f"dtype must be one of {supported()}, got {shown(dtype)}")
        self.weight = self._begin("weight_init", inits[0]) if affine else None
        self.bias = self._begin("bias_init", inits[1]) if affine and bias else None

    def _begin(self, name: str, init: Init) -> np.ndarray:
        """Make a parameter's first values."""
        shape = self._parameter_shape()
        given = init(shape) if callable(init) else init
        try:
            values = as_array(name, given) if hasattr(given, "__dlpack__") else np.asarray(given)
        except ValueError:  # rows of different lengths
            raise ValueError(f"{name} must give a number or shape {shape}, got {shown(given)}") from None
        if values.dtype.kind not in "fiu" and values.dtype.name != "bfloat16":
            raise TypeError(f"{name} must give real numbers, got dtype {values.dtype}")
        if values.shape not in ((), shape):
            raise ValueError(f"{name} must give a number or shape {shape}, got shape {values.shape}")
        return np.full(shape, fitting(name, values, self.dtype))

    def __call__(
        self, x: Any, *, skip: Any = None, residual: Any = None, lengths: Any = None, mask: Any = None, out: Any = None
    ) -> Any:
        """Normalize x and keep nothing: for inference.

        Parameters
        ----------
        x, skip, residual, lengths, mask, out
            As for `numbagn.group_norm` or `numbagn.layer_norm`.

        Returns
        -------
        ndarray
            y, of x's shape, dtype (float32 for integers) and memory order; `out` if that is given.

        Raises
        ------
        TypeError, ValueError
            As that function, and where x does not fit the layer.
        """
        groups, axis = self._grouping(x)
        options = x, groups, self.weight, self.bias, self.eps, axis, self.activation
        return forward((*options, skip, residual, lengths, mask, out), False)[0]

    def forward(
        self, x: Any, *, skip: Any = None, residual: Any = None, lengths: Any = None, mask: Any = None, out: Any = None
    ) -> tuple[Any, Saved]:
        """Normalize x and keep what the backward pass needs.

        Parameters
        ----------
        x, skip, residual, lengths, mask, out
            As for `numbagn.group_norm` or `numbagn.layer_norm`, but `out` must not share memory with the others or
            with the parameters: the backward pass needs them.

        Returns
        -------
        y : ndarray
            The normalized x: of its shape, dtype (float32 for integers) and memory order; `out` if that is given.
        saved : Saved
            For `backward`.

        Raises
        ------
        TypeError, ValueError
            As that function, and where `out` shares memory with what the backward pass needs.
        """
        groups, axis = self._grouping(x)
        weight, bias = self.weight, self.bias
        if out is not None:
            needed = {"x": x, "weight": weight, "bias": bias, "skip": skip, "residual": residual, "mask": mask}
            for name, array in needed.items():
                if array is not None and may_share_memory("out", out, name, array):
                    raise ValueError(f"out must not share memory with {name}, which the backward pass needs")
        options = self.eps, axis, self.activation
        y, mean, rstd = forward((x, groups, weight, bias, *options, skip, residual, lengths, mask, out), True)
        return y, Saved(x, mean, rstd, weight, bias, skip, residual, lengths, mask)

    def backward(self, dy: Any, saved: Saved, *, out: Any = None) -> tuple[Any, ...]:
        """Gradients for one forward pass.

        Parameters
        ----------
        dy : ndarray
            The gradient of the loss with respect to y: of its shape, of any of the float dtypes.
        saved : Saved
            From `forward`.
        out : ndarray, optional
            Where to write dx: of its shape and dtype.

        Returns
        -------
        dx, dweight, dbias : ndarray
            As from `numbagn.group_norm_backward`, gradients of parameters in the parameters' shape; dresidual is a
            fourth item where a residual was given.

        Raises
        ------
        TypeError, ValueError
            As `numbagn.group_norm_backward`.
        """
        if not isinstance(saved, Saved):
            raise TypeError(f"saved must be what forward returned, got {type(saved).__qualname__}")
        groups, axis = self._grouping(saved.x)
        x, mean, rstd, weight, bias, *operands = saved
        return backward((dy, x, mean, rstd, groups, weight, bias, axis, self.activation, *operands, out))

    def state_dict(self, prefix: str = "") -> dict[str, np.ndarray]:
        """Copies of the parameters by name.

        Parameters
        ----------
        prefix : str, optional
            What to put before the names, separator included.

        Returns
        -------
        dict of str to ndarray
            ``prefix + "weight"`` and ``prefix + "bias"``, as far as there are any, in the parameters' shapes.

        Raises
        ------
        TypeError
            If `prefix` is no string.

        Examples
        --------
        >>> import numbagn
        >>> numbagn.GroupNorm(2, 4, bias=False).state_dict("norm.")
        {'norm.weight': array([1., 1., 1., 1.], dtype=float32)}
        """
        parameters = {"weight": self.weight, "bias": self.bias}
        return {prefix + name: value.copy() for name, value in parameters.items() if value is not None}

    def load_state_dict(self, mapping: Mapping[str, Any], prefix: str = "") -> None:
        """Take the parameters from a mapping: all of them, or none and an error.

        Parameters
        ----------
        mapping : mapping of str to ndarray
            For example ``numpy.load("weights.npz")`` or what safetensors gives. Names that do not begin with `prefix`
            are passed over; those that do must be exactly this layer's, as weight/bias (PyTorch, MLX), scale/bias
            (Flax, ONNX) or gamma/beta (Keras, with ``":0"`` too). Mappings in it are read as names joined by ``"/"``.
        prefix : str, optional
            What stands before the names, separator included: ``"down.0.norm1."``, or ``"params/GroupNorm_0/"`` for the
            nested variables of Flax.

        Raises
        ------
        ValueError, TypeError
            Naming every entry that is missing, unexpected, misshapen, of a dtype not taken, or with a finite value too
            large for the layer's dtype. The layer is as it was.

        Notes
        -----
        `eps` is not among the parameters, and the defaults differ: PyTorch and MLX 1e-5, Flax 1e-6, Keras 1e-3. Groups
        of MLX are interleaved unless it was told otherwise: `numbagn.interop.mlx` tells what to do.

        Examples
        --------
        >>> import numpy as np, numbagn
        >>> file = {"norm1.gamma": np.arange(4.0), "norm1.beta": np.zeros(4), "head": np.ones(9)}
        >>> layer = numbagn.GroupNorm(2, 4)
        >>> layer.load_state_dict(file, "norm1.")
        >>> layer.weight
        array([0., 1., 2., 3.], dtype=float32)
        """
        if not isinstance(mapping, Mapping) or not all(isinstance(name, str) for name in mapping):
            raise TypeError(f"mapping must be a mapping of str to arrays, got {type(mapping).__qualname__}")
        if not isinstance(prefix, str):
            raise TypeError(f"prefix must be a string, got {shown(prefix)}")
        given = entries(mapping, prefix)
        wanted = dict(zip(("weight", "bias"), spelling_of(given, prefix), strict=True))
        wanted = {own: name for own, name in wanted.items() if getattr(self, own) is not None}
        faults = [f"missing {prefix}{name}" for name in wanted.values() if name not in given]
        faults += [f"unexpected {prefix}{name}" for name in given if name not in wanted.values()]
        misfits, loaded = [], {}
        for own, name in wanted.items():
            if name not in given:
                continue
            try:
                value = as_array(prefix + name, given[name])
                float_row(prefix + name, value)
                if value.shape != self._parameter_shape():
                    faults.append(f"{prefix}{name} has shape {value.shape}, not {self._parameter_shape()}")
                loaded[own] = fitting(prefix + name, value, self.dtype)
            except TypeError as fault:
                misfits.append(str(fault))
            except ValueError as fault:
                faults.append(str(fault))
        if faults or misfits:
            kind = ValueError if faults else TypeError
            raise kind(f"the parameters do not fit {self!r}: {'; '.join(faults + misfits)}")
        for own, value in loaded.items():
            setattr(self, own, value)

    def __repr__(self) -> str:
        """Show the constructor's arguments that are not the defaults."""
        options = [f"eps={self.eps}"] if self.eps != 1e-5 else []
        options += ["affine=False"] if self.weight is None else []
        options += ["bias=False"] if self.weight is not None and self.bias is None else []
        options += [f"dtype={self.dtype.name!r}"] if self.dtype != np.float32 else []
        axis = getattr(self, "channel_axis", 1)
        options += [f"channel_axis={axis}"] if axis != 1 else []
        options += [f"activation={self.activation!r}"] if self.activation else []
        return f"{type(self).__name__}({', '.join([*map(str, self._sizes()), *options])})"
