"""How far a decoded volume is from the original."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable

import numpy as np

from formats.arrays import LazyArray, part_of
from utils import Box, Grid, ValueRange, Volume, boxes, few_values, is_missing, read_in_boxes, value_range, wide_float

MEASURED_WHOLE = 1 << 28  # most voxels of a volume that is compared at every voxel
MEASURED_VOXELS = 1 << 24  # random voxels compared in a larger volume; the PSNR is then good to about 0.01 dB
PIECE_VOXELS = 1 << 12  # voxels of a piece; random voxels are chosen in contiguous pieces


@dataclasses.dataclass(frozen=True)
class Metrics:
    """How far decoded values are from the original: PSNR in dB, RMSE and largest error in the original's units.

    psnrs: the PSNR of each component over its own range. psnr: the PSNR of all components, from the mean of the squared
    errors, each relative to its component's range. n_voxels: the number of voxels that were compared. n_differing: how
    many of these differ. labels: the different values of the original in rising order, if they are few integers.
    """

    psnr: float
    rmse: float
    max_error: float
    psnrs: tuple[float, ...]
    n_voxels: int
    n_differing: int = 0
    labels: np.ndarray | None = None

    def report(self, n_voxels: int | None = None) -> dict[str, str]:
        """The result lines: psnr; with several components also psnr_0, psnr_1, ...; of labels, how many are differing.

        n_voxels: the number of voxels of the volume. The key is psnr_estimate where fewer voxels were compared.
        """
        is_whole = n_voxels in (None, self.n_voxels)
        key = "psnr" if is_whole else "psnr_estimate"
        more = {f"{key}_{c}": f"{psnr:.3f}" for c, psnr in enumerate(self.psnrs)} if len(self.psnrs) > 1 else {}
        differing = {"differing": str(self.n_differing)} if self.labels is not None and is_whole else {}
        return {key: f"{self.psnr:.3f}", **more, **differing}


def compare(
    original: np.ndarray,
    decoded: np.ndarray | LazyArray,
    values: ValueRange | None = None,
    chosen: Iterable[Box] | None = None,
) -> Metrics:
    """How far `decoded` is from `original`, in float64; differences of 64-bit integers are exact.

    psnr = 20 log10((max - min) / rmse), infinite when nothing differs. values: the range of the whole volume, needed
    where `original` is a part of it or has several components (its last axis); by default the range of `original`.
    Where the range was clipped, a value of `original` outside `values` counts as the nearest end. chosen: the boxes to
    compare, by default all. Voxels missing in one of the arrays are left out; NaN in `decoded` means missing, too. All
    results are NaN when no voxel is left.
    """
    wide = wide_float(np.result_type(original.dtype, decoded.dtype))
    values = values or value_range(original[..., None])
    n_components, extent = len(values.low), values.extent
    scale = np.where(extent > 0, extent, 1.0)  # squares of the scaled differences neither overflow nor vanish
    squares, largest, count, n_differing = np.zeros(n_components), np.zeros(n_components), 0, 0
    labels = np.empty(0, original.dtype) if {original.dtype.kind, decoded.dtype.kind} <= {"i", "u"} else None
    for box, part in read_in_boxes(original if n_components > 1 else original[..., None], chosen):
        a, b = part.reshape(-1, n_components), decoded[box].reshape(-1, n_components)
        if values.fill is not None:
            is_present = ~(is_missing(a, values.fill) | is_missing(b, values.fill) | is_missing(b, np.float64(np.nan)))
            a, b = a[is_present], b[is_present]
        if labels is not None:
            labels = few_values(labels, a)
        a = np.clip(a, values.low, values.high)
        difference = (b.astype(wide) - a.astype(wide)).astype(np.float64) / scale
        squares += np.einsum("ij,ij->j", difference, difference)
        largest = np.maximum(largest, np.abs(difference).max(axis=0, initial=0.0))
        count += len(difference)
        n_differing += np.count_nonzero(difference.any(axis=1))
    if not count:
        return Metrics(math.nan, math.nan, math.nan, (math.nan,) * n_components, 0)
    errors = squares / count
    rmse = math.sqrt(np.mean(errors * (scale / scale.max()) ** 2)) * scale.max()
    errors[(extent == 0) & (errors > 0)] = math.inf  # a constant component with any error
    psnrs = tuple(map(_psnr, errors))
    return Metrics(_psnr(errors.mean()), rmse, float((largest * scale).max()), psnrs, count, n_differing, labels)


def measured_boxes(original: np.ndarray) -> list[Box]:
    """The boxes of a volume (grid..., components) to compare: all, or random ones above MEASURED_WHOLE voxels."""
    n_voxels = math.prod(original.shape[:-1])
    if n_voxels <= MEASURED_WHOLE:
        return boxes(original)
    pieces = boxes(original, PIECE_VOXELS * original.shape[-1])
    count = max(len(pieces) * MEASURED_VOXELS // n_voxels, 1)
    chosen = np.random.default_rng(0).choice(len(pieces), count, replace=False)
    return [pieces[i] for i in np.sort(chosen)]


def psnr_of_constant(original: np.ndarray, values: ValueRange, chosen: Iterable[Box]) -> float:
    """PSNR in dB of the best constant, the mean of each component, as `compare` has it for (grid..., components)."""
    count, sums, squares = 0, 0.0, 0.0
    for _, part in read_in_boxes(original, chosen):
        present = values.normalise(part[~is_missing(part, values.fill)]).astype(np.float64)
        count += len(present)
        sums, squares = sums + present.sum(axis=0), squares + np.square(present).sum(axis=0)
    variance = squares / max(count, 1) - np.square(sums / max(count, 1))
    return _psnr(max(variance.mean() / 4, 0.0))  # 4: of the range from -1 to 1, squared


def combine_metrics(parts: list[Metrics]) -> Metrics:
    """The metrics of a volume from the metrics of its parts."""
    parts = [part for part in parts if part.n_voxels] or parts[:1]
    if len(parts) == 1:
        return parts[0]
    weights = np.array([part.n_voxels for part in parts]) / sum(part.n_voxels for part in parts)

    def mean(psnrs: Iterable[float]) -> float:
        return _psnr(weights @ 10.0 ** (np.array([*psnrs]) / -10))

    rmse = math.hypot(*(math.sqrt(w) * part.rmse for w, part in zip(weights, parts, strict=True)))
    psnrs = tuple(map(mean, zip(*(part.psnrs for part in parts), strict=True)))
    largest = max(part.max_error for part in parts)
    counts = (sum(part.n_voxels for part in parts), sum(part.n_differing for part in parts))
    labels = few_values(*(part.labels for part in parts)) if all(part.labels is not None for part in parts) else None
    return Metrics(mean(part.psnr for part in parts), rmse, largest, psnrs, *counts, labels)


class Comparison:
    """Compares a decoded field with its volume, step by step of a series. A volume in space is step 0.

    values: the range of the field; it may be clipped from that of the volume.
    """

    def __init__(self, volume: Volume, values: ValueRange):
        self.array, self.whole, self.values = volume.array, ValueRange(*volume.value_limits, volume.fill), values
        self.is_series = volume.geometry.d_in == 4
        self.steps: dict[int, Metrics] = {}  # over the range of the volume
        self.clipped: dict[int, Metrics] = {}  # over that of the field, where it is clipped

    def add(self, grid: Grid, decoded: np.ndarray | LazyArray) -> None:
        """Compare the values on a grid of voxels."""
        self.steps |= self._compare(grid, decoded, self.whole)
        if self.values.may_be_clipped_from(self.whole):
            self.clipped |= self._compare(grid, decoded, self.values)

    def _compare(self, grid: Grid, decoded: np.ndarray | LazyArray, values: ValueRange) -> dict[int, Metrics]:
        original = part_of(self.array, grid.as_voxel_box())
        if not self.is_series:
            return {0: compare(original, decoded, values)}
        return {int(t): compare(original[k], decoded[k], values) for k, t in enumerate(grid.axes[0])}

    def report(self) -> dict[str, str]:
        """The result lines: the metrics over all steps, and for a series the PSNR of each step."""
        metrics = combine_metrics([*self.steps.values()])
        found = metrics.report() | {"rmse": f"{metrics.rmse:.6g}", "max_error": f"{metrics.max_error:.6g}"}
        found |= {f"psnr_t{t}": f"{step.psnr:.3f}" for t, step in self.steps.items() if self.is_series}
        clipped = combine_metrics([*self.clipped.values()]).psnr if self.clipped else None
        return found if clipped is None else found | {"psnr_clipped": f"{clipped:.3f}"}


def _psnr(error: float) -> float:
    """The PSNR, in dB, of a mean squared error that is relative to the squared range."""
    return -10 * math.log10(error) if error else math.inf


def file_ratios(n_values: int, dtype: np.dtype, n_bytes: int) -> dict[str, str]:
    """file_ratio: 4 bytes x values / file bytes; source_ratio: source bytes / file bytes, when the two differ."""
    ratios = {"file_ratio": f"{4 * n_values / n_bytes:.2f}"}
    if dtype.itemsize != 4:
        ratios["source_ratio"] = f"{dtype.itemsize * n_values / n_bytes:.2f}"
    return ratios
