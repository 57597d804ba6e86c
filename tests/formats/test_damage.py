"""Damaged files of every format, each read twice: refused both times, or read as the same finite voxels."""

from __future__ import annotations

import gzip
import struct
from pathlib import Path

import numpy as np
import pytest
from helpers.damage import memory_below, memory_traced
from helpers.scripts import listing
from helpers.volume_files import FORMATS, dicom_element, write_dicom
from helpers.volumes import slanted

from formats.common import VolumeError
from formats.reading import read_volume

pytestmark = pytest.mark.usefixtures("quick_vtk")

SHAPE = (4, 3, 2)
DAMAGES = ("flipped early", "flipped in the middle", "flipped late", "cut", "zeros", "a part lost", "a part doubled")
SMALL = 16 << 20  # bytes of memory


def twice(path: Path) -> tuple[np.ndarray, object] | None:
    """Voxels and geometry, the same in two readings; None where both are refused."""
    found = []
    for _ in range(2):
        try:
            volume = read_volume(str(path))
            found.append((np.array(volume.array[...]), volume.geometry))
        except VolumeError as error:
            assert "\n" not in str(error)
            found.append(None)
    if found[0] is None or found[1] is None:
        assert found == [None, None], "one of two readings is refused"
        return None
    np.testing.assert_array_equal(found[0][0], found[1][0])
    assert found[0][1] == found[1][1] and np.isfinite(found[0][0]).all()
    return found[0]


def damaged(content: bytes, damage: str, at: float) -> bytes:
    """`content` with a bit or a part changed; at: which place within the third that is damaged, 0 to 1."""
    thirds = ("early", "middle", "late")
    third = next((i for i, word in enumerate(thirds) if word in damage), 1)
    place = int((third + at) / 3 * len(content))
    part = max(1, len(content) // 10)
    if damage.startswith("flipped"):
        return content[:place] + bytes([content[place] ^ 0x10]) + content[place + 1 :]
    return {
        "cut": content[:place],
        "zeros": content[:place] + bytes(part) + content[place + part :],
        "a part lost": content[:place] + content[place + part :],
        "a part doubled": content[: place + part] + content[place:],
    }[damage]


@pytest.mark.parametrize(("write", "keeps"), FORMATS)
def test_every_damage_is_refused_or_read_alike(write, keeps, tmp_path):
    """In each of the files that the volume is made of."""
    path = write(tmp_path, slanted(SHAPE).astype(np.uint16 if write is write_dicom else np.float32))
    sound, _ = twice(path)
    for name, content in listing(tmp_path).items():
        for damage in DAMAGES:
            (tmp_path / name).write_bytes(damaged(content, damage, 0.3))
            found = twice(path)
            assert damage != "cut" or found is None or name.endswith(("notes.txt", "DICOMDIR"))
        (tmp_path / name).unlink()
        found = twice(path)  # of a folder, what is left may still be slices
        assert found is None or path.is_dir()
        (tmp_path / name).write_bytes(content)
    np.testing.assert_array_equal(twice(path)[0], sound)


@pytest.mark.parametrize("at", range(10, 200, 24))
def test_a_gzip_whose_checksum_does_not_fit_is_refused(at, tmp_path):
    """Its voxels are all there, but one of them is another."""
    for form in FORMATS:
        if form.id in ("a.nii.gz-", "a.nhdr"):
            folder = tmp_path / form.id
            folder.mkdir()
            path = form.values[0](folder, slanted((6, 5, 4)))
            name = next(name for name in listing(folder) if name.endswith("gz"))
            content = gzip.decompress((folder / name).read_bytes())
            stored = bytearray(gzip.compress(content, 0))  # not packed: every byte of it is one of the voxels
            stored[-8 - len(content) + 352 + at] ^= 1
            (folder / name).write_bytes(stored)
            assert twice(path) is None


@pytest.mark.parametrize("length", [1 << 20, 1 << 28, (1 << 32) - 2])
def test_a_length_that_lies_costs_no_memory(length, tmp_path):
    """NumPy's and pydicom's readers take as much memory as a length in a file says."""
    (tmp_path / "a.npy").write_bytes(b"\x93NUMPY\2\0" + struct.pack("<I", length) + bytes(200))
    scan = write_dicom(tmp_path, slanted(SHAPE).astype(np.uint16))
    lie = bytearray(dicom_element(0x08, 0x08, "OB", "a"))
    lie[8:12] = struct.pack("<I", length)
    content = (scan / "0.dcm").read_bytes()
    at = content.index(struct.pack("<HH", 0x08, 0x16))
    twice(scan)  # what the reader imports is none of it
    (scan / "0.dcm").write_bytes(content[:at] + lie + content[at:])
    for path in (tmp_path / "a.npy", scan):
        with memory_traced(), memory_below(SMALL):
            assert twice(path) is None
