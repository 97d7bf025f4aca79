"""What the cache of kernels takes of Numba's own, which promises nothing about these names, as in `numba_names`."""

from .numba_names import check, part, unfit

try:
    from numba.core import caching
except ImportError as fault:
    raise unfit(fault) from fault

__all__ = ["CompileResultCacheImpl", "FunctionCache", "IndexDataCacheFile", "locator"]

CompileResultCacheImpl = part(caching, "CompileResultCacheImpl")
FunctionCache = part(caching, "FunctionCache")
IndexDataCacheFile = part(caching, "IndexDataCacheFile")


def locator(name):
    """A class of places; before 0.62 their names began with an underscore."""
    return getattr(caching, f"_{name}", None) or part(caching, name)


# What is called or overridden of them, and what a new cache sets.
check(
    {
        CompileResultCacheImpl: "_locator_classes filename_base locator",
        FunctionCache: "_impl_class load_overload save_overload",
        IndexDataCacheFile: "_dump _load_index _open_for_write flush load save",
        locator("UserProvidedCacheLocator"): "ensure_cache_path from_function get_cache_path get_source_stamp",
    }
)
