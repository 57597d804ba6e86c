"""The original scripts, written anew from their formats and formulas."""

from __future__ import annotations

import numpy as np


def original_coordinates(shape: tuple[int, ...]) -> np.ndarray:
    """The original's coordinates of every voxel in C order, float64 (voxels, axes)."""
    longest = max(shape)
    axes = [(2 * np.arange(n) / (n - 1) - 1) * (n - 1) / (longest - 1) for n in shape]
    return np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, len(shape))


def original_forward(state: dict, n_layers: int, is_residual: bool, x: np.ndarray) -> np.ndarray:
    """The original's network in float64: omega 30 everywhere, (n, d_in) -> (n, d_out)."""
    w = {name: np.asarray(tensor, np.float64) for name, tensor in state.items()}

    def sine(name: str, x: np.ndarray) -> np.ndarray:
        return np.sin(30 * (x @ w[name + ".weight"].T + w[name + ".bias"]))

    x = sine("net_layers.0.linear", x)
    for i in range(1, n_layers):
        name = f"net_layers.{i}.linear"
        if is_residual:
            halved = x if i == 1 else x / 2
            x = x + sine(name + "_2", sine(name + "_1", halved))
            if i == n_layers - 1:
                x = x / 2
        else:
            x = sine(name, x)
    last = f"net_layers.{n_layers}"
    return x @ w[last + ".weight"].T + w[last + ".bias"]


def original_blob(
    rng: np.random.Generator, bits: int, n: int, n_layers: int, is_residual: bool, d_in: int = 3, d_out: int = 1
) -> tuple[bytes, dict[str, np.ndarray]]:
    """A blob of the original's format with random content, and the state dict that it holds."""
    state: dict[str, np.ndarray] = {}
    out = bytearray([n_layers, d_in, d_out, is_residual])
    out += np.full(n_layers, n, "<u4").tobytes() + bytes([bits])

    def plain(name: str, shape: tuple[int, ...]) -> None:
        state[name] = rng.standard_normal(shape).astype(np.float32)
        out.extend(state[name].astype("<f4").tobytes())

    plain("net_layers.0.linear.weight", (n, d_in))
    plain("net_layers.0.linear.bias", (n,))
    for i in range(1, n_layers):
        for part in ("linear_1", "linear_2") if is_residual else ("linear",):
            centroids = rng.standard_normal(2**bits).astype(np.float32)
            indices = rng.integers(0, 2**bits, n * n)
            digits = "".join(format(index, f"0{bits}b") for index in indices)
            out += centroids.astype("<f4").tobytes()
            out.extend(int(digits[at : at + 8], 2) for at in range(0, len(digits), 8))
            if bits % 8:
                out += int(indices[-1]).to_bytes(4, "little")
            state[f"net_layers.{i}.{part}.weight"] = centroids[indices].reshape(n, n)
            plain(f"net_layers.{i}.{part}.bias", (n,))
    plain(f"net_layers.{n_layers}.weight", (d_out, n))
    plain(f"net_layers.{n_layers}.bias", (d_out,))
    return bytes(out), state
