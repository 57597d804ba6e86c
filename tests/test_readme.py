"""The README's commands run and print what it shows."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"^```\n(.*?)^```\n", README, re.M | re.S)
TOLERANCES = {"psnr": 1.0, "rmse": 0.1, "max_error": 1.0, "bytes": 500, "bits_per_weight": 0.5, "file_ratio": 50}


def shown_runs():
    """(command, output) of every block that shows a command, after a dollar sign, with its output."""
    for block in BLOCKS:
        first, _, output = block.partition("\n")
        if first.startswith("$ "):
            yield first[2:], output


def test_two_commands_lead():
    """Each of the first two blocks is one command that does all its own set-up."""
    assert BLOCKS[0] == "pip install -r requirements.txt && python train.py --volume volumes/test_vol.npy\n"
    assert BLOCKS[1] == "pip install -r tests/requirements.txt && python -m pytest\n"


@pytest.fixture(scope="module")
def copy(tmp_path_factory):
    """A copy of the scripts and the volume, in which the commands may write."""
    folder = tmp_path_factory.mktemp("readme")
    for path in ROOT.glob("*.py"):
        shutil.copy(path, folder)
    shutil.copytree(ROOT / "volumes", folder / "volumes")
    return folder


def test_shown_commands(copy):
    """Every shown command, in order, ends well and prints the keys that are shown, and about the figures."""
    runs = list(shown_runs())
    scripts = [command.split()[1] for command, _ in runs]
    assert list(dict.fromkeys(scripts)) == ["train.py", "net_compress.py", "net_decompress.py"]
    for command, shown in runs:
        program, *arguments = command.split()
        assert program == "python"
        run = subprocess.run([sys.executable, *arguments], cwd=copy, capture_output=True, text=True)
        assert run.returncode == 0, run.stderr
        expected, printed = (dict(re.findall(r"^(\w+)=(.*)$", text, re.M)) for text in (shown, run.stdout))
        assert list(printed) == list(expected)
        for key, value in expected.items():
            if key in TOLERANCES:
                assert float(printed[key]) == pytest.approx(float(value), abs=TOLERANCES[key]), key
            elif key != "seconds":
                assert printed[key] == value
        assert [line for line in shown.splitlines() if line.startswith("next:")] == [
            line for line in run.stdout.splitlines() if line.startswith("next:")
        ]


def test_other_commands_on_that_blob(copy):
    """What the README shows without output runs too, on the blob of the shown commands, Python included."""
    (copy / "where.csv").write_text("x,y,z\n1,2,3\n")
    commands = [line for block in BLOCKS for line in block.splitlines() if line.startswith(("python net_d",))]
    commands = [line.split()[1:] for line in commands if "--compressed compressed_out" in line]
    commands += [["-c", block] for block in re.findall(r"^```python\n(.*?)^```\n", README, re.M | re.S)]
    assert len(commands) > 4
    for command in commands:
        run = subprocess.run([sys.executable, *command], cwd=copy, capture_output=True, text=True)
        assert run.returncode == 0, run.stderr
    assert (copy / "values.csv").read_text().startswith("x,y,z,sf,dsf/dx,dsf/dy,dsf/dz\n1,2,3,")
