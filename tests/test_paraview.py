"""The plugin in the real program: pvpython and pvbatch open blobs, without a display of their own."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from helpers.cut_fields import cut_blob
from helpers.damage import assemble
from helpers.networks import chunks_of, field_net, make_blob, make_header
from helpers.pictures import read_png
from helpers.scripts import ROOT, decompress
from helpers.vtk import vtk_read

from field.neural_field import NeuralField

PACKAGES = "apt-get install paraview python3-paraview xvfb"
pytestmark = pytest.mark.skipif(shutil.which("pvpython") is None, reason=f"needs ParaView: {PACKAGES}")

# What runs the programs below, one after the other: a start takes longer than they do. Each has a folder of its own for
# its files, `result` for what its test is told, and a file for what it prints.
PROLOGUE = """
import gc
import json
import os
import traceback
from paraview import servermanager
from paraview.simple import *
from vtkmodules.util.numpy_support import vtk_to_numpy
from vtkmodules.vtkCommonDataModel import vtkDataObject

# The plugin's own: its modules have no names.
[NeuralField] = [t for t in gc.get_objects() if isinstance(t, type) and t.__name__ == "NeuralField"]
evaluated = []  # the grids on which fields were evaluated
original = NeuralField.on_grid


def on_grid(self, grid, *arguments, **keywords):
    evaluated.append(grid.shape)
    return original(self, grid, *arguments, **keywords)


def dump(source):
    image = servermanager.Fetch(source)
    x, y, z = image.GetDimensions()
    arrays = {}
    for array in [image.GetPointData().GetAbstractArray(i) for i in range(image.GetPointData().GetNumberOfArrays())]:
        values = vtk_to_numpy(array).reshape(z, y, x, -1).transpose(2, 1, 0, 3).tolist()
        arrays[array.GetName()] = array.GetDataTypeAsString(), values
    scalars = image.GetPointData().GetScalars()
    return dict(
        extent=image.GetExtent(),
        spacing=image.GetSpacing(),
        origin=image.GetOrigin(),
        direction=[image.GetDirectionMatrix().GetElement(i, j) for i in range(3) for j in range(3)],
        name=scalars.GetName() if scalars else None,
        time=image.GetInformation().Get(vtkDataObject.DATA_TIME_STEP()),
        arrays=arrays,
    )


NeuralField.on_grid = on_grid
for part, program in PROGRAMS.items():
    os.chdir(os.path.join(FOLDER, part))
    output = os.open("output", os.O_WRONLY | os.O_CREAT)
    os.dup2(output, 1)
    os.dup2(output, 2)
    evaluated.clear()
    result = {}
    try:
        exec(program)
        with open("result.json", "w") as file:
            json.dump(result, file)
    except Exception:
        traceback.print_exc()
    for source in [*GetSources().values()]:
        Delete(source)
"""
PARTS: dict[str, tuple[dict, str]] = {}  # by test: files, and a program in ParaView's Python


def part(files: dict[str, object], program: str) -> Callable:
    """A test that is `told` what a program says of blobs of these names: headers, contents, or None for a folder."""

    def register(test: Callable) -> Callable:
        PARTS[test.__name__] = files, program
        return test

    return register


@pytest.fixture(scope="module")
def display():
    """An X server without a screen; its name, None where there is none."""
    if shutil.which("Xvfb") is None:
        yield None
        return
    command = ["Xvfb", "-displayfd", "1", "-noreset", "-screen", "0", "640x480x24"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as server:
        number = server.stdout.readline().strip()  # once it is ready
        assert number, "Xvfb did not start"
        yield f":{number}"
        server.terminate()


def start(script: str, programs: dict[str, str], folder: Path, display: str | None) -> int:
    """Run programs by name, in the folders of these names, the plugin in PV_PLUGIN_PATH; the exit status."""
    text = PROLOGUE.replace("PROGRAMS", repr(programs)).replace("FOLDER", repr(str(folder)))
    (folder / f"{script}.py").write_text(text)
    plugin = ROOT / "paraview"
    paths = {"PV_PLUGIN_PATH": str(plugin), "PYTHONPATH": str(plugin / "debian12")}
    paths |= {"HOME": str(folder), "XDG_CONFIG_HOME": str(folder)}  # where ParaView keeps settings
    environment = {**os.environ, **paths, **({"DISPLAY": display} if display else {})}
    command = [script, f"{script}.py"]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, check=False).returncode


def told_in(folder: Path) -> SimpleNamespace:
    """What the program of this folder told, and printed."""
    output = (folder / "output").read_text() if (folder / "output").exists() else "was not reached"
    assert (folder / "result.json").exists(), output
    return SimpleNamespace(**json.loads((folder / "result.json").read_text()), output=output, folder=folder)


@pytest.fixture(scope="module")
def parts(tmp_path_factory, display, chain) -> SimpleNamespace:
    """The folder of those of all programs, which have run, and the exit statuses."""
    folder, programs = tmp_path_factory.mktemp("paraview"), {}
    for name, (files, program) in PARTS.items():
        (folder / name).mkdir()
        programs[name] = program
        for blob, content in files.items():
            write_blob(folder / name / f"{blob}.nvc", content)
    pictures = {f"pictures_{script}": PICTURES for script in ("pvpython", "pvbatch")}
    for name in pictures:
        (folder / name).mkdir()
        shutil.copy(chain.blob, folder / name / "compressed_out")
    first, second = ({name: program} for name, program in pictures.items())
    statuses = {"pvpython": start("pvpython", programs | (first if display else {}), folder, display)}
    if display:
        statuses["pvbatch"] = start("pvbatch", second, folder, display)
    return SimpleNamespace(folder=folder, statuses=statuses)


@pytest.fixture
def told(parts, request) -> SimpleNamespace:
    """What this test's program told."""
    return told_in(parts.folder / request.function.__name__)


def values(dumped: dict, name: str) -> np.ndarray:
    """An array [x, y, z], or [x, y, z, components], that ParaView had."""
    array = np.array(dumped["arrays"][name][1])
    return array[..., 0] if array.shape[-1] == 1 else array


def assert_close(found: np.ndarray, expected: np.ndarray, tolerance: float = 1e-6) -> None:
    """Equal up to the float32 rounding of another NumPy, relative to the greatest."""
    assert found.shape == expected.shape
    np.testing.assert_allclose(found, expected, rtol=0, atol=tolerance * max(float(np.abs(expected).max()), 1e-30))


PLACED = {"spacing": (0.5, 1.0, 2.0), "origin": (10.0, -3.0, 0.25)}
TURNED = (0.0, -1.0, 0.0, 1.0, 0.0, 0.0, 0.0, 0.0, 1.0)
HEADERS = {
    "placed": make_header((9, 7, 5), -2, 3, name='a<b & "c"', direction=TURNED, **PLACED),
    "bytes": make_header((9, 7, 5), 3, 250, "uint8"),
    "long": make_header((3, 4, 5), -(2**40), 2**40 + 1, "int64"),
    "half": make_header((3, 4, 5), -1, 1, "float16"),
    "double": make_header((3, 4, 5), -1e-9, 1e200, "float64"),
    "vectors": make_header((5, 6, 4), -1, 1, d_out=3, name="velocity"),
    "flat": make_header((5, 1, 4), -1, 1),
    "plane": make_header((5, 4), -1, 1, spacing=(0.5, 2.0), origin=(1.0, 2.0)),
    "line": make_header((6,), -1, 1),
}


def write_blob(path: Path, content: object) -> None:
    """A file with this content, or a blob with this header; None makes a folder."""
    if content is None:
        path.mkdir()
    elif isinstance(content, bytes):
        path.write_bytes(content)
    else:
        path.write_bytes(make_blob(content, field_net(d_in=len(content.shape), d_out=len(content.low))))


@part(
    HEADERS,
    f"""
import sys
for name in {list(HEADERS)}:
    reader = OpenDataFile(name + ".nvc")
    reader.UpdatePipelineInformation()
    reader.UpdatePropertyInformation()
    result[name] = [list(reader.DataRange), evaluated.copy(), dump(reader)]
    evaluated.clear()
result["has_torch"] = "torch" in sys.modules
""",
)
def test_a_blob_is_what_net_decompress_writes(told, parts):
    assert not told.has_torch and parts.statuses["pvpython"] == 0
    for name, header in HEADERS.items():
        data_range, evaluated_before, found = getattr(told, name)
        expected = vtk_read_of(told.folder / f"{name}.nvc")
        assert evaluated_before == [] and data_range == [header.low.min(), header.high.max()]
        assert found["extent"] == [end for n in expected.dimensions for end in (0, n - 1)]
        assert tuple(found["spacing"]) == expected.spacing and tuple(found["origin"]) == expected.origin
        assert tuple(found["direction"]) == expected.direction
        assert found["name"] == header.geometry.name == expected.name and list(found["arrays"]) == [
            header.geometry.name
        ]
        assert found["arrays"][header.geometry.name][0] == expected.type
        if header.low.dtype.kind == "u":
            np.testing.assert_array_equal(values(found, header.geometry.name), expected.array)
        else:
            assert_close(values(found, header.geometry.name), expected.array)


def vtk_read_of(blob: Path) -> SimpleNamespace:
    """What net_decompress.py makes of a blob."""
    decompress(blob, blob.with_suffix(".vti"))
    return vtk_read(blob.with_suffix(".vti"))


@part(
    {"field": make_header((9, 8, 7), -1, 1, **PLACED)},
    """
def part(*voi):
    evaluated.clear()
    found = dump(ExtractSubset(Input=NeurcompReader(FileName="field.nvc"), VOI=voi))
    return found, evaluated.copy()

result["box"], result["slice"] = part(2, 5, 1, 3, 4, 6), part(0, 8, 3, 3, 0, 6)
result["whole"] = part(0, 8, 0, 7, 0, 6)
""",
)
def test_a_box_or_a_slice_evaluates_no_more_than_that(told):
    whole = values(told.whole[0], "sf")
    for (found, evaluated), box in ((told.box, np.s_[2:6, 1:4, 4:7]), (told.slice, np.s_[:, 3:4, :])):
        expected = whole[box]
        assert evaluated == [list(expected.shape)]
        assert found["extent"][::2] == [part.start or 0 for part in box]
        assert found["spacing"] == [0.5, 1.0, 2.0] and found["origin"] == [10.0, -3.0, 0.25]
        np.testing.assert_array_equal(values(found, "sf"), expected)


@part(
    {"field": make_header((9, 8, 1), -1, 1, name="t", **PLACED)},
    """
reader = NeurcompReader(FileName="field.nvc", Gradient=1)
result["found"] = {}
for level in ("1/4", "1/2", "1", "2", "4"):
    reader.Resolution = level
    result["found"][level] = dump(reader)
""",
)
def test_resolution_and_gradient(told):
    field = NeuralField.open(told.folder / "field.nvc")
    sizes = {"1/4": (3, 3, 1), "1/2": (5, 5, 1), "1": (9, 8, 1), "2": (17, 15, 1), "4": (33, 29, 1)}
    for level, size in sizes.items():
        found, grid = told.found[level], field.grid(resolution=size)
        assert found["extent"][1::2] == [n - 1 for n in size] and list(found["arrays"]) == ["t", "t_gradient"]
        assert found["spacing"] == pytest.approx([0.5 * 8 / (size[0] - 1), 7 / (size[1] - 1), 2.0], rel=1e-12)
        assert found["origin"] == [10.0, -3.0, 0.25]
        assert_close(values(found, "t"), field.on_grid(grid))
        assert_close(values(found, "t_gradient"), field.gradient_on_grid(grid), 1e-5)
    assert_close(values(told.found["4"], "t")[::4, ::4], values(told.found["1"], "t"))


TIMES = (10.0, 10.5, 10.8, 11.5, 9.0, 12.0)


@part(
    {
        "series": make_header(
            (4, 6, 5, 3), -1, 1, d_out=2, spacing=(0.5, 1.0, 1.0, 2.0), origin=(10.0, 1.0, 2.0, 3.0), direction=TURNED
        ),
        "still": make_header((6, 5, 3), -1, 1),
    },
    f"""
reader = OpenDataFile("series.nvc")
reader.Gradient = 1
result["steps"], result["found"] = list(reader.TimestepValues), []
for time in {TIMES}:
    reader.UpdatePipeline(time)
    result["found"].append(dump(reader))
result["evaluated"] = evaluated
reader.FileName = "still.nvc"
reader.UpdatePipelineInformation()
result["still"] = list(reader.TimestepValues or [])
""",
)
def test_time(told):
    assert told.steps == [10.0, 10.5, 11.0, 11.5] and told.still == []
    assert told.evaluated == [[1, 6, 5, 3]] * len(TIMES)
    field = NeuralField.open(told.folder / "series.nvc")
    for time, found in zip(TIMES, told.found, strict=True):
        grid = field.grid(time=min(max((time - 10) / 0.5, 0.0), 3.0))
        assert found["extent"] == [0, 5, 0, 4, 0, 2] and found["time"] == time
        assert found["spacing"] == [1.0, 1.0, 2.0] and found["origin"] == [1.0, 2.0, 3.0]
        assert tuple(found["direction"]) == TURNED
        assert_close(values(found, "sf"), field.on_grid(grid)[0])
        gradient = field.gradient_on_grid(grid)[0, ..., 1:]
        assert_close(values(found, "sf_gradient"), gradient.reshape(6, 5, 3, 6), 1e-5)


@part(
    {"first": make_header((4, 3, 2), -1, 1, name="temp"), "second": make_header((9, 7, 5), -1, 1)},
    """
reader = NeurcompReader(FileName="first.nvc", Gradient=1)
result["arrays"] = []
for name, gradient in (("first", 1), ("second", 1), ("second", 0), ("first", 0)):
    reader.FileName, reader.Gradient = name + ".nvc", gradient
    reader.UpdatePipeline()
    data = servermanager.Fetch(reader).GetPointData()
    found = [data.GetArray(i) for i in range(data.GetNumberOfArrays())]
    result["arrays"].append({array.GetName(): array.GetNumberOfTuples() for array in found})
""",
)
def test_another_file_takes_the_place_of_the_previous_one(told):
    """Its array alone, though the previous one has another name and size; filters would read beyond the old one."""
    assert told.arrays == [
        {"temp": 24, "temp_gradient": 24},
        {"sf": 315, "sf_gradient": 315},
        {"sf": 315},
        {"temp": 24},
    ]


MESSAGES = {
    "missing": "cannot be read: No such file or directory",
    "folder": "cannot be read: Is a directory",
    "damaged": "corrupted or truncated: its checksum does not fit its content",
    "truncated": "corrupted or truncated: its checksum does not fit its content",
    "empty": "truncated: expected 4 more bytes of blob, found 0",
    "foreign": "not a blob: expected it to start with 93 4E 56 43",
    "long": "expected at most 16777216 points along an axis, found 1073741824",
    "large": "the points asked for, 262144 x 262144 x 16, take 8192 GiB, this machine has ",
}


def bad_files() -> dict[str, object]:
    """What these messages are of, and a good blob."""
    good = make_blob(make_header((9, 7, 5)), field_net())
    damaged = bytearray(good)
    damaged[len(good) // 2] ^= 1
    contents = {"damaged": bytes(damaged), "truncated": good[:-1], "empty": b"", "foreign": b"<VTKFile/>"}
    headers = {"long": make_header((2**30, 2, 2)), "large": make_header((2**18, 2**18, 16))}
    return {"good": good, "folder": None, **contents, **headers}


@part(
    bad_files(),
    f"""
reader = NeurcompReader(FileName="good.nvc")
result["counts"] = []
for name in [*{list(MESSAGES)}, "good"]:
    reader.FileName = name + ".nvc"
    reader.UpdatePipeline()
    result["counts"].append(reader.GetDataInformation().GetNumberOfPoints())
reader = NeurcompReader(FileName="large.nvc")
result["part"] = dump(ExtractSubset(Input=reader, VOI=[5, 6, 7, 9, 8, 8]))["extent"]
""",
)
def test_bad_input_is_one_line_and_no_data(told):
    lines = told.output.splitlines()
    assert len(lines) == len(MESSAGES), told.output
    for line, (name, message) in zip(lines, MESSAGES.items(), strict=True):
        assert line.startswith(f"{name}.nvc: {message}")
    assert told.counts == [0] * len(MESSAGES) + [9 * 7 * 5]
    assert told.part == [5, 6, 7, 9, 8, 8]


def cut_blobs() -> dict[str, bytes]:
    """A field that is cut into bricks, one of them constant; the same, but for the last network, which is wrong."""
    good = cut_blob((9, 7, 5), (2, 1, 2), constant=(1,))
    *others, (kind, last) = chunks_of(good)
    return {"cut": good, "wrong": assemble([*others, (kind, last[:-2] + b"xx")])}


@part(
    cut_blobs(),
    """
result["whole"] = dump(NeurcompReader(FileName="cut.nvc"))
reader = NeurcompReader(FileName="wrong.nvc")
result["part"] = dump(ExtractSubset(Input=reader, VOI=[0, 3, 2, 6, 0, 1]))
NeurcompReader(FileName="wrong.nvc").UpdatePipeline()
""",
)
def test_a_field_in_bricks(told):
    """A wrong network is told of in one line, when its brick is asked for."""
    expected = vtk_read_of(told.folder / "cut.nvc").array
    assert_close(values(told.whole, "sf"), expected)
    assert_close(values(told.part, "sf"), expected[:4, 2:, :2])
    (line,) = told.output.splitlines()
    assert line.startswith("wrong.nvc: brick 3: the network's stream")


@part(
    {"field": make_header((9, 7, 5))},
    """
limits = NeuralField.open.__func__.__globals__["decode_field"].__globals__
usual, limits["USUAL_PARAMETERS"] = limits["USUAL_PARAMETERS"], 10
reader, result["counts"] = NeurcompReader(FileName="field.nvc"), []
for reader.Large in (0, 1, 0):
    reader.UpdatePipeline()
    result["counts"].append(reader.GetDataInformation().GetNumberOfPoints())
limits["USUAL_PARAMETERS"] = usual
""",
)
def test_a_large_blob_is_opened_where_it_is_asked_for(told):
    assert told.counts == [0, 9 * 7 * 5, 0]
    assert told.output.count("field.nvc: holds ") == 2 and "Large in ParaView" in told.output


@part(
    {"field": make_header((60, 60, 60))},
    """
os.cpu_count = lambda: 1  # so that all of the work is told of, in order
reader = NeurcompReader(FileName="field.nvc", Gradient=1)
algorithm, seen = reader.GetClientSideObject(), []

def watch(caller, event):
    seen.append(algorithm.GetProgress())
    if result and seen[-1] > 0.5:
        algorithm.SetAbortExecute(1)

algorithm.AddObserver("ProgressEvent", watch)
reader.UpdatePipeline()
result["seen"], result["count"] = seen.copy(), reader.GetDataInformation().GetNumberOfPoints()
seen.clear()
algorithm.Modified()
reader.Resolution = "2"
reader.UpdatePipeline()
result["aborted"] = seen.copy(), reader.GetDataInformation().GetNumberOfPoints()
""",
)
def test_progress_and_abort(told):
    assert told.count == 60**3 and len(told.seen) > 20
    assert told.seen == sorted(told.seen) and told.seen[0] == 0 and told.seen[-1] == 1
    seen, count = told.aborted
    assert [progress for progress in seen[:-1] if progress > 0.5] == [seen[-2]]  # the one at which it was aborted
    assert count == 0


PICTURES = """
reader = OpenDataFile("compressed_out")
LoadPalette("WhiteBackground")

def picture(name, source, representation):
    view = CreateView("RenderView", ViewSize=[200, 160], OrientationAxesVisibility=0)
    display = Show(source, view)
    display.SetRepresentationType(representation)
    ColorBy(display, ("POINTS", "sf"))
    display.SetScalarBarVisibility(view, False)
    ResetCamera(view)
    Render(view)
    SaveScreenshot(name + ".png", view)

middle = Slice(Input=reader, SliceType="Plane")
middle.SliceType.Origin, middle.SliceType.Normal = (4, 3, 2), (0, 0, 1)
picture("slice", middle, "Surface")
picture("volume", reader, "Volume")
picture("contour", Contour(Input=reader, ContourBy=["POINTS", "sf"], Isosurfaces=[26.0]), "Surface")
"""


@pytest.mark.parametrize("script", ["pvpython", "pvbatch"])
def test_slice_contour_and_volume_rendering(parts, display, script):
    """Of the slanted volume: high values at the right, which the default colours show red."""
    if display is None:
        pytest.skip(f"needs Xvfb: {PACKAGES}")
    folder = told_in(parts.folder / f"pictures_{script}").folder
    assert parts.statuses[script] == 0
    for name, least_share, least_colours in (("slice", 0.2, 50), ("volume", 0.2, 100), ("contour", 0.02, 2)):
        pixels = read_png(folder / f"{name}.png")
        is_drawn = (pixels != 255).any(axis=-1)
        assert pixels.shape[:2] == (160, 200)
        assert least_share < is_drawn.mean() < 0.95, name
        assert len(np.unique(pixels[is_drawn], axis=0)) >= least_colours, name
        if name != "contour":
            where = np.argwhere(is_drawn)[:, 1]
            redness = (pixels[..., 0] - pixels[..., 2])[is_drawn]
            assert np.corrcoef(where, redness)[0, 1] > 0.5, name
