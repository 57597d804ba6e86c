"""Several processes that torchrun starts: the same result as one; one that fails, or hangs, ends the run."""

from __future__ import annotations

import json
import signal
import subprocess
import sys

import numpy as np
import pytest
import torch
from helpers.scripts import ROOT, listing, train
from helpers.volumes import slanted

# Start of a program for every process.
PROGRAM = f"""
import datetime, os, sys, time
sys.path.insert(0, {str(ROOT)!r})
import cli, fitting, ranks, train, volume
cli.PLAIN_PROGRESS_SECONDS = 0.5
"""
RUN = "cli.run(train.main, volume.VolumeError, ranks.RankError)"
# As train.py, but the second process does at its fifth step what the test says.
SPOILT = f"""{PROGRAM}
def spoilt(fit, flat, take_step=fitting.Fit._take_step):
    if fit.step == 5 and os.environ["RANK"] == "1":
        WHAT
    take_step(fit, flat)

fitting.Fit._take_step = spoilt
ranks.TIMEOUT = datetime.timedelta(seconds=3)
{RUN}
"""


def torchrun(*args: object) -> list[str]:
    """The command that starts a script in two processes."""
    return [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", *map(str, args)]


def finished(*args: object, cwd) -> subprocess.CompletedProcess:
    return subprocess.run(torchrun(*args), cwd=cwd, capture_output=True, text=True, timeout=240, check=False)


def test_two_processes_train_as_one(volume_file, tmp_path):
    cases = {
        "unequal": ("--batchSize", 8, "--n_passes", 2),  # 315 voxels: unequal batches, unequal shares
        "single": ("--batchSize", 1, "--oversample", 1, "--n_passes", 0.1),  # one voxel at a time cannot be shared
        "gradients": ("--batchSize", 16, "--n_passes", 2, "--grad_lambda", 0.1, "--optimizer", "adam"),
    }
    # Both processes end at the same step: else one would wait for the other, and fail.
    fast = ("--optimizer", "adam", "--lr", 5e-3, "--batchSize", 16)
    ends = {"target": (*fast, "--target_psnr", 30, "--n_passes", 500), "timed": ("--max_seconds", 2)}
    program = f"{PROGRAM}\nwith ranks.joined():"
    for name, flags in (cases | ends).items():
        files = ("--volume", volume_file, "--network", f"{name}.pth", "--config", f"{name}.json")
        program += f"\n    train.main.__wrapped__({[str(f) for f in ('--n_layers', 2, *files, *flags)]})"
    (tmp_path / "cases.py").write_text(program)
    run = finished("cases.py", cwd=tmp_path)
    assert run.returncode == 0, run.stderr
    assert run.stdout.count("psnr=") == len(cases | ends)  # one process prints
    settings = {name: json.loads((tmp_path / f"{name}.json").read_text()) for name in cases | ends}
    assert settings["target"]["psnr"] >= 30 and 2 <= settings["timed"]["seconds"] < 4
    for name, flags in cases.items():
        alone = train(volume_file, tmp_path, *flags)
        assert settings[name]["psnr"] == pytest.approx(alone.settings["psnr"], abs=1e-3)
        for key, tensor in torch.load(tmp_path / f"{name}.pth", weights_only=True).items():
            np.testing.assert_allclose(tensor, alone.state[key], rtol=0, atol=2e-5, err_msg=name)


def test_a_process_that_fails_ends_the_run(volume_file, tmp_path):
    (tmp_path / "spoilt.py").write_text(SPOILT.replace("WHAT", "raise cli.UserError('lost')"))
    before = listing(tmp_path)
    run = finished("spoilt.py", "--volume", volume_file, "--n_passes", 50, cwd=tmp_path)
    assert run.returncode != 0
    assert "error: another process of this run has failed" in run.stderr or "error: lost" in run.stderr
    assert listing(tmp_path) == before and "psnr" not in run.stdout


def test_a_process_that_hangs_ends_the_run(volume_file, tmp_path):
    (tmp_path / "spoilt.py").write_text(SPOILT.replace("WHAT", "time.sleep(100)"))
    run = finished("spoilt.py", "--volume", volume_file, "--n_passes", 50, cwd=tmp_path)
    assert run.returncode != 0
    assert "error: another process of this run has failed or does not answer, see its own message\n" in run.stderr


def test_bad_input_is_told_once(tmp_path):
    run = finished(ROOT / "train.py", "--volume", "nowhere.npy", cwd=tmp_path)
    assert run.returncode != 0
    assert run.stderr.count("error: nowhere.npy: cannot be read") == 1


def test_ctrl_c_leaves_the_network_of_the_first_process(tmp_path):
    np.save(tmp_path / "v.npy", slanted((12, 11, 10)))
    (tmp_path / "long.py").write_text(f"{PROGRAM}\ntrain.LONG_SECONDS = 0.0\n{RUN}")
    command = torchrun("long.py", "--volume", "v.npy", "--max_seconds", 100)
    process = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True, start_new_session=True)
    for line in process.stderr:
        if line.startswith("training: "):
            break
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode != 0
    assert stderr.count("interrupted: the network so far") == 1
    assert (tmp_path / "thenet.interrupted.pth").exists() and not (tmp_path / "thenet.pth").exists()
