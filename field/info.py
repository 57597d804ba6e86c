"""What a blob holds, as figures: for `net_decompress.py --info`."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from field.blob import network_configs, written_by
from field.bricks import Bricks
from field.metrics import file_ratios
from utils import IDENTITY, VolumeHeader


def blob_figures(data: bytes, header: VolumeHeader | None, bricks: Bricks) -> dict[str, object]:
    """Shape, type, place, range, network, size and quality of a blob, by key; what is unknown has no key."""
    configs = [bricks.networks[0].config] if header is None else network_configs(data)
    n_parameters = sum(config.n_parameters for config in configs)
    size = {} if bricks.is_whole else {"bricks": _numbers(bricks.cut.counts[-3:])}
    if bricks.cut.mirrors:
        size["mirrors"] = _numbers(bricks.cut.mirrors[-3:])
    if len(bricks.networks) > len(configs):
        size["constant_bricks"] = len(bricks.networks) - len(configs)
    for key, field in (("layers", "n_layers"), ("width", "n_neurons")):
        if values := sorted({getattr(config, field) for config in configs}):
            size[key] = values[0] if len(values) == 1 else f"{values[0]}-{values[-1]}"
    size |= {"parameters": n_parameters, "bytes": len(data)}
    if n_parameters:
        size["bits_per_weight"] = f"{8 * len(data) / n_parameters:.3f}"
    if header is None:
        return size | {"version": "the original scripts"}
    ratios = file_ratios(header.n_voxels * header.n_components, header.dtype, len(data))
    written = written_by(data)
    version = {"version": ".".join(map(str, written.version))} if written else {}
    return _header_figures(header) | size | ratios | stored_psnr(data) | version


def stored_psnr(data: bytes) -> dict[str, str]:
    """The result line of the PSNR in dB that was measured when the blob was written; {} if the blob holds none."""
    written = written_by(data)
    return {} if written is None or math.isnan(written.psnr) else {"psnr_when_written": f"{written.psnr:.2f}"}


def _header_figures(header: VolumeHeader) -> dict[str, object]:
    """What the header says of the grid and of the values."""
    geometry, is_series = header.geometry, len(header.shape) == 4
    found = {"shape": _numbers(header.shape[is_series:]), "type": header.dtype.name, "name": geometry.name}
    if header.n_components > 1:
        found["components"] = header.n_components
    if geometry.units:
        found["units"] = geometry.units
    found["spacing"], found["origin"] = _numbers(geometry.spacing[is_series:]), _numbers(geometry.origin[is_series:])
    found |= geometry.axis_attributes
    if geometry.direction != IDENTITY:
        found["direction"] = _numbers(geometry.direction)
    if geometry.space:
        found["space"] = geometry.space
    if is_series:
        last = geometry.origin[0] + (header.shape[0] - 1) * geometry.spacing[0]
        first, last = (_number(time, 15) for time in (geometry.origin[0], last))  # seconds since 1970 have 10 digits
        found |= {"times": header.shape[0], "first_time": first, "last_time": last}
    ranges = [_numbers(pair, digits=17) for pair in header.value_range.pairs()]
    found |= {"range": ranges[0]} if len(ranges) == 1 else {f"range_{c}": pair for c, pair in enumerate(ranges)}
    if header.missing:
        found |= {"missing": header.missing.count, "fill": str(header.fill)}
    return found


def _numbers(values: Sequence, digits: int = 9) -> str:
    """Numbers with commas between them, each as short as it can be told."""
    return ",".join(
        _number(value, digits) if isinstance(value, float | np.floating) else str(value) for value in values
    )


@np.errstate(over="ignore")  # a float64 may be beyond all float32
def _number(value: float, digits: int) -> str:
    """The shortest text that gives the same float32, where the number is one; else so many digits, or fewer."""
    single, short = np.float32(value), f"{value:.{digits}g}"
    return str(single).removesuffix(".0") if float(single) == value else min(short, repr(float(short)), key=len)
