"""Several processes that torchrun starts: the same gradients and decisions as one; one that fails, or hangs, ends the
run."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from helpers.networks import make_header
from helpers.scripts import ROOT, hear_ctrl_c, listing
from helpers.volumes import SHAPE, slanted

from field.layers import SirenConfig
from field.metrics import compare
from field.neural_field import NeuralField
from siren import FieldNet

PROGRAM = f"""
import datetime, itertools, os, signal, sys, time, traceback, types
sys.path.insert(0, {str(ROOT)!r})
import torch
import torch.distributed as dist
import train, utils
from cli import console, progress
from training import brick_trainer, fitting, long_runs, loop, processes, recipe
progress.PLAIN_SECONDS = 0.5
processes.FIRST_SPEAKS = 0.5

def run():
    console.run(train.main)
"""

# Runs every case in two processes that join as those of torchrun do, and some in one. They are forked: torch is loaded
# once. `case.rank.pt` holds what the test is told, `case.rank.err` what a process says.
PAIRS = f"""{PROGRAM}
def started(case, rank, n_ranks, flags):
    if pid := os.fork():
        return pid
    sys.stdout = open(f"{{case}}.{{rank}}.out", "w")
    os.dup2(os.open(f"{{case}}.{{rank}}.err", os.O_WRONLY | os.O_CREAT), 2)
    if n_ranks > 1:
        os.environ.update(TORCHELASTIC_RUN_ID="pairs", RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE="2")
    processes.TIMEOUT, utils.BOX_VALUES = datetime.timedelta(seconds=60), 100
    told = {{}}

    def average(vector, weight, average=processes.average_over_processes):
        average(vector, weight)
        told.setdefault("gradient", vector.clone())

    def run_fit(fit, *rest, run=train.run_fit):
        history = run(fit, *rest)
        told.update(step=fit.step, n_steps=fit.n_steps, weights=fit.trained.weights, errors=fit.errors)
        torch.save(told, f"{{case}}.{{rank}}.pt")
        return history

    processes.average_over_processes, train.run_fit = average, run_fit
    spoil(case, rank)
    if case == "refused":
        processes.FIRST_SPEAKS = 60
    sys.argv = ["train.py", "--n_layers", "2", "--volume", "volume.npy", "--network", f"{{case}}.pth",
                "--config", f"{{case}}.json", *map(str, flags)]
    status = 0
    try:
        run()
    except SystemExit as ended:
        status = ended.code
    except BaseException:
        status = 1
        traceback.print_exc()
    os._exit(status)


def spoil(case, rank):
    "What one process finds, or does, otherwise than the other."
    if case == "target":  # its losses, of which only the first process's count
        loop.CHECK_STEPS = recipe.CHECK_STEPS = 5
        fitting.Fit._judge = lambda fit, judge=fitting.Fit._judge: judge(fit) * (1 + 30 * rank)
    if case == "bricks":
        long_runs.CHECKPOINT_SECONDS = -1.0

        def gather(item, gather=processes.gather):  # one waits for longer than processes may for a step
            if rank == 1:
                time.sleep(1.5)
            dist.distributed_c10d._set_pg_timeout(datetime.timedelta(seconds=0.5 if rank == 0 else 60))
            items = gather(item)
            dist.distributed_c10d._set_pg_timeout(datetime.timedelta(seconds=60))
            return items

        brick_trainer.processes = types.SimpleNamespace(**dict(vars(processes), gather=gather))
    if case == "lost_brick" and rank == 1:
        def fit_brick(*_):
            raise utils.UserError("lost")

        brick_trainer.fit_brick = fit_brick
    if case == "timed":  # its time
        ticks = itertools.count()
        loop.time = types.SimpleNamespace(monotonic=lambda: next(ticks) * (1 + rank) / 64)
    if case in ("fails", "hangs"):
        def take_step(fit, batch, take_step=fitting.Fit._take_step):
            if fit.step == 5 and case == "hangs" and rank == 0:
                dist.distributed_c10d._set_pg_timeout(datetime.timedelta(seconds=0.5))
            if fit.step == 5 and rank == 1:
                if case == "fails":
                    raise utils.UserError("lost")
                signal.pause()
            take_step(fit, batch)

        fitting.Fit._take_step = take_step


def ended(pid):
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


for case, flags in CASES.items():
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    os.environ.update(TORCHELASTIC_USE_AGENT_STORE="True", MASTER_ADDR="127.0.0.1", MASTER_PORT=str(store.port))
    first, second = (started(case, rank, 2, flags) for rank in (0, 1))
    statuses = [ended(first)]
    if case in ("hangs", "refused"):
        os.kill(second, signal.SIGKILL)  # as torchrun does
    statuses.append(ended(second))
    if case in ALONE:
        statuses.append(ended(started(case + "_alone", 0, 1, flags)))
    print(case, *statuses)
"""
ALONE = {  # one step each
    "unequal": ("--batchSize", 9),  # shared as 5 and 4
    "single": ("--batchSize", 1),  # one voxel at a time cannot be shared
    "gradients": ("--batchSize", 17, "--grad_lambda", 0.1, "--optimizer", "adam"),
}
BRICKS = "--bricks", "3,1,1", "--n_passes", 1, "--num_workers", 1
CASES = {
    **{name: (*flags, "--oversample", 1, "--n_passes", 0.001) for name, flags in ALONE.items()},
    "target": ("--batchSize", 16, "--optimizer", "adam", "--lr", 5e-3, "--target_psnr", 18, "--n_passes", 30),
    "timed": ("--batchSize", 16, "--max_seconds", 0.5, "--fill", -999),
    "fails": ("--n_passes", 50),
    "hangs": ("--n_passes", 50),
    "refused": ("--volume", "nowhere.npy"),
    "bricks": (*BRICKS, "--checkpoint", "bricks.state"),
    "lost_brick": BRICKS,
}


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    """The folder in which all cases ran, and by case the exit statuses of its processes."""
    folder = tmp_path_factory.mktemp("pairs")
    np.save(folder / "volume.npy", slanted(SHAPE))
    program = PAIRS.replace("CASES", repr(CASES)).replace("ALONE", repr([*ALONE, "bricks"]))
    run = subprocess.run([sys.executable, "-c", program], cwd=folder, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    lines = [line.split() for line in run.stdout.splitlines()]
    return SimpleNamespace(folder=folder, statuses={case: [int(s) for s in rest] for case, *rest in lines})


def told(pairs: SimpleNamespace, case: str, rank: int = 0) -> dict:
    """What a process of a case that ended well left."""
    assert not any(pairs.statuses[case.removesuffix("_alone")]), (pairs.folder / f"{case}.{rank}.err").read_text()
    return torch.load(pairs.folder / f"{case}.{rank}.pt", weights_only=True)


@pytest.mark.parametrize("case", ALONE)
def test_two_processes_take_the_step_of_one(pairs, case):
    alone, *both = told(pairs, f"{case}_alone"), told(pairs, case), told(pairs, case, 1)
    assert alone["step"] == 1
    for found in both:
        for name in ("gradient", "errors") if alone["errors"] is not None else ("gradient",):
            tolerance = 1e-4 * float(alone[name].abs().max())
            torch.testing.assert_close(found[name], alone[name], rtol=0, atol=tolerance, msg=name)


@pytest.mark.parametrize("case", ["target", "timed"])
def test_both_processes_end_at_the_same_step_with_the_same_weights(pairs, case):
    """Else one would wait for the other, and fail."""
    first, second = told(pairs, case), told(pairs, case, 1)
    assert first["step"] == second["step"]
    torch.testing.assert_close(first["weights"], second["weights"], rtol=0, atol=1e-4)
    settings = json.loads((pairs.folder / f"{case}.json").read_text())
    if case == "target":
        assert settings["psnr"] >= 18 and first["step"] < first["n_steps"]
    else:
        assert 0.5 <= settings["seconds"] < 0.6  # by the first one's clock


def test_both_processes_measure_and_one_speaks(pairs):
    """Each its part of the volume."""
    said = [(pairs.folder / f"timed.{rank}.err").read_text() for rank in (0, 1)]
    assert "no voxel of volume.npy has this value" in said[0] and "warning" not in said[1]
    for case in ("unequal", "target"):
        out = [(pairs.folder / f"{case}.{rank}.out").read_text() for rank in (0, 1)]
        assert "psnr=" in out[0] and out[1] == ""
        settings = json.loads((pairs.folder / f"{case}.json").read_text())
        net = FieldNet(SirenConfig(settings["layers"][0], 2))
        net.load_state_dict(torch.load(pairs.folder / f"{case}.pth", weights_only=True))
        volume = slanted(SHAPE)
        decoded = NeuralField.of(net, make_header(SHAPE, volume.min(), volume.max())).on_grid()
        assert settings["psnr"] == pytest.approx(compare(volume, decoded).psnr, abs=1e-3)


def test_two_processes_share_the_bricks(pairs):
    """However long one waits for the other. What each of them has done can be continued by one."""
    assert pairs.statuses["bricks"] == [0, 0, 0]
    found = [json.loads((pairs.folder / f"{case}.json").read_text()) for case in ("bricks", "bricks_alone")]
    assert found[0]["weights_crc32"] == found[1]["weights_crc32"]
    assert found[0]["psnr"] == pytest.approx(found[1]["psnr"], rel=1e-9)  # each process sums the errors of its part
    states = [torch.load(pairs.folder / name, weights_only=True) for name in ("bricks.state", "bricks.state.1")]
    done = [set(state["fit"]["done"]) for state in states]
    assert done[0] | done[1] == {0, 1, 2} and not done[0] & done[1]


@pytest.mark.parametrize(("case", "status"), [("fails", 2), ("hangs", -signal.SIGKILL), ("lost_brick", 2)])
def test_a_process_that_fails_or_hangs_ends_the_run(pairs, case, status):
    assert pairs.statuses[case] == [2, status]
    said = [(pairs.folder / f"{case}.{rank}.err").read_text() for rank in (0, 1)]
    assert "error: another process of this run has failed or does not answer, see its own message\n" in said[0]
    assert "error: lost\n" in said[1] or case == "hangs"
    assert "Traceback" not in said[0] + said[1]
    assert not set(listing(pairs.folder)) & {f"{case}.pth", f"{case}.json"}


def test_bad_input_is_told_once(pairs):
    assert pairs.statuses["refused"] == [2, -signal.SIGKILL]
    first, second = ((pairs.folder / f"refused.{rank}.err").read_text() for rank in (0, 1))
    assert first.count("error: nowhere.npy: cannot be read") == 1 and second == ""


# --- by torchrun itself -----------------------------------------------------------------------------


def torchrun(*args: object) -> list[str]:
    """The command that starts a script in two processes."""
    return [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", *map(str, args)]


def test_ctrl_c_leaves_the_network_of_the_first_process(tmp_path):
    np.save(tmp_path / "v.npy", slanted((12, 11, 10)))
    (tmp_path / "long.py").write_text(f"{PROGRAM}\nlong_runs.LONG_SECONDS = 0.0\nrun()")
    command = torchrun("long.py", "--volume", "v.npy", "--max_seconds", 100)
    pipe = {"stderr": subprocess.PIPE, "text": True}
    process = subprocess.Popen(command, cwd=tmp_path, **pipe, start_new_session=True, preexec_fn=hear_ctrl_c)
    for line in process.stderr:
        if line.startswith("training: "):
            break
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate()
    assert process.returncode != 0
    assert stderr.count("interrupted: the network so far") == 1
    assert (tmp_path / "thenet.interrupted.pth").exists() and not (tmp_path / "thenet.pth").exists()
