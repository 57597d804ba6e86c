"""A picture of a training: its PSNR over the seconds. VTK draws the chart."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from cli.files import write_files
from field.drawing import MIN_WIDTH, TEXT, page
from field.rendering import rendered_by

HEIGHT = MIN_WIDTH * 9 // 16  # of the chart, pixels


def plot_training(path: str, history: Sequence[tuple[float, float]], final: tuple[float, float], passes: float) -> None:
    """Write a picture of a training: the estimated PSNR over the seconds, and the exact PSNR at the end.

    history, final: (seconds, PSNR in dB). passes: of the whole training. Raises UserError when the file cannot be
    written.
    """
    line = [point for point in history if math.isfinite(point[1])]
    seconds, psnr = final
    title = f"PSNR {psnr:.2f} dB after {seconds:.1f} s, {passes:.1f} passes over the volume"
    if not history:
        title = "A constant volume: nothing to train" if psnr == math.inf else f"{title}, too short for a curve"
    (chart,) = rendered_by([chart_of(line, final if math.isfinite(psnr) else None)], MIN_WIDTH, HEIGHT)
    write_files({path: page(title, chart)})


def chart_of(line: list[tuple[float, float]], final: tuple[float, float] | None) -> object:
    """The vtkRenderer of a chart of the PSNR. line, final: as in `plot_training`, of finite numbers."""
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
    for axis, title in ((bottom, "training time in seconds"), (left, "PSNR in dB")):
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
