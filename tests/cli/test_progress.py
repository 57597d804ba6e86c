"""Bars on a terminal, lines elsewhere."""

from __future__ import annotations

import io
import os
import re
import subprocess
import sys
from types import SimpleNamespace

import pytest
import tqdm
from helpers.scripts import ROOT

from cli import progress
from cli.progress import Progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True

    def lines(self) -> list[str]:
        """What stands on the screen: a carriage return begins the line anew, over what stands there."""
        shown = []
        for text in self.getvalue().split("\n"):
            line = ""
            for part in text.split("\r"):
                line = part + line[len(part) :]
            shown.append(line.rstrip())
        return shown


@pytest.fixture
def clock(monkeypatch):
    """The time, in seconds, which only the test moves."""
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(tqdm.std, "time", lambda: now[0])
    return now


@pytest.fixture
def terminal(monkeypatch):
    """A terminal of 80 columns."""
    terminal = Terminal()
    monkeypatch.setattr(progress, "sys", SimpleNamespace(stderr=terminal))
    monkeypatch.setattr(tqdm.std, "_screen_shape_wrapper", lambda: lambda file: (80, 24))
    return terminal


def test_without_a_terminal_there_are_plain_lines(capsys, clock, monkeypatch):
    with Progress("training", 4) as shown:
        for done, figures in ((1, {"PSNR": "31.0 dB"}), (1.5, {}), (2, {}), (4, {})):
            clock[0] = 100 + 10 * done
            shown.update(done, **figures)
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines() == ["training: 25%, PSNR 31.0 dB, 30 s left", "training: 50%, PSNR 31.0 dB, 20 s left"]


def test_a_bar_ends_full_and_in_a_line_of_its_own(terminal, clock):
    with Progress("training", 200) as shown:
        for _ in range(10):
            clock[0] += 1
            shown.advance(19, PSNR="31.0 dB")
            assert all(len(line) <= 80 for line in terminal.lines())
    print("psnr=31", file=terminal)
    assert re.fullmatch(r"training: 100% \[#+\] 00:10, 00:00 left, PSNR 31\.0 dB", terminal.lines()[0])
    assert terminal.lines()[1:] == ["psnr=31", ""]


@pytest.mark.parametrize(
    ("size", "bar"), [((0, 0), "#{40,60}"), ((60, 0), "#{20,40}"), ((0, 24), "#{40,60}"), ((60, 2), "#{20,40}")]
)
def test_a_terminal_that_tells_no_size_has_a_bar(clock, monkeypatch, size, bar):
    """Of 80 columns where it tells no width. Some containers give such terminals; `stty cols 60` another kind."""
    termios = pytest.importorskip("termios")
    reader, writer = os.openpty()
    with open(reader, "rb", buffering=0) as screen, open(writer, "w") as terminal:
        termios.tcsetwinsize(writer, size[::-1])
        monkeypatch.setattr(progress, "sys", SimpleNamespace(stderr=terminal))
        with Progress("training", 4) as shown:
            clock[0] += 1
            shown.advance(4)
        terminal.flush()
        drawn = screen.read(4096).decode()
    assert re.search(rf"training: 100% \[{bar}\] 00:01, 00:00 left", drawn)


def test_a_bar_leaves_nothing_to_clean_up():
    """After Ctrl-C, which ends a script at once, Python would tell of it, where processes are not forked."""
    program = (
        "import multiprocessing, os, sys\n"
        "multiprocessing.set_start_method('spawn')\n"
        "sys.stderr.isatty = lambda: True\n"
        "from cli.progress import Progress\n"
        "Progress('training', 4, seconds=9).update(2)\n"
        "os._exit(0)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT)
    assert "training:  50% [" in done.stderr and "leaked" not in done.stderr


def test_the_time_left_is_that_of_the_work_so_far(terminal, clock):
    """Also where an earlier run has done a part, and where more work turns up."""
    with Progress("training", 100, 60) as shown:
        clock[0] += 5
        shown.advance(10)
        assert "00:15 left" in terminal.lines()[0] and " 70% [" in terminal.lines()[0]
        clock[0] += 5
        shown.plan(100)
        shown.advance(10)
        assert "01:00 left" in terminal.lines()[0] and " 40% [" in terminal.lines()[0]


def test_the_speed_is_that_since_the_work_began(capsys, clock, monkeypatch):
    """Not since processes were started for it."""
    with Progress("rounding", 100) as shown:
        clock[0] += 20
        shown.advance(0)
        clock[0] += 10
        shown.advance(50)
    assert capsys.readouterr().err == "rounding: 50%, 10 s left\n"


def test_one_bar_goes_on_where_that_of_a_part_ended(terminal, clock):
    """Its time is that of all the work, and nothing of the other one stays."""
    with Progress("training", 100, is_part=True) as shown:
        clock[0] += 5
        shown.update(10)
        assert " 10% [" in terminal.lines()[0] and "00:45 left" in terminal.lines()[0]
    assert terminal.lines() == [""]
    with Progress("training", 100, 10, seconds=5) as shown:
        clock[0] += 5
        shown.update(20)
        assert " 20% [" in terminal.lines()[0] and "00:10, 00:40 left" in terminal.lines()[0]
    assert len(terminal.lines()) == 2


def test_short_work_leaves_no_trace(terminal, clock):
    with Progress("decoding") as shown:
        clock[0] += 0.4
        shown.update(0.5)
    assert terminal.getvalue() == ""


def test_an_error_ends_the_line_where_it_was(terminal, clock):
    with pytest.raises(ValueError), Progress("training") as shown:
        clock[0] += 1
        shown.update(0.25)
        raise ValueError
    assert " 25% [" in terminal.lines()[0] and terminal.lines()[1:] == [""]


def test_a_line_that_is_said_stands_above_the_bar(terminal, clock):
    with Progress("training") as shown:
        clock[0] += 1
        shown.update(0.25)
        shown.say("again")
        clock[0] += 1
        shown.update(0.5)
    assert terminal.lines()[0] == "again" and "100% [" in terminal.lines()[1] and len(terminal.lines()) == 3


def test_items_are_parts_of_the_work(clock):
    shown = Progress("measuring", 3)
    assert list(shown.each("ab")) == ["a", "b"] and shown.done == 1
    assert list(shown.each("abcd", 2)) == list("abcd") and shown.done == 3
