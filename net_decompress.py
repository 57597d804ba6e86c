"""Evaluate a blob back into a volume, or a part of it, in its original units, spacing and origin."""

from __future__ import annotations

import cli  # first: answers Ctrl-C while the others load

# isort: split
import math
import os
import sys
import time
from argparse import Namespace
from collections.abc import Sequence

import numpy as np

import net_coder
import points_io
from neural_field import NeuralField
from utils import Grid, compare, describe, file_ratios
from volume import Volume, VolumeError, raw_layout, suffix_of
from volume_io import read_volume
from volume_writers import output_path, write_volume


def build_parser() -> cli.ArgumentParser:
    """The command line of this script."""
    parser = cli.ArgumentParser(__doc__)
    group = parser.add_argument_group("input and output")
    group.add_argument("--compressed", required=True, help="blob that net_compress.py wrote")
    group.add_argument(
        "--recon",
        default="recon",
        help="file to write: .vti or .npy, .vti when it has no suffix; with --points .npy or .csv",
    )
    group.add_argument(
        "--volume",
        help="the original volume, to compare with; a blob of the original scripts takes shape and range from it",
    )
    cli.add_volume_arguments(group)
    group.add_argument(
        "--float", dest="as_float", action="store_true", default=False, help="write integer fields unrounded, as floats"
    )
    group = parser.add_argument_group("what to evaluate")
    group.add_argument(
        "--roi",
        type=roi_argument,
        metavar="X0:X1,Y0:Y1,Z0:Z1",
        help="only this box of voxels, half-open, an empty end being the volume's own",
    )
    group.add_argument(
        "--resolution",
        type=cli.sizes,
        metavar="NX,NY,NZ",
        help="that many points along each axis, from the first voxel to the last of the volume or of --roi",
    )
    group.add_argument(
        "--gradient",
        action="store_true",
        default=False,
        help="add the exact gradient, in units of value per unit of length (.vti, or with --points)",
    )
    group.add_argument(
        "--points",
        metavar="FILE",
        help="only these positions, in the units of spacing and origin: .npy of shape (n, axes), or .csv: x,y,z",
    )
    group.add_argument(
        "--outside",
        choices=("error", "nan"),
        default="error",
        help="what a position of --points outside the volume is: an error, or NaN",
    )
    parser.add_device_arguments()
    return parser


def roi_argument(text: str) -> tuple[slice, ...]:
    """An argparse type: ranges a:b of voxels, one per axis, either end of which may be left out."""
    try:
        ranges = [part.split(":") for part in text.split(",")]
        ends = [[int(end) if end else None for end in pair] for pair in ranges]
        if any(len(pair) != 2 for pair in ends) or any(end is not None and end < 0 for pair in ends for end in pair):
            raise ValueError
    except ValueError:
        raise cli.ArgumentTypeError(f"expected ranges of voxels as in 0:16,8:24,:, found {text!r}") from None
    return tuple(slice(*pair) for pair in ends)


def parse(argv: Sequence[str]) -> Namespace:
    """The options, once they make sense together; the output's name settled."""
    opt = build_parser().parse_args(argv)
    cli.check_volume_arguments(opt)
    if opt.points:
        for name in ("roi", "resolution", "volume"):
            if getattr(opt, name):
                raise cli.UserError(f"--points and --{name}: give one of them")
        opt.recon = points_io.output_path(opt.recon, opt.points)
        return opt
    if opt.outside != "error":
        raise cli.UserError("--outside belongs to --points")
    opt.recon = output_path(opt.recon)
    if opt.gradient and suffix_of(opt.recon) != ".vti":
        raise cli.UserError(f"{opt.recon}: --gradient needs a file that holds several arrays: .vti")
    return opt


def read_field(opt: Namespace, device: object) -> tuple[NeuralField, Volume | None]:
    """The field in --compressed, and --volume where it is given, of the same shape.

    The original's blobs say nothing of the field: shape and range are the volume's. Raises UserError.
    """
    data = cli.read_bytes(opt.compressed)
    try:
        if net_coder.is_blob(data):
            header, networks = net_coder.decode(data)
        else:
            header, networks = None, [net_coder.decode_original(data)]
    except net_coder.BlobError as error:
        raise cli.UserError(f"{opt.compressed}: {error}") from None
    if len(networks) != 1:
        raise cli.UserError(f"{opt.compressed}: expected one network, found {len(networks)}: of a newer version")
    network, weights = networks[0]
    if header is None and not opt.volume:
        raise cli.UserError(
            f"{opt.compressed}: a blob of the original scripts, without shape and range: give the volume with --volume"
        )
    volume = None
    if opt.volume:
        layout = raw_layout(opt.shape, opt.dtype, opt.endian)
        volume = read_volume(opt.volume, network["d_in"], network["d_out"], opt.array, layout)
        found = describe(volume, network["d_in"])
        header = header or found
        if found.shape != header.shape:
            raise cli.UserError(
                f"{opt.volume}: expected shape {header.shape}, as in {opt.compressed}, found {volume.array.shape}"
            )
        if [*found.low, *found.high] != [*header.low, *header.high]:
            print(f"net_decompress.py: warning: {opt.volume}: has another range than {opt.compressed}", file=sys.stderr)
    return NeuralField(header, network, weights, device, opt.num_workers), volume


def grid_of(opt: Namespace, field: NeuralField) -> Grid:
    """The positions that --roi and --resolution ask for. Raises UserError for those that the field does not have."""
    try:
        return field.grid(opt.roi, opt.resolution)
    except ValueError as error:
        flags = " ".join(f"--{name}" for name in ("roi", "resolution") if getattr(opt, name))
        raise cli.UserError(f"{flags}: {opt.compressed} has shape {field.shape}: {error}") from None


def write_grid(opt: Namespace, field: NeuralField, grid: Grid) -> np.ndarray:
    """Evaluate the field on the grid and write --recon. Returns the values."""
    n_values = math.prod(grid.shape) * len(field.values.low)
    n_bytes = n_values * 8 * (1 + len(field.shape) * opt.gradient)
    cli.check_memory(n_bytes, f"{opt.compressed}: its volume of shape {grid.shape}")
    extra = {}
    with cli.Progress("decoding") as progress:
        array = field.on_grid(grid, opt.as_float, progress.update)
    if opt.gradient:
        with cli.Progress("gradient") as progress:
            extra[f"{field.header.name}_gradient"] = field.gradient_on_grid(grid, progress.update)
    spacing, origin = grid.geometry(field.header)
    header = field.header
    volume = Volume(array, spacing, origin, header.name, header.direction, header.units)
    with cli.atomic_write(opt.recon) as path:
        write_volume(path, volume, suffix_of(opt.recon), extra)
    return array


def write_points(opt: Namespace, field: NeuralField) -> dict[str, str]:
    """Evaluate the field at --points and write --recon. Returns what to report. Raises UserError for points outside."""
    points = points_io.read_points(opt.points, len(field.shape))
    is_outside = ~field.contains(points)
    n_outside = int(is_outside.sum())
    if n_outside and opt.outside == "error":
        first = int(np.argmax(is_outside))
        raise cli.UserError(
            f"{opt.points}: {n_outside} of {len(points)} points lie outside the volume, the first is number {first}, "
            f"{points[first].tolist()}: --outside nan writes NaN for them"
        )
    values, gradients = field.at(points), field.gradient_at(points) if opt.gradient else None
    with cli.atomic_write(opt.recon) as path:
        points_io.write_points(path, suffix_of(opt.recon), field.header.name, points, values, gradients)
    return {"points": str(len(points)), "outside": str(n_outside)}


def main(argv: Sequence[str]) -> None:
    """Run the script with these arguments."""
    opt = parse(argv)
    device = cli.resolve_device(opt.cuda, opt.gid, opt.num_workers)
    cli.check_outputs([opt.recon], inputs=[path for path in (opt.compressed, opt.volume, opt.points) if path])
    field, volume = read_field(opt, device)
    started = time.monotonic()
    if opt.points:
        cli.report(**write_points(opt, field))
    else:
        grid = grid_of(opt, field)
        array = write_grid(opt, field, grid)
        if volume is not None and not opt.resolution:
            original = volume.array[opt.roi or ...]
            metrics = compare(original, array, whole=volume.array)
            cli.report(psnr=f"{metrics.psnr:.3f}", rmse=f"{metrics.rmse:.6g}", max_error=f"{metrics.max_error:.6g}")
    n_values, n_bytes = math.prod(field.shape) * len(field.values.low), os.path.getsize(opt.compressed)
    ratios = file_ratios(n_values, field.values.dtype, n_bytes)
    cli.report(**ratios, bytes=n_bytes, seconds=f"{time.monotonic() - started:.1f}", recon=opt.recon)


if __name__ == "__main__":
    cli.run(main, VolumeError)
