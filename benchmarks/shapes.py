"""The depth that train.py chooses against a grid of depths, learning rates and first waves, at equal parameters.

Prints two tables in Markdown. The first has a row for each volume, ratio, rate and wave: the PSNR in dB of one full fit
of every depth. The rates are factors of the default one, the waves are the highest frequencies of the first layer, in
radians per unit of the normalised coordinates. The second table has a row for each volume and ratio: the best of the
grid, and for every seed the depth that is chosen and what it comes to. Seconds, in brackets, are CPU time of one
thread; the choice is part of them.
"""

from __future__ import annotations

import dataclasses
import itertools
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from unittest.mock import patch

import torch
from shared import argument_parser, array_of, table_head, table_row

from cli import console
from field.layers import SirenConfig
from siren import HIGHEST_WAVE, LEAST_NEURONS, neurons_for_budget
from training import starts
from training.fitting import Fit, new_fit
from training.recipe import default_recipe, psnr_of
from training.sampler import VoxelSampler
from training.shapes import fit_after_trials, networks_for_budget
from training.starts import Start
from training.streaming import make_sampler
from utils import value_range


def measured(fit: Fit, started: float) -> tuple[float, str]:
    """PSNR in dB, over all voxels, of a fit run to its end; with its CPU seconds as text."""
    fit.run()
    seconds = time.process_time() - started
    psnr = psnr_of(float(fit.sampler.squared_errors(fit.averaged_net).double().mean()))
    return psnr, f"{psnr:.2f} ({seconds:.0f})"


def fit_of(depth: int, rate: float, wave: float, sampler: VoxelSampler, n_parameters: float) -> tuple[float, str]:
    """The `measured` fit of a network of so many layers, from the first seed."""
    started = time.process_time()
    fields = {"n_layers": depth, "d_in": len(sampler.shape)}
    config = SirenConfig(neurons_for_budget(n_parameters, LEAST_NEURONS, **fields), **fields)
    recipe = default_recipe(sampler.n_present, config)
    with patch.object(starts, "HIGHEST_WAVE", wave):
        fit = new_fit(Start(config, 0), sampler, dataclasses.replace(recipe, lr=rate * recipe.lr))
    return measured(fit, started)


def main(argv: Sequence[str]) -> None:
    """Measure and print the tables."""
    parser = argument_parser(__doc__, volumes="+")
    parser.add_argument("--ratios", type=float, nargs="+", default=[50.0, 200.0], help="voxels / parameters")
    parser.add_argument("--depths", type=int, nargs="+", default=[2, 3, 4, 5, 6, 8, 12], help="layers")
    parser.add_argument("--rates", type=float, nargs="+", default=[1.0], help="learning rates / the default one")
    parser.add_argument("--waves", type=float, nargs="+", default=[HIGHEST_WAVE], help="highest frequencies at first")
    parser.add_argument("--seeds", type=int, default=1, help="choices for each volume and ratio")
    opt = parser.parse_args(argv)
    torch.set_num_threads(1)
    head = ["volume", "ratio", "rate", "wave", *(f"{n} layers" for n in opt.depths)]
    print(table_head(head), flush=True)
    head = ["volume", "ratio", "best: layers, rate, wave"]
    head += [f"chosen, seed {seed}" for seed in range(opt.seeds)]
    summary = [table_head(head)]
    for path, ratio in itertools.product(opt.volumes, opt.ratios):
        values, name = array_of(path)[..., None], Path(path).stem
        sampler = make_sampler(values, value_range(values), torch.device("cpu"))
        n_parameters, found = sampler.n_present // ratio, {}
        for rate, wave in itertools.product(opt.rates, opt.waves):
            texts = []
            for depth in opt.depths:
                found[depth, rate, wave], text = fit_of(depth, rate, wave, sampler, n_parameters)
                texts.append(text)
            print(table_row([name, f"{ratio:g}", f"{rate:g}", f"{wave:g}", *texts]), flush=True)
        best = max(found, key=found.get)
        cells = [name, f"{ratio:g}", f"{found[best]:.2f}: {', '.join(f'{x:g}' for x in best)}"]
        for seed in range(opt.seeds):
            started = time.process_time()
            configs = networks_for_budget(n_parameters, None, d_in=len(sampler.shape))
            fit = fit_after_trials(configs, partial(default_recipe, sampler.n_present), sampler, seed)
            cells.append(f"{fit.net.config.n_layers}: {measured(fit, started)[1]}")
        summary.append(table_row(cells))
    print("", *summary, sep="\n", flush=True)


if __name__ == "__main__":
    console.run(main)
