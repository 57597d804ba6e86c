"""The quality of a fitted network, measured on its decoded values. Each process of a run measures a part."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import NamedTuple

from cli.progress import Progress
from field.metrics import Metrics, combine_metrics, compare, measured_boxes
from field.neural_field import NeuralField
from training import processes
from utils import ValueRange, Volume, VolumeHeader


class Quality(NamedTuple):
    """The quality of a network.

    metrics: over the range before --clip. clipped: over the range after --clip. psnr_unrounded: for integers,
    the PSNR in dB before rounding, if float64 can tell it, else after rounding; None for floats.
    """

    metrics: Metrics
    clipped: Metrics
    psnr_unrounded: float | None

    def figures(self, is_clipped: bool) -> dict[str, float]:
        """The entries of thenet.json: psnr; psnr_clipped if clipped; psnr_unrounded and is_exact for integers."""
        found = {"psnr": self.metrics.psnr} | ({"psnr_clipped": self.clipped.psnr} if is_clipped else {})
        if self.psnr_unrounded is not None:
            found |= {"psnr_unrounded": self.psnr_unrounded, "is_exact": self.clipped.psnr == math.inf}
        return found


@dataclasses.dataclass
class Judge:
    """Compares what a fit has reached with the volume.

    header: the volume's header, with the range after --clip. decoded: gives the compressed field of the fit now.
    """

    volume: Volume
    header: VolumeHeader
    decoded: Callable[[], NeuralField]

    def metrics(self, value_range: ValueRange, progress: Progress | None = None, as_float: bool = False) -> Metrics:
        """The errors of the decoded values, over a range. as_float: before rounding to integers."""
        boxes = processes.split_items(measured_boxes(self.volume.values))
        boxes = progress.each(boxes) if progress else boxes
        found = compare(self.volume.array, self.decoded().lazy(as_float=as_float), value_range, boxes)
        return combine_metrics(processes.gather(found))

    def quality(self, unclipped: ValueRange) -> Quality:
        """The complete quality of the network. unclipped: the range of the volume before --clip."""
        own = self.header.value_range
        is_clipped, is_rounded = unclipped.pairs() != own.pairs(), own.is_integer
        with Progress("measuring", 1 + is_clipped + is_rounded) as progress:
            metrics = clipped = self.metrics(unclipped, progress)
            if is_clipped:
                clipped = self.metrics(own, progress)
            unrounded = self.metrics(own, progress, own.has_fractions).psnr if is_rounded else None
        return Quality(metrics, clipped, unrounded)
