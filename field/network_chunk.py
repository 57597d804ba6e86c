"""The content of chunk N of a blob: a network's description, and its layers as coded integers. See field/blob.py."""

from __future__ import annotations

import dataclasses
import struct
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from field import entropy_coder
from field.binary import BlobError, ByteReader
from field.layers import LinearLayer, count_parameters, layer_table
from utils import quoted

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


def check_network(network: dict) -> None:
    """Raise BlobError unless a network's description (the fields of SirenConfig) is within the format's limits."""
    limits = {"n_layers": 255, "n_neurons": 65535, "d_in": 4, "d_out": 255}
    for name, limit in limits.items():
        if not 1 <= network[name] <= limit:
            raise BlobError(f"{name}: expected 1 to {limit}, found {network[name]}")
    if not isinstance(network["is_residual"], bool):
        raise BlobError(f"is_residual: expected true or false, found {quoted(network['is_residual'])}")
    with np.errstate(over="ignore"):
        omega_0 = float(np.float32(network["omega_0"]))
    if not 1e-6 <= omega_0 <= 1e6:
        raise BlobError(f"omega_0: expected 1e-6 to 1e6, found {network['omega_0']}")
    check_size([network])


def check_size(networks: Sequence[dict]) -> int:
    """The number of parameters of all networks of a file. Raises BlobError when it is above MAX_PARAMETERS."""
    count = sum(count_parameters(**network) for network in networks)
    if count > MAX_PARAMETERS:
        raise BlobError(f"expected at most {MAX_PARAMETERS} parameters in all, found {count}")
    return count


def _may_have_codebook(layer: LinearLayer, network: dict) -> bool:
    """Whether a codebook of a layer is stored, in a network with codebooks."""
    return layer.n_out == layer.n_in == network["n_neurons"]


# --- writing ----------------------------------------------------------------------------------------


def encode_network(network: dict, layers: list[QuantisedLayer]) -> bytes:
    """The content of chunk N. Raises BlobError."""
    check_network(network)
    has_codebooks = any(layer.codebook is not None for layer in layers)
    flags = network["is_residual"] | has_codebooks << 1
    parts = [struct.pack("<2BHf", flags, network["n_layers"], network["n_neurons"], network["omega_0"])]
    groups, models = [], []
    for layer, place in zip(layers, layer_table(**network), strict=True):
        n_out, n_in = place.n_out, place.n_in
        if layer.weights.shape != (n_out, n_in) or layer.biases.shape != (n_out,):
            raise BlobError(f"expected a layer {n_in} -> {n_out}, found {layer.weights.shape}, {layer.biases.shape}")
        if max(np.abs(layer.weights).max(), np.abs(layer.biases).max()) > entropy_coder.MAX_MAGNITUDE:
            raise BlobError(f"expected integers of magnitude at most {entropy_coder.MAX_MAGNITUDE}")
        weights, biases = layer.weights.ravel(), layer.biases
        a, b, largest = entropy_coder.fit_model(weights)
        bias_code = entropy_coder.small_float_code(int(np.abs(biases).max()))
        parts.append(struct.pack("<H4B", int(layer.step.view(np.uint32)) >> 16, a, b, largest, bias_code))
        if has_codebooks and _may_have_codebook(place, network):
            # The model may allow a few integers that do not occur. The codebook has an entry for each of them too.
            half = entropy_coder.small_float(largest)
            n = len(layer.codebook)
            parts.append(layer.codebook[np.clip(np.arange(-half, half + 1) + n // 2, 0, n - 1)].astype("<f4").tobytes())
        groups += [weights, biases]
        models += [(a, b, largest), (0, 0, bias_code)]
    return b"".join([*parts, entropy_coder.encode(groups, models)])


# --- reading ----------------------------------------------------------------------------------------


def decode_description(content: ByteReader, d_in: int, d_out: int) -> dict:
    """The description of a network from the first HEAD bytes of its chunk. Raises BlobError."""
    flags, n_layers, n_neurons, omega_0 = content.unpack("2BHf")
    if flags > 3:
        raise BlobError(f"flags: expected 0 to 3, found {flags}")
    network = {"n_neurons": n_neurons, "n_layers": n_layers, "d_in": d_in, "d_out": d_out}
    network |= {"is_residual": bool(flags & 1), "omega_0": omega_0}
    check_network(network)
    return network


def decode_weights(data: bytes, network: dict) -> dict[str, np.ndarray]:
    """The float32 tensors by name of a network from its chunk. Raises BlobError. network: its description."""
    content = ByteReader(data, "chunk 'N'")
    (flags,) = content.unpack(f"B{HEAD - 1}x")
    table = layer_table(**network)
    records = [_read_record(content, bool(flags & 2) and _may_have_codebook(layer, network)) for layer in table]
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
    """The networks of bricks: description and float32 tensors by name, decoded whenever they are asked for, or None.

    An item is None for a brick without a network. Raises BlobError for one whose integers are wrong.
    """

    def __init__(self, is_constant: Sequence[bool], networks: list[tuple[dict, bytes]]):
        """networks: the description and the chunk of each brick that is not constant."""
        networks = iter(networks)
        self._stored = [None if constant else next(networks) for constant in is_constant]

    def __len__(self) -> int:
        return len(self._stored)

    def __getitem__(self, brick: int) -> tuple[dict, dict[str, np.ndarray]] | None:
        stored = self._stored[brick]
        if stored is None:
            return None
        network, data = stored
        try:
            return network, decode_weights(data, network)
        except BlobError as error:
            raise BlobError(f"brick {brick}: {error}") from None
