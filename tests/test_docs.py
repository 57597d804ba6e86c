"""The documentation is true: its commands run and print what it shows, its links lead somewhere."""

from __future__ import annotations

import importlib
import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from helpers.networks import field_net, make_blob, make_header
from helpers.original import original_blob
from helpers.scripts import ROOT, results, stored

from field.metrics import Metrics
from formats.reading import read_volume
from utils import UserError

PAGES = ["README.md", "paraview/README.md", "volumes/README.md"]
PAGES += sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "docs").glob("*.md"))
SCRIPTS = ("train.py", "net_compress.py", "net_decompress.py")
# First words of commands that need another program, a network, or minutes.
EXCEPTED = {"apt", "apt-get", "paraview", "pip", "pytest", "ruff", "torchrun"}
OTHER_SCRIPTS = {"tests/portability.py", "volumes/make_test_vol.py"}
OTHER_SCRIPTS |= {path.relative_to(ROOT).as_posix() for path in (ROOT / "benchmarks").glob("*.py")}
EXCEPTED |= OTHER_SCRIPTS
OTHER_FLAGS = {"--standalone", "--nproc_per_node", "--check", "--perturb"}  # of torchrun, ruff and pytest
OPTIONAL = {"matplotlib", "pyvista", "xarray"}  # packages without which a block of Python is left out
MOST_LINES = 150  # of the README: one page
# Figures that follow from the training, or from the machine: they are there and not below zero, no more.
MEASURED = {
    "psnr",
    "psnr_when_written",
    "rmse",
    "max_error",
    "bytes",
    "bits_per_weight",
    "file_ratio",
    "source_ratio",
    "seconds",
}
MEASURED |= {f"psnr_t{step}" for step in range(8)} | {"n_layers", "parameters", "compression_ratio"}


def text_of(page: str) -> str:
    return (ROOT / page).read_text(encoding="utf-8")


def blocks_of(page: str) -> list[tuple[str, str]]:
    """(language, text) of every fenced block."""
    return re.findall(r"^```(\w*)\n(.*?)^```\n", text_of(page), re.M | re.S)


def first_word(command: str) -> str:
    """What a command runs: a program, or the script that Python runs, or the module of `python -m`."""
    words = [word for word in shlex.split(command) if not re.match(r"[A-Z_]+=", word)]
    if words[0] == "python":
        words = words[2:] if words[1] == "-m" else words[1:]
    return words[0]


# --- what stands in the pages ---------------------------------------------------------------------------


def test_two_commands_lead():
    """Each of the first two blocks of the README is one command that does all its own set-up."""
    blocks = blocks_of("README.md")
    assert blocks[0][1] == "pip install -r requirements.txt && python train.py --volume volumes/test_vol.npy\n"
    assert blocks[1][1] == "pip install -r tests/requirements.txt && python -m pytest\n"


def test_the_readme_is_one_page():
    assert len(text_of("README.md").splitlines()) <= MOST_LINES


def anchors_of(page: str) -> set[str]:
    """The names that GitHub gives the headings of a page."""
    headings = re.findall(r"^#+ (.*)$", text_of(page), re.M)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES)
def test_links_and_pictures_exist(page):
    for target, _, anchor in re.findall(r"\]\(([^)#\s]*)(#([^)\s]*))?\)", text_of(page)):
        if "://" not in target:
            path = ((ROOT / page).parent / target).resolve() if target else ROOT / page
            assert path.is_file(), target
            assert not anchor or anchor in anchors_of(path.relative_to(ROOT).as_posix()), f"{target}#{anchor}"


@pytest.mark.parametrize("page", PAGES)
def test_files_of_the_code_exist(page):
    for path in re.findall(r"`(\w+/[\w/]+\.py)\b", text_of(page)):
        assert (ROOT / path).is_file(), path


def test_the_readme_leads_to_every_page():
    assert set(PAGES) - {"README.md"} <= set(re.findall(r"\]\(([^)#\s]*)", text_of("README.md")))


@pytest.mark.parametrize("page", PAGES)
def test_flags_exist(page):
    known = set(OTHER_FLAGS)
    for script in OTHER_SCRIPTS:
        known |= set(re.findall(r'add_argument\(\s*"(--\w+)"', text_of(script)))
    for module in ("training.options", "net_compress", "field.options"):
        known |= set(importlib.import_module(module).build_parser()._option_string_actions)
    assert set(re.findall(r"(?<![\w-])--[a-z]\w*(?:-\w+)*", text_of(page))) <= known


def keys_explained() -> set[str]:
    """The keys in the table of what the scripts print; of numbered ones that of number 0."""
    section = text_of("docs/size-and-quality.md").split("## What the printed figures mean")[1]
    return set(re.findall(r"`(\w+)`", "".join(re.findall(r"^\| (`.*?) \|", section, re.M))))


# --- what the pages do ----------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The current folder: what the commands find in a clone, and may write to."""
    (tmp_path / "volumes").mkdir()
    shutil.copy(ROOT / "volumes" / "test_vol.npy", tmp_path / "volumes")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def give_blob(folder: Path) -> None:
    """A blob as of the test volume."""
    (folder / "compressed_out").write_bytes(make_blob(make_header((80, 64, 56)), field_net()))


def give_network(folder: Path) -> None:
    """What train.py has written."""
    stored("waves", folder)


def give_original(folder: Path) -> None:
    """Files of the original scripts, and the volume that they are of."""
    state = stored("waves", folder)
    keys = ("n_layers", "layers", "w0", "compression_ratio", "is_residual")
    (folder / "original.json").write_text(json.dumps({key: state.settings[key] for key in keys}))
    shutil.move(state.network, folder / "original.pth")
    state.config.unlink()
    np.save(folder / "volume.npy", np.random.default_rng(0).random((9, 8, 7), np.float32))
    blob, _ = original_blob(np.random.default_rng(0), 8, 6, 3, True)
    (folder / "original_blob").write_bytes(blob)


# What a page takes for granted; all else is made by its own blocks.
GIVEN = {
    "docs/decoding.md": give_blob,
    "docs/original.md": give_original,
    "docs/rounding.md": give_network,
    "docs/size-and-quality.md": give_network,
}


def run(capsys, command: str, *, is_shown: bool) -> str:
    """What a script prints in this process. A fit, or a rounding with training, is brief.

    A network whose figures are not shown is small. A picture is left out where VTK cannot render.
    """
    script, *arguments = shlex.split(command)[1:]
    if script == "train.py":
        arguments += ["--n_passes", "1"] if is_shown else ["--n_passes", "0.1", "--n_layers", "2"]
    elif script == "net_compress.py" and "--volume" in arguments:
        arguments += ["--n_passes", "0.1"]
    try:
        importlib.import_module(script.removesuffix(".py")).main(arguments)
    except UserError as error:
        if "--preview" not in arguments or "no renderer" not in str(error):
            raise
    return capsys.readouterr().out


def assert_as_shown(printed: str, shown: str) -> None:
    """The keys that are shown, in order, the values that are sure, and the same next step."""
    found, expected = (dict(re.findall(r"^(\w+)=(.*)$", text, re.M)) for text in (printed, shown))
    assert list(found) == list(expected)
    for key, value in expected.items():
        assert float(found[key]) >= 0 if key in MEASURED else found[key] == value, key
    assert re.findall("^next:.*", printed, re.M) == re.findall("^next:.*", shown, re.M)


def expect_scan(folder: Path) -> None:
    """The scan has come back as it was."""
    scan, back = (read_volume(name) for name in ("scan.nii.gz", "back.nii.gz"))
    assert back.geometry == scan.geometry
    assert back.array.dtype == np.int16 and back.array.shape == (80, 64, 56)


def expect_parts(folder: Path) -> None:
    """Values and derivatives at positions; the parts, which ParaView opens."""
    assert (folder / "values.csv").read_text().startswith("x,y,z,sf,dsf/dx,dsf/dy,dsf/dz\n1.0,2.0,3.0,")
    assert read_volume("part.vti").array.shape == (32, 64, 36)
    assert read_volume("fine.vti").array.shape == (128, 256, 144)


def expect_series(folder: Path) -> None:
    """The files that ParaView plays; missing voxels as they were."""
    assert (folder / "recon.pvd").exists() and (folder / "between.vti").exists()
    before, after = np.load("ball.npy"), read_volume("ball.vti").array
    assert np.array_equal(before == -999, after == -999)


def test_every_printed_key_is_explained(folder, capsys, small_blocks, quick_vtk):
    """Of a volume in bricks, of positions in it, and of a series; all with components, missing and clipped voxels."""
    array = np.random.default_rng(0).random((2, 9, 8, 7, 2)).astype(np.float16)
    array[:, :2] = -1
    np.save("volume.npy", array[0])
    np.save("series.npy", array)
    (folder / "where.csv").write_text("x,y,z\n1,2,3\n20,2,3\n")
    flags = "--d_out 2 --fill -1 --clip 0.1,0.9"
    files = "--checkpoint state --enable-vol-debug"
    printed = {}
    for command in (
        f"train.py --volume volume.npy {flags} {files} --bricks 2,1,1 --num_workers 1",
        "net_compress.py --volume volume.npy --num_workers 1",
        "net_decompress.py --volume volume.npy",
        "net_decompress.py --points where.csv --outside nan --recon values.csv",
        f"train.py --volume series.npy {flags}",
        "net_compress.py",
        "net_decompress.py",
        "net_decompress.py --volume series.npy",
    ):
        printed |= results(run(capsys, f"python {command}", is_shown=False))
    printed |= Metrics(1.0, 1.0, 1.0, (1.0, 1.0), n_voxels=8).report(n_voxels=9)  # of a part of a huge volume
    assert {re.sub("[0-9]+", "0", key) for key in printed} <= keys_explained()
    assert {"psnr_t1", "psnr_1", "clipped", "outside", "gt", "bricks", "last_step", "source_ratio"} <= printed.keys()


EXPECTED = {
    "docs/decoding.md": expect_parts,
    "docs/series-vectors-missing.md": expect_series,
    "docs/volume-files.md": expect_scan,
}


@pytest.mark.parametrize("page", PAGES)
def test_blocks_in_order(page, folder, capsys, small_blocks, quick_vtk):
    """Commands run; those after a dollar sign print what is shown; Python runs where its packages are there."""
    if page in GIVEN:
        GIVEN[page](folder)
    for language, block in blocks_of(page):
        if language == "python":
            try:
                exec(block, {})
            except ModuleNotFoundError as error:
                if error.name not in OPTIONAL:
                    raise
        elif block.startswith("$ "):
            first, _, shown = block.partition("\n")
            assert first_word(first.removeprefix("$ ")) in SCRIPTS
            assert_as_shown(run(capsys, first.removeprefix("$ "), is_shown=True), shown)
        elif not language:
            for line in block.splitlines():
                word = first_word(line)
                assert word in EXCEPTED or word in SCRIPTS, line
                if word in SCRIPTS:
                    run(capsys, line, is_shown=False)
        else:
            assert language in ("mermaid", "text")
    if page in EXPECTED:
        EXPECTED[page](folder)


def test_the_first_command_as_a_process(folder):
    """In a folder that holds the scripts, what they import, and the volume, and nothing else of the repository."""
    for path in ROOT.glob("*.py"):
        shutil.copy(path, folder)
    for path in ROOT.glob("*/__init__.py"):
        shutil.copytree(path.parent, folder / path.parent.name)
    command = shlex.split(blocks_of("README.md")[0][1].split(" && python ")[1])
    command += ["--n_passes", "0.1", "--n_layers", "2"]
    done = subprocess.run([sys.executable, *command], cwd=folder, capture_output=True, text=True)
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


def test_every_module_has_its_place_in_the_layout():
    """The tables of docs/contributing.md name each module of a folder once, and no other."""
    page = (ROOT / "docs" / "contributing.md").read_text()
    parts = re.split(r"^`(\w+)/`$", page.partition("### Where to look")[2].partition("\n## ")[0], flags=re.M)
    folders = dict(zip(parts[1::2], parts[2::2], strict=True))
    assert set(folders) == {path.parent.name for path in ROOT.glob("*/__init__.py")} - {"tests", "benchmarks"}
    for folder, table in folders.items():
        named = [name for line in table.splitlines() for name in re.findall(r"`(\w+)`", line.rpartition(" | ")[2])]
        assert sorted(named) == sorted({path.stem for path in (ROOT / folder).glob("*.py")} - {"__init__"})
