"""What the benchmarks share: the volumes they read, the scripts they run, the tables they print.

The import of this module puts the repository on sys.path, so it comes before those of the repository.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from formats.common import VolumeError
from formats.reading import read_volume
from utils import Volume

ROOT = Path(__file__).resolve().parents[1]
CELL = 12.0  # voxels along a cell of `lattice`
FINEST = 8.0  # length in voxels of the waves at which the spectrum of `random_field` ends


def argument_parser(description: str, volumes: str | None = None) -> argparse.ArgumentParser:
    """A parser with this text. volumes: number of volumes that it takes, as argparse's nargs; None for no volumes."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    if volumes:
        parser.add_argument("volumes", nargs=volumes, metavar="VOLUME")
    return parser


def read_scalar(path: str) -> Volume:
    """The volume in `path`. Raises VolumeError unless it is 3-D, scalar, without missing voxels and not constant."""
    volume = read_volume(path)
    if volume.array.ndim != 3 or volume.fill is not None:
        raise VolumeError(f"{path}: expected one value at every point of a 3-D grid")
    if volume.array.min() == volume.array.max():
        raise VolumeError(f"{path}: expected different values, found {volume.array.flat[0]} everywhere")
    return volume


def random_field(n: int, seed: int = 0) -> np.ndarray:
    """n^3 float32: exp(g), where g is a Gaussian field with the spectrum k^-5/3, cut off at waves of FINEST voxels."""
    k = [np.fft.fftfreq(n).astype(np.float32)] * 2 + [np.fft.rfftfreq(n).astype(np.float32)]
    size = np.sqrt(sum(np.square(part) for part in np.ix_(*k)))
    size[0, 0, 0] = 1.0
    amplitude = size ** np.float32(-11 / 6) * np.exp(-np.square(size * np.float32(FINEST)))
    amplitude[0, 0, 0] = 0.0
    noise = np.random.default_rng(seed).standard_normal((n, n, n), np.float32)
    wave = np.fft.rfftn(noise).astype(np.complex64)
    del noise
    field = np.fft.irfftn(wave * amplitude, s=(n, n, n), axes=(0, 1, 2)).astype(np.float32)
    return np.exp(field / field.std())


def lattice(n: int) -> np.ndarray:
    """n^3 float32: a gyroid whose cells have CELL voxels along each axis, with smooth walls."""
    phase = 2 * np.pi / CELL * np.arange(n)
    x, y, z = np.meshgrid(phase, phase, phase, indexing="ij", sparse=True)
    gyroid = np.sin(x) * np.cos(y) + np.sin(y) * np.cos(z) + np.sin(z) * np.cos(x)
    return (1 / (1 + np.exp(-6 * gyroid))).astype(np.float32)


MADE = {"field": random_field, "lattice": lattice}


def is_made(name: str) -> bool:
    """Whether this is no file but field:N, a `random_field`, or lattice:N, a `lattice`, of N^3 voxels."""
    return name.partition(":")[0] in MADE


def array_of(name: str) -> np.ndarray:
    """The voxels of a file, see `read_scalar`, or of a volume that is made."""
    kind, _, n = name.partition(":")
    return MADE[kind](int(n)) if is_made(name) else read_scalar(name).array


def network_flags(folder: str | Path, stem: str = "n") -> tuple[tuple[object, ...], tuple[object, ...]]:
    """The flags that name the files of a network in a folder: those of train.py, those of net_compress.py."""
    network, config = Path(folder, f"{stem}.pth"), Path(folder, f"{stem}.json")
    return ("--network", network, "--config", config), ("--net", network, "--config", config)


def script(name: str, *arguments: object, seconds: float = threading.TIMEOUT_MAX) -> dict[str, str]:
    """Run one of the scripts; its results. Its warnings, such as that a GPU lacks something, are printed.

    seconds: after which it is killed, which is an error.
    """
    return measured_script(name, *arguments, seconds=seconds)[0]


def measured_script(
    name: str, *arguments: object, seconds: float = threading.TIMEOUT_MAX
) -> tuple[dict[str, str], float, float]:
    """As `script`: its results, its CPU seconds, and the MB of memory of its largest process."""
    command = [sys.executable, str(ROOT / name), *map(str, arguments)]
    with tempfile.TemporaryFile("w+") as out:
        process = subprocess.Popen(command, stdout=out, stderr=subprocess.PIPE, text=True)
        clock = threading.Timer(seconds, process.kill)
        clock.start()
        try:
            with process.stderr:
                said = process.stderr.read()
            _, status, usage = os.wait4(process.pid, 0)
        finally:
            clock.cancel()
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            raise SystemExit(f"{' '.join(command)}: {said} (status {process.returncode})")
        out.seek(0)
        found = dict(re.findall(r"^(\w+)=(.*)$", out.read(), re.M))
    for line in said.splitlines():
        if ": warning: " in line:
            print(line, file=sys.stderr)
    return found, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024


def median_seconds(work: Callable[[], object], repeats: int, least: float = 0.0) -> float:
    """Seconds of a call: the median of `repeats` measurements, each the mean over calls of about `least` seconds."""

    def seconds_of(count: int) -> float:
        started = time.perf_counter()
        for _ in range(count):
            work()
        return (time.perf_counter() - started) / count

    work()
    count = max(1, int(least / seconds_of(1))) if least else 1
    return float(np.median([seconds_of(count) for _ in range(repeats)]))


def table_row(cells: Iterable[object]) -> str:
    """A row of a table in Markdown."""
    return "| " + " | ".join(map(str, cells)) + " |"


def table_head(names: Sequence[str]) -> str:
    """The first two rows of a table in Markdown, with the names of its columns."""
    return table_row(names) + "\n" + table_row("---" for _ in names)
