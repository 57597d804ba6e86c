"""What a device can do: its memory, its kernels, products of float16. Where a GPU lacks something, a line says so."""

from __future__ import annotations

import functools
import math
import multiprocessing
import os
import sys

import torch

from cli import console
from field.evaluation import TILE
from training import unfused
from training.padded_gradient import product


def memory_of(device: torch.device) -> float:
    """The memory of a GPU in bytes, whether it is free or not; of a CPU, without a limit."""
    return torch.cuda.get_device_properties(device).total_memory if device.type == "cuda" else math.inf


def is_for_gpu(device: torch.device) -> bool:
    """Whether a step takes the arithmetic for a GPU: `PaddedGradient`, on padded matrices."""
    return device.type != "cpu"


def has_half_products(device: torch.device) -> bool:
    """Whether a device multiplies float16 with sums in float32. If it is a GPU and does not, a line says so."""
    if device.type != "cuda":
        return False
    try:
        some = torch.zeros(TILE, TILE, dtype=torch.float16, device=device)
        product(some, some)
        product(some[None], some[None])  # of a stack
    except (RuntimeError, TypeError) as error:
        warn_of_lacking("float16 products", error)
        return False
    return True


@functools.cache  # for each device of a run
def kernels_for(device: torch.device) -> object:
    """`unfused`, or on a GPU the kernels in its place. If they cannot be had, a line says so."""
    if device.type != "cuda":
        return unfused
    try:
        from training import fused

        check_kernels(fused, device)
    except Exception as error:  # of many kinds: no Triton, no C compiler, an old card
        warn_of_lacking("Triton", error)
        return unfused
    return fused


def check_kernels(kernels: object, device: torch.device) -> None:
    """Raise ValueError if kernels do not compute what torch does. This compiles all that a fit takes."""
    n = 3 * TILE
    a, b, c = torch.linspace(-30, 30, 9 * n * TILE, device=device).view(3, 3 * n, TILE).unbind()

    def found(kernels: object, dtype: torch.dtype) -> list[torch.Tensor]:
        """dtype: of the products, see `step.HALF_PSNR`."""
        sines = [kernels.sines(a, added, dtype) for added in (None, b)]
        kinds = (None, dtype), (b, dtype), (b, a.dtype)  # the last one of the first layer, whose products are float32
        slopes = [kernels.slopes(a, added, c.to(dtype), of_result) for added, of_result in kinds]
        loss = kernels.loss(a, c[:, :1].clamp(-1, 1), b[:, 0], 0.5, True, dtype)
        return [tensor for part in (*sines, *slopes, loss) for tensor in part if tensor is not None]

    for dtype, tolerance in ((torch.float16, 1e-2), (torch.float32, 1e-5)):
        for here, there in zip(found(kernels, dtype), found(unfused, dtype), strict=True):
            if not torch.allclose(here.float(), there.float(), rtol=tolerance, atol=tolerance):
                raise ValueError("its kernels compute something else")


@functools.cache  # once, not for each fit of a run
def _warn(line: str) -> None:
    if multiprocessing.parent_process() is None:  # once, not for each of the `Workers`
        console.warn(os.path.basename(sys.argv[0]), line)


def warn_of_lacking(what: str, error: Exception) -> None:
    """Warn, once, that training is slower as a GPU, or its software, lacks something."""
    reason = (str(error).splitlines() or [type(error).__name__])[0]
    _warn(f"no {what}: {reason}: training is slower without")
