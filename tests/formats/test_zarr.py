"""Zarr: microscopy's levels, and folders that are not to be trusted."""

from __future__ import annotations

import json
import os
import pickle
import shlex
import sys

import numpy as np
import pytest
from helpers.volume_files import refusal
from helpers.volumes import slanted, whole

from formats.reading import read_volume, source_files
from formats.writing import write_volume
from utils import Geometry, Volume

zarr = pytest.importorskip("zarr")
numcodecs = pytest.importorskip("numcodecs")

SHAPE = (12, 10, 8)


def write(path, array: np.ndarray, **flags):
    """An array in a folder, [x, y, z] whatever its order there."""
    made = zarr.create_array(str(path), shape=array.T.shape, dtype=array.dtype, **{"chunks": (4, 5, 6), **flags})
    made[...] = array.T
    return made


@pytest.mark.parametrize("version", [2, 3])
def test_a_plain_array(tmp_path, version):
    write(tmp_path / "a.zarr", slanted(SHAPE), zarr_format=version)
    volume = read_volume(os.path.join(tmp_path, "a.zarr", ""))  # with a slash at the end, as a shell completes it
    assert volume.array.chunks == (6, 5, 4) and volume.fill is None
    np.testing.assert_array_equal(whole(volume.array), slanted(SHAPE))
    assert set(source_files(str(tmp_path / "a.zarr"))) == {
        str(tmp_path / "a.zarr"),
        *(os.path.join(folder, name) for folder, _, names in os.walk(tmp_path) for name in names),
    }


def test_shards(tmp_path):
    write(tmp_path / "a.zarr", slanted(SHAPE), shards=(8, 10, 12))
    np.testing.assert_array_equal(whole(read_volume(str(tmp_path / "a.zarr")).array), slanted(SHAPE))


@pytest.mark.parametrize("version", [2, 3])
def test_levels_of_ome_zarr(tmp_path, version):
    """The first level by default; each has its own scale, and a shift for the middle of its voxels."""
    levels = [slanted(SHAPE), slanted(SHAPE)[::2, ::2, ::2]]
    datasets = []
    for k, level in enumerate(levels):
        array = np.stack([level, level + 1], axis=-1)[..., None]  # x, y, z, c, t
        write(tmp_path / "a.zarr" / str(k), array, zarr_format=version, chunks=(1, 1, 4, 5, 6))
        factor = 2.0**k
        changes = [{"type": "scale", "scale": [1, 1, 2 * factor, 0.36 * factor, 0.36 * factor]}]
        changes += [{"type": "translation", "translation": [0, 0, factor - 1, 0, 0]}] * (k > 0)
        datasets.append({"path": str(k), "coordinateTransformations": changes})
    axes = [{"name": axis} for axis in "tc"] + [{"name": axis, "unit": "micrometer"} for axis in "zyx"]
    image = {"multiscales": [{"version": "0.4", "axes": axes, "datasets": datasets}]}
    if version == 2:
        (tmp_path / "a.zarr/.zgroup").write_text('{"zarr_format": 2}')
        (tmp_path / "a.zarr/.zattrs").write_text(json.dumps(image))
    else:
        group = {"zarr_format": 3, "node_type": "group", "attributes": {"ome": {"version": "0.5", **image}}}
        (tmp_path / "a.zarr/zarr.json").write_text(json.dumps(group))
    path = str(tmp_path / "a.zarr")
    for k, (level, volume) in enumerate(zip(levels, (read_volume(path), read_volume(path, array="1")), strict=True)):
        np.testing.assert_array_equal(whole(volume.array), np.stack([level, level + 1], axis=-1))
        assert volume.geometry.spacing == (0.36 * 2**k, 0.36 * 2**k, 2.0 * 2**k)
        assert volume.geometry.origin == (0.0, 0.0, k) and volume.geometry.name == str(k)
        assert volume.geometry.axis_attributes == {f"units_{axis}": "micrometer" for axis in "xyz"}


def level_of_an_image(path, axes: list[dict], *changes: dict) -> None:
    """An OME-Zarr image of one level, with these axes and changes of its coordinates."""
    write(path / "0", slanted((*SHAPE, 2)[: len(axes)]), chunks=(1, 4, 5, 6)[-len(axes) :])
    scales = [{"axes": axes, "datasets": [{"path": "0", "coordinateTransformations": changes}]}]
    group = {"zarr_format": 3, "node_type": "group", "attributes": {"ome": {"multiscales": scales}}}
    (path / "zarr.json").write_text(json.dumps(group))


@pytest.mark.parametrize("names", [("time", "Z", "Y", "X"), ("t", "depth", "row", "column")])
def test_axes_of_ome_zarr_of_other_names(tmp_path, names):
    axes = [{"name": name, "unit": "second" if k == 0 else "micrometer"} for k, name in enumerate(names)]
    level_of_an_image(tmp_path / "a.zarr", axes, {"type": "scale", "scale": [0.5, 3, 2, 2]})
    geometry = read_volume(str(tmp_path / "a.zarr")).geometry
    assert geometry.spacing == (0.5, 2.0, 2.0, 3.0) and geometry.units_of("t") == "second"


def test_changes_of_coordinates_that_are_not_known(tmp_path):
    axes = [{"name": name} for name in "zyx"]
    level_of_an_image(tmp_path / "a.zarr", axes, {"type": "identity"})
    assert read_volume(str(tmp_path / "a.zarr")).geometry.spacing == (1.0, 1.0, 1.0)
    level_of_an_image(tmp_path / "b.zarr", axes, {"type": "scale", "path": "steps"})
    assert "expected a scale or a translation, found {'type': 'scale', 'path'" in refusal(tmp_path / "b.zarr")


def test_a_spacing_of_another_form_is_told(tmp_path, capsys):
    path = str(tmp_path / "a.zarr")
    zarr.create_array(path, data=slanted((5, 6, 7)), attributes={"resolution": [40, [4, 4]], "voxel_size": {"x": 4}})
    assert read_volume(path).array.shape == (7, 6, 5)
    assert "spacing 1 is taken, not that of resolution, voxel_size: " in capsys.readouterr().err


@pytest.mark.parametrize("version", [2, 3])
@pytest.mark.parametrize("level", ["0", "scale0/image"])
def test_a_level_without_its_image(tmp_path, monkeypatch, level, version):
    """Its spacing is above it; to find it there, one types what the message says."""
    zarr.create_group(str(tmp_path / "a b.zarr"), zarr_format=version)
    write(tmp_path / "a b.zarr" / level, slanted(SHAPE), zarr_format=version)
    scale = {"path": level, "coordinateTransformations": [{"type": "scale", "scale": [3, 2, 2]}]}
    image = {"multiscales": [{"axes": [{"name": axis} for axis in "zyx"], "datasets": [scale]}]}
    zarr.open_group(str(tmp_path / "a b.zarr")).attrs.update(image if version == 2 else {"ome": image})
    for folder, path in ((tmp_path, f"a b.zarr/{level}"), (tmp_path / "a b.zarr" / level, ".")):
        monkeypatch.chdir(folder)
        _, volume, _, array = shlex.split(refusal(path).rpartition(": ")[2])
        assert array == level and read_volume(volume, array=array).geometry.spacing == (2.0, 2.0, 3.0)


# --- folders from strangers -------------------------------------------------------------------------


@pytest.mark.parametrize("zarr_format", [2, 3])
def test_complex_numbers_are_named(tmp_path, zarr_format):
    write(tmp_path / "a.zarr", slanted(SHAPE) * 1j, zarr_format=zarr_format)
    assert "found dtype complex64: NumPy's abs(array)" in refusal(tmp_path / "a.zarr")


def test_nothing_is_unpickled(tmp_path):
    path = tmp_path / "a.zarr"
    write(path, slanted(SHAPE), zarr_format=2)
    settings = json.loads((path / ".zarray").read_text())

    class Evil:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "was run"),)

    for chunk in path.glob("[0-9]*"):
        chunk.write_bytes(pickle.dumps(Evil()))
    for change in ({"compressor": {"id": "pickle"}}, {"filters": [{"id": "pickle"}], "compressor": None}):
        (path / ".zarray").write_text(json.dumps(settings | change))
        assert "expected codecs of Zarr's own, found pickle" in refusal(path)
    (path / ".zarray").write_text(json.dumps(settings | {"dtype": "|O", "filters": [{"id": "pickle"}]}))
    assert "arrays of numbers, found none" in refusal(path)
    assert not (tmp_path / "was run").exists()


@pytest.mark.skipif(os.name == "nt", reason="its paths are short")
def test_folders_nested_more_often_than_functions_may_be(tmp_path):
    write(tmp_path / "a.zarr", slanted(SHAPE))
    folders = [tmp_path / "a.zarr" / "b"]
    folders += [tmp_path.joinpath("a.zarr", "b", *["c"] * depth) for depth in range(1, sys.getrecursionlimit())]
    for folder in folders:
        folder.mkdir()
    try:
        assert read_volume(str(tmp_path / "a.zarr")).array.shape == SHAPE
    finally:
        for folder in reversed(folders):  # pytest would remove them by a recursion
            folder.rmdir()


@pytest.mark.skipif(os.name == "nt", reason="links need permissions")
def test_no_link_is_followed(tmp_path):
    write(tmp_path / "a.zarr", slanted(SHAPE))
    os.rename(tmp_path / "a.zarr" / "c", tmp_path / "elsewhere")
    os.symlink(tmp_path / "elsewhere", tmp_path / "a.zarr" / "c")
    assert "found a link or a device" in refusal(tmp_path / "a.zarr")


def test_a_level_outside_the_folder(tmp_path):
    write(tmp_path / "secret.zarr", slanted(SHAPE))
    write(tmp_path / "a.zarr" / "0", slanted(SHAPE))
    scales = [{"axes": list("zyx"), "datasets": [{"path": "../secret.zarr"}]}]
    group = {"zarr_format": 3, "node_type": "group", "attributes": {"ome": {"multiscales": scales}}}
    (tmp_path / "a.zarr/zarr.json").write_text(json.dumps(group))
    assert f"{tmp_path / 'a.zarr'}: level '../secret.zarr': expected an array" in refusal(tmp_path / "a.zarr")


def test_values_that_are_not_there(tmp_path):
    zarr.create_array(str(tmp_path / "a.zarr"), shape=(1 << 13,) * 3, dtype="f4", chunks=(256,) * 3)
    assert "bytes are too few for" in refusal(tmp_path / "a.zarr")


def test_a_damaged_chunk(tmp_path):
    write(tmp_path / "a.zarr", slanted(SHAPE))
    (tmp_path / "a.zarr/c/1/0/1").write_bytes(b"x" * 50)
    assert "a part of its values cannot be read" in refusal(tmp_path / "a.zarr")


@pytest.mark.parametrize("name", ["a/b", "a\\b"])
def test_a_name_that_is_no_path(tmp_path, name):
    """The array would lie in a group, without its axes."""
    geometry = Geometry((1.0, 2.0, 3.0), (10.0, 20.0, 30.0), name=name)
    write_volume(str(tmp_path / "a.zarr"), Volume(slanted(SHAPE), geometry))
    found = read_volume(str(tmp_path / "a.zarr")).geometry
    assert (found.name, found.spacing, found.origin) == ("a_b", geometry.spacing, geometry.origin)


@pytest.mark.parametrize(("version", "chunk"), [(2, "1.0.0"), (3, "c/1/0/0")])
@pytest.mark.parametrize("n_kept", [7, 29])
def test_a_part_of_a_chunk_of_blosc_is_refused(tmp_path, version, chunk, n_kept):
    """Blosc itself reads on in memory that is not the chunk's."""
    blosc = numcodecs.Blosc() if version == 2 else zarr.codecs.BloscCodec()
    write(tmp_path / "a.zarr", slanted(SHAPE), zarr_format=version, compressors=blosc)
    file = tmp_path / "a.zarr" / chunk
    np.testing.assert_array_equal(whole(read_volume(str(tmp_path / "a.zarr")).array), slanted(SHAPE))
    file.write_bytes(file.read_bytes()[:n_kept])
    assert "found a part of one" in refusal(tmp_path / "a.zarr")


def test_an_empty_shard_is_refused(tmp_path):
    """Zarr reads it as one that was never written: as zeros."""
    write(tmp_path / "a.zarr", slanted(SHAPE), shards=(8, 10, 12))
    (tmp_path / "a.zarr" / "c" / "0" / "0" / "0").write_bytes(b"")
    assert "expected a shard, found an empty file" in refusal(tmp_path / "a.zarr")
