"""The depth that train.py chooses against every depth: PSNR of full fits within one budget of parameters.

Prints a table in Markdown, a row a volume and ratio: the PSNR in dB of one fit of every depth, of 8 layers with three
starts (the default before depths were chosen), and for every seed the depth that is chosen and what it comes to.
Seconds are CPU time of one thread; those of the choice are part of those of the fit.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from inputs import read_scalar

from cli import console
from training.fitting import Fit, new_fit
from training.recipe import default_recipe, psnr_of
from training.shapes import chosen_fit, networks_for_budget
from training.streaming import make_sampler
from utils import header_of


def measured(fit: Fit, started: float) -> str:
    """PSNR in dB, over all voxels, of a fit run to its end, and its CPU seconds in brackets."""
    fit.run()
    seconds = time.process_time() - started
    psnr = psnr_of(float(fit.sampler.squared_errors(fit.averaged_net).double().mean()))
    return f"{psnr:.2f} ({seconds:.0f})"


def row(path: str, ratio: float, depths: Sequence[int], seeds: int) -> list[str]:
    """The cells of one volume and ratio."""
    volume = read_scalar(path)
    sampler = make_sampler(volume.values, header_of(volume).values, torch.device("cpu"))
    within, recipe_for = (
        partial(networks_for_budget, sampler.n_voxels // ratio, d_in=3),
        partial(default_recipe, sampler.n_voxels),
    )
    cells = [Path(path).stem, f"{ratio:g}"]
    for depth in depths:
        (config,), started = within(depth), time.process_time()
        cells.append(measured(new_fit(config, sampler, recipe_for(config), 0), started))
    for depth, seed in [(8, 0), *((None, seed) for seed in range(seeds))]:
        started = time.process_time()
        fit = chosen_fit(within(depth), recipe_for, sampler, seed)
        cells.append((f"{fit.net.config.n_layers}: " if depth is None else "") + measured(fit, started))
    return cells


def main(argv: Sequence[str]) -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("volumes", nargs="+", metavar="VOLUME")
    parser.add_argument("--ratios", type=float, nargs="+", default=[50.0, 200.0], help="voxels / parameters")
    parser.add_argument("--depths", type=int, nargs="+", default=[2, 3, 4, 5, 6, 8, 12], help="layers")
    parser.add_argument("--seeds", type=int, default=1, help="choices for each volume and ratio")
    opt = parser.parse_args(argv)
    torch.set_num_threads(1)
    head = ["volume", "ratio", *(f"{n} layers" for n in opt.depths), "8 layers, best of 3"]
    head += [f"chosen, seed {seed}" for seed in range(opt.seeds)]
    print("| " + " | ".join(head) + " |\n|" + "---|" * len(head), flush=True)
    for path in opt.volumes:
        for ratio in opt.ratios:
            print("| " + " | ".join(row(path, ratio, opt.depths, opt.seeds)) + " |", flush=True)


if __name__ == "__main__":
    console.run(main)
