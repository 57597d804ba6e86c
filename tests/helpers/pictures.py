"""Pictures as arrays."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from vtkmodules.util.numpy_support import vtk_to_numpy
from vtkmodules.vtkIOImage import vtkPNGReader


def read_png(path: Path) -> np.ndarray:
    """RGB [row from the top, column], signed so that differences do not wrap around. VTK reads the file."""
    reader = vtkPNGReader()
    assert reader.CanReadFile(str(path))
    reader.SetFileName(str(path))
    reader.Update()
    width, height, _ = reader.GetOutput().GetDimensions()
    return vtk_to_numpy(reader.GetOutput().GetPointData().GetScalars()).reshape(height, width, 3)[::-1].astype(int)


def is_red(image: np.ndarray) -> np.ndarray:
    return image[..., 0] - image[..., 2] > 60


def is_blue(image: np.ndarray) -> np.ndarray:
    return image[..., 2] - image[..., 0] > 60
