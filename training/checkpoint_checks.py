"""Checks what a checkpoint says, before a fit takes it: the file may be damaged, or come from a stranger."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from training.fitting import Fit

MAX_STEP = 1 << 53  # largest number of a step: a float holds it exactly


def check_seconds(seconds: object) -> None:
    """Raise ValueError unless this may be the time that a training has taken."""
    if not (isinstance(seconds, float) and 0 <= seconds < math.inf):
        raise ValueError("seconds: expected a finite number, found another value")


def is_like(own: torch.Tensor, found: torch.Tensor, least: float = -math.inf, most: float = math.inf) -> bool:
    """Whether a tensor of a file may take the place of `own`: of the same shape, finite, and from `least` to `most`."""
    is_same = found.shape == own.shape and found.dtype == own.dtype  # first: a file can say any shape
    return is_same and bool((torch.isfinite(found) & (found >= least) & (found <= most)).all())


def check_state_dict(fit: Fit, state: dict) -> None:
    """Raise ValueError unless this may be the `state_dict` of the fit, as far as `Recovery` does not check it."""
    check_seconds(state["seconds"])
    if fit.errors is not None and not is_like(fit.errors, state["errors"], 0.0, 4.0):
        raise ValueError("errors: expected squares of at most 4, found others")
    if state["density"] is not None and not is_like(fit.errors, state["density"], 0.0):
        raise ValueError("density: expected a number of at least 0 for each voxel, found others")
    for captured in (state["start"], state["best"], state["now"]):
        step, loss, own, found = captured["step"], captured["loss"], fit.trained.state, captured["tensors"]
        is_sound = type(step) is int and 0 <= step <= MAX_STEP and type(loss) is float and 0 <= loss < math.inf
        is_sound = is_sound and [(t.shape, t.dtype) for t in found] == [(t.shape, t.dtype) for t in own]
        # The mean square of a large gradient may be infinite: Adam's weights stay finite then.
        is_sound = is_sound and not any(bool(tensor.isnan().any()) for tensor in found)
        if not (is_sound and all(map(is_like, own[:2], found[:2]))):
            raise ValueError("expected a state of finite weights, found another one")
