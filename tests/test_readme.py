"""The README's commands run and print what it shows."""

import importlib
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from formats.reading import read_volume
from quantising import compensation

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```\n", README, re.M | re.S)  # (language, text)
# Figures that follow from the training, or from the machine: they are there and not below zero, no more.
MEASURED = {"psnr", "rmse", "max_error", "bytes", "bits_per_weight", "file_ratio", "source_ratio", "seconds"}
MEASURED |= {f"psnr_t{step}" for step in range(8)}
BRIEF = {"train.py": ["--n_passes", "1"], "net_compress.py": ["--n_passes", "1"], "net_decompress.py": []}
OWN_BLOBS = r"python net_decompress\.py --compressed (compressed_out|series)\b"  # those that shown commands have made


def test_two_commands_lead():
    """Each of the first two blocks is one command that does all its own set-up."""
    assert BLOCKS[0][1] == "pip install -r requirements.txt && python train.py --volume volumes/test_vol.npy\n"
    assert BLOCKS[1][1] == "pip install -r tests/requirements.txt && python -m pytest\n"


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The current folder: what the commands find in a clone, and may write to."""
    shutil.copytree(ROOT / "volumes", tmp_path / "volumes")
    (tmp_path / "where.csv").write_text("x,y,z\n1,2,3\n")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(capsys, command: str) -> str:
    """What a script prints in this process; a fit, or a rounding with training, is brief."""
    script, *arguments = shlex.split(command)
    brief = BRIEF[script] if script == "train.py" or "--volume" in arguments else []
    importlib.import_module(script.removesuffix(".py")).main([*arguments, *brief])
    return capsys.readouterr().out


def assert_as_shown(printed: str, shown: str) -> None:
    """The keys that are shown, in order, the values that are sure, and the same next step."""
    found, expected = (dict(re.findall(r"^(\w+)=(.*)$", text, re.M)) for text in (printed, shown))
    assert list(found) == list(expected)
    for key, value in expected.items():
        assert float(found[key]) >= 0 if key in MEASURED else found[key] == value, key
    assert re.findall("^next:.*", printed, re.M) == re.findall("^next:.*", shown, re.M)


def test_every_block_in_order(folder, capsys, monkeypatch):
    """Commands after a dollar sign print what is shown; those without output, on blobs made before, and Python run."""
    for size in ("BLOCK", "WIDE_BLOCK"):  # of metrics: the fewer weights have one together, the faster is rounding
        monkeypatch.setattr(compensation, size, 256)
    scripts = []
    for language, block in BLOCKS:
        first, _, shown = block.partition("\n")
        if language == "python":
            exec(block, {})
        elif first.startswith("$ python "):
            scripts.append(first.split()[2])
            assert_as_shown(run(capsys, first.removeprefix("$ python ")), shown)
        else:
            for line in block.splitlines():
                if re.match(OWN_BLOBS, line):
                    run(capsys, line.removeprefix("python "))
    assert list(dict.fromkeys(scripts)) == ["train.py", "net_compress.py", "net_decompress.py"]
    assert (folder / "values.csv").read_text().startswith("x,y,z,sf,dsf/dx,dsf/dy,dsf/dz\n1,2,3,")
    scan, back = (read_volume(name) for name in ("scan.nii.gz", "back.nii.gz"))
    assert (back.geometry.spacing, back.geometry.origin, back.geometry.direction) == (
        scan.geometry.spacing,
        scan.geometry.origin,
        scan.geometry.direction,
    )
    assert back.array.dtype == np.int16 and back.array.shape == (48, 56, 40)
    assert (folder / "recon.pvd").exists() and (folder / "between.vti").exists()


def test_the_first_command_as_a_process(folder):
    """In a folder that holds the scripts and the volume, and nothing else of the repository."""
    for path in ROOT.glob("*.py"):
        shutil.copy(path, folder)
    for path in ROOT.glob("*/__init__.py"):
        shutil.copytree(path.parent, folder / path.parent.name)
    command = shlex.split(BLOCKS[0][1].split(" && python ")[1])
    done = subprocess.run([sys.executable, *command, "--n_passes", "1"], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (folder / "thenet.pth").exists() and (folder / "thenet.json").exists()


@pytest.mark.slow
def test_a_fit_of_the_test_volume(folder, capsys):
    """A quarter of the default passes: the floor is 3 dB below what they give, 13 dB above the original."""
    train, psnrs = importlib.import_module("train"), []
    for seed in range(3):
        train.main(["--volume", "volumes/test_vol.npy", "--n_passes", "12", "--seed", str(seed)])
        psnrs.append(float(re.search(r"^psnr=(.*)$", capsys.readouterr().out, re.M)[1]))
    assert np.median(psnrs) > 36
