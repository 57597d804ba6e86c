"""The loss of a network over a batch and its gradient on a CPU, by hand-written backpropagation in NumPy.

NumPy's sines are three times as fast as torch's. `padded_gradient` computes the same on a GPU.
"""

from __future__ import annotations

import concurrent.futures
import math
from collections.abc import Callable

import numpy as np
import torch

from field.layers import SirenConfig, block_ends, layer_table
from siren import FieldNet, linear_layers

LEAST_PART = 36_000, 512  # smallest part of a batch: its neurons x samples, its samples
SMALL_PRODUCT = 1_000_000  # multiplications; up to this size of product, NumPy's OpenBLAS is faster than torch's MKL


class LossGradient:
    """Computes the mean squared error of a network over a batch, and its gradient in every parameter's `.grad`.

    The forward pass keeps the cosine of each phase for the backward pass. Every step reuses the same buffers, and no
    autograd graph is recorded. Samples lie along the last axis. A row of ones below the activations includes the biases
    in the matrix products. A CPU splits a batch into parts, which run in `n_threads` threads. The parts do not depend
    on the number of threads, and so the result does not either.

    is_clipped: where a value is -1 or 1, an output beyond it counts as no error, because decoding clips the output.
    A flat background with a sharp edge is then easy to learn.
    """

    def __init__(
        self, net: FieldNet, max_batch: int, first_trained_layer: int = 0, n_threads: int = 1, is_clipped: bool = False
    ):
        self.is_clipped = is_clipped
        config, layers = net.config, linear_layers(net)
        self.first_trained_layer = first_trained_layer  # the linear layers before this one get no gradient
        like = layers[0].weight.detach()
        table = layer_table(config)
        self.block_ends = block_ends(table)
        self.factors = [(layer.omega * layer.scale, layer.omega) for layer in table]  # (of weights, of biases)
        self.parameters = [(layer.weight.detach().numpy(), layer.bias.detach().numpy()) for layer in layers]
        trained = layers[first_trained_layer:]
        for parameter in (p for layer in trained for p in layer.parameters()):
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        self.gradients = [(layer.weight.grad.numpy(), layer.bias.grad.numpy()) for layer in trained]

        def ones(*shape: int) -> np.ndarray:
            return like.new_ones(shape).numpy()

        self.matrices = [ones(len(weight), weight.shape[1] + 1) for weight, _ in self.parameters]
        n_parts = count_parts(config.n_neurons, max_batch)
        size = padded_columns(math.ceil(max_batch / n_parts))
        self.parts = [_BatchPart(self, config, size, ones) for _ in range(n_parts)]
        is_small = config.n_neurons * (config.n_neurons + 1) * size <= SMALL_PRODUCT
        self.matmul = np.matmul if is_small else torch_matmul
        n_threads = min(n_threads, n_parts)
        self.map = map
        if n_threads > 1:  # torch would start further threads in each of these, hence the limit of 1
            pool = concurrent.futures.ThreadPoolExecutor(n_threads, initializer=torch.set_num_threads, initargs=(1,))
            self.map = pool.map

    @torch.no_grad()
    def __call__(self, x: torch.Tensor, values: torch.Tensor, sample_weights: torch.Tensor | None = None) -> None:
        """Set the gradients, and `squares` (n,) to the samples' squared errors.

        x: (n, d_in) coordinates; values: (n, d_out); n <= `max_batch`. sample_weights: (n,) weights in the mean.
        """
        n, n_parts = len(x), len(self.parts)
        layers = zip(self.matrices, self.parameters, self.factors, strict=True)
        for matrix, (weight, bias), (of_weight, of_bias) in layers:
            np.multiply(weight, of_weight, out=matrix[:, :-1])
            np.multiply(bias, of_bias, out=matrix[:, -1])
        x, values = x.numpy().T, values.numpy().T
        weights = None if sample_weights is None else sample_weights.numpy()

        def work(i: int) -> np.ndarray:
            cut = slice(n * i // n_parts, n * (i + 1) // n_parts)
            return self.parts[i](x[:, cut], values[:, cut], None if weights is None else weights[cut], n)

        squares = list(self.map(work, range(n_parts)))
        self.squares = torch.as_tensor(squares[0] if n_parts == 1 else np.concatenate(squares))
        for k, gradients in enumerate(self.gradients, self.first_trained_layer):
            joint = sum((part.gradients[k] for part in self.parts[1:]), start=self.parts[0].gradients[k])
            for part, gradient, factor in zip((joint[:, :-1], joint[:, -1]), gradients, self.factors[k], strict=True):
                np.multiply(part, factor, out=gradient)


def count_parts(n_neurons: int, max_batch: int) -> int:
    """The number of parts into which a CPU splits a batch: a power of two, up to 16.

    Smaller parts stay in the cache and keep more cores busy. LEAST_PART limits their overhead.
    """
    least, fewest_samples = LEAST_PART
    n_parts = min(n_neurons * max_batch / least, max_batch / fewest_samples, 16)
    return 1 << int(math.log2(max(n_parts, 1)))


def padded_columns(n_samples: int) -> int:
    """The columns to allocate for the samples, so that a matrix's rows do not all start in the same few cache sets."""
    return math.ceil(n_samples / 64) * 64 + 48


def torch_matmul(a: np.ndarray, b: np.ndarray, out: np.ndarray) -> None:
    """`np.matmul` of two matrices, computed by torch."""
    torch.mm(torch.from_numpy(a), torch.from_numpy(b), out=torch.from_numpy(out))


class _BatchPart:
    """One part of a batch: its buffers and its computation.

    All columns of the buffers are computed. Columns beyond the batch have zero error, so they add no gradient.
    """

    def __init__(self, whole: LossGradient, config: SirenConfig, size: int, ones: Callable[..., np.ndarray]):
        self.whole = whole
        n_layers = len(whole.matrices)
        self.gradients = [ones(*matrix.shape) for matrix in whole.matrices]  # with respect to `whole.matrices`
        self.inputs = ones(config.d_in + 1, size)
        self.outputs = ones(n_layers - 1, config.n_neurons + 1, size)
        self.cosines = ones(n_layers - 1, config.n_neurons, size)
        self.scratch = ones(3, config.n_neurons, size)
        self.error = ones(config.d_out, size)

    @np.errstate(all="ignore")  # numbers may overflow: `Recovery` detects divergence by the loss
    def __call__(self, x: np.ndarray, values: np.ndarray, weights: np.ndarray | None, n: int) -> np.ndarray:
        """The squared errors of this part. x: (d_in, samples); values: (d_out, samples); n: size of the batch."""
        size, error = x.shape[1], self.error
        self._forward(x)
        error[:, :size] -= values
        if self.whole.is_clipped:
            error[:, :size] *= (np.abs(values) < 1) | (error[:, :size] * values < 0)
        error[:, size:] = 0
        squares = np.square(error[:, :size]).mean(0)
        if weights is not None:
            error[:, :size] *= weights
        error *= 2 / (n * len(error))
        self._backward()
        return squares

    def _forward(self, x: np.ndarray) -> None:
        """Set `outputs` and `cosines` of the sine layers, and `error` to what the last layer gives."""
        matmul, block_ends, phase = self.whole.matmul, self.whole.block_ends, self.scratch[0]
        *sines, last = self.whole.matrices
        self.inputs[:-1, : x.shape[1]] = x
        h = self.inputs
        for k, matrix in enumerate(sines):
            matmul(matrix, h, out=phase)
            h = self.outputs[k]
            if k >= self.whole.first_trained_layer:
                np.cos(phase, out=self.cosines[k])
            np.sin(phase, out=h[:-1])
            if k in block_ends:
                h[:-1] += self.outputs[k - 2, :-1]
        matmul(last, h, out=self.error)

    def _backward(self) -> None:
        """Set `gradients`. `error` holds the derivative of the loss by the output of the last layer."""
        matmul, block_ends, first = self.whole.matmul, self.whole.block_ends, self.whole.first_trained_layer
        *sines, last = self.whole.matrices
        by_phase, by_output, by_block = self.scratch  # derivatives of the loss, by what layer k or a block gives
        matmul(self.error, self.outputs[-1].T, out=self.gradients[-1])
        if first < len(sines):
            matmul(last[:, :-1].T, self.error, out=by_output)
        for k in reversed(range(first, len(sines))):
            np.multiply(by_output, self.cosines[k], out=by_phase)
            if k in block_ends:  # kept for the block's input; the other buffer takes the next derivative
                by_block, by_output = by_output, by_block
            matmul(by_phase, (self.outputs[k - 1] if k else self.inputs).T, out=self.gradients[k])
            if k > first:
                matmul(sines[k][:, :-1].T, by_phase, out=by_output)
                if k + 1 in block_ends:  # a block adds its input to its output
                    by_output += by_block
