from __future__ import annotations

import pytest

from training import devices
from training.replay import Replay


@pytest.fixture(autouse=True)
def nothing_said_yet(monkeypatch):
    monkeypatch.setattr(Replay, "is_possible", True)
    devices._warn.cache_clear()
    devices.kernels_for.cache_clear()
    yield
    devices.kernels_for.cache_clear()
