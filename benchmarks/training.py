"""The default fit of train.py against the original scripts' recipe: same volume, same budget, same process.

Prints a table in Markdown and draws PSNR over seconds, one panel per volume. "dB in 1/50" is what the default recipe
comes to in that part of the original's seconds, by --max_seconds. Seconds are those of training alone; the exact PSNR
is evaluated now and then while the clock stands still. The original's recipe runs with this suite's sampler and
gradient, which take less time than the original's own.
"""

from __future__ import annotations

import dataclasses
import math
import platform
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch
from shared import argument_parser, read_scalar, table_head, table_row

from cli import console
from field.layers import OMEGA_0, SirenConfig
from field.metrics import compare
from field.neural_field import NeuralField
from training.fitting import Fit
from training.recipe import Recipe, default_recipe
from training.shapes import fit_after_trials, networks_for_budget
from training.streaming import make_sampler
from utils import Volume, header_of

ORIGINAL = Recipe(n_passes=75, batch=16384, lr=5e-5, optimizer="adam", schedule="step", pass_decay=20, lr_decay=0.2)
PART = 50  # one more default fit is planned for the original's seconds divided by PART
FINER = 1.1  # the PSNR is evaluated each time the training time has grown by this factor


@dataclasses.dataclass
class Run:
    """PSNR (dB) over seconds of one fit, trials included. The last entry is the end of the fit.

    n_samples: samples in the fit without its trials. n_layers: layers of its network.
    """

    seconds: list[float]
    psnr: list[float]
    n_samples: int
    n_layers: int

    def time_to(self, psnr: float) -> float:
        """Seconds until this PSNR was first measured; infinite if it was never measured."""
        return next((s for s, p in zip(self.seconds, self.psnr, strict=True) if p >= psnr), float("inf"))


def run_recipe(
    volume: Volume,
    recipe_for: Callable[[SirenConfig], Recipe],
    configs: list[SirenConfig],
    first_omega: float | None,
    device: torch.device,
) -> Run:
    """Fit a new network to the volume. With `max_seconds`, a limit by the clock, only the end is evaluated."""
    header = header_of(volume)
    sampler = make_sampler(volume.values, header.value_range, device)
    fit = fit_after_trials(configs, recipe_for, sampler, 0, first_omega)
    run = Run([], [], 0, fit.net.config.n_layers)
    paused, due = 0.0, math.inf if fit.recipe.max_seconds else fit.seconds + 0.1

    def on_step(fit: Fit) -> None:
        nonlocal paused, due
        if fit.seconds - paused >= due or fit.progress >= 1:
            started = time.monotonic()
            run.seconds.append(fit.seconds - paused)
            run.psnr.append(compare(volume.array, NeuralField.of(fit.averaged_net, header, device).on_grid()).psnr)
            run.n_samples = round(fit.step / fit.steps_per_pass * sampler.n_present)
            due = FINER * (fit.seconds - paused)
            paused += time.monotonic() - started

    fit.run(on_step)
    return run


def processor() -> str:
    """The name of the processor, or its architecture if the system gives no name."""
    models = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    names = [line.split(":", 1)[1].strip() for line in models if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def main(argv: Sequence[str]) -> None:
    """Measure, print the table and draw the curves."""
    parser = argument_parser(__doc__, volumes="+")
    parser.add_argument("--compression_ratio", type=float, default=50.0, help="voxels / parameters (default: 50)")
    parser.add_argument("--plot", default="training.png", help="picture to write (default: training.png)")
    parser.add_argument("--cuda", action="store_true", help="use the GPU")
    opt = parser.parse_args(argv)
    device = torch.device("cuda" if opt.cuda else "cpu")
    torch.set_num_threads(1)

    versions = f"Python {platform.python_version()}, NumPy {np.__version__}, torch {torch.__version__}"
    print(f"{versions}; {processor()}, one thread; device {device}, ratio {opt.compression_ratio:g}\n")
    head = ["volume", "layers", "original dB", "s", "default dB", "s", "gain dB", "s to original's dB", "1 /"]
    head += [f"dB in 1/{PART}", "original voxels/s", "default voxels/s"]
    print(table_head(head), flush=True)
    figure, panels = plt.subplots(1, len(opt.volumes), figsize=(4 * len(opt.volumes), 3.2), squeeze=False)
    for path, panel in zip(opt.volumes, panels[0], strict=True):
        volume = read_scalar(path)
        n_voxels = volume.array.size
        budget = n_voxels // opt.compression_ratio
        configs, original = (networks_for_budget(budget, depth, d_in=3) for depth in (None, 8))
        default = partial(default_recipe, n_voxels, is_gpu=opt.cuda)
        new = run_recipe(volume, default, configs, None, device)
        old = run_recipe(volume, lambda config: ORIGINAL, original, OMEGA_0, device)
        brief = partial(default, max_seconds=old.seconds[-1] / PART)
        short = run_recipe(volume, brief, configs, None, device)
        reached = new.time_to(old.psnr[-1])
        row = [Path(path).stem, new.n_layers, f"{old.psnr[-1]:.1f}", f"{old.seconds[-1]:.1f}"]
        row += [f"{new.psnr[-1]:.1f}", f"{new.seconds[-1]:.1f}", f"{new.psnr[-1] - old.psnr[-1]:+.1f}"]
        row += [f"{reached:.2f}", f"{old.seconds[-1] / reached:.0f}", f"{short.psnr[-1]:.1f}"]
        row += [f"{run.n_samples / run.seconds[-1]:,.0f}" for run in (old, new)]
        print(table_row(row), flush=True)
        for run, label in ((old, "original recipe"), (new, "default")):
            panel.plot(run.seconds, run.psnr, label=label)
        panel.set(xscale="log", xlabel="seconds", ylabel="PSNR (dB)", title=Path(path).stem)
        panel.legend()
        panel.grid(alpha=0.3)
        figure.tight_layout()
        figure.savefig(opt.plot, dpi=110)


if __name__ == "__main__":
    console.run(main)
