"""What looks like labels, and what does not."""

from __future__ import annotations

import numpy as np
import pytest
from helpers.scripts import train
from helpers.volumes import slanted

from training.label_maps import PIECE_VOXELS, look_like_labels
from utils import is_missing

N = 28
POSITIONS = np.stack(np.meshgrid(*[np.linspace(-1, 1, N)] * 3, indexing="ij"), axis=-1)
SQUARES = (POSITIONS**2).sum(axis=-1)


def regions(n: int) -> np.ndarray:
    """Labels 1 to n of the regions that are nearest to random points, int16."""
    points = np.random.default_rng(n).uniform(-1, 1, (n, 3))
    return 1 + np.argmin([((POSITIONS - point) ** 2).sum(axis=-1) for point in points], axis=0).astype(np.int16)


@pytest.mark.parametrize("dtype", ["int16", "float32", "uint64"])
@pytest.mark.parametrize("n", [20, 40])
def test_regions_look_like_labels(n, dtype):
    """Also in a ball of them, before a background, which may be missing."""
    array = regions(n).astype(dtype)[..., None]
    ball = np.where(SQUARES[..., None] < 0.8, array, 0).astype(dtype)
    assert look_like_labels(array, None) and look_like_labels(ball, None) and look_like_labels(ball, ball.dtype.type(0))
    assert look_like_labels(array.reshape(N, N * N, 1, 1), None)  # an image
    assert look_like_labels(np.stack([array, array]), None)  # a series
    if dtype == "float32":
        ball[ball == 0] = np.nan
        assert look_like_labels(ball, np.float32(np.nan))


def test_a_piece_of_a_large_chunk_is_enough(monkeypatch):
    """Chunks are read whole, but pairs of all of their voxels would take gigabytes."""
    seen = []
    monkeypatch.setattr(
        "training.label_maps.is_missing", lambda pairs, fill: seen.append(len(pairs)) or is_missing(pairs, fill)
    )

    class Chunked(np.ndarray):
        chunks = (2 * N, 2 * N, 2 * N, 1)

        def __getitem__(self, box):
            return np.asarray(self)[box]

    array = regions(40)[..., None].repeat(2, 0).repeat(2, 1).repeat(2, 2).view(Chunked)
    assert look_like_labels(array, None)
    assert len(seen) == 1 and seen[0] <= PIECE_VOXELS


def noise(high: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, high, (N, N, N))


OTHERS = {
    "mask": np.where(SQUARES < 0.5, 255, 0).astype(np.uint8),
    "few": regions(8),
    "smooth": np.rint(255 * np.exp(-3 * SQUARES)).astype(np.uint8),
    "levels": np.rint(20 * np.exp(-3 * SQUARES)).astype(np.float32),
    "scan": np.where(SQUARES < 0.5, noise(200), 0).astype(np.uint8),
    "saturated": np.clip(3 * noise(200), 100, 300),
    "sparse": np.where(noise(100) == 0, noise(250), 0),
    "plane": slanted((N, N, N)),
    "float": regions(40) + 0.5,
    "constant": np.full((N, N, N), 3),
    "line": np.arange(20).reshape(20, 1, 1),
    "wide": (noise(200)[::2, ::2, ::2]).repeat(2, 0).repeat(2, 1).repeat(2, 2),
}


@pytest.mark.parametrize("what", OTHERS)
def test_other_volumes_do_not(what):
    assert not look_like_labels(OTHERS[what][..., None], None)


def test_vectors_do_not():
    assert not look_like_labels(np.repeat(regions(40)[..., None], 3, axis=-1), None)


def test_train_warns_of_labels(tmp_path, capsys):
    for name, array in (("labels", regions(40)), ("mask", (SQUARES < 0.5).astype(np.uint8))):
        np.save(tmp_path / f"{name}.npy", array)
        train(tmp_path / f"{name}.npy", tmp_path, "--n_passes", 1)
        warnings = capsys.readouterr().err.count(f"{name}.npy: its values look like labels")
        assert warnings == (name == "labels")
