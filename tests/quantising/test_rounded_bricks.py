"""The rounding of a field in bricks, of random networks: what holds for the whole field."""

from __future__ import annotations

from types import SimpleNamespace
from unittest.mock import MagicMock

import numpy as np
import pytest
import torch
from helpers.cut_fields import random_bricks
from helpers.networks import make_header

from cli.progress import NoProgress, Progress
from field.blob import decode_field, encode_blob
from field.neural_field import NeuralField
from quantising.network import NetworkRounding
from quantising.policy import RoundingOptions
from quantising.rounded_bricks import BricksRounding, most_processes
from utils import Geometry, Volume

SHAPE, COUNTS = (9, 7, 5), (2, 2, 1)


@pytest.fixture
def bricks():
    return random_bricks(SHAPE, COUNTS, constant=(1,), n_neurons=4, n_layers=2)


def decoded(header, bricks, is_exact, progress=None):
    """What the field decodes to before and after it is rounded."""
    device, progress = torch.device("cpu"), progress or NoProgress()
    found = BricksRounding(RoundingOptions(), bricks, header, None, device, progress).layers(30.0, is_exact)
    after = decode_field(encode_blob(header, found, cut=bricks.cut))
    return NeuralField(header, bricks)[...], NeuralField(*after)[...]


def test_integers_that_come_back_exactly_do_so_where_bricks_meet_too(bricks):
    header = make_header(SHAPE, 0, 40, "uint8")
    before, after = decoded(header, bricks, is_exact=True)
    np.testing.assert_array_equal(before, after)
    before, after = decoded(header, bricks, is_exact=False)
    assert (before != after).any()  # the PSNR alone asks for coarser steps


def test_one_line_tells_how_many_bricks_are_rounded_again(bricks, monkeypatch, capsys):
    layers = NetworkRounding.layers

    def told(rounding, *arguments):
        if rounding.options.seed:  # of the bricks 2 and 3, but not of brick 0
            rounding.progress.say("again")
            rounding.progress.say("and again")
        return layers(rounding, *arguments)

    monkeypatch.setattr(NetworkRounding, "layers", told)
    decoded(make_header(SHAPE), bricks, False, Progress("rounding"))
    assert capsys.readouterr().err.count("in 2 of 3 bricks: again") == 1


def test_a_volume_that_tells_nothing_is_not_read(bricks):
    """Bits give the steps, and there is no training."""
    volume = Volume(MagicMock(spec=[]), Geometry.plain(3))
    options, header = RoundingOptions(9, "kmeans", n_passes=0.0), make_header(SHAPE)
    found = BricksRounding(options, bricks, header, volume, torch.device("cpu"), NoProgress()).layers(30.0, False)
    assert len(found) == 3


@pytest.mark.parametrize(("gigabytes", "n_threads", "expected"), [(140, 16, 16), (24, 16, 6), (2, 16, 1), (24, 2, 2)])
def test_processes_that_round_on_a_gpu_fit_into_its_memory(gigabytes, n_threads, expected, monkeypatch):
    properties = SimpleNamespace(total_memory=gigabytes << 30)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
    assert most_processes(n_threads, torch.device("cuda", 0)) == expected
    assert most_processes(n_threads, torch.device("cpu")) == n_threads
