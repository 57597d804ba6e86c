"""net_compress.py: what its rounding costs and gains, on stored networks; every flag of it acts."""

from __future__ import annotations

import json
import re
from unittest.mock import Mock

import numpy as np
import pytest
from helpers.scripts import compress, decompress, results, train

import net_coder
import net_compress
import quantise

QUANTIZERS = ("uniform", "kmeans")


def test_cluster_bits(chain, tmp_path):
    sizes = [len(compress(chain, tmp_path / "blob", "--cluster_bits", bits)) for bits in (1, 4, 8, 12)]
    assert sizes == sorted(set(sizes))


def test_default_rounding_costs_a_tenth_of_a_decibel(tmp_path):
    """Without --cluster_bits the steps follow from the PSNR in the configuration: 2 % more squared error."""
    volume = np.sin(np.indices((20, 16, 12)) / 3).sum(0).astype(np.float32)
    volume += np.float32(0.02) * np.random.default_rng(0).standard_normal(volume.shape, np.float32)
    np.save(tmp_path / "v.npy", volume)
    trained = train(tmp_path / "v.npy", tmp_path, "--n_layers", 4, "--n_passes", 200)
    compress(trained, tmp_path / "blob")
    decoded = decompress(tmp_path / "blob", tmp_path / "r.npy")
    rmse = float(np.sqrt(np.square(decoded.astype(float) - volume).mean()))
    psnr = 20 * np.log10(float(volume.max() - volume.min()) / rmse)
    assert trained.settings["psnr"] - 0.2 < psnr < trained.settings["psnr"] + 0.05


def test_only_with_the_volume_are_errors_of_a_large_network_carried_over(chain, tmp_path, monkeypatch):
    carried_over = Mock(wraps=quantise.round_in_turn)
    monkeypatch.setattr(quantise, "round_in_turn", carried_over)
    with_volume = ("--volume", chain.volume, "--n_passes", 3)
    small = compress(chain, tmp_path / "b")
    assert carried_over.called
    monkeypatch.setattr(net_compress, "MAX_COMPENSATED", 100)
    carried_over.reset_mock()
    large = compress(chain, tmp_path / "b")
    assert not carried_over.called and large != small
    compress(chain, tmp_path / "b", *with_volume)
    assert carried_over.called
    assert compress(chain, tmp_path / "b", "--cluster_bits", 8, *with_volume) != large


@pytest.mark.parametrize("with_volume", [False, True])
def test_integers_that_come_back_exactly_do_so_from_a_small_file(with_volume, tmp_path):
    """As coarsely as that allows, whatever the PSNR of the values before that, which may be infinite."""
    volume = (np.sin(np.indices((20, 16, 12)) / 4).sum(0) > 0).astype(np.uint8)
    np.save(tmp_path / "v.npy", volume)
    flags = ("--n_layers", 4, "--n_passes", 150, "--compression_ratio", 2, "--oversample", 2)
    trained = train(tmp_path / "v.npy", tmp_path, *flags)
    assert trained.settings["psnr"] is None and trained.settings["psnr_unrounded"] > 50
    assert trained.settings["is_exact"] is True
    given = ("--volume", tmp_path / "v.npy") if with_volume else ()
    sizes = [len(compress(trained, tmp_path / "blob", *given, *bits)) for bits in (("--cluster_bits", 9), ())]
    np.testing.assert_array_equal(decompress(tmp_path / "blob", tmp_path / "r.npy"), volume)
    assert sizes[1] < 0.6 * sizes[0]


def test_large_integers_are_not_taken_for_exact(tmp_path):
    """Whose differences float64, in which values are before they are rounded, does not hold."""
    volume = np.rint(100 * np.sin(np.indices((20, 16, 12)) / 4).sum(0)).astype(np.int64)
    sizes = []
    for offset in (0, 2**62):
        np.save(tmp_path / "v.npy", volume + offset)
        trained = train(tmp_path / "v.npy", tmp_path, "--n_layers", 4, "--n_passes", 20)
        assert trained.settings["is_exact"] is False and trained.settings["psnr"] < 70
        sizes.append(len(compress(trained, tmp_path / "blob")))
    assert sizes[1] == pytest.approx(sizes[0], rel=0.05)


def test_integers_that_rounding_would_change_are_rounded_by_the_psnr(tmp_path, monkeypatch):
    np.save(tmp_path / "v.npy", (np.sin(np.indices((20, 16, 12)) / 4).sum(0) > 0).astype(np.uint8))
    trained = train(tmp_path / "v.npy", tmp_path, "--n_layers", 4, "--n_passes", 20)
    monkeypatch.setattr(net_compress, "MAX_HALVINGS", 1)
    found = compress(trained, tmp_path / "blob")
    trained.config.write_text(json.dumps({**trained.settings, "is_exact": None}))
    assert compress(trained, tmp_path / "blob") == found


def test_quantizer(chain, tmp_path):
    """Codebooks hold at most 2^bits values a matrix, as the original's do; both kinds decode."""
    uniform, kmeans = (compress(chain, tmp_path / "blob", "--cluster_bits", 4, "--quantizer", q) for q in QUANTIZERS)
    assert uniform == compress(chain, tmp_path / "blob", "--cluster_bits", 4) != kmeans
    tensors = net_coder.decode(kmeans)[1][0][1]
    for name in ("net_layers.1.linear_1.weight", "net_layers.1.linear_2.weight"):
        assert 8 < len(np.unique(tensors[name])) <= 16
        weights = chain.state[name].numpy()
        assert np.abs(tensors[name] - weights).mean() < 0.08 * np.abs(weights).max()


def test_training_while_rounding(tmp_path, capsys):
    """With --volume the same steps decode to a better volume; without passes to the same one as without it."""
    volume = np.sin(np.indices((20, 16, 12)) / 3).sum(0).astype(np.float32)
    np.save(tmp_path / "v.npy", volume)
    trained = train(tmp_path / "v.npy", tmp_path, "--n_layers", 3, "--n_passes", 100)
    capsys.readouterr()
    flags = ("--cluster_bits", 6)
    plain = compress(trained, tmp_path / "b", *flags)
    assert compress(trained, tmp_path / "b", *flags, "--volume", tmp_path / "v.npy", "--n_passes", 0) == plain
    rounded = float(results(capsys.readouterr().out)["psnr"])
    blobs = [
        compress(trained, tmp_path / "b", *flags, "--volume", tmp_path / "v.npy", "--n_passes", 300, "--seed", seed)
        for seed in (0, 0, 1)
    ]
    assert float(results(capsys.readouterr().out)["psnr"]) > rounded + 3
    assert blobs[0] == blobs[1] != blobs[2]


def test_rounding_that_costs_too_much_is_done_again_with_finer_steps(tmp_path, capsys):
    """So short a training while rounding does more harm than good; without it the loss is small."""
    volume = np.sin(np.indices((30, 24, 20)) / 3).sum(0).astype(np.float32)
    np.save(tmp_path / "v.npy", volume)
    trained = train(tmp_path / "v.npy", tmp_path, "--n_layers", 4, "--n_passes", 8)
    capsys.readouterr()
    compress(trained, tmp_path / "b", "--volume", tmp_path / "v.npy", "--n_passes", 0.2)
    said = capsys.readouterr()
    cost = re.findall(r"rounding with training has cost (\S+) dB: again (.*)", said.err)
    assert [how for _, how in cost] == ["with finer steps", "without training"]
    assert min(float(lost) for lost, _ in cost) > 2
    assert float(results(said.out)["psnr"]) > trained.settings["psnr"] - 2


def test_what_rounding_costs_anyway_is_never_too_much(tmp_path, capsys):
    """Of a network no better than a constant there is no quarter to lose."""
    np.save(tmp_path / "v.npy", np.random.default_rng(0).normal(size=(12, 12, 12)).astype(np.float32))
    trained = train(tmp_path / "v.npy", tmp_path, "--n_layers", 2, "--n_passes", 30, "--lr", 1e-4, "--batchSize", 2048)
    capsys.readouterr()
    compress(trained, tmp_path / "b", "--volume", tmp_path / "v.npy", "--n_passes", 1)
    assert "has cost 0.0 dB" not in capsys.readouterr().err


def test_training_while_rounding_never_does_harm_at_given_bits(tmp_path, capsys):
    """The steps are given: what so short a training makes worse than rounding alone is rounded alone."""
    volume = np.sin(np.indices((30, 24, 20)) / 3).sum(0).astype(np.float32)
    np.save(tmp_path / "v.npy", volume)
    trained = train(tmp_path / "v.npy", tmp_path, "--n_layers", 4, "--n_passes", 8)
    alone = compress(trained, tmp_path / "b", "--cluster_bits", 9)
    capsys.readouterr()
    flags = ("--cluster_bits", 9, "--volume", tmp_path / "v.npy", "--n_passes", 0.2)
    assert compress(trained, tmp_path / "b", *flags) == alone
    assert re.search(r"rounding with training has cost \S+ dB: again without training", capsys.readouterr().err)
