"""The processes of a run: this one alone, or the processes of torchrun, which fit one network together.

Every process draws the same batches and computes a share of each. The gradients are averaged before the step. All
processes base a decision on the same number. In a run of one process, the functions here leave everything as it is.
"""

from __future__ import annotations

import contextlib
import contextvars
import datetime
import os
import sys
import time
from collections.abc import Iterator

import torch
import torch.distributed as dist

from utils import UserError

TIMEOUT = datetime.timedelta(minutes=30)  # how long a process waits for the others at a step
PATIENCE = datetime.timedelta(days=100)  # how long it waits for what they do apart; the end of a process ends the wait
FIRST_SPEAKS = 30.0  # seconds by which the other processes delay their errors: torchrun ends them meanwhile

_is_apart = contextvars.ContextVar("is_apart", default=False)
_patient: dist.ProcessGroup | None = None  # all processes, with PATIENCE


@contextlib.contextmanager
def joined() -> Iterator[None]:
    """Join the processes that torchrun started, if any, and leave at the end. Only the first process prints."""
    global _patient
    if not dist.is_torchelastic_launched():
        yield
        return
    dist.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo", timeout=TIMEOUT)
    _patient = dist.new_group(timeout=PATIENCE, backend="gloo")
    with contextlib.ExitStack() as stack:
        if dist.get_rank() > 0:
            nowhere = stack.enter_context(open(os.devnull, "w"))
            stack.enter_context(contextlib.redirect_stdout(nowhere))
            stack.enter_context(contextlib.redirect_stderr(nowhere))
        try:
            yield
        except Exception:
            if dist.get_rank() > 0:
                time.sleep(FIRST_SPEAKS)
            raise
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)  # without clean-up: the end of gloo's threads has aborted processes after their work was done


@contextlib.contextmanager
def apart() -> Iterator[None]:
    """Work that this process does by itself: meanwhile it counts as the only process of the run."""
    token = _is_apart.set(True)
    try:
        yield
    finally:
        _is_apart.reset(token)


def count() -> int:
    """The number of processes in this run that work together."""
    return dist.get_world_size() if dist.is_initialized() and not _is_apart.get() else 1


def is_first() -> bool:
    """Whether this is the process that prints and writes."""
    return number() == 0


def number() -> int:
    """This process's number in the run, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def on_this_machine() -> int:
    """This process's number on its machine, which chooses its GPU; 0 in a run of one process."""
    return int(os.environ["LOCAL_RANK"]) if dist.is_initialized() else 0


def split_items(items: list) -> list:
    """This process's share of `items`. Each item belongs to one process."""
    return items[dist.get_rank() :: count()] if count() > 1 else items


def gather(item: object) -> list:
    """The `item` of every process, as a list that is the same in all. One may need far longer for it than another."""
    if count() == 1:
        return [item]
    items = [None] * count()
    with _telling_of_lost_peers():
        dist.all_gather_object(items, item, group=_patient)
    return items


def split_batch(batch: torch.Tensor) -> torch.Tensor:
    """This process's part of a batch, or the whole batch if it has fewer samples than there are processes."""
    return batch.tensor_split(count())[dist.get_rank()] if 1 < count() <= len(batch) else batch


def gather_batch(part: torch.Tensor, n: int) -> torch.Tensor:
    """The results of all processes for a batch of `n`, in its order. part: the result for this process's part."""
    if not 1 < count() <= n:
        return part
    whole = part.new_zeros(n)
    split_batch(whole).copy_(part)
    with _telling_of_lost_peers():
        dist.all_reduce(whole)
    return whole


def average_over_processes(vector: torch.Tensor, weight: float) -> None:
    """Replace a vector, in place, by its weighted mean over the processes. weight: of this process."""
    if count() == 1:
        return
    both = torch.cat([vector.new_ones(1), vector]).mul_(weight)
    with _telling_of_lost_peers():
        dist.all_reduce(both)
    torch.div(both[1:], both[0], out=vector)


def broadcast_first(value: float) -> float:
    """The `value` of the first process."""
    if count() == 1:
        return value
    tensor = torch.tensor(value, dtype=torch.float64)
    with _telling_of_lost_peers():
        dist.broadcast(tensor, 0)
    return tensor.item()


@contextlib.contextmanager
def _telling_of_lost_peers() -> Iterator[None]:
    try:
        yield
    except RuntimeError:  # gloo's message does not help the user
        raise UserError("another process of this run has failed or does not answer, see its own message") from None
