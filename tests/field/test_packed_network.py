"""Chunks P and T: the order of neurons, sizes, and streams that are made to do harm."""

from __future__ import annotations

import copy
import dataclasses

import numpy as np
import pytest
import torch
from helpers.damage import assemble, seeds
from helpers.networks import chunks_of, decode_blob, field_net, make_blob, make_header
from helpers.scripts import DATA

from field.binary import ByteReader
from field.blob import BlobError
from field.entropy_coder import encode, small_float_code, table_of, table_of_gaps
from field.layers import SirenConfig, layer_table
from field.network_chunk import HEAD, encode_network
from field.packed_network import RECORDS, TYPICAL, decode_packed, encode_packed
from field.plain_network import decode_plain
from field.quantised import QuantisedLayer, are_in_order, round_step
from quantising.order import in_order
from quantising.rounding import round_layers
from quantising.sensitivity import choose_steps, quasirandom_points, sensitivities
from siren import FieldNet, linear_layers, net_of

FORMS = [(1, True), (2, True), (5, True), (1, False), (2, False), (4, False)]  # n_layers, is_residual


def rounded(**fields) -> tuple[SirenConfig, list[QuantisedLayer]]:
    net = field_net(n_neurons=9, **fields)
    steps = choose_steps(net, sensitivities(net, quasirandom_points((5, 4, 3), 64)), bits=7)
    return net.config, round_layers(net, steps)


def random_net(**fields) -> FieldNet:
    """A network whose neurons are in no order."""
    return FieldNet(SirenConfig(9, **fields), torch.Generator().manual_seed(1))


@pytest.mark.parametrize(("n_layers", "is_residual"), FORMS)
def test_neurons_in_order(n_layers, is_residual):
    """Biases ascend from 0 where they should; the network computes the same; a second call changes nothing."""
    net = random_net(n_layers=n_layers, is_residual=is_residual)
    ordered = in_order(net)
    for layer, ascends in zip(linear_layers(ordered), are_in_order(net.config), strict=True):
        assert not ascends or (layer.bias.diff(prepend=torch.zeros(1)) >= 0).all()
    assert sum(are_in_order(net.config)) == n_layers  # all sine layers, or the first of each block
    x = 2 * torch.rand(50, 3, generator=torch.Generator().manual_seed(0)) - 1
    torch.testing.assert_close(ordered(x), net(x), rtol=0, atol=1e-4)
    for name, tensor in in_order(ordered).state_dict().items():
        assert torch.equal(tensor, ordered.state_dict()[name])


def test_the_order_does_not_depend_on_that_of_the_network():
    net = random_net(n_layers=1)
    order, signs = torch.tensor([3, 1, 8, 0, 2, 7, 6, 5, 4]), torch.tensor([1, -1, 1, 1, -1, -1, 1, -1, 1.0])
    other = copy.deepcopy(net)
    with torch.no_grad():
        first, last = linear_layers(other)
        first.weight.copy_((signs[:, None] * first.weight)[order])
        first.bias.copy_((signs * first.bias)[order])
        last.weight.copy_((signs * last.weight)[:, order])
    for one, two in zip(in_order(net).parameters(), in_order(other).parameters(), strict=True):
        assert torch.equal(one, two)


def test_neurons_in_another_order_are_not_written():
    config, layers = rounded(n_layers=1)
    layers[0] = dataclasses.replace(layers[0], biases=layers[0].biases[::-1])
    with pytest.raises(BlobError, match="layer 0: expected neurons in the order of their biases"):
        encode_packed(config, layers)


@pytest.mark.parametrize("name", ["residual", "plain", "missing"])
def test_smaller_than_chunk_n(name):
    """The same integers take fewer bytes than in a file of an older program."""
    blob = (DATA / f"golden_{name}.blob").read_bytes()
    ((config, tensors),), (kind, content) = decode_blob(blob)[1], chunks_of(blob)[-1]
    found = ByteReader(content, "N")
    found.take(HEAD)
    steps = [layer.step for layer in decode_plain(found, config, False)]
    layers = [
        dataclasses.replace(layer, step=round_step(layer.step))
        for layer in round_layers(in_order(net_of(config, tensors)), steps)
    ]
    assert kind == b"N" and len(encode_packed(config, layers)) + HEAD < len(content) - 4 * len(layers)


def test_any_step_and_magnitude():
    """From the least to the largest that the format holds, one after the other."""
    config = SirenConfig(2, 3, omega_0=1.0, is_residual=False)
    steps = [round_step(step) for step in (1e-45, 3e38, 1e-30, 1.0)]
    assert [int(step.view(np.uint32)) >> 20 for step in steps[:2]] == [1, 2038]
    layers = []
    for k, (step, (_, n_out, n_in, *_)) in enumerate(zip(steps, layer_table(config), strict=True)):
        largest = (0, 1, 30720, 15)[k]
        weights = np.full((n_out, n_in), -largest, np.int32)
        layers.append(QuantisedLayer(weights, np.full(n_out, largest, np.int32), step))
    content = ByteReader(encode_packed(config, layers), "P")
    for layer, found in zip(layers, decode_packed(content, config, has_trellis=False), strict=True):
        np.testing.assert_array_equal(found.weights, layer.weights)
        np.testing.assert_array_equal(found.biases, layer.biases)
        assert found.step == layer.step


def test_a_step_that_chunk_p_cannot_hold():
    config, layers = rounded(n_layers=1)
    with pytest.raises(BlobError, match=r"a step as of round_step, found 0\.1"):
        encode_packed(config, [dataclasses.replace(layers[0], step=np.float32(0.1)), layers[1]])


@pytest.mark.parametrize("bits", [1, 9])
def test_a_step_of_so_many_bits_is_no_finer(bits):
    assert round_step(1.01, is_least=True) == 1.125 and round_step(1.0, is_least=True) == 1.0
    assert round_step(1.01) == 1.0 and round_step(1.07) == 1.125
    assert decode_blob(make_blob(make_header(), field_net(), bits))


LARGEST = small_float_code(30720)
HOSTILE = {  # the numbers of the one sine layer
    "step 0": (0, 0, 0, 0),
    "step infinite": (2040, 0, 0, 0),
    "step negative": (-1, 0, 0, 0),
    "rate -1": (940, -1, 0, 0),
    "rate 256": (940, 256, 0, 0),
    "M too large": (940, 0, LARGEST + 1, 0),
    "M -1": (940, 0, -1, 0),
    "gaps too large": (940, 0, 0, LARGEST + 1),
    "gaps -1": (940, 0, 0, -1),
}


def chunk_of(numbers: tuple[int, ...], gaps: list[int]) -> bytes:
    """The seed's blob with a network of two neurons whose first layer has these numbers and gaps."""
    records = np.diff(np.array([TYPICAL, numbers, (940, 0, 0, 0)]), axis=0).ravel()
    groups = [records, np.zeros(6, int), np.array(gaps), np.zeros(2, int), np.zeros(1, int)]
    zero = table_of((0, 0, 0))
    stream = encode(groups, [RECORDS, zero, table_of_gaps(max(min(numbers[3], LARGEST), 0)), zero, zero])
    field = chunks_of(seeds()[0])[0]
    return assemble([field, (b"P", b"\1\1\2\0\0\0\0\x3f" + stream)])


def test_a_network_made_by_hand():
    (_, tensors) = decode_blob(chunk_of((940, 0, 0, LARGEST), [3, 4]))[1][0]
    step = float(np.uint32(940 << 20).view(np.float32))
    np.testing.assert_allclose(tensors["net_layers.0.linear.bias"], [3 * step, 7 * step])
    assert not tensors["net_layers.1.weight"].any()


@pytest.mark.parametrize("what", HOSTILE)
def test_hostile_numbers(what):
    with pytest.raises(BlobError, match="layer 0: expected a positive step"):
        decode_blob(chunk_of(HOSTILE[what], [0, 0]))


def test_gaps_that_add_up_to_too_much():
    assert decode_blob(chunk_of((940, 0, 0, LARGEST), [30720, 0]))
    with pytest.raises(BlobError, match="at most 30720, found 30721"):
        decode_blob(chunk_of((940, 0, 0, LARGEST), [30720, 1]))


@pytest.mark.parametrize("which", [[True, True, True], [False, True, False]])
def test_a_trellis_of_some_matrices_is_not_written(which):
    config, layers = rounded(n_layers=2, is_residual=False)
    layers = [dataclasses.replace(layer, has_trellis=has) for layer, has in zip(layers, which, strict=True)]
    with pytest.raises(BlobError, match="a trellis for all matrices but the first"):
        encode_network(config, layers)
