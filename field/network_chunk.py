"""The content of chunk N of a blob: a network's settings, and its layers as coded integers. See field/blob.py."""

from __future__ import annotations

import dataclasses
import struct
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from field import entropy_coder
from field.binary import BlobError, ByteReader
from field.layers import LinearLayer, SirenConfig, layer_table

MAX_PARAMETERS = 1 << 27  # most parameters of all networks of a file; more are refused before memory is allocated
MAX_FACTOR = 1e30  # largest magnitude of a weight times the frequency of its layer: no phase overflows
HEAD = 8  # bytes of a chunk before the records of its layers


@dataclasses.dataclass(frozen=True)
class QuantisedLayer:
    """A linear layer in integers."""

    weights: np.ndarray  # (n_out, n_in), of magnitude at most 30720
    biases: np.ndarray  # (n_out,), of magnitude at most 30720
    step: np.float32  # its lower 16 bits are zero, see `round_step`
    codebook: np.ndarray | None = None  # float32 values of the weights -M to M, where M = len(codebook) // 2

    def dequantise(self) -> tuple[np.ndarray, np.ndarray]:
        """The float32 weights and biases of this layer, the same on every machine."""
        biases = self.step * self.biases.astype(np.float32)
        if self.codebook is not None:
            return self.codebook[self.weights + len(self.codebook) // 2], biases
        return self.step * self.weights.astype(np.float32), biases


def round_step(step: float) -> np.float32:
    """The nearest float32 to a positive `step` that the format can hold: its lower 16 bits are zero."""
    bits = np.float32(min(step, 3e38)).view(np.uint32).astype(np.int64)
    bits = min(max((int(bits) + 0x8000) >> 16, 0x0001), 0x7F7F)
    return np.uint32(bits << 16).view(np.float32)


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


def may_have_codebook(layer: LinearLayer, config: SirenConfig) -> bool:
    """Whether a codebook of a layer is stored, in a network with codebooks."""
    return layer.n_out == layer.n_in == config.n_neurons


# --- writing ----------------------------------------------------------------------------------------


def encode_network(config: SirenConfig, layers: list[QuantisedLayer]) -> bytes:
    """The content of chunk N. Raises BlobError."""
    check_network(config)
    has_codebooks = any(layer.codebook is not None for layer in layers)
    flags = config.is_residual | has_codebooks << 1
    parts = [struct.pack("<2BHf", flags, config.n_layers, config.n_neurons, config.omega_0)]
    groups, models = [], []
    for layer, place in zip(layers, layer_table(config), strict=True):
        n_out, n_in = place.n_out, place.n_in
        if layer.weights.shape != (n_out, n_in) or layer.biases.shape != (n_out,):
            raise BlobError(f"expected a layer {n_in} -> {n_out}, found {layer.weights.shape}, {layer.biases.shape}")
        if max(np.abs(layer.weights).max(), np.abs(layer.biases).max()) > entropy_coder.MAX_MAGNITUDE:
            raise BlobError(f"expected integers of magnitude at most {entropy_coder.MAX_MAGNITUDE}")
        weights, biases = layer.weights.ravel(), layer.biases
        a, b, largest = entropy_coder.fit_model(weights)
        bias_code = entropy_coder.small_float_code(int(np.abs(biases).max()))
        parts.append(struct.pack("<H4B", int(layer.step.view(np.uint32)) >> 16, a, b, largest, bias_code))
        if has_codebooks and may_have_codebook(place, config):
            # The model may allow a few integers that do not occur. The codebook has an entry for each of them too.
            half = entropy_coder.small_float(largest)
            n = len(layer.codebook)
            parts.append(layer.codebook[np.clip(np.arange(-half, half + 1) + n // 2, 0, n - 1)].astype("<f4").tobytes())
        groups += [weights, biases]
        models += [(a, b, largest), (0, 0, bias_code)]
    return b"".join([*parts, entropy_coder.encode(groups, models)])


# --- reading ----------------------------------------------------------------------------------------


def decode_config(content: ByteReader, d_in: int, d_out: int) -> SirenConfig:
    """The settings of a network from the first HEAD bytes of its chunk. Raises BlobError."""
    flags, n_layers, n_neurons, omega_0 = content.unpack("2BHf")
    if flags > 3:
        raise BlobError(f"flags: expected 0 to 3, found {flags}")
    sizes = {"n_neurons": n_neurons, "n_layers": n_layers, "d_in": d_in, "d_out": d_out}
    return network_of(**sizes, omega_0=omega_0, is_residual=bool(flags & 1))


def decode_weights(data: bytes, config: SirenConfig) -> dict[str, np.ndarray]:
    """The float32 tensors by name of a network from its chunk. Raises BlobError."""
    content = ByteReader(data, "chunk 'N'")
    (flags,) = content.unpack(f"B{HEAD - 1}x")
    table = layer_table(config)
    records = [_read_record(content, bool(flags & 2) and may_have_codebook(layer, config)) for layer in table]
    sizes = [size for layer in table for size in (layer.n_out * layer.n_in, layer.n_out)]
    models = [model for record in records for model in record.models]
    try:
        integers = iter(entropy_coder.decode(content.rest(), sizes, models))
    except entropy_coder.StreamError as error:
        raise BlobError(f"the network's stream {error}") from None
    tensors = {}
    for (name, n_out, n_in, omega, _), record in zip(table, records, strict=True):
        layer = QuantisedLayer(next(integers).reshape(n_out, n_in), next(integers), record.step, record.codebook)
        with np.errstate(over="ignore"):
            found = layer.dequantise()
        limit = MAX_FACTOR / omega
        if not all(-limit <= tensor.min() and tensor.max() <= limit for tensor in found):
            raise BlobError(f"{name}: expected weights of magnitude at most {limit:.3g}, found too large ones")
        tensors[f"{name}.weight"], tensors[f"{name}.bias"] = found
    return tensors


class _Record(NamedTuple):
    """What the integers of a layer stand for. models: of the matrix, of the bias."""

    step: np.float32
    models: tuple[entropy_coder.Model, entropy_coder.Model]
    codebook: np.ndarray | None


def _read_record(content: ByteReader, has_codebook: bool) -> _Record:
    """The record of the next layer. Raises BlobError."""
    upper, a, b, largest, of_bias = content.unpack("H4B")
    step = np.uint32(upper << 16).view(np.float32)
    if not (np.isfinite(step) and step > 0):
        raise BlobError(f"a layer's step: expected a positive number, found {step}")
    if entropy_coder.small_float(max(largest, of_bias)) > entropy_coder.MAX_MAGNITUDE:
        raise BlobError(f"expected integers of magnitude at most {entropy_coder.MAX_MAGNITUDE}")
    codebook = None
    if has_codebook:
        codebook = content.array("<f4", 2 * entropy_coder.small_float(largest) + 1)
        if not np.isfinite(codebook).all():
            raise BlobError("a layer's codebook: expected finite values")
    return _Record(step, ((a, b, largest), (0, 0, of_bias)), codebook)


class StoredNetworks(Sequence):
    """The networks of bricks: settings and float32 tensors by name, decoded whenever they are asked for, or None.

    An item is None for a brick without a network. Raises BlobError for one whose integers are wrong.
    """

    def __init__(self, is_constant: Sequence[bool], networks: list[tuple[SirenConfig, bytes]]):
        """networks: the settings and the chunk of each brick that is not constant."""
        networks = iter(networks)
        self._stored = [None if constant else next(networks) for constant in is_constant]

    def __len__(self) -> int:
        return len(self._stored)

    def __getitem__(self, brick: int) -> tuple[SirenConfig, dict[str, np.ndarray]] | None:
        stored = self._stored[brick]
        if stored is None:
            return None
        config, data = stored
        try:
            return config, decode_weights(data, config)
        except BlobError as error:
            raise BlobError(f"brick {brick}: {error}") from None
