"""What the benchmarks share: the volumes they read, the scripts they run."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from formats.common import VolumeError
from formats.reading import read_volume
from utils import Volume

ROOT = Path(__file__).resolve().parents[1]


def read_scalar(path: str) -> Volume:
    """The volume in `path`. Raises VolumeError unless it is 3-D, scalar, without missing voxels and not constant."""
    volume = read_volume(path)
    if volume.array.ndim != 3 or volume.fill is not None:
        raise VolumeError(f"{path}: expected one value at every point of a 3-D grid")
    if volume.array.min() == volume.array.max():
        raise VolumeError(f"{path}: expected different values, found {volume.array.flat[0]} everywhere")
    return volume


def script(name: str, *arguments: object) -> dict[str, str]:
    """Run one of the scripts; its results."""
    command = [sys.executable, str(ROOT / name), *map(str, arguments)]
    run = subprocess.run(command, capture_output=True, text=True)
    if run.returncode:
        raise SystemExit(f"{' '.join(command)}: {run.stderr}")
    return dict(re.findall(r"^(\w+)=(.*)$", run.stdout, re.M))
