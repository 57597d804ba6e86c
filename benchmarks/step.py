"""One training step against what its parts cost alone on this machine: matrix products, sines and cosines.

Prints, per width, voxels/s of the whole step (samples, gradient, update), the voxels/s that the matrix products (by the
faster of NumPy and torch), sines and cosines alone would allow, and the share that the step reaches; besides, the
gradient by autograd.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import numpy as np
import torch
from shared import argument_parser, median_seconds, table_head, table_row
from torch.nn import functional

from cli import console
from field.layers import SirenConfig
from siren import FieldNet
from training import fitting
from training.gradient import LossGradient, padded_columns, torch_matmul
from training.recipe import BATCH, default_recipe
from training.sampler import VoxelSampler

PARTS = ["matrix products", "sines", "cosines", "gradient", "autograd", "step"]  # of which the time is measured
median = functools.partial(median_seconds, repeats=7, least=0.3)


def measure(width: int, batch: int, n_threads: int) -> dict[str, float]:
    """Milliseconds of a step of a residual network of 8 layers, and of its parts."""
    net = FieldNet(SirenConfig(width), torch.Generator().manual_seed(0))
    side = round(batch ** (1 / 3)) + 8
    sampler = VoxelSampler(np.random.default_rng(0).random((side, side, side, 1), np.float32), torch.device("cpu"))
    flat = sampler.shuffled(0, 0)[:batch]
    x, values = sampler.samples(flat)
    fit = fitting.Fit(net, sampler, default_recipe(sampler.n_present, net.config), seed=0)
    loss_gradient = LossGradient(net, batch, n_threads=n_threads)
    fit.step_function.loss_gradient = loss_gradient
    fit.step_function.set_density(sampler.density(fit.errors))

    def autograd() -> None:
        net.zero_grad()
        functional.mse_loss(net(x), values).backward()

    size = padded_columns(batch)
    weight, gradient = (np.full((width, width + 1), 0.1, np.float32) for _ in range(2))
    h, z = np.ones((width + 1, size), np.float32), np.ones((width, size), np.float32)

    def product_seconds(a: np.ndarray, b: np.ndarray, out: np.ndarray) -> float:
        return min(median(functools.partial(multiply, a, b, out=out)) for multiply in (np.matmul, torch_matmul))

    products = product_seconds(weight, h, z) + product_seconds(z, h.T, gradient)
    products += product_seconds(weight[:, :-1].T, z, h[:-1])
    n_hidden, n_sines = 14, 15
    seconds = [n_hidden * products]
    seconds += [n_sines * median(functools.partial(function, z, out=h[:-1])) for function in (np.sin, np.cos)]
    seconds += map(median, (lambda: loss_gradient(x, values), autograd, lambda: fit._take_step(flat)))
    return {name: 1e3 * part for name, part in zip(PARTS, seconds, strict=True)}


def main(argv: Sequence[str]) -> None:
    """Measure and print the table."""
    parser = argument_parser(__doc__)
    parser.add_argument("--widths", type=int, nargs="+", default=[18, 64, 150])
    parser.add_argument("--batch", type=int, default=BATCH)
    parser.add_argument("--num_workers", type=int, default=1, help="threads of gradient and step; all else has one")
    opt = parser.parse_args(argv)
    torch.set_num_threads(1)
    print(f"torch {torch.__version__}, {opt.num_workers} threads, {opt.batch} samples a step, milliseconds a step")
    print(table_head(["width", *PARTS, "voxels/s", "limit", "share"]))
    for width in opt.widths:
        ms = measure(width, opt.batch, opt.num_workers)
        limit = ms["matrix products"] + ms["sines"] + ms["cosines"]
        figures = [f"{ms[name]:.2f}" for name in PARTS]
        figures += [f"{1e3 * opt.batch / seconds:,.0f}" for seconds in (ms["step"], limit)]
        print(table_row([width, *figures, f"{limit / ms['step']:.0%}"]), flush=True)


if __name__ == "__main__":
    console.run(main)
