"""What the scripts share at their edge: errors, arguments, progress, device, files written whole or not at all.

Imports nothing heavy at the top, so that a script that imports this module first answers Ctrl-C cleanly
while it is still loading the others.
"""

# ruff: noqa: E402
from __future__ import annotations

import os
import signal
import sys

_interruption = signal.SIGINT  # or what has come instead


def _interrupt(number: int, _) -> None:
    """End a run as Ctrl-C does, temporary files and all."""
    global _interruption
    _interruption = number
    raise KeyboardInterrupt


def _end_interrupted(what_is_left: str = "") -> None:
    """One line, status 130 or 143. Leaves at once: worker threads of other libraries must not delay the end."""
    line = f"{os.path.basename(sys.argv[0])}: interrupted{what_is_left and ': '}{what_is_left}"
    print(f"\n{line}" if sys.stderr.isatty() else line, file=sys.stderr, flush=True)
    os._exit(128 + _interruption)


def _excepthook(kind, value, trace) -> None:
    if issubclass(kind, KeyboardInterrupt):
        _end_interrupted()
    sys.__excepthook__(kind, value, trace)


sys.excepthook = _excepthook  # before anything else is imported
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # --num_workers is the number of threads, not NumPy's guess

import argparse
import contextlib
import io
import math
import re
import shutil
import time
import zipfile
from argparse import ArgumentTypeError
from collections.abc import Callable, Iterator, Mapping, Sequence

from tqdm import tqdm

EXIT_ERROR = 2
DTYPES = ("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64", "float16", "float32", "float64")
PLAIN_PROGRESS_SECONDS = 10.0
BAR_AFTER_SECONDS = 0.5


class UserError(Exception):
    """Something the user can mend: one line that names the file, what was expected and what was found."""


def run(main: Callable[[Sequence[str]], None], *errors: type[Exception]) -> None:
    """Run a script's `main(argv)`: a UserError, or one of `errors`, becomes one line and status 2.

    Ctrl-C becomes status 130, SIGTERM 143. Anything else is a bug and keeps its traceback.
    """
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        main(sys.argv[1:])
        sys.stdout.flush()
    except (UserError, *errors) as error:
        message = " ".join(line.strip() for line in str(error).splitlines())
        print(f"{os.path.basename(sys.argv[0])}: error: {message}", file=sys.stderr)
        sys.exit(EXIT_ERROR)
    except BrokenPipeError:  # the reader of our output, `head` say, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except KeyboardInterrupt as interrupt:  # its argument, if any, says what the script leaves behind
        sys.stdout.flush()
        _end_interrupted(*map(str, interrupt.args))


# --- arguments --------------------------------------------------------------------------------------


class HelpFormatter(argparse.ArgumentDefaultsHelpFormatter):
    """Help with the true default behind every option that has one."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        if action.default is None or isinstance(action.default, bool):
            return action.help
        return super()._get_help_string(action)


class ArgumentParser(argparse.ArgumentParser):
    """An argument parser whose errors are UserErrors, and that takes no abbreviated flags."""

    def __init__(self, description: str):
        super().__init__(description=description, formatter_class=HelpFormatter, allow_abbrev=False)

    def parse_args(self, args: Sequence[str]) -> argparse.Namespace:
        """As argparse, but that negative numbers of every form are values, not options: -1e30, -5,5."""
        joined: list[str] = []
        for arg in args:
            if joined and joined[-1].startswith("--") and re.match(r"-\.?\d", arg):
                joined[-1] += "=" + arg
            else:
                joined.append(arg)
        return super().parse_args(joined)

    def error(self, message: str) -> None:
        if message.startswith("unrecognized") and " -" not in message:  # what a shell makes of --volume run/*.vti
            message = f"{message}: put a pattern of files in quotes"
        raise UserError(f"{message} (see --help)")

    def add_device_arguments(self) -> None:
        """The group "execution": --cuda/--no-cuda, --gid, --num_workers."""
        group = self.add_argument_group("execution")
        group.add_argument("--cuda", action="store_true", default=False, help="use a CUDA GPU (default: the CPU)")
        group.add_argument("--no-cuda", dest="cuda", action="store_false", help="use the CPU")
        group.add_argument("--gid", type=whole(0), default=0, help="which GPU, with --cuda")
        group.add_argument(
            "--num_workers",
            type=whole(1, 1024),
            default=default_workers(),
            help="CPU threads, by themselves one per core, up to 8; no result depends on them",
        )


def default_workers() -> int:
    """CPU threads of this process: the cores that it may use, up to 8, shared among the processes of torchrun."""
    n_cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(min(n_cores // int(os.environ.get("LOCAL_WORLD_SIZE", "1")), 8), 1)


def add_volume_arguments(group) -> None:
    """How to read --volume: --array, --shape, --dtype, --endian."""
    group.add_argument("--array", help="which of the volume's arrays, by its name (default: the active or first one)")
    group.add_argument("--shape", type=sizes, help="voxels X,Y,Z of a headerless volume (.raw), x fastest")
    group.add_argument("--dtype", choices=DTYPES, metavar="T", help="of a headerless volume: uint8, float32, ...")
    group.add_argument("--endian", choices=("little", "big"), help="of a headerless volume (default: little)")


def check_volume_arguments(opt: argparse.Namespace) -> None:
    """Raise UserError when there is no --volume that the options of `add_volume_arguments` could describe."""
    given = [name for name in ("array", "shape", "dtype", "endian") if getattr(opt, name) is not None]
    if given and not opt.volume:
        raise UserError(f"--{given[0]} needs the --volume that it describes")


def sizes(text: str) -> tuple[int, ...]:
    """An argparse type: one to three numbers of voxels, with commas between them."""
    parts, most = text.split(","), (1 << 32) - 1
    if len(parts) > 3 or not all(part.isascii() and part.isdigit() and 0 < int(part) <= most for part in parts):
        raise ArgumentTypeError(f"expected numbers of voxels X,Y,Z from 1 to {most}, found {text!r}")
    return tuple(map(int, parts))


def to_number(text: str) -> int | float:
    """The number that `text` says, an integer exactly. Raises ValueError."""
    try:
        value = int(text)
    except ValueError:
        return float(text)
    return value if abs(value) <= 1 << 64 else float(value)


def fill_text(text: str) -> str:
    """An argparse type: a finite number or NaN; left as text, since NaN does not even equal itself."""
    try:
        if math.isinf(to_number(text)):
            raise ValueError
    except (ValueError, OverflowError):
        raise ArgumentTypeError(f"expected a finite number or nan, found {text!r}") from None
    return text


def interval(text: str) -> tuple[int | float, int | float]:
    """An argparse type: two finite numbers LO,HI, the lower first."""
    try:
        low, high = map(to_number, text.split(","))
        if not -math.inf < low < high < math.inf:
            raise ValueError
    except (ValueError, OverflowError):
        raise ArgumentTypeError(f"expected two numbers LO,HI, the lower first, found {text!r}") from None
    return low, high


def whole(low: int, high: int | None = None) -> Callable[[str], int]:
    """An argparse type: an integer of at least `low` and at most `high`."""
    limits = f"of at least {low}" if high is None else f"from {low} to {high}"

    def parse(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = None
        if value is None or value < low or (high is not None and value > high):
            raise ArgumentTypeError(f"expected an integer {limits}, found {text!r}")
        return value

    return parse


def number(low: float, high: float = math.inf, *, exclusive: bool = False) -> Callable[[str], float]:
    """An argparse type: a finite number of at least `low`, or above it when `exclusive`, and of at most `high`."""
    limits = (f"above {low:g}" if exclusive else f"of at least {low:g}") + (
        f", at most {high:g}" if high < math.inf else ""
    )

    def parse(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not math.isfinite(value) or not low <= value <= high or (exclusive and value == low):
            raise ArgumentTypeError(f"expected a number {limits}, found {text!r}")
        return value

    return parse


def resolve_device(cuda: bool, gid: int):
    """The torch.device that the execution flags ask for. Raises UserError when there is no such GPU.

    torch itself gets one CPU thread: two of its threads beside a busy process are many times slower than one.
    """
    import torch

    torch.set_num_threads(1)
    if not cuda:
        return torch.device("cpu")
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if gid >= count:
        raise UserError(f"--cuda --gid {gid}: expected the number of a CUDA GPU, found {count} GPUs")
    return torch.device("cuda", gid)


# --- files ------------------------------------------------------------------------------------------


def check_outputs(outputs: Sequence[str], inputs: Sequence[str] = ()) -> None:
    """Raise UserError unless every output can be written and none would overwrite an input or another output.

    Called before the work starts. Creates nothing.
    """
    taken = {os.path.realpath(path): path for path in inputs}
    for path in outputs:
        if not path:
            raise UserError("expected the name of a file to write, found an empty one")
        real = os.path.realpath(path)
        if real in taken:
            raise UserError(f"{path}: would overwrite {taken[real]}, choose another name")
        taken[real] = path
        if os.path.exists(real) and not os.path.isfile(real):
            raise UserError(f"{path}: cannot be written: exists and is not a regular file")
        folder = os.path.dirname(real)
        if not os.path.isdir(folder):
            raise UserError(f"{path}: cannot be written: the folder {folder} does not exist")
        temporary = _temporary_name(real)
        try:
            open(temporary, "wb").close()
            os.remove(temporary)
        except OSError as error:
            raise UserError(f"{path}: cannot be written: {error.strerror}: {folder}") from None


def _temporary_name(real: str) -> str:
    return os.path.join(os.path.dirname(real), f".{os.path.basename(real)}.{os.getpid()}.tmp")


@contextlib.contextmanager
def atomic_write(path: str) -> Iterator[str]:
    """Give the name of a temporary file beside `path`, which replaces `path` when the block ends well.

    A killed run leaves the old file or the new one. Raises UserError when the system refuses to write.
    """
    real = os.path.realpath(path)
    temporary = _temporary_name(real)
    try:
        yield temporary
        with open(temporary, "rb") as written:
            os.fsync(written.fileno())
        os.replace(temporary, real)
    except OSError as error:
        raise UserError(f"{path}: cannot be written: {error.strerror or error}") from None
    finally:
        with contextlib.suppress(OSError):
            os.remove(temporary)


def write_files(contents: Mapping[str, bytes], stack: contextlib.ExitStack | None = None) -> None:
    """Write files that belong together: all of them, or none when the system refuses to write one (UserError).

    stack: at whose end they take their names, with others that belong to them.
    """
    with contextlib.ExitStack() as own:
        for path, content in contents.items():
            temporary = (stack or own).enter_context(atomic_write(path))
            try:
                with open(temporary, "wb") as file:
                    file.write(content)
            except OSError as error:
                raise UserError(f"{path}: cannot be written: {error.strerror}") from None


def check_space(path: str, n_bytes: int, what: str) -> None:
    """Raise UserError when `what` needs more bytes, `n_bytes` at least, than the disk of `path` has left."""
    free = shutil.disk_usage(os.path.dirname(os.path.realpath(path))).free
    if n_bytes > free:
        raise UserError(f"{path}: {what} takes at least {_size(n_bytes)}, the disk has {_size(free)} left")


def _size(n_bytes: float) -> str:
    """In the largest unit of which there is one."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if n_bytes < 1000:
            return f"{n_bytes:.3g} {unit}"
        n_bytes /= 1000
    return f"{n_bytes:.3g} TB"


def read_bytes(path: str) -> bytes:
    """The content of a file. Raises UserError when it cannot be read."""
    try:
        with open(path, "rb") as file:
            return file.read()
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None


def load_tensors(path: str) -> object:
    """What torch.save wrote to `path`, on the CPU, without unpickling code. Raises UserError when that fails."""
    import torch

    content = io.BytesIO(read_bytes(path))
    try:
        if zipfile.is_zipfile(content):  # torch itself looks at none of this
            archive = zipfile.ZipFile(content)
            if any(entry.compress_type != zipfile.ZIP_STORED for entry in archive.infolist()):
                raise ValueError("a compressed entry, which torch.save does not write, of whatever length")
            if archive.testzip() is not None:
                raise ValueError("a checksum does not fit")
        content.seek(0)
        return torch.load(content, weights_only=True, map_location="cpu")
    except Exception:  # torch has no error of its own: a damaged file can fail in any of its parsers
        raise UserError(f"{path}: expected a file that train.py wrote, found a damaged or foreign one") from None


# --- what a run says --------------------------------------------------------------------------------


class Progress:
    """A progress bar on stderr with the time left; plain lines, some seconds apart, when it is no terminal."""

    def __init__(self, description: str, fraction: float = 0.0):
        self.description = description
        self.last_line = time.monotonic()
        self.bar = None
        if sys.stderr.isatty():
            form = "{desc}: {percentage:3.0f}%|{bar}| {elapsed}, {remaining} left{postfix}"
            self.bar = tqdm(total=1.0, desc=description, bar_format=form, dynamic_ncols=True, delay=BAR_AFTER_SECONDS)
        self.start(fraction)

    def start(self, fraction: float) -> None:
        """Take it that `fraction` (0 to 1) of the work was done before now: the time left is reckoned from here."""
        self.started, self.initial = time.monotonic(), fraction
        if self.bar is not None:
            self.bar.reset()
            self.bar.initial = self.bar.n = fraction

    def update(self, fraction: float, **figures: str) -> None:
        """Show that `fraction` (0 to 1) of the work is done, with `figures`."""
        if self.bar is not None:
            self.bar.set_postfix(figures, refresh=False)
            self.bar.update(fraction - self.bar.n)
            return
        now = time.monotonic()
        if now - self.last_line >= PLAIN_PROGRESS_SECONDS and self.initial < fraction < 1:
            self.last_line = now
            left = (now - self.started) * (1 - fraction) / (fraction - self.initial)
            shown = "".join(f", {key} {value}" for key, value in figures.items())
            print(f"{self.description}: {fraction:.0%}{shown}, {left:.0f} s left", file=sys.stderr, flush=True)

    def each(self, items: Sequence) -> Iterator:
        """The items, one after the other, each a part of the work."""
        self.start(0.0)
        for i, item in enumerate(items):
            yield item
            self.update((i + 1) / len(items))

    def say(self, line: str) -> None:
        """Print a line on stderr without tearing the bar."""
        tqdm.write(line, file=sys.stderr)

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *exception) -> None:
        if self.bar is not None:
            self.bar.close()


def report(**figures: object) -> None:
    """Print results on stdout, one `key=value` line each."""
    for key, value in figures.items():
        print(f"{key}={value}", flush=True)
