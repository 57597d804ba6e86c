"""Bricks against one network: seconds, memory, PSNR and seams, by the scripts as a user runs them.

A volume is a file, or `field:N` or `lattice:N`: N^3 voxels of a random field or of a lattice (see shared.py). Their
finest detail has the same size in voxels for every N, as in simulations of the same resolution and different size.
Prints one row per volume and way of cutting it, as soon as it is known: what train.py takes, and with --file what
net_compress.py --volume makes of it.

The seams compare the error of the decoded volume in the layers that bricks share with that in the layers in the middle
between two of them, as ratios of RMS values: of the error; of its difference from one layer to the next (a jump); of
its second difference (a kink). Without seams, all three are 1.
"""

from __future__ import annotations

import concurrent.futures
import itertools
import math
import multiprocessing
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from shared import (
    argument_parser,
    array_of,
    is_made,
    measured_script,
    network_flags,
    read_scalar,
    table_head,
    table_row,
)

from cli import console
from field.blob import decode_field
from field.bricks import cuts
from field.neural_field import NeuralField

HEAD = ["volume", "ratio", "bricks", "parameters", "s", "CPU s", "MB", "dB"]
FILE_HEAD = ["bytes", "dB in the file", "s", "CPU s"]


def save(path: str, name: str) -> None:
    """Write a volume that is made to a .npy file."""
    np.save(path, array_of(name))


def seams(original: np.ndarray, blob: str) -> list[str]:
    """The three ratios of the module's text, over all axes that are cut; empty where none is."""
    header, bricks = decode_field(Path(blob).read_bytes(), large=True)
    field = NeuralField(header, bricks, n_threads=os.cpu_count() or 1)
    counts, _, _, mirrors = bricks.cut
    if math.prod(counts) == 1:
        return [""] * 3
    at_cuts, between = np.zeros(3), np.zeros(3)
    extent = float(original.max()) - float(original.min())
    for axis, ends in enumerate(cuts(original.shape, counts, mirrors)):
        middles = [(a + b) // 2 for a, b in itertools.pairwise(ends)]
        for total, layers in ((at_cuts, ends[1:-1]), (between, middles if len(middles) > 1 else [])):
            for layer in layers:
                box = tuple(slice(layer - 1, layer + 2) if a == axis else slice(None) for a in range(3))
                error = field.on_grid(field.grid(box), as_float=True) - original[box].astype(np.float64)
                error = np.moveaxis(error, axis, 0) / extent
                found = error[1], np.diff(error, axis=0), np.diff(error, 2, axis=0)
                total += np.array([np.square(part).mean() for part in found]) / max(len(layers), 1)
    return [f"{ratio:.2f}" for ratio in np.sqrt(at_cuts / np.maximum(between, 1e-300))]


def measured(path: str, volume: np.ndarray, ratio: float, bricks: str, passes: float | None, with_file: bool) -> list:
    """The figures of one row, after the volume's name."""
    with tempfile.TemporaryDirectory() as name:
        to_train, to_compress = network_flags(name)
        more = ("--n_passes", passes) if passes else ()
        size = "--compression_ratio", ratio, "--bricks", bricks
        found, cpu, memory = measured_script("train.py", "--volume", path, *to_train, *size, *more)
        row = [f"{ratio:g}", found.get("bricks", "1"), found["parameters"], found["seconds"], f"{cpu:.0f}"]
        row += [f"{memory:.0f}", found.get("psnr") or found["psnr_estimate"]]
        flags = ("--volume", path) if with_file else ()
        packed, cpu, _ = measured_script("net_compress.py", *to_compress, "--compressed", f"{name}/blob", *flags)
        if with_file:
            psnr = packed.get("psnr") or packed["psnr_estimate"]
            row += [packed["bytes"], psnr, packed["seconds"], f"{cpu:.0f}"]
        return [*row, *seams(volume, f"{name}/blob")]


def main(argv: Sequence[str]) -> None:
    """Measure all volumes in all ways."""
    parser = argument_parser(__doc__, volumes="+")
    parser.add_argument("--compression_ratio", type=float, nargs="+", default=[50.0], help="(default: 50)")
    parser.add_argument("--bricks", nargs="+", default=["none", "auto"], help="as of train.py (default: none auto)")
    parser.add_argument("--n_passes", type=float, help="as of train.py")
    parser.add_argument("--file", action="store_true", help="round with the volume too")
    opt = parser.parse_args(argv)
    head = HEAD + (FILE_HEAD if opt.file else []) + ["error", "jump", "kink"]
    print(table_head(head), flush=True)
    with tempfile.TemporaryDirectory() as folder:
        for name in opt.volumes:
            path = name
            if is_made(name):
                path = f"{folder}/{name.replace(':', '_')}.npy"
                # In a process of its own: a script would count the memory of the process that starts it.
                with concurrent.futures.ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
                    pool.submit(save, path, name).result()
            volume = read_scalar(path).array
            for ratio in opt.compression_ratio:
                for bricks in opt.bricks:
                    row = measured(path, volume, ratio, bricks, opt.n_passes, opt.file)
                    print(table_row([Path(name).name, *row]), flush=True)


if __name__ == "__main__":
    console.run(main)
