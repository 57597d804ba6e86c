"""Which module may import which."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.scripts import ROOT

SCRIPTS = {"train", "net_compress", "net_decompress"}
ALLOWED = {
    "siren": set(),
    "net_coder": {"entropy_coder", "mask"},
    "mask": set(),
    "outliers": {"utils", "volume"},
    "entropy_coder": set(),
    "quantise": {"fitting", "net_coder", "samples", "siren", "utils"},
    "volume": set(),
    "volume_io": {"volume", "volume_readers", "volume_series"},
    "volume_readers": {"volume"},
    "volume_series": {"volume"},
    "volume_writers": {"cli", "volume"},
    "vtk_readers": {"volume", "volume_readers", "vtk_output"},
    "vtk_output": {"volume", "volume_readers"},
    "cli": set(),
    "utils": {"mask", "net_coder", "volume"},
    "samples": {"utils"},
    "streamed": {"samples", "utils", "volume"},
    "neural_field": {"net_coder", "utils", "volume"},
    "points_io": {"cli"},
    "pictures": {"cli", "colours", "neural_field", "utils", "volume"},
    "colours": set(),
    "fitting": {"optimizers", "ranks", "recovery", "samples", "siren"},
    "recovery": set(),
    "optimizers": set(),
    "ranks": set(),
    "long_runs": {"cli", "fitting", "ranks", "samples", "streamed"},
}
MODULES = {path.stem for path in ROOT.glob("*.py")}


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


def test_every_module_is_there():
    assert set(ALLOWED) | SCRIPTS <= MODULES


@pytest.mark.parametrize("module", sorted(ALLOWED))
def test_modules_import_only_what_lies_below_them(module):
    assert imported(ROOT / f"{module}.py") & MODULES <= ALLOWED[module]


def test_the_plugin_imports_what_evaluates_a_blob():
    assert imported(ROOT / "paraview" / "neurcomp_reader.py") & MODULES <= {"net_coder", "neural_field", "utils"}


@pytest.mark.parametrize("script", sorted(SCRIPTS))
def test_scripts_do_not_import_each_other(script):
    assert not imported(ROOT / f"{script}.py") & SCRIPTS


def test_nothing_imports_a_script_but_tests_and_benchmarks():
    for path in ROOT.rglob("*.py"):
        parts = path.relative_to(ROOT).parts
        if parts[0] not in ("tests", "benchmarks") and not any(p.startswith(".") or "venv" in p for p in parts):
            assert not imported(path) & SCRIPTS, path


def test_a_blob_is_read_and_evaluated_without_torch(tmp_path):
    for name in ("torch", "tqdm"):
        (tmp_path / f"{name}.py").write_text("raise ImportError")
    golden = ROOT / "tests" / "data" / "golden_plain.blob"
    program = f"import neural_field; neural_field.NeuralField.open({str(golden)!r}).on_grid()"
    subprocess.run([sys.executable, "-c", program], env={**os.environ, "PYTHONPATH": f"{tmp_path}:{ROOT}"}, check=True)


def test_only_the_readers_of_volumes_and_the_pictures_know_vtk():
    for module in MODULES - {"pictures", "vtk_output", "vtk_readers"}:
        assert not imported(ROOT / f"{module}.py") & {"vtkmodules", "vtk"}, module
