"""What kernels take of numba-cuda beyond `cuda` and its `types`: it promises nothing about these names."""

from importlib.metadata import version

__all__ = [
    "AbstractTemplate", "core_models", "intrinsic", "lowering_registry", "register_model", "signature",
    "typing_registry",
]  # fmt: skip

try:
    from numba.cuda.cudadecl import registry as typing_registry
    from numba.cuda.cudaimpl import registry as lowering_registry
    from numba.cuda.extending import core_models, intrinsic, register_model
    from numba.cuda.typing.templates import AbstractTemplate, signature
except ImportError as fault:
    raise ImportError(
        f"numbagn cannot use numba-cuda {version('numba-cuda')}: {str(fault).partition(' (')[0]}; it is tested with "
        "numba-cuda 0.30: pip install 'numba-cuda>=0.30,<0.31'"
    ) from fault
