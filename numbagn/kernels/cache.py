"""The on-disk cache of compiled kernels: Numba's own, made safe to rely on.

What Numba's lacks: a checksum (flipped bits were seen to give wrong numbers and crashes, and so did whole files that
had changed places); writing damaged files anew (it raises the same error in every process); files that only their owner
may change, and no trust in folders that others may change, since what is loaded is executed; reading where it cannot
write, as in a container's image; a user without a home.
"""

import contextlib
import functools
import hashlib
import inspect
import os
import pickle
import stat

from numba import config

from .numba_caching import CompileResultCacheImpl, FunctionCache, IndexDataCacheFile, locator

__all__ = ["KernelCache"]

# Nobody but the owner may write: what stands in a cache is executed.
OTHERS_MAY_WRITE = 0o022


def make_folder(path):
    """Make a folder and those above it, which others may read but not change, whatever the umask."""
    if not os.path.isdir(path):
        above = os.path.dirname(path)
        if above != path:  # a drive that is not there
            make_folder(above)
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


# A relative path stays what it was when the first kernel was needed, wherever the process goes afterwards: its kernels
# are in one place. (Numba makes a folder of that name wherever it comes to compile.)
_absolute = functools.cache(os.path.abspath)


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


class _OfUser(_Place):
    """A place in the user's home."""

    def get_cache_path(self):
        path = super().get_cache_path()
        if not os.path.isabs(path):  # "~/.cache" of a user who has no home, a relative XDG_CACHE_HOME
            raise FileNotFoundError(f"{path} is no folder of the user")
        return path


class Chosen(_Place, locator("UserProvidedCacheLocator")):
    """NUMBA_CACHE_DIR."""

    def get_cache_path(self):
        folder, name = os.path.split(super().get_cache_path())
        return os.path.join(_absolute(folder), name)


class InTree(_Place, locator("InTreeCacheLocator")):
    """Beside the sources."""

    def check(self):
        """Whoever may write there may change the sources too."""


class UserWide(_OfUser, locator("UserWideCacheLocator")):
    """The user's own folder for caches."""


class Zipped(_OfUser, locator("ZipCacheLocator")):
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


class _Implementation(CompileResultCacheImpl):
    _locator_classes = (Chosen, InTree, UserWide, Zipped, ReadOnly)


class _File(IndexDataCacheFile):
    """The index and the data of one kernel in one place."""

    others = ()  # the same in places that are read only
    tell = staticmethod(print)

    def load(self, key):
        for file in (self, *self.others):
            try:
                found = super(_File, file).load(key)
                data = None if found is None else file._opened(key, *found)
            except Exception as fault:  # damaged and foreign files have raised errors of a dozen kinds
                self.tell(fault)
            else:
                if data is not None:
                    return data
        return None

    def _digest(self, key, content):
        """The checksum of what a data file holds and of what it was asked for, so that no other file can stand in."""
        asked = self._version, self._index_name, self._source_stamp, key
        return hashlib.sha256(repr(asked).encode() + content).digest()

    def _opened(self, key, digest, content):
        if self._digest(key, content) != digest:
            raise ValueError(f"the code that {self._index_name} names is damaged, or of another kernel")
        with contextlib.suppress(OSError):  # what it links to was made by other sources of ours: no damage, only old
            return pickle.loads(content)

    def _load_index(self):
        index = super()._load_index()
        if not isinstance(index, dict):
            raise TypeError(f"{self._index_name} holds no index")
        return index

    def save(self, key, data):
        content = self._dump(data)
        sealed = self._digest(key, content), content
        try:
            super().save(key, sealed)
        except OSError:
            raise
        except Exception:  # an index that cannot be read, as `load` has told, is no loss
            self.flush()
            super().save(key, sealed)

    @contextlib.contextmanager
    def _open_for_write(self, path):
        with super()._open_for_write(path) as file:
            if hasattr(os, "fchmod"):
                os.fchmod(file.fileno(), stat.S_IMODE(os.fstat(file.fileno()).st_mode) & ~OTHERS_MAY_WRITE)
            yield file


class KernelCache(FunctionCache):
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
