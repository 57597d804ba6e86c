"""A picture of a training: its PSNR over seconds and over passes. VTK draws the charts."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from cli.files import write_files
from field.drawing import PANEL, TEXT, page
from field.rendering import rendered_by


def plot_training(path: str, history: Sequence[tuple[float, float, float]], final: tuple[float, float, float]) -> None:
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
