"""VTK in a process of its own, which may die, hang or run out of memory."""

from __future__ import annotations

import contextlib
import io
import signal
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from helpers.scripts import ROOT
from helpers.volume_files import refusal
from helpers.volumes import slanted
from helpers.vtk import vtk_write

from formats import vtk_process
from formats.reading import read_volume

pytestmark = pytest.mark.usefixtures("quick_vtk")

SHAPE = (4, 3, 2)


@pytest.mark.skipif(sys.platform != "linux", reason="ulimit -v")
def test_a_limit_of_memory_that_is_lower_than_the_machines(tmp_path):
    """As clusters set it."""
    vtk_write(tmp_path / "a.vti", slanted(SHAPE))
    program = (
        f"import resource, sys; sys.path.insert(0, {str(ROOT)!r})\n"
        "resource.setrlimit(resource.RLIMIT_AS, (8 << 30, 8 << 30))\n"
        "from formats.reading import read_volume; print(read_volume('a.vti').array.shape)"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.stdout == "(4, 3, 2)\n", done.stderr


@pytest.mark.skipif(sys.platform != "linux", reason="signals")
def test_a_file_that_vtk_does_not_end_with(tmp_path):
    head = "# vtk DataFile Version 5.1\n\nASCII\nDATASET STRUCTURED_POINTS\nDIMENSIONS 2 2 2\n"
    (tmp_path / "a.vtk").write_text(head + "FIELD field 1\nname 1 99999999999 string\nhello\n")
    program = (
        f"import sys; sys.path.insert(0, {str(ROOT)!r})\n"
        "from formats import vtk_process; vtk_process.SECONDS = 1; vtk_process.main('a.vtk', '[null, null]')"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, timeout=100, check=False)
    assert -done.returncode in (signal.SIGXCPU, signal.SIGKILL)


@pytest.mark.parametrize("said", [b"", b'{"shape": [4, 3, 2, 1], "dtype": "<f4"}\n', None])
def test_a_process_that_dies(said, tmp_path, monkeypatch):
    """Before it has said anything, or before all the voxels are there."""
    said = b'{"shape": [4, 3, 2, 1], "dtype": "<f4"}\n' + bytes(4 * 24 - 1) if said is None else said
    child = contextlib.nullcontext(SimpleNamespace(stdout=io.BytesIO(said), kill=lambda: None))
    monkeypatch.setattr(vtk_process.subprocess, "Popen", lambda *_, **__: child)
    (tmp_path / "a.vti").write_bytes(b"damaged")
    assert "damaged, or larger than the memory" in refusal(tmp_path / "a.vti")


def test_a_process_of_its_own(tmp_path, monkeypatch, capfd):
    """As it is started outside these tests: what it sends, and nothing that VTK prints."""
    monkeypatch.setattr(vtk_process, "subprocess", subprocess)
    vtk_write(tmp_path / "a.vti", {"rho": slanted(SHAPE), "T": -slanted(SHAPE)}, active="T")
    np.testing.assert_array_equal(read_volume(str(tmp_path / "a.vti"), array="rho").array, slanted(SHAPE))
    content = (tmp_path / "a.vti").read_bytes()
    (tmp_path / "b.vti").write_bytes(content[: len(content) // 2])
    capfd.readouterr()
    assert "b.vti: VTK cannot read it: " in refusal(tmp_path / "b.vti")
    assert capfd.readouterr() == ("", "")
