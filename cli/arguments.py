"""Arguments of the command line: the parser, types that check what is given, the groups that several scripts have."""

from __future__ import annotations

import argparse
import math
import os
import re
from argparse import ArgumentTypeError
from collections.abc import Callable, Sequence

from utils import DTYPES, UserError


class HelpFormatter(argparse.ArgumentDefaultsHelpFormatter):
    """Help with the true default behind every option that has one."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        if action.default is None or isinstance(action.default, bool):
            return action.help
        return super()._get_help_string(action)


class ArgumentParser(argparse.ArgumentParser):
    """An argument parser whose errors are UserErrors, and that takes no abbreviated flags."""

    def __init__(self, description: str):
        super().__init__(description=description, formatter_class=HelpFormatter, allow_abbrev=False)

    def parse_args(self, args: Sequence[str]) -> argparse.Namespace:
        """As argparse, but that negative numbers of every form are values, not options: -1e30, -5,5."""
        joined: list[str] = []
        for arg in args:
            if joined and joined[-1].startswith("--") and re.match(r"-\.?\d", arg):
                joined[-1] += "=" + arg
            else:
                joined.append(arg)
        return super().parse_args(joined)

    def error(self, message: str) -> None:
        if message.startswith("unrecognized") and " -" not in message:  # what a shell makes of --volume run/*.vti
            message = f"{message}: put a pattern of files in quotes"
        raise UserError(f"{message} (see --help)")

    def add_device_arguments(self) -> None:
        """The group "execution": --cuda/--no-cuda, --gid, --num_workers."""
        group = self.add_argument_group("execution")
        group.add_argument("--cuda", action="store_true", default=False, help="use a CUDA GPU (default: the CPU)")
        group.add_argument("--no-cuda", dest="cuda", action="store_false", help="use the CPU")
        group.add_argument("--gid", type=whole(0), default=0, help="which GPU, with --cuda")
        group.add_argument(
            "--num_workers",
            type=whole(1, 1024),
            default=default_workers(),
            help="CPU threads, by themselves one per core, up to 8; no result depends on them",
        )


def default_workers() -> int:
    """CPU threads of this process: the cores that it may use, up to 8, shared among the processes of torchrun."""
    n_cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(min(n_cores // int(os.environ.get("LOCAL_WORLD_SIZE", "1")), 8), 1)


def add_volume_arguments(group) -> None:
    """How to read --volume: --array, --shape, --dtype, --endian."""
    group.add_argument("--array", help="which of the volume's arrays, by its name (default: the active or first one)")
    group.add_argument("--shape", type=sizes, help="voxels X,Y,Z of a headerless volume (.raw), x fastest")
    group.add_argument("--dtype", choices=DTYPES, metavar="T", help="of a headerless volume: uint8, float32, ...")
    group.add_argument("--endian", choices=("little", "big"), help="of a headerless volume (default: little)")


def check_volume_arguments(opt: argparse.Namespace) -> None:
    """Raise UserError when there is no --volume that the options of `add_volume_arguments` could describe."""
    given = [name for name in ("array", "shape", "dtype", "endian") if getattr(opt, name) is not None]
    if given and not opt.volume:
        raise UserError(f"--{given[0]} needs the --volume that it describes")


# --- types --------------------------------------------------------------------------------------------


def sizes(text: str) -> tuple[int, ...]:
    """An argparse type: one to three numbers of voxels, with commas between them."""
    parts, most = text.split(","), (1 << 32) - 1
    if len(parts) > 3 or not all(part.isascii() and part.isdigit() and 0 < int(part) <= most for part in parts):
        raise ArgumentTypeError(f"expected numbers of voxels X,Y,Z from 1 to {most}, found {text!r}")
    return tuple(map(int, parts))


def to_number(text: str) -> int | float:
    """The number that `text` says, an integer exactly. Raises ValueError."""
    try:
        value = int(text)
    except ValueError:
        return float(text)
    return value if abs(value) <= 1 << 64 else float(value)


def fill_text(text: str) -> str:
    """An argparse type: a finite number or NaN; left as text, since NaN does not even equal itself."""
    try:
        if math.isinf(to_number(text)):
            raise ValueError
    except (ValueError, OverflowError):
        raise ArgumentTypeError(f"expected a finite number or nan, found {text!r}") from None
    return text


def interval(text: str) -> tuple[int | float, int | float]:
    """An argparse type: two finite numbers LO,HI, the lower first."""
    try:
        low, high = map(to_number, text.split(","))
        if not -math.inf < low < high < math.inf:
            raise ValueError
    except (ValueError, OverflowError):
        raise ArgumentTypeError(f"expected two numbers LO,HI, the lower first, found {text!r}") from None
    return low, high


def whole(low: int, high: int | None = None) -> Callable[[str], int]:
    """An argparse type: an integer of at least `low` and at most `high`."""
    limits = f"of at least {low}" if high is None else f"from {low} to {high}"

    def parse(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = None
        if value is None or value < low or (high is not None and value > high):
            raise ArgumentTypeError(f"expected an integer {limits}, found {text!r}")
        return value

    return parse


def number(low: float, high: float = math.inf, *, exclusive: bool = False) -> Callable[[str], float]:
    """An argparse type: a finite number of at least `low`, or above it when `exclusive`, and of at most `high`."""
    limits = (f"above {low:g}" if exclusive else f"of at least {low:g}") + (
        f", at most {high:g}" if high < math.inf else ""
    )

    def parse(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not math.isfinite(value) or not low <= value <= high or (exclusive and value == low):
            raise ArgumentTypeError(f"expected a number {limits}, found {text!r}")
        return value

    return parse


# --- device -------------------------------------------------------------------------------------------


def resolve_device(cuda: bool, gid: int):
    """The torch.device that the execution flags ask for. Raises UserError when there is no such GPU.

    torch itself gets one CPU thread: two of its threads beside a busy process are many times slower than one.
    """
    import torch

    torch.set_num_threads(1)
    if not cuda:
        return torch.device("cpu")
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if gid >= count:
        raise UserError(f"--cuda --gid {gid}: expected the number of a CUDA GPU, found {count} GPUs")
    return torch.device("cuda", gid)
