"""Lists of the steps of a series: .pvd and .series, as ParaView has them."""

from __future__ import annotations

import json
import os
from xml.sax.saxutils import quoteattr

import numpy as np
import pytest
from helpers.scripts import error_of
from helpers.volume_files import refusal
from helpers.volumes import slanted, whole
from helpers.vtk import vtk_write

import train as train_script
from formats import pvd
from formats.reading import read_volume, source_files

pytestmark = pytest.mark.usefixtures("quick_vtk")

SHAPE = (4, 3, 2)


def write(folder, entries, name="run.pvd"):
    """The path of a list. entries: what it says of each file."""
    if name.endswith(".series"):
        content = json.dumps({"file-series-version": "1.0", "files": entries})
    else:
        sets = [" ".join(f"{key}={quoteattr(str(said))}" for key, said in entry.items()) for entry in entries]
        sets = "".join(f"<DataSet {said}/>" for said in sets)
        content = f'<?xml version="1.0"?><VTKFile type="Collection"><Collection>{sets}</Collection></VTKFile>'
    (folder / name).write_text(content)
    return str(folder / name)


def write_steps(folder, times, names=None, own=None):
    """What a .pvd file says of files of these times. own: the time that each file has in itself."""
    names = names or [f"s{k}.vti" for k in range(len(times))]
    for k, name in enumerate(names):
        path = folder / name
        path.parent.mkdir(exist_ok=True)
        vtk_write(path, 100 * k + slanted(SHAPE), spacing=(0.5, 1, 2), time=own and own[k])
    return [{"timestep": time, "part": "0", "file": name} for time, name in zip(times, names, strict=True)]


@pytest.mark.parametrize("own", [None, [1.0, 2.0, 9.0]])
@pytest.mark.parametrize("d_in", [None, 4])
def test_files_and_times_are_those_of_the_list(tmp_path, own, d_in):
    """In whatever folder the files are, and whatever time of its own a file has."""
    outside = str(tmp_path / "other" / "c.vti")
    entries = write_steps(tmp_path, [7.0, 7.25, 7.5], ["b/x.vti", "b/../a & b.vti", outside], own)
    path = write(tmp_path, entries)
    volume = read_volume(path, d_in)
    assert volume.geometry.spacing == (0.25, 0.5, 1.0, 2.0) and volume.geometry.origin[0] == 7.0
    np.testing.assert_array_equal(whole(volume.array), np.stack([100 * k + slanted(SHAPE) for k in range(3)]))
    files = [path, *(os.path.join(tmp_path, entry["file"]) for entry in entries)]
    assert source_files(path) == files
    error = error_of(train_script.main, "--volume", path, "--network", files[2], "--config", tmp_path / "c.json")
    assert "would overwrite" in error


def test_a_series_file(tmp_path):
    names = write_steps(tmp_path, [0, 1, 2])
    entries = [{"name": said["file"], "time": 0.5 * k} for k, said in enumerate(names)]
    volume = read_volume(write(tmp_path, entries, "a.vti.series"))
    assert volume.array.shape == (3, *SHAPE) and volume.geometry.spacing[0] == 0.5


def test_slices_of_a_list_are_steps(tmp_path):
    for k in range(2):
        vtk_write(tmp_path / f"s{k}.vti", slanted((4, 3, 1)) + k)
    path = write(tmp_path, [{"timestep": k, "file": f"s{k}.vti"} for k in range(2)])
    assert read_volume(path).array.shape == (2, 4, 3, 1)
    assert "expected 3 axes, found several files: a time series, of 4 axes" in refusal(path, 3)


@pytest.mark.parametrize(("d_in", "shape"), [(None, SHAPE), (3, SHAPE), (4, (1, *SHAPE))])
def test_one_file_is_a_volume_or_a_series_of_one_step(tmp_path, d_in, shape):
    volume = read_volume(write(tmp_path, write_steps(tmp_path, [2.5], own=[1.0])), d_in)
    assert volume.array.shape == shape
    assert volume.geometry.origin[0] == 2.5 if d_in == 4 else volume.time == 2.5


def test_times_that_fall_or_repeat_are_treated_as_those_of_a_pattern(tmp_path, capsys):
    falling = read_volume(write(tmp_path, write_steps(tmp_path, [2.0, 1.0, 0.0])))
    np.testing.assert_array_equal(whole(falling.array)[0], 200 + slanted(SHAPE))
    assert falling.geometry.spacing[0] == 1.0 and not capsys.readouterr().err
    repeated = read_volume(write(tmp_path, write_steps(tmp_path, [2.0, 5.0, 5.0])))
    assert repeated.geometry.spacing[0] == 1.0 and repeated.geometry.origin[0] == 0.0
    assert "not in equal steps: taken as 0, 1, 2, ..." in capsys.readouterr().err


@pytest.mark.parametrize("second", [{"part": 1}, {"group": "walls"}, {"timestep": 0}])
def test_parts_of_a_volume_are_refused(tmp_path, second):
    first, other = write_steps(tmp_path, [0, 1])
    assert "Resample To Image" in refusal(write(tmp_path, [first, other | second]))


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.pvd", "<VTKFile", "a.pvd: damaged: "),
        ("a.pvd", "", "a.pvd: damaged: no element found"),
        ("a.pvd", '<VTKFile type="ImageData"/>', 'expected <VTKFile type="Collection">'),
        ("a.pvd", '<VTKFile type="Collection"/>', "a.pvd: lists no files"),
        ("a.pvd", '<!DOCTYPE a [<!ENTITY b "c">]><VTKFile type="Collection"/>', "damaged: declares XML entities"),
        ("a.series", "{}", "expected a list named files"),
        ("a.series", '{"files": [1]}', "a.series: damaged: "),
        ("a.series", "[" * 100_000, "a.series: damaged: "),
        ("a.series", '{"files": [{"name": "\\u0000"}]}', "embedded null"),
        ("a.series", '{"files": [{"name": "\\ud800"}]}', "a.series: lists a file that cannot be read"),
    ],
)
def test_damaged_lists(tmp_path, name, content, said):
    (tmp_path / name).write_text(content)
    assert said in refusal(tmp_path / name)


def test_what_a_list_cannot_name(tmp_path, monkeypatch):
    sound, other = write_steps(tmp_path, [0, 1])
    assert "'gone.vti': No such file" in refusal(write(tmp_path, [sound, {"timestep": 1, "file": "gone.vti"}]))
    assert "name of a file in each entry, found None" in refusal(write(tmp_path, [{"timestep": 1}]))
    assert "number as the time of each file, found 'x'" in refusal(write(tmp_path, [sound, other | {"timestep": "x"}]))
    path = write(tmp_path, [{"timestep": 0, "file": "run.pvd"}])
    assert "run.pvd: only names the files that hold the values: give it alone" in refusal(path)
    monkeypatch.setattr(pvd, "MAX_BYTES", 50)
    assert "expected a list of at most 50 bytes" in refusal(path)
    assert "No such file" in refusal(tmp_path / "gone.pvd")
