"""What follows the settings in chunk N: a record for each layer, perhaps with a codebook, then coded integers.

A network with codebooks is written so, and read; without them it is only read, from files of older programs.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence

import numpy as np

from field import entropy_coder
from field.binary import BlobError, ByteReader
from field.entropy_coder import Model, small_float, table_of
from field.layers import LinearLayer, SirenConfig, layer_table
from field.quantised import QuantisedLayer


def encode_plain(config: SirenConfig, layers: Sequence[QuantisedLayer]) -> bytes:
    """The records and the integers of layers with codebooks."""
    records, groups, tables = [], [], []
    for layer, place in zip(layers, layer_table(config), strict=True):
        a, b, largest = entropy_coder.fit_model(layer.weights)
        bias_code = entropy_coder.small_float_code(int(np.abs(layer.biases).max()))
        records.append(struct.pack("<H4B", int(layer.step.view(np.uint32)) >> 16, a, b, largest, bias_code))
        if may_have_codebook(place, config):
            # The model may allow a few integers that do not occur. The codebook has an entry for each of them too.
            half, n = small_float(largest), len(layer.codebook)
            records.append(
                layer.codebook[np.clip(np.arange(-half, half + 1) + n // 2, 0, n - 1)].astype("<f4").tobytes()
            )
        groups += [layer.weights.ravel(), layer.biases]
        tables += [table_of((a, b, largest)), table_of((0, 0, bias_code))]
    return b"".join([*records, entropy_coder.encode(groups, tables)])


def decode_plain(content: ByteReader, config: SirenConfig, has_codebooks: bool) -> Iterator[QuantisedLayer]:
    """The layers of a network. content: of its chunk, from the first record on. Raises BlobError, StreamError."""
    table = layer_table(config)
    records = [_read_record(content, has_codebooks and may_have_codebook(layer, config)) for layer in table]
    stream = entropy_coder.Decoder(content.rest(), config.n_parameters)
    for layer, (step, model, of_bias, codebook) in zip(table, records, strict=True):
        weights = stream.take(layer.n_out * layer.n_in, table_of(model)).reshape(layer.n_out, layer.n_in)
        yield QuantisedLayer(weights, stream.take(layer.n_out, table_of(of_bias)), step, codebook)
    stream.end()


def may_have_codebook(layer: LinearLayer, config: SirenConfig) -> bool:
    """Whether a layer has a codebook, in a network with codebooks."""
    return layer.n_out == layer.n_in == config.n_neurons


def _read_record(content: ByteReader, has_codebook: bool) -> tuple[np.float32, Model, Model, np.ndarray | None]:
    """The record of the next layer: its step, the models of its matrix and its bias, its codebook. Raises BlobError."""
    upper, a, b, largest, of_bias = content.unpack("H4B")
    step = np.uint32(upper << 16).view(np.float32)
    if not (np.isfinite(step) and step > 0):
        raise BlobError(f"a layer's step: expected a positive number, found {step}")
    if small_float(max(largest, of_bias)) > entropy_coder.MAX_MAGNITUDE:
        raise BlobError(f"expected integers of magnitude at most {entropy_coder.MAX_MAGNITUDE}")
    codebook = None
    if has_codebook:
        codebook = content.array("<f4", 2 * small_float(largest) + 1)
        if not np.isfinite(codebook).all():
            raise BlobError("a layer's codebook: expected finite values")
    return step, (a, b, largest), (0, 0, of_bias), codebook
