"""Volumes larger than memory, at small thresholds: every voxel once a pass, as in memory; estimates; peak memory."""

from __future__ import annotations

import functools
import math
import subprocess
import sys

import numpy as np
import pytest
import torch
from helpers.networks import field_net, header_of, make_blob
from helpers.scripts import ROOT, WELL, compress, error_of, listing, results, train
from helpers.volumes import slanted

import long_runs
import streamed
import utils
from neural_field import NeuralField
from samples import Field
from streamed import StreamedField, training_field
from utils import compare, measured_boxes, value_range
from volume import LazyArray, boxes, limits, parts

CPU = torch.device("cpu")
NAN = np.float32(np.nan)


@pytest.fixture
def small(monkeypatch):
    """Every volume is too large for memory: 60 voxels in the buffer, in stretches of 7."""
    for name, value in {"IN_MEMORY": 0, "BUFFER": 60, "KEPT": 30, "STRETCH": 7}.items():
        monkeypatch.setattr(streamed, name, value)


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


def test_parts_of_a_map_are_let_go_of(tmp_path):
    array = mapped(np.ones((64, 1 << 16), np.float32), tmp_path)

    def resident() -> int:
        """KiB of the file in this process's memory."""
        with open("/proc/self/smaps") as file:
            lines = iter(file.read().splitlines())
        return sum(int(next(line for line in lines if line.startswith("Rss:")).split()[1])
                   for line in lines if line.endswith("map_C"))  # fmt: skip

    if not sys.platform.startswith("linux"):
        pytest.skip("reads Linux's list of what is in memory")
    total = sum(float(part.sum()) for _, part in parts(array[..., None]))
    assert total == array.size and resident() <= 4096
    assert limits(array[..., None]) == (1, 1) and resident() <= 4096


# --- samples ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("n_missing", [0, 40])
def test_a_pass_draws_every_voxel_once_in_equal_batches(small, tmp_path, order, n_missing):
    array = wavy()
    array.ravel()[np.random.default_rng(1).permutation(array.size)[:n_missing]] = NAN
    fill = NAN if n_missing else None
    values = value_range(array[..., None], fill)
    field = training_field(mapped(array, tmp_path, order)[..., None], values, CPU, with_slopes=True)
    whole = Field(values.normalise(array[..., None]), CPU)
    assert isinstance(field, StreamedField) and field.n_voxels == whole.n_voxels == 315 - n_missing
    assert field.variance == pytest.approx(whole.variance, rel=1e-6)

    drawn = []
    for places in field.batches(0, 0, 13, 0):
        drawn.append((*field.samples(places), field.slopes(places)))
    sizes = [len(x) for x, _, _ in drawn]
    assert len(sizes) == 13 and max(sizes) - min(sizes) <= 1 and sum(sizes) == field.n_voxels
    present = torch.arange(315) if whole.present is None else whole.present
    expected = torch.cat([*whole.samples(present), whole.slopes(present).flatten(1)], 1)
    found = torch.cat([torch.cat([x, v, s.flatten(1)], 1) for x, v, s in drawn])

    def rows(tensor):
        return sorted(map(tuple, np.nan_to_num(tensor.numpy(), nan=99.0).tolist()))

    assert rows(found) == rows(expected)


def test_passes_differ_and_continue_where_they_were(small):
    array = wavy()[..., None]
    field = training_field(array, value_range(array), CPU)

    def drawn(seed, index, first=0):
        return torch.cat([field.samples(places)[1] for places in field.batches(seed, index, 11, first)])

    orders = [drawn(seed, index) for seed in (0, 1) for index in (0, 1)]
    assert all(not torch.equal(a, b) for i, a in enumerate(orders) for b in orders[:i])
    for first in (0, 1, 4, 10):
        assert torch.equal(drawn(0, 1, first), orders[1][-len(drawn(0, 1, first)) :])
    assert torch.equal(drawn(0, 1), orders[1])


def test_a_small_volume_is_held_in_memory(monkeypatch):
    array = wavy()[..., None]
    assert isinstance(training_field(array, value_range(array), CPU), Field)
    monkeypatch.setattr(streamed, "IN_MEMORY", 314)
    assert isinstance(training_field(array, value_range(array), CPU), StreamedField)


# --- metrics ----------------------------------------------------------------------------------------


def test_a_lazy_array_is_compared_as_an_array(tmp_path):
    array = wavy((20, 11, 6))
    decoded = array + np.linspace(0, 1, array.size, dtype=np.float32).reshape(array.shape)
    lazy = LazyArray(array.shape, array.dtype, lambda box: decoded[box])
    for original in (array, mapped(array, tmp_path, "F")):
        found, expected = compare(original, lazy), compare(array, decoded)
        assert found.rmse == pytest.approx(expected.rmse, rel=1e-12) and found.max_error == expected.max_error
        assert found.n_voxels == array.size


def test_a_huge_volume_is_measured_at_random_voxels(tmp_path, monkeypatch, capsys):
    for name, value in {"EXACT": 2399, "MEASURED": 800, "PIECE": 8}.items():
        monkeypatch.setattr(utils, name, value)
    array = wavy((16, 15, 10))
    decoded = array + wavy((16, 15, 10))[::-1]
    chosen = measured_boxes(array[..., None])
    estimate, exact = compare(array, decoded, chosen=chosen), compare(array, decoded)
    assert 760 < estimate.n_voxels < 840 and estimate.psnr == pytest.approx(exact.psnr, abs=0.3)
    assert list(estimate.report(2400)) == ["psnr_estimate"] and list(exact.report(2400)) == ["psnr"]
    assert measured_boxes(array[1:, ..., None]) == boxes(array[1:, ..., None])

    np.save(tmp_path / "v.npy", slanted((16, 15, 10)))
    trained = train(tmp_path / "v.npy", tmp_path, *WELL)
    found = results(capsys.readouterr().out)
    assert "psnr" not in found and trained.settings["psnr"] == pytest.approx(float(found["psnr_estimate"]), abs=1e-3)
    compress(trained, tmp_path / "blob", "--volume", tmp_path / "v.npy", "--n_passes", 1)
    found = results(capsys.readouterr().out)
    assert "psnr" not in found and float(found["psnr_estimate"]) > 20


# --- scripts ----------------------------------------------------------------------------------------


def test_training_from_a_buffer_is_as_good(small, tmp_path, monkeypatch, volume_file):
    well = (*WELL, "--w0", 15)  # both start alike: a streamed volume is not searched for mirrors
    alike = train(volume_file, tmp_path, *well)
    assert alike.data == train(volume_file, tmp_path, *well).data
    compress(alike, tmp_path / "blob", "--volume", volume_file)
    monkeypatch.setattr(streamed, "IN_MEMORY", 1000)
    assert alike.settings["psnr"] == pytest.approx(train(volume_file, tmp_path, *well).settings["psnr"], abs=2)


def test_a_checkpoint_of_a_streamed_volume(small, volume_file, tmp_path, monkeypatch):
    """It continues to the same result, and knows its volume, whose checksum is taken once."""
    import train as script

    sums, property_ = [], StreamedField.crc32
    counted = functools.cached_property(lambda field: sums.append(field) or property_.func(field))
    counted.__set_name__(StreamedField, "crc32")
    monkeypatch.setattr(StreamedField, "crc32", counted)
    flags = ("--n_passes", 9, "--batchSize", 16)
    whole = train(volume_file, tmp_path, *flags)
    assert not sums
    monkeypatch.setattr(long_runs, "CHECKPOINT_SECONDS", -1.0)
    flags += ("--checkpoint", tmp_path / "c")
    train(volume_file, tmp_path, *flags)
    assert len(sums) == 1
    monkeypatch.setattr(long_runs, "CHECKPOINT_SECONDS", 60.0)
    assert train(volume_file, tmp_path, *flags, "--resume").data == whole.data
    np.save(tmp_path / "other.npy", 2 * slanted((9, 7, 5)))
    command = ("--volume", tmp_path / "other.npy", "--network", tmp_path / "n", "--config", tmp_path / "j")
    small_net = ("--n_layers", 2, *flags)
    assert "values_crc32" in error_of(script.main, *command, *small_net, "--resume")


PEAK = f"""
import resource, sys
sys.path.insert(0, {str(ROOT)!r})
import streamed, train, utils
def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
FIRST
streamed.IN_MEMORY = utils.EXACT = 0
streamed.BUFFER = utils.MEASURED = 1 << 16
streamed.KEPT = 1 << 15
before = peak()
LAST
print("peak", peak() - before, file=sys.stderr)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="counts memory in Linux's units")
@pytest.mark.parametrize("n_files", [1, 4], ids=["a volume", "a series"])
def test_training_needs_a_fraction_of_the_volumes_memory(n_files, tmp_path):
    for t in range(n_files):
        with open(tmp_path / f"big_{t}_{512 // n_files}x256x256_float32.raw", "wb") as file:
            file.truncate((4 << 25) // n_files)
            file.seek(4 << 20)
            file.write(np.random.default_rng(t).random(1 << 20, np.float32).tobytes())
    np.save(tmp_path / "small.npy", slanted((9, 7, 5)))
    flags = ("--n_layers", "2", "--compression_ratio", "1e9")
    first = ("--volume", "small.npy", *flags, "--n_passes", "1")
    volume = "big_*.raw" if n_files > 1 else "big_0_512x256x256_float32.raw"
    last = ("--volume", volume, *flags, "--n_passes", "0.001")
    program = PEAK.replace("FIRST", f"train.main({first})").replace("LAST", f"train.main({last})")
    run = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    kilobytes = int(run.stderr.split("peak ")[1])
    assert kilobytes < 100_000  # of 134 MB in files, which would take 402 MB more in memory


DECODING = f"""
import sys
sys.path.insert(0, {str(ROOT)!r})
import net_decompress, volume_writers
def peak():  # of this program alone; what getrusage says begins with the peak of the one that started it
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM"))
net_decompress.IN_MEMORY, volume_writers.SLAB_BYTES = 1 << 22, 1 << 20
net_decompress.main(["--compressed", "small", "--recon", "r.vti"])
before = peak()
net_decompress.main(["--compressed", "large", "--recon", "r.vti", *sys.argv[1:]])
print("peak", peak() - before, file=sys.stderr)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="counts memory in Linux's units")
@pytest.mark.parametrize(
    ("shape", "dtype", "flags"),
    [
        ((161, 161, 161), "uint16", ()),  # just within the limit; nearly every value is rounded anew
        ((159, 159, 159), "float64", ()),
        ((159, 159, 159), "float64", ("--gradient",)),  # beyond
        ((6, 159, 159, 159), "float64", ()),  # of which only one step is held
    ],
)
def test_decoding_needs_a_fraction_of_the_volumes_memory(tmp_path, shape, dtype, flags):
    """At most the limit's values, here 4 million, and some slabs."""
    net = field_net(n_neurons=2, n_layers=1, d_in=len(shape))
    (tmp_path / "small").write_bytes(make_blob(header_of((9, 7, 5)), field_net()))
    (tmp_path / "large").write_bytes(make_blob(header_of(shape, 0, 60000, dtype), net))
    command = [sys.executable, "-c", DECODING, *flags]
    run = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    kilobytes = int(run.stderr.split("peak ")[1])
    assert kilobytes < 4.2e6 * 8 / 1000 + 20_000


@pytest.mark.parametrize(
    ("recon", "flags"),
    [
        ("r.npy", ()),
        ("r.vti", ("--gradient",)),
        ("r.nii.gz", ("--roi", "1:8,:,2:")),
        ("t.npy", ()),
        ("t.vti", ("--gradient",)),
        ("t.vti", ("--time", "1:3")),
    ],
)
def test_a_large_volume_is_decoded_slab_by_slab(tmp_path, monkeypatch, capsys, recon, flags):
    """To the same files with the same figures, and never more of it than a slab; a time series too."""
    import net_decompress as script
    import volume
    import volume_writers

    shape = (9, 7, 5) if recon.startswith("r") else (4, 6, 5, 3)
    net = field_net(d_in=len(shape), d_out=2)
    (tmp_path / "blob").write_bytes(make_blob(header_of(shape, -1.0, 1.0, d_out=2), net))
    np.save(tmp_path / "v.npy", np.random.default_rng(0).random((*shape, 2), np.float32))
    sizes, on_grid = [], NeuralField.on_grid

    def watched(self, grid, *args, **keywords):
        sizes.append(math.prod(grid.shape))
        return on_grid(self, grid, *args, **keywords)

    def written(folder):
        (tmp_path / folder).mkdir()
        files = (
            "--compressed",
            tmp_path / "blob",
            "--volume",
            tmp_path / "v.npy",
            "--recon",
            tmp_path / folder / recon,
        )
        script.main([str(a) for a in (*files, *flags)])
        figures = {k: v for k, v in results(capsys.readouterr().out).items() if k not in ("recon", "seconds")}
        return listing(tmp_path / folder), figures

    expected = written("whole")
    monkeypatch.setattr(script, "IN_MEMORY", 0)
    monkeypatch.setattr(volume_writers, "SLAB_BYTES", 200)
    monkeypatch.setattr(volume, "SLAB", 50)
    monkeypatch.setattr(NeuralField, "on_grid", watched)
    assert written("slabs") == expected
    assert max(sizes) <= 90 and "psnr" in expected[1]
