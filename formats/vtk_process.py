"""VTK's readers in a process of their own, because VTK crashes on damaged files and prints what it likes.

The process writes one line of JSON to stdout, about the volume, with warnings, or about an error. Then it writes the
voxels, x fastest.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import math
import os
import subprocess
import sys

import numpy as np

from cli.console import python
from formats import vtk_images
from formats.common import VolumeError, as_volume_error, suffix_of
from formats.slabs import slices_first
from utils import Geometry, Volume

VTK_READERS = {
    **dict.fromkeys(vtk_images.XML_FORMATS, vtk_images.read_xml),
    ".vtk": vtk_images.read_legacy,
    **dict.fromkeys((".vtkhdf", ".hdf"), vtk_images.read_vtkhdf),
}
SECONDS, SECONDS_PER_BYTE = 60, 5e-5  # most computing that a file may take; 1 MB that becomes 10 GB takes 30 s
ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
CHILD = "import sys; sys.path.insert(0, sys.argv[1]); from formats import vtk_process; vtk_process.main(*sys.argv[2:])"

# --- the parent -------------------------------------------------------------------------------------


def read_by_vtk(path: str, name: str | None, resample: tuple[int, ...] | None) -> Volume:
    """The volume in a file. Raises VolumeError.

    name: which array to read, if the file has several. resample: see `volume_of_data_set` of vtk_grids.py.
    """
    command = python("-c", CHILD, ROOT, path, json.dumps([name, resample]))
    null = subprocess.DEVNULL
    with subprocess.Popen(command, stdin=null, stdout=subprocess.PIPE, stderr=null) as child:
        try:
            found = json.loads(child.stdout.readline() or "{}")
            is_whole = False
            if "shape" in found:
                n_x, n_y, n_z, n_components = found["shape"]
                array = np.empty((n_z, n_y, n_x, n_components), found["dtype"])
                is_whole = child.stdout.readinto(array.reshape(-1).view("u1")) == array.nbytes
        finally:
            child.kill()
    if "error" in found:
        raise VolumeError(found["error"])
    if not is_whole:
        raise VolumeError(f"{path}: damaged, or larger than the memory: VTK's reader dies of it, or does not end")
    sys.stderr.write(found["told"])
    geometry = {key: tuple(value) if isinstance(value, list) else value for key, value in found["geometry"].items()}
    return Volume(array.transpose(2, 1, 0, 3), Geometry(**geometry), time=found["time"])


# --- the child --------------------------------------------------------------------------------------


def main(path: str, chosen: str) -> None:
    """Write the volume in a file to stdout. chosen: the name and the counts of `read_by_vtk` in JSON."""
    out = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # VTK prints on stdout, which becomes stderr
    try:
        with as_volume_error(path, "cannot be read"):
            from formats.vtk_grids import volume_of_data_set

            name, resample = json.loads(chosen)
            _limit(math.inf if resample else SECONDS + os.path.getsize(path) * SECONDS_PER_BYTE)
            with contextlib.redirect_stderr(io.StringIO()) as told:  # by Python; what VTK prints is no text for users
                volume = volume_of_data_set(path, VTK_READERS[suffix_of(path)](path), name, resample)
    except VolumeError as error:
        out.write(json.dumps({"error": str(error)}).encode() + b"\n")
        return
    array = volume.array
    header = {"shape": array.shape, "dtype": array.dtype.str, "time": volume.time, "told": told.getvalue()}
    header["geometry"] = dataclasses.asdict(volume.geometry)
    out.write(json.dumps(header).encode() + b"\n")
    for _, part in slices_first(array, 3, array.dtype):
        out.write(memoryview(part).cast("B"))
    out.close()


def _limit(seconds: float) -> None:
    """Limit this process to the machine's memory and so much computing: a damaged header may ask for more, or all."""
    try:
        import resource
    except ImportError:  # Windows
        return
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for kind, most in ((resource.RLIMIT_AS, memory), (resource.RLIMIT_CPU, seconds), (resource.RLIMIT_CORE, 0)):
        _, hard = resource.getrlimit(kind)
        most = most if hard == resource.RLIM_INFINITY else min(most, hard)  # as `ulimit -v` has it
        if most < math.inf:
            resource.setrlimit(kind, (int(most), int(most)))
