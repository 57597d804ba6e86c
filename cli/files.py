"""Files that are written whole or not at all, and checked before the work starts."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import io
import itertools
import os
import platform
import re
import shutil
import signal
import stat
import sys
import tempfile
import threading
import zlib
from collections.abc import Iterator, Mapping, Sequence

from cli.endings import when_interrupted
from utils import UserError

AT_FDCWD, RENAME_EXCHANGE = -100, 2  # of Linux: names are of the current folder; two names are exchanged
MAX_BYTES = 1 << 33  # of a file that is read whole: networks, blobs, checkpoints
OLD = ".old"  # what the name of an index that was moved aside has more
MAX_NAME = 160  # bytes of a file's name in that of its temporary file; a file system holds 255 in all


def check_outputs(outputs: Sequence[str], inputs: Sequence[str] = ()) -> None:
    """Raise UserError unless every output can be written and none would overwrite an input or another output.

    Scripts call this before the work starts. It leaves no file behind, and removes what a killed run left.
    """
    taken = {_identity(path): path for path in inputs}
    for path in outputs:
        real = os.path.realpath(path)
        if _identity(path) in taken:
            raise UserError(f"{path}: would overwrite {taken[_identity(path)]}, choose another name")
        taken[_identity(path)] = path
        if is_replaced := real.lower().endswith(".zarr") and is_zarr(real):  # as one, with all that is in it
            inside = [path for path in inputs if os.path.realpath(path).startswith(real + os.sep)]
            if inside:
                raise UserError(f"{path}: would remove {inside[0]}, choose another name")
        if os.path.exists(real) and not os.path.isfile(real) and not is_replaced:
            what = "is a folder" if os.path.isdir(real) else "exists and is not a regular file"
            raise UserError(f"{path}: cannot be written: {what}: choose another name")
        folder = os.path.dirname(real)
        if not os.path.isdir(folder):
            raise UserError(f"{path}: cannot be written: the folder {folder} does not exist")
        temporary = _temporary_name(real)
        try:
            open(temporary, "wb").close()
            with contextlib.suppress(FileNotFoundError):
                os.lstat(real)  # refuses a name that is too long, which the shorter temporary one hides
        except OSError as error:
            raise UserError(f"{path}: cannot be written: {error.strerror}: {folder}") from None
        finally:  # also after Ctrl-C
            with contextlib.suppress(OSError):
                os.remove(temporary)
    _remove_leftovers(outputs)


def check_derived(paths: Sequence[str], source: str) -> None:
    """Raise UserError if one of `paths`, whose names nobody typed, is there and is older than the file `source`.

    It may be what `source` was made of, and `paths` are to be made of `source`. A .pvd file holds no volume.
    """
    for path in paths:
        with contextlib.suppress(FileNotFoundError):
            if not path.endswith(".pvd") and os.stat(path).st_mtime < os.stat(source).st_mtime:
                what = f"would be overwritten and may be the source of {source}, as it is older"
                raise UserError(f"{path}: {what}: choose another --recon name, or remove it")


def is_zarr(path: str) -> bool:
    """Whether a folder is a Zarr array or group."""
    return any(os.path.isfile(os.path.join(path, name)) for name in ("zarr.json", ".zarray", ".zgroup"))


def _identity(path: str) -> tuple[int, int] | str:
    """The same for all names of one file, by link or by case; of a file that is not there, its real name."""
    try:
        status = os.stat(path)
    except OSError:
        return os.path.realpath(path)
    return status.st_dev, status.st_ino


def _temporary_start(real: str) -> str:
    """How the names of the files begin that processes of this machine write before they become `real`."""
    folder, name = os.path.split(real)
    encoded = os.fsencode(name)
    if len(encoded) > MAX_NAME:
        name = f"{encoded[: MAX_NAME - 8].decode(errors='ignore')}{zlib.crc32(encoded):08x}"
    return os.path.join(folder, f".{name}.{platform.node()[:60]}.")


def _temporary_name(real: str) -> str:
    return f"{_temporary_start(real)}{os.getpid()}.tmp"


def _remove_leftovers(outputs: Sequence[str]) -> None:
    """Remove the temporary files of `outputs` whose process, of this machine, was killed."""
    starts = {_temporary_start(os.path.realpath(path) + suffix) for path in outputs for suffix in ("", OLD)}
    for folder in {os.path.dirname(start) for start in starts}:
        with contextlib.suppress(OSError):
            for path in [os.path.join(folder, name) for name in os.listdir(folder)]:
                found = re.fullmatch(r"(.*\.)(\d{1,9})\.tmp", path, re.DOTALL)
                if found and found[1] in starts and not _is_running(int(found[2])):
                    _remove(path)


def _is_running(process: int) -> bool:
    """Whether a process of this number runs on this machine. Where the system does not tell, it may."""
    if os.name == "nt":  # os.kill would end it
        return True
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True


_unfinished: set[str] = set()  # the temporary files of all FileSets


def _remove_unfinished() -> None:
    """Remove the temporary files of a run that a signal has ended just before its FileSet would have done so."""
    for temporary in [*_unfinished]:
        with contextlib.suppress(OSError):
            _remove(temporary)


when_interrupted.append(_remove_unfinished)


class FileSet:
    """Files that get their names together when the block ends well: all of them, or none.

    Each is written to a temporary file beside its name. All of them are on the disk before the first is renamed, and
    signals wait for the renames: a run that is interrupted leaves the old files or the new ones. The first file is the
    index, the one that is opened: the header of the voxels, the list of a series. Its old version is moved aside before
    any other is replaced, and it gets its name last: a run that is killed among the renames, or a power cut, leaves no
    mixed set that could be opened. Raises UserError when the system refuses to write.
    """

    def __init__(self) -> None:
        self.names: dict[str, tuple[str, str]] = {}  # by real name: as it was given, and the temporary file's
        self.latest = ""  # the file that an error is about, as it was given

    def add(self, path: str) -> str:
        """The name of the temporary file to write, which is to become `path`."""
        real = os.path.realpath(path)
        self.names[real] = path, _temporary_name(real)
        _unfinished.add(self.names[real][1])
        return self.names[real][1]

    def write(self, path: str, content: bytes) -> None:
        """Write a file, which is to become `path`."""
        with open(self.add(path), "wb") as file:
            file.write(content)

    def __enter__(self) -> FileSet:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        self.latest = next((path for path, _ in reversed(self.names.values())), "")
        try:
            if kind is None and self.names:
                for real, (path, temporary) in self.names.items():
                    self.latest = path
                    _settle(real, temporary)
                with _signals_wait():
                    self._rename()
        except OSError as refused:
            error = refused
        finally:
            for _, temporary in self.names.values():
                with contextlib.suppress(OSError):
                    _remove(temporary)
                _unfinished.discard(temporary)
        if isinstance(error, OSError):
            raise UserError(f"{self.latest}: cannot be written: {error.strerror or error}") from None

    def _rename(self) -> None:
        index, *others = self.names
        aside, n_renamed = _temporary_name(index + OLD), 0
        try:
            if others and os.path.exists(index):
                _replace(index, aside)
            for real in (*reversed(others), index):
                self.latest, temporary = self.names[real]
                _replace(temporary, real)
                n_renamed += 1
        finally:
            if os.path.exists(aside):
                _remove(aside) if n_renamed else _replace(aside, index)


def _replace(path: str, name: str) -> None:
    """Rename a file, and wait until its new name is on the disk. A Zarr folder of that name is exchanged for it."""
    if not (os.path.isdir(path) and is_zarr(name)):
        os.replace(path, name)
    elif sys.platform != "linux" or not _exchange_at_once(path, name):
        aside = _temporary_name(name + OLD)
        os.rename(name, aside)  # a run that is killed here leaves no folder of the name
        os.rename(path, name)
        _remove(aside)
    _sync(os.path.dirname(name))


def _exchange_at_once(a: str, b: str) -> bool:
    """Whether Linux has exchanged the names of two folders; not every C library and file system can."""
    rename = getattr(ctypes.CDLL(None), "renameat2", None)
    return rename is not None and rename(AT_FDCWD, os.fsencode(a), AT_FDCWD, os.fsencode(b), RENAME_EXCHANGE) == 0


def _remove(path: str) -> None:
    """Remove a file, or a folder with all that is in it."""
    if os.path.isdir(path) and not os.path.islink(path):
        shutil.rmtree(path)
    else:
        os.remove(path)


def _settle(real: str, temporary: str) -> None:
    """Bring a file, or a folder of files, to the disk, with the mode of the one that it will replace."""
    for folder, _, names in os.walk(temporary):
        for name in (*names, ""):
            _sync(os.path.join(folder, name))
    _sync(temporary)
    if os.path.exists(real):
        os.chmod(temporary, stat.S_IMODE(os.stat(real).st_mode))


def _sync(path: str) -> None:
    """Wait until a file, or the names in a folder, are on the disk."""
    if os.path.isdir(path) and os.name == "nt":  # Windows opens no folders
        return
    file = os.open(path, os.O_RDONLY)
    try:
        os.fsync(file)
    finally:
        os.close(file)


@contextlib.contextmanager
def _signals_wait() -> Iterator[None]:
    """Ctrl-C, SIGTERM and SIGHUP are answered when the block ends."""
    if threading.current_thread() is not threading.main_thread():  # which alone answers them
        yield
        return
    numbers = [signal.SIGINT, signal.SIGTERM, *([signal.SIGHUP] if hasattr(signal, "SIGHUP") else [])]
    before = {number: signal.getsignal(number) for number in numbers}
    before = {number: handler for number, handler in before.items() if handler not in (signal.SIG_IGN, None)}
    waiting: list[int] = []
    for number in before:
        signal.signal(number, lambda number, frame: waiting.append(number))
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        for number in waiting:
            signal.raise_signal(number)


@contextlib.contextmanager
def atomic_write(path: str) -> Iterator[str]:
    """Give the name of a temporary file beside `path`, which replaces `path` when the block ends well. See FileSet."""
    with FileSet() as files:
        yield files.add(path)


def write_files(contents: Mapping[str, bytes]) -> None:
    """Write files that belong together, all or none. Raises UserError."""
    with FileSet() as files:
        for path, content in contents.items():
            files.write(path, content)


def write_or_rescue(contents: Mapping[str, bytes]) -> None:
    """Write files as `write_files` does; where that fails, as on a full disk, write them to a folder elsewhere.

    Raises UserError even so. It says where the files are.
    """
    try:
        write_files(contents)
    except UserError as error:
        if not (rescued := _rescue(contents)):
            raise
        raise UserError(f"{error}: written to {' and '.join(rescued)} instead") from None


def _rescue(contents: Mapping[str, bytes]) -> list[str]:
    """Write the files to a new folder, in the current one, that for temporary files or home; their names, or none."""
    names = [os.path.basename(path) for path in contents]
    if len(set(names)) < len(names):
        names = [f"{i}_{name}" for i, name in enumerate(names)]
    for place in (os.getcwd, tempfile.gettempdir, lambda: os.path.expanduser("~")):
        with contextlib.suppress(OSError, UserError):
            folder = tempfile.mkdtemp(prefix="rescued_", dir=place())
            try:
                paths = [os.path.join(folder, name) for name in names]
                write_files(dict(zip(paths, contents.values(), strict=True)))
                return paths
            finally:
                with contextlib.suppress(OSError):
                    os.rmdir(folder)  # when it is empty
    return []


class LossyFile(io.FileIO):
    """A file, or a standard stream. What it cannot take, as on a full disk, is lost, and its writer goes on.

    failure: the first such error.
    """

    failure: OSError | None = None

    def write(self, data: bytes | memoryview) -> int:
        try:
            return super().write(data)
        except OSError as error:
            self.failure = self.failure or error
            return memoryview(data).nbytes

    def truncate(self, size: int | None = None) -> int:
        try:
            return super().truncate(size)
        except OSError as error:
            self.failure = self.failure or error
            return self.tell()


def check_space(path: str, n_bytes: int, what: str) -> None:
    """Raise UserError when the disk of `path` has less than `n_bytes` left. what: what needs at least so many bytes."""
    free = shutil.disk_usage(os.path.dirname(os.path.realpath(path))).free
    if n_bytes > free:
        raise UserError(f"{path}: {what} takes at least {size_text(n_bytes)}, the disk has {size_text(free)} left")


def states_of(paths: Sequence[str]) -> dict[str, tuple[int, int]]:
    """Of each regular file, by name, what changes when it is written to: its time and its size."""
    found = {}
    for path in paths:
        with contextlib.suppress(OSError):
            status = os.stat(path)
            if stat.S_ISREG(status.st_mode):  # a folder changes with every file that is written to it
                found[path] = status.st_mtime_ns, status.st_size
    return found


def size_of(paths: Sequence[str]) -> int:
    """The bytes of all these files, and of the files in those of them that are folders."""
    inside = (os.path.join(folder, name) for path in paths for folder, _, names in os.walk(path) for name in names)
    return sum(map(os.path.getsize, itertools.chain(filter(os.path.isfile, paths), inside)))


def size_text(n_bytes: float) -> str:
    """The size as text, in the largest unit that gives a number of at least 1."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if n_bytes < 999.5:  # which would be 1e+03
            return f"{n_bytes:.3g} {unit}"
        n_bytes /= 1000
    return f"{n_bytes:.3g} TB"


def _without_waiting(path: str, flags: int) -> int:
    """An opener that does not wait for a writer, as of a named pipe."""
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))


def read_regular(path: str, most: int = -1) -> bytes:
    """The content of a file, or its first `most` bytes.

    Raises OSError when it cannot be read, or is no regular file of at most MAX_BYTES.
    """
    with open(path, "rb", opener=_without_waiting) as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode) or status.st_size > MAX_BYTES:
            raise OSError(errno.EINVAL, f"expected a regular file of at most {size_text(MAX_BYTES)}", path)
        return file.read(most)


def read_bytes(path: str, most: int = -1) -> bytes:
    """The same, for scripts: raises UserError."""
    try:
        return read_regular(path, most)
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None
