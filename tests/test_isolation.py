"""The suite beside other code: modules of the same names, Python's safe modes, Ctrl-C while modules load."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.scripts import ROOT

SCRIPTS = ("train.py", "net_compress.py", "net_decompress.py")


def run(*command: object, folder: Path, **environment: str) -> subprocess.CompletedProcess:
    """Run Python with these arguments in a folder."""
    return subprocess.run(
        [sys.executable, *map(str, command)],
        cwd=folder,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )


def test_python_that_leaves_out_the_folder_of_the_script(chain, tmp_path):
    """By -I, of which -P is a part, for which PYTHONSAFEPATH=1 stands."""
    for script in SCRIPTS[:2]:
        done = run("-I", ROOT / script, "--help", folder=tmp_path)
        assert done.returncode == 0 and "--volume" in done.stdout, done.stderr
    done = run("-I", ROOT / SCRIPTS[2], "--compressed", chain.blob, "--recon", "r.npy", folder=tmp_path)
    assert done.returncode == 0 and (tmp_path / "r.npy").exists(), done.stderr


@pytest.mark.parametrize("script", SCRIPTS)
def test_ctrl_c_while_modules_load_is_one_line(script, tmp_path):
    """NumPy, that stands for all heavy modules, is interrupted as it is imported."""
    (tmp_path / "numpy.py").write_text("raise KeyboardInterrupt")
    done = run(ROOT / script, "--help", folder=tmp_path, PYTHONPATH=str(tmp_path))
    assert (done.returncode, done.stdout, done.stderr) == (130, "", f"{script}: interrupted\n")


@pytest.mark.parametrize(("script", "package"), [("train.py", "torch"), ("net_decompress.py", "numpy")])
def test_a_package_that_is_not_installed_is_named(script, package, tmp_path):
    """In one line; a module of any other name that is missing is a bug, with a traceback."""
    for missing, is_bug in (package, False), ("cli.summary", True):
        code = f"import runpy, sys; sys.modules[{missing!r}] = None; sys.argv = [{script!r}]; "
        code += f"runpy.run_path({str(ROOT / script)!r}, run_name='__main__')"
        done = run("-c", code, folder=tmp_path)
        assert ("Traceback" in done.stderr) == is_bug
        if not is_bug:
            line = f"{script}: error: {package} is not installed: pip install -r requirements.txt"
            assert (done.returncode, done.stderr.splitlines()) == (2, [line])


def test_modules_of_the_current_folder_are_left_alone(tmp_path):
    """What reads a volume by VTK, or tries its renderer, takes nothing from the folder of the data."""
    (tmp_path / "vtkmodules").mkdir()
    (tmp_path / "vtkmodules" / "__init__.py").write_text("open('executed', 'w')")
    program = (
        f"import sys; sys.path.insert(0, {str(ROOT)!r})\n"
        "from field import rendering\nfrom formats.reading import read_volume\n"
        "for act in (lambda: read_volume('a.vti'), lambda: rendering.check('p.png')):\n"
        "    try:\n        act()\n    except Exception as error:\n        print(error)\n"
    )
    (tmp_path / "a.vti").write_text("no image")
    done = run("-P", "-c", program, folder=tmp_path)
    assert "a.vti: not VTK image data" in done.stdout, done.stderr
    assert not (tmp_path / "executed").exists()


# A ParaView of which there is only what the plugin imports; its decorators leave what they decorate as it is.
PARAVIEW = """
class VTKPythonAlgorithmBase: pass
class _Anything:
    def __call__(self, *_, **__): return lambda decorated: decorated
    def __getattr__(self, name): return self
smdomain = smhint = smproperty = smproxy = _Anything()
"""
BESIDE = """
import importlib.util, sys
sys.path[:0] = [FOLDER, ROOT + "/tests/helpers"]
def load():
    spec = importlib.util.spec_from_file_location("neurcomp_reader", ROOT + "/paraview/neurcomp_reader.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
before = list(sys.path)
if IS_FOREIGN_FIRST:
    import utils, field
    plugin = load()
else:
    plugin = load()
    import utils, field
assert utils.WHOSE == field.WHOSE == "another plugin's" and sys.path == before
assert sys.modules["utils"] is utils and sys.modules["field"] is field
assert not {"formats", "cli", "field.blob", "torch", "vtk"} & set(sys.modules), sys.modules.keys()
print(plugin.NeuralField.open(BLOB).on_grid().shape)
"""


@pytest.mark.parametrize("is_foreign_first", [True, False])
def test_the_plugin_beside_modules_of_the_same_names(is_foreign_first, chain, tmp_path):
    for name in ("utils", "field"):
        (tmp_path / f"{name}.py").write_text('WHOSE = "another plugin\'s"\n')
    (tmp_path / "paraview" / "util").mkdir(parents=True)
    (tmp_path / "paraview" / "util" / "vtkAlgorithm.py").write_text(PARAVIEW)
    names = {"FOLDER": tmp_path, "ROOT": ROOT, "BLOB": chain.blob}
    settings = "".join(f"{key} = {str(value)!r}\n" for key, value in names.items())
    program = f"{settings}IS_FOREIGN_FIRST = {is_foreign_first}\n{BESIDE}"
    done = run("-P", "-c", program, folder=tmp_path)
    assert done.returncode == 0 and done.stdout == "(9, 7, 5)\n", done.stderr


@pytest.mark.skipif(os.name != "posix", reason="a shell")
@pytest.mark.parametrize("closed", ["<&-", "2>&-", ">&-", "<&- >&- 2>&-"])
def test_closed_standard_streams(closed, chain, tmp_path):
    """No file of data takes their numbers; nothing is lost."""
    command = [sys.executable, ROOT / SCRIPTS[2], "--compressed", chain.blob, "--recon", tmp_path / "r.vti"]
    script = f"{shlex.join(map(str, command))} {closed}"
    done = subprocess.run(["sh", "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0 and done.stderr == "" and ("recon=" in done.stdout) == (" >" not in f" {closed}")
    assert (tmp_path / "r.vti").read_bytes().endswith(b"</VTKFile>\n")


def test_names_that_the_encoding_does_not_have(chain, tmp_path):
    command = (ROOT / SCRIPTS[2], "--compressed", chain.blob, "--recon", "\u00e4.npy")
    done = run(*command, folder=tmp_path, PYTHONIOENCODING="ascii")
    assert done.returncode == 0 and "recon=\\xe4.npy" in done.stdout and (tmp_path / "\u00e4.npy").exists()
