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
    from vtkmodules.vtkChartsCore import vtkChartLegend, vtkChartXY
    from vtkmodules.vtkRenderingContext2D import vtkContextActor
    from vtkmodules.vtkRenderingCore import vtkRenderer

    chart, actor, scene = vtkChartXY(), vtkContextActor(), vtkRenderer()
    _add_plot(chart, "estimate", line, len(line) > 1, (33, 102, 172, 255), 2.0)
    _add_plot(chart, "exact", [final] if final else [], False, (178, 24, 43, 255), 7.0)
    _set_axes(chart, [*line, *[final] * bool(final)] or [(0.0, 0.0)])
    chart.SetShowLegend(True)
    chart.GetLegend().SetHorizontalAlignment(vtkChartLegend.RIGHT)
    chart.GetLegend().SetVerticalAlignment(vtkChartLegend.BOTTOM)
    actor.GetScene().AddItem(chart)
    scene.SetBackground(1, 1, 1)
    scene.AddActor(actor)
    return scene


def _add_plot(
    chart: object, label: str, points: list, is_line: bool, colour: tuple[int, int, int, int], width: float
) -> None:
    """Add a line through these points, or the points alone. width: of the line or of a point, pixels."""
    from vtkmodules.util.numpy_support import numpy_to_vtk
    from vtkmodules.vtkChartsCore import vtkChart, vtkPlotPoints
    from vtkmodules.vtkCommonDataModel import vtkTable

    if not points:
        return
    table = vtkTable()
    for title, column in zip(("x", label), np.transpose(points), strict=True):
        values = numpy_to_vtk(np.ascontiguousarray(column), deep=True)
        values.SetName(title)
        table.AddColumn(values)
    drawn = chart.AddPlot(vtkChart.LINE if is_line else vtkChart.POINTS)
    drawn.SetInputData(table, 0, 1)
    drawn.SetColor(*colour)
    drawn.SetWidth(width)
    if not is_line:
        drawn.SetMarkerStyle(vtkPlotPoints.CIRCLE)


def _set_axes(chart: object, points: list[tuple[float, float]]) -> None:
    """Give both axes their titles, and a range in which all points lie."""
    from vtkmodules.vtkChartsCore import vtkAxis

    seconds, psnrs = np.transpose(points)
    margin = max(0.05 * np.ptp(psnrs), 0.5)  # so that no point is cut off
    bottom, left = chart.GetAxis(vtkAxis.BOTTOM), chart.GetAxis(vtkAxis.LEFT)
    bottom.SetRange(0.0, 1.05 * seconds.max() or 1.0)
    left.SetRange(psnrs.min() - margin, psnrs.max() + margin)
    for axis, title in ((bottom, "training time in seconds"), (left, "PSNR in dB")):
        axis.SetBehavior(vtkAxis.FIXED)
        axis.SetTitle(title)
        axis.GetTitleProperties().BoldOff()
        for style in (axis.GetTitleProperties(), axis.GetLabelProperties()):
            style.SetFontSize(TEXT)
