"""The benchmarks run, on the least there is; what they measure is nothing that a test could know."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import io
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from helpers.scripts import ROOT, results
from helpers.volumes import slanted

from training import recipe
from training.recipe import Recipe, default_recipe

with_other_compressors = pytest.mark.skipif(
    importlib.util.find_spec("hdf5plugin") is None, reason="needs benchmarks/requirements.txt"
)


def printed_by(script: str, *arguments: object, **limits: float) -> dict[str, str]:
    """What a script prints, in this process; its training is brief."""
    is_brief = "--max_seconds" in arguments
    brief = ("--n_passes", 1) if not is_brief and "--volume" in arguments and script != "net_decompress.py" else ()
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        main = importlib.import_module(script.removesuffix(".py")).main
        main([str(a) for a in (*arguments, *brief, "--num_workers", 1)])
    return results(out.getvalue())


def brief_recipe(*arguments: object, **options: object) -> Recipe:
    return default_recipe(*arguments, **options | {"n_passes": 1})


@pytest.fixture
def benchmark(monkeypatch, small_blocks):
    """Run the `main` of a benchmark with these arguments, each measurement once and briefly."""

    def run(name: str, *arguments: object) -> None:
        monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
        module = importlib.import_module(name)
        if name == "step":
            monkeypatch.setattr(module, "median", lambda work: [work()] and 1.0)
        if name == "rounding":
            monkeypatch.setattr(recipe, "MIN_STEPS", 1)
        if name == "gpu":
            monkeypatch.setattr(module, "MEASURED_STEPS", 1)
            monkeypatch.setattr(module, "precision_row", lambda *arguments: [])
        if hasattr(module, "default_recipe"):
            monkeypatch.setattr(module, "default_recipe", brief_recipe)
        if hasattr(module, "script"):
            monkeypatch.setattr(module, "script", printed_by)
        module.main([str(argument) for argument in arguments])
        for other in (name, "shared"):
            sys.modules.pop(other, None)

    return run


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("step", ("--widths", 16, "--batch", 64)),
        ("decode", ("--widths", 16, "--side", 32, "--repeats", 1)),
        ("coder", ("--parameters", 5000, "--bits", 4)),
        pytest.param("peers", ("volume.npy", "--bytes", 100), marks=with_other_compressors),
        ("knobs", ("volume.npy", "--ratios", 1e9)),
        ("time_series", ("series.npy", "--ratios", 1e9)),
        ("robustness", ("volume.npy", "--seeds", 1)),
        (
            "gpu",
            ("volume.npy", "--cpu", "--widths", 16, "--batches", 64, "--side", 6, "--networks", 2, "--fields", 8),
        ),
        ("shapes", ("volume.npy", "--ratios", 50, "--depths", 1)),
        ("masks", ("volume.npy", "--below", 0)),
        ("rounding", ("volume.npy", "--ratios", 1e9, "--added", 0.4)),
        ("bricks", ("volume.npy", "--bricks", "2,1,1", "--compression_ratio", 2, "--n_passes", 0.5)),
    ],
)
def test_a_benchmark_prints_a_table(name, arguments, benchmark, tmp_path, monkeypatch, capsys):
    np.save(tmp_path / "volume.npy", slanted((6, 5, 4)))
    np.save(tmp_path / "series.npy", slanted((2, 6, 5, 4)))
    monkeypatch.chdir(tmp_path)
    benchmark(name, *arguments)
    printed = capsys.readouterr().out
    assert len(printed.splitlines()) >= 3 and "failed: " not in printed


@pytest.fixture
def gpu_module(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    yield importlib.import_module("gpu")
    for name in ("gpu", "shared"):
        sys.modules.pop(name, None)


def test_a_row_that_fails_is_one_row(gpu_module, tmp_path, capsys):
    report = gpu_module.Report(tmp_path / "gpu.md", 60.0)
    report.table("A table", ["head"], [lambda: 1 / 0, lambda: ["the next one"]])
    lines = capsys.readouterr().out.splitlines()
    assert "ZeroDivisionError" in lines[-2] and "the next one" in lines[-1]
    assert lines == (tmp_path / "gpu.md").read_text().splitlines()


def test_a_process_that_does_not_end_is_killed(gpu_module, monkeypatch, tmp_path):
    monkeypatch.setattr("shared.ROOT", tmp_path)
    (tmp_path / "endless.py").write_text("import time; time.sleep(1000)")
    with pytest.raises(SystemExit, match=r"endless\.py"):
        gpu_module.script("endless.py", seconds=0.1)


def test_of_tests_that_do_not_end_the_latest_is_named(gpu_module, monkeypatch, tmp_path):
    def run(command: list[str], stdout: io.TextIOBase, timeout: float, **others: object) -> None:
        stdout.write("test_a.py::test_ends PASSED\ntest_a.py::test_hangs ")
        raise subprocess.TimeoutExpired(command, timeout)

    monkeypatch.setattr(subprocess, "run", run)
    (found,) = gpu_module.tests_row(gpu_module.Report(tmp_path / "gpu.md", 100.0))
    assert "test_hangs" in found


def test_without_time_nothing_of_a_gpu_is_measured(gpu_module, benchmark, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(gpu_module.Card, "measured", lambda *arguments: 1 / 0)
    monkeypatch.chdir(tmp_path)
    benchmark("gpu", "--cpu", "--seconds", 0)
    assert capsys.readouterr().out.count("no time left") > 40


def test_it_is_told_how_many_tests_have_passed(gpu_module, monkeypatch, tmp_path):
    monkeypatch.setattr(gpu_module, "TESTS", ("tests/test_cuda.py::test_few_positions_are_few_for_a_gpu",))
    (found,) = gpu_module.tests_row(gpu_module.Report(tmp_path / "gpu.md", 100.0))
    assert found.startswith(("1 passed", "1 skipped"))


@pytest.mark.gpu
def test_it_is_told_what_a_step_has(gpu_module):
    kernels, *others = gpu_module.parts_row(64, torch.device("cuda", 0), 6)
    assert kernels in ("training.fused", "training.unfused") and others == [True, True]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("kind", "count"),
    [("blobs", 60), ("volumes", 20), ("checkpoints", 20), ("configurations", 4), ("kills", 4), ("disk", 4)],
)
def test_attacks_fail(kind, count, benchmark, tmp_path, monkeypatch, capsys):
    """Neither are all mutants refused, nor are all read."""
    monkeypatch.chdir(tmp_path)
    benchmark("attack", "--only", kind, "--count", count, "--seconds", 1000)
    _, tried, refused, failed, *_ = capsys.readouterr().out.splitlines()[-1].strip("| ").split(" | ")
    assert (int(tried), int(failed)) == (count, 0) and not (tmp_path / "attack_failed").exists()
    assert kind in ("kills", "disk") or 0 < int(refused) < count
