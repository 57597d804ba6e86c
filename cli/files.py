"""Files that are written whole or not at all, and checked before the work starts."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import stat
import threading
from collections.abc import Iterator, Mapping, Sequence

from utils import UserError

MAX_BYTES = 1 << 33  # of a file that is read whole: networks, blobs, checkpoints


def check_outputs(outputs: Sequence[str], inputs: Sequence[str] = ()) -> None:
    """Raise UserError unless every output can be written and none would overwrite an input or another output.

    Scripts call this before the work starts. It leaves no file behind.
    """
    taken = {_identity(path): path for path in inputs}
    for path in outputs:
        if not path:
            raise UserError("expected the name of a file to write, found an empty one")
        real = os.path.realpath(path)
        if _identity(path) in taken:
            raise UserError(f"{path}: would overwrite {taken[_identity(path)]}, choose another name")
        taken[_identity(path)] = path
        if os.path.exists(real) and not os.path.isfile(real):
            raise UserError(f"{path}: cannot be written: exists and is not a regular file")
        folder = os.path.dirname(real)
        if not os.path.isdir(folder):
            raise UserError(f"{path}: cannot be written: the folder {folder} does not exist")
        temporary = _temporary_name(real)
        try:
            open(temporary, "wb").close()
        except OSError as error:
            raise UserError(f"{path}: cannot be written: {error.strerror}: {folder}") from None
        finally:  # also after Ctrl-C
            with contextlib.suppress(OSError):
                os.remove(temporary)


def _identity(path: str) -> tuple[int, int] | str:
    """The same for all names of one file, by link or by case; of a file that is not there, its real name."""
    try:
        status = os.stat(path)
    except OSError:
        return os.path.realpath(path)
    return status.st_dev, status.st_ino


def _temporary_name(real: str) -> str:
    name = os.fsencode(os.path.basename(real))[:200].decode(errors="ignore")  # file systems hold 255 bytes
    return os.path.join(os.path.dirname(real), f".{name}.{os.getpid()}.tmp")


class FileSet:
    """Files that get their names together when the block ends well: all of them, or none.

    Each is written to a temporary file beside its name. All of them are on the disk before the first is renamed, and
    signals wait for the renames: a run that is interrupted leaves the old files or the new ones. Raises UserError when
    the system refuses to write.
    """

    def __init__(self) -> None:
        self.names: dict[str, tuple[str, str]] = {}  # by real name: as it was given, and the temporary file's

    def add(self, path: str) -> str:
        """The name of the temporary file to write, which is to become `path`."""
        real = os.path.realpath(path)
        self.names[real] = path, _temporary_name(real)
        return self.names[real][1]

    def __enter__(self) -> FileSet:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        path = next((path for path, _ in reversed(self.names.values())), "")  # the one that an error is about
        try:
            if kind is None:
                for real, (given, temporary) in self.names.items():
                    path = given
                    _settle(real, temporary)
                with _signals_wait():
                    for real, (given, temporary) in reversed(self.names.items()):
                        path = given
                        os.replace(temporary, real)
                        _sync(os.path.dirname(real))
        except OSError as refused:
            error = refused
        finally:
            for _, temporary in self.names.values():
                with contextlib.suppress(OSError):
                    os.remove(temporary)
        if isinstance(error, OSError):
            raise UserError(f"{path}: cannot be written: {error.strerror or error}") from None


def _settle(real: str, temporary: str) -> None:
    """Bring a file to the disk, with the mode of the one that it will replace."""
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
    waiting: list[int] = []
    for number, handler in before.items():
        if handler not in (signal.SIG_IGN, None):
            signal.signal(number, lambda number, frame: waiting.append(number))
    try:
        yield
    finally:
        for number, handler in before.items():
            if handler not in (signal.SIG_IGN, None):
                signal.signal(number, handler)
        for number in waiting:
            signal.raise_signal(number)


@contextlib.contextmanager
def atomic_write(path: str) -> Iterator[str]:
    """Give the name of a temporary file beside `path`, which replaces `path` when the block ends well. See FileSet."""
    with FileSet() as files:
        yield files.add(path)


def write_files(contents: Mapping[str, bytes], files: FileSet | None = None) -> None:
    """Write files that belong together, all or none, or with others of a set. Raises UserError."""
    with FileSet() as own:
        for path, content in contents.items():
            try:
                with open((files or own).add(path), "wb") as file:
                    file.write(content)
            except OSError as error:
                raise UserError(f"{path}: cannot be written: {error.strerror}") from None


def check_space(path: str, n_bytes: int, what: str) -> None:
    """Raise UserError when the disk of `path` has less than `n_bytes` left. what: what needs at least so many bytes."""
    free = shutil.disk_usage(os.path.dirname(os.path.realpath(path))).free
    if n_bytes > free:
        raise UserError(f"{path}: {what} takes at least {_size(n_bytes)}, the disk has {_size(free)} left")


def _size(n_bytes: float) -> str:
    """The size as text, in the largest unit that gives a number of at least 1."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if n_bytes < 1000:
            return f"{n_bytes:.3g} {unit}"
        n_bytes /= 1000
    return f"{n_bytes:.3g} TB"


def _without_waiting(path: str, flags: int) -> int:
    """An opener that does not wait for a writer, as of a named pipe."""
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))


def read_bytes(path: str) -> bytes:
    """The content of a file. Raises UserError when it cannot be read, or is no regular file of at most MAX_BYTES."""
    try:
        with open(path, "rb", opener=_without_waiting) as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode) or status.st_size > MAX_BYTES:
                raise UserError(f"{path}: expected a regular file of at most {_size(MAX_BYTES)}")
            return file.read()
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None
