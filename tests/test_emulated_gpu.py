"""What an emulated GPU refuses, and what only it can tell: it is exact, so equal work gives equal bits."""

from __future__ import annotations

import contextlib

import numpy as np
import pytest
import torch
from helpers.emulated_gpu import VERSIONS, emulated_gpu
from helpers.scripts import train

from training import streaming
from training.replay import Replay

pytestmark = [
    pytest.mark.skipif(not torch.__version__.startswith(VERSIONS), reason="needs another version of torch"),
    # Triton would start its kernels on the real one.
    pytest.mark.skipif(torch.cuda.is_available(), reason="there is a real GPU"),
]


@pytest.fixture(autouse=True)
def device(monkeypatch):
    monkeypatch.setattr(Replay, "is_possible", True)
    with emulated_gpu():
        yield torch.device("cuda", 0)


def test_it_says_where_a_tensor_is_and_computes_there(device):
    there = torch.arange(6.0, device=device).view(2, 3)
    there[1:] += torch.ones(3).to(device)
    assert there.device == (there * 2).device == device and there.is_cuda
    assert (there @ there.mT).cpu().tolist() == [[5.0, 17.0], [17.0, 77.0]]


@pytest.mark.parametrize(
    "refused",
    [
        lambda there, here: there + here,
        lambda there, here: torch.stack([there, here]),
        lambda there, here: there[0] @ here[0],
        lambda there, here: there.numpy(),
        lambda there, here: torch.randperm(3, generator=torch.Generator(), device=there.device),
        lambda there, here: torch.rand(3, generator=torch.Generator(there.device)),
    ],
)
def test_it_refuses_what_a_gpu_refuses(refused, device):
    with pytest.raises((RuntimeError, TypeError), match=r"CPU|cuda|device"):
        refused(torch.ones(2, 2, device=device), torch.ones(2, 2))


def captured(work) -> torch.cuda.CUDAGraph:
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, None, None):
        work()
    return graph


@pytest.mark.parametrize(
    "refused",
    [
        lambda there: there.sum().item(),
        lambda there: there[there > 0],
        lambda there: there.nonzero(),
        lambda there: there.cpu(),
        lambda there: there.copy_(torch.ones(2, 2)),
        lambda there: there.mul_(torch.tensor(2.0)),
        lambda there: there.repeat_interleave(torch.ones(2, dtype=torch.int64, device=there.device), 0),
        lambda there: torch.rand(2, generator=torch.Generator(there.device), device=there.device),
    ],
)
def test_a_capture_refuses_what_waits_or_passes_between_devices(refused, device):
    there = torch.ones(2, 2, device=device)
    refused(there)
    with pytest.raises(RuntimeError, match="capturing"):
        captured(lambda: refused(there))
    refused(there)  # nothing captures any more


def test_a_graph_computes_nothing_until_it_is_replayed(device):
    total, added = torch.zeros(3, device=device), torch.ones(3, device=device)

    def work() -> None:
        total[1:].add_(2 * added[:2])
        added.mul_(3)

    graph = captured(work)
    assert total.tolist() == [0.0] * 3 and added.tolist() == [1.0] * 3
    graph.replay()
    added.fill_(10.0)
    graph.replay()
    assert total.tolist() == [0.0, 22.0, 22.0] and added.tolist() == [30.0] * 3


@contextlib.contextmanager
def no_graph(*arguments):
    raise RuntimeError("no graphs here")
    yield


@pytest.mark.parametrize("flags", [(), ("--bricks", "1,2,1"), ("--optimizer", "adam", "--schedule", "step")])
@pytest.mark.parametrize("is_missing", [False, True])
def test_graphs_do_what_the_steps_do(flags, is_missing, volume, tmp_path, monkeypatch):
    """Also where networks share a stack, and where voxels are missing: no number of the first step is kept."""
    volume[:2, 3] = np.nan if is_missing else volume[:2, 3]
    np.save(tmp_path / "volume.npy", volume)
    flags = ("--cuda", "--n_passes", 12, "--batchSize", 64, *flags, *(["--fill", "nan"] if is_missing else []))
    found = train(tmp_path / "volume.npy", tmp_path, *flags).data
    monkeypatch.setattr(torch.cuda, "graph", no_graph)
    assert train(tmp_path / "volume.npy", tmp_path, *flags).data == found


def test_a_volume_larger_than_the_memory_stays_on_the_host(volume_file, tmp_path):
    with emulated_gpu(memory=1000):
        assert train(volume_file, tmp_path, "--cuda", "--n_passes", 3).settings["psnr"] > 0


def test_a_streamed_volume_trains_there(volume_file, tmp_path, monkeypatch):
    monkeypatch.setattr(streaming, "MAX_VOXELS_IN_MEMORY", 100)
    for flags in ((), ("--grad_lambda", 0.01)):
        assert train(volume_file, tmp_path, "--cuda", "--n_passes", 3, *flags).settings["psnr"] > 0
