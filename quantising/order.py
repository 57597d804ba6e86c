"""Puts the neurons of a network in the order in which a file holds them: their biases then take fewer bytes."""

from __future__ import annotations

import copy

import torch

from field.quantised import are_in_order
from siren import FieldNet, linear_layers


@torch.no_grad()
def in_order(net: FieldNet) -> FieldNet:
    """A network that computes the same, with its neurons in the order of their biases, as `are_in_order` says.

    The order of neurons changes nothing of what a network computes. Nor do their signs, because a sine is odd: where a
    bias is negative, the neuron's weights change their sign, and those that take its output.
    """
    net = copy.deepcopy(net)
    layers = linear_layers(net)
    last = len(layers) - 1
    for k, is_free in enumerate(are_in_order(net.config)):
        if not is_free:
            continue
        is_stream = k == 0 and net.config.is_residual  # all blocks take its neurons and add to them
        giving, taking = ([*range(0, last, 2)], [*range(1, last, 2), last]) if is_stream else ([k], [k + 1])
        biases = layers[k].bias
        signs, order = torch.where(biases < 0, -1.0, 1.0), biases.abs().argsort(stable=True)
        for i in giving:
            layers[i].weight.copy_((signs[:, None] * layers[i].weight)[order])
            layers[i].bias.copy_((signs * layers[i].bias)[order])
        for i in taking:
            layers[i].weight.copy_((signs * layers[i].weight)[:, order])
    return net
