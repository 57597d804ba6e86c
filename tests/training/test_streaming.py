"""Volumes larger than memory, at small thresholds: every voxel once a pass, as in memory; estimates; peak memory."""

from __future__ import annotations

import functools
import math
import mmap
import threading
import tracemalloc

import numpy as np
import pytest
import torch
from helpers.networks import field_net, make_blob, make_header
from helpers.scripts import WELL, compress, decompress, error_of, listing, results, train
from helpers.volumes import range_without, slanted

import utils
from cli.progress import NoProgress
from field import metrics, output
from field.bricks import brick_boxes
from field.metrics import compare, measured_boxes
from field.neural_field import NeuralField
from formats import slabs
from training import long_runs, outliers, streaming
from training.sampler import VoxelSampler
from training.streaming import StreamingSampler, make_sampler
from training.survey import survey
from utils import Geometry, Volume, boxes, read_in_boxes, value_limits, value_range

CPU = torch.device("cpu")
NAN = np.float32(np.nan)


@pytest.fixture
def small(monkeypatch):
    """Every volume is too large for memory: 60 voxels in the buffer, in stretches of 7."""
    for name, value in {"MAX_VOXELS_IN_MEMORY": 0, "BUFFER": 60, "KEPT": 30, "STRETCH": 7}.items():
        monkeypatch.setattr(streaming, name, value)


def wavy(shape=(9, 7, 5)) -> np.ndarray:
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


def mapped(array: np.ndarray, folder, order="C") -> np.ndarray:
    """The array as a memory map, in C order or with its first axis fastest."""
    map_ = np.memmap(folder / f"map_{order}", array.dtype, "w+", shape=array.shape, order=order)
    map_[:] = array
    map_.flush()
    return np.memmap(folder / f"map_{order}", array.dtype, "r", shape=array.shape, order=order)


# --- boxes ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("order", [(0, 1, 2, 3), (2, 1, 0, 3), (1, 2, 0, 3)])
@pytest.mark.parametrize("n", [1, 4, 12, 100, 1000])
def test_boxes_make_up_the_grid_in_the_order_of_memory(order, n):
    values = np.arange(9 * 7 * 5 * 2).reshape(9, 7, 5, 2).transpose(order)
    found = boxes(values, n)
    joined = np.concatenate([np.sort(values[box].ravel()) for box in found])
    np.testing.assert_array_equal(joined, np.arange(630))  # each box one run of memory, each after the one before
    assert all(values[box].size <= max(n, 2) for box in found)
    assert len(found) <= 3 * math.ceil(630 / n)


def test_parts_of_a_map_are_let_go_of(tmp_path, monkeypatch):
    """The pages of all of it, after each part; of what is no map, none."""
    told = []

    class Map(mmap.mmap):
        def madvise(self, option):
            told.append(option)

    monkeypatch.setattr(mmap, "mmap", Map)
    monkeypatch.setattr(utils, "BOX_VALUES", 1 << 12)
    array = np.ones((64, 1 << 10), np.float32)
    for values, expected in ((mapped(array, tmp_path), [mmap.MADV_DONTNEED] * 16), (array, [])):
        for read in (
            lambda v: sum(float(part.sum()) for _, part in read_in_boxes(v)),
            lambda v: value_limits(v)[1] * v.size,
        ):
            told.clear()
            assert read(values[..., None]) == array.size and told == expected
        told.clear()
        volume = Volume(values, Geometry.plain(2))
        survey(volume, value_range(array[..., None]), brick_boxes(array.shape, (16, 1)), NoProgress())
        assert told == expected


# --- samples ----------------------------------------------------------------------------------------


def test_what_is_read_ahead_is_drawn_alike(small, tmp_path):
    """By a thread, as for a GPU: the next part of the volume is being read before the first batch of this one."""
    array = mapped(wavy(), tmp_path)[..., None]
    drawn = []
    for reads_ahead in (False, True):
        sampler, parts = make_sampler(array, value_range(array), CPU), []
        sampler.reads_ahead, columns = reads_ahead, sampler._columns

        def counted(chosen, parts=parts, columns=columns):
            parts.append(threading.current_thread() is threading.main_thread())
            return columns(chosen)

        sampler._columns = counted
        batches = [sampler.samples(places) for places in sampler.batches(0, 0, 13, 0)]
        assert len(parts) == sampler.n_refills > 3 and set(parts) == {not reads_ahead}
        drawn.append(torch.cat([torch.cat(batch, 1) for batch in batches]))
    assert torch.equal(*drawn)


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("n_missing", [0, 40])
def test_a_pass_draws_every_voxel_once_in_equal_batches(small, tmp_path, monkeypatch, order, n_missing):
    array = wavy()
    array.ravel()[np.random.default_rng(1).permutation(array.size)[:n_missing]] = NAN
    fill = NAN if n_missing else None
    values = range_without(array[..., None], fill)
    sampler = make_sampler(mapped(array, tmp_path, order)[..., None], values, CPU, with_slopes=True)
    whole = VoxelSampler(values.normalise(array[..., None]), CPU)
    assert isinstance(sampler, StreamingSampler) and sampler.n_present == whole.n_present == 315 - n_missing
    assert sampler.variance == pytest.approx(whole.variance, rel=1e-6)
    monkeypatch.setattr(streaming, "JUDGING_STRETCHES", 9)
    net = field_net()
    assert sampler.mean_squared_error(net) == pytest.approx(whole.mean_squared_error(net), rel=1e-5)

    drawn = []
    for places in sampler.batches(0, 0, 13, 0):
        drawn.append((*sampler.samples(places), sampler.slopes(places)))
    sizes = [len(x) for x, _, _ in drawn]
    assert len(sizes) == 13 and max(sizes) - min(sizes) <= 1 and sum(sizes) == sampler.n_present
    present = torch.arange(315) if whole.present is None else whole.present
    expected = torch.cat([*whole.samples(present), whole.slopes(present).flatten(1)], 1)
    found = torch.cat([torch.cat([x, v, s.flatten(1)], 1) for x, v, s in drawn])

    def rows(tensor):
        return sorted(map(tuple, np.nan_to_num(tensor.numpy(), nan=99.0).tolist()))

    assert rows(found) == rows(expected)


def test_passes_differ_and_continue_where_they_were(small):
    array = wavy()[..., None]
    sampler = make_sampler(array, value_range(array), CPU)

    def drawn(seed, index, first=0):
        return torch.cat([sampler.samples(places)[1] for places in sampler.batches(seed, index, 11, first)])

    orders = [drawn(seed, index) for seed in (0, 1) for index in (0, 1)]
    assert all(not torch.equal(a, b) for i, a in enumerate(orders) for b in orders[:i])
    for first in (0, 1, 4, 10):
        assert torch.equal(drawn(0, 1, first), orders[1][-len(drawn(0, 1, first)) :])
    assert torch.equal(drawn(0, 1), orders[1])


def test_a_small_volume_is_held_in_memory(monkeypatch):
    array = wavy()[..., None]
    assert isinstance(make_sampler(array, value_range(array), CPU), VoxelSampler)
    vectors = np.repeat(array, 50, axis=-1)
    assert isinstance(make_sampler(vectors, value_range(vectors), CPU), VoxelSampler)
    monkeypatch.setattr(streaming, "MAX_VOXELS_IN_MEMORY", array.size)
    assert isinstance(make_sampler(array, value_range(array), CPU), VoxelSampler)
    assert isinstance(make_sampler(vectors, value_range(vectors), CPU), StreamingSampler)
    monkeypatch.setattr(streaming, "MAX_VOXELS_IN_MEMORY", array.size - 1)
    assert isinstance(make_sampler(array, value_range(array), CPU), StreamingSampler)


# --- metrics ----------------------------------------------------------------------------------------


def test_a_huge_volume_is_measured_at_random_voxels(tmp_path, monkeypatch, capsys):
    for name, value in {"MEASURED_WHOLE": 2399, "MEASURED_VOXELS": 800, "PIECE_VOXELS": 8}.items():
        monkeypatch.setattr(metrics, name, value)
    array = wavy((16, 15, 10))
    decoded = array + wavy((16, 15, 10))[::-1]
    chosen = measured_boxes(array[..., None])
    estimate, exact = compare(array, decoded, chosen=chosen), compare(array, decoded)
    assert 760 < estimate.n_voxels < 840 and estimate.psnr == pytest.approx(exact.psnr, abs=1)
    assert list(estimate.report(2400)) == ["psnr_estimate"] and list(exact.report(2400)) == ["psnr"]
    assert measured_boxes(array[1:, ..., None]) == boxes(array[1:, ..., None])

    np.save(tmp_path / "v.npy", array)  # noise, whose errors are everywhere alike
    trained = train(tmp_path / "v.npy", tmp_path)
    found = results(capsys.readouterr().out)
    assert "psnr" not in found and trained.settings["psnr"] == pytest.approx(float(found["psnr_estimate"]), abs=1e-3)
    compress(trained, tmp_path / "blob", "--volume", tmp_path / "v.npy", "--n_passes", 1)
    found = results(capsys.readouterr().out)
    exact = compare(array, decompress(tmp_path / "blob", tmp_path / "r.npy")).psnr
    assert "psnr" not in found and float(found["psnr_estimate"]) == pytest.approx(exact, abs=1.5)


# --- scripts ----------------------------------------------------------------------------------------


def test_training_from_a_buffer(small, tmp_path, volume_file):
    """The network is about as good as one trained in memory: far better than a constant, which has 13 dB."""
    trained = train(volume_file, tmp_path, *WELL)
    assert trained.settings["psnr"] > 25
    assert trained.data == train(volume_file, tmp_path, *WELL).data
    compress(trained, tmp_path / "blob", "--volume", volume_file, "--n_passes", 3)


def test_a_checkpoint_of_a_streamed_volume(small, volume_file, tmp_path, monkeypatch):
    """It continues, in the midst of a pass, to the same result, and knows its volume, whose checksum is taken once."""
    import train as script

    save, taken = long_runs.Checkpoint.save, []

    def save_once(checkpoint, fit) -> None:
        if fit.step == 95 and not taken:
            taken.append(fit.step)
            save(checkpoint, fit)

    monkeypatch.setattr(long_runs.Checkpoint, "save", save_once)
    sums, property_ = [], StreamingSampler.crc32
    counted = functools.cached_property(lambda sampler: sums.append(sampler) or property_.func(sampler))
    counted.__set_name__(StreamingSampler, "crc32")
    monkeypatch.setattr(StreamingSampler, "crc32", counted)
    flags = ("--n_passes", 9, "--batchSize", 16, "--oversample", 1)  # 20 steps a pass
    whole = train(volume_file, tmp_path, *flags)
    assert not sums
    monkeypatch.setattr(long_runs, "CHECKPOINT_SECONDS", -1.0)
    flags += ("--checkpoint", tmp_path / "c")
    train(volume_file, tmp_path, *flags)
    assert taken == [95] and len(sums) == 1
    assert train(volume_file, tmp_path, *flags, "--resume").data == whole.data
    np.save(tmp_path / "other.npy", 2 * slanted((9, 7, 5)))
    command = ("--volume", tmp_path / "other.npy", "--n_layers", 2, *flags, "--resume")
    assert "the volume has other values" in error_of(script.main, *command)


def peak_of(main, *argv: object) -> int:
    """Bytes of arrays that NumPy held at once, at most, while `main(argv)` ran."""
    tracemalloc.start()
    try:
        main([str(a) for a in argv])
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("n_files", [1, 4], ids=["a volume", "a series"])
def test_training_needs_a_fraction_of_the_volumes_memory(n_files, tmp_path, monkeypatch):
    import train as script

    for module, name, value in (
        (streaming, "MAX_VOXELS_IN_MEMORY", 0),
        (streaming, "BUFFER", 1 << 12),
        (streaming, "KEPT", 1 << 11),
        (streaming, "STRETCH", 1 << 6),
        (streaming, "JUDGING_STRETCHES", 1 << 6),
        (metrics, "MEASURED_WHOLE", 0),
        (metrics, "MEASURED_VOXELS", 1 << 12),
        (utils, "BOX_VALUES", 1 << 12),
        (outliers, "BOX_VALUES", 1 << 12),
    ):
        monkeypatch.setattr(module, name, value)
    for t in range(n_files):
        values = np.random.default_rng(t).random((1 << 20) // n_files, np.float32)
        values.tofile(tmp_path / f"big_{t}_{128 // n_files}x128x64_float32.raw")
    file = "big_*.raw" if n_files > 1 else "big_0_128x128x64_float32.raw"
    flags = ("--n_layers", 2, "--compression_ratio", 1e9, "--n_passes", 0.01)
    peak = peak_of(script.main, "--volume", tmp_path / file, *flags)
    assert peak < 4_000_000  # of 4 MB in files, which would take 12 MB more in memory


@pytest.mark.parametrize(
    ("shape", "dtype", "flags"),
    [
        ((40, 40, 40), "uint16", ()),  # just within the limit; nearly every value is rounded anew
        ((61, 61, 61), "float64", ()),  # beyond
        ((39, 39, 39), "float64", ("--gradient",)),
        ((6, 39, 39, 39), "float64", ()),  # of which only one step is held
    ],
)
def test_decoding_needs_a_fraction_of_the_volumes_memory(tmp_path, monkeypatch, shape, dtype, flags):
    """At most the limit's values, here 65,536, and some slabs."""
    import net_decompress as script
    from field import neural_field

    for module, name, value in (
        (output, "MAX_VALUES_IN_MEMORY", 1 << 16),
        (slabs, "SLAB_BYTES", 1 << 16),
        (utils, "BOX_VALUES", 1 << 12),
        (neural_field, "MASK_POSITIONS", 1 << 12),
    ):
        monkeypatch.setattr(module, name, value)
    net = field_net(n_neurons=2, n_layers=1, d_in=len(shape))
    (tmp_path / "blob").write_bytes(make_blob(make_header(shape, 0, 60000, dtype), net))
    peak = peak_of(script.main, "--compressed", tmp_path / "blob", "--recon", tmp_path / "r.vti", *flags)
    assert peak < 8 * (1 << 16) + 1_000_000


@pytest.mark.parametrize(
    ("recon", "flags"),
    [("r.npy", ()), ("r.vti", ("--gradient",)), ("r.nii.gz", ("--roi", "1:8,:,2:")), ("t.npy", ()),
     ("t.vti", ("--gradient",)), ("t.vti", ("--time", "1:3"))],
)  # fmt: skip
def test_a_large_volume_is_decoded_slab_by_slab(tmp_path, monkeypatch, capsys, recon, flags):
    """To the same files with the same figures, and never more of it than a slab; a time series too."""

    import net_decompress as script

    shape = (9, 7, 5) if recon.startswith("r") else (4, 6, 5, 3)
    net = field_net(d_in=len(shape), d_out=2)
    (tmp_path / "blob").write_bytes(make_blob(make_header(shape, -1.0, 1.0, d_out=2), net))
    np.save(tmp_path / "v.npy", np.random.default_rng(0).random((*shape, 2), np.float32))
    sizes, on_grid = [], NeuralField.on_grid

    def watched(self, grid, *args, **keywords):
        sizes.append(math.prod(grid.shape))
        return on_grid(self, grid, *args, **keywords)

    def written(folder):
        (tmp_path / folder).mkdir()
        files = ("--compressed", "blob", "--volume", "v.npy", "--recon", str(tmp_path / folder / recon))
        script.main([*files, *flags])
        places = ("recon", "first_step", "last_step", "seconds")
        figures = {k: v for k, v in results(capsys.readouterr().out).items() if k not in places}
        return listing(tmp_path / folder), figures

    expected = written("whole")
    monkeypatch.setattr(output, "MAX_VALUES_IN_MEMORY", 0)
    monkeypatch.setattr(slabs, "SLAB_BYTES", 200)
    monkeypatch.setattr(utils, "BOX_VALUES", 50)
    monkeypatch.setattr(NeuralField, "on_grid", watched)
    assert written("slabs") == expected
    assert max(sizes) <= 90 and "psnr" in expected[1]
