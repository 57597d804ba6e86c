"""Processes that do independent tasks, one a core. Results do not depend on their number."""

from __future__ import annotations

import contextlib
import itertools
import math
import multiprocessing
import os
import signal
import threading
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from multiprocessing import connection

from cli.arguments import set_up_torch
from utils import UserError

WORTH_WORKERS = 3e10  # least `training_work` for which processes are started: 5 seconds, where a start takes 2
REPORT_SECONDS = 0.2  # between two reports of how far a task is
Report = Callable[[float], None]  # is told the fraction of a task that is done


def most_work_first(work: Mapping[int, float]) -> list[int]:
    """The numbers of tasks in the order in which they are best done. work: of each."""
    return sorted(work, key=lambda k: (-work[k], k))


class Workers:
    """At most `most` processes. They are started when there are tasks for them, and end with the context.

    With fewer than two, all tasks are done in this process.
    """

    def __init__(self, most: int):
        self.most = most
        self.processes: list[multiprocessing.Process] = []
        self.free: list[connection.Connection] = []  # the pipes to those that wait for a task

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, *_: object) -> None:
        for process in self.processes:
            process.kill()  # a process that has only just started would not hear SIGTERM; none leaves anything behind
        for process in self.processes:
            process.join()
        self.processes, self.free = [], []

    def start(self, n: int) -> None:
        """Start processes, up to `n` in all, and wait until they are ready for a task. Raises UserError if one dies."""
        if self.most <= 1:
            return
        new = [self._start() for _ in range(len(self.processes), min(n, self.most))]
        for pipe in new:
            _talk(None, pipe.recv)  # that it is ready: until then, it would not take a large task
        self.free += new

    def each_done(
        self,
        function: Callable[..., object],
        tasks: Iterable[tuple[int, tuple]],
        work: float = math.inf,
        on_part: Callable[[int, float], None] = lambda number, part: None,
    ) -> Iterator[tuple[int, object]]:
        """The number and the result of each task (number, arguments) as it is done: `function(*arguments, report)`.

        function, arguments and results: what pickle takes. A task is drawn when a process is free for it, so few are in
        memory at a time. work: of all tasks together, see WORTH_WORKERS. on_part(number, part): is called with 0 when a
        process begins with a task, and with what the task's function tells its Report. Raises UserError when a process
        has been killed. After an error, these workers do nothing more.
        """
        if self.most <= 1 or (work < WORTH_WORKERS and not self.processes):
            for number, arguments in tasks:
                yield number, function(*arguments, _now_and_then(partial(on_part, number)))
            return
        tasks, busy = iter(tasks), {}
        drawn = list(itertools.islice(tasks, self.most))
        self.start(len(drawn))
        while True:
            while self.free and (task := drawn.pop(0) if drawn else next(tasks, None)):
                pipe = self.free.pop()
                busy[pipe], arguments = task
                on_part(busy[pipe], 0.0)
                _talk(busy[pipe], pipe.send, (function, arguments))
            if not busy:
                return
            for pipe in connection.wait(list(busy)):
                result, error, part = _talk(busy[pipe], pipe.recv)
                if part is not None:
                    on_part(busy[pipe], part)
                    continue
                if isinstance(error, UserError):
                    raise error
                if error:
                    raise RuntimeError(f"in another process:\n{error}")
                self.free.append(pipe)
                yield busy.pop(pipe), result

    def _start(self) -> connection.Connection:
        """The pipe to a new process."""
        context = multiprocessing.get_context("spawn")
        here, there = context.Pipe()
        process = context.Process(target=_work, args=(there,), daemon=True)
        with _on_their_own():
            process.start()
        there.close()
        self.processes.append(process)
        return here


@contextlib.contextmanager
def _on_their_own() -> Iterator[None]:
    """Processes that start meanwhile load no modules of the current folder, and do not hear Ctrl-C.

    Ctrl-C reaches all processes: the first one ends the others.
    """
    name, is_main = "PYTHONSAFEPATH", threading.current_thread() is threading.main_thread()
    before, handler = os.environ.get(name), signal.getsignal(signal.SIGINT)
    os.environ[name] = "1"
    if is_main:  # which alone may set what a signal does
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        if is_main:
            signal.signal(signal.SIGINT, handler)
        os.environ.pop(name)
        os.environ |= {name: before} if before is not None else {}


def _work(pipe: connection.Connection) -> None:
    """Do the tasks that come through a pipe, until it is closed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    set_up_torch()
    with contextlib.suppress(EOFError, OSError):
        pipe.send("ready")
        while True:
            (function, arguments), result, error = pipe.recv(), None, None
            try:
                result = function(*arguments, _now_and_then(lambda part: pipe.send((None, None, part))))
            except UserError as found:
                error = found
            except Exception:
                error = traceback.format_exc()
            pipe.send((result, error, None))


def _now_and_then(report: Report) -> Report:
    """A Report that is passed on every REPORT_SECONDS only."""
    latest = time.monotonic()

    def reported(part: float) -> None:
        nonlocal latest
        if time.monotonic() - latest >= REPORT_SECONDS:
            latest = time.monotonic()
            report(part)

    return reported


def _talk(number: int | None, send_or_receive: Callable[..., object], *content: object) -> object:
    """What `send_or_receive(*content)` returns, to or from the process that does task `number`, if any."""
    try:
        return send_or_receive(*content)
    except (EOFError, OSError):
        way_out = "perhaps memory ran out: fewer --num_workers take less"
        process = "a process that was started" if number is None else f"the process that worked on brick {number}"
        raise UserError(f"{process} was killed: {way_out}") from None
