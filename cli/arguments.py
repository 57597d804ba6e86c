"""Command-line arguments: the parser, argparse types that check values, groups of options that scripts share."""

from __future__ import annotations

import argparse
import contextlib
import difflib
import math
import os
import re
import types
from argparse import ArgumentTypeError
from argparse import _ArgumentGroup as ArgumentGroup
from collections.abc import Callable, Iterator, Sequence

from cli import console
from utils import DTYPES, SUITE_VERSION, UserError

NETWORK, CONFIG, BLOB = "thenet.pth", "thenet.json", "compressed_out"  # files of the three scripts, by default
DEFAULTS = {"net": NETWORK, "config": CONFIG, "compressed": BLOB}


class Options(types.SimpleNamespace):
    """The options of a run. They are fixed once the arguments are parsed."""

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"{name}: the options of a run do not change")


class HelpFormatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Help that shows the default of every option that has one; flags that are on or off show none."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        if action.default is None or isinstance(action.default, bool):
            return action.help
        return super()._get_help_string(action)


class ArgumentParser(argparse.ArgumentParser):
    """An argument parser that raises UserError for errors and accepts no abbreviated flags."""

    def __init__(self, description: str, *examples: str):
        epilog = "\n  ".join(["examples:", *examples]) if examples else None
        super().__init__(description=description, epilog=epilog, formatter_class=HelpFormatter, allow_abbrev=False)
        version = f"%(prog)s {'.'.join(map(str, SUITE_VERSION))}"
        self.add_argument("--version", action="version", version=version, help="show the version and exit")

    def parse_args(self, args: Sequence[str]) -> argparse.Namespace:
        """Like argparse, except that negative numbers of every form are values, not options: -1e30, -5,5.

        An empty text is no value: a shell gives it for a variable that is not set. Nor is a dash, which would name a
        file, where other programs mean a standard stream. Of a flag that is given twice the last value counts, with
        a warning: a command in a script may give the usual ones first.
        """
        joined: list[str] = []
        for arg in args:
            if joined and joined[-1].startswith("--") and re.match(r"-\.?\d", arg):
                joined[-1] += "=" + arg
            else:
                joined.append(arg)
        opt, given = super().parse_args(joined), [arg.partition("=")[0] for arg in joined]
        for action in self._actions:
            value, name = getattr(opt, action.dest, None), "/".join(action.option_strings) or action.metavar
            if value == "":
                self.error(f"argument {name}: expected a value, found ''")
            if value == "-":
                self.error(f"argument {name}: expected a file, found '-': no standard stream is read or written")
            if action.nargs != 0 and given.count(name) > 1:
                console.warn(self.prog, f"{name} is given {given.count(name)} times: the last one counts")
        return opt

    def error(self, message: str) -> None:
        if message.startswith("unrecognized"):
            given = re.split("[ =]", message.partition(": ")[2].strip())[0]
            if not given:  # a shell has expanded "$OPTIONS"
                message = f"{message}'', an empty text"
            elif not given.startswith("-"):  # a shell has expanded --volume run/*.vti
                message = f"{message}: give a file by its flag, a pattern of files in quotes"
            elif near := difflib.get_close_matches(given, self._option_string_actions, 1, 0.8):
                message = f"{message}: is {near[0]} meant?"
        raise UserError(f"{message} (see --help)")

    def add_device_arguments(self) -> None:
        """Add the group "execution": --cuda/--no-cuda, --gid, --num_workers."""
        group = self.add_argument_group("execution")
        group.add_argument("--cuda", action="store_true", help="use a CUDA GPU (default: the CPU)")
        group.add_argument("--no-cuda", dest="cuda", action="store_false", help="use the CPU")
        group.add_argument("--gid", type=integer_from(0), default=0, metavar="N", help="which GPU, with --cuda")
        group.add_argument(
            "--num_workers",
            type=integer_from(1, 1024),
            default=default_workers(),
            metavar="N",
            help="CPU threads, one per core up to 8; no result depends on them",
        )


def default_workers() -> int:
    """The default number of CPU threads: usable cores divided by torchrun's processes, from 1 to 8."""
    n_cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(min(n_cores // int(os.environ.get("LOCAL_WORLD_SIZE", "1")), 8), 1)


def add_blob_arguments(group: ArgumentGroup, what: str) -> None:
    """Add the blob, as an argument of its own or as --compressed. `settle_blob` makes one of both."""
    group.add_argument("blob", nargs="?", metavar="BLOB", help=f"{what}, the same as --compressed")
    group.add_argument("--compressed", metavar="BLOB", help=f"{what} (default: {BLOB})")


def settle_blob(opt: argparse.Namespace) -> None:
    """Set `compressed` to the blob that was given, or to its default name. Raises UserError if two were given."""
    if opt.blob is not None and opt.compressed is not None:
        raise UserError(f"{opt.blob} and --compressed {opt.compressed}: give one blob")
    opt.compressed = next(name for name in (opt.blob, opt.compressed, BLOB) if name is not None)


def _as_typed(flag: str, value: str) -> list[str]:
    """A flag and its value: two arguments, or one where the value begins with a dash, as a flag does."""
    return [f"--{flag}={value}"] if value.startswith("-") else [f"--{flag}", value]


def unless_default(**files: str) -> list[str]:
    """The arguments that name these files to the next script; none for a default name."""
    return [text for name, path in files.items() if path != DEFAULTS[name] for text in _as_typed(name, path)]


def add_volume_arguments(group: ArgumentGroup) -> None:
    """Add the options that say how to read --volume: --array, --resample, --shape, --dtype, --endian."""
    group.add_argument(
        "--array",
        metavar="NAME",
        help="which array of the volume (default: the active or first one; of .nc, .h5, .zarr and .npz the only one)",
    )
    group.add_argument(
        "--resample",
        type=voxel_counts,
        metavar="NX,NY,NZ",
        help="voxels to resample another grid of VTK's to (.vtu, .vts, .vtp, uneven .vtr)",
    )
    group.add_argument("--shape", type=voxel_counts, metavar="X,Y,Z", help="voxels of a .raw file, x fastest")
    group.add_argument("--dtype", choices=DTYPES, metavar="T", help="type of a .raw file: uint8, float32, ...")
    group.add_argument("--endian", choices=("little", "big"), help="byte order of a .raw file (default: little)")


def volume_arguments(opt: Options) -> list[str]:
    """The arguments by which another script reads the same --volume."""
    given = {"volume": opt.volume, "array": opt.array, "dtype": opt.dtype, "endian": opt.endian}
    for name in ("shape", "resample"):
        given[name] = getattr(opt, name) and ",".join(map(str, getattr(opt, name)))
    return [text for name, value in given.items() if value is not None for text in _as_typed(name, value)]


def check_volume_arguments(opt: argparse.Namespace) -> None:
    """Raise UserError when an option of `add_volume_arguments` is given without the --volume it describes."""
    given = [name for name in ("array", "resample", "shape", "dtype", "endian") if getattr(opt, name) is not None]
    if given and not opt.volume:
        raise UserError(f"--{given[0]} needs the --volume that it describes")


# --- types --------------------------------------------------------------------------------------------


@contextlib.contextmanager
def expecting(what: str, text: str) -> Iterator[None]:
    """Make a ValueError or an OverflowError of the block one that tells what was expected and found."""
    try:
        yield
    except (ValueError, OverflowError, ArgumentTypeError):
        raise ArgumentTypeError(f"expected {what}, found {text!r}") from None


def voxel_counts(text: str) -> tuple[int, ...]:
    """An argparse type: one to three numbers of voxels, separated by commas."""
    parts, most = text.split(","), (1 << 32) - 1
    with expecting(f"numbers of voxels X,Y,Z from 1 to {most}", text):
        if len(parts) > 3 or not all(part.isascii() and part.isdigit() and 0 < int(part) <= most for part in parts):
            raise ValueError
        return tuple(map(int, parts))


def to_number(text: str) -> int | float:
    """The number in `text`; integers up to 2^64 stay exact. Raises ValueError or OverflowError."""
    try:
        value = int(text)
    except ValueError:
        return float(text)
    return value if abs(value) <= 1 << 64 else float(value)


def fill_text(text: str) -> str:
    """An argparse type: a finite number, NaN or none. It stays text, because NaN does not equal itself."""
    with expecting("a finite number, nan or none", text):
        if text != "none" and math.isinf(to_number(text)):
            raise ValueError
        return text


def interval(text: str) -> tuple[int | float, int | float]:
    """An argparse type: two finite numbers LO,HI, the lower first."""
    with expecting("two numbers LO,HI, the lower first", text):
        low, high = map(to_number, text.split(","))
        if not -math.inf < low < high < math.inf:
            raise ValueError
        return low, high


def integer_from(low: int, high: float = math.inf) -> Callable[[str], int]:
    """An argparse type: an integer of at least `low` and at most `high`."""
    limits = f"of at least {low}" if high == math.inf else f"from {low} to {high}"
    return _number(int, f"an integer {limits}", lambda value: low <= value <= high)


def number_from(low: float, high: float = math.inf, *, exclusive: bool = False) -> Callable[[str], float]:
    """An argparse type: a finite number of at least `low`, or above it when `exclusive`, and of at most `high`."""
    limits = f"above {low:g}" if exclusive else f"of at least {low:g}"
    limits += f", at most {high:g}" if high < math.inf else ""
    first = math.nextafter(low, math.inf) if exclusive else low
    return _number(float, f"a number {limits}", lambda value: first <= value <= high and value < math.inf)


def _number(kind: type, what: str, is_right: Callable[[float], bool]) -> Callable[[str], float]:
    def parse(text: str) -> float:
        with expecting(what, text):
            if not is_right(value := kind(text)):  # also NaN
                raise ValueError
            return value

    return parse


def roi(text: str) -> tuple[slice, ...]:
    """An argparse type: one range a:b of voxels per axis, or one voxel a. Either end of a range may be left out."""
    with expecting("ranges of voxels as in 0:16,8:24,: or 0:16,:,5, without negative indices", text):
        return tuple(_range(part if ":" in part else f"{part}:{int(part) + 1}") for part in text.split(","))


def time_or_steps(text: str) -> float | slice:
    """An argparse type: a time in steps, or a range a:b of steps. Either end of the range may be left out."""
    with expecting("a time in steps, as in 3 or 2.5, or 2:5", text):
        return _range(text) if ":" in text else number_from(0)(text)


def _range(text: str) -> slice:
    """The range a:b of numbers from 0, either of which may be left out. Raises ValueError."""
    start, stop = (int(end) if end else None for end in text.split(":"))
    if min(start or 0, stop or 0) < 0:
        raise ValueError
    return slice(start, stop)


# --- device -------------------------------------------------------------------------------------------


def resolve_device(cuda: bool, gid: int):
    """The torch.device that the execution flags ask for. Raises UserError when there is no such GPU.

    torch is set up, see `set_up_torch`.
    """
    import torch

    set_up_torch()
    if not cuda:
        return torch.device("cpu")
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if gid >= count:
        way_out = "choose another --gid" if count else "leave out --cuda"
        raise UserError(f"--cuda --gid {gid}: expected the number of a CUDA GPU, found {count} GPUs: {way_out}")
    return torch.device("cuda", gid)


def set_up_torch() -> None:
    """Set what holds for all of torch in this process.

    torch gets one CPU thread, because two torch threads beside a busy process are many times slower than one.
    On a GPU, float32 products are not rounded to TF32, whose 11 bits cannot tell coordinates apart. NVIDIA's containers
    ask for TF32 by an environment variable.
    """
    import torch

    torch.set_num_threads(1)
    torch.set_float32_matmul_precision("highest")
