"""The content of the chunks N, P and T of a blob: a network's settings, and its layers. See field/blob.py.

What follows the settings is written and read in `plain_network` (N) and `packed_network` (P, T).
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from field import entropy_coder
from field.binary import BlobError, ByteReader
from field.bricks import StoredNetwork
from field.layers import SirenConfig, layer_table
from field.packed_network import decode_packed, encode_packed
from field.plain_network import decode_plain, encode_plain
from field.quantised import QuantisedLayer

MAX_PARAMETERS = 1 << 27  # most parameters of all networks of a file; more are refused before memory is allocated
MAX_FACTOR = 1e30  # largest magnitude of a weight times the frequency of its layer: no phase overflows
HEAD = 8  # bytes of the settings


def network_of(**fields: object) -> SirenConfig:
    """The network of these settings, as a file gives them. Raises BlobError for an impossible or a too large one."""
    try:
        config = SirenConfig(**fields)
    except ValueError as error:
        raise BlobError(str(error)) from None
    check_network(config)
    return config


def check_network(config: SirenConfig) -> None:
    """Raise BlobError unless a network is within the format's limits."""
    limits = {"n_layers": 255, "n_neurons": 65535, "d_in": 4, "d_out": 255}
    for name, limit in limits.items():
        if getattr(config, name) > limit:
            raise BlobError(f"{name}: expected 1 to {limit}, found {getattr(config, name)}")
    with np.errstate(over="ignore"):
        omega_0 = float(np.float32(config.omega_0))
    if not 1e-6 <= omega_0 <= 1e6:
        raise BlobError(f"omega_0: expected 1e-6 to 1e6, found {config.omega_0}")
    check_size([config])


def check_size(configs: Iterable[SirenConfig]) -> int:
    """The number of parameters of all networks of a file. Raises BlobError when it is above MAX_PARAMETERS."""
    count = sum(config.n_parameters for config in configs)
    if count > MAX_PARAMETERS:
        raise BlobError(f"expected at most {MAX_PARAMETERS} parameters in all, found {count}")
    return count


def encode_network(config: SirenConfig, layers: Sequence[QuantisedLayer]) -> tuple[str, bytes]:
    """The type of the chunk of a network, and its content. Raises BlobError.

    The type is N with codebooks, T with a trellis for all matrices but the first, else P.
    """
    check_network(config)
    for layer, place in zip(layers, layer_table(config), strict=True):
        n_out, n_in = place.n_out, place.n_in
        if layer.weights.shape != (n_out, n_in) or layer.biases.shape != (n_out,):
            raise BlobError(f"expected a layer {n_in} -> {n_out}, found {layer.weights.shape}, {layer.biases.shape}")
        if max(np.abs(layer.weights).max(), np.abs(layer.biases).max()) > entropy_coder.MAX_MAGNITUDE:
            raise BlobError(f"expected integers of magnitude at most {entropy_coder.MAX_MAGNITUDE}")
    has_codebooks = any(layer.codebook is not None for layer in layers)
    has_trellis = [layer.has_trellis for layer in layers]
    if has_trellis[0] or len(set(has_trellis[1:])) > 1:
        raise BlobError(f"expected a trellis for all matrices but the first, or for none, found {has_trellis}")
    kind = "N" if has_codebooks else "T" if has_trellis[-1] else "P"
    encode = encode_plain if has_codebooks else encode_packed
    flags = config.is_residual | has_codebooks << 1
    return kind, struct.pack("<2BHf", flags, config.n_layers, config.n_neurons, config.omega_0) + encode(config, layers)


def decode_config(content: ByteReader, kind: str, d_in: int, d_out: int) -> SirenConfig:
    """The settings of a network from the first HEAD bytes of its chunk, of this type. Raises BlobError."""
    flags, n_layers, n_neurons, omega_0 = content.unpack("2BHf")
    if flags > (most := 3 if kind == "N" else 1):
        raise BlobError(f"flags: expected 0 to {most}, found {flags}")
    sizes = {"n_neurons": n_neurons, "n_layers": n_layers, "d_in": d_in, "d_out": d_out}
    return network_of(**sizes, omega_0=omega_0, is_residual=bool(flags & 1))


class NetworkChunk(NamedTuple):
    """A network as a file holds it. kind, content: of the chunk. config: the settings that it begins with."""

    kind: str
    content: bytes
    config: SirenConfig

    def weights(self) -> dict[str, np.ndarray]:
        """The float32 tensors by name. Raises BlobError."""
        content = ByteReader(self.content, f"chunk {self.kind!r}")
        (flags,) = content.unpack(f"B{HEAD - 1}x")
        if self.kind == "N":
            layers = decode_plain(content, self.config, bool(flags & 2))
        else:
            layers = decode_packed(content, self.config, self.kind == "T")
        tensors = {}
        try:
            for place, layer in zip(layer_table(self.config), layers, strict=True):
                with np.errstate(over="ignore"):
                    found = layer.dequantise()
                name, limit = place.name, MAX_FACTOR / place.omega
                if not all(-limit <= tensor.min() and tensor.max() <= limit for tensor in found):
                    raise BlobError(f"{name}: expected weights of magnitude at most {limit:.3g}, found too large ones")
                tensors[f"{name}.weight"], tensors[f"{name}.bias"] = found
        except entropy_coder.StreamError as error:
            raise BlobError(f"the network's stream {error}") from None
        return tensors


class StoredNetworks(Sequence):
    """The networks of bricks, decoded whenever they are asked for; None for a brick without one.

    Raises BlobError for a network whose integers are wrong.
    """

    def __init__(self, is_constant: Sequence[bool], networks: list[NetworkChunk]):
        """networks: of each brick that is not constant."""
        networks = iter(networks)
        self._stored = [None if constant else next(networks) for constant in is_constant]

    def __len__(self) -> int:
        return len(self._stored)

    def __getitem__(self, brick: int) -> StoredNetwork | None:
        stored = self._stored[brick]
        if stored is None:
            return None
        try:
            return StoredNetwork(stored.config, stored.weights())
        except BlobError as error:
            raise BlobError(f"brick {brick}: {error}") from None
