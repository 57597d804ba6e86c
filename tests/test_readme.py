"""The README's commands run and print what it shows."""

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from volume_io import read_volume

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```\n", README, re.M | re.S)  # (language, text)
TOLERANCES = {"psnr": 2.0, "rmse": 0.1, "max_error": 1.0, "bytes": 500, "bits_per_weight": 0.5}
TOLERANCES |= {"file_ratio": 50, "source_ratio": 25}
TOLERANCES |= {f"psnr_t{step}": 3.0 for step in range(8)}
OWN_BLOBS = r"python net_decompress\.py --compressed (compressed_out|series)\b"  # those that shown commands have made


def test_two_commands_lead():
    """Each of the first two blocks is one command that does all its own set-up."""
    assert BLOCKS[0][1] == "pip install -r requirements.txt && python train.py --volume volumes/test_vol.npy\n"
    assert BLOCKS[1][1] == "pip install -r tests/requirements.txt && python -m pytest\n"


@pytest.fixture(scope="module")
def copy(tmp_path_factory):
    """A copy of the scripts and the volume, in which the commands may write."""
    folder = tmp_path_factory.mktemp("readme")
    for path in ROOT.glob("*.py"):
        shutil.copy(path, folder)
    shutil.copytree(ROOT / "volumes", folder / "volumes")
    (folder / "where.csv").write_text("x,y,z\n1,2,3\n")
    return folder


def run(folder, *arguments):
    """What Python prints; it ends well."""
    done = subprocess.run([sys.executable, *arguments], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def assert_as_shown(printed, shown):
    """The keys that are shown, in order, with about the figures; and the same next step."""
    found, expected = (dict(re.findall(r"^(\w+)=(.*)$", text, re.M)) for text in (printed, shown))
    assert list(found) == list(expected)
    for key, value in expected.items():
        if key in TOLERANCES:
            assert float(found[key]) == pytest.approx(float(value), abs=TOLERANCES[key]), key
        elif key != "seconds":
            assert found[key] == value
    assert re.findall("^next:.*", printed, re.M) == re.findall("^next:.*", shown, re.M)


def test_every_block_in_order(copy):
    """Commands after a dollar sign print what is shown; those without output, on blobs made before, and Python run."""
    scripts = []
    for language, block in BLOCKS:
        first, _, shown = block.partition("\n")
        if language == "python":
            run(copy, "-c", block)
        elif first.startswith("$ python "):
            scripts.append(first.split()[2])
            assert_as_shown(run(copy, *shlex.split(first)[2:]), shown)
        else:
            for line in block.splitlines():
                if re.match(OWN_BLOBS, line):
                    run(copy, *shlex.split(line)[1:])
    assert list(dict.fromkeys(scripts)) == ["train.py", "net_compress.py", "net_decompress.py"]
    assert (copy / "values.csv").read_text().startswith("x,y,z,sf,dsf/dx,dsf/dy,dsf/dz\n1,2,3,")
    scan, back = (read_volume(str(copy / name)) for name in ("scan.nii.gz", "back.nii.gz"))
    assert (back.spacing, back.origin, back.direction) == (scan.spacing, scan.origin, scan.direction)
    assert back.array.dtype == np.int16 and back.array.shape == (48, 56, 40)
    assert (copy / "recon.pvd").exists() and (copy / "between.vti").exists()
