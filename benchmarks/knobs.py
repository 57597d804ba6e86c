"""The two knobs: --compression_ratio of train.py, with and without net_compress.py --volume.

Prints a table in Markdown, a row a ratio: parameters; seconds of train.py; then PSNR in dB of what the file decodes to,
bytes of the file and seconds of net_compress.py, without --volume and with it. All other settings are the defaults.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence

from shared import argument_parser, network_flags, script, table_head, table_row

from cli import console


def row(path: str, ratio: float) -> list[str]:
    """The cells of one ratio."""
    with tempfile.TemporaryDirectory() as name:
        to_train, to_compress = network_flags(name)
        fitted = script("train.py", "--volume", path, *to_train, "--compression_ratio", ratio)
        cells = [f"{ratio:g}", fitted["n_layers"], fitted["parameters"], fitted["seconds"]]
        for volume in ((), ("--volume", path)):
            blob = ("--compressed", f"{name}/blob")
            packed = script("net_compress.py", *to_compress, *blob, *volume)
            found = script("net_decompress.py", *blob, "--recon", f"{name}/r.npy", "--volume", path)
            cells += [f"{float(found['psnr']):.1f}", found["bytes"], packed["seconds"]]
    return cells


def main(argv: Sequence[str]) -> None:
    """Measure and print the table."""
    parser = argument_parser(__doc__)
    parser.add_argument("volume", help=".npy array [x, y, z]")
    parser.add_argument("--ratios", type=float, nargs="+", default=[12.5, 25, 50, 100, 200], help="of train.py")
    opt = parser.parse_args(argv)
    head = ["ratio", "layers", "parameters", "s, train.py"]
    head += [f"{unit}, {how}" for how in ("alone", "--volume") for unit in ("dB", "bytes", "s")]
    print(table_head(head), flush=True)
    for ratio in opt.ratios:
        print(table_row(row(opt.volume, ratio)), flush=True)


if __name__ == "__main__":
    console.run(main)
