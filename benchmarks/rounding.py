"""What net_compress.py --volume makes of a network with finer and with coarser steps: PSNR in dB and bytes.

Prints a table in Markdown, a row for each volume and ratio of train.py. A column is the squared error that the steps
may add, relative to the network's own; the last column is what `policy.error_to_add` chooses. A volume is trained once
for each ratio. All other settings are the defaults.
"""

from __future__ import annotations

import contextlib
import io
import itertools
import tempfile
from collections.abc import Sequence
from pathlib import Path
from unittest.mock import patch

from shared import argument_parser, network_flags, script, table_head, table_row

import net_compress
from cli import console
from quantising import policy


def rounded(net: Sequence[object], volume: str, added: float | None) -> str:
    """PSNR and bytes of the file. net: flags that name the network. added: by the steps, None for what is chosen."""
    out, flags = io.StringIO(), ("--volume", volume, "--num_workers", 1)
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        if added is not None:
            stack.enter_context(patch.object(policy, "error_to_add", lambda *_: added))
            stack.enter_context(patch.multiple(policy, MAX_DB_LOST=99.0, MAX_LEAD_LOST=1.0))  # whatever it costs
        stack.enter_context(contextlib.redirect_stdout(out))
        net_compress.main([str(flag) for flag in (*net, *flags, "--compressed", f"{folder}/blob")])
    found = dict(line.split("=", 1) for line in out.getvalue().splitlines() if "=" in line)
    return f"{float(found['psnr']):.2f} ({found['bytes']})"


def main(argv: Sequence[str]) -> None:
    """Measure and print the table."""
    parser = argument_parser(__doc__, volumes="+")
    parser.add_argument("--ratios", type=float, nargs="+", default=[50.0, 200.0], help="voxels / parameters")
    parser.add_argument("--added", type=float, nargs="+", default=[0.1, 0.2, 0.4, 0.8], help="errors of the steps")
    opt = parser.parse_args(argv)
    head = ["volume", "ratio", "before", *(f"{added:g}" for added in opt.added), "chosen"]
    print(table_head(head), flush=True)
    for path, ratio in itertools.product(opt.volumes, opt.ratios):
        with tempfile.TemporaryDirectory() as folder:
            to_train, to_compress = network_flags(folder)
            size = ("--compression_ratio", ratio, "--bricks", "none")
            fitted = script("train.py", "--volume", path, *to_train, *size)
            cells = [Path(path).stem, f"{ratio:g}", f"{float(fitted['psnr']):.2f}"]
            cells += [rounded(to_compress, path, added) for added in (*opt.added, None)]
        print(table_row(cells), flush=True)


if __name__ == "__main__":
    console.run(main)
