"""The step of a fit as a function of tensors, the same on every device. A GPU replays it from a CUDA graph."""

from __future__ import annotations

import collections
import functools
import math
from collections.abc import Sequence

import torch
from torch.nn import functional

from field.evaluation import TILE
from siren import FieldNet
from training import processes
from training.devices import has_half_products, is_for_gpu, kernels_for
from training.gradient import LossGradient
from training.padded_gradient import PaddedGradient
from training.recipe import Recipe
from training.replay import Replay
from training.sampler import VoxelSampler
from training.weights import TrainedWeights

HALF_PSNR = 45.0  # dB, up to which a GPU multiplies in float16: its noise costs 0.04 dB here, and ever more beyond
# Steps that a GPU may be behind the host, where a time limit counts. The host launches a large step in a fraction of
# the time that the GPU takes for it, and the fit would end late by all steps that are launched and not taken.
MOST_BEHIND = 16


def loss_with_slopes(
    net: FieldNet, x: torch.Tensor, values: torch.Tensor, slopes: torch.Tensor, grad_lambda: float
) -> torch.Tensor:
    """The MSE of the values, plus grad_lambda times the MSE of the slopes of the network along the axes.

    x: (n, d_in); values: (n, d_out); slopes: (n, d_out, d_in); all normalised. NaN in `slopes` adds no error.
    Source: Lu et al., 2021, section 3.
    """
    x = x.requires_grad_()
    predicted = net(x)
    own = [torch.autograd.grad(predicted[:, c].sum(), x, create_graph=True)[0] for c in range(predicted.shape[1])]
    own = torch.stack(own, dim=1)
    slopes = torch.where(slopes.isnan(), own.detach(), slopes)
    return functional.mse_loss(predicted, values) + grad_lambda * functional.mse_loss(own, slopes)


class StepFunction:
    """One step of a fit: samples of the drawn voxels, gradient, errors of these voxels, update of the weights.

    net, widths: a network, or a stack of networks and their widths, see `TrainedWeights`. Each network of a stack has
    its own batch, a row of the batch. trained: the weights. errors: (voxels,) running mean of each voxel's squared
    error, or None. density: (voxels,) by which the current pass draws voxels, or None. Both stay in place for the CUDA
    graphs.
    """

    def __init__(
        self,
        net: FieldNet | Sequence[FieldNet],
        sampler: VoxelSampler,
        recipe: Recipe,
        first_trained_layer: int,
        n_threads: int,
        errors: torch.Tensor | None,
        widths: torch.Tensor | None = None,
    ):
        self.net, self.sampler, self.grad_lambda = net, sampler, recipe.grad_lambda
        device, is_clipped = sampler.device, recipe.schedule == "power"
        is_padded = is_for_gpu(device) or widths is not None
        tile = TILE if is_padded else 1
        self.trained = TrainedWeights(net, recipe.optimizer, first_trained_layer, tile, widths, recipe.momentum_steps)
        if is_padded:
            self.loss_gradient = PaddedGradient(self.trained, first_trained_layer, is_clipped)
            self.loss_gradient.kernels = kernels_for(device)
        else:
            largest = math.ceil(sampler.n_present / recipe.steps_per_pass(sampler.n_present))
            self.loss_gradient = LossGradient(net, largest, first_trained_layer, n_threads, is_clipped)
        self.errors, self.density = errors, None
        # While layers are rounded, a good network changes little, and all that float16 loses would show.
        self.has_half = first_trained_layer == 0 and has_half_products(device)
        is_in_place = sampler.is_resident or errors is None
        is_captured = device.type == "cuda" and is_in_place and not self.grad_lambda and processes.count() == 1
        self.replay = Replay(device) if is_captured else None
        self.is_timed = device.type == "cuda" and recipe.max_seconds is not None
        self.behind: collections.deque[torch.cuda.Event] = collections.deque()  # the ends of the latest steps
        if is_captured:
            self.coefficients = self.trained.weights.new_zeros(len(self.trained.coefficients(1.0, 1))).unbind()

    def set_density(self, density: torch.Tensor) -> None:
        """Draw the voxels from now on by this density."""
        if self.density is None:
            self.density = density
        else:
            self.density.copy_(density)

    def __call__(self, batch: torch.Tensor, rate: float, number: int, psnr: float) -> None:
        """Take a step. batch: of `sampler.batches`; number: of the step, from 1; psnr: the latest estimate, in dB."""
        products = torch.float16 if self.has_half and psnr < HALF_PSNR else None
        coefficients = self.trained.coefficients(rate, number)
        if self.replay is None:
            self._take(batch, coefficients=coefficients, products=products)
        else:
            for tensor, value in zip(self.coefficients, coefficients, strict=True):
                tensor.fill_(value)
            samples = () if self.sampler.is_resident else self.sampler.samples(batch)
            take = functools.partial(self._take, coefficients=self.coefficients)
            self.replay(take, batch, *samples, products=products)
        if self.is_timed:
            self._wait_for_earlier_steps()

    def _wait_for_earlier_steps(self) -> None:
        """Wait until the device is at most MOST_BEHIND steps behind."""
        end = torch.cuda.Event()
        end.record(torch.cuda.current_stream(self.sampler.device))
        self.behind.append(end)
        if len(self.behind) > MOST_BEHIND:
            self.behind.popleft().synchronize()

    def _take(
        self,
        batch: torch.Tensor,
        x: torch.Tensor | None = None,
        values: torch.Tensor | None = None,
        *,
        coefficients: Sequence[float | torch.Tensor],
        products: torch.dtype | None,
    ) -> None:
        flat = processes.split_batch(batch)
        if x is None:
            x, values = self.sampler.samples(flat)
        more = {"products": products} if products else {}
        if self.density is not None:
            self.loss_gradient(x, values, self.density[flat].reciprocal_().to(x.device), **more)
            squares = processes.gather_batch(self.loss_gradient.squares, len(batch)).to(self.errors.device)
            self.errors[batch] = torch.lerp(self.errors[batch], squares.nan_to_num(4.0).clamp_(max=4.0), 0.5)
        elif self.grad_lambda == 0:
            self.loss_gradient(x, values, **more)
        else:
            self.trained.gradient.zero_()
            loss_with_slopes(self.net, x, values, self.sampler.slopes(flat), self.grad_lambda).backward()
        processes.average_over_processes(self.trained.gradient, weight=len(flat))
        self.trained.take_step(coefficients, products)
