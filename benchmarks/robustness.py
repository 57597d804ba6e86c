"""The default recipe from several seeds, and over widths, depths and ratios: PSNR, spread, recoveries, collapses.

Prints one Markdown row per volume, its fits from --seeds seeds, then, from two seeds, one per shape of network on the
volume --shapes. A fit counts as collapsed when it is less than 1 dB better than the best constant.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from shared import argument_parser, read_scalar, table_head, table_row

from cli import console
from field.layers import SirenConfig
from field.metrics import compare
from field.neural_field import NeuralField
from siren import neurons_for_budget
from training.recipe import default_recipe, psnr_of
from training.shapes import fit_after_trials
from training.streaming import make_sampler
from utils import Volume, header_of


def fit_psnr(volume: Volume, config: SirenConfig, seed: int, passes: float | None) -> tuple[float, float, int]:
    """(PSNR of one fit in dB, PSNR of the best constant in dB, number of recoveries of the fit)."""
    header = header_of(volume)
    sampler = make_sampler(volume.values, header.value_range, torch.device("cpu"))
    recipe = default_recipe(sampler.n_present, config, n_passes=passes)
    fit = fit_after_trials([config], lambda config: recipe, sampler, seed)
    fit.run()
    psnr = compare(volume.array, NeuralField.of(fit.averaged_net, header).on_grid()).psnr
    return psnr, psnr_of(sampler.variance), fit.recovery.n_recoveries


def row(name: str, volume: Volume, config: SirenConfig, seeds: range, passes: float | None) -> None:
    """Fit one network from every seed, and print the table row."""
    fits = [fit_psnr(volume, config, seed, passes) for seed in seeds]
    psnr = [p for p, _, _ in fits]
    collapsed = sum(p < constant + 1 for p, constant, _ in fits)
    figures = [f"{p:.2f}" for p in psnr]
    cells = [name, config.n_neurons, config.n_layers, config.n_parameters, " ".join(figures)]
    cells += [f"{max(psnr) - min(psnr):.2f}", sum(n for _, _, n in fits), collapsed]
    print(table_row(cells), flush=True)


def main(argv: Sequence[str]) -> None:
    """Measure and print the table."""
    parser = argument_parser(__doc__, volumes="*")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--shapes", metavar="VOLUME", help="volume for the rows over widths, depths and ratios")
    parser.add_argument("--passes", type=float, help="passes of those rows (default: train.py's)")
    opt = parser.parse_args(argv)
    torch.set_num_threads(1)
    head = ["volume", "width", "layers", "parameters", "dB", "spread", "recoveries", "collapsed"]
    print(table_head(head), flush=True)
    for path in opt.volumes:
        volume = read_scalar(path)
        config = SirenConfig(neurons_for_budget(volume.array.size // 50))
        row(Path(path).stem, volume, config, range(opt.seeds), None)
    if opt.shapes:
        volume = read_scalar(opt.shapes)
        shapes = [(width, layers) for width in (16, 32, 64, 128, 256) for layers in (2, 4, 8, 12)]
        configs = {f"{w} x {n}": SirenConfig(w, n) for w, n in shapes}
        configs |= {f"ratio {r}": SirenConfig(neurons_for_budget(volume.array.size // r)) for r in (5, 20, 200, 2000)}
        configs |= {f"plain {w} x {n}": SirenConfig(w, n, is_residual=False) for w, n in ((16, 8), (64, 4), (64, 12))}
        for name, config in configs.items():
            row(name, volume, config, range(2), opt.passes)


if __name__ == "__main__":
    console.run(main)
