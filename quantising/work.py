"""How much work the parts of rounding are, so that one progress bar is true for all of them.

The unit is one weight in the training of all layers at one sample. The factors were measured on one core, with networks
of 1,300 to 5,400 weights; they need not be exact.
"""

from __future__ import annotations

from quantising.compensation import metric_blocks, products_of_matrix
from siren import SirenConfig, count_parameters
from training.recipe import training_work

PER_PRODUCT = 0.08  # of a product of two numbers in the compensation factors
PER_VOXEL = 0.5  # of a voxel that is compared, relative to a sample that is trained on


def of_training(n_samples: float, n_parameters: float, trained: float = 1.0) -> float:
    """The work of training a network of so many weights and biases with so many samples.

    trained: the part of the weights that is trained. Half of the work does not depend on it, as the network's output.
    """
    return training_work(n_samples, n_parameters) * (1 + trained) / 2


def of_measuring(n_voxels: int, n_parameters: float) -> float:
    """The work of comparing so many voxels with those that a network decodes to."""
    return PER_VOXEL * of_training(n_voxels, n_parameters)


def of_factors(config: SirenConfig, n_all: int | None = None) -> float:
    """The work of one pass over the compensation factors. n_all: see CompensationFactors."""
    blocks, n_points = metric_blocks(count_parameters(config), n_all)
    sizes = [block.stop - block.start for block in blocks]
    pairs = [(a, a + b) for a, b in zip(sizes, [*sizes[1:], 0], strict=True)]
    return PER_PRODUCT * sum(n_points * a * size + products_of_matrix(a, size) for a, size in pairs)
