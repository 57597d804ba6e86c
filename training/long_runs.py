"""A fit as a run of train.py: its progress shown, --target_psnr, and the checkpoints that --resume continues from."""

from __future__ import annotations

import math
import time
from argparse import Namespace
from collections.abc import Callable

import torch

from cli import console
from cli.files import atomic_write
from training import fitting, processes
from training.fitting import Fit
from training.network_files import load_tensors
from training.sampler import VoxelSampler
from training.streaming import StreamingSampler
from utils import UserError

SHOW_SECONDS = 0.5
CHECKPOINT_SECONDS = 60.0
# Options that another run may set differently and still continue a checkpoint.
MAY_CHANGE = {"volume", "array", "shape", "dtype", "endian", "network", "config", "vol_debug", "checkpoint", "resume"}
MAY_CHANGE |= {"target_psnr", "plot", "cuda", "gid", "num_workers"}
ESTIMATE_ERROR = 2.0  # dB by which the estimate may be low
MOST_LACKING = 1.0  # dB that the estimate has to grow, once it was too high, before the next exact look


def run_fit(fit: Fit, opt: Namespace, is_reached: Callable[[float], bool]) -> list[tuple[float, float, float]]:
    """Run a fit to its end, or until `is_reached(estimate)` confirms --target_psnr; show progress, save checkpoints.

    Returns (seconds, passes, estimated PSNR) as it went.
    """
    history = []
    shown = saved = time.monotonic()
    n_recoveries, n_halvings, latest = fit.recovery.n_recoveries, fit.recovery.n_halvings, fit.progress
    with console.Progress("training", fit.progress) as progress:

        def on_step(fit: Fit) -> bool:
            nonlocal shown, saved, n_recoveries, n_halvings, latest
            recovery = fit.recovery
            if recovery.n_recoveries != n_recoveries:
                if recovery.n_halvings != n_halvings:
                    progress.say(f"training went wrong: back to step {fit.step}, at half the learning rate")
                else:
                    progress.say("training stays at a constant: back to the start, with shorter waves")
                n_recoveries, n_halvings = recovery.n_recoveries, recovery.n_halvings
            if fit.progress < latest:
                progress.start(fit.progress)
            latest = fit.progress
            now = time.monotonic()
            if now - shown > SHOW_SECONDS:
                shown = now
                progress.update(fit.progress, PSNR=f"{fit.psnr:.1f} dB")
            if fit.step % fitting.CHECK_STEPS == 0:
                history.append((fit.seconds, fit.step / fit.steps_per_pass, fit.psnr))
                if opt.target_psnr and is_reached(fit.psnr):
                    return True
            if opt.checkpoint and processes.is_first() and now - saved > CHECKPOINT_SECONDS:
                save_checkpoint(opt, fit)
                saved = time.monotonic()
            return False

        fit.run(on_step)
    return history


def identity(opt: Namespace, sampler: VoxelSampler | StreamingSampler) -> dict:
    """What must be the same for a checkpoint to be continued."""
    same = {name: value for name, value in vars(opt).items() if name not in MAY_CHANGE}
    return same | {"shape": list(sampler.shape), "values_crc32": sampler.crc32}


def save_checkpoint(opt: Namespace, fit: Fit) -> None:
    """Write the state of the fit to --checkpoint."""
    with atomic_write(opt.checkpoint) as path, open(path, "wb") as file:
        torch.save({"identity": identity(opt, fit.sampler), "fit": fit.state_dict()}, file)


def load_checkpoint(opt: Namespace, fit: Fit) -> None:
    """Continue from --checkpoint. Raises UserError unless it is of the same volume and options."""
    content = load_tensors(opt.checkpoint)
    expected = identity(opt, fit.sampler)
    try:
        found = content["identity"]
        differing = [name for name in expected if expected[name] != found[name]]
        if not differing:
            fit.load_state_dict(content["fit"])
    except (KeyError, TypeError, ValueError, AttributeError, IndexError, RuntimeError):
        raise UserError(f"{opt.checkpoint}: expected a checkpoint of train.py, found something else") from None
    if differing:
        name = differing[0]
        raise UserError(f"{opt.checkpoint}: is of another run: {name} was {found[name]}, is {expected[name]}")


def run_to_target(fit: Fit, opt: Namespace, measure: Callable[[], float]) -> list[tuple[float, float, float]]:
    """Run a fit; where --target_psnr is given, until `measure()`, the PSNR, confirms that it is reached.

    Returns what `run_fit` does.
    """
    needed = (opt.target_psnr or math.inf) - ESTIMATE_ERROR  # of the estimate

    def is_reached(estimate: float) -> bool:
        nonlocal needed
        if estimate < needed:
            return False
        lacking = opt.target_psnr - measure()
        needed = estimate + min(max(lacking, 0.1), MOST_LACKING)
        return lacking <= 0

    return run_fit(fit, opt, is_reached)
