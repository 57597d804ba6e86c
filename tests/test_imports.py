"""Which module may import which."""

from __future__ import annotations

import ast
import itertools
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from helpers.scripts import ROOT

SCRIPTS = {"train", "net_compress", "net_decompress"}
# What each folder, and each module beside them, imports of the others: all that it may.
ALLOWED = {
    "quantising": {"cli", "field", "siren", "training", "utils"},
    "training": {"cli", "field", "siren", "utils"},
    "siren": {"field"},
    "field": {"cli", "formats", "utils"},
    "formats": {"cli", "utils"},
    "cli": {"utils"},
    "utils": set(),
}
PACKAGES = {path.parent.name for path in ROOT.glob("*/__init__.py")}
MODULES = {path.stem for path in ROOT.glob("*.py")} | PACKAGES


def files_of(module: str) -> list[Path]:
    """The files of a folder, or the one of a module."""
    return sorted((ROOT / module).rglob("*.py")) if module in PACKAGES else [ROOT / f"{module}.py"]


def imported(path: Path) -> set[str]:
    """The top names of all modules that a file imports, wherever in it."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: the project is no package: no relative imports"
            names.add(node.module.split(".")[0])
    return names


def test_every_module_has_its_rule():
    assert set(ALLOWED) | SCRIPTS == MODULES


@pytest.mark.parametrize("module", sorted(ALLOWED))
def test_modules_import_what_lies_below_them(module):
    """All that the rule allows, so that no permission outlives its use; and nothing else."""
    found = set().union(*map(imported, files_of(module)))
    assert found & MODULES - {module} == ALLOWED[module]


def test_the_rules_have_no_circle():
    left = dict(ALLOWED)
    while left:
        lowest = {module for module, below in left.items() if not below & left.keys()}
        assert lowest, left
        left = {module: below for module, below in left.items() if module not in lowest}


def test_the_plugin_imports_the_field_alone():
    assert imported(ROOT / "paraview" / "neurcomp_reader.py") & MODULES == {"field"}


@pytest.mark.parametrize("script", sorted(SCRIPTS))
def test_scripts_do_not_import_each_other(script):
    assert not imported(ROOT / f"{script}.py") & SCRIPTS


def test_nothing_imports_a_script_but_tests_and_benchmarks():
    for path in ROOT.rglob("*.py"):
        parts = path.relative_to(ROOT).parts
        if parts[0] not in ("tests", "benchmarks") and not any(p.startswith(".") or "venv" in p for p in parts):
            assert not imported(path) & SCRIPTS, path


# A library's user keeps the process as it was: its hooks and handlers, its environment, its streams.
AS_BEFORE = """
import os, signal, sys
def state():
    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    return sys.excepthook, handlers, dict(os.environ), sys.stdin, sys.stdout, sys.stderr
before = state()
import field.neural_field, field.original_blob, formats.reading, formats.writing
assert state() == before
import net_decompress
assert sys.excepthook != before[0] and os.environ["OPENBLAS_NUM_THREADS"] == "1"
"""


def test_nothing_but_a_script_changes_the_process():
    environment = {key: value for key, value in os.environ.items() if key != "OPENBLAS_NUM_THREADS"}
    command = [sys.executable, "-c", AS_BEFORE]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def without(modules: Sequence[str], program: str, folder: Path) -> subprocess.CompletedProcess:
    """Run a program in a Python that cannot import these modules, nor any plugin of pytest."""
    for name in modules:
        (folder / f"{name}.py").write_text("raise ImportError")
    paths = {"PYTHONPATH": f"{folder}{os.pathsep}{ROOT}", "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    command, environment = [sys.executable, "-c", program], {**os.environ, **paths}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)


def test_a_blob_is_decoded_without_torch(tmp_path):
    flags = ["--compressed", str(ROOT / "tests" / "data" / "golden_plain.blob"), "--recon", str(tmp_path / "r.npy")]
    program = f"import net_decompress; net_decompress.main({flags})"
    done = without(("torch", "vtk", "vtkmodules"), program, tmp_path)
    assert done.returncode == 0, done.stderr


# What stands for a GPU machine: the tests of CUDA are collected, and what they call runs.
NO_VTK = """
import sys
from collections.abc import Sequence
from pathlib import Path
import pytest
assert pytest.main(["-m", "gpu", "--collect-only", "tests/test_cuda.py"]) == 0
assert not {"vtk", "vtkmodules", "xdist"} & set(sys.modules)
import numpy as np
from helpers.scripts import compress, decompress, train
folder = Path(FOLDER)
np.save(folder / "v.npy", np.indices((6, 5, 4)).sum(0).astype(np.float32))
trained = train(folder / "v.npy", folder)
assert "torch._dynamo" not in sys.modules  # the compiler, which takes seconds to import
compress(trained, folder / "blob", "--volume", folder / "v.npy", "--n_passes", 1)
assert decompress(folder / "blob", folder / "r.npy", "--volume", folder / "v.npy").shape == (6, 5, 4)
"""


def test_the_tests_of_cuda_and_npy_files_need_no_vtk(tmp_path):
    program = NO_VTK.replace("FOLDER", repr(str(tmp_path)))
    done = without(("vtk", "vtkmodules", "xdist"), program, tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "tests/test_cuda.py::" in done.stdout


def test_only_the_readers_of_volumes_and_the_pictures_know_vtk():
    knowing = {"drawing", "rendering", "plot", "conversion"}
    knowing |= {"vtk_grids", "vtk_output", "vtk_images"}
    for path in itertools.chain(*map(files_of, MODULES)):
        assert (path.stem in knowing) == bool(imported(path) & {"vtkmodules", "vtk"}), path


def test_no_torch_is_imported_by_what_reads_a_blob():
    """But in a function, where a GPU is asked for."""
    for path in itertools.chain(*map(files_of, ("field", "formats", "utils", "cli"))):
        tree = ast.parse(path.read_text())
        inner = {
            node for function in ast.walk(tree) if isinstance(function, ast.FunctionDef) for node in ast.walk(function)
        }
        found = [n for n in ast.walk(tree) if isinstance(n, ast.Import | ast.ImportFrom) and n not in inner]
        assert not any("torch" in ast.unparse(node) for node in found), path
