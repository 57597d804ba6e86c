"""Integer fields held by steep networks: float32 leaves their values open. No torch, so that a process starts soon."""

from __future__ import annotations

import random
import zlib

import numpy as np

from field.bricks import Bricks, Cut, StoredNetwork
from field.layers import SirenConfig, parameter_shapes
from field.neural_field import NeuralField
from utils import Geometry, VolumeHeader

SHAPE, SMALL = (20, 16, 12), (12, 9, 8)
RANGES = {"uint8": (0, 255), "int32": (-(2**31), 2**31 - 1), "uint64": (0, 2**64 - 1)}


def steep_field(dtype: str, gain: float = 1.2, is_residual: bool = True, **how: object) -> NeuralField:
    """A field of 12 layers whose weights are the same on every machine, over the whole range of the dtype.

    gain: 1 is the standard deviation of a SIREN's initial weights times the square root of 3. how: device, n_threads.
    """
    return NeuralField(header_of(SHAPE, dtype), Bricks.whole(*steep_network(0, gain, is_residual)), **how)


def steep_cut_field(dtype: str, n_layers: int = 12, **how: object) -> NeuralField:
    """The same, cut into bricks, one of which is constant."""
    ends = np.float32([[-1.0, 0.3], [-0.7, 1.0], [0.1, 0.1], [-0.9, 0.7]])
    networks = [steep_network(k, 1.2, n_layers=n_layers) if low < high else None for k, (low, high) in enumerate(ends)]
    return NeuralField(header_of(SMALL, dtype), Bricks(Cut((2, 1, 2), *ends.T[..., None]), networks), **how)


def header_of(shape: tuple[int, ...], dtype: str) -> VolumeHeader:
    """Of the whole range of the dtype."""
    return VolumeHeader(shape, *(np.array([end], dtype) for end in RANGES[dtype]), Geometry.plain(3))


def steep_network(seed: int, gain: float, is_residual: bool = True, n_layers: int = 12) -> StoredNetwork:
    """Its settings and its weights."""
    config, draw, weights = SirenConfig(24, n_layers, is_residual=is_residual), random.Random(seed).random, {}
    for name, shape in parameter_shapes(config).items():
        normal = np.array([sum(draw() for _ in range(12)) - 6.0 for _ in range(np.prod(shape))])
        weights[name] = (normal.reshape(shape) * gain * np.sqrt(6.0 / shape[-1]) / 30.0).astype(np.float32)
    return StoredNetwork(config, weights)


def checksums() -> list[str]:
    """Of the decoded integers of every dtype; of a field that is cut."""
    fields = [*map(steep_field, RANGES), steep_cut_field("uint64", 4)]
    return [f"{zlib.crc32(field.on_grid().astype('<u8').tobytes()):08x}" for field in fields]
