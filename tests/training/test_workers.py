"""Tasks in other processes: all are done, whatever the number of processes; errors and killed processes are told."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys

import pytest

from training import workers
from training.workers import each_done
from utils import UserError


def square(number: int, _: bytes) -> tuple[int, int]:
    return number**2, os.getpid()


def fail(what: str) -> None:
    if what == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    raise UserError("a.npy: is bad") if what == "user" else ZeroDivisionError("of a task")


def tasks(n: int) -> list[tuple[int, tuple]]:
    return [(k, (k, bytes(200_000))) for k in range(n)]  # more than a pipe holds


@pytest.fixture
def forked(monkeypatch):
    """Processes that are forked, which takes no time."""
    context = multiprocessing.get_context("fork")
    monkeypatch.setattr(workers.multiprocessing, "get_context", lambda kind: context)


def test_all_tasks_are_done_without_the_modules_of_the_current_folder(tmp_path, monkeypatch):
    for name in ("multiprocessing", "torch", "signal"):
        (tmp_path / f"{name}.py").write_text("open('loaded', 'w')")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry])
    monkeypatch.delenv("PYTHONSAFEPATH", raising=False)
    found = dict(each_done(square, tasks(7), 2))
    assert {k: result for k, (result, _) in found.items()} == {k: k * k for k in range(7)}
    assert os.getpid() not in {process for _, process in found.values()}
    assert not (tmp_path / "loaded").exists() and "PYTHONSAFEPATH" not in os.environ


def test_one_process_does_them_itself_and_in_order():
    assert [(k, pid) for k, (_, pid) in each_done(square, tasks(3), 1)] == [(k, os.getpid()) for k in range(3)]


@pytest.mark.usefixtures("forked")
def test_tasks_are_drawn_when_a_process_is_free():
    drawn = []
    counted = (task for task in tasks(6) if drawn.append(task[0]) is None)
    for n_done, _ in enumerate(each_done(square, counted, 2), 1):
        assert len(drawn) <= n_done + 2
    assert len(drawn) == 6


@pytest.mark.usefixtures("forked")
@pytest.mark.parametrize(
    ("what", "error", "said"),
    [("user", UserError, "a.npy: is bad"), ("bug", RuntimeError, "ZeroDivisionError: of a task"),
     ("killed", UserError, r"the process that worked on brick [01] was killed")],
)  # fmt: skip
def test_errors_of_a_process_end_the_run(what, error, said):
    with pytest.raises(error, match=said):
        list(each_done(fail, [(0, (what,)), (1, (what,))], 2))
