"""What `LossGradient` computes, for a GPU: the loss of a network over a batch and its gradient, with torch.

The matrices are padded with zeros, so that a GPU takes its fast products. The products may be of float16, with sums in
float32. What lies inside a sine, and the sums of the residual blocks, are float32 all the same.
"""

from __future__ import annotations

import math

import torch

from field.layers import block_ends, layer_table
from siren import linear_layers
from training import unfused
from training.optimizers import padded
from training.weights import TrainedWeights

SCALE = 0.125  # factor of the derivatives in the backward pass, before the mean over the samples: float16 holds them


def product(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """The product of two matrices, or of two stacks of them, in float32 if both are float16."""
    if a.dtype != torch.float16:
        return a @ b
    if not a.is_cuda:
        return a.float() @ b.float()
    return (torch.mm if a.dim() == 2 else torch.bmm)(a, b, out_dtype=torch.float32)


class PaddedGradient:
    """Computes the mean squared error of a network over a batch, and its gradient in `trained.gradient`.

    For a stack of networks it does so for each, over a batch of its own. All tensors then have an axis of networks in
    front.

    A matrix is [W b], times the layer's factors, in the upper left corner of zeros. Samples lie along the first axis.
    Activation number `width` is always 1 and takes the biases in: its row of a matrix holds only pi/2 in the column of
    the biases, because sin(pi/2) = 1; at the end of a residual block it holds nothing, because the sum has that 1.
    No operation waits for the device, so a CUDA graph can hold them. is_clipped: see `LossGradient`. kernels: `unfused`
    or `fused`.
    """

    kernels = unfused

    def __init__(self, trained: TrainedWeights, first_trained_layer: int = 0, is_clipped: bool = False):
        self.trained, self.first_trained_layer, self.is_clipped = trained, first_trained_layer, is_clipped
        config, layers = trained.net.config, linear_layers(trained.net)
        self.width, self.d_out = n, d_out = config.n_neurons, config.d_out
        self.ends, table = (layers[0], layers[-1]), layer_table(config)
        self.factors = [(layer.omega * layer.scale, layer.omega) for layer in table]
        self.block_ends = block_ends(table)
        like = layers[0].weight.detach()
        size, lead = padded(n + 1), trained.weights.shape[:-1]
        self.first = like.new_zeros(*lead, size, config.d_in + 1)  # never float16, which cannot tell coordinates apart
        self.hidden = like.new_zeros(*lead, len(layers) - 2, size, size)
        self.last = like.new_zeros(*lead, padded(d_out), size)
        self.first[..., n, -1] = math.pi / 2
        for k, layer in enumerate(layers[1:-1], 1):
            if k not in self.block_ends:
                self.hidden[..., k - 1, n, n] = math.pi / 2
            self._fill(self.hidden[..., k - 1, :, :], layer, k)
        self._fill(self.first, layers[0], 0)
        self.n_frozen = max(first_trained_layer - 1, 0)  # hidden matrices that get no gradient
        scales = [self.factors[k + 1][0] for k in range(self.n_frozen, len(layers) - 2)]
        self.scales, self.omega = like.new_tensor(scales).view(-1, 1, 1), config.omega_0

    def _fill(self, matrix: torch.Tensor, layer: torch.nn.Linear, k: int) -> None:
        """Put [W b] of linear layer number k, times its factors, into a padded matrix."""
        n_out, n_in = layer.weight.shape
        weight, bias = map(self.trained.of_all, (layer.weight.detach(), layer.bias.detach()))
        torch.mul(weight, self.factors[k][0], out=matrix[..., :n_out, :n_in])
        torch.mul(bias, self.factors[k][1], out=matrix[..., :n_out, n_in])

    def _fill_trained(self) -> None:
        n, hidden = self.width, self.hidden[..., self.n_frozen :, :, :]
        torch.mul(self.trained.hidden, self.scales, out=hidden[..., :n, :n])
        torch.mul(self.trained.biases, self.omega, out=hidden[..., :n, n])
        for matrix, layer, k in zip((self.first, self.last), self.ends, (0, len(self.factors) - 1), strict=True):
            if k >= self.first_trained_layer:
                self._fill(matrix, layer, k)

    @torch.no_grad()
    def __call__(
        self,
        x: torch.Tensor,
        values: torch.Tensor,
        sample_weights: torch.Tensor | None = None,
        products: torch.dtype | None = None,
    ) -> None:
        """Set the gradient, and `squares` (n,) to the samples' squared errors.

        x: (n, d_in) coordinates; values: (n, d_out). sample_weights: (n,) weights in the mean. products: type of the
        matrices that are multiplied; None: that of the weights.
        """
        self._fill_trained()
        dtype = products or x.dtype
        hidden, last = self.hidden.to(dtype).unbind(-3), self.last.to(dtype)
        inputs = torch.cat([x, torch.ones_like(x[..., :1])], dim=-1)
        outputs, cosines, phase = [], [], inputs @ self.first.mT
        total = torch.zeros_like(phase) if self.block_ends else None  # the stream of the residual blocks
        for k in range(len(hidden) + 1):
            if k > 0:
                phase = product(outputs[-1], hidden[k - 1].mT)
            is_added = k == 0 or k in self.block_ends
            h, cosine, summed = self.kernels.sines(phase, total if is_added else None, dtype)
            total = summed if is_added else total
            outputs.append(h)
            cosines.append(cosine)
        # The mean over the samples follows at the end: float16 might lose so small numbers.
        self.squares, upper = self.kernels.loss(
            product(outputs[-1], last.mT), values, sample_weights, 2 * SCALE, self.is_clipped, dtype
        )
        self._backward(inputs, outputs, cosines, hidden, last, upper)
        self.trained.gradient.mul_(1 / (SCALE * x.shape[-2]))

    def _backward(self, inputs, outputs, cosines, hidden, last, upper) -> None:
        """Set the gradient of the scaled sum over the samples. upper: the derivative of that sum by the outputs."""
        self._store(product(upper.mT, outputs[-1]), self.ends[1], len(hidden) + 1)
        found, grad, skipped, added = [], product(upper, last), None, None
        for k in reversed(range(self.first_trained_layer, len(hidden) + 1)):
            grad, lower = self.kernels.slopes(grad, added, cosines[k], outputs[k].dtype if k else inputs.dtype)
            if k in self.block_ends:
                skipped = grad
            if k == 0:
                self._store(lower.mT @ inputs, self.ends[0], 0)
                break
            found.append(product(lower.mT, outputs[k - 1]))
            if k > self.first_trained_layer:
                grad = product(lower, hidden[k - 1])
                added = skipped if k + 1 in self.block_ends else None
        if found:
            n, matrices = self.width, torch.stack(found[::-1], dim=-3)
            torch.mul(matrices[..., :n, :n], self.scales, out=self.trained.hidden_gradient)
            torch.mul(matrices[..., :n, n], self.omega, out=self.trained.biases_gradient)

    def _store(self, matrix: torch.Tensor, layer: torch.nn.Linear, k: int) -> None:
        """Take the gradient of linear layer number k from that of its padded matrix."""
        n_out, n_in = layer.weight.shape
        weight, bias = map(self.trained.of_all, (layer.weight.grad, layer.bias.grad))
        torch.mul(matrix[..., :n_out, :n_in], self.factors[k][0], out=weight)
        torch.mul(matrix[..., :n_out, n_in], self.factors[k][1], out=bias)
