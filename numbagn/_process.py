"""What kernels ask of the process they run in. It imports nothing."""

import os
from collections.abc import Callable

__all__ = ["at_fork", "need_compiler"]


def at_fork(**hooks: Callable[[], object]) -> None:
    """`os.register_at_fork`, where processes can be forked."""
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(**hooks)


def need_compiler() -> None:
    """Refuse where Numba is told to compile nothing; before anything is loaded, so that the next call says the same."""
    from numba import config

    if config.DISABLE_JIT:
        raise RuntimeError(
            "numbagn cannot run with Numba's compiler disabled, since its kernels use vectors that only compiled code "
            "has: unset NUMBA_DISABLE_JIT (or numba.config.DISABLE_JIT), or use numbagn.reference, plain NumPy"
        )
