"""A small fit in bricks."""

from __future__ import annotations

import numpy as np

from helpers.volumes import slanted
from training.brick_networks import BrickNetworks
from training.brick_trainer import BrickTrainer
from training.bricked_fit import BrickedFit
from training.recipe import Recipe
from utils import Geometry, Volume, header_of

FIELDS = {"n_layers": 2, "d_in": 3, "d_out": 1}


def small_fit(array: np.ndarray | None = None, **keywords) -> BrickedFit:
    """A fit in 2 x 2 bricks, of one step each."""
    recipe = keywords.pop("recipe", Recipe(n_passes=0.1, batch=8, lr=1e-3))
    array = slanted((13, 9, 5)) if array is None else array
    volume = Volume(array, Geometry.plain(3), keywords.pop("fill", None))  # a fourth axis is that of components
    n_parameters, fields = keywords.pop("n_parameters", 400), keywords.pop("fields", FIELDS)
    trainer = BrickTrainer(
        volume, header_of(volume), (2, 2, 1), lambda n_present, n_voxels, config: recipe, 0, **keywords
    )
    return BrickedFit(BrickNetworks(trainer, n_parameters, fields))
