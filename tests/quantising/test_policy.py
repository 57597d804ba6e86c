"""net_compress.py: what its rounding costs and gains, on stored networks; every flag of it acts."""

from __future__ import annotations

import dataclasses
import json
import math
import re
from unittest.mock import MagicMock, Mock

import numpy as np
import pytest
import torch
from helpers.networks import chunks_of, decode_blob, field_net, make_header
from helpers.scripts import compress, decompress, results, stored, train
from helpers.volumes import labels, large_integers, noise, noisy_waves, psnr_of, waves

import net_compress
from cli.progress import NoProgress, Progress
from field.neural_field import NeuralField
from formats.stored import StoredArray
from quantising import doubling, network, policy, rounding, work
from quantising.network import NetworkRounding
from quantising.policy import Part, RoundingOptions
from training.recipe import error_of
from utils import Geometry, Mask, Volume

QUANTIZERS = ("uniform", "kmeans")
SMALL, LARGER = (20, 16, 12), (30, 24, 20)


def network_of(name: str, volume: np.ndarray, folder):
    """A stored network, and its volume as `volume` of it."""
    trained = stored(name, folder)
    trained.volume = folder / "v.npy"
    np.save(trained.volume, volume)
    return trained


def test_cluster_bits(tmp_path, small_blocks):
    trained = stored("waves", tmp_path)
    sizes = [len(compress(trained, tmp_path / "blob", "--cluster_bits", bits)) for bits in (1, 4, 8, 12)]
    assert sizes == sorted(set(sizes))


def test_the_steps_follow_from_the_quality(tmp_path, small_blocks):
    """That in the configuration: rounding adds 5 % to the squared error, a fifth of a decibel.

    A network of unknown quality is rounded to 9 bits, as is one without any error. Older configurations have null for
    both.
    """
    volume = noisy_waves(SMALL)
    trained = network_of("noisy_waves", volume, tmp_path)
    nine, ten = (compress(trained, tmp_path / "blob", "--cluster_bits", bits) for bits in (9, 10))
    for quality in ({}, {"psnr": 20.0, "psnr_clipped": 49.0}, {"psnr": "inf", "psnr_unrounded": 49}):
        trained.config.write_text(json.dumps(trained.settings | quality))
        blob = compress(trained, tmp_path / "blob")
        psnr = psnr_of(volume, decompress(tmp_path / "blob", tmp_path / "r.npy"))
        assert psnr > trained.settings["psnr"] - 0.3
        assert len(blob) < len(ten) and blob != nine, quality  # no finer than that takes
    for unknown in (None, "inf", "nan", True, -3):
        trained.config.write_text(json.dumps(trained.settings | {"psnr": unknown}))
        assert compress(trained, tmp_path / "blob") == nine, unknown


def test_only_with_the_volume_are_errors_of_a_large_network_carried_over(tmp_path, monkeypatch, small_blocks):
    trained = network_of("waves", waves(SMALL), tmp_path)
    carried_over = Mock(wraps=rounding.round_layer_by_layer)
    monkeypatch.setattr(rounding, "round_layer_by_layer", carried_over)
    with_volume = ("--volume", trained.volume, "--n_passes", 3)
    small = compress(trained, tmp_path / "b")
    assert carried_over.called
    monkeypatch.setattr(network, "MAX_COMPENSATED", 100)
    carried_over.reset_mock()
    large = compress(trained, tmp_path / "b")
    assert not carried_over.called and large != small
    compress(trained, tmp_path / "b", *with_volume)
    assert carried_over.called
    assert compress(trained, tmp_path / "b", "--cluster_bits", 8, *with_volume) != large


def test_integers_that_come_back_exactly_do_so_from_a_small_file(tmp_path, monkeypatch, capsys, small_blocks):
    """As coarsely as that allows, whatever the PSNR of the values before that, which may be infinite; a loss is told.

    Without such a rounding, or such a network, the steps follow from that PSNR.
    """
    monkeypatch.setattr("utils.BOX_VALUES", 500)  # voxels compared at a time
    volume = labels(SMALL)
    trained = network_of("labels_exact", volume, tmp_path)
    assert trained.settings["is_exact"] is True
    nine = compress(trained, tmp_path / "blob", "--cluster_bits", 9)
    for given in (("--volume", trained.volume), ()):
        exact = compress(trained, tmp_path / "blob", *given)
        np.testing.assert_array_equal(decompress(tmp_path / "blob", tmp_path / "r.npy"), volume)
        assert len(exact) < 0.75 * len(nine)
    assert "rounding has cost about" not in capsys.readouterr().err
    compress(trained, tmp_path / "blob", "--cluster_bits", 2)
    assert "rounding has cost about" in capsys.readouterr().err
    with monkeypatch.context() as patched:
        patched.setattr(policy, "MAX_HALVINGS", 1)  # no rounding so coarse leaves them as they are
        found = compress(trained, tmp_path / "blob")
    trained.config.write_text(json.dumps({**trained.settings, "is_exact": None}))
    assert compress(trained, tmp_path / "blob") == found != exact


@pytest.mark.skipif(np.finfo(np.longdouble).nmant <= 52, reason="long double is float64 here")
@pytest.mark.parametrize("factor", [1, 10])
def test_large_integers_are_measured_as_integers(tmp_path, factor):
    """float64, in which values are before they are rounded, does not hold their differences, or only the largest."""
    settings = train(2**62 + factor * (large_integers((9, 7, 5)) - 2**62), tmp_path).settings
    assert settings["is_exact"] is False and settings["psnr_unrounded"] == settings["psnr"] < 70


def test_large_integers_are_rounded_like_small_ones(tmp_path, small_blocks):
    """By the PSNR after they are rounded, that in the configuration or that of the volume; without one it is 9 bits."""
    trained = network_of("large_integers", large_integers(SMALL), tmp_path)
    settings = trained.settings
    assert settings["psnr_unrounded"] == "inf"
    large = compress(trained, tmp_path / "blob")
    measured = compress(trained, tmp_path / "blob", "--volume", trained.volume, "--n_passes", 0)
    nine = compress(trained, tmp_path / "blob", "--cluster_bits", 9)
    pairs = [[end - 2**62 for end in pair] for pair in settings["value_range"]]
    alike = {"value_range": pairs, "psnr_unrounded": settings["psnr"]}
    trained.config.write_text(json.dumps(settings | alike))
    small = compress(trained, tmp_path / "blob")
    assert len(large) == pytest.approx(len(small), abs=20) and nine not in (large, measured)
    assert len(measured) == pytest.approx(len(small), rel=0.45)  # found: -6 % to +30 %, for weights moved a little


def test_quantizer(tmp_path, small_blocks):
    """Codebooks hold at most 2^bits values a matrix, as the original's do; both kinds decode."""
    trained = stored("waves", tmp_path)
    uniform, kmeans = (compress(trained, tmp_path / "blob", "--cluster_bits", 4, "--quantizer", q) for q in QUANTIZERS)
    assert uniform == compress(trained, tmp_path / "blob", "--cluster_bits", 4) != kmeans
    assert [chunks_of(blob)[-1][0] for blob in (uniform, kmeans)] == [b"T", b"N"]  # only these have codebooks
    tensors = decode_blob(kmeans)[1][0][1]
    for name in ("net_layers.1.linear_1.weight", "net_layers.1.linear_2.weight"):
        assert 8 < len(np.unique(tensors[name])) <= 16
        found, weights = (np.sort(np.abs(array), axis=None) for array in (tensors[name], trained.state[name].numpy()))
        assert np.abs(found - weights).mean() < 0.08 * weights.max()  # the file has an order of its own


def test_training_while_rounding(tmp_path, capsys, small_blocks):
    """With --volume the same steps decode to a better volume; without passes to the same one as without it."""
    trained = network_of("waves", waves(SMALL), tmp_path)
    flags = ("--cluster_bits", 6)
    plain = compress(trained, tmp_path / "b", *flags)
    without_passes = compress(trained, tmp_path / "b", *flags, "--volume", trained.volume, "--n_passes", 0)
    assert dict(chunks_of(without_passes))[b"T"] == dict(chunks_of(plain))[b"T"]
    rounded = float(results(capsys.readouterr().out)["psnr"])
    compress(trained, tmp_path / "b", *flags, "--volume", trained.volume, "--n_passes", 100)
    assert float(results(capsys.readouterr().out)["psnr"]) > rounded + 1
    briefly = (*flags, "--volume", trained.volume, "--n_passes", 5, "--seed")
    blobs = [compress(trained, tmp_path / "b", *briefly, seed) for seed in (0, 0, 1)]
    assert blobs[0] == blobs[1] != blobs[2]


def test_rounding_that_costs_too_much_is_done_again_with_finer_steps(tmp_path, capsys, small_blocks):
    """So short a training while rounding does more harm than good; without it the loss is small."""
    trained = network_of("waves_briefly", waves(LARGER), tmp_path)
    compress(trained, tmp_path / "b", "--volume", trained.volume, "--n_passes", 0.2)
    said = capsys.readouterr()
    cost = re.findall(r"rounding with training has cost (\S+) dB: again (.*)", said.err)
    assert [how for _, how in cost] == ["with finer steps", "without training"]
    assert min(float(lost) for lost, _ in cost) > 2
    assert float(results(said.out)["psnr"]) > trained.settings["psnr"] - 2


@pytest.mark.parametrize(("psnr", "most_lost"), [(10.0, 0.2), (17.0, 0.2), (20.7, 1.0), (24.3, 1.9), (60.0, 2.0)])
@pytest.mark.parametrize("beyond", [-0.05, 0.05])
def test_how_much_rounding_with_training_may_cost(tmp_path, capsys, monkeypatch, psnr, most_lost, beyond, small_blocks):
    """2 dB, at most a quarter of what the network is better than a constant, which has 16.7 dB here, and always 0.2."""
    trained = network_of("noise", noise((12, 12, 12)), tmp_path)
    found = iter([psnr, psnr - most_lost - beyond, psnr])
    monkeypatch.setattr(NetworkRounding, "_measured_psnr", lambda *_, **__: next(found))
    monkeypatch.setattr(rounding, "round_and_train", lambda net, field, steps, *_: rounding.round_layers(net, steps))
    compress(trained, tmp_path / "b", "--volume", trained.volume)
    assert ("again with finer steps" in capsys.readouterr().err) == (beyond > 0)


@pytest.mark.parametrize(("alone", "is_trained"), [(35.9, True), (36.1, False)])
def test_what_loses_hardly_more_than_rounding_alone_is_kept(
    tmp_path, capsys, monkeypatch, alone, is_trained, small_blocks
):
    """Its file is smaller. Both tries have lost more than the limit."""
    trained = network_of("waves", waves(SMALL), tmp_path)
    found = iter([40.0, 30.0, 35.0, alone])
    monkeypatch.setattr(NetworkRounding, "_measured_psnr", lambda *_, **__: next(found))
    monkeypatch.setattr(rounding, "round_and_train", lambda net, field, steps, *_: rounding.zero_layers(net))
    blob = compress(trained, tmp_path / "b", "--volume", trained.volume)
    assert (not any(weights.any() for weights in decode_blob(blob)[1][0][1].values())) == is_trained
    assert ("with training after all" in capsys.readouterr().err) == is_trained


def test_the_less_a_larger_network_would_gain_the_less_error_rounding_adds(monkeypatch):
    """Of a network that gains little by its size, bytes are better spent on its weights."""

    def added(gain: float) -> float:
        monkeypatch.setattr(policy, "gain_of_doubling", lambda *_: gain)
        return policy.error_to_add(None, None, 40.0)

    assert added(1.0) < added(2.0) < added(4.0)
    assert {added(gain) for gain in (-3.0, 0.0)} == {policy.LEAST_ADDED}
    assert added(12.0) == added(math.inf) == policy.MOST_ADDED


def test_steps_follow_from_the_error_to_add(tmp_path, monkeypatch, small_blocks):
    trained, sizes = network_of("noisy_waves", noisy_waves(SMALL), tmp_path), []
    monkeypatch.setattr(NetworkRounding, "_measured_psnr", lambda *_, **__: 40.0)
    monkeypatch.setattr(rounding, "round_and_train", lambda net, field, steps, *_: rounding.round_layers(net, steps))
    for added in (0.4, 0.1):
        monkeypatch.setattr(policy, "error_to_add", lambda *_, added=added: added)
        sizes.append(len(compress(trained, tmp_path / "b", "--volume", trained.volume)))
    assert sizes[0] < sizes[1]


def test_a_volume_in_chunks_is_hardly_ever_decoded(monkeypatch):
    """Not for each block of `gain_of_doubling`: a chunk may be as large as the volume."""
    values, header = waves(SMALL), make_header(SMALL, low=-1.0)
    source = MagicMock(spec=["__getitem__"])
    source.__getitem__.side_effect = values.__getitem__
    array = StoredArray("a", source, values.dtype, np.copy, tuple(map(range, SMALL)), (0, 1, 2), SMALL)
    volume, options = Volume(array, Geometry.plain(3)), RoundingOptions(n_passes=0.1)
    monkeypatch.setattr(doubling, "BLOCK_VOXELS", 64)
    gain = Mock(wraps=doubling.gain_of_doubling)
    monkeypatch.setattr(policy, "gain_of_doubling", gain)
    rounding = NetworkRounding(options, field_net(), header, volume, torch.device("cpu"), NoProgress())
    rounding.layers(math.nan, False)
    assert gain.called and source.__getitem__.call_count < 9


@pytest.mark.parametrize(("bits", "is_copied"), [(None, True), (9, False)])
def test_a_volume_in_chunks_is_copied_only_where_blocks_of_it_are_read(bits, is_copied, monkeypatch):
    check_space = Mock()  # of the disk that takes the copy
    monkeypatch.setattr("training.streaming.check_space", check_space)
    values, options = waves(SMALL), RoundingOptions(bits, n_passes=0.1)
    array = StoredArray("a", values, values.dtype, np.copy, tuple(map(range, SMALL)), (0, 1, 2), (10, 8, 6))
    volume, header = Volume(array, Geometry.plain(3)), make_header(SMALL, low=-1.0)
    NetworkRounding(options, field_net(), header, volume, torch.device("cpu"), NoProgress()).layers(math.nan, False)
    assert check_space.called == is_copied


@pytest.mark.parametrize("flags", [(), ("--volume", "v.npy", "--n_passes", 2)])
def test_the_work_of_rounding_is_known_before(flags, tmp_path, monkeypatch):
    """So that one bar counts all of it, and the time left is true."""
    trained = network_of("waves", waves(SMALL), tmp_path)
    bars = []

    class Watched(Progress):
        def __exit__(self, *raised):
            bars.append((self.description, self.done / self.total))
            super().__exit__(*raised)

    monkeypatch.setattr(net_compress, "Progress", Watched)
    compress(trained, tmp_path / "b", *[trained.volume if flag == "v.npy" else flag for flag in flags])
    assert bars == [("rounding", pytest.approx(1, abs=0.1))]


def test_steps_that_are_taken_again_are_further_work():
    """Two layers are trained for 6 steps each. The first one goes back to its start after 4 of them."""
    progress, parts = NoProgress(), Mock(config=Mock(n_parameters=100), psnr=30.0)
    parts.recipe.batch, parts.trained.weights.numel.return_value = 8, 50
    progress.total = 12 * work.of_training(8, 100, 0.5)
    on_step = work.step_reporter(progress)
    for parts.step in (1, 2, 3, 0, 1, 2, 3, 4, 5, 6, 1, 2, 3, 4, 5, 6):
        assert progress.done < progress.total
        on_step(parts)
    assert progress.done == pytest.approx(progress.total) == 16 * work.of_training(8, 100, 0.5)


def test_a_step_of_training_is_less_work_where_layers_are_rounded():
    """Their gradient is not needed; their output is."""
    net = field_net(n_neurons=24, n_layers=5)
    none, half, all_layers = (work.of_training(1, net.config.n_parameters, trained) for trained in (0.0, 0.5, 1.0))
    assert none == pytest.approx(2 * half - all_layers) and 0.3 * all_layers < none < all_layers
    header, options = make_header((40, 40, 40)), RoundingOptions(n_passes=2)
    whole = NetworkRounding(options, net, header, None, torch.device("cpu"), NoProgress())
    parts = whole.training_work / header.n_voxels / 2
    assert none < parts < all_layers


@pytest.mark.parametrize("n_all", [None, 1 << 22])
def test_the_compensation_is_as_much_work_as_planned(n_all):
    """Also of one network among many, whose blocks are smaller."""
    net, progress = field_net(n_neurons=16, n_layers=3), NoProgress()
    progress.total, header, part = 0.0, make_header((9, 9, 9)), Part(n_all=n_all)
    rounding = NetworkRounding(RoundingOptions(), net, header, None, torch.device("cpu"), progress, part)
    rounding.layers(40.0, False)
    assert progress.total > 0 and progress.done == pytest.approx(progress.total)


def test_a_brick_without_errors_is_rounded_once():
    """As of a mask. It was rounded three times, with training at a rate of 0."""
    net, header, progress = field_net(n_neurons=8, n_layers=2), make_header((9, 8, 7), low=-1.0), NoProgress()
    with torch.no_grad():
        net.net_layers[-1].weight *= 1e6
    mask = NeuralField.of(net, header).on_grid()
    options, volume, part = RoundingOptions(n_passes=1.0), Volume(mask, Geometry.plain(3)), Part(1e-4, 0.1)
    rounding = NetworkRounding(options, net, header, volume, torch.device("cpu"), progress, part)
    assert rounding.layers(math.nan, False) and progress.n_said == 0


def test_training_while_rounding_never_does_harm_at_given_bits(tmp_path, capsys, small_blocks):
    """The steps are given: what so short a training makes worse than rounding alone is rounded alone."""
    trained = network_of("waves_briefly", waves(LARGER), tmp_path)
    alone = compress(trained, tmp_path / "b", "--cluster_bits", 15)
    capsys.readouterr()
    flags = ("--cluster_bits", 15, "--volume", trained.volume, "--n_passes", 0.2)
    again = compress(trained, tmp_path / "b", *flags)
    assert dict(chunks_of(again))[b"T"] == dict(chunks_of(alone))[b"T"]
    assert re.search(r"rounding with training is \S+ dB worse than without: it is left out", capsys.readouterr().err)


def test_weights_without_errors_are_not_trained_at_given_bits(monkeypatch):
    """As of a mask, when rounding alone changes none of its values. The learning rate would be 0."""
    monkeypatch.setattr(NetworkRounding, "_measured_psnr", lambda *_, **__: math.inf)
    training = Mock(wraps=rounding.round_and_train)
    monkeypatch.setattr(rounding, "round_and_train", training)
    net, header = field_net(n_neurons=8, n_layers=2), make_header(SMALL, low=-1.0)
    volume, options = Volume(waves(SMALL), Geometry.plain(3)), RoundingOptions(9, n_passes=1.0)
    layers = NetworkRounding(options, net, header, volume, torch.device("cpu"), NoProgress()).layers(math.nan, False)
    assert layers and not training.called


def test_a_brick_may_lose_what_steps_coarser_than_its_own_cost():
    own, limit = error_of(40.0), policy.MAX_DB_LOST
    assert policy.allowed_loss(30.0, 40.0, own, None) == limit
    for factor, more in ((0.1, 0.0), (1.0, 0.0), (4.0, 10 * math.log10(2.6 / 1.4))):
        assert policy.allowed_loss(30.0, 40.0, factor * own, 0.4) == pytest.approx(limit + more)


@pytest.mark.parametrize("fill", [math.nan, -999.0])
def test_what_rounding_costs_is_told_by_the_voxels_that_are_not_missing(fill):
    nets, shape = (field_net(), field_net()), (9, 7, 5)
    with torch.no_grad():
        nets[1].net_layers[-1].weight *= 1.01
    headers = [make_header(shape), make_header(shape)]
    mask = np.zeros(shape, bool)
    mask[2:] = True
    headers[1] = dataclasses.replace(headers[1], missing=Mask.of(shape, np.float32(fill), mask))
    whole, part = ([NeuralField.of(net, header) for net in nets] for header in headers)
    cost = policy.decibels_lost(*part, 30.0, False)
    assert 0.5 * policy.decibels_lost(*whole, 30.0, False) < cost < 2 * policy.decibels_lost(*whole, 30.0, False)
    mask[:] = True
    nothing = dataclasses.replace(headers[0], missing=Mask.of(shape, np.float32(fill), mask))
    assert math.isnan(policy.decibels_lost(*(NeuralField.of(net, nothing) for net in nets), 30.0, False))


@pytest.mark.skipif(np.finfo(np.longdouble).nmant <= 52, reason="long double is float64 here")
def test_what_rounding_costs_large_integers_is_told():
    """It is about what it costs small ones."""
    nets = [field_net(), field_net(1)]
    small, large = (
        policy.decibels_lost(
            *(NeuralField.of(net, make_header((6, 5, 4), low, low + 600, "int64")) for net in nets), 20, False
        )
        for low in (0, 2**62)
    )
    assert small == pytest.approx(large, abs=0.1)


def test_what_rounding_costs_the_integers_of_a_mask_is_told():
    """Its values lie near the border between 0 and 1: they hardly change, and most of the integers do."""
    nets, header = (field_net(), field_net()), make_header((9, 7, 5), 0, 1, "uint8")
    with torch.no_grad():
        for net, bias in zip(nets, (-0.01, 0.01), strict=True):
            net.net_layers[-1].weight.zero_()
            net.net_layers[-1].bias.fill_(bias)
    before, after = (NeuralField.of(net, header) for net in nets)
    assert policy.decibels_lost(before, after, 6.0, False) < 0.1
    assert policy.integers_lost(before, after, 40.0) == pytest.approx(20 * math.log10(100 - 1))
    assert {policy.integers_lost(before, before, psnr) for psnr in (40.0, math.inf, math.nan)} == {0.0}


def test_a_loss_of_the_decoded_values_is_told(tmp_path, capsys, small_blocks):
    """Bricks of masks are rounded by their values before those are integers: the mask may lose more."""
    trained = network_of("noise", noise((12, 12, 12)), tmp_path)
    for lead, is_told in ((0.0, False), (3.0, True)):
        psnr = trained.settings["psnr"]
        trained.config.write_text(json.dumps(trained.settings | {"psnr_unrounded": psnr, "psnr": psnr + lead}))
        compress(trained, tmp_path / "b", "--volume", trained.volume, "--n_passes", 0)
        assert ("rounding has cost about" in capsys.readouterr().err) == is_told
