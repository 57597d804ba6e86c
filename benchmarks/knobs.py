"""The two knobs: --compression_ratio of train.py, with and without net_compress.py --volume.

Prints a table in Markdown, a row a ratio: parameters; seconds of train.py; then PSNR in dB of what the file decodes to,
bytes of the file and seconds of net_compress.py, without --volume and with it. All other settings are the defaults.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from shared import script, table_head, table_row


def row(path: str, ratio: float) -> list[str]:
    """The cells of one ratio."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        files = ("--config", folder / "n.json")
        size = ("--compression_ratio", ratio)
        fitted = script("train.py", "--volume", path, "--network", folder / "n.pth", *files, *size)
        cells = [f"{ratio:g}", fitted["n_layers"], fitted["parameters"], fitted["seconds"]]
        for volume in ((), ("--volume", path)):
            blob = ("--compressed", folder / "blob")
            packed = script("net_compress.py", "--net", folder / "n.pth", *files, *blob, *volume)
            found = script("net_decompress.py", *blob, "--recon", folder / "r.npy", "--volume", path)
            cells += [f"{float(found['psnr']):.1f}", found["bytes"], packed["seconds"]]
    return cells


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("volume", help=".npy array [x, y, z]")
    parser.add_argument("--ratios", type=float, nargs="+", default=[12.5, 25, 50, 100, 200], help="of train.py")
    opt = parser.parse_args()
    head = ["ratio", "layers", "parameters", "s, train.py"]
    head += [f"{unit}, {how}" for how in ("alone", "--volume") for unit in ("dB", "bytes", "s")]
    print(table_head(head), flush=True)
    for ratio in opt.ratios:
        print(table_row(row(opt.volume, ratio)), flush=True)


if __name__ == "__main__":
    main()
