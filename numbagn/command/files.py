"""Normalise an array file into another one, larger than memory too; the new file appears whole or not at all."""

import contextlib
import errno
import os
import secrets
import signal
import stat
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any, TextIO

import numpy as np
from numpy.lib.format import MAGIC_PREFIX, open_memmap

from ..arrays.families import fitting
from .chunks import Norm, normalize_chunks

# One kernel call works on this much: long enough that a call's own cost vanishes, short enough that the progress bar
# moves and a signal is heard at once (Python hears signals only between calls).
BATCH_BYTES = 64 << 20
# What a sample is cut into where it is larger: about so much memory is needed where a dtype must be converted.
CHUNK_BYTES = 64 << 20


class Stopped(BaseException):
    """A signal asked the program to end; not an Exception, so that nothing on the way swallows it."""

    def __init__(self, signum: int) -> None:
        super().__init__(signum)
        self.signum = signum


@dataclass(frozen=True)
class Report:
    """What `normalize_file` wrote: the new array's shape and dtype, bytes read plus written, and the time it took."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    nbytes: int
    seconds: float


def normalize_file(
    source: str | os.PathLike[str],
    target: str | os.PathLike[str],
    num_groups: int,
    *,
    dtype: str | None = None,
    add_batch_axis: bool = False,
    progress: Callable[[float, int], None] | None = None,
    **options: Any,
) -> Report:
    """Apply group normalization to an ``.npy`` file; `source` and `target` may be the same.

    `options` are weight, bias, eps, channel_axis and activation of `numbagn.group_norm`. With `add_batch_axis` the file
    holds one sample without a batch axis, and `channel_axis` counts with that axis put in front. `progress` is called
    with the number of samples done and their total: at the start and after every batch, or every chunk of a sample that
    is cut, with fractions then.

    The new file has the dtype asked for, by default that of the old one, float32 where that holds integers. The work is
    done in a dtype that holds both, so that no value is rounded or overflows before it is normalised; of 64-bit
    integers, which none holds, with their differences from the first of their group, exact below 2**53.

    Both files are memory-mapped and worked through in batches of samples; a sample larger than CHUNK_BYTES in chunks:
    of whole groups if they are not larger themselves, else in two passes, one for the statistics (see
    `numbagn.group_moments`) and one that normalises. So each byte is read twice at most and written once, in the order
    of the file. Memory of its own is needed only where a dtype must be widened (64-bit input to float32, say) or in
    Fortran order, and then for one batch or one chunk. The new file has the memory order of the old one. In Fortran
    order the samples are interleaved and all are worked on together.
    """
    started, show = time.perf_counter(), progress or (lambda done, total: None)
    file = _open_input(Path(source))
    x = file[np.newaxis] if add_batch_axis else file
    if x.ndim < 2:
        hint = "" if add_batch_axis else "; for one sample without a batch axis use --add-batch-axis"
        raise ValueError(f"{source} holds an array of shape {file.shape}; allowed: at least (N, C){hint}")
    work, final = _choose_dtypes(file.dtype, dtype, source)
    norm, samples = Norm(num_groups, work, **options), x.shape[0]
    parameters = {"weight": norm.weight, "bias": norm.bias}
    for name, value in parameters.items():
        if np.ndim(value) == 2 and len(value) != samples:
            raise ValueError(f"{name} has shape {np.shape(value)}, one row a sample; allowed: {samples} rows")
    # An empty batch costs nothing and has every argument checked before a file is created.
    norm.of(slice(0, 0), slice(None), num_groups).apply(np.empty((0, *x.shape[1:]), work), None)
    for name, value in parameters.items():
        if value is not None:
            fitting(name, value, np.result_type(work, np.float32))

    fortran = file.flags.f_contiguous and not file.flags.c_contiguous
    with stop_signals() as check_signals, replacing(Path(target)) as temporary:
        new_file = _create(temporary, final, file.shape, fortran)
        y = new_file[np.newaxis] if add_batch_axis else new_file
        itemsize = max(file.dtype.itemsize, work.itemsize)
        step = max(1, samples if fortran else BATCH_BYTES // max(1, x[:1].size * itemsize))
        most = max(1, CHUNK_BYTES // itemsize)
        for start in range(0, samples, step):
            rows = slice(start, min(start + step, samples))
            show(start, samples)
            check_signals()
            own = norm.of(rows, slice(None), num_groups)
            for share in normalize_chunks(np.asarray(x[rows]), np.asarray(y[rows]), own, most):
                if share < 1:
                    show(start + share * (rows.stop - start), samples)
                check_signals()
        show(samples, samples)
        new_file.flush()
        shape, nbytes = file.shape, file.nbytes + new_file.nbytes
        # Windows replaces no file that is still mapped.
        del x, y, file, new_file
        check_signals()
    return Report(shape, final, nbytes, time.perf_counter() - started)


def _open_input(path: Path) -> np.ndarray[Any, Any]:
    if not stat.S_ISREG(path.stat().st_mode):  # looked at before it is opened: opening a pipe may wait for ever
        raise ValueError(f"{path} is not a regular file, so it cannot be memory-mapped")
    with path.open("rb") as file:
        start = file.read(len(MAGIC_PREFIX))
    if start != MAGIC_PREFIX:
        kind = "an .npz or other zip archive" if start.startswith(b"PK\x03\x04") else "not an .npy file"
        raise ValueError(f"{path} is {kind}; allowed: one array written by numpy.save")
    try:
        # Never unpickles: an array of Python objects cannot be mapped and is a ValueError here.
        return open_memmap(path, mode="r")
    except ValueError as err:
        raise ValueError(f"{path} cannot be read as an .npy array: {err}") from None


def _choose_dtypes(
    found: np.dtype[Any], asked: str | None, source: str | os.PathLike[str]
) -> tuple[np.dtype[Any], np.dtype[Any]]:
    """Give the dtype to work in and the dtype of the new file."""
    if found.kind not in "iuf" or found.itemsize > 8:
        raise TypeError(f"{source} has dtype {found}; allowed: float16, float32, float64 and integers")
    native = found.newbyteorder("=")
    final = np.dtype(asked or (native if native.kind == "f" else np.float32))
    return np.result_type(native, final), final


def _create(path: Path, dtype: np.dtype[Any], shape: tuple[int, ...], fortran: bool) -> np.memmap[Any, Any]:
    """Make `path` an .npy file of zeros and map it for writing."""
    try:
        array = open_memmap(path, mode="w+", dtype=dtype, shape=shape, fortran_order=fortran)
        _reserve(path)
    except OSError as err:
        size = f"{np.prod(shape, dtype=float) * dtype.itemsize / 1e9:.3g} GB"
        raise OSError(err.errno, f"no room for the new file of {size}: {err.strerror}", str(path.parent)) from None
    return array


def _reserve(path: Path) -> None:
    """Give every byte of `path` its place on the disk.

    A full disk is then an OSError here. In a mapped file with holes it would be a SIGBUS in the middle of the work,
    which no Python code survives.
    """
    size = path.stat().st_size
    with path.open("r+b") as file:
        try:
            os.posix_fallocate(file.fileno(), 0, size)
            return
        except AttributeError:  # macOS, Windows
            pass
        except OSError as err:
            if err.errno not in (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS):
                raise
        # The header and zeros: what reads as the same file, but now without holes.
        start = file.read(BATCH_BYTES)
        file.seek(0)
        file.write(start)
        for written in range(len(start), size, BATCH_BYTES):
            file.write(bytes(min(BATCH_BYTES, size - written)))


@contextlib.contextmanager
def replacing(target: Path) -> Iterator[Path]:
    """Give the path of a new, empty file in `target`'s folder that takes `target`'s place when the block ends well.

    `target` may exist or not; a link is followed. It is untouched when the block raises anything at all, and the new
    file is gone then.
    """
    target = Path(os.path.realpath(target))
    mode = None
    if target.exists():
        if not target.is_file():
            raise ValueError(f"{target} exists and is not a regular file, so it cannot be replaced")
        mode = stat.S_IMODE(target.stat().st_mode)
    temporary = target.with_name(f".numbagn-{secrets.token_hex(8)}.tmp")
    try:
        try:
            # os.open rather than tempfile: the umask decides the mode, as for any other new file.
            os.close(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o666))
        except OSError as err:  # about the folder, not about a name the user never gave
            raise OSError(err.errno, f"no file can be made here: {err.strerror}", str(target.parent)) from None
        yield temporary
        if mode is not None:
            temporary.chmod(mode)
        # On the disk before it has the name: after a power cut the name shows the old file or the whole new one.
        _sync(temporary, os.O_RDWR)
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)
    with contextlib.suppress(OSError):  # not every system lets a folder be opened or synced
        _sync(target.parent, os.O_RDONLY)


def _sync(path: Path, flags: int) -> None:
    handle = os.open(path, flags)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextlib.contextmanager
def stop_signals() -> Iterator[Callable[[], None]]:
    """Turn SIGINT, SIGTERM and SIGHUP into one `Stopped` exception, so that clean-up runs, once and to its end.

    Gives a function that raises `Stopped` again if a signal came: an exception raised by a signal while some library's
    callback runs can be lost there.
    """
    received: list[int] = []

    def check() -> None:
        if received:
            raise Stopped(received[0])

    def on_signal(signum: int, frame: FrameType | None) -> None:
        if not received:
            received.append(signum)
            raise Stopped(signum)

    before: dict[int, Any] = {}
    try:
        if threading.current_thread() is threading.main_thread():  # Python allows handlers nowhere else
            for name in ("SIGINT", "SIGTERM", "SIGHUP"):
                signum = getattr(signal, name, None)
                # A signal that is ignored (nohup, a shell's background job) stays so.
                if signum is not None and signal.getsignal(signum) not in (signal.SIG_IGN, None):
                    before[signum] = signal.getsignal(signum)
                    signal.signal(signum, on_signal)
        yield check
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)


class ProgressBar:
    """A bar on one line of a terminal, gone when the work is done."""

    WIDTH = 30
    INTERVAL = 0.1

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._drawn = 0
        self._started = time.perf_counter()
        self._next = 0.0

    def __call__(self, done: float, total: int) -> None:
        """Draw `done` of `total` samples, at most ten times a second."""
        now = time.perf_counter()
        if now < self._next and done < total:
            return
        self._next = now + self.INTERVAL
        share = done / total if total else 1.0
        filled = int(share * self.WIDTH)
        elapsed = now - self._started
        if done:
            tail = f"{int(done)}/{total} samples, {elapsed * (1 - share) / share:.0f} s left"
        else:
            tail = f"0/{total} samples (the first batch may have to wait for the compiler, a few seconds)"
        self._write(f"[{'#' * filled}{'.' * (self.WIDTH - filled)}] {share:4.0%} {tail}")

    def __enter__(self) -> "ProgressBar":
        return self

    def __exit__(self, *failure: object) -> None:
        """Wipe the bar, so that a message that follows has the line to itself."""
        if self._drawn:
            self._write("")
            self._stream.write("\r")
            self._stream.flush()
            self._drawn = 0

    def _write(self, text: str) -> None:
        # Spaces wipe what a longer line left: every terminal knows them.
        self._stream.write("\r" + text + " " * (self._drawn - len(text)))
        self._stream.flush()
        self._drawn = len(text)
