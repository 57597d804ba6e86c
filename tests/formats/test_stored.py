"""Arrays that stay in their file: views of them, and how much is read for what."""

from __future__ import annotations

import errno
import math
import os

import numpy as np
import pytest
import torch
from helpers.cut_fields import random_bricks
from helpers.volumes import range_without, slanted

from cli.progress import NoProgress
from field.metrics import compare
from formats.arrays import StackedSteps
from formats.stored import StoredArray
from quantising.policy import RoundingOptions
from quantising.rounded_bricks import BricksRounding
from training import streaming
from training.brick_trainer import BrickTrainer
from utils import (
    Geometry,
    UserError,
    Volume,
    boxes,
    find_missing,
    header_of,
    is_missing,
    read_in_boxes,
    value_limits,
    value_range,
)


class Counting:
    """A file of chunks: how often each has been decoded, and how many values at once."""

    def __init__(self, array: np.ndarray, chunks: tuple[int, ...]):
        self.array, self.chunks, self.shape = array, chunks, array.shape
        self.counts = np.zeros([-(-n // c) for n, c in zip(array.shape, chunks, strict=True)], int)
        self.most = 0

    def __getitem__(self, key: tuple[slice, ...]) -> np.ndarray:
        touched = [slice(k.start // c, -(-k.stop // c)) for k, c in zip(key, self.chunks, strict=True)]
        self.counts[tuple(touched)] += 1
        values = self.array[key]
        self.most = max(self.most, values.size)
        return values


def stored(source, axes, chunks=None) -> StoredArray:
    window = tuple(map(range, source.shape))
    values = source.array if isinstance(source, Counting) else source
    return StoredArray("a", source, values.dtype, np.copy, window, axes, chunks or (1,) * len(window))


FILE = slanted((5, 2, 7, 6))
VIEWS = [
    ((3, 2, 0, 1), FILE.transpose(3, 2, 0, 1)),
    ((3, 2, None, 0, 1), FILE.transpose(3, 2, 0, 1)[:, :, None]),
]
KEYS = [
    np.s_[1:4, 2:5],
    np.s_[:, ::2, :1],
    np.s_[2],
    np.s_[..., 1],
    np.s_[..., -1],
    np.s_[..., None],
    np.s_[..., 1:2],
]


@pytest.mark.parametrize(("axes", "expected"), VIEWS)
@pytest.mark.parametrize("key", KEYS)
def test_views_are_those_of_numpy(axes, expected, key):
    found, values = stored(FILE, axes)[key], expected[key]
    if isinstance(found, StoredArray):
        assert (found.shape, found.ndim, found.size) == (values.shape, values.ndim, values.size)
        found = found[tuple(slice(n) for n in found.shape)]
    np.testing.assert_array_equal(found, values)


def test_numpy_takes_it_for_an_array():
    """Read once, not axis by axis for ever."""
    source = Counting(FILE, (5, 1, 7, 6))
    array = stored(source, (0, 1, 2, 3), (5, 1, 7, 6))
    np.testing.assert_array_equal(np.asarray(array, np.float64), FILE)
    np.testing.assert_array_equal(array[...], FILE)
    assert source.counts.tolist() == np.full_like(source.counts, 2).tolist() and len(list(array)) == 5


def test_a_view_of_a_view_and_fewer_axes():
    view = stored(FILE, (3, 2, None, 0, 1)).part(np.s_[1:5, 2:, :, 1:4])
    expected = FILE.transpose(3, 2, 0, 1)[1:5, 2:, None, 1:4]
    np.testing.assert_array_equal(view[1:3, 1:, :, ::2], expected[1:3, 1:, :, ::2])
    np.testing.assert_array_equal(view[..., 0, :, :][:, :2], expected[:, :2, 0])


@pytest.mark.parametrize("n", [1, 50, 500, 5000])
@pytest.mark.parametrize("chunks", [(1, 9, 10), (4, 4, 4), (7, 1, 3), (8, 9, 10)])
def test_each_chunk_is_decoded_once_a_pass(chunks, n):
    """And no more is read at once than asked for, or than one chunk."""
    array = slanted((8, 9, 10))
    source = Counting(array, chunks)
    view = stored(source, (2, 1, 0), chunks)[..., None]
    cut = boxes(view, n)
    assert sum(math.prod(c.stop - c.start for c in box) for box in cut) == array.size
    rebuilt = np.empty_like(array.T)
    for box, part in read_in_boxes(view, cut):
        rebuilt[box] = part[..., 0]
    np.testing.assert_array_equal(rebuilt, array.T)
    assert (source.counts == 1).all() and source.most <= max(n, math.prod(chunks))


def test_one_pass_for_each_question():
    array = slanted((8, 9, 10))
    array[2:5, 3, 4:] = np.nan
    source = Counting(array, (4, 4, 4))
    view, fill = stored(source, (2, 1, 0), (4, 4, 4))[..., None], np.float32(np.nan)
    low, high = value_limits(view, fill)
    assert (low[0], high[0]) == (np.nanmin(array), np.nanmax(array)) and (source.counts == 1).all()
    mask = find_missing(view, fill)
    np.testing.assert_array_equal(mask.at(np.indices(array.T.shape)), is_missing(array.T[..., None], fill))
    assert mask.count == np.isnan(array).sum() and (source.counts == 2).all()
    assert compare(view[..., 0], np.nan_to_num(array.T), range_without(view, fill)).psnr == math.inf


def test_a_large_volume_is_unpacked_once(monkeypatch):
    """Training then reads stretches from the copy, not from the chunks."""
    monkeypatch.setattr(streaming, "MAX_VOXELS_IN_MEMORY", 100)
    array = slanted((8, 9, 10))
    source = Counting(array, (4, 4, 4))
    view = stored(source, (2, 1, 0), (4, 4, 4))[..., None]
    sampler = streaming.make_sampler(view, value_range(view), torch.device("cpu"))
    before = source.counts.copy()
    for _ in sampler.batches(0, 0, 4, 0):
        pass
    assert isinstance(sampler.original, np.memmap) and (source.counts == before).all() and (before == 2).all()
    np.testing.assert_array_equal(sampler.original[..., 0], array.T)


@pytest.mark.parametrize("chunks", [((4, 4, 4),) * 3, ((4, 4, 4), (2, 4, 1), (1, 1, 1))], ids=["alike", "unlike"])
def test_a_large_series_is_unpacked_once(monkeypatch, chunks):
    """Its files may have chunks of several sizes, which the largest one holds whole."""
    monkeypatch.setattr(streaming, "MAX_VOXELS_IN_MEMORY", 100)
    array = slanted((3, 8, 9, 10))
    sources = [Counting(step, lengths) for step, lengths in zip(array, chunks, strict=True)]
    steps = [stored(source, (2, 1, 0), source.chunks) for source in sources]
    series = StackedSteps(steps)[..., None]
    assert series.chunks == (1, 4, 4, 4, 1) and series.part(np.s_[:2, :2, :, 3:, :]).chunks == series.chunks
    assert all(cut.start % 4 == 0 for box in boxes(series, 1) for cut in box[1:])
    sampler = streaming.make_sampler(series, value_range(series), torch.device("cpu"))
    for _ in sampler.batches(0, 0, 4, 0):
        pass
    assert isinstance(sampler.original, np.memmap) and all((source.counts == 2).all() for source in sources)
    np.testing.assert_array_equal(sampler.original[..., 0], array.transpose(0, 3, 2, 1))


def test_a_series_without_chunks_is_not_unpacked():
    for steps in ([slanted((8, 9, 10))] * 2, [stored(slanted((8, 9, 10)), (2, 1, 0))] * 2):
        assert streaming.unpacked(series := StackedSteps(steps)[..., None]) is series


def test_a_copy_that_the_system_refuses_is_told_in_one_line(monkeypatch):
    """As beyond a quota, where the disk itself has room."""

    def refuse(*_: object) -> None:
        raise OSError(errno.EDQUOT, "Disk quota exceeded")

    monkeypatch.setattr(os, "posix_fallocate", refuse, raising=False)
    view = stored(Counting(slanted((8, 9, 10)), (4, 4, 4)), (2, 1, 0), (4, 4, 4))[..., None]
    with pytest.raises(UserError, match=r"unpacked copy.*: Disk quota exceeded"):
        streaming.unpacked(view)


def test_bricks_are_cut_out_of_an_unpacked_copy():
    """To train them, and to round their weights: their borders are not those of the chunks."""
    source, counts = Counting(slanted((8, 9, 10)), (4, 4, 4)), (2, 2, 1)
    volume = Volume(stored(source, (2, 1, 0), (4, 4, 4)), Geometry.plain(3))
    header, networks = header_of(volume), random_bricks(volume.array.shape, counts, n_neurons=4, n_layers=2)
    BrickTrainer(volume, header, counts, None, 0)
    assert (source.counts == 2).all()
    options = RoundingOptions(n_passes=0.0)
    rounding = BricksRounding(options, networks, header, volume, torch.device("cpu"), NoProgress())
    rounding.layers(30.0, False)
    assert (source.counts == 3).all()
