"""Tasks in other processes: all are done, whatever the number of processes; errors and killed processes are told."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import sys
import threading
import time

import pytest
import torch

from training import workers
from training.workers import REPORT_SECONDS, WORTH_WORKERS, Report, Workers
from utils import UserError


def square(number: int, _: bytes, report: Report) -> tuple[int, int]:
    return number**2, os.getpid()


def precision(report: Report) -> str:
    return torch.get_float32_matmul_precision()


def fail(what: str, report: Report) -> None:
    if what == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    raise UserError("a.npy: is bad") if what == "user" else ZeroDivisionError("of a task")


def halve(report: Report) -> str:
    """Tells that it is half done, for so long that this is passed on at least once."""
    until = time.monotonic() + 2 * REPORT_SECONDS
    while True:
        is_last = time.monotonic() > until
        report(0.5)
        if is_last:
            return "whole"


def tasks(n: int) -> list[tuple[int, tuple]]:
    return [(k, (k, bytes(200_000))) for k in range(n)]  # more than a pipe holds


@pytest.fixture
def forked(monkeypatch):
    """Processes that are forked, which takes no time."""
    if not hasattr(os, "fork"):
        pytest.skip("no process is forked here")
    context = multiprocessing.get_context("fork")
    monkeypatch.setattr(workers.multiprocessing, "get_context", lambda kind: context)


def test_all_tasks_are_done_without_the_modules_of_the_current_folder(tmp_path, monkeypatch):
    for name in ("multiprocessing", "torch", "signal"):
        (tmp_path / f"{name}.py").write_text("open('loaded', 'w')")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry])
    monkeypatch.delenv("PYTHONSAFEPATH", raising=False)
    with Workers(2) as two:
        found = dict(two.each_done(square, tasks(7)))
    assert {k: result for k, (result, _) in found.items()} == {k: k * k for k in range(7)}
    assert os.getpid() not in {process for _, process in found.values()}
    assert not (tmp_path / "loaded").exists() and "PYTHONSAFEPATH" not in os.environ


def test_one_process_does_them_itself_and_in_order():
    one = Workers(1)
    assert [(k, pid) for k, (_, pid) in one.each_done(square, tasks(3))] == [(k, os.getpid()) for k in range(3)]


@pytest.mark.usefixtures("forked")
def test_processes_are_started_once_and_not_for_little_work():
    with Workers(2) as two:

        def ids(work: float) -> set[int]:
            return {pid for _, (_, pid) in two.each_done(square, tasks(4), work)}

        assert ids(WORTH_WORKERS / 2) == {os.getpid()} and not two.processes
        started = ids(WORTH_WORKERS)
        assert os.getpid() not in started and len(two.processes) == 2
        assert ids(1.0) <= {process.pid for process in two.processes} and len(two.processes) == 2
    assert not multiprocessing.active_children()


@pytest.mark.usefixtures("forked")
def test_processes_that_are_started_in_advance():
    with Workers(2) as two:
        two.start(1)
        two.start(5)
        assert len(two.processes) == 2
        assert {pid for _, (_, pid) in two.each_done(square, tasks(4), 1.0)} <= {each.pid for each in two.processes}
    with Workers(5) as five:  # no more than there are tasks
        assert len(dict(five.each_done(square, tasks(2)))) == 2 and len(five.processes) == 2
    Workers(1).start(3)
    assert not multiprocessing.active_children()


@pytest.mark.usefixtures("forked")
@pytest.mark.parametrize("n", [1, 2])
def test_how_far_a_task_is_comes_before_its_result_and_not_at_every_call(n):
    told = []
    with Workers(n) as workers:
        results = workers.each_done(halve, [(3, ()), (4, ())], on_part=lambda *part: told.append(part))
        assert dict(results) == {3: "whole", 4: "whole"}
    assert {(3, 0.5), (4, 0.5)} <= set(told) and len(told) < 20
    assert sorted(part for part in told if part[1] == 0) == [(3, 0.0), (4, 0.0)] * (n > 1)  # a process begins


@pytest.mark.usefixtures("forked")
def test_a_process_multiplies_float32_without_tf32():
    torch.set_float32_matmul_precision("high")  # as TORCH_ALLOW_TF32_CUBLAS_OVERRIDE=1 does in a new process
    try:
        with Workers(2) as two:
            assert dict(two.each_done(precision, [(0, ())])) == {0: "highest"}
    finally:
        torch.set_float32_matmul_precision("highest")


def test_a_process_that_is_killed_as_it_starts(monkeypatch):
    def started(workers, start=Workers._start):
        pipe = start(workers)
        workers.processes[-1].kill()
        return pipe

    monkeypatch.setattr(Workers, "_start", started)
    with Workers(2) as workers, pytest.raises(UserError, match="a process that was started was killed"):
        workers.start(2)


def test_ctrl_c_is_heard_by_the_first_process_alone():
    """From the start of the others on, also while they import what they need."""
    before = signal.getsignal(signal.SIGINT)
    with Workers(2) as two:
        pid = next(pid for _, (_, pid) in two.each_done(square, tasks(1)))
        os.kill(pid, signal.SIGINT)
        assert dict(two.each_done(square, tasks(1)))[0][1] == pid
        assert signal.getsignal(signal.SIGINT) is before


@pytest.mark.usefixtures("forked")
def test_tasks_are_drawn_when_a_process_is_free():
    drawn = []
    counted = (task for task in tasks(6) if drawn.append(task[0]) is None)
    with Workers(2) as two:
        for n_done, _ in enumerate(two.each_done(square, counted), 1):
            assert len(drawn) <= n_done + 2
    assert len(drawn) == 6


@pytest.mark.usefixtures("forked")
@pytest.mark.parametrize(
    ("what", "error", "said"),
    [("user", UserError, "a.npy: is bad"), ("bug", RuntimeError, "ZeroDivisionError: of a task"),
     ("killed", UserError, r"the process that worked on brick [01] was killed")],
)  # fmt: skip
def test_errors_of_a_process_end_the_run(what, error, said):
    with pytest.raises(error, match=said), Workers(2) as two:
        list(two.each_done(fail, [(0, (what,)), (1, (what,))]))


def test_processes_start_at_the_same_time(monkeypatch):
    """Also for tasks that no pipe holds: none of these processes is ready before all have been started."""
    n, threads, pipes = 3, [], []
    all_started = threading.Barrier(n)

    def work(pipe):
        with contextlib.suppress(threading.BrokenBarrierError), pipe:
            all_started.wait(timeout=20)
            pipe.send((None, None, 0.0))
            function, arguments = pipe.recv()
            pipe.send((function(*arguments, None), None, None))

    def start(_):
        here, there = multiprocessing.Pipe()
        pipes.append(here)
        threads.append(threading.Thread(target=work, args=(there,)))
        threads[-1].start()
        return here

    monkeypatch.setattr(Workers, "_start", start)
    with Workers(n) as several:
        found = dict(several.each_done(square, ((k, (k, bytes(2_000_000))) for k in range(n))))
    assert {k: result for k, (result, _) in found.items()} == {k: k * k for k in range(n)}
    for thread, pipe in zip(threads, pipes, strict=True):
        thread.join()
        pipe.close()
