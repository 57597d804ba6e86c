"""SPERR, SZ3, ZFP and TTHRESH: what they make of a volume. By itself: their PSNR at given sizes of the file.

SPERR, SZ3 and ZFP come with hdf5plugin and get the volume as float32. TTHRESH runs when its program is on the PATH.
What they decode of a volume of integers is rounded to its type, as ours is.
"""

from __future__ import annotations

import io
import math
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import h5py
import hdf5plugin
import numpy as np
from shared import argument_parser, array_of, table_head, table_row

from cli import console
from field.metrics import compare

Point = tuple[int, float]  # file bytes, PSNR in dB
NEAR, MOST_HALVINGS = 1.02, 12  # two sizes whose quotient is less than NEAR are as good as equal


def psnr_of(volume: np.ndarray, decoded: np.ndarray) -> float:
    """PSNR in dB of decoded floats, which are first rounded to the volume's own type."""
    if volume.dtype.kind in "iu":
        limits = np.iinfo(volume.dtype)
        decoded = np.clip(np.rint(decoded.astype(np.longdouble)), limits.min, limits.max)
    return compare(volume, decoded.astype(volume.dtype)).psnr


def through_hdf5(volume: np.ndarray, filter_: Callable[[float], dict], setting: float) -> Point:
    """Compress a volume as one chunk of an HDF5 file in memory. Returns (bytes, PSNR)."""
    data = volume.astype(np.float32)
    memory = io.BytesIO()
    with h5py.File(memory, "w") as file:
        file.create_dataset("v", data=data, chunks=data.shape, **filter_(setting))
    with h5py.File(memory) as file:  # reopened, because a cache could return the unharmed values
        return file["v"].id.get_storage_size(), psnr_of(volume, file["v"][()])


def sperr(volume: np.ndarray, bits_a_voxel: float) -> Point:
    """SPERR at a fixed rate. `swap` tells SPERR that the array is in C order."""
    return through_hdf5(volume, lambda rate: hdf5plugin.Sperr(rate=rate, swap=True), bits_a_voxel)


def sz3(volume: np.ndarray, error: float) -> Point:
    """SZ3 with a bound on the absolute error. error: this bound, relative to the range."""
    extent = float(volume.max()) - float(volume.min())
    return through_hdf5(volume, lambda e: hdf5plugin.SZ3(absolute=e * extent), error)


def zfp(volume: np.ndarray, error: float) -> Point:
    """ZFP with a bound on the absolute error. error: this bound, relative to the range."""
    extent = float(volume.max()) - float(volume.min())
    return through_hdf5(volume, lambda e: hdf5plugin.Zfp(accuracy=e * extent), error)


def tthresh(volume: np.ndarray, psnr: float) -> Point:
    """TTHRESH at a target PSNR in dB. TTHRESH itself defines PSNR by half the range."""
    with tempfile.TemporaryDirectory() as folder:
        raw, packed, back = (str(Path(folder) / name) for name in ("v.raw", "v.tt", "b.raw"))
        volume.astype("<f4").ravel(order="F").tofile(raw)
        size = [str(n) for n in volume.shape]
        target = str(psnr - 20 * math.log10(2))
        command = ["tthresh", "-i", raw, "-t", "float", "-s", *size, "-p", target, "-c", packed, "-o", back]
        subprocess.run(command, check=True, capture_output=True)
        decoded = np.fromfile(back, "<f4").reshape(volume.shape, order="F")
        return Path(packed).stat().st_size, psnr_of(volume, decoded)


SETTINGS = {
    "SPERR": (sperr, [32 / ratio for ratio in np.geomspace(40, 2400, 14)]),
    "SZ3": (sz3, list(np.geomspace(1e-4, 0.4, 22))),
    "ZFP": (zfp, list(np.geomspace(1e-4, 1.0, 14))),
    "TTHRESH": (tthresh, list(np.arange(20.0, 66.0, 4.0))),
}


def available() -> list[str]:
    """The codecs that this machine has."""
    return [codec for codec in SETTINGS if codec != "TTHRESH" or shutil.which("tthresh")]


def psnr_at(curve: Sequence[Point], n_bytes: np.ndarray | float) -> np.ndarray:
    """PSNR along a curve, linear in the logarithm of the bytes; NaN beyond its ends."""
    x, y = np.log([b for b, _ in curve]), [p for _, p in curve]
    return np.interp(np.log(n_bytes), x, y, left=np.nan, right=np.nan)


def around(codec: str, volume: np.ndarray, n_bytes: int) -> list[Point]:
    """Two points of a codec, in order of bytes, with `n_bytes` between them if its settings allow.

    The interval of settings is halved until their bytes are nearly equal.
    """
    point, settings = SETTINGS[codec]
    ends = sorted((point(volume, setting), setting) for setting in (settings[0], settings[-1]))
    for _ in range(MOST_HALVINGS):
        (least, _), (most, _) = (found for found, _ in ends)
        if not least <= n_bytes <= most or most < NEAR * least:
            break
        middle = math.sqrt(ends[0][1] * ends[1][1])
        found = point(volume, middle)
        ends[found[0] > n_bytes] = found, middle
    return [found for found, _ in ends]


def main(argv: Sequence[str]) -> None:
    """Print the PSNR of each codec at each size."""
    parser = argument_parser(__doc__)
    parser.add_argument("volume", metavar="VOLUME", help="a file, or field:N or lattice:N, see shared.py")
    parser.add_argument("--bytes", type=int, nargs="+", required=True, help="sizes of the file")
    opt = parser.parse_args(argv)
    volume = array_of(opt.volume)
    print(table_head(["codec", "bytes", "dB"]), flush=True)
    for codec in available():
        for n_bytes in opt.bytes:
            points = around(codec, volume, n_bytes)
            psnr = float(psnr_at(points, n_bytes))
            beyond = f"- (its files: {points[0][0]:,} to {points[1][0]:,} bytes)"
            cell = f"{psnr:.2f}" if math.isfinite(psnr) else beyond
            print(table_row([codec, f"{n_bytes:,}", cell]), flush=True)


if __name__ == "__main__":
    console.run(main)
