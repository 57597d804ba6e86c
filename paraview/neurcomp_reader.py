"""ParaView plugin: opens a blob as image data and evaluates only the part that ParaView asks for.

Load it with Tools > Manage Plugins > Load New, or start ParaView with this folder in PV_PLUGIN_PATH. The plugin finds
the suite's modules in the folder above its own. It needs only NumPy in ParaView's Python.
"""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Callable

if sys.version_info < (3, 10):  # noqa: UP036 - ParaView brings its own Python
    raise ImportError(f"neurcomp_reader: expected a ParaView with Python 3.10 or newer, found {sys.version}")

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # before NumPy is loaded, because the field uses its own threads

import numpy as np
from paraview.util.vtkAlgorithm import VTKPythonAlgorithmBase, smdomain, smhint, smproperty, smproxy
from vtkmodules.vtkCommonCore import vtkDataArray, vtkOutputWindow
from vtkmodules.vtkCommonDataModel import vtkDataObject, vtkImageData
from vtkmodules.vtkCommonExecutionModel import vtkAlgorithm
from vtkmodules.vtkCommonExecutionModel import vtkStreamingDemandDrivenPipeline as Pipeline


def import_field() -> tuple[type, type, Callable[..., vtkDataArray]]:
    """NeuralField, BlobError and vtk_array. Their modules leave sys.modules: other plugins may use the same names."""

    def is_ours(name: str) -> bool:
        return name.partition(".")[0] in ("cli", "field", "formats", "utils")

    root = os.path.dirname(os.path.dirname(os.path.realpath(__file__)))
    foreign = {name: sys.modules.pop(name) for name in list(filter(is_ours, sys.modules))}
    sys.path.insert(0, root)
    try:
        from field.blob import BlobError
        from field.conversion import vtk_array
        from field.neural_field import NeuralField
    finally:
        sys.path.remove(root)
        for name in list(filter(is_ours, sys.modules)):
            del sys.modules[name]
        sys.modules.update(foreign)
    return NeuralField, BlobError, vtk_array


NeuralField, BlobError, vtk_array = import_field()
MAX_POINTS = 1 << 24  # most points along an axis: a tiny blob may claim 2^32, but ParaView takes at most 2^31
LEVELS = "".join(  # the property is an integer: the base-2 logarithm of the factor
    f'<Entry text="{factor}" value="{level}"/>' for level, factor in enumerate(("1/4", "1/2", "1", "2", "4"), -2)
)


class FieldError(Exception):
    """The requested output cannot be shown. The message says why."""


class Aborted(Exception):
    """The user has stopped the evaluation."""


@smproxy.reader(
    name="NeurcompReader",
    label="Neurcomp Reader",
    support_reload=False,
    file_description="Neural fields",
    extensions="nvc",
    filename_patterns="compressed_out",
)
@smproperty.xml('<DoubleVectorProperty name="TimestepValues" information_only="1" si_class="vtkSITimeStepsProperty"/>')
class NeurcompReader(VTKPythonAlgorithmBase):
    """The field of a blob as vtkImageData: one point array and, on request, its gradient."""

    def __init__(self):
        super().__init__(nInputPorts=0, nOutputPorts=1, outputType="vtkImageData")
        self._path, self._field, self._with_gradient, self._level, self._large = "", None, 0, 0, 0

    # --- properties ---

    @smproperty.stringvector(name="FileName", default_values="")
    @smdomain.filelist()
    @smhint.filechooser(extensions="nvc", file_description="Neural fields")
    def SetFileName(self, path):
        self._path, self._field = path or "", None
        self.Modified()

    @smproperty.intvector(name="Gradient", default_values=0)
    @smdomain.xml(
        '<BooleanDomain name="bool"/>'
        "<Documentation>Add the exact gradient, in units of value per unit of length.</Documentation>"
    )
    def SetGradient(self, with_gradient):
        self._with_gradient = with_gradient
        self.Modified()

    @smproperty.intvector(name="Resolution", default_values=0)
    @smdomain.xml(
        f'<EnumerationDomain name="enum">{LEVELS}</EnumerationDomain>'
        "<Documentation>Points per voxel along every axis, within the same extent.</Documentation>"
    )
    def SetResolution(self, level):
        self._level = level
        self.Modified()

    @smproperty.intvector(name="Large", default_values=0, panel_visibility="advanced")
    @smdomain.xml(
        '<BooleanDomain name="bool"/>'
        "<Documentation>Open a blob that can take gigabytes of memory: of more than 2^24 weights, or with a mask of "
        "more than 2^30 voxels.</Documentation>"
    )
    def SetLarge(self, large):
        self._large, self._field = large, None
        self.Modified()

    @smproperty.doublevector(
        name="DataRange",
        information_only=1,
        panel_visibility="default",
        number_of_elements=2,
        default_values=(0.0, 0.0),
    )
    def GetDataRange(self):
        values = self._field and self._field.values
        return (float(values.low.min()), float(values.high.max())) if values else (0.0, 0.0)

    # --- pipeline ---

    def ProcessRequest(self, request, in_info, out_info):
        """Answer a request of VTK's pipeline. Bad input gives no data and one line in ParaView's message window."""
        try:
            return super().ProcessRequest(request, in_info, out_info)
        except Aborted:
            return 1
        except OSError as error:
            message = f"cannot be read: {error.strerror}"
        except (BlobError, FieldError, MemoryError) as error:
            message = str(error)
        vtkOutputWindow.GetInstance().DisplayErrorText(f"{self._path or 'FileName'}: {message}\n")
        out_info.GetInformationObject(0).Set(Pipeline.WHOLE_EXTENT(), (0, -1) * 3, 6)
        return 1  # with 0, VTK would print its own state twice

    def RequestInformation(self, request, in_info, out_info):
        """Announce extent, geometry and times. Nothing is evaluated."""
        info = out_info.GetInformationObject(0)
        for key in (Pipeline.TIME_STEPS(), Pipeline.TIME_RANGE()):  # left by a previous file
            info.Remove(key)
        if self._field is None:
            self._field = NeuralField.open(self._path, n_threads=os.cpu_count() or 1, large=bool(self._large))
        header, grid = self._field.header, self._grid(0.0)
        geometry = grid.geometry(header.geometry)
        info.Set(Pipeline.WHOLE_EXTENT(), [end for n in in_space(grid.shape, 1) for end in (0, n - 1)], 6)
        info.Set(vtkDataObject.SPACING(), in_space(geometry.spacing, 1.0), 3)
        info.Set(vtkDataObject.ORIGIN(), in_space(geometry.origin, 0.0), 3)
        info.Set(vtkDataObject.DIRECTION(), geometry.direction, 9)
        info.Set(vtkAlgorithm.CAN_PRODUCE_SUB_EXTENT(), 1)
        if len(header.shape) == 4:
            times = geometry.origin[0] + header.geometry.spacing[0] * np.arange(header.shape[0])
            info.Set(Pipeline.TIME_STEPS(), times.tolist(), len(times))
            info.Set(Pipeline.TIME_RANGE(), (times[0], times[-1]), 2)
        return 1

    def RequestData(self, request, in_info, out_info):
        """Evaluate only the extent and the time that are asked for."""
        info = out_info.GetInformationObject(0)
        extent, image = info.Get(Pipeline.UPDATE_EXTENT()), vtkImageData.GetData(info)
        box = [slice(first, last + 1) for first, last in zip(extent[::2], extent[1::2], strict=True)]
        if any(part.start >= part.stop for part in box):
            return 1
        header, step = self._field.header, 0.0
        if len(header.shape) == 4:
            start, length = header.geometry.origin[0], header.geometry.spacing[0]
            time = info.Get(Pipeline.UPDATE_TIME_STEP()) if info.Has(Pipeline.UPDATE_TIME_STEP()) else start
            step = min(max((time - start) / length, 0.0), header.shape[0] - 1.0)
            image.GetInformation().Set(vtkDataObject.DATA_TIME_STEP(), time)
            box.insert(0, slice(0, 1))
        grid = self._grid(step)
        geometry = grid.geometry(header.geometry)
        arrays = self._evaluate(grid.part(tuple(box[: len(grid.axes)])))
        image.GetPointData().Initialize()  # VTK keeps the arrays of the previous file
        image.SetExtent(extent)
        image.SetSpacing(in_space(geometry.spacing, 1.0))
        image.SetOrigin(in_space(geometry.origin, 0.0))
        image.SetDirectionMatrix(geometry.direction)
        for name, array in arrays.items():
            image.GetPointData().AddArray(vtk_array(name, array, image.GetDimensions()))
        image.GetPointData().SetActiveScalars(geometry.name)
        return 1

    # --- evaluation ---

    def _grid(self, step: float) -> object:
        """The points at the chosen resolution, within the field's extent. step: the time step of a time series."""
        shape, factor = self._field.header.shape, 2.0**self._level
        counts = tuple(n if n == 1 else max(round((n - 1) * factor), 1) + 1 for n in shape[-3:])
        if max(*shape, *counts) > MAX_POINTS:
            raise FieldError(f"expected at most {MAX_POINTS} points along an axis, found {max(*shape, *counts)}")
        return self._field.grid(resolution=counts, time=step if len(shape) == 4 else None)

    def _evaluate(self, grid: object) -> dict[str, np.ndarray]:
        """The arrays by name: the values on a grid and, if it is switched on, the gradient. Raises FieldError."""
        field, name = self._field, self._field.header.geometry.name
        n_bytes = 8 * math.prod(grid.shape) * len(field.values.low) * (1 + 3 * self._with_gradient)
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else math.inf
        if n_bytes > memory:
            found = f"{n_bytes / 2**30:.0f} GiB, this machine has {memory / 2**30:.0f} GiB"
            raise FieldError(f"the points asked for, {' x '.join(map(str, grid.shape))}, take {found}")

        def advance(fraction: float) -> None:
            self.UpdateProgress(fraction)
            if self.CheckAbort():
                raise Aborted

        share = 0.3 if self._with_gradient else 1.0  # share of the run time for the values
        arrays = {name: field.on_grid(grid, on_progress=lambda fraction: advance(share * fraction))}
        if self._with_gradient:
            gradient = field.gradient_on_grid(grid, lambda fraction: advance(share + (1 - share) * fraction))
            arrays[f"{name}_gradient"] = gradient[..., -3:]  # without the derivative by time
        return arrays


def in_space(figures: tuple, missing: float) -> tuple:
    """The numbers of a field's axes of space, followed by `missing` up to VTK's three axes."""
    return (*figures[-3:], *(missing,) * (3 - len(figures)))
