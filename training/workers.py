"""Processes that do independent tasks, one a core. Results do not depend on their number."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import traceback
from collections.abc import Callable, Iterable, Iterator
from multiprocessing import connection

import torch

from utils import UserError


def each_done(
    function: Callable[..., object], tasks: Iterable[tuple[int, tuple]], n_processes: int
) -> Iterator[tuple[int, object]]:
    """The number and the result, `function(*arguments)`, of each task (number, arguments), as they are done.

    function, arguments and results: what pickle takes. A task is drawn when a process is free for it, so few are in
    memory at a time. With fewer than two processes, all is done in this one. Raises UserError when one has been killed.
    """
    if n_processes <= 1:
        for number, arguments in tasks:
            yield number, function(*arguments)
        return
    with _processes(function, n_processes) as pipes:
        tasks, busy = iter(tasks), {}
        while True:
            while pipes and (task := next(tasks, None)) is not None:
                pipe = pipes.pop()
                busy[pipe] = task[0]
                _answering(task[0], pipe.send, task[1])
            if not busy:
                return
            for pipe in connection.wait(list(busy)):
                result, error = _answering(busy[pipe], pipe.recv)
                if isinstance(error, UserError):
                    raise error
                if error:
                    raise RuntimeError(f"in another process:\n{error}")
                pipes.append(pipe)
                yield busy.pop(pipe), result


@contextlib.contextmanager
def _processes(function: Callable[..., object], n: int) -> Iterator[list[connection.Connection]]:
    """Pipes to so many new processes, which end with the context."""
    context, pipes, processes = multiprocessing.get_context("spawn"), [], []
    safe = os.environ.get("PYTHONSAFEPATH")
    os.environ["PYTHONSAFEPATH"] = "1"  # a new process loads no modules of the current folder
    try:
        for _ in range(n):
            here, there = context.Pipe()
            processes.append(context.Process(target=_work, args=(there, function), daemon=True))
            processes[-1].start()
            there.close()
            pipes.append(here)
    finally:
        os.environ.pop("PYTHONSAFEPATH")
        os.environ |= {"PYTHONSAFEPATH": safe} if safe is not None else {}
    try:
        yield pipes
    finally:
        for process in processes:
            process.kill()  # a process that has only just started would not hear SIGTERM; none leaves anything behind
        for process in processes:
            process.join()


def _work(pipe: connection.Connection, function: Callable[..., object]) -> None:
    """Do the tasks that come through a pipe, until it is closed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes; the first one ends the others
    torch.set_num_threads(1)
    with contextlib.suppress(EOFError, OSError):
        while True:
            arguments, result, error = pipe.recv(), None, None
            try:
                result = function(*arguments)
            except UserError as found:
                error = found
            except Exception:
                error = traceback.format_exc()
            pipe.send((result, error))


def _answering(number: int, talk: Callable[..., object], *content: object) -> object:
    """What `talk(*content)` returns, to or from the process that does task `number`."""
    try:
        return talk(*content)
    except (EOFError, OSError):
        way_out = "perhaps memory ran out: fewer --num_workers take less"
        raise UserError(f"the process that worked on brick {number} was killed: {way_out}") from None
