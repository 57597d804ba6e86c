"""What `padded_gradient.sines` computes, by one Triton kernel in place of two to four of torch. Needs Triton."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

BLOCK = 1024  # numbers that one program of the GPU computes


@triton.jit
def _sines(phase, added, sines, cosines, total, n, is_sum: tl.constexpr, block: tl.constexpr):
    index = tl.program_id(0).to(tl.int64) * block + tl.arange(0, block)
    is_inside = index < n
    angle = tl.load(phase + index, mask=is_inside)
    tl.store(cosines + index, tl.cos(angle), mask=is_inside)
    sine = tl.sin(angle)
    if is_sum:
        sine += tl.load(added + index, mask=is_inside)
        tl.store(total + index, sine, mask=is_inside)
    tl.store(sines + index, sine, mask=is_inside)


def sines(phase: torch.Tensor, total: torch.Tensor | None, dtype: torch.dtype) -> tuple[torch.Tensor, ...]:
    """As `padded_gradient.sines`."""
    found, cosines = (torch.empty_like(phase, dtype=dtype) for _ in range(2))
    is_sum = total is not None
    summed = torch.empty_like(phase) if is_sum else None
    arrays = [phase, total if is_sum else phase, found, cosines, summed if is_sum else phase]
    with torch.cuda.device_of(phase):  # which Triton does not look for by itself
        _sines[(triton.cdiv(phase.numel(), BLOCK),)](*arrays, phase.numel(), is_sum, BLOCK)
    return found, cosines, summed
