"""How much work the parts of rounding are, so that one progress bar is true for all of them.

The unit is one weight in the training of all layers at one sample. The factors were measured on one core, with networks
of 1,300 to 5,400 weights; they need not be exact.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from cli.progress import Progress
from field.layers import SirenConfig
from field.metrics import measured_boxes
from quantising.compensation import metric_blocks, products_of_matrix
from training.fitting import Fit
from training.recipe import CHECK_STEPS, training_work
from utils import Volume, shape_of

PER_PRODUCT = 0.1  # of a product of two numbers in the compensation factors
PER_VOXEL = 0.5  # of a voxel that is compared, relative to a sample that is trained on


def of_training(n_samples: float, n_parameters: float, share: float = 1.0) -> float:
    """The work of training a network of so many weights and biases with so many samples.

    share: of the weights that are trained. A third of the work does not depend on it: the network's output.
    """
    return training_work(n_samples, n_parameters) * (1 + 2 * share) / 3


def of_comparison(n_parameters: float, volume: Volume) -> float:
    """The work of one comparison of a volume with what its field decodes to. n_parameters: for each brick."""
    n_voxels = sum(math.prod(shape_of(box)) for box in measured_boxes(volume.values))
    return PER_VOXEL * of_training(n_voxels, n_parameters)


def of_factors(config: SirenConfig, n_all: int | None) -> float:
    """The work of one pass over the compensation factors. n_all: see CompensationFactors."""
    blocks, n_points = metric_blocks(config.n_parameters, n_all)
    sizes = [block.stop - block.start for block in blocks]
    pairs = [(a, a + b) for a, b in zip(sizes, [*sizes[1:], 0], strict=True)]
    return PER_PRODUCT * sum(n_points * a * (size - a / 2) + products_of_matrix(a, size) for a, size in pairs)


def step_reporter(progress: Progress) -> Callable[[Fit], None]:
    """What tells `progress` of a step of training. Steps that a recovery takes back are further work."""
    latest = 0

    def on_step(fit: Fit) -> None:
        nonlocal latest
        share = fit.trained.weights.numel() / fit.config.n_parameters
        step_work = of_training(fit.recipe.batch, fit.config.n_parameters, share)
        if fit.step != 1:  # a new fit begins with step 1; a recovery goes back to one that was judged
            progress.plan((latest + 1 - fit.step) * step_work)
        figures = {"PSNR": f"{fit.psnr:.1f} dB"} if fit.step >= CHECK_STEPS else {}  # it has been judged
        progress.advance(step_work, **figures)
        latest = fit.step

    return on_step
