"""PSNR over file bytes: train.py + net_compress.py --volume against the compressors of peers.py, on the given volumes.

Runs the scripts as a user does, for several --compression_ratio; a ratio that needs less than the least width takes
fewer layers. "original" is the format of the original scripts, 9 bits, at the same networks. Writes one CSV with
everything measured, which a rerun continues, and per volume a picture; prints a table of PSNR at equal file ratios,
and per peer the Bjontegaard deltas of ours against it: BD-PSNR in dB and BD-rate in % of bytes, over the file ratios
(4 bytes x voxels / file bytes) from --low to --high that both cover.
"""

from __future__ import annotations

import csv
import json
import math
import sys
import tempfile
import time
import zlib
from collections.abc import Sequence
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch
from peers import SETTINGS, Point, available, psnr_at
from shared import argument_parser, network_flags, read_scalar, script, table_head, table_row

from cli import console
from field.layers import SirenConfig
from field.metrics import compare
from field.neural_field import NeuralField
from quantising import codebooks, rounding
from siren import FieldNet
from utils import Geometry, UserError, Volume, header_of

PEERS = (*SETTINGS, "original")
FIELDS = ("volume", "checksum", "codec", "setting", "bytes", "psnr", "seconds")
ORIGINAL_BITS = 9


# --- ours ---------------------------------------------------------------------------------------------


def ours(path: str, volume: np.ndarray, ratio: float) -> dict[str, Point]:
    """(bytes, PSNR) of our blob, and of the original's format for the same network, unless there are several."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (to_train, to_compress), blob = network_flags(folder), folder / "blob"
        script("train.py", "--volume", path, *to_train, "--compression_ratio", ratio)
        settings, state = json.loads((folder / "n.json").read_text()), torch.load(folder / "n.pth", weights_only=True)
        script("net_compress.py", *to_compress, "--compressed", blob, "--volume", path)
        found = script("net_decompress.py", "--compressed", blob, "--recon", folder / "r.npy", "--volume", path)
        points = {"ours": (int(found["bytes"]), float(found["psnr"]))}
        return points if "bricks" in settings else points | {"original": original_format(volume, settings, state)}


def original_format(volume: np.ndarray, settings: dict, state: dict[str, torch.Tensor]) -> Point:
    """(bytes, PSNR) of a network in the original's format: a codebook per hidden matrix, the rest as float32."""
    config = SirenConfig(settings["layers"][0], settings["n_layers"])
    net = FieldNet(config)
    net.load_state_dict(state)
    n, n_hidden = config.n_neurons, (config.n_layers - 1) * 2
    n_bytes = 5 + 4 * config.n_layers + 4 * (3 * n + n + n + 1)
    n_bytes += n_hidden * (4 * 2**ORIGINAL_BITS + math.ceil(n * n * ORIGINAL_BITS / 8) + 4 + 4 * n)
    as_good_as_float32 = np.float32(2.0**-20)  # for weights without a codebook, which are stored unrounded
    rounding.load(net, codebooks.round_to_codebooks(net, ORIGINAL_BITS, [as_good_as_float32] * (n_hidden + 2)))
    header = header_of(Volume(volume, Geometry.plain(3)))
    return n_bytes, compare(volume, NeuralField.of(net, header).on_grid()).psnr


# --- measuring, once ------------------------------------------------------------------------------------


class Record:
    """All measurements, in a CSV file that grows by one row with each measurement."""

    def __init__(self, path: Path):
        self.path = path
        self.rows = list(csv.DictReader(path.open())) if path.exists() else []

    def has(self, checksum: str, codec: str, setting: str) -> bool:
        key = (checksum, codec, setting)
        return any((row["checksum"], row["codec"], row["setting"]) == key for row in self.rows)

    def add(self, **row: object) -> None:
        self.rows.append({name: str(row[name]) for name in FIELDS})
        with self.path.open("a", newline="") as file:
            writer = csv.DictWriter(file, FIELDS)
            if file.tell() == 0:
                writer.writeheader()
            writer.writerow(self.rows[-1])

    def curve(self, checksum: str, codec: str) -> list[Point]:
        """The measured points in order of bytes, without points that another point beats in both figures."""
        rows = (row for row in self.rows if (row["checksum"], row["codec"]) == (checksum, codec))
        points = sorted((int(row["bytes"]), float(row["psnr"])) for row in rows if math.isfinite(float(row["psnr"])))
        best: list[Point] = []
        for point in points:
            if not best or point[1] > best[-1][1]:
                best.append(point)
        return best


def measure(path: str, ratios: list[float], record: Record) -> str:
    """Measure what is missing in the record for one volume. Returns the checksum of the volume."""
    volume = read_scalar(path).array
    checksum = f"{zlib.crc32(volume.tobytes()):08x}"
    known = {"volume": Path(path).stem, "checksum": checksum}
    for codec in available():
        codec_point, settings = SETTINGS[codec]
        for setting in settings:
            if not record.has(checksum, codec, f"{setting:.6g}"):
                started = time.monotonic()
                n_bytes, psnr = codec_point(volume, setting)
                seconds = f"{time.monotonic() - started:.2f}"
                record.add(**known, codec=codec, setting=f"{setting:.6g}", bytes=n_bytes, psnr=psnr, seconds=seconds)
    for ratio in ratios:
        if not record.has(checksum, "ours", f"{ratio:g}"):
            started = time.monotonic()
            for codec, (n_bytes, psnr) in ours(path, volume, ratio).items():
                seconds = f"{time.monotonic() - started:.2f}"
                record.add(**known, codec=codec, setting=f"{ratio:g}", bytes=n_bytes, psnr=psnr, seconds=seconds)
                print(f"{Path(path).stem}: {codec} {ratio:g}: {n_bytes} bytes, {psnr:.2f} dB", file=sys.stderr)
    return checksum


# --- comparing ------------------------------------------------------------------------------------------


def bd_psnr(curve: list[Point], peer: list[Point], least: float, most: float) -> float:
    """Mean gain in dB over the bytes, within least to most, that both curves cover, on a logarithmic scale of bytes."""
    grid = np.geomspace(least, most, 400)
    gain = psnr_at(curve, grid) - psnr_at(peer, grid)
    return float(np.nanmean(gain)) if np.isfinite(gain).any() else math.nan


def bd_rate(curve: list[Point], peer: list[Point], least: float, most: float) -> float:
    """Mean difference of the bytes in % at equal PSNR, where both curves have points between least and most bytes."""
    curves = []
    for points in (curve, peer):
        grid = np.geomspace(max(least, points[0][0]), max(min(most, points[-1][0]), points[0][0]), 400)
        curves.append((psnr_at(points, grid), np.log(grid)))
    low, high = max(c[0].min() for c in curves), min(c[0].max() for c in curves)
    if not low < high:
        return math.nan
    levels = np.linspace(low, high, 400)
    logs = [np.interp(levels, psnr, log_bytes) for psnr, log_bytes in curves]
    return 100 * (math.exp(float((logs[0] - logs[1]).mean())) - 1)


def draw(name: str, n_voxels: int, curves: dict[str, list[Point]], folder: Path) -> None:
    """Draw PSNR over the file ratio for one volume, and save the picture in `folder`."""
    figure, axes = plt.subplots(figsize=(6, 4.2))
    for codec, points in curves.items():
        style = {"ours": "o-", "original": "s--"}.get(codec, ".-")
        axes.plot([4 * n_voxels / b for b, _ in points], [p for _, p in points], style, label=codec)
    axes.set(xscale="log", xlabel="file ratio: 4 bytes x voxels / file bytes", ylabel="PSNR (dB)", title=name)
    axes.set_xlim(40, 2500)
    shown = [p for points in curves.values() for b, p in points if 40 <= 4 * n_voxels / b <= 2500]
    axes.set_ylim(min(shown) - 1, max(shown) + 1)
    axes.grid(alpha=0.3, which="both")
    axes.legend()
    figure.tight_layout()
    figure.savefig(folder / f"{name}.png", dpi=110)
    plt.close(figure)


Curves = dict[str, dict[str, list[Point]]]  # of each volume: of each codec


def print_psnrs(tables: Curves, sizes: dict[str, int]) -> None:
    """Print the table of PSNR at equal file ratios. sizes: voxels of each volume."""
    ratios = (100, 200, 400, 800, 1600)
    print(table_head(["volume", "codec", *(f"dB at {ratio}" for ratio in ratios)]))
    for name, curves in tables.items():
        for codec, points in curves.items():
            found = [float(psnr_at(points, 4 * sizes[name] / ratio)) for ratio in ratios]
            print(table_row([name, codec, *("-" if math.isnan(p) else f"{p:.1f}" for p in found)]))


def print_deltas(tables: Curves, sizes: dict[str, int], low: float, high: float) -> None:
    """Print the table of the Bjontegaard deltas over the file ratios from low to high."""
    peers = [codec for codec in PEERS if any(codec in curves for curves in tables.values())]
    print("", table_head(["ours against", *(f"{peer} dB, bytes" for peer in peers)]), sep="\n")
    deltas: dict[str, list[float]] = {peer: [] for peer in peers}
    for name, curves in tables.items():
        cells = []
        for peer in peers:
            limits = 4 * sizes[name] / high, 4 * sizes[name] / low
            gain = bd_psnr(curves["ours"], curves[peer], *limits) if peer in curves else math.nan
            rate = bd_rate(curves["ours"], curves[peer], *limits) if peer in curves else math.nan
            deltas[peer].append(gain)
            cells.append("-" if math.isnan(gain) else f"{gain:+.2f}" + ("" if math.isnan(rate) else f", {rate:+.0f} %"))
        print(table_row([name, *cells]))
    means = [f"{np.nanmean(deltas[peer]):+.2f}" if np.isfinite(deltas[peer]).any() else "-" for peer in peers]
    print(table_row(["mean", *means]))


def main(argv: Sequence[str]) -> None:
    """Measure what is missing, print the tables and draw the pictures."""
    parser = argument_parser(__doc__, volumes="+")
    parser.add_argument("--ratios", type=float, nargs="+", default=[16, 40, 100, 250], help="of train.py")
    parser.add_argument("--low", type=float, default=100, help="least file ratio compared (default: 100)")
    parser.add_argument("--high", type=float, default=2000, help="greatest file ratio compared (default: 2000)")
    parser.add_argument("--output", type=Path, default=Path("rate_distortion"), help="folder for the CSV and pictures")
    opt = parser.parse_args(argv)
    if len({Path(path).stem for path in opt.volumes}) < len(opt.volumes):
        raise UserError("expected volumes of different names")
    opt.output.mkdir(parents=True, exist_ok=True)
    record = Record(opt.output / "points.csv")
    tables, sizes = {}, {}
    for path in opt.volumes:
        checksum, name = measure(path, opt.ratios, record), Path(path).stem
        curves = {codec: record.curve(checksum, codec) for codec in ("ours", *PEERS)}
        tables[name] = {codec: points for codec, points in curves.items() if points}
        sizes[name] = read_scalar(path).array.size
        draw(name, sizes[name], tables[name], opt.output)
    print_psnrs(tables, sizes)
    print_deltas(tables, sizes, opt.low, opt.high)


if __name__ == "__main__":
    console.run(main)
