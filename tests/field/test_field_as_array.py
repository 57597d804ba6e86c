"""A field as an array, as text and HTML, and as an object of other libraries: what is decoded, and no more of it."""

from __future__ import annotations

import base64
import dataclasses
import html.parser
import pickle
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from helpers.networks import field_net, make_header
from helpers.pictures import read_png
from helpers.scripts import ROOT

from field.neural_field import NeuralField
from formats.reading import read_volume
from formats.vtk_grids import volume_of_data_set
from utils import Mask

TURN = (0.0, -1.0, 0.0, 1.0, 0.0, 0.0, 0.0, 0.0, 1.0)
PLACE = {"spacing": (0.5, 2.0, 1.25), "origin": (10.0, -4.0, 0.25), "name": "density", "units": "kg/m3"}
SERIES = {"spacing": (0.1, 0.5, 2.0, 1.25), "origin": (3.0, 10.0, -4.0, 0.25)}


def a_field(shape=(9, 7, 5), low=-2.0, high=3.0, dtype="float32", d_out=1, fill=None, **geometry) -> NeuralField:
    """A field of random weights. fill: the value of the missing voxels, the first three along each axis."""
    net = field_net(d_in=len(shape), d_out=d_out)
    header = make_header(shape, low, high, dtype, d_out, **geometry)
    if fill is not None:
        is_gone = (np.indices(shape) < 3).all(axis=0)
        header = dataclasses.replace(header, missing=Mask.of(shape, np.dtype(dtype).type(fill), is_gone))
    return NeuralField.of(net, header)


KINDS = {
    "floats": {},
    "integers": {"dtype": "int16", "low": -200, "high": 300},
    "missing": {"dtype": "int16", "low": -200, "high": 300, "fill": -999},
    "NaN": {"fill": np.nan},
    "series": {"shape": (4, 9, 7, 5), **SERIES},
    "vectors": {"d_out": 3},
    "an image": {"shape": (9, 7), "spacing": (0.5, 2.0), "origin": (1.0, 2.0)},
    "a line": {"shape": (9,), "spacing": (0.5,), "origin": (1.0,)},
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_part_is_that_of_the_whole(kind, monkeypatch):
    """In value and type; nothing but the chosen voxels is evaluated."""
    field = a_field(**KINDS[kind])
    whole, on_grid, asked = field.on_grid(), field.on_grid, []
    monkeypatch.setattr(field, "on_grid", lambda grid, *rest: asked.append(grid.shape) or on_grid(grid, *rest))
    assert field.shape == np.shape(field) == whole.shape and field.dtype == whole.dtype and len(field) == len(whole)
    for key in (np.s_[2:4], 3, -1, np.s_[::-2], np.s_[1:1], np.s_[3, 2:6:2, -1] if len(field.header.shape) > 2 else 0):
        asked.clear()
        values = field[key]
        assert type(values) is type(whole[key]) and values.dtype == whole.dtype
        np.testing.assert_allclose(values, whole[key], rtol=0, atol=0 if whole.dtype.kind == "i" else 5e-6)
        assert sum(map(np.prod, asked)) * field.header.n_components == values.size
    np.testing.assert_array_equal(np.asarray(field), whole)


def test_fields_say_where_they_are():
    field = a_field(**PLACE)
    assert (field.spacing, field.origin) == (PLACE["spacing"], PLACE["origin"])
    assert (field.name, field.units, field.ndim, field.size) == ("density", "kg/m3", 3, 315)


# --- shown ------------------------------------------------------------------------------------------


def test_lazy_arrays_can_be_pickled():
    """So that worker processes get one, or one step of it. Integers are the same however they are divided."""
    field = a_field((4, 9, 7, 5), 0, 200, "uint8", d_out=2, fill=255)
    found = pickle.loads(pickle.dumps(field.lazy(field.grid(time=slice(1, 4)))))
    np.testing.assert_array_equal(found[..., ::2], field[1:4][..., ::2])
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(found[-1][2])), field[3, 2])


def test_a_field_shows_itself_in_one_line():
    shown = repr(a_field(**PLACE))
    for fact in ("density", "9 x 7 x 5 float32", "range -2 to 3 kg/m3", "spacing 0.5, 2, 1.25", "origin 10, -4, 0.25"):
        assert fact in shown
    assert repr(a_field().grid(resolution=(2, 3, 4))) == "<Grid of 2 x 3 x 4 positions>"
    assert "missing 27 voxels" in repr(a_field(fill=-999)) and "2 components" in repr(a_field(d_out=2))
    assert "range 0 to 18446744073709551615" in repr(a_field(dtype="uint64", low=0, high=2**64 - 1))
    assert "\n" not in repr(a_field(name="a\nb\x1b[31m")) and "\x1b" not in repr(a_field(name="a\x1b[31m"))


class Tags(html.parser.HTMLParser):
    """The names of the tags, and what stands between."""

    def __init__(self, page: str):
        super().__init__()
        self.names, self.text = [], ""
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.names.append(tag)

    def handle_data(self, data):
        self.text += data


def image_in(page: str, folder: Path) -> np.ndarray:
    """The pixels of the page's image, [row from the top, column, RGB]."""
    path = folder / "p.png"
    path.write_bytes(base64.b64decode(re.search("base64,([^']*)'", page)[1]))
    return read_png(path)


@pytest.mark.parametrize("kind", KINDS)
def test_a_notebook_shows_a_slice(kind, tmp_path):
    """One pixel a voxel, x to the right, y upwards; missing voxels are white."""
    field = a_field(**KINDS[kind])
    image = image_in(field._repr_html_(), tmp_path)
    assert image.shape == (1 if kind == "a line" else 7, 9, 3) and len(np.unique(image)) > 4
    if kind in ("missing", "NaN"):
        is_white = (image == 255).all(axis=-1)
        assert is_white[-3:, :3].all() and is_white.sum() == 9


def test_a_slice_of_a_large_field_is_thinned(tmp_path):
    """And the page stays small."""
    field = a_field((2000, 700, 2))
    page = field._repr_html_()
    assert image_in(page, tmp_path).shape == (234, 286, 3) and len(page) < 400_000


def test_names_cannot_add_to_the_page():
    """A blob of a stranger names its field and units."""
    page = Tags(a_field(name="<script>a</script>", units="<img src=x onerror=b>")._repr_html_())
    assert "<script>a</script>" in page.text and "<img src=x onerror=b>" in page.text
    assert "script" not in page.names and page.names.count("img") == 1


# --- other libraries --------------------------------------------------------------------------------


def test_xarray_knows_the_positions():
    pytest.importorskip("xarray")
    field = a_field(**PLACE, dtype="int16", low=-200, high=300, fill=-999)
    array = field.to_xarray()
    assert (array.dims, array.name) == (("x", "y", "z"), "density")
    assert array.attrs == {"units": "kg/m3", "_FillValue": -999}
    np.testing.assert_array_equal(array.values, field.on_grid())
    np.testing.assert_allclose(array.y, -4 + 2.0 * np.arange(7))
    at = array.sel(x=12.0, y=2.0, z=2.75)
    assert at == field[4, 3, 2]
    part = field.to_xarray(field.grid(np.s_[2:5, :, 1:], resolution=(5, 7, 4)))
    np.testing.assert_allclose(part.x, np.linspace(11, 12, 5))


def test_xarray_of_series_vectors_and_turned_axes():
    pytest.importorskip("xarray")
    series = a_field((4, 9, 7, 5), **SERIES).to_xarray()
    assert series.dims == ("t", "x", "y", "z") and series.t.values == pytest.approx([3.0, 3.1, 3.2, 3.3])
    assert a_field((9, 7), d_out=2, spacing=(1, 1), origin=(0, 0)).to_xarray().dims == ("x", "y", "component")
    flipped = a_field(**PLACE, direction=(-1.0, 0, 0, 0, -1.0, 0, 0, 0, 1.0)).to_xarray()
    np.testing.assert_allclose(flipped.x, 10 - 0.5 * np.arange(9))
    turned = a_field(**PLACE, direction=TURN).to_xarray()
    np.testing.assert_allclose(turned.x, 10 + 0.5 * np.arange(9))
    assert turned.attrs["direction"].tolist() == list(TURN)


OBLIQUE = (0.8, -0.6, 0.0, 0.6, 0.8, 0.0, 0.0, 0.0, 1.0)


@pytest.mark.parametrize("direction", [OBLIQUE, TURN, (1.0, 0, 0, 0, -1.0, 0, 0, 0, 1.0)])
@pytest.mark.parametrize("kind", ["missing", "NaN", "series", "vectors"])
def test_what_xarray_writes_is_read_in_the_same_place(kind, direction, tmp_path):
    for package in ("xarray", "h5netcdf"):
        pytest.importorskip(package)
    field = a_field(**PLACE | KINDS[kind], direction=direction, space="LPS")
    field.to_xarray().to_netcdf(tmp_path / "a.nc", engine="h5netcdf")
    volume = read_volume(str(tmp_path / "a.nc"))
    expected = field.header.geometry
    assert volume.geometry.spacing == pytest.approx(expected.spacing, rel=1e-12)  # of times in tenths
    assert dataclasses.replace(volume.geometry, spacing=expected.spacing) == expected
    np.testing.assert_array_equal(volume.array[(slice(None),) * volume.array.ndim], field.on_grid())
    if "fill" in KINDS[kind]:  # of other floats xarray says NaN
        np.testing.assert_equal(volume.fill, KINDS[kind]["fill"])


@pytest.mark.parametrize("kind", KINDS)
def test_vtk_has_the_same_volume(kind):
    field = a_field(**KINDS[kind], name="density", units="kg/m3", direction=TURN)
    is_series = kind == "series"
    grid = field.grid(time=2) if is_series else None
    volume = volume_of_data_set("", field.to_vtk(grid))
    expected = field[2] if is_series else field.on_grid()
    d_in = min(len(field.header.shape), 3)
    np.testing.assert_array_equal(volume.values.squeeze(), expected.squeeze())
    geometry = volume.geometry
    assert (geometry.name, geometry.units, geometry.direction) == ("density", "kg/m3", TURN)
    assert geometry.spacing[:d_in] == field.spacing[-d_in:] and geometry.origin[:d_in] == field.origin[-d_in:]


def test_a_series_is_no_single_vtk_image():
    with pytest.raises(ValueError, match="series of 4"):
        a_field((4, 9, 7, 5), **SERIES).to_vtk()


def test_nothing_is_imported_that_is_not_asked_for():
    program = (
        "import sys; from field.neural_field import NeuralField\n"
        "field = NeuralField.open('tests/data/golden_missing.blob')\n"
        "repr(field), field._repr_html_(), field[0], field.at([0.0] * len(field.header.shape))\n"
        "print({'torch', 'vtkmodules', 'vtk', 'xarray', 'pyvista', 'matplotlib'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"
