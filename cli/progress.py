"""How much of some work is done, and the time left, on stderr."""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Iterator, Sequence

BAR_AFTER_SECONDS = 0.5  # shorter work shows no bar
BAR_SECONDS = 0.2  # between two pictures of a bar
PLAIN_SECONDS = 10.0  # between two plain lines
MOST_BAR, LEAST_BAR = 30, 5  # characters of the bar itself


class Progress:
    """A bar on a terminal, in a line of its own; elsewhere plain lines, some seconds apart.

    total: all of the work, in any unit. done: what an earlier run has done of it. The time left is that of equal work
    at the speed so far.
    """

    def __init__(self, description: str, total: float = 1.0, done: float = 0.0):
        self.description, self.total, self.done, self.first = description, total, done, done
        self.started = self.shown = time.monotonic()
        self.figures: dict[str, str] = {}
        self.n_drawn = 0  # characters of the bar's line; 0 when there is none
        self.is_terminal = sys.stderr.isatty()

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
        if not self.is_terminal:
            if now - self.shown >= PLAIN_SECONDS and self.first < done < self.total:
                self.shown = now
                shown = "".join(f", {key} {value}" for key, value in self.figures.items())
                line = f"{self.description}: {done / self.total:.0%}{shown}, {self._seconds_left(now):.0f} s left"
                print(line, file=sys.stderr, flush=True)
        elif now - self.started >= BAR_AFTER_SECONDS and now - self.shown >= BAR_SECONDS:
            self.shown = now
            self._draw(now)

    def each(self, items: Sequence, work: float = 1.0) -> Iterator:
        """Yield the items one by one. All of them together are this much work."""
        for item in items:
            yield item
            self.advance(work / len(items))

    def say(self, line: str) -> None:
        """Print a line on stderr, above the bar."""
        print(self._erased() + line, file=sys.stderr, flush=True)

    def _erased(self) -> str:
        """What makes the line of the bar empty."""
        n_drawn, self.n_drawn = self.n_drawn, 0
        return f"\r{' ' * n_drawn}\r" if n_drawn else ""

    def _seconds_left(self, now: float) -> float:
        done = self.done - self.first
        return (now - self.started) * (self.total - self.done) / done if done > 0 else float("nan")

    def _draw(self, now: float) -> None:
        """Draw the line of the bar over the last one, within the width of the terminal."""
        fraction = min(self.done / self.total, 1.0)
        left = self._seconds_left(now)
        shown = "".join(f", {key} {value}" for key, value in self.figures.items())
        before = f"{self.description}: {fraction:4.0%} "
        after = f" {_clock(now - self.started)}, {_clock(left)} left{shown}"
        width = shutil.get_terminal_size().columns - 1
        size = max(min(width - len(before) - len(after) - 2, MOST_BAR), LEAST_BAR)
        n_full = round(size * fraction)
        line = f"{before}[{'#' * n_full}{'.' * (size - n_full)}]{after}"[:width]
        print("\r" + line.ljust(self.n_drawn), end="", file=sys.stderr, flush=True)
        self.n_drawn = len(line)

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_) -> None:
        """End the bar's line. It is full, unless an error ended the work."""
        if self.n_drawn:
            if kind is None:
                self.done = self.total
                self._draw(time.monotonic())
            print(file=sys.stderr, flush=True)
        self.n_drawn = 0


def _clock(seconds: float) -> str:
    """A time as minutes and seconds, with hours if there are any; "?" if it is unknown."""
    if not seconds < 1e7:
        return "?"
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
