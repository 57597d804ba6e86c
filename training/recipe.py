"""The recipe of a fit: its settings, their defaults, and the learning rate."""

from __future__ import annotations

import dataclasses
import math

from field.layers import SirenConfig

BATCH = 2048  # samples a step: smaller batches are noisier but no faster, larger ones need more passes
LEAST_BATCH = 512  # samples a step of the shortest fits; a step of fewer takes hardly less time
STEPS = 16_000  # steps of the default fit of a large volume
MIN_PASSES, MAX_PASSES = 5, 45  # limits of the default fit, passes: small volumes gain little from more
MIN_STEPS = 1_500  # steps of the default fit of the smallest volumes, for which MAX_PASSES passes are too few
# A GPU takes little longer for a larger batch, and larger batches gain more than further steps of small ones would.
# The passes follow a power law through what two volumes need on an H200: 64 of 128^3 voxels, 20 of 256^3.
GPU_BATCH = 16_384
GPU_PASSES, GPU_VOXELS, GPU_EXPONENT = 64, 1 << 21, -0.56
GPU_MIN_STEPS = 5_760  # as many as a CPU takes for a volume of 64^3 voxels
SAMPLE_OVERHEAD = 5_000  # a sample takes as long as this many weights more than the network has, on one core
# On one core, a step takes 0.8 ms more, as long as this many weights x samples, whatever the network and its samples.
# Before the first step and after the last one, a fit takes as long as this many steps and passes more.
STEP_OVERHEAD, FURTHER_STEPS, FURTHER_PASSES = 3e6, 10, 0.6
WARM_UP_STEPS, WARM_UP_SHARE = 50, 1 / 5  # steps over which the learning rate rises, but at most a part of the fit
TRIAL_SHARE = 0.04  # length of a trial / length of the fit
TRIAL_RATE = 2.0  # learning rate of a trial / learning rate of the fit: a short fit gains decibels from a higher one
MOMENTUM_STEPS = 20.0, 50.0  # least and most, over which Muon's momentum averages: a short fit loses by more
CHECK_STEPS = 100  # steps between two evaluations of the loss; each has to wait for the device


@dataclasses.dataclass(frozen=True)
class Recipe:
    """The settings of a fit.

    n_passes: samples / voxels. batch: samples a step. lr: highest learning rate. optimizer: "muon" (Muon for the hidden
    matrices, Adam for the rest) or "adam". schedule: "power": lr (1 - progress)^2; or "step": lr times lr_decay every
    pass_decay passes, as in the original scripts. grad_lambda: weight of the gradient term. max_seconds: if given,
    progress is the elapsed fraction of this time, and n_passes is ignored.
    """

    n_passes: float
    batch: int
    lr: float
    optimizer: str = "muon"
    schedule: str = "power"
    pass_decay: float = 20.0
    lr_decay: float = 0.2
    grad_lambda: float = 0.0
    max_seconds: float | None = None

    def steps_per_pass(self, n_voxels: int) -> int:
        """The number of steps of one pass: equal batches, of `batch` samples at most."""
        return math.ceil(n_voxels / self.batch)

    def count_steps(self, n_voxels: int) -> int:
        """The number of steps of the whole fit, if no time limits it."""
        return math.ceil(self.n_passes * self.steps_per_pass(n_voxels))

    def progress(self, step: int, n_steps: int, seconds: float) -> float:
        """The fraction of a fit that is done, 0 to 1. n_steps: of `count_steps`. seconds: that it has taken so far."""
        return step / n_steps if self.max_seconds is None else min(seconds / self.max_seconds, 1.0)

    def trial(self) -> Recipe:
        """The recipe of the brief fit that a network does to be compared with others. Its learning rate falls to 0."""
        return dataclasses.replace(self, n_passes=TRIAL_SHARE * self.n_passes, lr=TRIAL_RATE * self.lr)

    def rate(self, step: int, n_voxels: int, progress: float) -> float:
        """The learning rate of a step. progress: the fraction of the fit that is done, 0 to 1."""
        if self.schedule == "step":
            n_passes = step / self.steps_per_pass(n_voxels)
            return self.lr * self.lr_decay ** (n_passes // self.pass_decay)
        warmth = max((step + 1) / WARM_UP_STEPS, progress / WARM_UP_SHARE)
        if self.max_seconds is None:
            warmth = (step + 1) / min(WARM_UP_STEPS, max(WARM_UP_SHARE * self.count_steps(n_voxels), 1.0))
        return self.lr * min(1.0, warmth) * (1.0 - progress) ** 2

    @property
    def momentum_steps(self) -> float:
        """The number of steps over which Muon's momentum averages: the passes, within MOMENTUM_STEPS."""
        least, most = MOMENTUM_STEPS
        return least if self.max_seconds is not None else min(max(self.n_passes, least), most)

    @property
    def draws_by_error(self) -> bool:
        """Whether voxels with large errors are drawn more often (importance sampling)."""
        return self.schedule == "power" and self.grad_lambda == 0


def default_recipe(
    n_voxels: int,
    config: SirenConfig,
    optimizer: str = "muon",
    n_passes: float | None = None,
    max_seconds: float | None = None,
    is_gpu: bool = False,
) -> Recipe:
    """The recipe for a volume and a network, from what is known before the fit.

    The learning rate is the highest safe one: in a wider or deeper network, equal changes of the weights change the
    output more. A fit with few steps takes smaller batches, as it gains more from more steps than from less noise: on a
    CPU, half as many samples a step call for half as many steps. On a CPU, a fit with a time limit does too.
    """
    if n_passes is None:
        n_passes = default_passes(n_voxels, is_gpu)
    batch, least = (GPU_BATCH, BATCH // 2) if is_gpu else (BATCH, LEAST_BATCH)
    if max_seconds is not None:
        batch = batch if is_gpu else BATCH // 2
    else:
        while batch > least and n_passes * math.ceil(n_voxels / batch) < MIN_STEPS * (1 if is_gpu else batch / BATCH):
            batch //= 2
    rate = (0.4 if optimizer == "muon" else 0.2) / (config.n_neurons * max(config.n_layers, 2))
    return Recipe(n_passes=n_passes, batch=batch, lr=rate, optimizer=optimizer, max_seconds=max_seconds)


def default_passes(n_voxels: int, is_gpu: bool) -> int:
    """The number of passes of the default fit.

    On a CPU: STEPS steps, within MIN_PASSES and MAX_PASSES, but at least MIN_STEPS steps. On a GPU: see GPU_BATCH.
    """
    if is_gpu:
        n_passes = round(GPU_PASSES * (max(n_voxels, GPU_BATCH) / GPU_VOXELS) ** GPU_EXPONENT)
        return max(n_passes, MIN_PASSES, math.ceil(GPU_MIN_STEPS / math.ceil(n_voxels / GPU_BATCH)))
    n_passes = min(max(round(STEPS * BATCH / n_voxels), MIN_PASSES), MAX_PASSES)
    return max(n_passes, passes_for_min_steps(n_voxels))


def passes_for_min_steps(n_voxels: int) -> int:
    """The number of passes that make MIN_STEPS steps on a CPU."""
    return math.ceil(MIN_STEPS / math.ceil(n_voxels / BATCH))


def training_work(n_samples: float, n_parameters: float) -> float:
    """The work of training a network of so many weights and biases with so many samples. Unit: weights x samples."""
    return n_samples * (n_parameters + SAMPLE_OVERHEAD)


def fit_work(recipe: Recipe, n_voxels: int, n_parameters: float) -> float:
    """The `training_work` of a whole fit on one core, without a time limit."""
    work = training_work((recipe.n_passes + FURTHER_PASSES) * n_voxels, n_parameters)
    return work + STEP_OVERHEAD * (recipe.count_steps(n_voxels) + FURTHER_STEPS)


def psnr_of(error: float) -> float:
    """PSNR in dB of a mean squared error of normalised values, whose range is 2."""
    return 10 * math.log10(4 / error) if error else math.inf


def error_of(psnr: float) -> float:
    """The mean squared error of normalised values of a PSNR in dB: the inverse of `psnr_of`."""
    return 4 * 10 ** (-psnr / 10)
