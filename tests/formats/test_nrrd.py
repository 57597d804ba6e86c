"""NRRD files, as Teem and ITK read and write them."""

from __future__ import annotations

import bz2
import re
from pathlib import Path

import numpy as np
import pytest
from helpers.scripts import ROOT
from helpers.volume_files import ORIGIN, SPACING, nrrd_header, plain_nrrd_header, refusal, write_nrrd
from helpers.volumes import slanted

from formats.reading import read_volume
from utils import IDENTITY

SHAPE = (4, 3, 2)


@pytest.mark.parametrize("skip", ["7", "-1"])
def test_nrrd_in_another_file_after_other_bytes(skip, tmp_path):
    (tmp_path / "a.nhdr").write_bytes(nrrd_header(slanted(SHAPE), **{"data file": "b.raw", "byte skip": skip}))
    (tmp_path / "b.raw").write_bytes(b"7 bytes" + slanted(SHAPE).tobytes(order="F"))
    np.testing.assert_array_equal(read_volume(str(tmp_path / "a.nhdr")).array, slanted(SHAPE))


def test_nrrd_with_lines_before_the_voxels_has_a_way_out(tmp_path):
    (tmp_path / "a.nhdr").write_bytes(nrrd_header(slanted(SHAPE), **{"data file": "b.raw", "line skip": "2"}))
    (tmp_path / "b.raw").write_bytes(b"a\nb\n" + slanted(SHAPE).tobytes(order="F"))
    assert "cannot skip 2 lines and 0 bytes: unu save -f nrrd" in refusal(tmp_path / "a.nhdr")


def test_nrrd_of_four_axes_in_space_has_a_way_out(tmp_path):
    """As ITK writes an image of four axes."""
    lines = ["NRRD0004", "type: uint8", "dimension: 4", "sizes: 2 2 2 2", "kinds: domain domain domain domain"]
    lines += [
        "space dimension: 4",
        "space directions: (1,0,0,0) (0,1,0,0) (0,0,1,0) (0,0,0,1)",
        "encoding: raw",
        "",
        "",
    ]
    (tmp_path / "a.nrrd").write_bytes("\n".join(lines).encode() + bytes(16))
    assert "SimpleITK.ReadImage(" in refusal(tmp_path / "a.nrrd")


def test_nrrd_of_a_stream_that_hardly_ends(tmp_path):
    """Seconds for each kilobyte of the file, if all of it were unpacked."""
    header = b"NRRD0004\ntype: uint8\ndimension: 3\nsizes: 3 2 1\nencoding: bzip2\n\n"
    (tmp_path / "a.nrrd").write_bytes(header + bz2.compress(bytes(1 << 22)))
    assert "bytes follow the voxels" in refusal(tmp_path / "a.nrrd")


def test_bytes_have_no_order(tmp_path):
    array = slanted(SHAPE).astype(np.uint8)
    (tmp_path / "a.nrrd").write_bytes(nrrd_header(array, endian="") + b"\n" + array.tobytes(order="F"))
    np.testing.assert_array_equal(read_volume(str(tmp_path / "a.nrrd")).array, array)


def test_nrrd_of_text_by_spacings(tmp_path):
    text = " ".join(map(str, slanted(SHAPE).ravel(order="F"))).encode()
    header = b"NRRD0001\ntype: double\ndimension: 3\nsizes: 4 3 2\nspacings: 0.5 2 nan\nencoding: text\n\n"
    (tmp_path / "a.nrrd").write_bytes(header + text)
    volume = read_volume(str(tmp_path / "a.nrrd"))
    np.testing.assert_array_equal(volume.array, slanted(SHAPE))
    assert volume.geometry.spacing == (0.5, 2.0, 1.0) and volume.geometry.direction == IDENTITY


@pytest.mark.parametrize(
    ("fields", "origin"),
    [
        ("axis mins: 10 nan -2", (10.0, 0.0, -2.0)),
        ("axismins: 10 5 -2\ncenters: node none ???", (10.0, 5.0, -2.0)),
        ("axis mins: 10 5 nan\ncenters: cell node cell", (10.25, 5.0, 0.0)),
        ("axis mins: 10 5 -2\nspace origin: (1,2,3)", (1.0, 2.0, 3.0)),
        ("axis mins: 10 5 -2\nspace: right-anterior-superior", (10.0, 5.0, -2.0)),
    ],
)
def test_nrrd_without_directions_begins_where_its_axes_do(fields, origin, tmp_path):
    (tmp_path / "a.nrrd").write_bytes(plain_nrrd_header(SHAPE, "spacings: 0.5 2 3", fields) + bytes(4 * 24))
    geometry = read_volume(str(tmp_path / "a.nrrd")).geometry
    assert geometry.origin == origin and geometry.spacing == (0.5, 2.0, 3.0)
    assert geometry.direction == IDENTITY and geometry.space == ""


def test_fields_whose_names_are_written_without_spaces(tmp_path):
    """As Teem takes them."""
    fields = ["space dimension: 3", "space directions: (0.5,0,0) (0,2,0) (0,0,3)", "space origin: (1,2,3)"]
    fields.append('space units: "m" "m" "m"')
    geometries = []
    for written in (fields, [re.sub(" (?=.*:)", "", field) for field in fields]):
        (tmp_path / "a.nrrd").write_bytes(plain_nrrd_header(SHAPE, *written) + bytes(4 * 24))
        geometries.append(read_volume(str(tmp_path / "a.nrrd")).geometry)
    assert geometries[0] == geometries[1]
    assert geometries[1].spacing == (0.5, 2.0, 3.0) and geometries[1].origin == (1.0, 2.0, 3.0)


def test_the_case_of_words_in_a_nrrd_header_means_nothing(tmp_path):
    """Teem takes `endian: Big` for big, and `Cell` for cell."""
    fields = (
        "type: uint16\ndimension: 4\nsizes: 2 4 3 2\nencoding: raw\nendian: big\nkinds: vector domain domain domain"
    )
    fields += "\ncenters: none cell cell cell\naxis mins: nan 0 0 0\n\n"
    array, found = np.arange(48, dtype=">u2"), []
    for written in (str.lower, str.title, str.upper):
        header = "NRRD0004\n" + re.sub("(?<=: ).*", lambda value, written=written: written(value[0]), fields)
        (tmp_path / "a.nrrd").write_bytes(header.encode() + array.tobytes())
        found.append(read_volume(str(tmp_path / "a.nrrd"), 3, 2))
        np.testing.assert_array_equal(found[-1].array.ravel(order="K"), array)
    assert found[0].geometry == found[1].geometry == found[2].geometry and found[0].geometry.origin == (0.5,) * 3


def test_a_key_of_a_nrrd_header_is_no_field(tmp_path):
    """`key:=value` is what somebody has noted, in words of his own."""
    keys = "type:=uchar\nsizes:=1\nspace directions:=(9,0,0) (0,9,0) (0,0,9)\nspace:=RAS\nsample units:=none\n"
    for name, header in (("a", nrrd_header(slanted(SHAPE))), ("b", nrrd_header(slanted(SHAPE)) + keys.encode())):
        (tmp_path / f"{name}.nrrd").write_bytes(header + b"\n" + slanted(SHAPE).tobytes(order="F"))
    plain, noted = (read_volume(str(tmp_path / f"{name}.nrrd")) for name in "ab")
    np.testing.assert_array_equal(plain.array, noted.array)
    assert plain.geometry == noted.geometry


@pytest.mark.parametrize("line", ["note: " + " " * (1 << 19) + "x", "space directions: " + "(" * (1 << 19)], ids=len)
def test_a_nrrd_header_of_long_lines(line, tmp_path):
    """Time is linear in their length. It was quadratic: half a megabyte took hours."""
    (tmp_path / "a.nrrd").write_bytes(nrrd_header(slanted(SHAPE)) + line.encode() + b"\n\n")
    assert re.search("not a readable NRRD header|expected 96 bytes of voxels", refusal(tmp_path / "a.nrrd"))


@pytest.mark.parametrize(
    ("centers", "spacing", "origin"),
    [("node node node", (0.5, 1.0, 2.0), 10.0), ("cell node node", (0.375, 1.0, 2.0), 10.1875)],
)
def test_nrrd_of_axes_that_say_where_they_end(centers, spacing, origin, tmp_path):
    """A spacing that is given counts more."""
    ends = "axis mins: 10 5 -2", "axis maxs: 11.5 7 5", f"centers: {centers}"
    (tmp_path / "a.nrrd").write_bytes(plain_nrrd_header(SHAPE, *ends, "spacings: nan nan 2") + bytes(4 * 24))
    geometry = read_volume(str(tmp_path / "a.nrrd")).geometry
    assert geometry.spacing == spacing and geometry.origin == (origin, 5.0, -2.0)
    (tmp_path / "a.nrrd").write_bytes(plain_nrrd_header(SHAPE, *ends) + bytes(4 * 24))
    assert read_volume(str(tmp_path / "a.nrrd")).geometry.spacing == (*spacing[:2], 7.0)


def test_nrrd_of_components_that_begins_elsewhere(tmp_path):
    def write(mins: str) -> Path:
        header = plain_nrrd_header((2, *SHAPE), "kinds: vector domain domain domain", f"axis mins: {mins}")
        (tmp_path / "a.nrrd").write_bytes(header + bytes(4 * 48))
        return tmp_path / "a.nrrd"

    assert read_volume(str(write("nan 10 5 -2"))).geometry.origin == (10.0, 5.0, -2.0)
    for wrong in ("10 5 -2", "nan 10 5 x", "nan 10 5 -2\ncenters: cell"):
        assert "not a readable NRRD header" in refusal(write(wrong))


@pytest.mark.parametrize("none", ["none", "(nan,nan,nan)"])
@pytest.mark.parametrize("axis", [0, 3])
def test_nrrd_of_components(axis, none, tmp_path):
    array = np.stack([slanted(SHAPE), -slanted(SHAPE)], axis=-1)
    stored = np.moveaxis(array, -1, axis)
    steps, kinds = ["(0,-0.5,0)", "(2,0,0)", "(0,0,3)"], ["domain"] * 3
    steps.insert(axis, none)
    kinds.insert(axis, "vector")
    fields = {"dimension": "4", "sizes": " ".join(map(str, stored.shape)), "space directions": " ".join(steps)}
    header = nrrd_header(slanted(SHAPE), **fields, kinds=" ".join(kinds))
    (tmp_path / "a.nrrd").write_bytes(header + b"\n" + stored.tobytes(order="F"))
    volume = read_volume(str(tmp_path / "a.nrrd"), 3, 2)
    np.testing.assert_array_equal(volume.array, array)
    assert volume.geometry.spacing == SPACING
    assert volume.geometry.direction == (0.0, 1.0, 0.0, -1.0, 0.0, 0.0, 0.0, 0.0, 1.0)


@pytest.mark.parametrize("axis", [0, 3])
@pytest.mark.parametrize("is_oriented", [True, False])
def test_nrrd_of_time_steps(is_oriented, axis, tmp_path):
    """An axis of kind time is time, never one of components; its step is among the spacings."""
    series = np.random.default_rng(0).random((5, *SHAPE)).astype(np.float32)
    stored = np.moveaxis(series, 0, axis)
    steps, kinds, spacings = ["(0,-0.5,0)", "(2,0,0)", "(0,0,3)"], ["domain"] * 3, ["0.5", "2", "3"]
    spacings = ["nan"] * 3 if is_oriented else spacings
    for items, item in ((steps, "none"), (kinds, "time"), (spacings, "2.5")):
        items.insert(axis, item)
    fields = {"dimension": "4", "sizes": " ".join(map(str, stored.shape)), "spacings": " ".join(spacings)}
    fields |= {"space directions": " ".join(steps), "kinds": " ".join(kinds)}
    fields["axis mins"] = " ".join("7" if kind == "time" else "nan" for kind in kinds)
    header = nrrd_header(slanted(SHAPE), **fields)
    if not is_oriented:
        header = re.sub(rb"space.*\n", b"", header)
    (tmp_path / "a.nrrd").write_bytes(header + b"\n" + stored.tobytes(order="F"))
    volume = read_volume(str(tmp_path / "a.nrrd"))
    assert isinstance(volume.array, np.memmap)
    np.testing.assert_array_equal(volume.array, series)
    assert volume.geometry.spacing == (2.5, *SPACING)
    assert volume.geometry.origin == (7.0, *(ORIGIN if is_oriented else (0, 0, 0)))
    assert "expected 3 axes, found a time series of 5 steps" in refusal(tmp_path / "a.nrrd", 3)
    header = header.replace(b"axis mins: ", b"axis mins: 0 ")
    (tmp_path / "a.nrrd").write_bytes(header + b"\n" + stored.tobytes(order="F"))
    assert "5 axis mins of 4 axes" in refusal(tmp_path / "a.nrrd")


def test_nrrd_of_four_axes_of_which_nothing_is_said(tmp_path):
    (tmp_path / "a.nrrd").write_bytes(plain_nrrd_header((*SHAPE, 2)) + bytes(4 * 48))
    assert refusal(tmp_path / "a.nrrd").endswith("a field like kinds: domain domain domain time (or vector) says it")
    kinds = "kinds: domain domain time vector"
    (tmp_path / "a.nrrd").write_bytes(plain_nrrd_header((*SHAPE, 2), kinds) + bytes(4 * 48))
    assert read_volume(str(tmp_path / "a.nrrd"), 4, 2).array.shape == (2, 4, 3, 1, 2)


def test_nrrd_of_a_list_is_no_time_series(tmp_path):
    (tmp_path / "a.nrrd").write_bytes(plain_nrrd_header((*SHAPE, 2), "kinds: domain domain domain list") + bytes(192))
    said = refusal(tmp_path / "a.nrrd", 4)
    assert "found a single volume of 2 components: a list axis is taken for components" in said
    assert refusal(write_nrrd(tmp_path, slanted(SHAPE)), 4).endswith("found a single volume")


def test_a_nrrd_image(tmp_path):
    (tmp_path / "a.nrrd").write_bytes(plain_nrrd_header((4, 3), "spacings: 0.5 2") + slanted((4, 3)).tobytes(order="F"))
    volume = read_volume(str(tmp_path / "a.nrrd"), 2)
    np.testing.assert_array_equal(volume.array, slanted((4, 3)))
    assert volume.geometry.spacing == (0.5, 2.0)


@pytest.mark.parametrize("directions", ["(2,0) (0,3)", "(0,2) (-3,0)"])
def test_a_nrrd_image_in_a_plane(directions, tmp_path):
    """As ITK writes it."""
    fields = "space dimension: 2", f"space directions: {directions}", "kinds: domain domain", "space origin: (4,5)"
    (tmp_path / "a.nrrd").write_bytes(plain_nrrd_header((4, 3), *fields) + slanted((4, 3)).tobytes(order="F"))
    image, volume = (read_volume(str(tmp_path / "a.nrrd"), d_in) for d_in in (2, 3))
    np.testing.assert_array_equal(image.array, slanted((4, 3)))
    assert image.geometry.spacing == (2.0, 3.0) and volume.geometry.origin == (4.0, 5.0, 0.0)
    turn = (1, 0, 0, 0, 1, 0, 0, 0, 1) if directions.startswith("(2") else (0, -1, 0, 1, 0, 0, 0, 0, 1)
    assert volume.geometry.direction == turn


@pytest.mark.parametrize(
    "fields",
    [
        {"type": "block"},
        {"dimension": "2147483647"},
        {"sizes": "4 3"},
        {"sizes": "4 3 -2"},
        {"sizes": "4 3 200000"},
        {"sizes": "4 3 200000", "encoding": "gzip"},
        {"sizes": "999999999 999999999 999999999"},
        {"space directions": "(1,0,0) (0,1,0)"},
        {"space directions": "(1,0,0) (0.5,1,0) (0,0,1)"},
        {"space directions": "(1,0,0) (0,0,0) (0,0,1)"},
        {"space directions": "(1,0) (0,1) (0,0)"},
        {"space origin": "(0,nan,0)"},
        {"space origin": "(0,0)"},
        {"line skip": "3"},
        {"byte skip": "-2"},
        {"byte skip": "99999999"},
        {"data file": "LIST"},
        {"data file": "missing.raw"},
        {"encoding": "gzip"},
        {"encoding": "text"},
        {"encoding": "bzip2"},
        {"endian": ""},
        {"endian": "middle"},
    ],
    ids=str,
)
def test_impossible_nrrd(fields, tmp_path):
    array = slanted(SHAPE)
    (tmp_path / "a.nrrd").write_bytes(nrrd_header(array, **fields) + b"\n" + array.tobytes(order="F"))
    refusal(tmp_path / "a.nrrd")


def test_another_encoding_has_a_way_out(tmp_path):
    path, array = tmp_path / "my a.nrrd", slanted(SHAPE)
    path.write_bytes(nrrd_header(array, encoding="hex") + b"\n" + array.tobytes(order="F").hex().encode())
    assert f"found hex: unu save -f nrrd -e gzip -i '{path}' -o b.nrrd, of Teem, writes it anew" in refusal(path)


def test_a_raw_file_that_begins_with_a_header(tmp_path):
    """By a text file beside it, as the documentation shows one."""
    array = np.arange(32 * 24 * 20, dtype="<u2").reshape(32, 24, 20)
    (tmp_path / "scan.raw").write_bytes(bytes(512) + array.tobytes("F"))
    page = (ROOT / "docs" / "volume-files.md").read_text(encoding="utf-8")
    (tmp_path / "scan.nhdr").write_text("NRRD0004" + page.partition("\nNRRD0004")[2].partition("```")[0], "utf-8")
    volume = read_volume(str(tmp_path / "scan.nhdr"))
    np.testing.assert_array_equal(volume.array, array)
    assert volume.geometry.spacing == (5, 5, 5) and volume.geometry.unit_of_lengths(3) == "µm"


@pytest.mark.parametrize(
    ("directions", "origin", "is_kept"),
    [
        ("(0,1,0) (0,0,2)", (5, 6, 7), False),
        ("(1,0,0) (0,2,0)", (5, 6, 7), False),
        ("(1,0,0) (0,2,0)", (5, 6, 0), True),
        ("(0,1,0) (2,0,0)", (5, 6, 0), True),
    ],
)
def test_an_image_keeps_its_place_or_is_refused(directions, origin, is_kept, tmp_path):
    """With --d_in 2; without it, it is a volume of one voxel along z, which has any place."""
    place = "space dimension: 3", f"space directions: {directions}", f"space origin: {origin}".replace(", ", ",")
    (tmp_path / "a.nrrd").write_bytes(plain_nrrd_header((4, 3), *place) + slanted((4, 3)).tobytes(order="F"))
    volume = read_volume(str(tmp_path / "a.nrrd"))
    assert volume.array.shape == (4, 3, 1) and volume.geometry.origin == origin
    if is_kept:
        assert read_volume(str(tmp_path / "a.nrrd"), 2).geometry.origin == (5.0, 6.0)
    else:
        assert "--d_in 2 would lose a part of its place in space" in refusal(tmp_path / "a.nrrd", 2)
