"""What follows the settings in chunks P and T: one stream of coded integers. The neurons of the network are in order.

The first integers say what the others stand for, and how they are coded. Of biases that ascend, the gaps are coded.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from field import entropy_coder
from field.binary import BlobError, ByteReader
from field.entropy_coder import MAX_MAGNITUDE, Table, small_float_code, table_of, table_of_gaps
from field.layers import SirenConfig, layer_table
from field.quantised import QuantisedLayer, are_in_order

# The four numbers of a layer: upper 12 bits of the step; codes of the rate and of the largest magnitude of the matrix's
# integers, of the largest magnitude of the bias's. Those of a layer are near those of the layer before, so the
# differences are coded, those of the first layer from typical numbers. Most differences are small.
TYPICAL = np.array([940, 130, 30, 25], np.int32)
RECORDS = table_of((168, 0, 72))  # halves with every second integer, up to 2,048
STEPS, RATES, MAGNITUDES = range(0x001, 0x7F8), range(256), range(small_float_code(MAX_MAGNITUDE) + 1)
LIMITS = STEPS, RATES, MAGNITUDES, MAGNITUDES


def encode_packed(config: SirenConfig, layers: Sequence[QuantisedLayer]) -> bytes:
    """The stream of layers without codebooks. Raises BlobError."""
    numbers, groups, tables = [TYPICAL], [], []
    for k, (layer, ascends) in enumerate(zip(layers, are_in_order(config), strict=True)):
        biases = np.diff(layer.biases, prepend=np.int32(0)) if ascends else layer.biases
        if ascends and biases.min() < 0:
            raise BlobError(f"layer {k}: expected neurons in the order of their biases")
        *rates, largest = entropy_coder.fit_model(layer.weights, is_linear=k == 0)
        codes = max(rates), largest, small_float_code(int(np.abs(biases).max()))
        step, rest = divmod(int(layer.step.view(np.uint32)), 1 << 20)
        if rest:
            raise BlobError(f"expected a step as of round_step, found {layer.step}")
        numbers.append([step, *codes])
        groups += [layer.weights.ravel(), biases]
        tables += _tables(k, *codes, ascends)
    records = np.diff(np.array(numbers, np.int32), axis=0).ravel()
    return entropy_coder.encode([records, *groups], [RECORDS, *tables])


def decode_packed(content: ByteReader, config: SirenConfig, has_trellis: bool) -> Iterator[QuantisedLayer]:
    """The layers of a network. content: of its chunk, after the settings. Raises BlobError, StreamError.

    has_trellis: whether all matrices but the first lie on two grids, see `field.trellis`.
    """
    table = layer_table(config)
    stream = entropy_coder.Decoder(content.rest(), config.n_parameters + len(table) * len(TYPICAL))
    records = TYPICAL + stream.take(len(table) * len(TYPICAL), RECORDS).reshape(-1, len(TYPICAL)).cumsum(axis=0)
    for k, (layer, ascends) in enumerate(zip(table, are_in_order(config), strict=True)):
        step, *codes = numbers = records[k].tolist()
        if not all(number in limits for number, limits in zip(numbers, LIMITS, strict=True)):
            raise BlobError(f"layer {k}: expected a positive step, a rate and two magnitudes, found {numbers}")
        of_weights, of_biases = _tables(k, *codes, ascends)
        weights = stream.take(layer.n_out * layer.n_in, of_weights).reshape(layer.n_out, layer.n_in)
        biases = stream.take(layer.n_out, of_biases)
        if ascends:
            biases = biases.cumsum(dtype=np.int64)
            if biases[-1] > MAX_MAGNITUDE:
                raise BlobError(f"expected integers of magnitude at most {MAX_MAGNITUDE}, found {biases[-1]}")
        step = np.uint32(step << 20).view(np.float32)
        yield QuantisedLayer(weights, biases.astype(np.int32), step, has_trellis=has_trellis and k > 0)
    stream.end()


def _tables(k: int, rate: int, largest: int, of_bias: int, ascends: bool) -> tuple[Table, Table]:
    """The tables of the matrix and the bias of layer k. The waves of the first layer have few large numbers."""
    model = (rate, 0, largest) if k == 0 else (0, rate, largest)
    return table_of(model), table_of_gaps(of_bias) if ascends else table_of((0, 0, of_bias))
