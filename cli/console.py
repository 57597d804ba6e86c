"""How a script ends, and how it prints warnings on stderr and its results on stdout."""

from __future__ import annotations

import io
import logging
import os
import re
import shlex
import signal
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import NoReturn

from cli.endings import EXIT_ERROR, end_interrupted, interrupt
from cli.files import LossyFile, states_of
from utils import UserError

MAX_MESSAGE = 1000  # characters of an error
NO_GPU_MEMORY = re.compile("CUDA.*(out of memory|ALLOC_FAILED)")  # in the messages of torch's errors


def _write_with_care(name: str) -> LossyFile | None:
    """Make sys.stdout or sys.stderr write by way of a LossyFile, and escape characters that its encoding lacks.

    Returns the LossyFile; None where the stream is a caller's own, or Windows', which can be a console of its own kind.
    """
    stream = getattr(sys, name)
    if os.name == "nt" or stream is not getattr(sys, f"__{name}__"):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
        return None
    stream.flush()
    raw, by_line = LossyFile(stream.fileno(), "w", closefd=False), stream.line_buffering or stream.write_through
    setattr(sys, name, io.TextIOWrapper(io.BufferedWriter(raw), stream.encoding, "backslashreplace", None, by_line))
    return raw


def run(main: Callable[[Sequence[str]], None]) -> None:
    """Run a script's `main(argv)`. A UserError gives one line and status 2, and so does a GPU without free memory.

    Ctrl-C gives status 130, SIGTERM 143, a closed terminal 129. Any other exception is a bug and keeps its traceback.
    When the results cannot be printed: one line and status 2; status 1 when their reader, such as `head`, has ended.
    """
    out, _ = _write_with_care("stdout"), _write_with_care("stderr")
    signal.signal(signal.SIGTERM, interrupt)
    if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:  # nohup ignores it
        signal.signal(signal.SIGHUP, interrupt)
    try:
        main(sys.argv[1:])
        sys.stdout.flush()
    except UserError as error:
        _end_with(" ".join(line.strip() for line in str(error).splitlines()))
    except RuntimeError as error:
        if not NO_GPU_MEMORY.search(str(error)):
            raise
        way_out = "end other programs on it, choose another one with --gid, or leave out --cuda"
        _end_with(f"the memory of the GPU is full: {way_out}")
    except KeyboardInterrupt as pressed:  # its argument, if any, says what the script leaves behind
        end_interrupted(*map(str, pressed.args))  # without a flush: what is in the buffer may be written already
    if out and isinstance(out.failure, BrokenPipeError):
        sys.exit(1)
    if out and out.failure:
        _end_with(f"standard output: cannot be written: {out.failure.strerror}: the files are written")


def _end_with(message: str) -> NoReturn:
    if len(message) > MAX_MESSAGE:
        message = f"{message[: MAX_MESSAGE // 2]} ... {message[-MAX_MESSAGE // 2 :]}"  # its end says what to do
    print(f"{os.path.basename(sys.argv[0])}: error: {escaped(message)}", file=sys.stderr)
    _silence()
    sys.exit(EXIT_ERROR)


def _silence() -> None:
    """Keep to the one line: threads that still run, as Zarr's with other chunks, would tell that Python ends."""
    logging.disable()
    warnings.simplefilter("ignore")
    sys.unraisablehook = lambda _: None


def escaped(text: str) -> str:
    """The text with all else than printable characters escaped: files and names may hold ESC sequences."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def python(*arguments: str) -> list[str]:
    """The command that starts Python as safely as this one, and never with modules of the current folder."""
    return [sys.executable, "-I" if sys.flags.isolated else "-P", *arguments]


def note(source: str, message: str) -> None:
    """Print a line on stderr. source: the script, or the file that the line is about."""
    print(escaped(f"{source}: {message}"), file=sys.stderr)


def warn(source: str, message: str) -> None:
    """Print a one-line warning on stderr, as `note` does."""
    note(source, f"warning: {message}")


def warn_of_changes(source: str, before: Mapping[str, tuple[int, int]]) -> None:
    """Warn of the first file with another state than before, as `states_of` told it. One that is gone does no harm."""
    changed = [path for path, state in states_of([*before]).items() if state != before[path]]
    if changed:
        what = "was written to during the run, which may have read parts of two versions"
        warn(source, f"{changed[0]}: {what}: run again")


def report(line: str, figures: Mapping[str, object]) -> None:
    """Print the results on stdout: the line for people on a terminal, elsewhere the figures as `key=value` lines."""
    lines = line.splitlines() if sys.stdout.isatty() else [f"{key}={value}" for key, value in figures.items()]
    for text in lines:
        print(escaped(text), flush=True)


def next_command(script: str, *arguments: str) -> None:
    """Print the command that comes next, to be pasted into a shell."""
    print("next: python", script, *map(_as_word, arguments))


def _as_word(text: str) -> str:
    """An argument as a shell takes it. Characters that are not printable are escaped, in Bash's form $'...'."""
    if text.isprintable():
        return shlex.quote(text)
    quoted = text.replace("\\", r"\\").replace("'", r"\'")
    return f"$'{escaped(quoted)}'"
