"""What the benchmarks share: the volumes they read, the scripts they run, the tables they print."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from formats.common import VolumeError
from formats.reading import read_volume
from utils import Volume

ROOT = Path(__file__).resolve().parents[1]
CELL = 12.0  # voxels along a cell of `lattice`
FINEST = 8.0  # length in voxels of the waves at which the spectrum of `random_field` ends


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


def script(name: str, *arguments: object) -> dict[str, str]:
    """Run one of the scripts; its results. Its warnings, such as that a GPU lacks something, are printed."""
    command = [sys.executable, str(ROOT / name), *map(str, arguments)]
    run = subprocess.run(command, capture_output=True, text=True)
    if run.returncode:
        raise SystemExit(f"{' '.join(command)}: {run.stderr}")
    for line in run.stderr.splitlines():
        if ": warning: " in line:
            print(line, file=sys.stderr)
    return dict(re.findall(r"^(\w+)=(.*)$", run.stdout, re.M))


def table_row(cells: Iterable[object]) -> str:
    """A row of a table in Markdown."""
    return "| " + " | ".join(map(str, cells)) + " |"


def table_head(names: Sequence[str]) -> str:
    """The first two rows of a table in Markdown, with the names of its columns."""
    return table_row(names) + "\n" + table_row("---" for _ in names)
