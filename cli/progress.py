"""How much of some work is done, and the time left, on stderr."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence

from tqdm import tqdm

BAR_AFTER_SECONDS = 0.5  # shorter work shows no bar
BAR_SECONDS = 0.2  # between two pictures of a bar
PLAIN_SECONDS = 10.0  # between two plain lines
BAR = "{desc}: {percentage:3.0f}% [{bar}] {elapsed}, {remaining} left{postfix}"
# One process draws all bars. tqdm's own lock is one between processes, too: after Ctrl-C, Python 3.14 warns of it.
tqdm.set_lock(threading.RLock())


class Progress:
    """A bar on a terminal, in a line of its own; elsewhere plain lines, some seconds apart.

    total: all of the work, in any unit. done: what is done of it. seconds: that this took just before; 0 where an
    earlier run did it. The time left is that of equal work at the speed so far. is_part: the bar gives its place to
    that of another Progress, which goes on with the same work.
    """

    def __init__(
        self, description: str, total: float = 1.0, done: float = 0.0, seconds: float = 0.0, is_part: bool = False
    ):
        self.description, self.total, self.done, self.is_part = description, total, done, is_part
        self.first = 0.0 if seconds else done
        self.shown = time.monotonic()
        self.started = self.shown - seconds
        self.figures: dict[str, str] = {}
        self.bar: tqdm | None = None

    def plan(self, work: float) -> None:
        """Add work to be done."""
        self.total += work

    def advance(self, work: float, **figures: str) -> None:
        """Show that this much more of the work is done, with `figures` from now on."""
        self.update(self.done + work, **figures)

    def update(self, done: float, **figures: str) -> None:
        """Show that this much of the work is done, with `figures` from now on."""
        self.done = done
        self.figures |= figures
        now = time.monotonic()
        if done <= self.first:  # the time that processes take to start tells nothing of the speed
            self.started = now
        shown = ", ".join(f"{key} {value}" for key, value in self.figures.items())
        if sys.stderr.isatty():
            if now - self.started >= BAR_AFTER_SECONDS:
                self._draw(now, shown)
        elif now - self.shown >= PLAIN_SECONDS and self.first < done < self.total:
            self.shown = now
            left = (now - self.started) * (self.total - done) / (done - self.first)
            parts = [f"{self.description}: {done / self.total:.0%}", *filter(None, [shown]), f"{left:.0f} s left"]
            print(", ".join(parts), file=sys.stderr, flush=True)

    def each(self, items: Sequence, work: float = 1.0) -> Iterator:
        """Yield the items one by one. All of them together are this much work."""
        for item in items:
            yield item
            self.advance(work / len(items))

    def say(self, line: str) -> None:
        """Print a line on stderr, above the bar."""
        tqdm.write(line, file=sys.stderr)

    def _draw(self, now: float, shown: str) -> None:
        if self.bar is None:
            form = {"bar_format": BAR, "ascii": ".#", **_width()}
            often = {"mininterval": BAR_SECONDS, "miniters": 0, "smoothing": 0.0}  # the time left is by the mean speed
            first = {"initial": self.first, "delay": 1e-9}  # the first picture is that of the first update
            self.bar = tqdm(desc=self.description, total=self.total, file=sys.stderr, **form, **often, **first)
            self.bar.start_t = self.bar.last_print_t = self.bar.start_t - (now - self.started)
        self.bar.total = self.total
        self.bar.set_postfix_str(shown, refresh=False)
        self.bar.update(min(self.done, self.total) - self.bar.n)

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_) -> None:
        """End the bar's line. It is full, unless an error ended the work. The line of a part is wiped out."""
        if self.bar is not None:
            self.bar.leave = not self.is_part or kind is not None
            if kind is None:
                self.bar.n = self.bar.total = self.total
            self.bar.close()


def _width() -> dict[str, object]:
    """What makes a bar as wide as the terminal: 80 columns where it tells no width, as in some containers."""
    try:
        columns, lines = os.get_terminal_size(sys.stderr.fileno())
    except (OSError, ValueError):
        columns, lines = 0, 0
    # tqdm hides all bars in a terminal of fewer lines, and where it tells none.
    return {"dynamic_ncols": True} if columns and lines >= 3 else {"ncols": columns or 80, "nrows": 24}


class NoProgress(Progress):
    """Shows nothing: the progress of a part, of which the whole tells. n_said: the lines that it has not printed.

    report: is told the fraction that is done.
    """

    def __init__(self, report: Callable[[float], None] = lambda part: None):
        super().__init__("")
        self.report, self.n_said = report, 0

    def update(self, done: float, **figures: str) -> None:
        self.done = done
        self.report(done / self.total)

    def say(self, line: str) -> None:
        self.n_said += 1


class Parts:
    """Tells a Progress how far the parts are that some work has. work: of each part, by number."""

    def __init__(self, progress: Progress, work: Mapping[int, float]):
        self.progress, self.work = progress, work
        self.done = dict.fromkeys(work, 0.0)

    def update(self, number: int, part: float, **figures: str) -> None:
        """Show that this fraction of a part is done, with `figures` from now on."""
        before, self.done[number] = self.done[number], part * self.work[number]
        self.progress.advance(self.done[number] - before, **figures)

    def update_all(self, numbers: Sequence[int], part: float) -> None:
        """Show that this fraction of each of these parts is done."""
        for number in numbers:
            self.update(number, part)
