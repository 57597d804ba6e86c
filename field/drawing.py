"""Draws slices, axes, colour bars and text into RGB images. VTK draws the letters."""

from __future__ import annotations

import dataclasses

import numpy as np

from field.colours import ColourScale, round_ticks
from field.png import png_of

PANEL, GAP, BAR, LINE = 300, 60, 120, 22  # pixels: panel side, gap between panels, colour bar, line of text
ROW = 2 * LINE + PANEL + 2 * LINE  # pixels: heading and captions, panels, figures of the axes and a gap
MIN_WIDTH = 800  # least width of a whole picture, for its title, in pixels
SMALL, TEXT, HEADING = 12, 14, 18  # font sizes, in points
LETTER = 9  # pixels: width of a letter of size TEXT, about
TICK_WIDTH, TICK_HEIGHT = 50, 40  # pixels from a figure at an axis to the next, about
FRAME, INK = 160, 0  # grey levels


@dataclasses.dataclass(frozen=True)
class Slice:
    """A plane of values, drawn with its first axis to the right and its second axis upwards.

    values: (n, m). names: of the two axes. voxel: the lengths of a voxel's sides. positions: the coordinates along each
    axis, written at it; empty where it has none. caption: what stands above.
    """

    values: np.ndarray
    names: tuple[str, str]
    voxel: tuple[float, float]
    positions: tuple[np.ndarray, np.ndarray]
    caption: str


def draw_row(heading: str, slices: list[Slice], scale: ColourScale, solid: np.ndarray | None, units: str) -> np.ndarray:
    """An RGB image: the panels of one volume side by side, and their colour bar. solid: the rendered image, or None."""
    n_panels = len(slices) + (solid is not None)
    row = np.full((ROW, GAP + n_panels * (PANEL + GAP) + BAR, 3), 255, np.uint8)
    top, left = 2 * LINE, GAP
    has_values = not all(np.isnan(part.values).all() for part in slices)
    write_text(row, heading + ("" if has_values else ": all missing"), left, LINE // 2, TEXT + 2)
    if solid is not None:
        row[top : top + PANEL, left : left + PANEL] = solid
        left += PANEL + GAP
    for part in slices:
        draw_slice(row, part, scale, left, top)
        left += PANEL + GAP
    if has_values:
        draw_bar(row[top : top + PANEL, left - GAP // 2 :], scale, units)
    return row


def draw_slice(row: np.ndarray, part: Slice, scale: ColourScale, left: int, top: int) -> None:
    """Draw a slice, its frame and its axes into the middle of a panel."""
    image = to_panel(scale.colours(part.values), *part.voxel)
    height, width = image.shape[:2]
    y, x = top + (PANEL - height) // 2, left + (PANEL - width) // 2
    row[y - 1 : y + height + 1, x - 1 : x + width + 1] = FRAME
    row[y : y + height, x : x + width] = image
    right, up = part.names
    write_text(row, part.caption, x + width // 2, y - 12, TEXT, "centre")
    before_caption = min(0, width // 2 - LETTER * len(part.caption) // 2)
    write_text(row, up, x + before_caption - 8, y - 12, TEXT, "right")
    write_text(row, right, x + width, y + height + 32, TEXT, "right")
    for place, text in axis_ticks(part.positions[0], width, TICK_WIDTH):
        row[y + height + 1 : y + height + 5, x + place] = INK
        write_text(row, text, x + place, y + height + 14, SMALL, "centre")
    for place, text in axis_ticks(part.positions[1], height, TICK_HEIGHT):
        row[y + height - 1 - place, x - 5 : x - 1] = INK
        write_text(row, text, x - 8, y + height - 1 - place, SMALL, "right")


def axis_ticks(positions: np.ndarray, length: int, distance: int) -> list[tuple[int, str]]:
    """The figures at an axis of a slice: pairs of a place, in pixels from the first voxel's side, and a text.

    length: of the axis. distance: from one figure to the next, about. Both in pixels.
    """
    n = len(positions)
    most = length * (n - 1) // max(n, 1) // distance
    if most < 1:
        return []
    first, per_voxel = positions[0], (positions[-1] - positions[0]) / (n - 1)
    ticks = round_ticks(first, positions[-1], most)
    if len(ticks) < 2:  # one figure gives no scale
        ticks = [(value, f"{value:.6g}") for value in (first, positions[-1])]
    return [(round(((value - first) / per_voxel + 0.5) * length / n), text) for value, text in ticks]


def to_panel(image: np.ndarray, width: float, height: float) -> np.ndarray:
    """Scale colours (a, b, 3) to an image of panel size, a to the right, b upwards. width, height: of a voxel."""
    size = np.array([image.shape[0] * width, image.shape[1] * height])
    n_x, n_y = np.maximum(np.rint(PANEL * size / size.max()).astype(int), 8)  # so that thin slices stay visible
    columns, rows = np.arange(n_x) * image.shape[0] // n_x, np.arange(n_y)[::-1] * image.shape[1] // n_y
    return image[np.ix_(columns, rows)].transpose(1, 0, 2)


def draw_bar(image: np.ndarray, scale: ColourScale, units: str) -> None:
    """Draw a colour bar, its figures and their units into the image."""
    top, height, width = 2 * LINE, image.shape[0] - 3 * LINE, 16
    write_text(image, units, 0, LINE // 2, TEXT)
    shades = scale.table[np.arange(height)[::-1] * len(scale.table) // height]
    image[top - 1 : top + height + 1, : width + 2] = FRAME
    image[top : top + height, 1 : width + 1] = shades[:, None]
    for place, text in scale.ticks():
        y = top + round((1 - place) * (height - 1))
        image[y, width + 2 : width + 6] = INK
        write_text(image, text, width + 10, y, TEXT)


def write_text(image: np.ndarray, text: str, x: int, y: int, size: int, align: str = "left") -> None:
    """Write a line of text into an RGB image, vertically centred at y. Text outside the image is cut off."""
    import vtkmodules.vtkRenderingFreeType  # noqa: F401
    from vtkmodules.util.numpy_support import vtk_to_numpy
    from vtkmodules.vtkCommonDataModel import vtkImageData
    from vtkmodules.vtkRenderingCore import vtkTextProperty, vtkTextRenderer

    text = "".join(c for c in text if c.isprintable())
    if not text.strip():
        return
    style, rendered, extent = vtkTextProperty(), vtkImageData(), [0, 0]
    style.SetFontSize(size)
    renderer = vtkTextRenderer.GetInstance()
    renderer.RenderString(style, text, rendered, extent, 72, renderer.FreeType)
    n_x, n_y, _ = rendered.GetDimensions()
    alpha = vtk_to_numpy(rendered.GetPointData().GetScalars()).reshape(n_y, n_x, -1)[..., 3]
    alpha = alpha[: extent[1], : extent[0]][::-1] / 255.0
    x -= {"left": 0, "centre": extent[0] // 2, "right": extent[0]}[align]
    y -= extent[1] // 2
    x_0, y_0 = max(x, 0), max(y, 0)
    under = image[y_0 : max(y + extent[1], 0), x_0 : max(x + extent[0], 0)]
    over = alpha[y_0 - y :, x_0 - x :][: under.shape[0], : under.shape[1], None]
    under[:] = np.rint(under * (1 - over))


def page(title: str, content: np.ndarray) -> bytes:
    """A PNG file of an RGB image below its title."""
    height, width, _ = content.shape
    image = np.full((2 * LINE + height, max(width, MIN_WIDTH), 3), 255, np.uint8)
    image[2 * LINE :, :width] = content
    write_text(image, title, GAP, LINE, HEADING)
    return png_of(image)
