"""Layers: parameters kept together with the options of a call."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from ._arrays import as_array, float_row
from ._dtypes import dtype_row, supported
from ._problem import activation_code, channel_axis_of, epsilon, groups_of, integer, shown
from ._weights import SPELLINGS, entries, find_parameters
from .functional import group_norm, group_norm_backward, group_norm_forward

__all__ = ["GroupNorm", "Saved"]

Init = float | np.ndarray | Callable[[tuple[int, ...]], Any]


class Saved(NamedTuple):
    """What `GroupNorm.backward` needs of a forward pass: the arrays themselves, not copies."""

    x: np.ndarray
    mean: np.ndarray
    rstd: np.ndarray
    weight: np.ndarray | None
    bias: np.ndarray | None
    skip: np.ndarray | None
    residual: np.ndarray | None


class GroupNorm:
    """Group normalization with parameters of its own.

    Parameters
    ----------
    num_groups : int
        The number of groups G, a divisor of C.
    num_channels : int
        The number of channels C.
    eps : float, optional
        Added to the variance; finite, not negative.
    affine : bool, optional
        Whether there are a weight and a bias.
    bias : bool, optional
        Whether there is a bias beside the weight.
    dtype : dtype, optional
        Of the parameters: float16, bfloat16, float32 or float64.
    weight_init, bias_init : float, array or callable, optional
        What the parameters begin with: a number, C values, or a function that is given the shape (C,).
    channel_axis : int, optional
        The axis of the channels, not 0.
    activation : {None, "relu", "silu", "gelu", "gelu_tanh"}, optional
        Applied after weight and bias.

    Attributes
    ----------
    weight, bias : (C,) ndarray or None
        The parameters; an optimizer may write into them or set others, (N, C) too.

    Raises
    ------
    TypeError, ValueError
        If an argument is of the wrong kind or does not fit.

    Notes
    -----
    A call keeps nothing, so that one layer may serve any number of threads.

    Examples
    --------
    >>> import numpy as np, numbagn
    >>> layer = numbagn.GroupNorm(2, 4, activation="relu")
    >>> y, saved = layer.forward(np.arange(16, dtype=np.float32).reshape(1, 4, 4))
    >>> dx, dweight, dbias = layer.backward(np.ones_like(y), saved)
    >>> dbias
    array([0., 4., 0., 4.], dtype=float32)
    """

    weight: np.ndarray | None
    bias: np.ndarray | None

    def __init__(
        self,
        num_groups: int,
        num_channels: int,
        eps: float = 1e-5,
        affine: bool = True,
        *,
        bias: bool = True,
        dtype: Any = np.float32,
        weight_init: Init = 1.0,
        bias_init: Init = 0.0,
        channel_axis: int = 1,
        activation: str | None = None,
    ) -> None:
        channels = integer("num_channels", num_channels)
        if channels < 1:
            raise ValueError(f"num_channels must be positive, got {channels}")
        self.num_channels = channels
        self.num_groups = groups_of(num_groups, channels)
        self.eps = epsilon(eps)
        for name, flag in (("affine", affine), ("bias", bias)):
            if not isinstance(flag, (bool, np.bool_)):
                raise TypeError(f"{name} must be True or False, got {shown(flag)}")
        activation_code(activation)
        self.activation = activation
        self.channel_axis = integer("channel_axis", channel_axis)
        if self.channel_axis == 0:
            channel_axis_of(0, 2)
        try:
            self.dtype = np.dtype(dtype)
        except (TypeError, ValueError):
            known = None
        else:
            known = dtype_row(self.dtype)
        if known is None or dtype is None:  # None would be NumPy's default, float64
            raise TypeError(f"dtype must be one of {supported()}, got {shown(dtype)}")
        self.weight = self._begin("weight_init", weight_init) if affine else None
        self.bias = self._begin("bias_init", bias_init) if affine and bias else None

    def _begin(self, name: str, init: Init) -> np.ndarray:
        """Make a parameter's first values."""
        shape = (self.num_channels,)
        given = init(shape) if callable(init) else init
        try:
            values = as_array(name, given) if isinstance(given, np.ndarray) else np.asarray(given)
        except ValueError:  # rows of different lengths
            raise ValueError(f"{name} must give a number or shape {shape}, got {shown(given)}") from None
        if values.dtype.kind not in "fiu" and values.dtype.name != "bfloat16":
            raise TypeError(f"{name} must give real numbers, got dtype {values.dtype}")
        if values.shape not in ((), shape):
            raise ValueError(f"{name} must give a number or shape {shape}, got shape {values.shape}")
        return np.full(shape, values, self.dtype)

    def _check_channels(self, x: Any) -> None:
        """Refuse arrays of another number of channels: without a weight nothing else would."""
        axis = self.channel_axis
        if isinstance(x, np.ndarray) and -x.ndim <= axis < x.ndim and x.shape[axis] != self.num_channels:
            raise ValueError(f"x must have {self.num_channels} channels at axis {axis}, got shape {x.shape}")

    def __call__(self, x: Any, *, skip: Any = None, residual: Any = None, out: Any = None) -> Any:
        """Normalize x; `numbagn.group_norm` says how."""
        self._check_channels(x)
        return group_norm(
            x, self.num_groups, self.weight, self.bias, self.eps,
            channel_axis=self.channel_axis, activation=self.activation, skip=skip, residual=residual, out=out,
        )  # fmt: skip

    def forward(self, x: Any, *, skip: Any = None, residual: Any = None, out: Any = None) -> tuple[Any, Saved]:
        """Normalize x and keep what the backward pass needs.

        Parameters
        ----------
        x, skip, residual, out
            As for `numbagn.group_norm`, but `out` must not share memory with the others or with the parameters: the
            backward pass needs them.

        Returns
        -------
        y : ndarray
            The normalized x.
        saved : Saved
            For `backward`.

        Raises
        ------
        TypeError, ValueError
            As `numbagn.group_norm`, and where `out` shares memory with what the backward pass needs.
        """
        self._check_channels(x)
        for name, needed in (
            ("x", x), ("weight", self.weight), ("bias", self.bias), ("skip", skip), ("residual", residual),
        ):  # fmt: skip
            if isinstance(out, np.ndarray) and isinstance(needed, np.ndarray) and np.may_share_memory(out, needed):
                raise ValueError(f"out must not share memory with {name}, which the backward pass needs")
        y, mean, rstd = group_norm_forward(
            x, self.num_groups, self.weight, self.bias, self.eps,
            channel_axis=self.channel_axis, activation=self.activation, skip=skip, residual=residual, out=out,
        )  # fmt: skip
        return y, Saved(x, mean, rstd, self.weight, self.bias, skip, residual)

    def backward(self, dy: Any, saved: Saved, *, out: Any = None) -> tuple[Any, ...]:
        """Gradients for one forward pass.

        Parameters
        ----------
        dy : ndarray
            The gradient of the loss with respect to y.
        saved : Saved
            From `forward`.
        out : ndarray, optional
            Where to write dx.

        Returns
        -------
        dx, dweight, dbias : ndarray
            As from `numbagn.group_norm_backward`; dresidual is a fourth item where a residual was given.

        Raises
        ------
        TypeError, ValueError
            As `numbagn.group_norm_backward`.
        """
        if not isinstance(saved, Saved):
            raise TypeError(f"saved must be what forward returned, got {type(saved).__qualname__}")
        return group_norm_backward(
            dy, saved.x, saved.mean, saved.rstd, self.num_groups, saved.weight, saved.bias,
            channel_axis=self.channel_axis, activation=self.activation, skip=saved.skip, residual=saved.residual,
            out=out,
        )  # fmt: skip

    def state_dict(self, prefix: str = "") -> dict[str, np.ndarray]:
        """Copies of the parameters by name: ``prefix + "weight"``, ``prefix + "bias"``, as far as there are any."""
        parameters = {"weight": self.weight, "bias": self.bias}
        return {prefix + name: value.copy() for name, value in parameters.items() if value is not None}

    def load_state_dict(self, mapping: Mapping[str, Any], prefix: str = "") -> None:
        """Take the parameters from a mapping: all of them, or none and an error.

        Parameters
        ----------
        mapping : mapping of str to (C,) ndarray
            For example ``numpy.load("weights.npz")`` or what safetensors gives. Names that do not begin with `prefix`
            are passed over; those that do must be exactly this layer's, as weight/bias (PyTorch, MLX), scale/bias
            (Flax, ONNX) or gamma/beta (Keras, with ``":0"`` too). Mappings in it are read as names joined by ``"/"``.
        prefix : str, optional
            What stands before the names, separator included: ``"down.0.norm1."``, or ``"params/GroupNorm_0/"`` for the
            nested variables of Flax.

        Raises
        ------
        ValueError, TypeError
            Naming every entry that is missing, unexpected, misshapen or of a dtype not taken. The layer is as it was.

        Notes
        -----
        `eps` is not among the parameters, and the defaults differ: PyTorch and MLX 1e-5, Flax 1e-6, Keras 1e-3. Groups
        of MLX are interleaved unless it was told otherwise: `numbagn.interop.mlx` tells what to do.
        """
        if not isinstance(mapping, Mapping) or not all(isinstance(name, str) for name in mapping):
            raise TypeError(f"mapping must be a mapping of str to arrays, got {type(mapping).__qualname__}")
        if not isinstance(prefix, str):
            raise TypeError(f"prefix must be a string, got {shown(prefix)}")
        given = entries(mapping, prefix)
        known = given.keys() & {name for pair in SPELLINGS for name in pair}
        if known:
            find_parameters({prefix + name: value for name, value in given.items()}, prefix)  # refuses mixed spellings
        spelling = next(pair for pair in SPELLINGS if known <= set(pair))
        wanted = dict(zip(("weight", "bias"), spelling, strict=True))
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
            except TypeError as fault:
                misfits.append(str(fault))
                continue
            if value.shape != (self.num_channels,):
                faults.append(f"{prefix}{name} has shape {value.shape}, not ({self.num_channels},)")
            loaded[own] = value.astype(self.dtype)
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
        options += [f"channel_axis={self.channel_axis}"] if self.channel_axis != 1 else []
        options += [f"activation={self.activation!r}"] if self.activation else []
        return f"GroupNorm({', '.join([str(self.num_groups), str(self.num_channels), *options])})"
