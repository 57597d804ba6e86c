"""Attacks what reads files of strangers with damaged ones, and what writes files with kills and full disks.

Each mutant is made from a seed of its own. It fails by an exception other than a UserError, by too much time or memory,
by values that are NaN or beyond the range, or when two readings differ. A run that is killed, or that lacks disk space,
fails when it leaves a torn or a mixed set of files. The benchmark prints a row per kind of attack. Its exit status is 2
when something failed.

A failed mutant is kept in a folder KIND-SEED below --keep, with why.txt; `--only KIND --first SEED --count 1` makes it
again. When a process is killed depends on the clock, too.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import gzip
import io
import math
import re
import shutil
import signal
import sys
import tempfile
import time
import traceback
import tracemalloc
import warnings
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
from helpers.damage import (
    ODD_VALUES,
    announced,
    blob_memory,
    memory_below,
    memory_traced,
    mutate,
    mutate_blob,
    mutate_json,
    seeds,
)
from helpers.networks import chunks_of, decode_blob, small_fit
from helpers.original import original_blob
from helpers.scripts import compress, stored
from helpers.volume_files import FORMATS, write_dicom
from helpers.volumes import slanted
from helpers.vtk import forked_readers
from interruptions import run_and_check, write_full_disk, write_kill
from shared import argument_parser, table_head, table_row

from cli import console
from field.blob import decode_field
from field.bricks import Bricks
from field.header_chunks import check_header
from field.network_chunk import check_network
from field.neural_field import NeuralField
from field.original_blob import decode_original
from formats import vtk_process
from formats.reading import read_volume
from training.long_runs import Checkpoint
from utils import Grid, UserError

MAX_MEMORY = 256 << 20  # bytes that a small mutant may take
HANGS_SECONDS = 120  # after which a mutant is given up, however busy the machine is
ODD_WORDS = [b"-1", b"0", b"1", b"2", b"7", b"65536", b"4294967296", b"9" * 30, b"nan", b"inf", b"1e-300", b"1e308",
             b"0.5", b"", b"x", b"True", b"None", b"\xff", b"a" * 2000]  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Attack:
    """How a mutant is written into a folder, and what is then found there: the same whenever it is asked for."""

    write: Callable[[np.random.Generator, Path], None]
    read: Callable[[Path], object]  # raises UserError for what it refuses
    n_readings: int = 2


# --- blobs ------------------------------------------------------------------------------------------


def write_blob(rng: np.random.Generator, folder: Path) -> None:
    """A damaged blob, its checksum mostly right; one of ten is of the original scripts."""
    if rng.random() < 0.1:
        bits = int(rng.choice([4, 6, 8, 9]))
        (folder / "original").write_bytes(mutate(rng, original_blob(rng, bits, 3, 2, bits % 2 == 0)[0]))
    else:
        (folder / "blob").write_bytes(mutate_blob(rng, seeds()[int(rng.integers(len(seeds())))]))


def read_blob(folder: Path) -> object:
    """Values of a few voxels."""
    if (folder / "original").exists():
        data = (folder / "original").read_bytes()
        with memory_below(blob_memory(data, 0)):
            return fingerprint(*decode_original(data)[1].values())
    data = (folder / "blob").read_bytes()
    with memory_below(blob_memory(data, announced(data))):
        header, networks = decode_blob(data)
    for network, tensors in networks:
        check_header(header, network.d_in, network.d_out)
        check_network(network)
        assert all(np.isfinite(tensor).all() for tensor in tensors.values())
    if any(kind == b"B" for kind, _ in chunks_of(data)):
        return few_voxels(NeuralField(*decode_field(data)))
    return [few_voxels(NeuralField(header, Bricks.whole(*network))) for network in networks]


def few_voxels(field: NeuralField) -> int:
    """A fingerprint of the values at the corners, which are finite and within the range, and at a point."""
    header = field.header
    grid = Grid(tuple(np.unique([0.0, n - 1.0]) for n in header.shape))
    values = field.on_grid(grid).reshape(*grid.shape, -1)
    is_there = np.ones(grid.shape, bool)
    if header.missing:
        is_there = ~header.missing.at(np.ix_(*(axis.astype(np.int64) for axis in grid.axes)))
    assert ((values >= header.low) & (values <= header.high))[is_there].all(), "a value beyond the range"
    at_origin = field.at(np.array(header.geometry.origin))
    assert not is_there.flat[0] or np.isfinite(at_origin).all(), "no value at the origin"
    return fingerprint(values, at_origin)


def fingerprint(*arrays: np.ndarray) -> int:
    """The same for the same arrays."""
    crc = 0
    for array in map(np.ascontiguousarray, arrays):
        crc = zlib.crc32(array.tobytes(), zlib.crc32(repr((array.shape, array.dtype)).encode(), crc))
    return crc


# --- volumes ----------------------------------------------------------------------------------------


@functools.cache
def sound_volumes() -> list[tuple[str, dict[str, bytes]]]:
    """A small volume in every format: the name that is read, and the content of the files."""
    volumes, array = [], slanted((4, 3, 2))
    for write, _ in (form.values for form in FORMATS):
        with tempfile.TemporaryDirectory() as name:
            path = write(Path(name), array.astype(np.uint16 if write is write_dicom else np.float32))
            files = {str(p.relative_to(name)): p.read_bytes() for p in sorted(Path(name).rglob("*")) if p.is_file()}
            volumes.append((str(path.relative_to(name)), files))
    return volumes


def write_volume(rng: np.random.Generator, folder: Path) -> None:
    """A volume of which one file is damaged in its bytes, its words, or beneath its compression."""
    name, files = sound_volumes()[int(rng.integers(len(sound_volumes())))]
    damaged = str(rng.choice([*files]))
    for path, content in files.items():
        (folder / path).parent.mkdir(exist_ok=True)
        is_gzip = content[:2] == b"\x1f\x8b" and rng.random() < 0.7
        if path == damaged:
            content = gzip.decompress(content) if is_gzip else content
            for _ in range(int(rng.integers(1, 4))):
                content = (mutate_words if rng.random() < 0.5 else mutate)(rng, content)
            content = gzip.compress(content, mtime=0) if is_gzip else content
        (folder / path).write_bytes(content)
    (folder / "which.txt").write_text(name)


def mutate_words(rng: np.random.Generator, content: bytes) -> bytes:
    """A number or a word of a header replaced, or a line of it lost, doubled or moved."""
    found = list(re.finditer(rb"-?[\d.]+(?:e[-+]?\d+)?|\w+" if rng.random() < 0.7 else rb"[^\n]*\n", content[:4000]))
    if not found:
        return content
    one, other = (found[int(rng.integers(len(found)))] for _ in range(2))
    if one[0].endswith(b"\n"):
        new = [b"", one[0] * 2, other[0], other[0] + one[0]][int(rng.integers(4))]
    else:
        new = ODD_WORDS[int(rng.integers(len(ODD_WORDS)))] if rng.random() < 0.8 else other[0]
    return content[: one.start()] + new + content[one.end() :]


def read_one_volume(folder: Path) -> object:
    """The place and the values of a volume."""
    volume = read_volume(str(folder / (folder / "which.txt").read_text()))
    array = np.asarray(volume.array[...])
    assert np.isfinite(array).all(), "values that are not finite"
    return repr(volume.geometry), fingerprint(array)


# --- checkpoints, networks and configurations -----------------------------------------------------------


@functools.cache
def sound_checkpoint() -> bytes:
    """Of a fit in its midst."""
    with tempfile.TemporaryDirectory() as name:
        fit, checkpoint = small_fit(), Checkpoint(f"{name}/checkpoint", {"volume": "a.npy"})
        fit.run(lambda fit: fit.step == 105)
        checkpoint.save(fit)
        return Path(checkpoint.path).read_bytes()


def write_checkpoint(rng: np.random.Generator, folder: Path) -> None:
    """A checkpoint with something in it replaced, or its bytes damaged."""
    path, data = folder / "checkpoint", sound_checkpoint()
    if rng.random() < 0.2:
        path.write_bytes(mutate(rng, data))
        return
    content = torch.load(io.BytesIO(data), weights_only=True)
    for _ in range(int(rng.integers(1, 3))):
        place = content
        while True:
            key = rng.choice(len(place)) if isinstance(place, list) else [*place][int(rng.integers(len(place)))]
            if not isinstance(place[key], dict | list) or not len(place[key]) or rng.random() < 0.1:
                break
            place = place[key]
        place[key] = odd_value(rng, place[key])
    torch.save(content, path)


def odd_value(rng: np.random.Generator, value: object) -> object:
    """Something else in the place of a value of a checkpoint."""
    if isinstance(value, torch.Tensor) and value.ndim and rng.random() < 0.7:
        factors = (0, -1, 1e30, math.nan, math.inf)
        odd = [value * factors[int(rng.integers(5))], value[:-1], value[None], value.long(), value.double()]
        return odd[int(rng.integers(len(odd)))]
    return ODD_VALUES[int(rng.integers(len(ODD_VALUES)))]


def read_checkpoint(folder: Path) -> object:
    """The weights of the fit, a few steps further."""
    fit, checkpoint = small_fit(), Checkpoint(str(folder / "checkpoint"), {"volume": "a.npy"})
    checkpoint.load(fit)
    last = fit.step + 3
    fit.run(lambda fit: fit.step >= last)
    weights = [tensor.numpy() for tensor in fit.averaged_net.state_dict().values()]
    assert all(np.isfinite(tensor).all() for tensor in weights), "weights that are not finite"
    return fingerprint(*weights)


def write_configuration(rng: np.random.Generator, folder: Path) -> None:
    """A trained network and its configuration, one of them damaged."""
    trained = stored("wave", folder)
    if rng.random() < 0.3:
        trained.network.write_bytes(mutate(rng, trained.data))
    else:
        trained.config.write_text(mutate_json(rng, trained.settings), encoding="utf-8", errors="surrogatepass")


def read_configuration(folder: Path) -> object:
    """Values of a few voxels of what net_compress.py makes of them."""
    files = SimpleNamespace(network=folder / "thenet.pth", config=folder / "thenet.json")
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        data = compress(files, folder / "blob", "--cluster_bits", 5)
    return few_voxels(NeuralField(*decode_field(data)))


# --- the runs ---------------------------------------------------------------------------------------

ATTACKS = {
    "blobs": Attack(write_blob, read_blob),
    "volumes": Attack(write_volume, read_one_volume),
    "checkpoints": Attack(write_checkpoint, read_checkpoint),
    "configurations": Attack(write_configuration, read_configuration),
    "kills": Attack(write_kill, run_and_check, n_readings=1),
    "disk": Attack(write_full_disk, run_and_check, n_readings=1),
}


@dataclasses.dataclass
class Tally:
    """What came of the mutants of one kind."""

    tried: int = 0
    refused: int = 0
    failed: int = 0
    worst_seconds: float = 0.0
    peak: int = 0  # bytes

    def row(self, kind: str) -> str:
        figures = f"{self.worst_seconds:.2f}", f"{self.peak / 1e6:.0f}"
        return table_row([kind, self.tried, self.refused, self.failed, *figures])


class Hangs(BaseException):
    """No reader may take this for an error of its own."""


def _give_up(*_) -> None:
    raise Hangs(f"no end after {HANGS_SECONDS} s")


def outcome(attack: Attack, folder: Path) -> tuple[object, float]:
    """(What is read, or the class of the UserError that refuses it; the seconds that it took)."""
    started = time.process_time()
    signal.setitimer(signal.ITIMER_REAL, HANGS_SECONDS)
    try:
        with memory_below(MAX_MEMORY):
            found = attack.read(folder)
    except UserError as error:
        assert str(error), "a refusal without a word"
        found = UserError
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
    return found, time.process_time() - started


def attempt(attack: Attack, seed: int, limit: float, keep: Path, kind: str, tally: Tally) -> None:
    """Make the mutant of a seed and read it; keep it if it fails."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        try:
            attack.write(np.random.default_rng(seed), folder)
            readings = [outcome(attack, folder) for _ in range(attack.n_readings)]
            seconds = min(spent for _, spent in readings)
            tally.worst_seconds = max(tally.worst_seconds, seconds)
            tally.refused += readings[0][0] is UserError
            assert all(found == readings[0][0] for found, _ in readings), f"two readings differ: {readings}"
            assert attack.n_readings == 1 or seconds <= limit, f"{seconds:.1f} s"
        except (Exception, Hangs):
            tally.failed += 1
            kept = keep / f"{kind}-{seed}"
            shutil.copytree(folder, kept, dirs_exist_ok=True)
            (kept / "why.txt").write_text(traceback.format_exc())
            print(f"{kept}: {traceback.format_exc(limit=-1).splitlines()[-1][:300]}", file=sys.stderr, flush=True)
        tally.tried += 1
        tally.peak = max(tally.peak, tracemalloc.get_traced_memory()[1])


def main(argv: Sequence[str]) -> None:
    """Attack, and print the table."""
    parser = argument_parser(__doc__)
    parser.add_argument("--only", choices=list(ATTACKS), action="append", help="this kind (default: all)")
    parser.add_argument("--count", type=int, default=1000, help="mutants of each kind (default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=60, help="most time for each kind (default: %(default)s)")
    parser.add_argument("--first", type=int, default=0, metavar="SEED", help="seed of the first mutant")
    parser.add_argument("--limit", type=float, default=2, help="CPU time of one mutant, s (default: %(default)s)")
    parser.add_argument("--keep", type=Path, default=Path("attack_failed"), help="folder of the mutants that failed")
    opt = parser.parse_args(argv)
    torch.set_num_threads(1)
    signal.signal(signal.SIGALRM, _give_up)
    failed = 0
    print(table_head(["what", "tried", "refused", "failed", "worst, s", "memory, MB"]), flush=True)
    with contextlib.ExitStack() as stack:
        forked = SimpleNamespace(Popen=stack.enter_context(forked_readers()), PIPE=None, DEVNULL=None)
        stack.enter_context(mock.patch.object(vtk_process, "subprocess", forked))
        stack.enter_context(memory_traced())
        stack.enter_context(warnings.catch_warnings(action="ignore"))
        for kind in opt.only or ATTACKS:
            tally, end = Tally(), time.monotonic() + opt.seconds
            for seed in range(opt.first, opt.first + opt.count):
                attempt(ATTACKS[kind], seed, opt.limit, opt.keep, kind, tally)
                if time.monotonic() > end:
                    break
            print(tally.row(kind), flush=True)
            failed += tally.failed
    if failed:
        raise UserError(f"{failed} mutants failed, see {opt.keep}")


if __name__ == "__main__":
    console.run(main)
