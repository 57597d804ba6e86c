"""Small networks, fits of them, and blobs."""

from __future__ import annotations

import contextlib
import dataclasses
import struct

import numpy as np
import pytest
import torch

from field import blob as blob_format
from field.blob import QuantisedLayer
from field.bricks import StoredNetwork
from field.layers import SirenConfig
from field.quantised import are_in_order
from helpers.volumes import slanted
from quantising.order import in_order
from quantising.rounding import round_layers
from quantising.sensitivity import choose_steps, sensitivities
from siren import FieldNet
from training.fitting import Fit
from training.long_runs import Checkpoint
from training.recipe import Recipe
from training.sampler import VoxelSampler
from utils import Geometry, UserError, VolumeHeader


def field_net(seed: int = 0, **fields) -> FieldNet:
    """A small network of random weights, with its neurons in order."""
    config = SirenConfig(**{"n_neurons": 6, "n_layers": 3, **fields})
    return in_order(FieldNet(config, torch.Generator().manual_seed(seed)))


def with_ascending_biases(config: SirenConfig, layers: list[QuantisedLayer]) -> list[QuantisedLayer]:
    """The layers with their biases as a file wants them."""
    return [
        dataclasses.replace(layer, biases=np.sort(np.abs(layer.biases))) if ascends else layer
        for layer, ascends in zip(layers, are_in_order(config), strict=True)
    ]


def with_trellis(layers: list[QuantisedLayer]) -> list[QuantisedLayer]:
    """The same integers; all matrices but the first have a trellis."""
    return [dataclasses.replace(layer, has_trellis=k > 0) for k, layer in enumerate(layers)]


def arrays(net: FieldNet) -> dict[str, np.ndarray]:
    """The weights of a network by name."""
    return {name: tensor.numpy() for name, tensor in net.state_dict().items()}


def fit(net: FieldNet, sampler: VoxelSampler, seed: int = 0, on_step=lambda fit: None, start=None, **fields) -> Fit:
    """Fit `net` in place by a small recipe, from the beginning or from the state `start`."""
    done = Fit(net, sampler, Recipe(**{"n_passes": 1, "batch": 16, "lr": 1e-3, **fields}), seed)
    if start is not None:
        done.load_state_dict(start)
    done.run(on_step)
    return done


def small_fit() -> Fit:
    """A fit of 120 steps that has not begun."""
    sampler = VoxelSampler(slanted((4, 3, 2))[..., None] / 50, torch.device("cpu"))
    return Fit(field_net(n_neurons=3, n_layers=2), sampler, Recipe(n_passes=40, batch=8, lr=1e-3), seed=0)


def assert_refused(content: dict, fit: object, match: str = "expected a checkpoint of train") -> None:
    """The fit does not go on from a checkpoint of this content."""
    torch.save(content, "state")
    with pytest.raises(UserError, match=match):
        Checkpoint("state", {"volume": "a.npy"}).load(fit)


@contextlib.contextmanager
def watched_samples():
    """The flat voxel indices of every training step within the block, in a list."""
    steps, original = [], VoxelSampler.samples

    def samples(self, flat):
        steps.append(flat.clone().cpu())
        return original(self, flat)

    VoxelSampler.samples = samples
    try:
        yield steps
    finally:
        VoxelSampler.samples = original


def make_blob(header: VolumeHeader, net: FieldNet, bits: int = 9) -> bytes:
    """The blob of one network."""
    points = 2 * torch.rand(64, net.config.d_in, generator=torch.Generator().manual_seed(0)) - 1
    return blob_format.encode_blob(
        header,
        [(net.config, round_layers(net, choose_steps(net, sensitivities(net, points), bits=bits)))],
    )


def zero_network(d_in: int) -> tuple[SirenConfig, list[QuantisedLayer]]:
    """A network of two neurons whose weights are zero, as `encode_blob` takes it."""
    matrices = np.zeros((2, d_in), np.int32), np.zeros((1, 2), np.int32)
    layers = [QuantisedLayer(matrix, matrix[:, 0].copy(), np.float32(1.0)) for matrix in matrices]
    return SirenConfig(2, 1, d_in), layers


def decode_blob(data: bytes, large: bool = False) -> tuple[VolumeHeader, list[StoredNetwork]]:
    """The header and all networks of a blob. large: see `decode_field`."""
    header, bricks = blob_format.decode_field(data, large)
    return header, [network for network in bricks.networks if network]


def chunks_of(blob: bytes) -> list[tuple[bytes, bytes]]:
    """Type and content of every chunk of a sound blob."""
    found, at = [], 9
    while at < len(blob):
        length = struct.unpack_from("<I", blob, at + 1)[0]
        found.append((blob[at : at + 1], blob[at + 5 : at + 5 + length]))
        at += 5 + length
    return found


def make_header(shape=(4, 3, 2), low=0.0, high=1.0, dtype="float32", d_out=1, **fields) -> VolumeHeader:
    """A header whose components all have one range."""
    ends = (np.full(d_out, end, dtype) for end in (low, high))
    missing = fields.pop("missing", None)
    geometry = dataclasses.replace(Geometry.plain(len(shape)), **fields)
    return VolumeHeader(tuple(shape), *ends, geometry, missing)


def distance(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> float:
    """The largest difference of two state dicts."""
    assert a.keys() == b.keys()
    return max(float((a[k] - b[k]).abs().max()) for k in a)
