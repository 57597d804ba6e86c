"""The quality of the network of a fit: of what it decodes to, each process of a run measuring its part."""

from __future__ import annotations

import dataclasses
import math
from typing import NamedTuple

from cli import console
from field.metrics import Metrics, combine_metrics, compare, measured_boxes
from field.neural_field import NeuralField
from training import processes
from training.fitting import Fit
from utils import ValueRange, Volume, VolumeHeader


class Quality(NamedTuple):
    """What is known of a network. A PSNR is NaN where it is not known.

    metrics: over the whole range of the volume. clipped: over the range that it is clipped to. psnr_unrounded: of
    integers before they are rounded, None for floats.
    """

    metrics: Metrics | None = None
    clipped: Metrics | None = None
    psnr_unrounded: float | None = None

    def figures(self, is_clipped: bool) -> dict[str, float]:
        """What thenet.json says of it: psnr; where the volume is clipped psnr_clipped; of integers two more."""
        if self.metrics is None:
            return {"psnr": math.nan}
        found = {"psnr": self.metrics.psnr} | ({"psnr_clipped": self.clipped.psnr} if is_clipped else {})
        if self.psnr_unrounded is not None:
            found |= {"psnr_unrounded": self.psnr_unrounded, "is_exact": self.clipped.psnr == math.inf}
        return found


@dataclasses.dataclass
class Judge:
    """Compares the network of a fit with the volume. header: of the volume, its range the one that it is clipped to."""

    fit: Fit
    volume: Volume
    header: VolumeHeader
    device: object
    n_threads: int

    def __post_init__(self) -> None:
        self.boxes = processes.split_items(measured_boxes(self.volume.values))

    def decoded(self) -> NeuralField:
        """What the network is now."""
        return NeuralField.of(self.fit.averaged_net, self.header, self.device, self.n_threads)

    def metrics(self, values: ValueRange, progress: console.Progress | None = None, as_float: bool = False) -> Metrics:
        """How far the network is from the volume, over a range of values."""
        boxes = progress.each(self.boxes) if progress else self.boxes
        found = compare(self.volume.array, self.decoded().lazy(as_float=as_float), values, boxes)
        return combine_metrics(processes.gather(found))

    def quality(self, whole: ValueRange) -> Quality:
        """All that is to be known. whole: the range of the volume before it was clipped."""
        values = self.header.values
        with console.Progress("measuring") as progress:
            metrics = clipped = self.metrics(whole, progress)
            if whole.pairs() != values.pairs():
                clipped = self.metrics(values, progress)
            unrounded = self.metrics(values, progress, True).psnr if values.dtype.kind in "iu" else None
        return Quality(metrics, clipped, unrounded)
