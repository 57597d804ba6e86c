"""What runs on a CUDA GPU: the same network as on the CPU, the same bytes again. Needs neither VTK nor pytest-xdist."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from helpers.cut_fields import random_bricks
from helpers.networks import field_net, make_header
from helpers.scripts import WELL, compress, decompress, train
from helpers.steep import RANGES, steep_cut_field, steep_field

import train as train_script
from field.neural_field import NeuralField
from training import long_runs

pytestmark = pytest.mark.gpu
CUDA = "cuda"


# --- the network ------------------------------------------------------------------------------------


@pytest.mark.parametrize("is_residual", [True, False])
def test_a_field_is_that_of_the_cpu(is_residual):
    net, shape = field_net(d_out=2, is_residual=is_residual), (30, 20, 10)
    here, there = (NeuralField.of(net, make_header(shape, d_out=2), device) for device in ("cpu", CUDA))
    np.testing.assert_allclose(there.on_grid(), here.on_grid(), rtol=0, atol=2e-6)
    slopes, found = here.gradient_on_grid(), there.gradient_on_grid()
    is_free = (np.abs(slopes) > 0) & (np.abs(found) > 0)  # a value at the end of the range is clipped, or not
    assert is_free.mean() > 0.2
    np.testing.assert_allclose(found[is_free], slopes[is_free], rtol=0, atol=1e-4)


@pytest.mark.parametrize("dtype", RANGES)
def test_integers_are_those_of_the_cpu(dtype):
    here, there = (steep_field(dtype, device=device) for device in ("cpu", CUDA))
    np.testing.assert_array_equal(there.on_grid(), here.on_grid())


def test_a_field_in_bricks_is_that_of_the_cpu():
    bricks, header = random_bricks((30, 20, 10), (3, 2, 1), d_out=2, constant=(1,)), make_header((30, 20, 10), d_out=2)
    here, there = (NeuralField(header, bricks, device) for device in ("cpu", CUDA))
    np.testing.assert_allclose(there.on_grid(), here.on_grid(), rtol=0, atol=2e-6)
    np.testing.assert_allclose(there.gradient_on_grid(), here.gradient_on_grid(), rtol=0, atol=1e-4)
    for dtype in RANGES:
        here, there = (steep_cut_field(dtype, device=device) for device in ("cpu", CUDA))
        np.testing.assert_array_equal(there.on_grid(), here.on_grid())


def test_few_positions_are_few_for_a_gpu(monkeypatch):
    """A whole chunk of a GPU, 2^18 positions, for each box of a large volume would take minutes."""
    field, sizes, matmul = steep_field("uint8", device=CUDA), [], torch.matmul
    monkeypatch.setattr(torch, "matmul", lambda a, b, **more: sizes.append(b.shape[-1]) or matmul(a, b, **more))
    n = field.on_grid().size
    assert 0 < max(sizes) < n + 64
    assert field.at(np.empty((0, 3))).shape == (0,)


# --- the scripts ------------------------------------------------------------------------------------


def test_train_round_and_decode(volume_file, tmp_path):
    """A network trained there needs no GPU afterwards, and decodes to the same on either."""
    trained = train(volume_file, tmp_path, "--cuda", *WELL, "--n_layers", 2)
    assert trained.settings["psnr"] > 25 and trained.settings["is_cuda"] is False
    assert all(t.device.type == "cpu" for t in torch.load(trained.network, weights_only=True).values())
    for flags in ((), ("--volume", volume_file, "--n_passes", 2, "--cuda")):
        compress(trained, tmp_path / "blob", "--cluster_bits", 12, *flags)
        there = decompress(tmp_path / "blob", tmp_path / "gpu.npy", "--cuda", "--gid", 0)
        here = decompress(tmp_path / "blob", tmp_path / "cpu.npy")
        np.testing.assert_allclose(there, here, rtol=0, atol=1e-3 * 40)


@pytest.mark.parametrize("flags", [(), ("--grad_lambda", 0.01)])
def test_same_seed_same_bytes(volume_file, tmp_path, flags):
    first = train(volume_file, tmp_path, "--cuda", *flags).data
    assert train(volume_file, tmp_path, "--cuda", *flags).data == first
    assert train(volume_file, tmp_path, "--cuda", *flags, "--seed", 1).data != first


def test_a_checkpoint_from_half_way_continues_to_the_same_result(volume_file, tmp_path, monkeypatch):
    flags = ("--cuda", "--n_passes", 9, "--batchSize", 16, "--oversample", 1)
    whole = train(volume_file, tmp_path, *flags).data
    save, saved = long_runs.Checkpoint.save, []

    def save_once(checkpoint, fit) -> None:
        if fit.progress >= 0.5 and not saved:
            saved.append(fit.step)
            save(checkpoint, fit)

    monkeypatch.setattr(long_runs, "CHECKPOINT_SECONDS", -1.0)
    monkeypatch.setattr(long_runs.Checkpoint, "save", save_once)
    flags += ("--checkpoint", tmp_path / "checkpoint")
    train(volume_file, tmp_path, *flags)
    assert saved == [90]
    steps, run = [], train_script.run_fit
    monkeypatch.setattr(train_script, "run_fit", lambda fit, *more: steps.append(fit.step) or run(fit, *more))
    assert train(volume_file, tmp_path, *flags, "--resume").data == whole
    assert steps == saved
