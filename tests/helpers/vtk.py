"""Volumes as VTK's own readers and writers have them. The only helpers that need VTK."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
from vtkmodules.util.numpy_support import numpy_to_vtk, vtk_to_numpy
from vtkmodules.vtkCommonDataModel import vtkImageData
from vtkmodules.vtkIOImage import vtkMetaImageReader, vtkNIFTIImageReader, vtkNrrdReader
from vtkmodules.vtkIOXML import vtkXMLImageDataReader, vtkXMLImageDataWriter

from formats import vtk_process

VTK_READERS = {
    ".vti": vtkXMLImageDataReader,
    ".nrrd": vtkNrrdReader,
    ".mhd": vtkMetaImageReader,
    ".mha": vtkMetaImageReader,
    ".nii": vtkNIFTIImageReader,
    ".gz": vtkNIFTIImageReader,
}


def vtk_read(path: Path) -> SimpleNamespace:
    """What VTK's own reader finds in a file: dimensions, spacing, origin, direction, name, and array[x, y, z]."""
    reader = VTK_READERS[path.suffix]()
    assert reader.CanReadFile(str(path))
    reader.SetFileName(str(path))
    reader.Update()
    image = reader.GetOutput()
    scalars = image.GetPointData().GetScalars()
    dims, n = image.GetDimensions(), scalars.GetNumberOfComponents()
    array = vtk_to_numpy(scalars).reshape(*dims[::-1], n).transpose(2, 1, 0, 3).astype(float)
    return SimpleNamespace(
        dimensions=dims,
        spacing=image.GetSpacing(),
        origin=image.GetOrigin(),
        direction=tuple(image.GetDirectionMatrix().GetData()),
        name=scalars.GetName(),
        type=scalars.GetDataTypeAsString(),
        array=array[..., 0] if n == 1 else array,
        reader=reader,
    )


def vtk_image(
    arrays, spacing=(1, 1, 1), origin=(0, 0, 0), name="density", extent=None, direction=None, active=None, time=None
):
    """A vtkImageData of array[x, y, z], or of several by name."""
    arrays = arrays if isinstance(arrays, dict) else {name: arrays}
    shape = next(iter(arrays.values())).shape[:3]
    image = vtkImageData()
    image.SetExtent(extent or [v for n in shape for v in (0, n - 1)])
    image.SetSpacing(spacing)
    image.SetOrigin(origin)
    if direction is not None:
        image.SetDirectionMatrix(direction)
    for key, array in arrays.items():
        columns = array.reshape(*shape, -1)
        scalars = numpy_to_vtk(columns.transpose(2, 1, 0, 3).reshape(-1, columns.shape[-1]), deep=True)
        scalars.SetName(key)
        image.GetPointData().AddArray(scalars)
    image.GetPointData().SetActiveScalars(active or next(iter(arrays)))
    if time is not None:
        value = numpy_to_vtk(np.array([time]), deep=True)
        value.SetName("TimeValue")
        image.GetFieldData().AddArray(value)
    return image


def vtk_write(path: Path, *args, **keywords) -> None:
    """Write a `vtk_image` with VTK's own writer."""
    writer = vtkXMLImageDataWriter()
    writer.SetFileName(str(path))
    writer.SetInputData(vtk_image(*args, **keywords))
    assert writer.Write()


# A process that has loaded VTK, and forks one of its own for each file to be read: its path, and where the volume goes.
FORKING = """
import contextlib, json, os, socket, sys
sys.path.insert(0, sys.argv[1])
from formats import vtk_process, vtk_output
import vtkmodules.vtkIOHDF, vtkmodules.vtkIOLegacy, vtkmodules.vtkIOXML
requests = socket.socket(fileno=0)
while True:
    request, (*out,), *_ = socket.recv_fds(requests, 1 << 16, 1)
    if not request:
        break
    if os.fork() == 0:
        try:
            os.dup2(out[0], 1)
            folder, *arguments = json.loads(request)
            os.chdir(folder)
            vtk_process.main(*arguments)
        finally:
            os._exit(0)
    os.close(out[0])
    with contextlib.suppress(ChildProcessError):  # those that have ended, so that their time counts
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
"""


@contextlib.contextmanager
def forked_readers():
    """In place of subprocess.Popen for `formats.vtk_process.read_by_vtk`: as it is, but that nothing is loaded anew."""
    ours, theirs = socket.socketpair()
    command = [sys.executable, "-c", FORKING, str(Path(__file__).resolve().parents[2])]
    with ours, subprocess.Popen(command, stdin=theirs, stderr=subprocess.DEVNULL) as server:
        theirs.close()

        @contextlib.contextmanager
        def popen(command: list[str], **_):
            arguments = command[command.index(vtk_process.ROOT) + 1 :]
            assert command[1:4] == ["-P", "-c", vtk_process.CHILD]
            here, there = os.pipe()
            with os.fdopen(here, "rb") as stdout:
                socket.send_fds(ours, [json.dumps([os.getcwd(), *arguments]).encode()], [there])
                os.close(there)
                yield SimpleNamespace(stdout=stdout, kill=lambda: None)  # it ends when nothing reads what it writes

        yield popen
        ours.close()
        server.wait()
