"""Pictures: what they show is where it should be; the flags that write them; machines without a renderer."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from helpers.networks import field_net, make_blob, make_header
from helpers.pictures import is_blue, is_red, read_png
from helpers.scripts import decompress, error_of, listing, subprocess_of
from helpers.volumes import slanted

import net_decompress
import train as train_script
from cli import files
from field import colours, drawing, pictures, rendering
from field.drawing import BAR, GAP, LINE, PANEL, ROW
from field.labels import LabelScale
from field.metrics import compare
from utils import Grid, ValueRange, voxel_grid


@pytest.fixture
def coarse(renderer, monkeypatch) -> None:
    """Renders a pixel in 36, the others alike: it takes less time, and the pictures are as large."""
    rendered = rendering.rendered_by

    def rendered_by(scenes, width, height):
        images = rendered(scenes, width // 6, height // 6)
        return [np.repeat(np.repeat(image, 6, axis=0), 6, axis=1) for image in images]

    monkeypatch.setattr(rendering, "rendered_by", rendered_by)


@pytest.fixture
def no_solids(monkeypatch) -> None:
    """Leaves out what takes long, and a renderer: the panels of the solids stay white."""
    white = np.full((PANEL, PANEL, 3), 255, np.uint8)
    monkeypatch.setattr(pictures, "render_solids", lambda solids, *_: [white] * len(solids))


def preview(path: Path, decoded: np.ndarray, original=None, d_in=3, fill=None, metrics=None, **header) -> np.ndarray:
    """The picture of a field that has just these values; of a step of a series when d_in is 4."""
    n_axes = min(d_in, 3)
    grid = voxel_grid(decoded.shape[:n_axes])
    if d_in == 4:
        grid = Grid((np.array([5.0]), *grid.axes))
    ends = np.zeros(max(decoded[(0,) * n_axes].size, 1), decoded.dtype)

    def on_grid(part: Grid, as_float: bool) -> np.ndarray:
        index = np.ix_(*(axis.astype(int) for axis in part.axes[-n_axes:]))
        return decoded[index][None] if d_in == 4 else decoded[index]

    field = SimpleNamespace(
        header=make_header(grid.shape, **header), values=ValueRange(ends, ends, fill), on_grid=on_grid
    )
    steps = {5 if d_in == 4 else 0: metrics} if metrics else {}
    original = original[None] if d_in == 4 else original
    path.write_bytes(pictures.preview(field, grid, original, steps, "title", False))
    return read_png(path)


def panel(image: np.ndarray, row: int, column: int) -> np.ndarray:
    top, left = 2 * LINE + row * ROW + 2 * LINE, GAP + column * (PANEL + GAP)
    return image[top : top + PANEL, left : left + PANEL]


def slice_in(image: np.ndarray, row: int, column: int) -> np.ndarray:
    """The slice in a panel, without its frame."""
    shown = panel(image, row, column)
    is_frame = (shown == 160).all(axis=-1)
    rows = np.flatnonzero(is_frame.sum(axis=1) > is_frame.sum(axis=1).max() * 0.5)
    columns = np.flatnonzero(is_frame.sum(axis=0) > is_frame.sum(axis=0).max() * 0.5)
    inner = [slice(i[0] + 1, i[-1]) if len(i) > 1 and i[-1] - i[0] > 8 else slice(None) for i in (rows, columns)]
    return shown[tuple(inner)]


def bar_in(image: np.ndarray, row: int, n_panels: int) -> np.ndarray:
    """The colours of a colour bar, from its lowest value to its highest."""
    top, left = 2 * LINE + row * ROW + 2 * LINE, GAP + n_panels * (PANEL + GAP) - GAP // 2
    return image[top + 2 * LINE : top + PANEL - LINE, left + 8][::-1]


# --- what is shown ----------------------------------------------------------------------------------


def test_slices_show_the_values_in_place(no_solids, tmp_path):
    """Every voxel of the three slices has the colour that the bar has at its value."""
    array = slanted((9, 7, 5))
    image = preview(tmp_path / "p.png", array)
    bar = bar_in(image, 0, 4)
    low, high = array.min(), array.max()
    for column, plane in ((1, array[4]), (2, array[:, 3]), (3, array[:, :, 2])):
        shown = slice_in(image, 0, column)
        n_right, n_up = plane.shape
        assert shown.shape[0] / shown.shape[1] == pytest.approx(n_up / n_right, rel=0.02)
        for i, j in np.ndindex(plane.shape):
            pixel = shown[int((n_up - j - 0.5) * shown.shape[0] / n_up), int((i + 0.5) * shown.shape[1] / n_right)]
            expected = bar[round((plane[i, j] - low) / (high - low) * (len(bar) - 1))]
            assert np.abs(pixel - expected).max() <= 4, (column, i, j)


@pytest.mark.parametrize(("z", "aspect"), [("degrees_north", 0.5), ("m", 1.0), ("", 0.5)])
def test_a_voxel_is_a_cube_where_units_differ(z, aspect, no_solids, tmp_path):
    units = {"units_x": "degrees_east", "units_y": "degrees_north", "units_z": z}
    place = {"spacing": (1.0, 1.0, 0.5), "axis_attributes": {name: unit for name, unit in units.items() if unit}}
    shown = slice_in(preview(tmp_path / "p.png", slanted((20, 20, 20)), **place), 0, 1)
    assert shown.shape[0] / shown.shape[1] == pytest.approx(aspect, rel=0.02)


def test_axes_have_coordinates_and_the_bar_has_units(no_solids, tmp_path, texts):
    """Of the voxels' middles; captions say where the slices lie."""
    place = {"spacing": (0.25, 0.5, 2.0), "origin": (100.0, -20.0, 3.0), "units": "K"}
    preview(tmp_path / "p.png", slanted((40, 40, 40)), **place, axis_attributes={"units_x": "degrees_east"})
    expected = "x = 105 degrees_east,y = -10,z = 43,K,100,105,-20,-15,20,40,60,80"
    assert set(expected.split(",")) <= set(texts)


def test_falling_axes_are_turned_around(no_solids, tmp_path, texts, monkeypatch):
    """The greater coordinate lies to the right and above, in slices and in the solid. The units stand at the axes."""
    solids = []
    monkeypatch.setattr(
        pictures, "render_solids", lambda parts, *_: solids.extend(parts) or [np.full((PANEL, PANEL, 3), 255, np.uint8)]
    )
    north = np.broadcast_to(80 - 10 * np.arange(17.0)[:, None], (20, 17, 9)).astype(np.float32)
    place = {"spacing": (1.0, -10.0, 1.0), "origin": (0.0, 80.0, 0.0)}
    image = preview(tmp_path / "p.png", north, **place, axis_attributes={"units_y": "degrees_north", "units_x": "m"})
    shown = slice_in(image, 0, 3)
    assert is_red(shown[0]).all() and is_blue(shown[-1]).all()
    assert (np.diff(solids[0], axis=1) > 0).all()
    assert {"x [m]", "y [°N]", "z", "y = 0 degrees_north"} <= set(texts)


def test_turned_axes_have_distances(no_solids, tmp_path, texts):
    """Their voxels have no single x, y or z."""
    turn = (0.6, -0.8, 0.0, 0.8, 0.6, 0.0, 0.0, 0.0, 1.0)
    place = {"spacing": (0.25, 0.5, 2.0), "origin": (100.0, -20.0, 3.0), "direction": turn}
    preview(tmp_path / "p.png", slanted((40, 40, 40)), **place)
    assert {"x = 5", "y = 10", "z = 40", "0", "5", "10", "15"} <= set(texts) and "100" not in texts


@pytest.mark.parametrize(
    ("positions", "length", "expected"),
    [
        (np.arange(10.0), 300, [(15, "0"), (75, "2"), (135, "4"), (195, "6"), (255, "8")]),
        (100 - 0.5 * np.arange(10), 300, [(255, "96"), (195, "97"), (135, "98"), (75, "99"), (15, "100")]),
        (np.arange(2) * 1e-9, 300, [(75, "0"), (150, "5e-10"), (225, "1e-09")]),
        (np.arange(3) + 1e7, 180, [(30, "10000000"), (90, "10000001"), (150, "10000002")]),
        (np.arange(10.0), 30, []),
        (80 - 10 * np.arange(17.0), 60, [(2, "80"), (58, "-80")]),
        (np.zeros(1), 300, []),
        (np.empty(0), 300, []),
    ],
)
def test_figures_stand_at_their_voxels(positions, length, expected):
    found = drawing.axis_ticks(positions, length, 50)
    assert [tick for tick in found if tick in expected] == expected
    for place, text in found:  # the voxel of that place is the nearest one to the value
        at = np.interp(place * len(positions) / length - 0.5, range(len(positions)), positions)
        assert at == pytest.approx(float(text), abs=0.02 * np.ptp(positions))


@pytest.mark.parametrize(("corner", "place"), [((-1, -1, 0), (1, -1)), ((0, -1, 0), (-1, -1)), ((-1, 0, 0), (1, 1))])
def test_the_solid_lies_with_x_to_the_right_and_y_upwards(coarse, tmp_path, corner, place):
    array = np.zeros((16, 16, 16), np.uint8)
    array[tuple(slice(-5, None) if c else slice(0, 5) for c in corner)] = 200
    shown = panel(preview(tmp_path / "p.png", array), 0, 0)
    rows, columns = np.nonzero(np.ptp(shown, axis=-1) > 30)  # what has a colour; frame and letters are grey
    assert len(rows) > 500
    assert (columns.mean() - PANEL / 2) * place[0] > 20 and (rows.mean() - PANEL / 2) * place[1] > 20


def test_the_solid_has_the_colours_of_the_slices(coarse, tmp_path):
    """Opaque bodies of the greatest value and of the least one: at most a quarter darker, where they face away."""
    i, j, k = np.indices((24, 24, 24))
    array = 100 * np.where((i - 6) ** 2 + (j - 11) ** 2 + (k - 11) ** 2 < 25, -1.0, 0.0)
    array += 100 * ((i - 17) ** 2 + (j - 11) ** 2 + (k - 11) ** 2 < 25)
    image = preview(tmp_path / "p.png", array)
    shown, bar = panel(image, 0, 0), bar_in(image, 0, 4)
    for is_body, colour in ((is_red(shown), bar[-1]), (is_blue(shown), bar[0])):
        assert is_body.sum() > 500
        median = np.median(shown[is_body], axis=0)
        assert (median >= 0.7 * colour).all() and (median <= colour + 60).all()


def test_few_integers_are_labels(no_solids, tmp_path, texts):
    """Each has a colour and a figure of its own; the last row shows which voxels differ, and the title how many."""
    original = (np.indices((12, 10, 8))[0] // 4 * 3).astype(np.uint8)
    decoded = original.copy()
    decoded[6, 5, 4] = 0
    decoded[0, 0, 0] = 3
    metrics = compare(original, decoded)
    image = preview(tmp_path / "p.png", decoded, original, metrics=metrics, units="class")
    assert any(text.endswith(", 2 of 960 voxels differ") for text in texts)
    assert {"0", "3", "6", "equal", "differs"} <= set(texts)
    assert [text for text in texts if text == "class"] == ["class"] * 2
    colours_of = [np.unique(bar_in(image, row, 4), axis=0) for row in range(3)]
    assert [len(found) for found in colours_of] == [3, 3, 2]
    assert len(np.unique(slice_in(image, 1, 3).reshape(-1, 3), axis=0)) == 3
    is_differing = is_red(slice_in(image, 2, 3))
    rows, columns = np.nonzero(is_differing)
    height, width = is_differing.shape
    assert is_differing.mean() == pytest.approx(1 / 120, rel=0.3)
    assert (columns.mean() + 0.5) * 12 / width == pytest.approx(6.5, abs=0.1)
    assert (height - rows.mean() - 0.5) * 10 / height == pytest.approx(5.5, abs=0.1)


def test_decoded_values_between_the_labels(no_solids, tmp_path, texts):
    """The original says that there are labels."""
    original = (np.indices((12, 10, 8))[0] // 4 * 30).astype(np.uint8)
    decoded = original + np.indices(original.shape)[1].astype(np.uint8)
    preview(tmp_path / "p.png", decoded, original, metrics=compare(original, decoded))
    assert any(text.endswith(", 864 of 960 voxels differ") for text in texts)
    assert {"0", "30", "60", "differs"} <= set(texts)


def test_what_are_no_labels(no_solids, tmp_path, texts):
    """Floats, many integers, vectors."""
    steps = np.indices((20, 10, 8))[0]
    for array in (np.minimum(steps, 2).astype(np.float32), steps.astype(np.int16),
                  np.stack([np.minimum(steps, 2).astype(np.uint8)] * 3, -1)):  # fmt: skip
        texts.clear()
        metrics = compare(array, array) if array.ndim == 3 else None
        preview(tmp_path / "p.png", array, array, metrics=metrics)
        assert any(text.startswith("error") for text in texts) and "equal" not in texts
        assert array.ndim == 4 or any(text.endswith(", no voxel differs") for text in texts)


def test_scales_of_labels():
    scale = LabelScale.of(np.array([-2.0, 0.0, 5.0]))
    assert scale.unit(np.array([5.0, -2.0, 0.0, np.nan])).tolist()[:3] == [1.0, 0.0, 0.5]
    assert scale.unit(np.array([9.0, -7.0, 1.0, 3.0])).tolist() == [1.0, 0.0, 0.5, 1.0]
    assert scale.colours(np.array([np.nan])).tolist() == [[255, 255, 255]]
    assert [(round(place, 3), text) for place, text in scale.ticks()] == [(0.167, "-2"), (0.5, "0"), (0.833, "5")]
    first, middle, last = scale.visible(np.array([0.0, 0.5, 1.0]))
    assert middle == 0 and first > 0.9 and last > 0.9  # 0 is the background
    assert LabelScale.of(np.array([3.0])).colours(np.array([3.0])).shape == (1, 3)


def test_the_error_has_a_sign_and_its_own_row(no_solids, tmp_path):
    original = slanted((12, 10, 8))
    decoded = original.copy()
    decoded[:6] += 2
    decoded[6:] -= 2
    image = preview(tmp_path / "p.png", decoded, original)
    assert image.shape == (2 * LINE + 3 * ROW, GAP + 4 * (PANEL + GAP) + BAR, 3)
    shown = slice_in(image, 2, 3)
    half = shown.shape[1] // 2
    assert is_red(shown[:, :half]).all() and is_blue(shown[:, half:]).all()
    same = slice_in(preview(tmp_path / "p.png", original, original), 2, 3)
    assert np.ptp(same) == 0 and same[0, 0, 0] < 255  # grey: no error


def test_signed_fields_are_centred_at_zero(no_solids, tmp_path):
    x = np.linspace(-1, 3, 20, dtype=np.float32)
    image = preview(tmp_path / "p.png", np.broadcast_to(x[:, None, None], (20, 8, 8)).copy())
    bar = bar_in(image, 0, 4)
    middle = bar[len(bar) // 2]
    assert np.ptp(middle) < 8 and is_red(bar[-1]) and is_blue(bar[0])
    shown = slice_in(image, 0, 3)[50]
    assert np.ptp(shown[shown.shape[0] * 5 // 20]) < 20 and is_red(shown[-1]) and not is_red(shown[0])


def test_missing_voxels_are_white(no_solids, tmp_path):
    array = slanted((10, 10, 10))
    for fill in (np.float32(np.nan), np.float32(-999)):
        gone = array.copy()
        gone[:5] = fill
        shown = slice_in(preview(tmp_path / "p.png", gone, array, fill=fill), 0, 3)
        half = shown.shape[1] // 2
        assert (shown[5:-5, 5 : half - 5] == 255).all() and (shown[:, half:].min(axis=-1) < 200).all()


CASES = {
    "image": (slanted((30, 20)), 2),
    "line": (slanted((30,)), 1),
    "one voxel thick": (slanted((12, 1, 9)), 3),
    "a column": (slanted((1, 1, 9)), 3),
    "one voxel": (slanted((1, 1, 1)), 3),
    "vectors": (np.stack([slanted((8, 7, 6))] * 3, axis=-1), 3),
    "constant": (np.full((5, 6, 7), 3, np.uint8), 3),
    "nothing but NaN": (np.full((5, 6, 7), np.nan, np.float32), 3),
    "a step of a series": (slanted((8, 7, 6)), 4),
    "extreme values": (slanted((5, 6, 7)).astype(np.float64) * 1e300, 3),
    "long integers": (slanted((5, 6, 7)).astype(np.int64) << 55, 3),
    "thin": (slanted((200, 3, 3)), 3),
}


@pytest.mark.parametrize("case", CASES)
def test_any_field_has_a_picture(coarse, tmp_path, case, recwarn):
    array, d_in = CASES[case]
    fill = np.float32(np.nan) if "NaN" in case else None
    image = preview(tmp_path / "p.png", array, array, d_in, fill)
    n_rows, n_columns = (1, 1) if min(array.shape) == 1 or d_in < 3 else (3, 4)
    assert image.shape[0] == 2 * LINE + n_rows * ROW
    shown = slice_in(image, 0, n_columns - 1)
    assert (np.ptp(shown, axis=(0, 1)).max() > 30) == (case not in ("constant", "nothing but NaN", "one voxel"))
    assert not recwarn.list


@pytest.mark.parametrize(
    ("shape", "spacing"),
    [((40, 4, 4), (1, 1, 1)), ((4, 40, 4), (1, 1, 1)), ((4, 4, 40), (1, 1, 1)), ((20, 3, 20), (0.5, 20, 0.1))],
)
def test_the_letters_of_a_slim_solid_are_in_its_picture(coarse, tmp_path, monkeypatch, shape, spacing):
    """All three, black on white, within the panel and not cut by its border; and the solid fills most of it."""
    written, write_text = [], rendering.write_text

    def watched(image, text, x, y, *rest):
        if image.shape[:2] == (PANEL, PANEL):
            written.append((text, x, y))
        write_text(image, text, x, y, *rest)

    monkeypatch.setattr(rendering, "write_text", watched)
    shown = panel(preview(tmp_path / "p.png", slanted(shape), spacing=spacing), 0, 0)
    assert [text for text, _, _ in written] == ["x", "y", "z"]
    for _, x, y in written:
        assert 6 <= x <= PANEL - 6 and 6 <= y <= PANEL - 6
    rows, columns = np.nonzero((shown != 255).any(axis=-1))
    assert max(np.ptp(rows), np.ptp(columns)) > 0.8 * PANEL


@pytest.mark.parametrize("shape", [(20000, 2, 2), (1500, 1500, 2), (3, 9, 3000), (300, 200, 100), (1000, 1000, 1000)])
def test_solids_are_thinned_axis_by_axis(shape):
    """To what can be rendered in a second, and no axis to a single voxel."""
    *_, box = pictures.Views.of(shape, (1.0, 1.0, 1.0), [np.arange(n) for n in shape]).boxes()
    sizes = [len(range(n)[part]) for n, part in zip(shape, box, strict=True)]
    assert min(sizes) >= 2 and max(sizes) <= 512 and np.prod(sizes) <= 160**3
    assert np.prod(sizes) > 160**3 / 4 or max(sizes) > 256


@pytest.mark.parametrize(("x", "y"), [(-50, 10), (10, -50), (90, 10), (10, 90), (-50, -50), (90, 90)])
def test_text_beside_an_image_leaves_it_as_it_is(x, y):
    image = np.full((40, 40, 3), 255, np.uint8)
    drawing.write_text(image, "abc", x, y, 14)
    assert (image == 255).all()


def test_text_is_cut_at_the_border():
    whole, cut = (np.full((40, 60, 3), 255, np.uint8) for _ in range(2))
    drawing.write_text(whole, "abc", 10, 20, 14)
    drawing.write_text(cut, "abc", -5, 3, 14)
    np.testing.assert_array_equal(cut[:20, :40], whole[17:37, 15:55])
    assert (whole != 255).any() and (cut != 255).any()


# --- scales -----------------------------------------------------------------------------------------


def test_scales():
    rng = np.random.default_rng(0)
    ct = np.where(rng.random(10_000) < 0.8, 0, rng.integers(100, 255, 10_000)).astype(float)
    scale = colours.scale_of([ct])
    assert (scale.low, scale.high, scale.is_above) == (0, ct.max(), False)
    air, bone = scale.visible(np.array([0.0, 1.0]))
    assert air == 0 and bone > 0.9

    spiky = np.append(rng.normal(size=10_000), 1e4)
    scale = colours.scale_of([spiky])
    assert scale.low == -scale.high and 2 < scale.high < 8 and scale.is_above and not scale.is_below
    assert scale.visible(np.array(0.5)) == 0
    assert [text[0] for _, text in scale.ticks()] == ["-", "-", "0", *[scale.ticks()[3][1][0]], "\u2265"]
    low, *_, high = colours.scale_of([-np.abs(spiky)]).ticks()  # clipped at the lower end
    assert (low[0], low[1][:2], high[1][:2]) == (0.0, "\u2264 ", high[1][:2]) and "\u2265" not in high[1]

    sparse = np.zeros(10_000)
    sparse[:10] = np.arange(1, 11)
    scale = colours.scale_of([sparse])
    assert (scale.low, scale.high) == (0, 10)

    scale = colours.scale_of([np.full(5, 7.0)])
    assert scale.low == scale.high == 7 and (scale.unit(np.array([7.0])) == 0.5).all()
    assert colours.scale_of([np.full(5, np.nan)]).colours(np.array([np.nan])).tolist() == [[255, 255, 255]]


@pytest.mark.parametrize(
    ("value", "extent", "text"),
    [
        (0.0, 5.0, "0"),
        (127.5, 255.0, "128"),
        (1000.0125, 0.05, "1000.0125"),
        (-8.86e-5, 1.77e-4, "-8.86e-05"),
        (12.34, 0.0, "12.34"),
        (4.5e18, 9e18, "4.50e+18"),
    ],
)
def test_figures(value, extent, text):
    assert colours.figure_of(value, extent) == text


# --- net_decompress.py --preview --------------------------------------------------------------------


def test_preview_is_written_beside_the_volume(coarse, chain, tmp_path, capsys):
    plain = decompress(chain.blob, tmp_path / "plain.vti")
    picture = tmp_path / "p.png"
    shown = {}
    for name, flags in {
        "alone": (),
        "compared": ("--volume", chain.volume),
        "roi": ("--roi", "0:5,:,1:"),
        "finer": ("--resolution", "17,13,9", "--volume", chain.volume),
        "flat": ("--roi", ":,3:4,:", "--volume", chain.volume),
    }.items():
        array = decompress(chain.blob, tmp_path / "r.vti", "--preview", picture, *flags)
        shown[name] = read_png(picture)
        assert picture.stat().st_size < 1 << 20
        if name == "compared":
            np.testing.assert_array_equal(array, plain)
    heights = {name: (image.shape[0] - 2 * LINE) // ROW for name, image in shown.items()}
    assert heights == {"alone": 1, "compared": 3, "roi": 1, "finer": 1, "flat": 1}
    assert slice_in(shown["roi"], 0, 3).shape != slice_in(shown["alone"], 0, 3).shape
    # 17 positions along x in place of 9: more, and smaller, steps of colour
    steps = [np.abs(np.diff(slice_in(shown[k], 0, 3)[5], axis=0)).any(axis=1).sum() for k in ("alone", "finer")]
    assert 0 < steps[0] <= 8 < steps[1] <= 16


def test_a_picture_that_cannot_be_written_leaves_no_volume(renderer, no_solids, chain, tmp_path, monkeypatch):
    """Nothing new, and what was there as it was."""
    (tmp_path / "r.vti").write_bytes(b"previous volume")
    before = listing(tmp_path)

    pictures_opened = []

    def refuse(path, *mode, **more):
        pictures_opened.extend([path] * (".png" in str(path)))
        if len(pictures_opened) > 1:  # the first is the trial before the work starts
            raise OSError(28, "No space left on device")
        return open(path, *mode, **more)

    monkeypatch.setattr(files, "open", refuse, raising=False)
    outputs = ("--recon", tmp_path / "r.vti", "--preview", tmp_path / "p.png")
    said = error_of(net_decompress.main, "--compressed", chain.blob, *outputs)
    assert said == f"{tmp_path / 'p.png'}: cannot be written: No space left on device"
    assert listing(tmp_path) == before


def test_preview_of_a_series(renderer, no_solids, tmp_path, texts):
    """It shows the step half-way, whose time and PSNR are in the title."""
    times = np.arange(1, 4, dtype=np.float32)[:, None, None, None]
    volume = slanted((6, 5, 4)) * times
    np.save(tmp_path / "v.npy", volume)
    header = make_header(volume.shape, volume.min(), volume.max(), spacing=(0.5, 1, 1, 1), origin=(10, 0, 0, 0))
    (tmp_path / "blob").write_bytes(make_blob(header, field_net(d_in=4)))
    said = ("--volume", tmp_path / "v.npy", "--preview", tmp_path / "p.png")
    shown, decoded = [], []
    for time in ((), ("--time", "1:2"), ("--time", "2"), ("--time", "0.5")):
        decoded.append(decompress(tmp_path / "blob", tmp_path / "r.npy", *said, *time))
        shown.append(read_png(tmp_path / "p.png")[2 * LINE :])
    values = ValueRange(header.low, header.high)
    psnr, whole = (compare(volume[part], decoded[0][part], values).psnr for part in (1, slice(None)))
    assert f"blob: sf, 6 x 5 x 4, t = 10.5 (step 1), PSNR {psnr:.2f} dB" in texts and abs(psnr - whole) > 0.1
    np.testing.assert_array_equal(shown[0], shown[1])
    assert [len(image) // ROW for image in shown] == [3, 3, 3, 1]
    assert (shown[1] != shown[2]).any()


def test_a_fresh_process_renders_and_says_nothing(has_renderer, chain, tmp_path):
    done = subprocess_of("net_decompress.py", "--compressed", chain.blob, "--preview", "p.png", cwd=tmp_path)
    assert done.returncode == 0 and done.stderr == "" and set(listing(tmp_path)) == {"p.png", "recon.vti"}
    solid = panel(read_png(tmp_path / "p.png"), 0, 0)
    assert (solid == 255).all(axis=-1).mean() > 0.3 and (np.ptp(solid, axis=-1) > 30).mean() > 0.05


def test_without_a_renderer_nothing_is_done(chain, volume_file, tmp_path, monkeypatch):
    monkeypatch.setattr(rendering, "TRIAL", "import os; os.abort()")
    before = listing(tmp_path)
    files = ("--recon", tmp_path / "r.vti", "--preview", tmp_path / "p.png")
    said = error_of(net_decompress.main, "--compressed", tmp_path / "not even read", *files)
    assert "p.png: VTK finds no renderer" in said and "libegl1" in said
    outputs = ("--network", tmp_path / "n.pth", "--config", tmp_path / "n.json", "--plot", tmp_path / "p.png")
    assert "p.png: VTK finds no renderer" in error_of(train_script.main, "--volume", volume_file, *outputs)
    assert listing(tmp_path) == before


def test_a_machine_without_a_renderer(chain, tmp_path, monkeypatch):
    """VTK itself crashes there."""
    monkeypatch.delenv("DISPLAY", raising=False)
    monkeypatch.setenv("__EGL_VENDOR_LIBRARY_FILENAMES", "/nonexistent")
    done = subprocess_of("net_decompress.py", "--compressed", chain.blob, "--preview", "p.png", cwd=tmp_path)
    if done.returncode == 0:
        pytest.skip("there is a renderer besides EGL")
    assert done.returncode == 2 and done.stderr.startswith("net_decompress.py: error: p.png: VTK finds no renderer")
    assert done.stderr.count("\n") == 1 and not listing(tmp_path)


def test_names_of_pictures(chain, volume_file, tmp_path):
    blob = ("--compressed", chain.blob, "--recon", tmp_path / "r.vti")
    outputs = ("--volume", volume_file, "--network", tmp_path / "n.pth", "--config", tmp_path / "n.json")
    np.save(tmp_path / "points.npy", np.zeros((1, 3)))
    before = listing(tmp_path)
    for main, flag, rest in ((net_decompress.main, "--preview", blob), (train_script.main, "--plot", outputs)):
        for name in ("p.jpg", "p"):
            assert "expected the name of a picture, .png" in error_of(main, *rest, flag, tmp_path / name)
        assert "does not exist" in error_of(main, *rest, flag, tmp_path / "no" / "p.png")
    assert "would overwrite" in error_of(net_decompress.main, *blob, "--preview", tmp_path / "r.vti")
    said = error_of(net_decompress.main, *blob[:2], "--points", tmp_path / "points.npy", "--preview", "p.png")
    assert "--points and --preview" in said
    assert listing(tmp_path) == before


def test_what_is_all_missing_is_said(no_solids, tmp_path, texts):
    """In place of a colour bar of values that are not there, and of a PSNR."""
    original = slanted((5, 6, 7))
    gone = np.full_like(original, np.nan)
    metrics = compare(original, gone, ValueRange(np.float32([0]), np.float32([1]), np.float32(np.nan)))
    image = preview(tmp_path / "p.png", gone, original, fill=np.float32(np.nan), metrics=metrics)
    assert any(text.endswith(", nothing to compare") for text in texts)
    assert {"decoded: all missing", "original"} <= set(texts)
    assert "error (decoded - original): all missing" in texts
    assert [np.ptp(bar_in(image, row, 4)) > 0 for row in range(3)] == [False, True, False]
