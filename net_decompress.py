"""Evaluate a blob back into a volume, or a part of it, in its original units, spacing and origin."""

from __future__ import annotations

import os
import sys

sys.path.insert(0, os.path.dirname(os.path.realpath(__file__)))  # python -P and -I leave this folder out
from cli import console  # first, to handle Ctrl-C while the other modules load

# isort: split
import time
from collections.abc import Sequence
from functools import partial

import numpy as np

from cli import arguments
from cli.files import FileSet, atomic_write, check_outputs, read_bytes, write_files
from field import pictures, rendering
from field.blob import BlobError
from field.metrics import compare_steps, file_ratios, report_of_steps
from field.neural_field import NeuralField
from field.original_blob import decode_either
from field.output import Output, write_output
from formats import points
from formats.arrays import LazyArray, part_of
from formats.common import raw_layout, suffix_of
from formats.reading import read_volume, source_files
from formats.writing import SUFFIXES, output_path
from utils import Grid, UserError, ValueRange, Volume, differences, header_of

warn = partial(console.warn, "net_decompress.py")


def build_parser() -> arguments.ArgumentParser:
    """The command line of this script."""
    parser = arguments.ArgumentParser(__doc__)
    add_input_and_output(parser.add_argument_group("input and output"))
    add_what_to_evaluate(parser.add_argument_group("what to evaluate"))
    parser.add_device_arguments()
    return parser


def add_input_and_output(group: arguments.ArgumentGroup) -> None:
    """Add the options for the blob, for the volume to compare with, and for the files to write."""
    group.add_argument("--compressed", required=True, help="blob that net_compress.py wrote")
    arguments.add_large_argument(group)
    group.add_argument(
        "--recon",
        default="recon",
        help=f"file to write: {', '.join(SUFFIXES)}; .vti when it has no suffix; with --points .npy or .csv. A .raw "
        "file (little-endian, x fastest) says in its name what it holds: recon_80x64x56_float32.raw. Of a time series "
        "a .vti file a step (recon_0003.vti) and recon.pvd, which ParaView plays, or one .npy, .nc, .h5 or .zarr array",
    )
    group.add_argument(
        "--volume",
        help="the original volume, to compare with; a blob of the original scripts takes shape and range from it",
    )
    arguments.add_volume_arguments(group)
    group.add_argument(
        "--preview",
        metavar="FILE.png",
        help="picture to write too: slices through the middle and a rendering of what is evaluated, with --volume the "
        "original and the error as well; of a time series the step half-way",
    )
    group.add_argument(
        "--float", dest="as_float", action="store_true", default=False, help="write integer fields unrounded, as floats"
    )


def add_what_to_evaluate(group: arguments.ArgumentGroup) -> None:
    """Add the options that choose the part of the field and the positions."""
    group.add_argument(
        "--roi",
        type=arguments.roi,
        metavar="X0:X1,Y0:Y1,Z0:Z1",
        help="only this box of voxels, half-open, an empty end being the volume's own",
    )
    group.add_argument(
        "--time",
        type=arguments.time_or_steps,
        metavar="T | A:B",
        help="of a time series only this time, in steps from 0, where 2.5 lies between two, or the steps from A up to "
        "but not B",
    )
    group.add_argument(
        "--resolution",
        type=arguments.voxel_counts,
        metavar="NX,NY,NZ",
        help="that many points along each axis, from the first voxel to the last of the volume or of --roi",
    )
    group.add_argument(
        "--gradient",
        action="store_true",
        default=False,
        help="add the exact gradient, in units of value per unit of length (.vti, or with --points, where a time "
        "series has a derivative by time too)",
    )
    group.add_argument(
        "--points",
        metavar="FILE",
        help="only these positions, in the units of spacing and origin: .npy of shape (n, axes), or .csv: x,y,z; "
        "of a time series t,x,y,z; where the first line of a .csv file holds names, the columns of these names",
    )
    group.add_argument(
        "--outside",
        choices=("error", "nan"),
        default="error",
        help="what a position of --points outside the volume is: an error, or NaN",
    )


def parse(argv: Sequence[str]) -> arguments.Options:
    """The options, checked together, with the final name of the output. Raises UserError."""
    opt = build_parser().parse_args(argv)
    arguments.check_volume_arguments(opt)
    if not os.path.basename(opt.recon):  # a name of only a suffix would be a hidden file
        raise UserError(f"--recon: expected the name of a file to write, found {opt.recon!r}")
    if opt.points:
        for name in ("roi", "time", "resolution", "volume", "preview"):
            if getattr(opt, name) is not None:
                raise UserError(f"--points and --{name}: give one of them")
        opt.recon = points.points_path(opt.recon, opt.points)
        return arguments.Options(**vars(opt))
    if opt.outside != "error":
        raise UserError("--outside belongs to --points")
    opt.recon = output_path(opt.recon)
    if opt.gradient and suffix_of(opt.recon) != ".vti":
        raise UserError(f"{opt.recon}: --gradient needs a file that holds several arrays: .vti")
    return arguments.Options(**vars(opt))


def read_field(opt: arguments.Options, device: object) -> tuple[NeuralField, Volume | None]:
    """The field in --compressed, and the volume in --volume if it is given. Both have the same shape.

    A blob of the original scripts has no header; shape and range then come from the volume. Raises UserError.
    """
    try:
        header, network, weights = decode_either(read_bytes(opt.compressed), opt.large)
    except BlobError as error:
        raise UserError(f"{opt.compressed}: {error}") from None
    if header is None and not opt.volume:
        raise UserError(
            f"{opt.compressed}: a blob of the original scripts, without shape and range: give the volume with --volume"
        )
    volume = None
    if opt.volume:
        layout = raw_layout(opt.shape, opt.dtype, opt.endian)
        d_in, d_out, fill = network["d_in"], network["d_out"], header and header.fill_option
        volume = read_volume(opt.volume, d_in, d_out, opt.array, layout, fill, opt.resample)
        found = header_of(volume)
        header = header or found
        differing = differences(found, header)
        if "shape" in differing:
            raise UserError(
                f"{opt.volume}: expected shape {header.shape}, as in {opt.compressed}, found {volume.array.shape}"
            )
        if "range" in differing:
            is_within = (found.low <= header.low).all() and (header.high <= found.high).all()
            what = f"has another range than {opt.compressed}{', which may be clipped' if is_within else ''}"
            warn(f"{opt.volume}: {what}")
        if "missing" in differing:
            warn(f"{opt.volume}: other voxels are missing than in {opt.compressed}, left out in either")
    return NeuralField(header, network, weights, device, opt.num_workers), volume


def grid_of(opt: arguments.Options, field: NeuralField) -> Grid:
    """The positions that --roi, --resolution and --time ask for. Raises UserError for positions outside the field."""
    try:
        return field.grid(opt.roi, opt.resolution, opt.time)
    except ValueError as error:
        flags = [f"--{name}" for name in ("roi", "resolution", "time") if getattr(opt, name) is not None]
        where = f"{' '.join(flags)}: {opt.compressed}" if flags else opt.compressed
        raise UserError(f"{where} has shape {field.header.shape}: {error}") from None


def write_points(opt: arguments.Options, field: NeuralField) -> str:
    """Evaluate the field at --points, write --recon and report counts. Raises UserError for points outside."""
    positions = points.read_points(opt.points, len(field.header.shape))
    is_outside = ~field.contains(positions)
    n_outside = int(is_outside.sum())
    if n_outside and opt.outside == "error":
        first, nan = int(np.argmax(is_outside)), " or are NaN" if np.isnan(positions).any() else ""
        raise UserError(
            f"{opt.points}: {n_outside} of {len(positions)} points lie outside the volume{nan}, the first is number "
            f"{first}, {positions[first].tolist()}: --outside nan writes NaN for them"
        )
    values, gradients = field.at(positions), field.gradient_at(positions) if opt.gradient else None
    with atomic_write(opt.recon) as path:
        name = field.header.geometry.name
        points.write_points(path, suffix_of(opt.recon), name, positions, values, gradients)
    counts = {"points": len(positions), "outside": n_outside}
    if field.header.missing:
        is_nan = np.isnan(values.reshape(len(positions), -1)).any(axis=1)
        counts["missing"] = np.count_nonzero(is_nan & ~is_outside)
    console.report(**counts)
    return opt.recon


def write_volume_files(opt: arguments.Options, field: NeuralField, volume: Volume | None, inputs: list[str]) -> str:
    """Evaluate the field on a grid, write the files and the picture, all or none, and report the metrics.

    Returns the name of the file to open.
    """
    grid = grid_of(opt, field)
    output = Output(opt.recon, grid, isinstance(opt.time, float), opt.as_float, opt.gradient)
    output, beside = output.named(field)
    check_outputs([*output.files(), *beside], inputs)
    box, steps = grid.as_voxel_box(), {}
    is_compared = volume is not None and box is not None
    values = ValueRange(*volume.value_limits, volume.fill) if volume else None

    def on_values(grid: Grid, array: np.ndarray | LazyArray) -> None:
        steps.update(compare_steps(part_of(volume.array, grid.as_voxel_box()), array, values, grid))

    if volume and box is None:
        flag = "--resolution" if opt.resolution else f"--time {opt.time:g}"
        warn(f"{opt.volume}: not compared: {flag} asks for other positions than its voxels")
    with FileSet() as files:
        write_output(output, field, opt.compressed, on_values if is_compared else None, files)
        if opt.preview:
            original, title = part_of(volume.array, box) if steps else None, os.path.basename(opt.compressed)
            write_files({opt.preview: pictures.preview_of(field, grid, original, steps, title, opt.as_float)}, files)
    if steps:
        console.report(**report_of_steps(steps, is_series=len(grid.shape) == 4))
    return output.files()[-1]


def main(argv: Sequence[str]) -> None:
    """Run the script with these arguments."""
    opt = parse(argv)
    device = arguments.resolve_device(opt.cuda, opt.gid)
    inputs = [path for path in (opt.compressed, opt.points) if path] + (source_files(opt.volume) if opt.volume else [])
    check_outputs([opt.recon, *([opt.preview] if opt.preview else [])], inputs)
    if opt.preview:
        rendering.check(opt.preview)
    field, volume = read_field(opt, device)
    started = time.monotonic()
    recon = write_points(opt, field) if opt.points else write_volume_files(opt, field, volume, inputs)
    header, n_bytes = field.header, os.path.getsize(opt.compressed)
    ratios = file_ratios(header.n_voxels * header.n_components, header.dtype, n_bytes)
    console.report(**ratios, bytes=n_bytes, seconds=f"{time.monotonic() - started:.1f}", recon=recon)


if __name__ == "__main__":
    console.run(main)
