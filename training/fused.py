"""The functions of `unfused`, each one kernel in place of up to twelve. Needs Triton."""

from __future__ import annotations

from collections.abc import Callable

import torch
import triton
import triton.language as tl

BLOCK, WARPS = 1024, 8  # numbers that one program of the GPU computes, four a thread
ROWS = 256  # samples whose loss one program computes


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


@triton.jit
def _slopes(upper, added, cosines, total, lower, n, is_sum: tl.constexpr, block: tl.constexpr):
    index = tl.program_id(0).to(tl.int64) * block + tl.arange(0, block)
    is_inside = index < n
    slope = tl.load(upper + index, mask=is_inside)
    if is_sum:
        slope += tl.load(added + index, mask=is_inside)
        tl.store(total + index, slope, mask=is_inside)
    tl.store(lower + index, slope * tl.load(cosines + index, mask=is_inside), mask=is_inside)


@triton.jit(do_not_specialize=["n"])
def _loss(
    outputs, values, weights, squares, slopes, factor, n,
    d_out: tl.constexpr, n_columns: tl.constexpr,
    is_weighted: tl.constexpr, is_clipped: tl.constexpr, rows: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64) * rows + tl.arange(0, rows)
    is_inside = row < n
    nothing = tl.full((rows,), 0.0, outputs.dtype.element_ty)
    total = nothing
    for column in range(d_out):
        value = tl.load(values + row * d_out + column, mask=is_inside)
        error = tl.load(outputs + row * n_columns + column, mask=is_inside) - value
        if is_clipped:
            error *= ((tl.abs(value) < 1) | (error * value < 0)).to(error.dtype)
        total += error * error
        if is_weighted:
            error *= tl.load(weights + row, mask=is_inside)
        tl.store(slopes + row * n_columns + column, error * factor / d_out, mask=is_inside)
    for column in range(d_out, n_columns):
        tl.store(slopes + row * n_columns + column, nothing, mask=is_inside)
    tl.store(squares + row, total / d_out, mask=is_inside)


def _over(kernel: Callable, like: torch.Tensor, *arguments: object) -> None:
    """Run a kernel over all numbers of a tensor, on its GPU, which Triton does not look for by itself."""
    with torch.cuda.device_of(like):
        kernel[(triton.cdiv(like.numel(), BLOCK),)](*arguments, block=BLOCK, num_warps=WARPS)


def sines(phase: torch.Tensor, total: torch.Tensor | None, dtype: torch.dtype) -> tuple[torch.Tensor, ...]:
    """As `unfused.sines`."""
    found, cosines = (torch.empty_like(phase, dtype=dtype) for _ in range(2))
    if total is None:
        _over(_sines, phase, phase, phase, found, cosines, phase, phase.numel(), False)
        return found, cosines, None
    summed = torch.empty_like(phase)
    _over(_sines, phase, phase, total, found, cosines, summed, phase.numel(), True)
    return found, cosines, summed


def slopes(
    upper: torch.Tensor, added: torch.Tensor | None, cosines: torch.Tensor, dtype: torch.dtype
) -> tuple[torch.Tensor, ...]:
    """As `unfused.slopes`."""
    lower = torch.empty_like(cosines, dtype=dtype)
    if added is None:
        _over(_slopes, upper, upper, upper, cosines, upper, lower, upper.numel(), False)
        return upper, lower
    total = torch.empty_like(upper)
    _over(_slopes, upper, upper, added, cosines, total, lower, upper.numel(), True)
    return total, lower


def loss(
    outputs: torch.Tensor,
    values: torch.Tensor,
    weights: torch.Tensor | None,
    factor: float,
    is_clipped: bool,
    dtype: torch.dtype,
) -> tuple[torch.Tensor, torch.Tensor]:
    """As `unfused.loss`."""
    squares, slopes = outputs.new_empty(values.shape[:-1]), torch.empty_like(outputs, dtype=dtype)
    sizes = squares.numel(), values.shape[-1], outputs.shape[-1]
    given = values if weights is None else weights.contiguous()
    with torch.cuda.device_of(outputs):
        _loss[(triton.cdiv(squares.numel(), ROWS),)](
            outputs, values.contiguous(), given, squares, slopes, factor, *sizes, weights is not None, is_clipped, ROWS
        )
    return squares, slopes
