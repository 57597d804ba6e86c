"""The processes of a run: this one alone, or those that torchrun started, which fit one network together.

Every process draws the same batches and takes a share of each; their gradients are averaged before the step. What is
decided upon is the same number in all of them. Alone, every function here does nothing.
"""

from __future__ import annotations

import contextlib
import datetime
import os
import sys
import time
from collections.abc import Iterator

import torch
import torch.distributed as dist

from utils import UserError

TIMEOUT = datetime.timedelta(minutes=30)  # a process waits for the others for so long
FIRST_SPEAKS = 5.0  # seconds in which torchrun ends the others once the first process has said what is wrong


class RankError(UserError):
    """Another process of the run has failed, or does not answer."""


@contextlib.contextmanager
def joined() -> Iterator[None]:
    """Join the processes that torchrun started, if it did, and leave when done; within, only the first one prints."""
    if not dist.is_torchelastic_launched():
        yield
        return
    dist.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo", timeout=TIMEOUT)
    with contextlib.ExitStack() as stack:
        if dist.get_rank() > 0:
            nowhere = stack.enter_context(open(os.devnull, "w"))
            stack.enter_context(contextlib.redirect_stdout(nowhere))
            stack.enter_context(contextlib.redirect_stderr(nowhere))
        try:
            yield
        except BaseException:
            if dist.get_rank() > 0:
                time.sleep(FIRST_SPEAKS)
            raise
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)  # at once: taking gloo's threads down has aborted a process whose work was done


def count() -> int:
    """How many processes there are."""
    return dist.get_world_size() if dist.is_initialized() else 1


def is_first() -> bool:
    """Whether this is the process that prints and writes."""
    return not dist.is_initialized() or dist.get_rank() == 0


def on_this_machine() -> int:
    """This process's number among those on the same machine: that of its GPU."""
    return int(os.environ["LOCAL_RANK"]) if dist.is_initialized() else 0


def split_items(items: list) -> list:
    """Every so many-th of `items`, so that each is one process's."""
    return items[dist.get_rank() :: count()] if count() > 1 else items


def gather(item: object) -> list:
    """What each process gives, in all of them."""
    if count() == 1:
        return [item]
    items = [None] * count()
    with _answering():
        dist.all_gather_object(items, item)
    return items


def split_batch(batch: torch.Tensor) -> torch.Tensor:
    """This process's part of a batch; all of one that is too small to share."""
    return batch.tensor_split(count())[dist.get_rank()] if 1 < count() <= len(batch) else batch


def gather_batch(part: torch.Tensor, n: int) -> torch.Tensor:
    """What the processes made, each of its `share` of a batch of `n`, in the batch's order."""
    if not 1 < count() <= n:
        return part
    whole = part.new_zeros(n)
    split_batch(whole).copy_(part)
    with _answering():
        dist.all_reduce(whole)
    return whole


def average_over_processes(vector: torch.Tensor, weight: float) -> None:
    """Replace a vector by its mean over the processes, each with its weight."""
    if count() == 1:
        return
    both = torch.cat([vector.new_ones(1), vector]).mul_(weight)
    with _answering():
        dist.all_reduce(both)
    torch.div(both[1:], both[0], out=vector)


def broadcast_first(value: float) -> float:
    """The number that the first process gives."""
    if count() == 1:
        return value
    tensor = torch.tensor(value, dtype=torch.float64)
    with _answering():
        dist.broadcast(tensor, 0)
    return tensor.item()


@contextlib.contextmanager
def _answering() -> Iterator[None]:
    try:
        yield
    except RuntimeError:  # with gloo's words, of no use to those who read them
        raise RankError("another process of this run has failed or does not answer, see its own message") from None
