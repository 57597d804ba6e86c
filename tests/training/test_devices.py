from __future__ import annotations

import sys
from types import SimpleNamespace

import pytest
import torch

import training
from training import unfused
from training.devices import check_kernels, kernels_for


@pytest.mark.parametrize("name", ["sines", "slopes", "loss"])
def test_kernels_that_compute_something_else_are_not_taken(name):
    right = getattr(unfused, name)

    def wrong(*given) -> tuple:
        first, *others = right(*given)
        return first * 1.1, *others

    check_kernels(unfused, torch.device("cpu"))
    kernels = SimpleNamespace(
        **{other: getattr(unfused, other) for other in ("sines", "slopes", "loss")} | {name: wrong}
    )
    with pytest.raises(ValueError):
        check_kernels(kernels, torch.device("cpu"))


def test_without_triton_a_line_says_so(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "triton", None)
    monkeypatch.delitem(sys.modules, "training.fused", raising=False)
    monkeypatch.delattr(training, "fused", raising=False)
    assert kernels_for(torch.device("cpu")) is unfused
    assert capsys.readouterr().err == ""
    for _ in range(3):
        assert kernels_for(torch.device("cuda", 0)) is unfused
        kernels_for.cache_clear()
    assert capsys.readouterr().err.count("\n") == 1
