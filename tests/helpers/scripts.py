"""The three scripts, run in this process or in one of their own, and what they print and write."""

from __future__ import annotations

import contextlib
import io
import json
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from formats.common import VolumeError
from helpers import perturbation
from siren import weights_crc32
from utils import UserError

ROOT = Path(__file__).resolve().parents[2]
DATA = ROOT / "tests" / "data"  # files of the original scripts, of older versions, trained networks
ADAM = ("--optimizer", "adam", "--lr", 2e-2, "--batchSize", 128)
WELL = ("--n_layers", 1, *ADAM, "--n_passes", 80)  # 40 dB or more of the small volumes here, and soon rounded


def subprocess_of(script: str, *args: object, cwd: Path) -> subprocess.CompletedProcess:
    """One script in a process of its own, its output captured as text."""
    command = [sys.executable, str(ROOT / script), *map(str, args)]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)


def hear_ctrl_c() -> None:
    """For a process that is about to start: not to ignore SIGINT, as one started in a shell's background does."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def results(text: str) -> dict[str, str]:
    """The key=value lines of a script's standard output."""
    return dict(line.split("=", 1) for line in text.splitlines() if "=" in line.split(" ")[0])


def train(volume: object, folder: Path, *flags: object) -> SimpleNamespace:
    """Run train.py in this process, small unless `flags` say otherwise; its state dict, configuration and files.

    volume: the name of a file, or an array, which is saved as v.npy in `folder`.
    """
    import train as script

    if isinstance(volume, np.ndarray):
        np.save(folder / "v.npy", volume)
        volume = folder / "v.npy"
    network, config = folder / "thenet.pth", folder / "thenet.json"
    small = ("--n_passes", 2, "--n_layers", 2, "--batchSize", 64)
    script.main(last_of_each("--volume", volume, "--network", network, "--config", config, *small, *flags))
    state = torch.load(network, weights_only=True)
    return SimpleNamespace(
        network=network, config=config, state=state, settings=json.loads(config.read_text()), data=network.read_bytes()
    )


def last_of_each(*flags: object) -> list[str]:
    """The flags, each with its last value alone: a script warns of one that is given twice."""
    found: dict[str, list[str]] = {}
    for text in map(str, flags):
        if text.startswith("--"):
            found[text] = values = [text]
        else:
            values.append(text)
    return [text for group in found.values() for text in group]


def compress(trained: SimpleNamespace, blob: Path, *flags: object) -> bytes:
    """Run net_compress.py in this process; the blob."""
    import net_compress as script

    arguments = ("--net", trained.network, "--config", trained.config, "--compressed", blob, *flags)
    script.main([str(a) for a in arguments])
    return blob.read_bytes()


def decompress(blob: Path, recon: Path, *flags: object) -> np.ndarray:
    """Run net_decompress.py in this process; the array, of a .npy file or as VTK's own reader gives it."""
    import net_decompress as script

    script.main([str(a) for a in ("--compressed", blob, "--recon", recon, *flags)])
    if recon.suffix == ".npy":
        return np.load(recon)
    from helpers.vtk import vtk_read

    return vtk_read(recon).array


def round_trip(array: np.ndarray, folder: Path, *flags: object, bits: int = 12) -> np.ndarray:
    """The array that the chain of three scripts makes of `array`; `flags` are train.py's."""
    path = folder / "in.npy"
    np.save(path, array)
    compress(train(path, folder, "--n_layers", 1, *flags), folder / "blob", "--cluster_bits", bits)
    return decompress(folder / "blob", folder / "out.npy")


def compared_round_trip(array: np.ndarray, folder: Path, *flags: object) -> tuple[np.ndarray, list[dict[str, str]]]:
    """`round_trip` of a network trained well, each script given the array to compare with; and what each prints."""
    path, blob, printed = folder / "in.npy", folder / "blob", [io.StringIO() for _ in range(3)]
    np.save(path, array)
    with contextlib.redirect_stdout(printed[0]):
        trained = train(path, folder, *WELL, *flags)
    with contextlib.redirect_stdout(printed[1]):
        compress(trained, blob, "--volume", path, "--n_passes", 8)
    with contextlib.redirect_stdout(printed[2]):
        decoded = decompress(blob, folder / "out.npy", "--volume", path)
    return decoded, [results(text.getvalue()) for text in printed]


def stored_state(name: str) -> dict[str, torch.Tensor]:
    """The weights of a trained network of tests/data."""
    state = torch.load(DATA / f"{name}.pth", weights_only=True)
    perturbation.move(state)
    return state


def stored(name: str, folder: Path) -> SimpleNamespace:
    """A trained network of tests/data, copied to `folder`: what `train` returns. See make_networks.py there."""
    network, config = folder / "thenet.pth", folder / "thenet.json"
    state = stored_state(name)
    torch.save(state, network)
    settings = json.loads((DATA / f"{name}.json").read_text()) | {"weights_crc32": weights_crc32(state)}
    config.write_text(json.dumps(settings))
    return SimpleNamespace(network=network, config=config, state=state, settings=settings, data=network.read_bytes())


def error_of(main, *argv: object) -> str:
    """The one line with which `main(argv)` refuses."""
    with pytest.raises((UserError, VolumeError)) as caught:
        main([str(a) for a in argv])
    return " ".join(str(caught.value).split())


def listing(folder: Path) -> dict[str, bytes]:
    """Every file below `folder` and its content."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}
