"""Renders solids, and all that VTK draws, to RGB images. This module knows VTK's OpenGL.

VTK's OpenGL modules are imported before any VTK object is made: an object that is made earlier cannot be rendered.
"""

from __future__ import annotations

import itertools
import subprocess
from collections.abc import Sequence

import numpy as np

from cli.console import python
from field.colours import ColourScale
from field.drawing import PANEL, TEXT, write_text
from formats.common import suffix_of
from utils import UserError

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


def render_solids(solids: list[np.ndarray], scales: list[ColourScale], size: np.ndarray) -> list[np.ndarray]:
    """An RGB image of panel size for each solid of values (x, y, z). size: the lengths of the solids' sides.

    x points to the right, y upwards, z to the front. One window for all solids takes less time than one window each.
    """
    import vtkmodules.vtkRenderingVolumeOpenGL2  # noqa: F401

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


def scene_of(values: np.ndarray, scale: ColourScale, size: np.ndarray) -> object:
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


def volume_actor(solid: object, scale: ColourScale) -> object:
    """The vtkVolume of a vtkImageData whose values are from 0 to 1 and whose longest side is 1."""
    from vtkmodules.vtkCommonDataModel import vtkPiecewiseFunction
    from vtkmodules.vtkRenderingCore import vtkColorTransferFunction, vtkVolume, vtkVolumeProperty
    from vtkmodules.vtkRenderingVolumeOpenGL2 import vtkOpenGLGPUVolumeRayCastMapper

    colours, opacity, look = vtkColorTransferFunction(), vtkPiecewiseFunction(), vtkVolumeProperty()
    for at, rgb in zip(np.linspace(0, 1, len(scale.table)), scale.table / 255.0, strict=True):
        colours.AddRGBPoint(at, *rgb)
    places = np.linspace(0.0, 1.0, 257)
    for at, visible in zip(places, scale.visible(places), strict=True):
        opacity.AddPoint(at, 0.9 * visible)
    look.SetColor(colours)
    look.SetScalarOpacity(opacity)
    look.SetScalarOpacityUnitDistance(solid.GetLength() / 40)
    if scale.is_discrete:
        look.SetInterpolationTypeToNearest()  # between two labels lies no third one
    else:
        look.SetInterpolationTypeToLinear()
    look.ShadeOn()
    look.SetAmbient(0.75)  # with the diffuse light 1: what faces the camera has the colours of the bar
    look.SetDiffuse(0.25)
    look.SetSpecular(0.0)
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
