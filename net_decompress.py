"""Evaluate a blob back into a volume, or a part of it, in its original units, spacing and origin."""

from __future__ import annotations

import os
import sys

sys.path.insert(0, os.path.dirname(os.path.realpath(__file__)))  # python -P and -I leave this folder out
import cli.startup  # noqa: F401 - first, to handle Ctrl-C while the other modules load

# isort: split
import contextlib
import time
from collections.abc import Iterator, Sequence
from functools import partial

import numpy as np

from cli import arguments, console
from cli.files import FileSet, atomic_write, check_derived, check_outputs, read_bytes, size_of, states_of
from cli.summary import Figures, summary, table
from field import pictures, rendering
from field.blob import BlobError
from field.info import blob_figures, stored_psnr
from field.metrics import Comparison, file_ratios
from field.neural_field import NeuralField
from field.options import parse
from field.original_blob import decode_either
from field.output import Output, write_output
from formats import points
from formats.arrays import part_of
from formats.common import suffix_of
from formats.reading import read_original, source_files
from utils import Grid, UserError, Volume

MOST_LOST = 1.0  # dB below the PSNR that a blob had when it was written; the same voxels give the same
warn = partial(console.warn, "net_decompress.py")


@contextlib.contextmanager
def naming(path: str) -> Iterator[None]:
    """Make a BlobError of the block a UserError that names the file. The networks of bricks are decoded late."""
    try:
        yield
    except BlobError as error:
        raise UserError(f"{path}: {error}") from None


def read_field(opt: arguments.Options, data: bytes, device: object) -> tuple[NeuralField, Volume | None]:
    """The field in `data`, of --compressed, and the volume in --volume if it is given. Both have the same shape.

    A blob of the original scripts has no header; shape and range then come from the volume. Raises UserError.
    """
    with naming(opt.compressed):
        header, bricks = decode_either(data, opt.large)
    if header is None and not opt.volume:
        raise UserError(
            f"{opt.compressed}: a blob of the original scripts, without shape and range: give the volume with --volume"
        )
    if header and opt.points and opt.volume:
        raise UserError("--points and --volume: give one of them")
    volume = None
    if opt.volume:
        d_in, d_out = len(bricks.cut.counts), bricks.cut.low.shape[1]
        volume, found, differing = read_original(opt, d_in, d_out, header, opt.compressed)
        header = header or found
        if "range" in differing:
            clipped = ", which may be clipped" if header.value_range.may_be_clipped_from(found.value_range) else ""
            warn(f"{opt.volume}: has another range than {opt.compressed}{clipped}")
        if "missing" in differing:
            warn(f"{opt.volume}: other voxels are missing than in {opt.compressed}, left out in either")
    return NeuralField(header, bricks, device, opt.num_workers), volume


def grid_of(opt: arguments.Options, field: NeuralField) -> Grid:
    """The positions that --roi, --resolution and --time ask for. Raises UserError for positions outside the field."""
    try:
        return field.grid(opt.roi, opt.resolution, opt.time)
    except ValueError as error:
        flags = [f"--{name}" for name in ("roi", "resolution", "time") if getattr(opt, name) is not None]
        where = f"{' '.join(flags)}: {opt.compressed}" if flags else opt.compressed
        raise UserError(f"{where} has shape {field.header.shape}: {error}") from None


def write_points(opt: arguments.Options, field: NeuralField) -> tuple[Figures, dict[str, str], int]:
    """Evaluate the field at --points and write --recon. Raises UserError for outside.

    Returns counts, the file by key, and its bytes.
    """
    positions = points.read_points(opt.points, len(field.header.shape))
    is_outside = ~field.contains(positions)
    n_outside = int(is_outside.sum())
    if n_outside and opt.outside == "error":
        first, nan = int(np.argmax(is_outside)), " or are NaN" if np.isnan(positions).any() else ""
        raise UserError(
            f"{opt.points}: {n_outside} of {len(positions)} points lie outside the volume{nan}, the first is number "
            f"{first}, counted from 0, {positions[first].tolist()}: --outside nan writes NaN for them"
        )
    values, gradients = field.at(positions), field.gradient_at(positions) if opt.gradient else None
    with atomic_write(opt.recon) as path:
        name = field.header.geometry.name
        points.write_points(path, suffix_of(opt.recon), name, positions, values, gradients)
    counts = {"points": len(positions), "outside": n_outside}
    if field.header.missing:
        is_nan = np.isnan(values.reshape(len(positions), -1)).any(axis=1)
        counts["missing"] = np.count_nonzero(is_nan & ~is_outside)
    return counts, {"recon": opt.recon}, size_of([opt.recon])


def write_volume_files(
    opt: arguments.Options, field: NeuralField, volume: Volume | None, inputs: list[str]
) -> tuple[Figures, dict[str, str], int]:
    """Evaluate the field on a grid and write the files and the picture, all or none.

    Returns the metrics, the files by key (the one to open, what lies beside it, the first and last of many), and the
    bytes of all files of values.
    """
    grid = grid_of(opt, field)
    output = Output(opt.recon, grid, isinstance(opt.time, float), opt.as_float, opt.gradient)
    output, beside = output.named(field)
    files = [*output.files(), *beside]
    check_outputs(files, inputs)
    if opt.is_named and not opt.volume:  # which is not the name of an output, as it was checked
        check_derived([path for path in files if path != opt.recon], opt.compressed)
    box = grid.as_voxel_box()
    compared = Comparison(volume, field.values) if volume and box else None
    if volume and box is None:
        flag = "--resolution" if opt.resolution else f"--time {opt.time:g}"
        warn(f"{opt.volume}: not compared: {flag} asks for other positions than its voxels")
    with FileSet() as files:
        write_output(output, field, opt.compressed, compared and compared.add, files)
        if compared and not all(step.n_voxels for step in compared.steps.values()):
            warn(f"{opt.volume}: psnr is nan where all voxels are missing, in it or in {opt.compressed}")
        if opt.preview:
            original, steps = (part_of(volume.array, box), compared.steps) if compared else (None, {})
            title = os.path.basename(opt.compressed)
            files.write(opt.preview, pictures.preview(field, grid, original, steps, title, opt.as_float))
    *by_step, recon = output.files()
    written = {
        "recon": recon,
        "first_step": by_step[0] if by_step else None,
        "last_step": by_step[-1] if len(by_step) > 1 else None,
        "voxels": beside[0] if beside else None,
        "preview": opt.preview,
    }
    written = {key: path for key, path in written.items() if path}
    return compared.report() if compared else {}, written, size_of([recon, *by_step, *beside])


def warn_of_another_volume(opt: arguments.Options, figures: Figures, stored: Figures) -> None:
    """Warn if the comparison has a lower PSNR than the blob had when it was written. stored: of `stored_psnr`."""
    found = [float(figures[key]) for key in ("psnr", "psnr_clipped") if key in figures]
    for before in map(float, stored.values()):
        # A clipped blob stores psnr_clipped, one of an older version psnr.
        is_as_written = any(abs(psnr - before) <= MOST_LOST for psnr in found)
        if found and found[-1] < before - MOST_LOST and not is_as_written and not opt.as_float:
            what = f"{found[-1]:.1f} dB, where the blob had {before:.1f} dB when it was written"
            warn(f"{opt.volume}: {what}: is it the volume that it was made of?")


def show_info(opt: arguments.Options) -> None:
    """Print what --compressed holds."""
    data = read_bytes(opt.compressed)
    with naming(opt.compressed):
        figures = blob_figures(data, *decode_either(data, opt.large))
    console.report(table(figures), figures)


def main(argv: Sequence[str]) -> None:
    """Run the script with these arguments."""
    opt = parse(argv)
    if opt.info:
        show_info(opt)
        return
    device = arguments.resolve_device(True, opt.gid) if opt.cuda else "cpu"  # without torch, which loads for a second
    volumes = source_files(opt.volume) if opt.volume else []
    inputs, states = [path for path in (opt.compressed, opt.points) if path] + volumes, states_of(volumes)
    check_outputs([opt.recon, *([opt.preview] if opt.preview else [])], inputs)
    if opt.preview:
        rendering.check(opt.preview)
    data = read_bytes(opt.compressed)
    field, volume = read_field(opt, data, device)
    started = time.monotonic()
    with naming(opt.compressed):
        made = write_points(opt, field) if opt.points else write_volume_files(opt, field, volume, inputs)
    console.warn_of_changes("net_decompress.py", states)
    figures, written, n_made = made
    is_part = any(value is not None for value in (opt.points, opt.roi, opt.resolution, opt.time))
    if not is_part:
        stored = stored_psnr(data)
        warn_of_another_volume(opt, figures, stored)
        figures |= {} if volume else stored
    header, n_bytes = field.header, len(data)
    figures |= file_ratios(header.n_voxels * header.n_components, header.dtype, n_bytes)
    figures |= {"bytes": n_bytes, "seconds": f"{time.monotonic() - started:.1f}", **written}
    n_points = f"{figures['points']} points, {figures['outside']} outside" if opt.points else ""
    line = summary(opt.compressed, n_bytes, list(written.values()), n_made, figures, n_points)
    console.report(line, figures)


if __name__ == "__main__":
    console.run(main)
