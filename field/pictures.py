"""Pictures of a decoded volume beside its original, and of a training. Only this module uses VTK's rendering.

VTK renders solids, charts and text; NumPy draws slices and colour bars and places all parts. VTK's OpenGL modules are
imported before any VTK object is made: an object that is made earlier cannot be rendered.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import subprocess
from collections.abc import Sequence

import numpy as np

from cli.console import python
from cli.files import write_files
from field.colours import Scale, figure_of, scale_of
from field.metrics import Metrics
from field.neural_field import NeuralField
from formats.common import suffix_of
from utils import Grid, UserError, is_missing

PANEL, GAP, BAR, LINE = 300, 36, 120, 22  # pixels: panel side, gap between panels, colour bar, line of text
MIN_WIDTH = 800  # least width of a whole picture, for its title, in pixels
TEXT, HEADING = 14, 18  # font sizes, in points
SOLID_VOXELS = 160**3  # most voxels of a rendered solid; software renders this many in a second
SOLID_SIDE = 512  # most voxels of a solid along an axis; drivers show nothing of textures above 2048

# VTK does not return where it finds no renderer, so the trial runs in its own process.
TRIAL = """
from vtkmodules.vtkCommonCore import vtkLogger
vtkLogger.SetStderrVerbosity(vtkLogger.VERBOSITY_OFF)
import vtkmodules.vtkRenderingOpenGL2
from vtkmodules.vtkRenderingCore import vtkRenderWindow
window = vtkRenderWindow()
window.SetOffScreenRendering(True)
window.Render()
"""


def check(path: str) -> None:
    """Raise UserError unless `path` is the name of a .png picture and VTK can render on this machine."""
    if suffix_of(path) != ".png":
        raise UserError(f"{path}: expected the name of a picture, .png")
    trial = subprocess.run(python("-c", TRIAL), capture_output=True, timeout=300, check=False)
    if trial.returncode:
        raise UserError(
            f"{path}: VTK finds no renderer: expected a display, or EGL or OSMesa, which need none "
            "(Debian and Ubuntu: apt install libegl1 libgl1-mesa-dri), and VTK 9.4 or newer"
        )


# --- a decoded volume -------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Cuts:
    """The parts of a volume that a picture shows."""

    shape: tuple[int, ...]  # always of three axes
    spacing: tuple[float, ...]  # always of three axes
    slices: tuple[int, ...]  # axes that have a slice at right angles to them
    steps: tuple[int, ...]  # from a voxel of the solid to the next, in voxels of the volume; () without a solid

    @classmethod
    def of(cls, shape: tuple[int, ...], spacing: tuple[float, ...]) -> Cuts:
        shape = shape + (1,) * (3 - len(shape))
        spacing = tuple(abs(s) or 1.0 for s in spacing) + (1.0,) * (3 - len(spacing))
        slices = tuple(k for k in range(3) if all(n > 1 for axis, n in enumerate(shape) if axis != k))
        side = SOLID_SIDE
        while math.prod(-(-n // -(-n // side)) for n in shape) > SOLID_VOXELS:
            side -= 1
        steps = tuple(-(-n // side) for n in shape) if min(shape) > 1 else ()
        return cls(shape, spacing, slices or (max(k for k in range(3) if shape[k] == 1),), steps)

    def boxes(self) -> list[tuple[slice, ...]]:
        """The boxes of the slices, then the box of the solid, if there is one."""
        boxes = []
        for axis in self.slices:
            middle = self.shape[axis] // 2
            boxes.append(tuple(slice(middle, middle + 1) if k == axis else slice(None) for k in range(3)))
        return boxes + [tuple(slice(None, None, step) for step in self.steps)] * bool(self.steps)

    def values(self, array: np.ndarray, box: tuple[slice, ...], fill: np.generic | None) -> np.ndarray:
        """The values in a box, float64 (x, y, z, components), NaN in voxels that are missing or not finite."""
        shape = (len(range(n)[part]) for n, part in zip(self.shape, box, strict=True))
        values = array.reshape(*shape, -1)
        is_gone = is_missing(values, fill) | ~np.isfinite(values).all(axis=-1)
        return np.where(is_gone[..., None], np.nan, values.astype(np.float64))


def scalar_or_magnitude(values: np.ndarray) -> np.ndarray:
    """(..., components) -> (...): the value of a single component, or the magnitude of several components."""
    if values.shape[-1] == 1:
        return values[..., 0]
    largest = np.nanmax(np.abs(values), initial=0.0) or 1.0  # scaled values have squares that do not overflow
    return np.linalg.norm(values / largest, axis=-1) * largest


def preview(field: NeuralField, grid: Grid, original: np.ndarray | None, title: str, as_float: bool = False) -> bytes:
    """A picture (PNG) of a field on a grid, and of the original and the error when `original` is given.

    Only the shown values are evaluated. grid: a time series has one step here. original: without an axis of time.
    """
    space = slice(-3, None)  # the axes of space
    cuts = Cuts.of(grid.shape[space], grid.geometry(field.header.geometry).spacing[space])
    boxes = cuts.boxes()
    parts = [[], []]
    for box in boxes:
        part = box[: len(grid.shape)]
        time = (slice(None),) * (len(grid.shape) - len(part))
        parts[0].append(cuts.values(field.on_grid(grid.part(time + part), as_float), box, field.values.fill))
        if original is not None:
            parts[1].append(cuts.values(original[part], box, field.values.fill))
    fields = [[scalar_or_magnitude(part) for part in of_field] for of_field in parts if of_field]
    scale = scale_of([part for of_field in fields for part in of_field])
    is_vector = len(field.values.low) > 1
    which = ", magnitude" if is_vector else ""
    rows = [(name + which, of_field, scale) for name, of_field in zip(("decoded", "original"), fields, strict=False)]
    if original is not None:
        error = [scalar_or_magnitude(a - b) for a, b in zip(*parts, strict=True)]
        rows.append(("error (decoded - original)" + which, error, scale_of(error, 0.03, 0.9, not is_vector)))
    middles = [
        f"{name} = {round(axis[len(axis) // 2], 2):.12g}" for name, axis in zip("xyz", grid.axes[space], strict=False)
    ]
    solids = render_solids([row[1][-1] for row in rows], [row[2] for row in rows], cuts) if cuts.steps else [None] * 3
    captions = [*middles, "", ""]
    drawn = [
        draw_row(*row, solid, cuts, captions, field.header.geometry.units)
        for row, solid in zip(rows, solids, strict=False)
    ]
    return page(title, np.concatenate(drawn, axis=1 if len(boxes) == 1 else 0))


def preview_of(
    field: NeuralField, grid: Grid, original: np.ndarray | None, steps: dict[int, Metrics], name: str, as_float: bool
) -> bytes:
    """A picture (PNG) of a field on a grid, at the middle step of a time series. Its title starts with `name`.

    original: the values on the grid, or None. steps: the metrics of each step; empty without an original.
    """
    step, part = 0, original
    title = f"{name}: {field.header.geometry.name}, {' x '.join(map(str, grid.shape[-3:]))}"
    if len(grid.shape) == 4:
        middle = grid.shape[0] // 2
        grid = grid.part((slice(middle, middle + 1), *(slice(None),) * 3))
        step, part = grid.axes[0][0], None if original is None else original[middle]
        title += f", t = {step:g}"
    if steps:
        title += f", PSNR {steps[int(step)].psnr:.2f} dB" if steps[int(step)].n_voxels else ", nothing to compare"
    return preview(field, grid, part, title, as_float)


def draw_row(
    heading: str,
    parts: list[np.ndarray],
    scale: Scale,
    solid: np.ndarray | None,
    cuts: Cuts,
    captions: list[str],
    units: str,
) -> np.ndarray:
    """An RGB image: the panels of one volume side by side, and their colour bar.

    solid: the rendered image, or None. captions: the texts above the slices across x, y, z.
    """
    row = np.full((2 * LINE + PANEL + GAP, GAP + len(parts) * (PANEL + GAP) + BAR, 3), 255, np.uint8)
    top, left = 2 * LINE, GAP
    has_values = not all(np.isnan(part).all() for part in parts)
    write_text(row, heading + ("" if has_values else ": all missing"), left, LINE // 2, TEXT + 2)
    if solid is not None:
        row[top : top + PANEL, left : left + PANEL] = solid
        left += PANEL + GAP
    for axis, part in zip(cuts.slices, parts, strict=False):
        a, b = (k for k in range(3) if k != axis)
        image = scale.colours(part.reshape(part.shape[a], part.shape[b]))
        image = to_panel(image, cuts.spacing[a], cuts.spacing[b])
        height, width = image.shape[:2]
        y, x = top + (PANEL - height) // 2, left + (PANEL - width) // 2
        row[y - 1 : y + height + 1, x - 1 : x + width + 1] = 160
        row[y : y + height, x : x + width] = image
        write_text(row, "xyz"[b], x - 8, y + 6, TEXT, "right")
        write_text(row, "xyz"[a], x + width, y + height + 12, TEXT, "right")
        write_text(row, captions[axis], x + width // 2, y - 12, TEXT, "centre")
        left += PANEL + GAP
    if has_values:
        draw_bar(row[top : top + PANEL, left - GAP // 2 :], scale, units)
    return row


def to_panel(image: np.ndarray, width: float, height: float) -> np.ndarray:
    """Scale colours (a, b, 3) to an image of panel size, a to the right, b upwards. width, height: of a voxel."""
    size = np.array([image.shape[0] * width, image.shape[1] * height])
    n_x, n_y = np.maximum(np.rint(PANEL * size / size.max()).astype(int), 8)  # so that thin slices stay visible
    columns, rows = np.arange(n_x) * image.shape[0] // n_x, np.arange(n_y)[::-1] * image.shape[1] // n_y
    return image[np.ix_(columns, rows)].transpose(1, 0, 2)


def draw_bar(image: np.ndarray, scale: Scale, units: str) -> None:
    """Draw a colour bar and its numbers into the image."""
    top, height, width = 2 * LINE, image.shape[0] - 3 * LINE, 16
    write_text(image, units, 0, LINE // 2, TEXT)
    shades = scale.table[np.linspace(len(scale.table) - 1, 0, height).round().astype(int)]
    image[top - 1 : top + height + 1, : width + 2] = 160
    image[top : top + height, 1 : width + 1] = shades[:, None]
    for tick in np.linspace(0, 1, 5) if scale.high > scale.low else [0.5]:
        figure = figure_of(scale.low * (1 - tick) + scale.high * tick, scale.high - scale.low)
        sign = "\u2264 " if scale.is_below and tick == 0 else "\u2265 " if scale.is_above and tick == 1 else ""
        y = top + round((1 - tick) * (height - 1))
        image[y, width + 2 : width + 6] = 0
        write_text(image, sign + figure, width + 10, y, TEXT)


# --- a training -------------------------------------------------------------------------------------


def plot(path: str, history: Sequence[tuple[float, float, float]], final: tuple[float, float, float]) -> None:
    """Write a picture of a training: the estimated PSNR over seconds and over passes, and the exact PSNR at the end.

    history, final: (seconds, passes, PSNR in dB). Raises UserError when the file cannot be written.
    """
    known = [point for point in history if math.isfinite(point[2])]
    charts = []
    for k, name in enumerate(("seconds", "passes over the volume")):
        line = [(point[k], point[2]) for point in known]
        charts.append(chart_of(name, line, (final[k], final[2]) if math.isfinite(final[2]) else None))
    title = f"PSNR {final[2]:.2f} dB after {final[0]:.1f} s, {final[1]:.1f} passes"
    if not history:
        title = "A constant volume: nothing to train" if final[2] == math.inf else f"{title}, too short for a curve"
    charts = np.concatenate(rendered_by(charts, 2 * PANEL, 3 * PANEL // 2), axis=1)
    write_files({path: page(title, charts)})


def chart_of(name: str, line: list[tuple[float, float]], final: tuple[float, float] | None) -> object:
    """The vtkRenderer of a chart of the PSNR. name: the title of the horizontal axis."""
    import vtkmodules.vtkRenderingContextOpenGL2  # noqa: F401
    from vtkmodules.util.numpy_support import numpy_to_vtk
    from vtkmodules.vtkChartsCore import vtkAxis, vtkChart, vtkChartLegend, vtkChartXY, vtkPlotPoints
    from vtkmodules.vtkCommonDataModel import vtkTable
    from vtkmodules.vtkRenderingContext2D import vtkContextActor
    from vtkmodules.vtkRenderingCore import vtkRenderer

    chart, actor, scene = vtkChartXY(), vtkContextActor(), vtkRenderer()
    plots = {
        "estimate": (vtkChart.LINE if len(line) > 1 else vtkChart.POINTS, line, (33, 102, 172, 255), 2.0),
        "exact": (vtkChart.POINTS, [final] if final else [], (178, 24, 43, 255), 7.0),
    }
    for label, (kind, points, colour, width) in plots.items():
        if not points:
            continue
        table = vtkTable()
        for title, column in zip(("x", label), np.transpose(points), strict=True):
            values = numpy_to_vtk(np.ascontiguousarray(column), deep=True)
            values.SetName(title)
            table.AddColumn(values)
        drawn = chart.AddPlot(kind)
        drawn.SetInputData(table, 0, 1)
        drawn.SetColor(*colour)
        drawn.SetWidth(width)
        if kind == vtkChart.POINTS:
            drawn.SetMarkerStyle(vtkPlotPoints.CIRCLE)
    bottom, left = chart.GetAxis(vtkAxis.BOTTOM), chart.GetAxis(vtkAxis.LEFT)
    for axis, title in ((bottom, name), (left, "PSNR in dB")):
        axis.SetTitle(title)
        axis.GetTitleProperties().BoldOff()
        for style in (axis.GetTitleProperties(), axis.GetLabelProperties()):
            style.SetFontSize(TEXT)
        axis.SetBehavior(vtkAxis.FIXED)
    ends, psnrs = np.transpose([*line, *[final] * bool(final)] or [(0.0, 0.0)])
    margin = max(0.05 * np.ptp(psnrs), 0.5)  # so that no point is cut off
    bottom.SetRange(0.0, 1.05 * ends.max() or 1.0)
    left.SetRange(psnrs.min() - margin, psnrs.max() + margin)
    chart.SetShowLegend(True)
    chart.GetLegend().SetHorizontalAlignment(vtkChartLegend.RIGHT)
    chart.GetLegend().SetVerticalAlignment(vtkChartLegend.BOTTOM)
    actor.GetScene().AddItem(chart)
    scene.SetBackground(1, 1, 1)
    scene.AddActor(actor)
    return scene


# --- VTK --------------------------------------------------------------------------------------------


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


def render_solids(solids: list[np.ndarray], scales: list[Scale], cuts: Cuts) -> list[np.ndarray]:
    """An RGB image of panel size for each solid of values (x, y, z).

    x points to the right, y upwards, z to the front. One window for all solids takes less time than one window each.
    """
    import vtkmodules.vtkRenderingVolumeOpenGL2  # noqa: F401

    size = np.array(cuts.shape) * cuts.spacing
    size = size / size.max()
    ends = np.diag(size + 0.08)  # the axis letters stand here, beyond the three edges of the first voxel
    scenes = [scene_of(values, scale, size) for values, scale in zip(solids, scales, strict=True)]
    for scene in scenes:
        fit_camera(scene, [*itertools.product(*((0.0, s) for s in size)), *ends])
    images = rendered_by(scenes, PANEL, PANEL)
    for name, (x, y) in zip("xyz", projected(scenes[0], ends), strict=True):
        for image in images:
            write_text(image, name, round(PANEL * (1 + x) / 2), round(PANEL * (1 - y) / 2), TEXT, "centre")
    return images


def fit_camera(scene: object, points: Sequence[Sequence[float]]) -> None:
    """Set a scene's camera so that it sees all points, with room for a letter around them."""
    camera = scene.GetActiveCamera()
    camera.SetPosition(0.5, 0.45, 1.0)
    camera.SetFocalPoint(0, 0, 0)
    camera.SetViewUp(0, 1, 0)
    scene.ResetCamera()
    camera.Zoom(0.93 / np.abs(projected(scene, points)).max())
    scene.ResetCameraClippingRange()


def projected(scene: object, points: Sequence[Sequence[float]]) -> np.ndarray:
    """Where a scene's camera sees points (n, 3): (n, 2), from -1 to 1, left to right and bottom to top."""
    matrix = scene.GetActiveCamera().GetCompositeProjectionTransformMatrix(1.0, -1.0, 1.0)
    seen = np.array([matrix.MultiplyPoint((*point, 1.0)) for point in points])
    return seen[:, :2] / seen[:, 3:]


def scene_of(values: np.ndarray, scale: Scale, size: np.ndarray) -> object:
    """The vtkRenderer of a solid and its frame. size: the lengths of the solid's sides."""
    from vtkmodules.util.numpy_support import numpy_to_vtk
    from vtkmodules.vtkCommonDataModel import vtkImageData
    from vtkmodules.vtkFiltersModeling import vtkOutlineFilter
    from vtkmodules.vtkRenderingCore import vtkActor, vtkPolyDataMapper, vtkRenderer

    solid = vtkImageData()
    solid.SetDimensions(*values.shape)
    solid.SetSpacing(*(size / np.maximum(np.array(values.shape) - 1, 1)))
    scalars = np.nan_to_num(scale.unit(values), nan=scale.background).astype(np.float32)
    solid.GetPointData().SetScalars(numpy_to_vtk(scalars.ravel("F"), deep=True))
    outline, edges, frame = vtkOutlineFilter(), vtkPolyDataMapper(), vtkActor()
    outline.SetInputData(solid)
    edges.SetInputConnection(outline.GetOutputPort())
    frame.SetMapper(edges)
    frame.GetProperty().SetColor(0.6, 0.6, 0.6)
    frame.GetProperty().SetLighting(False)
    scene = vtkRenderer()
    scene.SetBackground(1, 1, 1)
    scene.AddActor(frame)
    scene.AddVolume(volume_actor(solid, scale))
    return scene


def volume_actor(solid: object, scale: Scale) -> object:
    """The vtkVolume of a vtkImageData whose values are from 0 to 1 and whose longest side is 1."""
    from vtkmodules.vtkCommonDataModel import vtkPiecewiseFunction
    from vtkmodules.vtkRenderingCore import vtkColorTransferFunction, vtkVolume, vtkVolumeProperty
    from vtkmodules.vtkRenderingVolumeOpenGL2 import vtkOpenGLGPUVolumeRayCastMapper

    colours, opacity, look = vtkColorTransferFunction(), vtkPiecewiseFunction(), vtkVolumeProperty()
    for at, rgb in zip(np.linspace(0, 1, len(scale.table)), scale.table / 255.0, strict=True):
        colours.AddRGBPoint(at, *rgb)
    for at, opaque in scale.opacities():
        opacity.AddPoint(at, opaque)
    look.SetColor(colours)
    look.SetScalarOpacity(opacity)
    look.SetScalarOpacityUnitDistance(solid.GetLength() / 40)
    look.SetInterpolationTypeToLinear()
    look.ShadeOn()
    look.SetAmbient(0.4)
    look.SetDiffuse(0.7)
    mapper, volume = vtkOpenGLGPUVolumeRayCastMapper(), vtkVolume()
    mapper.SetInputData(solid)
    mapper.AutoAdjustSampleDistancesOff()
    mapper.SetSampleDistance(1 / 150)
    volume.SetMapper(mapper)
    volume.SetProperty(look)
    return volume


def rendered_by(scenes: list[object], width: int, height: int) -> list[np.ndarray]:
    """What each vtkRenderer shows: one RGB image of the given size for each."""
    from vtkmodules.util.numpy_support import vtk_to_numpy
    from vtkmodules.vtkCommonCore import vtkLogger
    from vtkmodules.vtkRenderingCore import vtkRenderWindow, vtkWindowToImageFilter

    verbosity = vtkLogger.GetCurrentVerbosityCutoff()
    vtkLogger.SetStderrVerbosity(vtkLogger.VERBOSITY_ERROR)  # VTK warns when there is no display
    window = vtkRenderWindow()
    window.SetOffScreenRendering(True)
    window.SetSize(width * len(scenes), height)
    for k, scene in enumerate(scenes):
        scene.SetViewport(k / len(scenes), 0, (k + 1) / len(scenes), 1)
        window.AddRenderer(scene)
    grab = vtkWindowToImageFilter()
    grab.SetInput(window)
    grab.ReadFrontBufferOff()
    grab.Update()
    vtkLogger.SetStderrVerbosity(verbosity)
    pixels = vtk_to_numpy(grab.GetOutput().GetPointData().GetScalars()).reshape(height, -1, 3)[::-1]
    return [pixels[:, k * width : (k + 1) * width].copy() for k in range(len(scenes))]


def page(title: str, content: np.ndarray) -> bytes:
    """A PNG file of an RGB image below its title."""
    from vtkmodules.util.numpy_support import numpy_to_vtk, vtk_to_numpy
    from vtkmodules.vtkCommonDataModel import vtkImageData
    from vtkmodules.vtkIOImage import vtkPNGWriter

    height, width, _ = content.shape
    image = np.full((2 * LINE + height, max(width, MIN_WIDTH), 3), 255, np.uint8)
    image[2 * LINE :, :width] = content
    write_text(image, title, GAP, LINE, HEADING)
    picture, writer = vtkImageData(), vtkPNGWriter()
    picture.SetDimensions(image.shape[1], image.shape[0], 1)
    picture.GetPointData().SetScalars(numpy_to_vtk(np.ascontiguousarray(image[::-1]).reshape(-1, 3), deep=True))
    writer.SetInputData(picture)
    writer.SetCompressionLevel(6)
    writer.WriteToMemoryOn()
    writer.Write()
    return vtk_to_numpy(writer.GetResult()).tobytes()
