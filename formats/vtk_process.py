"""VTK's readers in a process of their own, because VTK crashes on damaged files and prints what it likes.

The process writes one line of JSON to stdout, about the volume, with warnings, or about an error. Then it writes the
voxels, x fastest. Voxels that a file stores unchanged stay in the file; the line of JSON then says where they are.

Voxels keep the order of their file, also where VTK reverses an axis.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import itertools
import json
import math
import os
import subprocess
import sys
from collections.abc import Iterator

import numpy as np

from cli.console import python
from formats import metaimage, nifti, vtk_images
from formats.common import VolumeError, as_volume_error, suffix_of
from utils import Geometry, Volume

VTK_READERS = {
    **dict.fromkeys(vtk_images.XML_FORMATS, vtk_images.read_xml),
    ".vtk": vtk_images.read_legacy,
    **dict.fromkeys((".vtkhdf", ".hdf"), vtk_images.read_vtkhdf),
    **dict.fromkeys((".mhd", ".mha"), metaimage.read_meta),
    **dict.fromkeys((".nii", ".nii.gz"), nifti.read_nifti),
}
OF_GRIDS = (*vtk_images.XML_FORMATS, ".vtk", ".vtkhdf", ".hdf")  # formats of several arrays, on grids of any kind
SECONDS, SECONDS_PER_BYTE = 60, 5e-5  # most computing that a file may take; 1 MB that becomes 10 GB takes 30 s
ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
CHILD = "import sys; sys.path.insert(0, sys.argv[1]); from formats import vtk_process; vtk_process.main(*sys.argv[2:])"

# --- the parent -------------------------------------------------------------------------------------


def read_by_vtk(path: str, name: str | None = None, resample: tuple[int, ...] | None = None) -> Volume:
    """The volume in a file. Raises VolumeError.

    name: which array to read, if the file has several. resample: see `volume_of_data_set` of vtk_grids.py. Both are for
    the formats OF_GRIDS.
    """
    chosen = [json.dumps([name, resample])] if name is not None or resample else []
    command = python("-c", CHILD, ROOT, path, *chosen)
    null = subprocess.DEVNULL
    with subprocess.Popen(command, stdin=null, stdout=subprocess.PIPE, stderr=null) as child:
        try:
            found = json.loads(child.stdout.readline() or "{}")
            shape, dtype, place = (found.pop(key, None) for key in ("shape", "dtype", "map"))
            is_whole = place is not None
            if shape and not is_whole:
                *times, n_x, n_y, n_z, n_components = shape
                array = np.empty((*times, n_z, n_y, n_x, n_components), dtype)
                is_whole = child.stdout.readinto(array.reshape(-1).view("u1")) == array.nbytes
                array = array.swapaxes(-2, -4)
        finally:
            child.kill()
    if "error" in found:
        raise VolumeError(found["error"])
    if not is_whole:
        raise VolumeError(f"{path}: damaged, or larger than the memory: VTK's reader dies of it, or does not end")
    sys.stderr.write(found["told"])
    if place:
        array = _mapped(*place, shape, dtype)
    geometry = {key: tuple(value) if isinstance(value, list) else value for key, value in found["geometry"].items()}
    return Volume(array, Geometry(**geometry), time=found["time"])


def _mapped(path: str, offset: int, strides: list[int], shape: list[int], dtype: str) -> np.ndarray:
    """The values that a file holds, as a memory map. strides: bytes between neighbours along each axis."""
    order = sorted(range(len(shape)), key=strides.__getitem__)  # fastest first
    array = np.memmap(path, dtype, "r", offset, tuple(shape[axis] for axis in order), order="F")
    return array.transpose(np.argsort(order))


# --- the child --------------------------------------------------------------------------------------


def main(path: str, *chosen: str) -> None:
    """Write the volume in a file to stdout. chosen: nothing, or the name and the counts of `read_by_vtk` in JSON."""
    out = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # VTK prints on stdout, which becomes stderr
    try:
        with as_volume_error(path, "cannot be read"):
            name, resample = json.loads(chosen[0]) if chosen else (None, None)
            _limit(math.inf if resample else _most_seconds(path))
            with contextlib.redirect_stderr(io.StringIO()) as told:  # by Python; what VTK prints is no text for users
                volume = VTK_READERS[suffix_of(path)](path, *((name, resample) if chosen else ()))
    except VolumeError as error:
        out.write(json.dumps({"error": str(error)}).encode() + b"\n")
        return
    array = volume.array
    header = {"shape": array.shape, "dtype": array.dtype.str, "time": volume.time, "told": told.getvalue()}
    header["geometry"] = dataclasses.asdict(volume.geometry)
    if is_mapped := isinstance(array, np.memmap):
        header["map"] = [array.filename, array.offset, array.strides]
    out.write(json.dumps(header).encode() + b"\n")
    for box in () if is_mapped else _slices(array.shape):
        out.write(memoryview(np.ascontiguousarray(array[box].swapaxes(-2, -4))).cast("B"))
    out.close()


def _slices(shape: tuple[int, ...]) -> Iterator[tuple[slice, ...]]:
    """Yield boxes of one place along z, and of one step of a series, for an array ((t,) x, y, z, components)."""
    *times, _, _, n_z, _ = shape
    for *before, z in itertools.product(*(range(n) for n in (*times, n_z))):
        yield (*(slice(t, t + 1) for t in before), slice(None), slice(None), slice(z, z + 1))


def _most_seconds(path: str) -> float:
    """How much computing a file may take to be read."""
    source = metaimage.data_file(path) if VTK_READERS[suffix_of(path)] is metaimage.read_meta else path
    return SECONDS + os.path.getsize(source) * SECONDS_PER_BYTE


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
