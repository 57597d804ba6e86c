"""What is made of the fit of one network. `bricks.BrickedFit` has the same methods and properties."""

from __future__ import annotations

import dataclasses

import torch

from field.neural_field import NeuralField
from siren import SirenConfig
from utils import VolumeHeader


class Outcome:
    """The result so far of the `Fit` that inherits from this class, and what it is the result of."""

    @property
    def n_passes(self) -> float:
        """The passes over the volume so far."""
        return self.step / self.steps_per_pass

    @property
    def variance(self) -> float:
        """The mean squared error of a constant, of normalised values."""
        return self.sampler.variance

    @property
    def config(self) -> SirenConfig:
        """The network's settings."""
        return self.net.config

    @property
    def n_parameters(self) -> int:
        """The number of weights and biases."""
        return self.net.n_parameters

    def weights(self) -> dict[str, torch.Tensor]:
        """The result so far, as thenet.pth holds it."""
        return self.averaged_net.state_dict()

    def field(self, header: VolumeHeader, device: torch.device, n_threads: int) -> NeuralField:
        """The result so far as a compressed field. header: of the volume."""
        return NeuralField.of(self.averaged_net, header, device, n_threads)

    def bricks(self) -> None:
        """One network has no bricks."""

    @property
    def is_finite(self) -> bool:
        """Whether no weight has just diverged."""
        return bool(torch.isfinite(self.trained.weights).all())

    def identity(self) -> dict:
        """What must be equal when the fit continues: volume, network, recipe and seed."""
        volume = {"shape": list(self.sampler.shape), "values_crc32": self.sampler.crc32}
        return volume | dataclasses.asdict(self.net.config) | dataclasses.asdict(self.recipe) | {"seed": self.seed}
