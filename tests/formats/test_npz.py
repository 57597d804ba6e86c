"""NumPy's archives of several arrays."""

from __future__ import annotations

import re
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest
from helpers.damage import memory_below, memory_traced
from helpers.volumes import slanted

from formats.common import VolumeError
from formats.reading import read_volume

SHAPE = (7, 6, 5)
HEADER = 1 << 26  # bytes that a header claims to have


@pytest.fixture
def path(tmp_path):
    return str(tmp_path / "a.npz")


@pytest.mark.parametrize("order", "CF")
@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_axes_are_those_of_npy(path, save, order):
    """And stored arrays are memory-mapped."""
    array = np.asarray(slanted(SHAPE), order=order)
    save(path, **{"my name": array, "time": np.arange(3), "note": "text"})
    volume = read_volume(path)
    assert volume.geometry.name == "my name" and isinstance(volume.array, np.memmap) == (save is np.savez)
    np.testing.assert_array_equal(volume.array, array)


def test_several_arrays(path):
    np.savez(path, a=slanted(SHAPE), b=slanted((4, 7, 6, 5)))
    listed = "b (4, 7, 6, 5; float32), a (7, 6, 5; float32)"
    for name, said in ((None, f"expected --array, the name of one of its arrays: {listed}"), ("c", f"only {listed}")):
        with pytest.raises(VolumeError, match=re.escape(said)):
            read_volume(path, array=name)
    assert read_volume(path, array="b").geometry.d_in == 4
    assert read_volume(path, d_out=5, array="b").array.shape == (4, 7, 6, 5)


def test_positions_beside_an_array_are_told(path, capsys):
    others = {"note": np.arange(4), "is_used": np.zeros(6, bool)}
    np.savez(path, a=slanted(SHAPE), x=np.arange(7) * 0.5, z=np.arange(5) * 2.0, **others)
    assert read_volume(path).geometry.spacing == (1, 1, 1)
    assert "a: x, z may be positions or steps: spacing 1 is taken" in capsys.readouterr().err


def test_a_spacing_beside_an_array_is_told(path, capsys):
    np.savez(path, volume=slanted(SHAPE), voxel_size=[0.5, 0.5, 2.0], center=np.zeros(3))
    read_volume(path)
    assert "volume: voxel_size may be positions or steps" in capsys.readouterr().err


def test_what_says_no_step_is_not_told(path, capsys):
    """Another volume, by its name, and the steps that are taken."""
    np.savez(path, high_resolution=slanted(SHAPE), low_resolution=slanted((4, 3, 2)), spacing=[1, 1, 1])
    read_volume(path, array="high_resolution")
    assert capsys.readouterr().err == ""


def test_complex_numbers_are_named(path):
    np.savez(path, a=slanted(SHAPE) * 1j)
    with pytest.raises(VolumeError, match=re.escape("found dtype complex64: NumPy's abs(array)")):
        read_volume(path)


def test_archives_from_strangers(path):
    """Objects, lengths that lie, a header that announces more than there is, bytes of something else."""
    np.savez(path, a=np.array([object()] * 8, object).reshape(2, 2, 2))
    contents = [Path(path).read_bytes()]
    np.savez_compressed(path, a=slanted(SHAPE))
    good = Path(path).read_bytes()
    contents += [good[: len(good) // 2], good.replace(b"\x78", b"\x79"), b"PK\x03\x04" * 20]
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive, archive.open("a.npy", "w") as file:
        np.lib.format.write_array_header_1_0(file, {"descr": "<f4", "fortran_order": False, "shape": (1 << 20,) * 3})
    contents.append(Path(path).read_bytes())
    with zipfile.ZipFile(path, "w") as archive:  # not compressed: the array would reach into the next entry
        with archive.open("a.npy", "w") as file:
            np.lib.format.write_array_header_1_0(file, {"descr": "<f4", "fortran_order": False, "shape": SHAPE})
        with archive.open("b.npy", "w") as file:
            np.save(file, np.zeros(4000))
    contents.append(Path(path).read_bytes())
    for method in (zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2):  # a short file with a long header
        with zipfile.ZipFile(path, "w", method) as archive, archive.open("a.npy", "w") as file:
            file.write(b"\x93NUMPY\x02\x00" + struct.pack("<I", HEADER) + b" " * HEADER)
        contents.append(Path(path).read_bytes())
    for content in contents:
        Path(path).write_bytes(content)
        with pytest.raises(VolumeError) as caught, memory_traced(), memory_below(HEADER // 2):
            read_volume(path)
        assert str(caught.value).startswith(f"{path}: ") and "\n" not in str(caught.value)
