"""Codebooks: k-means quantisation of the hidden matrices, as in the paper (Lu et al., 2021)."""

from __future__ import annotations

import dataclasses

import numpy as np

from field.layers import layer_table
from field.plain_network import may_have_codebook
from field.quantised import QuantisedLayer
from quantising.rounding import round_layers
from siren import FieldNet, linear_layers

KMEANS_ITERATIONS = 50  # at most


def round_to_codebooks(net: FieldNet, bits: int, steps: list[np.float32]) -> list[QuantisedLayer]:
    """The layers in integers: at most 2^bits codebook values for each hidden matrix, `steps` for everything else."""
    layers = round_layers(net, steps)
    for i, (layer, place) in enumerate(zip(linear_layers(net), layer_table(net.config), strict=True)):
        if may_have_codebook(place, net.config):
            values = layer.weight.detach().cpu().numpy()
            codebook = kmeans(values.ravel(), 2**bits)
            if len(codebook) % 2 == 0:  # the format needs a middle value to count from
                codebook = np.append(codebook, codebook[-1])
            nearest = np.searchsorted((codebook[1:] + codebook[:-1]) / 2, values).astype(np.int32)
            layers[i] = dataclasses.replace(layers[i], weights=nearest - len(codebook) // 2, codebook=codebook)
    return layers


def kmeans(values: np.ndarray, k: int) -> np.ndarray:
    """At most k ascending float32 centroids of 1-D `values`, by Lloyd's algorithm, which starts from quantiles."""
    values = np.sort(values.astype(np.float64))
    centroids = np.unique(np.quantile(values, (np.arange(k) + 0.5) / k))
    sums = np.concatenate([[0.0], np.cumsum(values)])
    for _ in range(KMEANS_ITERATIONS):
        edges = np.searchsorted(values, (centroids[1:] + centroids[:-1]) / 2)
        edges = np.unique(np.concatenate([[0], edges, [len(values)]]))
        moved = np.diff(sums[edges]) / np.diff(edges)
        if np.array_equal(moved, centroids):
            break
        centroids = moved
    return np.unique(centroids.astype(np.float32))
