"""How a run ends before its time. This module imports nothing heavy, for `cli/startup.py`."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable

EXIT_ERROR = 2  # exit status after a UserError
_interruption = signal.SIGINT  # the signal that ends the run
when_interrupted: list[Callable[[], None]] = []  # what is called before an interrupted run ends


def interrupt(number: int, _) -> None:
    """Handle a signal like Ctrl-C, so that temporary files are removed."""
    global _interruption
    _interruption = number
    raise KeyboardInterrupt


def end_interrupted(what_is_left: str = "") -> None:
    """Print one line and exit at once with status 130 or 143: threads of other libraries must not delay the end."""
    for clean_up in when_interrupted:
        clean_up()
    line = f"{os.path.basename(sys.argv[0])}: interrupted{what_is_left and ': '}{what_is_left}"
    print(f"\n{line}" if sys.stderr.isatty() else line, file=sys.stderr, flush=True)
    os._exit(128 + _interruption)
