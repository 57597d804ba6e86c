"""How fast a blob decodes, against the matrix products and sines of its network alone; a region; gradients.

The limit is what NumPy takes for the products and sines that the values need, on one chunk over and over.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
import numpy as np
import torch
from shared import argument_parser, median_seconds, table_head, table_row

from cli import console
from field.evaluation import CHUNK
from field.layers import SirenConfig
from field.neural_field import NeuralField
from siren import FieldNet
from utils import Geometry, VolumeHeader, voxel_grid

N_LAYERS = 8
REGION = 32


def limit_seconds(width: int, repeats: int) -> float:
    """Seconds a voxel that the matrix products and sines alone take, for a residual network of this width."""
    chunk, n_sines = CHUNK["cpu"], 2 * N_LAYERS - 1
    weights = np.full((width, width + 1), 0.1, np.float32)
    h, z = np.ones((width + 1, chunk), np.float32), np.empty((width, chunk), np.float32)

    def once() -> None:
        for _ in range(n_sines):
            np.matmul(weights, h, out=z)
            np.sin(z, out=h[:-1])

    return median_seconds(once, 20 * repeats) / chunk


def measure(width: int, side: int, repeats: int) -> list[str]:
    """The cells of the table row for one width."""
    net = FieldNet(SirenConfig(width, N_LAYERS), torch.Generator().manual_seed(0))
    header = VolumeHeader((side,) * 3, np.float32([-1]), np.float32([1]), Geometry.plain(3))
    field, n = NeuralField.of(net, header), side**3
    region = voxel_grid(field.shape, (slice(0, REGION),) * 3)
    full = median_seconds(field.on_grid, repeats)
    limit = limit_seconds(width, repeats) * n
    part = median_seconds(lambda: field.on_grid(region), repeats)
    gradient = median_seconds(lambda: field.gradient_on_grid(region), repeats) / part
    figures = [str(width), f"{n / full:,.0f}", f"{n / limit:,.0f}", f"{limit / full:.0%}"]
    return [*figures, f"{1e3 * part:.1f}", f"{1e3 * full:.1f}", f"{gradient:.1f}"]


def main(argv: Sequence[str]) -> None:
    """Measure and print the table."""
    parser = argument_parser(__doc__)
    parser.add_argument("--widths", type=int, nargs="+", default=[18, 64, 150])
    parser.add_argument("--side", type=int, default=96, help="voxels along each axis")
    parser.add_argument("--repeats", type=int, default=5)
    opt = parser.parse_args(argv)
    if opt.side < REGION:
        parser.error(f"argument --side: expected at least {REGION}, found {opt.side}")
    print(f"numpy {np.__version__}, one thread, {N_LAYERS} residual layers, {opt.side}^3 voxels")
    head = ["width", "voxels/s", "limit", "share", f"{REGION}^3 region, ms", "full, ms", "gradient, times the values"]
    print(table_head(head))
    for width in opt.widths:
        print(table_row(measure(width, opt.side, opt.repeats)), flush=True)


if __name__ == "__main__":
    console.run(main)
