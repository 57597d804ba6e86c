"""Files that list the steps of a time series with their times: ParaView's .pvd, in XML, and .series, in JSON."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from xml.sax.saxutils import quoteattr

from formats.common import VolumeError, as_volume_error, suffix_of
from formats.vtk_images import xml_elements
from utils import quoted

MAX_BYTES = 1 << 26  # of a list; a line of 100 bytes names a file

# --- read -------------------------------------------------------------------------------------------


def is_list(path: str) -> bool:
    """Whether a file lists others, by its suffix."""
    return suffix_of(path) in (".pvd", ".series") and os.path.isfile(path)


def listed_in(path: str) -> list[tuple[str, float | None]]:
    """The files that a list names, and the time of each; None where it says none. Names are relative to its folder.

    Raises VolumeError for a list that is damaged, for files that are not there, and for parts of one volume.
    """
    if os.path.getsize(path) > MAX_BYTES:
        raise VolumeError(f"{path}: expected a list of at most {MAX_BYTES} bytes, found {os.path.getsize(path)}")
    with as_volume_error(path, "damaged"), open(path, "rb") as file:
        entries = (_in_json if suffix_of(path) == ".series" else _in_xml)(path, file.read())
    steps = [(_found(path, name), _number(path, time)) for name, time in entries]
    if not steps:
        raise VolumeError(f"{path}: lists no files")
    if len(steps) > 1 and len({time for _, time in steps}) == 1:
        raise _refused_parts(path)
    return steps


def _in_xml(path: str, text: bytes) -> list[tuple[object, object]]:
    elements = xml_elements(text, is_whole=True)
    if ("VTKFile", "Collection") not in [(name, said.get("type")) for name, said in elements]:
        raise VolumeError(f'{path}: expected <VTKFile type="Collection">, found none')
    listed = [said for name, said in elements if name == "DataSet"]
    if len({(said.get("group", ""), said.get("part") or "0") for said in listed}) > 1:
        raise _refused_parts(path)
    return [(said.get("file"), said.get("timestep")) for said in listed]


def _in_json(path: str, text: bytes) -> list[tuple[object, object]]:
    content = json.loads(text)
    if not isinstance(content, dict) or not isinstance(content.get("files"), list):
        raise VolumeError(f"{path}: expected a list named files, found none")
    return [(said.get("name"), said.get("time")) for said in content["files"]]


def _refused_parts(path: str) -> VolumeError:
    what = "expected one file for each time, found files of one time, which are its parts"
    return VolumeError(f"{path}: {what}: open it in ParaView, apply Resample To Image, and save all steps as .vti")


def _found(path: str, name: object) -> str:
    """The path of a listed file, which is there. Raises VolumeError."""
    if not isinstance(name, str) or not name:
        raise VolumeError(f"{path}: expected the name of a file in each entry, found {quoted(name)}")
    found = os.path.join(os.path.dirname(path), name)
    try:
        os.stat(found)
    except (OSError, ValueError) as error:  # ValueError: no file can have this name
        reason = getattr(error, "strerror", None) or error
        raise VolumeError(f"{path}: lists a file that cannot be read, {quoted(name)}: {reason}") from None
    return found


def _number(path: str, time: object) -> float | None:
    """The time of an entry. Raises VolumeError."""
    try:
        return None if time is None else float(time)
    except (TypeError, ValueError, OverflowError):
        raise VolumeError(f"{path}: expected a number as the time of each file, found {quoted(time)}") from None


# --- written ----------------------------------------------------------------------------------------


def collection_path(path: str) -> str:
    """The name of the file that lists all steps: recon.vti -> recon.pvd."""
    return os.path.splitext(path)[0] + ".pvd"


def collection(times: Mapping[str, float]) -> bytes:
    """The content of a .pvd file. times: the time of each step's file, which lies beside the .pvd file."""
    lines = [
        f'<DataSet timestep="{time!r}" part="0" file={quoteattr(os.path.basename(path))}/>'
        for path, time in times.items()
    ]
    head = '<?xml version="1.0" encoding="UTF-8"?>\n<VTKFile type="Collection" version="0.1">\n<Collection>\n'
    return (head + "\n".join(lines) + "\n</Collection>\n</VTKFile>\n").encode()
