"""A script as a program: how it ends, its progress on stderr, its results on stdout.

A script imports this module first. Nothing heavy is imported here, so that Ctrl-C is answered by one line while the
other modules still load.
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


import time
from collections.abc import Callable, Iterator, Sequence

from tqdm import tqdm

from utils import UserError

EXIT_ERROR = 2
PLAIN_PROGRESS_SECONDS = 10.0
BAR_AFTER_SECONDS = 0.5


def run(main: Callable[[Sequence[str]], None]) -> None:
    """Run a script's `main(argv)`: a UserError becomes one line and status 2.

    Ctrl-C becomes status 130, SIGTERM 143. Anything else is a bug and keeps its traceback.
    """
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        main(sys.argv[1:])
        sys.stdout.flush()
    except UserError as error:
        message = " ".join(line.strip() for line in str(error).splitlines())
        print(f"{os.path.basename(sys.argv[0])}: error: {message}", file=sys.stderr)
        sys.exit(EXIT_ERROR)
    except BrokenPipeError:  # the reader of our output, `head` say, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except KeyboardInterrupt as interrupt:  # its argument, if any, says what the script leaves behind
        sys.stdout.flush()
        _end_interrupted(*map(str, interrupt.args))


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


def warn(source: str, message: str) -> None:
    """Print one line on stderr. source: the script, or the file that it is about."""
    print(f"{source}: warning: {message}", file=sys.stderr)


def report(**figures: object) -> None:
    """Print results on stdout, one `key=value` line each."""
    for key, value in figures.items():
        print(f"{key}={value}", flush=True)
