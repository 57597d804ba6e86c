"""A fit as a run of train.py: progress, --target_psnr, checkpoints for --resume, what an interrupted run leaves."""

from __future__ import annotations

import contextlib
import os
import re
import sys
import time
from collections.abc import Callable, Iterator, Sequence

import torch

from cli import console
from cli.files import atomic_write
from cli.progress import Progress
from field.layers import SirenConfig
from training import processes
from training.bricked_fit import BrickedFit
from training.fitting import Fit
from training.network_files import load_tensors
from utils import UserError

CHECKPOINT_SECONDS = 60.0  # between checkpoints
LONG_SECONDS = 30.0  # a run that Ctrl-C or an error ends writes its network if it has trained for this time
ESTIMATE_ERROR = 2.0  # by how much the estimated PSNR may be too low, dB
MOST_LACKING = 1.0  # the next exact measurement waits for at most this growth of the estimated PSNR, dB

# What the message says if one of these parts of the identity differs. Their own values would tell a user nothing.
DIFFERENCES = {"values_crc32": "the volume has other values", "networks": "its bricks have other networks"}

# The parts of the identity that are compared first, in this order. So the message names the cause, not what follows
# from it. Other options, such as lr, follow from the volume. Its checksum follows from the options before it here.
OF_VOLUME = ("shape", "d_in", "d_out", "fill", "clip", "bricks", "values_crc32")

History = list[tuple[float, float]]  # one entry per judged step: (seconds, estimated PSNR in dB)


class Checkpoint:
    """The file that holds the state of a fit, so that the fit can continue later.

    path: None saves nothing. options: further options of the run, which must be equal when the fit continues.
    """

    def __init__(self, path: str | None, options: dict[str, object]):
        self.path, self.options = path, options
        self.saved = time.monotonic()
        self.is_earlier = path is not None and os.path.exists(self._own_path)  # the file is that of another run

    @property
    def _own_path(self) -> str:
        """The file of this process: one after the first adds its number to the name."""
        return self.path + (f".{processes.number()}" if processes.number() else "")

    @property
    def is_there(self) -> bool:
        """Whether the file is there, and holds a state of this run."""
        return self.path is not None and os.path.exists(self.path) and not self.is_earlier

    def identity(self, fit: Fit | BrickedFit) -> dict:
        """Everything that must be equal when a fit continues: volume, options, network, recipe and seed."""
        found = {**self.options, **fit.identity()}
        return {name: found[name] for name in OF_VOLUME if name in found} | found

    def save_in_time(self, fit: Fit | BrickedFit) -> None:
        """Save the state if the last save is more than CHECKPOINT_SECONDS ago.

        The fit of one network is the same in all processes: the first process saves it. Each process has bricks of its
        own, and saves these. A fit with weights that are not finite has just diverged: it is saved after its recovery.
        """
        is_due = self.path and time.monotonic() - self.saved > CHECKPOINT_SECONDS
        if is_due and (isinstance(fit, BrickedFit) or (processes.is_first() and fit.is_finite)):
            try:
                self.save(fit)
            except UserError as error:  # hours of training are not lost for it
                console.warn("train.py", f"{error}: the training goes on")
            self.saved = time.monotonic()

    def save_at_last(self, fit: BrickedFit) -> None:
        """Save the bricks that are done, if their networks are settled, when an error ends the run.

        A second error, of the saving, is not reported. The checkpoint of an earlier run stays, unless this run has
        replaced it already.
        """
        if self.path and fit.networks.configs and not self.is_earlier:
            with contextlib.suppress(UserError):
                self.save(fit)
                what = f"{len(fit.done)} of {fit.networks.n_networks} bricks are in {self.path}"
                if processes.count() > 1:
                    what += f", those of the other processes in {self.path}.1 and so on"
                console.note("train.py", f"{what}: --resume continues the run")

    def save(self, fit: Fit | BrickedFit) -> None:
        """Write the state of the fit to the file of this process."""
        with atomic_write(self._own_path) as path, open(path, "wb") as file:
            torch.save({"identity": self.identity(fit), "fit": fit.state_dict()}, file)
        self.is_earlier = False

    def load(self, fit: Fit | BrickedFit) -> None:
        """Continue the fit from the file. Raises UserError unless the file has the same `identity` as the fit.

        The bricks that all processes of the earlier run have done are taken together; the first process may have done
        none. A run before that one may have had more processes: their files are left out.
        """
        paths = checkpoint_files(self.path) if isinstance(fit, BrickedFit) else [self.path]
        for path in paths:
            try:
                self._load(path, fit)
            except UserError as error:
                if path == paths[0]:
                    raise UserError(f"{error}: without --resume the training starts anew") from None
                console.warn("train.py", f"{error}: it is left out")
        self.is_earlier = False

    def _load(self, path: str, fit: Fit | BrickedFit) -> None:
        content, expected = load_tensors(path), self.identity(fit)
        try:
            found = dict(content["identity"])
            differing = [name for name in expected if name not in found or not _is_equal(expected[name], found[name])]
            if not differing:
                fit.load_state_dict(content["fit"])
        except (KeyError, TypeError, ValueError, AttributeError, IndexError, RuntimeError):
            raise UserError(f"{path}: expected a checkpoint of train.py, found something else") from None
        if differing:
            name = differing[0]
            change = f"{name} was {_text(found[name])}, is {_text(expected[name])}" if name in found else None
            what = DIFFERENCES.get(name) or change or f"it says no {name}, as one of another version of train.py"
            raise UserError(f"{path}: is of another run: {what}")


def _text(value: object) -> str:
    """A value of an identity, to be told. Lists in lists are not looked into: a small file can hold endless ones."""
    parts = value[:10] if isinstance(value, list | tuple) else [value]
    is_plain = all(isinstance(part, int | float | str | None) for part in parts)
    return ",".join(str(part)[:100] for part in parts) or "empty" if is_plain else "something else"


def checkpoint_files(path: str) -> list[str]:
    """The checkpoints of all processes of an earlier run that have left one. Raises UserError where none has."""
    folder, name = os.path.split(path)
    further = re.compile(re.escape(name) + r"\.[1-9][0-9]*")
    names = sorted(filter(further.fullmatch, os.listdir(folder or "."))) if os.path.isdir(folder or ".") else []
    found = [path] * os.path.exists(path) + [os.path.join(folder, each) for each in names]
    if not found:
        raise UserError(f"{path}: cannot be read: No such file or directory: without --resume the training starts anew")
    return found


def _is_equal(expected: object, found: object) -> bool:
    """Whether a value of a file is as expected. No more of it is looked at than the expected value has."""
    if type(found) is not type(expected):
        return False
    if isinstance(expected, list | tuple):
        return len(found) == len(expected) and all(map(_is_equal, expected, found))
    return expected == found


def saved_network(path: str, configs: Sequence[SirenConfig]) -> SirenConfig:
    """The network, among `configs`, whose fit the checkpoint holds; the first one if the checkpoint names no other."""
    content = load_tensors(path)
    identity = content.get("identity") if isinstance(content, dict) else None
    depth = identity.get("n_layers") if isinstance(identity, dict) else None
    return next((config for config in configs if _is_equal(config.n_layers, depth)), configs[0])


def run_fit(fit: Fit, checkpoint: Checkpoint, is_reached: Callable[[float], bool] | None) -> History:
    """Run a fit to its end, or until `is_reached(estimated PSNR in dB)`; show progress and save checkpoints."""
    history, n_taken = [], fit.step
    if is_reached and fit.step == 0 and is_reached(fit.trial_psnr):
        return [(fit.seconds, fit.trial_psnr)]
    before = fit.recovery.n_recoveries, fit.recovery.n_halvings
    trial_seconds = fit.seconds if fit.trial_steps else 0.0
    with Progress("training", *_work(fit, n_taken), trial_seconds) as progress:

        def on_step(fit: Fit) -> bool:
            nonlocal before, n_taken
            now = fit.recovery.n_recoveries, fit.recovery.n_halvings
            if now != before:
                slower = f"training has failed: back to step {fit.step}, at half the learning rate"  # in either way
                shorter = "training stays at a constant: back to the start, with shorter waves"
                progress.say(shorter if now[1] == before[1] else slower)
            before, n_taken = now, n_taken + 1
            progress.total, n_done = _work(fit, n_taken)
            progress.update(n_done, PSNR=f"{fit.psnr:.1f} dB")
            if fit.is_judged:
                history.append((fit.seconds, fit.psnr))
            if is_reached and fit.has_reached(is_reached):
                return True
            checkpoint.save_in_time(fit)
            return False

        fit.run(on_step)
    return history


def _work(fit: Fit, n_taken: int) -> tuple[float, float]:
    """(all of the work of a fit, what is done of it), in steps or, with a time limit, as a part of the time.

    n_taken: the steps that were taken. Those before a recovery are work, too, and so are trials.
    """
    if fit.recipe.max_seconds is not None:
        return 1.0, fit.progress
    done = n_taken + fit.trial_steps
    return done + fit.n_steps - fit.step, done


def run_bricks(fit: BrickedFit, checkpoint: Checkpoint) -> History:
    """Train the bricks that are not done, and save checkpoints."""
    history = []

    def on_done(fit: BrickedFit) -> None:
        history.append((fit.seconds, fit.psnr))
        checkpoint.save_in_time(fit)

    try:
        fit.run(on_done)
    except BaseException:
        checkpoint.save_at_last(fit)
        raise
    if n_recovered := sum(fitted.n_recoveries > 0 for fitted in fit.done.values()):
        print(f"training recovered in {n_recovered} of {len(fit.done)} bricks", file=sys.stderr)
    return history


def target_of(target_psnr: float | None, measure: Callable[[], float]) -> Callable[[float], bool] | None:
    """A function that tells, for an estimated PSNR, whether the exact one has reached the target; None without one.

    measure: measures the exact PSNR, which takes long: it is called only where the estimate is near. All are in dB.
    """
    if target_psnr is None:
        return None
    needed = target_psnr - ESTIMATE_ERROR  # the estimated PSNR that starts an exact measurement, dB

    def is_reached(estimate: float) -> bool:
        nonlocal needed
        if not estimate >= needed:  # true for NaN, of a fit that has just diverged
            return False
        lacking = target_psnr - measure()
        needed = estimate + min(max(lacking, 0.1), MOST_LACKING)
        return lacking <= 0

    return is_reached


@contextlib.contextmanager
def kept_if_interrupted(fit: Fit | BrickedFit, path: str, write: Callable[[], None]) -> Iterator[None]:
    """Write the network so far, to `path`, if a long training ends by Ctrl-C or an error: its hours are not lost."""
    try:
        yield
    except BaseException as error:
        if fit.seconds < LONG_SECONDS or not processes.is_first():
            raise
        write()
        kept = f"the network so far, {fit.progress:.0%} trained, is in {path}"
        if isinstance(error, KeyboardInterrupt | UserError):
            raise type(error)(": ".join([*map(str, error.args), kept])) from None
        console.note("train.py", kept)
        raise
