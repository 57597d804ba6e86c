"""Integer fields held by steep networks: float32 leaves their values open. No torch, so that a process starts soon."""

from __future__ import annotations

import random
import zlib

import numpy as np

from field.layers import parameter_shapes
from field.neural_field import NeuralField
from utils import Geometry, VolumeHeader

SHAPE = (20, 16, 12)
RANGES = {"uint8": (0, 255), "int32": (-(2**31), 2**31 - 1), "uint64": (0, 2**64 - 1)}


def steep_field(dtype: str, gain: float = 1.2, is_residual: bool = True, **how: object) -> NeuralField:
    """A field of 12 layers whose weights are the same on every machine, over the whole range of the dtype.

    gain: 1 is the standard deviation of a SIREN's initial weights times the square root of 3. how: device, n_threads.
    """
    network = {"n_neurons": 24, "n_layers": 12, "d_in": 3, "d_out": 1, "is_residual": is_residual, "omega_0": 30.0}
    draw = random.Random(0).random
    weights = {}
    for name, shape in parameter_shapes(**network).items():
        normal = np.array([sum(draw() for _ in range(12)) - 6.0 for _ in range(np.prod(shape))])
        weights[name] = (normal.reshape(shape) * gain * np.sqrt(6.0 / shape[-1]) / 30.0).astype(np.float32)
    low, high = (np.array([end], dtype) for end in RANGES[dtype])
    return NeuralField(VolumeHeader(SHAPE, low, high, Geometry.plain(3)), network, weights, **how)


def checksums() -> list[str]:
    """Of the decoded integers of every dtype."""
    return [f"{zlib.crc32(steep_field(dtype).on_grid().astype('<u8').tobytes()):08x}" for dtype in RANGES]
