"""Fixtures, and where the modules under test are."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
os.environ["OMP_NUM_THREADS"] = "1"  # for the scripts started as subprocesses too

import torch  # noqa: E402
from helpers import SHAPE, WELL, compress, slanted, train  # noqa: E402
from hypothesis import settings  # noqa: E402

settings.register_profile("suite", deadline=None, derandomize=True, print_blob=True, database=None)
settings.load_profile("suite")


@pytest.fixture(autouse=True)
def one_thread():
    """Every test starts, and leaves the next, with one CPU thread."""
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(1)


@pytest.fixture
def volume() -> np.ndarray:
    """A float32 field with three different sizes and another slope along each axis; see `slanted`."""
    return slanted(SHAPE)


@pytest.fixture
def volume_file(tmp_path: Path, volume: np.ndarray) -> Path:
    """`volume` as a .npy file."""
    path = tmp_path / "volume.npy"
    np.save(path, volume)
    return path


@pytest.fixture
def data() -> Path:
    """The folder of the files that the original scripts wrote."""
    return Path(__file__).resolve().parent / "data"


@pytest.fixture(scope="session")
def chain(tmp_path_factory):
    """A trained network and its blob, not to be changed."""
    folder = tmp_path_factory.mktemp("chain")
    np.save(folder / "volume.npy", slanted((9, 7, 5)))
    trained = train(folder / "volume.npy", folder, *WELL)
    compress(trained, folder / "blob", "--cluster_bits", 12)
    trained.folder, trained.blob, trained.volume = folder, folder / "blob", folder / "volume.npy"
    return trained
