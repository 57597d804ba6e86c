"""What a step on a GPU computes for each number by itself, with torch. `fused` has the same functions, a kernel each.

dtype: of the matrices that are multiplied next.
"""

from __future__ import annotations

import torch


def sines(phase: torch.Tensor, total: torch.Tensor | None, dtype: torch.dtype) -> tuple[torch.Tensor, ...]:
    """(sines of the phases, their cosines, both of type `dtype`; `total` plus the sines, which replaces them)."""
    cosines = torch.cos(phase, out=torch.empty_like(phase, dtype=dtype))
    if total is None:
        return torch.sin(phase, out=torch.empty_like(phase, dtype=dtype)), cosines, None
    total = total + torch.sin(phase)
    return total.to(dtype), cosines, total


def slopes(
    upper: torch.Tensor, added: torch.Tensor | None, cosines: torch.Tensor, dtype: torch.dtype
) -> tuple[torch.Tensor, ...]:
    """(derivatives by the sines: `upper`, plus `added` if given; those by the phases, of type `dtype`)."""
    total = upper if added is None else upper + added
    return total, torch.mul(total, cosines, out=torch.empty_like(cosines, dtype=dtype))


def loss(
    outputs: torch.Tensor,
    values: torch.Tensor,
    weights: torch.Tensor | None,
    factor: float,
    is_clipped: bool,
    dtype: torch.dtype,
) -> tuple[torch.Tensor, torch.Tensor]:
    """(squared error (n,) of each sample; weights x error x factor / d_out, a row for each, of type `dtype`).

    outputs: (n, padded d_out), of which the first d_out count; the rows have zeros for the others.
    """
    d_out = values.shape[-1]
    error = outputs[..., :d_out] - values
    if is_clipped:
        error *= (values.abs() < 1) | (error * values < 0)
    squares = error.square().mean(-1)
    if weights is not None:
        error *= weights[..., None]
    slopes = torch.zeros_like(outputs, dtype=dtype)
    torch.mul(error, factor / d_out, out=slopes[..., :d_out])
    return squares, slopes
