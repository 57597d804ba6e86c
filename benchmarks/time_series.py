"""One network over space and time against one network per step, of the same number of parameters in all.

Prints a table in Markdown: bytes of all blobs together and PSNR over all steps, over the range of the whole series, of
what they decode to; seconds of train.py, and of net_compress.py --volume. All settings but the size are the defaults.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from shared import argument_parser, network_flags, script, table_head, table_row

from cli import console


def chain(array: np.ndarray, ratio: float) -> dict[str, float]:
    """Parameters, bytes, mean squared error and seconds of one network for an array, by key."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        np.save(folder / "v.npy", array)
        to_train, to_compress = network_flags(folder)
        given = ("--volume", folder / "v.npy")
        size = ("--d_in", array.ndim, "--compression_ratio", ratio)
        fitted = script("train.py", *given, *to_train, *size)
        packed = script("net_compress.py", *given, *to_compress, "--compressed", folder / "blob")
        found = script("net_decompress.py", *given, "--compressed", folder / "blob", "--recon", folder / "r.npy")
    return {
        "parameters": int(fitted["parameters"]),
        "bytes": int(found["bytes"]),
        "error": float(found["rmse"]) ** 2,
        "fit": float(fitted["seconds"]),
        "compress": float(packed["seconds"]),
    }


def main(argv: Sequence[str]) -> None:
    """Measure and print the table."""
    parser = argument_parser(__doc__)
    parser.add_argument("volume", help=".npy array [t, x, y, z]")
    parser.add_argument("--ratios", type=float, nargs="+", default=[100.0, 50.0], help="voxels / parameters")
    opt = parser.parse_args(argv)
    series = np.load(opt.volume, mmap_mode="r")
    extent = float(series.max()) - float(series.min())
    print(table_head(["networks", "ratio", "parameters", "bytes", "dB", "s fit", "s compress"]), flush=True)
    for ratio in opt.ratios:
        for label, parts in (("one", [series]), (f"{len(series)}, one a step", list(series))):
            runs = [chain(part, ratio) for part in parts]
            parameters, n_bytes, error, fit, compress = (sum(run[key] for run in runs) for key in runs[0])
            psnr = 20 * math.log10(extent / math.sqrt(error / len(runs)))
            row = [label, f"{ratio:g}", parameters, n_bytes, f"{psnr:.2f}", f"{fit:.0f}", f"{compress:.0f}"]
            print(table_row(row), flush=True)


if __name__ == "__main__":
    console.run(main)
