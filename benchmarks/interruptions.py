"""Runs of the scripts that are killed, interrupted or short of disk space, for attack.py: which files they leave."""

from __future__ import annotations

import dataclasses
import functools
import importlib
import json
import os
import resource
import signal
import sys
import tempfile
import time
import traceback
import tracemalloc
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
from helpers.networks import field_net, make_blob, make_header
from helpers.scripts import compress, stored
from helpers.volumes import wave

from cli import console
from utils import UserError

SIGNALS = (signal.SIGKILL, signal.SIGKILL, signal.SIGINT, signal.SIGTERM)
NETWORK = ("--n_layers", "2", "--n_passes", "1", "--batchSize", "64")
COMMANDS = {
    "train": ("--volume", "volume.npy", "--network", "out.pth", "--config", "out.json", *NETWORK),
    "net_compress": ("--net", "thenet.pth", "--config", "thenet.json", "--compressed", "out"),
    "net_decompress": ("--compressed", "blob", "--recon", "out.mhd"),
}
OTHERWISE = {
    "train": ("--seed", "5"),
    "net_compress": ("--cluster_bits", "3"),
    "net_decompress": ("--compressed", "another"),
}


@dataclasses.dataclass(frozen=True)
class Job:
    """A command, the files that an earlier run has left, and what the command makes of them."""

    inputs: dict[str, bytes]
    old: dict[str, bytes]
    new: dict[str, bytes]
    seconds: float


@functools.cache
def jobs() -> dict[str, Job]:
    """A job for each script."""
    found = {}
    for script, arguments in COMMANDS.items():
        importlib.import_module(script)  # before its processes are forked
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            np.save(folder / "volume.npy", wave((14, 12, 10)))
            stored("wave", folder)
            for seed, file in enumerate(("blob", "another")):
                (folder / file).write_bytes(make_blob(make_header((14, 12, 10)), field_net(seed)))
            inputs = files_in(folder)
            old = _outputs(script, arguments + OTHERWISE[script], folder)
            started = time.monotonic()
            new = _outputs(script, arguments, folder)
            found[script] = Job(inputs, old, new, time.monotonic() - started)
    return found


def _outputs(script: str, arguments: Sequence[str], folder: Path) -> dict[str, bytes]:
    """What an undisturbed run writes."""
    status, text = ended(*start(script, arguments, folder))
    assert status == 0, text
    return {name: content for name, content in files_in(folder).items() if name.startswith("out")}


def files_in(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def start(script: str, arguments: Sequence[str], folder: Path, file_bytes: int | None = None) -> tuple[int, int]:
    """Start a script in a forked process: its id, and the pipe to which it prints. file_bytes: none of its files may
    be larger."""
    printed, out = os.pipe()
    child = os.fork()
    if child:
        os.close(out)
        return child, printed
    status = 1
    try:
        tracemalloc.stop()
        os.dup2(out, 1), os.dup2(out, 2)
        sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w")
        os.chdir(folder)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        if file_bytes is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (file_bytes, file_bytes))
        sys.argv = [f"{script}.py", *arguments]
        console.run(importlib.import_module(script).main)
        status = 0
    except SystemExit as end:
        status = end.code
    except KeyboardInterrupt:  # before the script has begun
        status = 130
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush(), sys.stderr.flush()
        os._exit(status)


def ended(child: int, printed: int) -> tuple[int, str]:
    """(Status of a process, negative if a signal ended it; what it has printed)."""
    try:
        with os.fdopen(printed) as file:
            text = file.read()
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), text
    except BaseException:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        raise


# --- what attack.py asks for ------------------------------------------------------------------------


def write_kill(rng: np.random.Generator, folder: Path) -> None:
    """The files before a run, and at which moment which signal is to come."""
    script = str(rng.choice(list(COMMANDS)))
    number = SIGNALS[int(rng.integers(len(SIGNALS)))]
    _write(folder, script, signal=int(number), after=jobs()[script].seconds * float(rng.uniform(0, 1.2)))


def write_full_disk(rng: np.random.Generator, folder: Path) -> None:
    """The files before a run, and how large its files can become."""
    script = str(rng.choice(list(COMMANDS)))
    largest = max(map(len, jobs()[script].new.values()))
    _write(folder, script, file_bytes=int(rng.integers(largest + 10)))


def _write(folder: Path, script: str, **plan: float) -> None:
    job = jobs()[script]
    for name, content in {**job.inputs, **job.old}.items():
        (folder / name).write_bytes(content)
    (folder / "plan.json").write_text(json.dumps({"script": script, **plan}))


def run_and_check(folder: Path) -> None:
    """Run as planned; fails unless all files are those of before or those of a whole run."""
    plan = json.loads((folder / "plan.json").read_text())
    script, job = plan["script"], jobs()[plan["script"]]
    before = {path.name for path in folder.iterdir()}
    child, printed = start(script, COMMANDS[script], folder, plan.get("file_bytes"))
    if "signal" in plan:
        time.sleep(plan["after"])
        os.kill(child, plan["signal"])  # to a process that has ended it does nothing: nobody has waited for it yet
    status, text = ended(child, printed)
    left = {name for name in files_in(folder) if name not in before}
    found, old, new = (versions(files) for files in (_found(folder, job), job.old, job.new))
    assert status in (0, 2, 130, 143, -signal.SIGKILL, -signal.SIGTERM), f"status {status}: {text}"
    assert "Traceback" not in text, text
    if status == 0:
        assert found == new, "ended well, without the new files"
    elif status == -signal.SIGKILL:
        assert all(found[name] in (old[name], new[name]) for name in found), "a torn file"
        assert found in (old, new) or len(found) < len(new) or is_refused(folder), "a mixed set that nothing notices"
        left = {name for name in left if not name.endswith(".tmp")}
    else:
        assert found in (old, new), "a mixed set of files"
        assert text.count("error: ") == 1 or status != 2, text  # a warning may stand before it
    assert not left, f"files that are left: {left}"
    if status == 2:
        raise UserError(text)


def _found(folder: Path, job: Job) -> dict[str, bytes]:
    return {name: content for name, content in files_in(folder).items() if name in job.new}


def versions(files: Mapping[str, bytes]) -> dict[str, object]:
    """What tells the files of one run from those of another, without the times that a configuration holds."""
    return {
        name: json.loads(content)["weights_crc32"] if name.endswith(".json") else zlib.crc32(content)
        for name, content in files.items()
    }


def is_refused(folder: Path) -> bool:
    """Whether net_compress.py notices that a network and its configuration are of different runs."""
    files = SimpleNamespace(network=folder / "out.pth", config=folder / "out.json")
    try:
        compress(files, folder / "mixed")
    except UserError:
        return True
    return False
