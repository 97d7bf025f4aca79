"""The on-disk cache of compiled kernels: Numba's own, made safe to rely on.

What Numba's lacks: a checksum (flipped bits were seen to give wrong numbers and crashes); writing damaged files anew
(it raises the same error in every process); files that only their owner may change, and no trust in folders that others
may change, since what is loaded is executed; reading where it cannot write, as in a container's image.
"""

import contextlib
import hashlib
import inspect
import os
import pickle
import stat

from numba.core import caching, config

__all__ = ["KernelCache"]

# Nobody but the owner may write: what stands in a cache is executed.
OTHERS_MAY_WRITE = 0o022


def make_folder(path):
    """Make a folder and those above it, which others may read but not change, whatever the umask."""
    if not os.path.isdir(path):
        make_folder(os.path.dirname(path))
        with contextlib.suppress(FileExistsError):
            os.mkdir(path, 0o777 & ~OTHERS_MAY_WRITE)


def distrust(path):
    """Why files in a folder might be somebody else's, or None. Where the system knows no owners there is no telling."""
    if not hasattr(os, "geteuid"):
        return None
    for folder in (path, os.path.dirname(path)):
        found = os.stat(folder)
        if found.st_uid not in (0, os.geteuid()):
            return f"{folder} belongs to another user"
        # in one like /tmp nobody may rename or remove what is another's
        if found.st_mode & stat.S_IWOTH and (folder == path or not found.st_mode & stat.S_ISVTX):
            return f"{folder} may be changed by everybody"
    return None


def _locator(name):
    """Numba's class; before 0.62 their names began with an underscore."""
    return getattr(caching, name, None) or getattr(caching, f"_{name}")


class _Place:
    """A place for a cache that is looked at before it is used; a mixin for Numba's locators."""

    def ensure_cache_path(self):
        path = self.get_cache_path()
        make_folder(path)
        self.check()
        super().ensure_cache_path()

    def check(self):
        reason = distrust(self.get_cache_path())
        if reason is not None:
            raise PermissionError(f"{reason}, so it cannot hold code")


class Chosen(_Place, _locator("UserProvidedCacheLocator")):
    """NUMBA_CACHE_DIR."""


class InTree(_Place, _locator("InTreeCacheLocator")):
    """Beside the sources."""

    def check(self):
        """Whoever may write there may change the sources too."""


class UserWide(_Place, _locator("UserWideCacheLocator")):
    """The user's own folder for caches."""


class Zipped(_Place, _locator("ZipCacheLocator")):
    """The same, for a package in a zip archive; Numba's takes the place without looking at it."""

    @classmethod
    def from_function(cls, function, file):
        place = super().from_function(function, file)
        if place is not None:
            try:
                place.ensure_cache_path()
            except OSError:
                return None
        return place


def readable(function, file):
    """The places where a kernel may have been kept, by whoever could write there."""
    if os.path.exists(file):
        for kind in (Chosen, InTree, UserWide) if config.CACHE_DIR else (InTree, UserWide):
            place = kind(function, file)
            with contextlib.suppress(OSError):
                if os.path.isdir(place.get_cache_path()):
                    place.check()
                    yield place


class ReadOnly:
    """The last resort where no place can be written: one that can be read."""

    @staticmethod
    def from_function(function, file):
        return next(readable(function, file), None)


class _Implementation(caching.CompileResultCacheImpl):
    _locator_classes = (Chosen, InTree, UserWide, Zipped, ReadOnly)


class _File(caching.IndexDataCacheFile):
    """The index and the data of one kernel in one place."""

    others = ()  # the same in places that are read only
    tell = staticmethod(print)

    def load(self, key):
        for file in (self, *self.others):
            try:
                data = super(_File, file).load(key)
            except Exception as fault:  # damaged and foreign files have raised errors of a dozen kinds
                self.tell(fault)
            else:
                if data is not None:
                    return data
        return None

    def _load_index(self):
        index = super()._load_index()
        if not isinstance(index, dict):
            raise TypeError(f"{self._index_name} holds no index")
        return index

    def save(self, key, data):
        try:
            super().save(key, data)
        except OSError:
            raise
        except Exception:  # an index that cannot be read, as `load` has told, is no loss
            self.flush()
            super().save(key, data)

    def _load_data(self, name):
        digest, content = super()._load_data(name)
        if hashlib.sha256(content).digest() != digest:
            raise ValueError(f"{name} is damaged")
        return pickle.loads(content)

    def _save_data(self, name, data):
        content = self._dump(data)
        super()._save_data(name, (hashlib.sha256(content).digest(), content))

    @contextlib.contextmanager
    def _open_for_write(self, path):
        with super()._open_for_write(path) as file:
            if hasattr(os, "fchmod"):
                os.fchmod(file.fileno(), stat.S_IMODE(os.fstat(file.fileno()).st_mode) & ~OTHERS_MAY_WRITE)
            yield file


class KernelCache(caching.FunctionCache):
    """The cache of one kernel; a RuntimeError where there is no place for it.

    Parameters
    ----------
    function : function
        The kernel's Python function.
    tell : callable
        Called with the exception where a file turns out to be damaged. The kernel is then compiled and written anew.
    """

    _impl_class = _Implementation

    def __init__(self, function, tell):
        super().__init__(function)
        base, stamp = self._impl.filename_base, self._impl.locator.get_source_stamp()
        self._cache_file = _File(self._cache_path, base, stamp)
        self._cache_file.tell = tell
        self._cache_file.others = [
            _File(path, base, stamp)
            for path in (place.get_cache_path() for place in readable(function, inspect.getfile(function)))
            if path != self._cache_path
        ]
